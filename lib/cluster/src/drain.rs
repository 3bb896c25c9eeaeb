//! Moves pods off a node that goes away.
//!
//! In: a node's name. Out: a node that takes no pods and has none but those of
//! DaemonSets, which live and end with it; then no node object either. Pods
//! are evicted, so that disruption budgets hold, until a deadline.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::client::{Client, DEADLINE, Error, is_missing, request, retry, unless_missing};

/// Wait before pods are looked at again.
const PAUSE: Duration = Duration::from_secs(1);

/// Annotation of nodes that take no pods because of us, and not of an administrator.
const CORDONED: &str = "gravitational.io/cordoned";

/// Annotation of pods that the kubelet made from files.
const MIRROR: &str = "kubernetes.io/config.mirror";

impl Client {
    /// Evicts all pods of a node. A node that is gone has none.
    ///
    /// # Errors
    /// When pods are left at the `deadline`, with their names; or the API
    /// refuses us.
    pub async fn drain(&self, node: &str, deadline: Duration) -> Result<(), Error> {
        if !self.cordon(node).await? {
            return Ok(());
        }
        let end = Instant::now() + deadline;
        loop {
            let left = self.evictable(node).await?;
            if left.is_empty() {
                return Ok(());
            }
            for pod in left
                .iter()
                .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            {
                self.evict(pod).await?;
            }
            if Instant::now() >= end {
                let names = left.iter().map(|pod| {
                    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
                });
                return Err(Error::NotDrained {
                    node: node.into(),
                    seconds: deadline.as_secs(),
                    pods: names.collect(),
                });
            }
            sleep(PAUSE).await;
        }
    }

    /// Has a node take no more pods; `false` where there is no such node.
    async fn cordon(&self, node: &str) -> Result<bool, Error> {
        let what = format!("cordoning node {node}");
        let Some(found) = self.find_node(&what, node).await? else {
            return Ok(false);
        };
        if found.spec.and_then(|spec| spec.unschedulable) == Some(true) {
            return Ok(true);
        }
        let patch = json!({
            "metadata": { "annotations": { CORDONED: "true" } },
            "spec": { "unschedulable": true },
        });
        self.patch_node(&what, node, &patch).await
    }

    /// Has a node that [`Client::drain`] took from them take pods again. One that is
    /// gone, or that an administrator has cordoned, is left as it is.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn uncordon(&self, node: &str) -> Result<(), Error> {
        let what = format!("uncordoning node {node}");
        let found = self.find_node(&what, node).await?;
        if !found.is_some_and(|found| found.annotations().contains_key(CORDONED)) {
            return Ok(());
        }
        let patch = json!({
            "metadata": { "annotations": { CORDONED: null } },
            "spec": { "unschedulable": null },
        });
        self.patch_node(&what, node, &patch).await.map(drop)
    }

    async fn find_node(&self, what: &str, node: &str) -> Result<Option<Node>, Error> {
        let api: Api<Node> = Api::all(self.0.clone());
        retry(what, DEADLINE, || api.get_opt(node)).await
    }

    /// Changes a node's object; `false` where there is none.
    async fn patch_node(
        &self,
        what: &str,
        node: &str,
        patch: &serde_json::Value,
    ) -> Result<bool, Error> {
        let api: Api<Node> = Api::all(self.0.clone());
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        retry(what, DEADLINE, || async {
            unless_missing(api.patch(node, &params, &patch).await)
        })
        .await
    }

    async fn evictable(&self, node: &str) -> Result<Vec<Pod>, Error> {
        let api: Api<Pod> = Api::all(self.0.clone());
        let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let mut pods = self
            .list(&format!("listing the pods of {node}"), &api, params)
            .await?;
        pods.retain(moves);
        Ok(pods)
    }

    /// Asks once: where a budget forbids it now, the next round asks again.
    async fn evict(&self, pod: &Pod) -> Result<(), Error> {
        let namespace = pod.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.0.clone(), &namespace);
        let name = pod.name_any();
        match api.evict(&name, &EvictParams::default()).await {
            Err(error)
                if !is_missing(&error)
                    && !matches!(&error, kube::Error::Api(status) if status.code == 429) =>
            {
                Err(request(&format!("evicting pod {namespace}/{name}"), error))
            }
            _ => Ok(()),
        }
    }

    /// Deletes a node's object. One that is gone is fine.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn delete_node(&self, node: &str) -> Result<(), Error> {
        let api: Api<Node> = Api::all(self.0.clone());
        let params = DeleteParams::default();
        retry(&format!("deleting node {node}"), DEADLINE, || async {
            unless_missing(api.delete(node, &params).await)
        })
        .await
        .map(drop)
    }

    /// Whether Kubernetes has a node of that name.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn has_node(&self, node: &str) -> Result<bool, Error> {
        let what = format!("looking for node {node}");
        Ok(self.find_node(&what, node).await?.is_some())
    }
}

/// Whether a pod has to go: not those that have ended or belong to the node.
fn moves(pod: &Pod) -> bool {
    let ended = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
    let of_daemon_set = pod
        .owner_references()
        .iter()
        .any(|owner| owner.kind == "DaemonSet");
    !ended && !of_daemon_set && !pod.annotations().contains_key(MIRROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_the_node_itself_and_ended_ones_stay() {
        let pod = |extra: serde_json::Value| -> Pod {
            let mut pod = json!({ "metadata": { "name": "a", "namespace": "b" } });
            for (key, value) in extra.as_object().unwrap() {
                pod[key] = value.clone();
            }
            serde_json::from_value(pod).unwrap()
        };
        assert!(moves(&pod(json!({ "status": { "phase": "Running" } }))));
        assert!(!moves(&pod(json!({ "status": { "phase": "Succeeded" } }))));
        let owner =
            json!([{ "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "1" }]);
        assert!(!moves(&pod(
            json!({ "metadata": { "ownerReferences": owner } })
        )));
        let mirror = json!({ "metadata": { "annotations": { MIRROR: "x" } } });
        assert!(!moves(&pod(mirror)));
    }
}
