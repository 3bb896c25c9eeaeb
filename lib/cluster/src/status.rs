//! What state a cluster is in.
//!
//! In: its nodes and pods. Out: a [`Status`], which can be serialised.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde::{Deserialize, Serialize};

use crate::client::{Client, Error};
use crate::node::{SERVICES, pressure, readiness};

/// Nodes, and pods that don't do their work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// All nodes by name.
    pub nodes: Vec<NodeStatus>,
    /// How many pods there are, finished ones included.
    pub pods: usize,
    /// Pods that are neither ready nor finished.
    pub problems: Vec<PodProblem>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Name in Kubernetes.
    pub name: String,
    /// First internal address.
    pub address: Option<String>,
    /// Version of its kubelet.
    pub version: Option<String>,
    /// Whether it is ready.
    pub ready: bool,
    /// Why it isn't.
    pub reason: Option<String>,
    /// What it is short of, ready or not.
    pub pressure: Vec<String>,
    /// What it has announced of its own services.
    pub services: Option<String>,
}

/// A pod that is neither ready nor finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodProblem {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Node that it runs on, once that is decided.
    pub node: Option<String>,
    /// What it waits for, as far as is known.
    pub reason: String,
}

impl Client {
    /// The state of all nodes and pods.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn status(&self) -> Result<Status, Error> {
        let nodes: Api<Node> = Api::all(self.0.clone());
        let pods: Api<Pod> = Api::all(self.0.clone());
        let (nodes, pods) = tokio::try_join!(
            self.list("listing nodes", &nodes, ListParams::default()),
            self.list("listing pods", &pods, ListParams::default()),
        )?;
        Ok(status(&nodes, &pods))
    }
}

fn status(nodes: &[Node], pods: &[Pod]) -> Status {
    let mut nodes: Vec<_> = nodes.iter().map(node_status).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let mut problems: Vec<_> = pods.iter().filter_map(problem).collect();
    problems.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Status {
        nodes,
        pods: pods.len(),
        problems,
    }
}

pub(crate) fn node_status(node: &Node) -> NodeStatus {
    let reason = readiness(node).err();
    let info = node
        .status
        .as_ref()
        .and_then(|status| status.node_info.as_ref());
    NodeStatus {
        name: node.metadata.name.clone().unwrap_or_default(),
        address: internal_address(node),
        version: info.map(|info| info.kubelet_version.clone()),
        ready: reason.is_none(),
        reason,
        pressure: pressure(node),
        services: node.annotations().get(SERVICES).cloned(),
    }
}

/// The first internal address of a node.
pub(crate) fn internal_address(node: &Node) -> Option<String> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses
        .iter()
        .find(|a| a.type_ == "InternalIP")
        .map(|a| a.address.clone())
}

fn problem(pod: &Pod) -> Option<PodProblem> {
    let status = pod.status.as_ref();
    let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    let conditions = status
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default();
    let ready = conditions
        .iter()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    // A Job makes a new pod after a failed one and answers for it itself.
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let given_up = phase == "Failed" && owners.iter().any(|owner| owner.kind == "Job");
    if ready || phase == "Succeeded" || given_up {
        return None;
    }
    let containers = status.into_iter().flat_map(|status| {
        let lists = [&status.init_container_statuses, &status.container_statuses];
        lists.into_iter().flatten().flatten()
    });
    let waiting = containers
        .filter_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone())
        .find(|reason| reason != "PodInitializing");
    let unscheduled = conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False")
        .and_then(|c| c.message.clone());
    let own = status.and_then(|s| s.reason.clone());
    let reason = waiting
        .or(unscheduled)
        .or(own)
        .unwrap_or_else(|| match phase {
            "Running" => "not ready".into(),
            other => other.into(),
        });
    Some(PodProblem {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value, owner: Option<&str>) -> Pod {
        let owners: Vec<_> = owner
            .iter()
            .map(|kind| json!({"apiVersion": "batch/v1", "kind": kind, "name": "x", "uid": "1"}))
            .collect();
        serde_json::from_value(json!({
            "metadata": { "namespace": "ns", "name": "p", "ownerReferences": owners },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn pods_that_work_or_are_done_are_no_problem() {
        let ready =
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        let failed = json!({"phase": "Failed"});
        assert_eq!(problem(&pod(ready, None)), None);
        assert_eq!(problem(&pod(json!({"phase": "Succeeded"}), None)), None);
        assert_eq!(problem(&pod(failed.clone(), Some("Job"))), None);
        assert_eq!(problem(&pod(failed, None)).unwrap().reason, "Failed");
        let pulling = json!({
            "phase": "Pending",
            "initContainerStatuses": [{
                "name": "i", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff"}},
            }],
            "containerStatuses": [{
                "name": "c", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "PodInitializing"}},
            }],
        });
        assert_eq!(
            problem(&pod(pulling, None)).unwrap().reason,
            "ImagePullBackOff"
        );
        let nowhere = json!({
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}],
        });
        assert_eq!(problem(&pod(nowhere, None)).unwrap().reason, "0/1 nodes");
        assert_eq!(
            problem(&pod(json!({"phase": "Running"}), None))
                .unwrap()
                .reason,
            "not ready"
        );
    }

    #[test]
    fn a_status_is_in_order() {
        let node = |name: &str| -> Node {
            serde_json::from_value(json!({
                "metadata": { "name": name },
                "status": {
                    "addresses": [
                        {"type": "Hostname", "address": name},
                        {"type": "InternalIP", "address": "10.0.0.1"},
                    ],
                },
            }))
            .unwrap()
        };
        let status = status(&[node("b"), node("a")], &[]);
        let names: Vec<_> = status.nodes.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(status.nodes[0].address.as_deref(), Some("10.0.0.1"));
        assert!(!status.nodes[0].ready);
    }
}
