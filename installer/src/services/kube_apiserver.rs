//! The Kubernetes API server.

use planet::config::Probe;
use serde_json::json;

use super::{Context, Definition, config, control_plane_command, secret};

/// Anonymous requests may ask for health and nothing else.
const AUTHENTICATION: &str = "\
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
    - path: /livez
    - path: /readyz
    - path: /healthz
";

/// Pods that the baseline standard would refuse are told of, in warnings and in
/// the audit log; vendors tighten it a namespace at a time.
const ADMISSION: &str = "\
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
  - name: PodSecurity
    configuration:
      apiVersion: pod-security.admission.config.k8s.io/v1
      kind: PodSecurityConfiguration
      defaults:
        enforce: privileged
        enforce-version: latest
        audit: baseline
        audit-version: latest
        warn: baseline
        warn-version: latest
      exemptions:
        namespaces: [kube-system]
";

/// Service accounts, in `kube-system`, of the controllers that write while an application
/// just works. By name: hooks have accounts in that namespace, too, and all rights.
const CONTROLLERS: &[&str] = &[
    "attachdetach-controller",
    "cronjob-controller",
    "daemon-set-controller",
    "deployment-controller",
    "disruption-controller",
    "endpoint-controller",
    "endpointslice-controller",
    "endpointslicemirroring-controller",
    "ephemeral-volume-controller",
    "generic-garbage-collector",
    "horizontal-pod-autoscaler",
    "job-controller",
    "namespace-controller",
    "node-controller",
    "persistent-volume-binder",
    "pod-garbage-collector",
    "pv-protection-controller",
    "pvc-protection-controller",
    "replicaset-controller",
    "replication-controller",
    "resource-claim-controller",
    "resourcequota-controller",
    "root-ca-cert-publisher",
    "service-account-controller",
    "statefulset-controller",
    "ttl-after-finished-controller",
    "ttl-controller",
];

/// Who changed what, without contents; reads, signs of life and the control plane's own
/// chatter are left out.
fn audit() -> serde_json::Value {
    let controllers = CONTROLLERS.iter();
    let controllers = controllers.map(|name| format!("system:serviceaccount:kube-system:{name}"));
    let control_plane = [
        "system:apiserver",
        "system:kube-controller-manager",
        "system:kube-scheduler",
    ];
    let users: Vec<_> = control_plane
        .map(String::from)
        .into_iter()
        .chain(controllers)
        .collect();
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            { "level": "None", "verbs": ["get", "list", "watch"] },
            { "level": "None", "resources": [
                { "group": "", "resources": ["events"] },
                { "group": "events.k8s.io" },
                { "group": "coordination.k8s.io", "resources": ["leases"] },
                // Questions, which change nothing.
                { "group": "authentication.k8s.io" },
                { "group": "authorization.k8s.io" },
            ] },
            { "level": "None", "users": users },
            // What a kubelet does all the time. All else that it writes, or is refused, is
            // told.
            { "level": "None", "userGroups": ["system:nodes"], "resources": [{
                "group": "", "resources": ["nodes/status", "pods/status", "serviceaccounts/token"],
            }] },
            { "level": "Metadata" },
        ],
    })
}

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let address = context.address();
    let mut command = control_plane_command(
        context,
        "kube-apiserver",
        &[
            ("advertise-address", address.to_string()),
            // Not every address: the balancer has the same port on its own.
            ("bind-address", address.to_string()),
            ("secure-port", spec::API_PORT.to_string()),
            ("etcd-servers", "https://127.0.0.1:2379".into()),
            ("etcd-cafile", secret("etcd-ca.crt")),
            ("etcd-certfile", secret("etcd-client.crt")),
            ("etcd-keyfile", secret("etcd-client.key")),
            ("tls-cert-file", secret("apiserver.crt")),
            ("tls-private-key-file", secret("apiserver.key")),
            ("client-ca-file", secret("kubernetes-ca.crt")),
            ("kubelet-certificate-authority", secret("kubernetes-ca.crt")),
            (
                "kubelet-client-certificate",
                secret("apiserver-kubelet-client.crt"),
            ),
            ("kubelet-client-key", secret("apiserver-kubelet-client.key")),
            ("kubelet-preferred-address-types", "InternalIP".into()),
            ("service-cluster-ip-range", context.service_cidr().into()),
            (
                "service-account-issuer",
                format!("https://kubernetes.default.svc.{}", context.cluster.domain),
            ),
            ("service-account-key-file", secret("service-account.pub")),
            (
                "service-account-signing-key-file",
                secret("service-account.key"),
            ),
            ("proxy-client-cert-file", secret("front-proxy-client.crt")),
            ("proxy-client-key-file", secret("front-proxy-client.key")),
            ("requestheader-client-ca-file", secret("front-proxy-ca.crt")),
            ("requestheader-allowed-names", "front-proxy-client".into()),
            (
                "requestheader-extra-headers-prefix",
                "X-Remote-Extra-".into(),
            ),
            ("requestheader-group-headers", "X-Remote-Group".into()),
            ("requestheader-username-headers", "X-Remote-User".into()),
            ("authorization-mode", "Node,RBAC".into()),
            ("authentication-config", config("authentication.yaml")),
            ("enable-admission-plugins", "NodeRestriction".into()),
            ("admission-control-config-file", config("admission.yaml")),
            ("encryption-provider-config", secret("encryption.yaml")),
            ("audit-policy-file", config("audit.yaml")),
            ("audit-log-path", "/var/log/planet/audit/audit.log".into()),
            ("audit-log-maxsize", "50".into()),
            ("audit-log-maxbackup", "4".into()),
            ("allow-privileged", "true".into()),
            ("profiling", "false".into()),
            ("v", "1".into()),
        ],
    );
    let ports = context.cluster.settings.node_ports.iter();
    command.extend(ports.map(|ports| format!("--service-node-port-range={ports}")));
    let ready = Probe::Http {
        url: format!("https://{address}:{}/readyz", spec::API_PORT),
    };
    let mut service = context.unprivileged("kube-apiserver", command, ready);
    service.requires = vec!["etcd".into()];
    service.directories = vec!["/var/log/planet/audit".into()];
    // Everything waits for it: it gets the processor first.
    service.cpu_weight = Some(400);
    service.stop_timeout_seconds = 20;
    let files = vec![
        context.file("authentication.yaml", AUTHENTICATION.into()),
        context.file("admission.yaml", ADMISSION.into()),
        context.file("audit.yaml", format!("{:#}\n", audit())),
    ];
    Definition {
        files,
        ..service.into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    /// The level at which a request is logged: that of the first rule that fits it.
    fn level(user: &str, groups: &[&str], verb: &str, group: &str, resource: &str) -> String {
        let has = |list: &Value, word: &str| {
            let list = list.as_array();
            list.is_none_or(|list| list.iter().any(|one| one.as_str() == Some(word)))
        };
        let fits = |rule: &&Value| {
            let among = |one: &Value| one["group"] == group && has(&one["resources"], resource);
            let all = rule["userGroups"].is_null();
            let resources = rule["resources"].as_array();
            has(&rule["users"], user)
                && (all || groups.iter().any(|group| has(&rule["userGroups"], group)))
                && has(&rule["verbs"], verb)
                && resources.is_none_or(|list| list.iter().any(among))
        };
        let policy = super::audit();
        let rule = policy["rules"].as_array().unwrap().iter().find(fits);
        rule.unwrap()["level"].as_str().unwrap().to_owned()
    }

    #[test]
    fn changes_by_hooks_and_of_nodes_are_logged_and_chatter_is_not() {
        let system = &["system:serviceaccounts:kube-system"];
        let account = |name: &str, verb, group, resource| {
            let user = format!("system:serviceaccount:kube-system:{name}");
            level(&user, system, verb, group, resource)
        };
        let roles = "rbac.authorization.k8s.io";
        for (verb, group, resource) in [
            ("create", "apps", "deployments"),
            ("patch", "", "secrets"),
            ("delete", roles, "clusterrolebindings"),
        ] {
            let level = account("gravity-hook-5f6a7b", verb, group, resource);
            assert_eq!(level, "Metadata", "{verb} {resource}");
        }
        assert_eq!(account("gravity-hook-5f6a7b", "get", "", "secrets"), "None");
        assert_eq!(
            account("replicaset-controller", "create", "", "pods"),
            "None"
        );
        let leases = "coordination.k8s.io";
        assert_eq!(account("vendor", "update", leases, "leases"), "None");

        let node = |verb, group, resource| {
            let groups = ["system:nodes", "system:authenticated"];
            level("system:node:one", &groups, verb, group, resource)
        };
        assert_eq!(node("patch", "", "nodes/status"), "None");
        assert_eq!(node("update", leases, "leases"), "None");
        for (verb, group, resource) in [
            ("patch", "", "nodes"),
            ("create", "", "secrets"),
            ("create", roles, "clusterrolebindings"),
        ] {
            assert_eq!(node(verb, group, resource), "Metadata", "{verb} {resource}");
        }
        let admin = level(
            "kubernetes-admin",
            &["system:masters"],
            "create",
            "batch",
            "jobs",
        );
        assert_eq!(admin, "Metadata");
    }
}
