//! What state a cluster is in.
//!
//! In: its nodes and pods. Out: a [`Status`]; or of the nodes alone, now or whenever
//! something about them changes.

use std::collections::BTreeMap;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};

use crate::client::{Client, Error};
use crate::node::{SERVICES, pressure, readiness};

/// Nodes, and pods that don't do their work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// All nodes by name.
    pub nodes: Vec<NodeStatus>,
    /// Pods that are neither ready nor finished.
    pub problems: Vec<PodProblem>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Name in Kubernetes.
    pub name: String,
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
        let pods: Api<Pod> = Api::all(self.0.clone());
        let (nodes, pods) = tokio::try_join!(
            self.nodes(),
            self.list("listing pods", &pods, ListParams::default()),
        )?;
        let mut problems: Vec<_> = pods.iter().filter_map(problem).collect();
        problems.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Ok(Status { nodes, problems })
    }

    /// The state of all nodes, by name. Pods are not asked for: there may be many.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn nodes(&self) -> Result<Vec<NodeStatus>, Error> {
        let nodes = self.list_nodes().await?;
        let mut nodes: Vec<_> = nodes.iter().map(node_status).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(nodes)
    }

    /// All nodes, as Kubernetes has them.
    pub(crate) async fn list_nodes(&self) -> Result<Vec<Node>, Error> {
        let nodes: Api<Node> = Api::all(self.0.clone());
        self.list("listing nodes", &nodes, ListParams::default())
            .await
    }

    /// All nodes, now and after each change of one. It goes on for ever, also
    /// while the API can't be reached.
    pub fn watch_nodes(&self) -> impl Stream<Item = Vec<NodeStatus>> {
        let nodes: Api<Node> = Api::all(self.0.clone());
        let mut known = BTreeMap::new();
        let mut listed = BTreeMap::new();
        watcher::watcher(nodes, watcher::Config::default())
            .default_backoff()
            .filter_map(move |event| {
                let changed = match event {
                    Ok(watcher::Event::Init) => {
                        listed.clear();
                        false
                    }
                    Ok(watcher::Event::InitApply(node)) => {
                        listed.insert(node.name_any(), node_status(&node));
                        false
                    }
                    Ok(watcher::Event::InitDone) => {
                        known = std::mem::take(&mut listed);
                        true
                    }
                    Ok(watcher::Event::Apply(node)) => {
                        let status = node_status(&node);
                        known.insert(node.name_any(), status.clone()) != Some(status)
                    }
                    Ok(watcher::Event::Delete(node)) => known.remove(&node.name_any()).is_some(),
                    Err(error) => {
                        tracing::debug!(?error, "watching the cluster's nodes again");
                        false
                    }
                };
                let all = changed.then(|| known.values().cloned().collect());
                std::future::ready(all)
            })
    }
}

fn node_status(node: &Node) -> NodeStatus {
    let reason = readiness(node).err();
    NodeStatus {
        name: node.metadata.name.clone().unwrap_or_default(),
        ready: reason.is_none(),
        reason,
        pressure: pressure(node),
        services: node.annotations().get(SERVICES).cloned(),
    }
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
}
