//! Kubernetes objects that every cluster has.
//!
//! In: the cluster. Out: objects, applied once the API is up. Pure.

use serde_json::{Value, json};
use spec::ClusterSpec;

use crate::secrets::{COREDNS, KUBELET_CLIENT};
use crate::services::Context;

/// Role of all nodes: they may know what the cluster is.
const NODES: &str = "gravity:nodes";

/// The policy that kubelets make no node objects.
const REGISTRATION: &str = "gravity-node-registration";

/// Rights of our own services, and what nodes may not do.
pub(crate) fn rbac() -> Vec<Value> {
    let mut all = rights();
    all.extend(registration());
    all
}

/// Node objects are made by `gravity` alone. A kubelet would make its own again at
/// its next start, on a machine that was removed from the cluster while it ran, and
/// get pods. One that has its object takes the refusal for that of a second one.
fn registration() -> [Value; 2] {
    [
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": { "name": REGISTRATION },
            "spec": {
                "matchConstraints": {
                    "resourceRules": [{
                        "apiGroups": [""], "apiVersions": ["v1"],
                        "resources": ["nodes"], "operations": ["CREATE"],
                    }],
                },
                "validations": [{
                    "expression": "!request.userInfo.groups.exists(group, group == 'system:nodes')",
                    "message": "a machine becomes a node of this cluster by `gravity join`",
                    // Of another reason it takes it for a failure, and tries on and on.
                    "reason": "Forbidden",
                }],
            },
        }),
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": { "name": REGISTRATION },
            "spec": { "policyName": REGISTRATION, "validationActions": ["Deny"] },
        }),
    ]
}

fn rights() -> Vec<Value> {
    let role = |name: &str, rules: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": { "name": name },
            "rules": rules,
        })
    };
    let binding = |name: &str, role: &str, kind: &str, subject: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": { "name": name },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role,
            },
            "subjects": [
                { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": subject },
            ],
        })
    };
    vec![
        binding(
            "gravity:kubelet-api",
            "system:kubelet-api-admin",
            "User",
            KUBELET_CLIENT,
        ),
        role(
            "gravity:coredns",
            json!([
                { "apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"] },
                { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
            ]),
        ),
        binding("gravity:coredns", "gravity:coredns", "User", COREDNS),
        // flannel asks as the node: it learns of the others, and writes to its own object
        // alone, as the Node authorizer and NodeRestriction let every node.
        role(
            "gravity:flannel",
            json!([{ "apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"] }]),
        ),
        binding(
            "gravity:flannel",
            "gravity:flannel",
            "Group",
            "system:nodes",
        ),
        role(
            NODES,
            json!([{
                "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [cluster::DESCRIPTION],
                "verbs": ["get", "list", "watch"],
            }]),
        ),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": { "name": NODES, "namespace": "kube-system" },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NODES,
            },
            "subjects": [{
                "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes",
            }],
        }),
    ]
}

/// The `kube-dns` Service over the masters, for what looks for it by name. Pods use the
/// link-local address, which needs no Service. Its address is not fixed: where
/// the request that makes it is cut off, the API server may keep the address
/// for minutes without a Service, and refuse it to the next try.
pub(crate) fn dns(cluster: &ClusterSpec) -> Vec<Value> {
    let port = spec::DNS_SERVICE_PORT;
    let mut masters = cluster.masters();
    let is_ipv4 = masters.next().is_none_or(|address| address.is_ipv4());
    let family = if is_ipv4 { "IPv4" } else { "IPv6" };
    let endpoints: Vec<_> = cluster
        .masters()
        .map(|address| json!({ "addresses": [address], "conditions": { "ready": true } }))
        .collect();
    vec![
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "kube-dns",
                "namespace": "kube-system",
                "labels": { "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS" },
            },
            "spec": {
                "ports": [
                    { "name": "dns", "port": 53, "targetPort": port, "protocol": "UDP" },
                    { "name": "dns-tcp", "port": 53, "targetPort": port, "protocol": "TCP" },
                ],
            },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns-nodes",
                "namespace": "kube-system",
                "labels": {
                    "kubernetes.io/service-name": "kube-dns",
                    "endpointslice.kubernetes.io/managed-by": "gravity",
                },
            },
            "addressType": family,
            "ports": [
                { "name": "dns", "port": port, "protocol": "UDP" },
                { "name": "dns-tcp", "port": port, "protocol": "TCP" },
            ],
            "endpoints": endpoints,
        }),
    ]
}

/// What hooks and people may want to know of the cluster, and what nodes that
/// join need to.
///
/// # Errors
/// When the description can't be written as JSON.
pub(crate) fn cluster_info(context: &Context<'_>) -> Result<Vec<Value>, serde_json::Error> {
    let map = |name: &str, data: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": name, "namespace": "kube-system" },
            "data": data,
        })
    };
    let environment = crate::hooks::cluster_environment(context.cluster);
    let description = serde_json::to_string_pretty(context.cluster)?;
    Ok(vec![
        map("cluster-info", json!(environment)),
        map(
            cluster::DESCRIPTION,
            json!({ cluster::DESCRIPTION_KEY: description }),
        ),
    ])
}

#[cfg(test)]
mod tests {
    #[test]
    fn services_of_nodes_may_read_and_write_nothing() {
        for object in super::rbac() {
            let rules = object["rules"].as_array().into_iter().flatten();
            let verbs = rules.flat_map(|rule| rule["verbs"].as_array().unwrap());
            for verb in verbs {
                let reads = ["get", "list", "watch"].contains(&verb.as_str().unwrap());
                assert!(reads, "{verb}: {object}");
            }
        }
    }
}
