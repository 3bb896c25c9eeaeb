//! How a node is let go.
//!
//! In: its name. Out: a cluster without it. What fails half-way can be done
//! again: the description has the node until the end. One that was begun goes on when
//! nobody listens any more, so a second one may run beside it: its hooks are those of the
//! first, by the operation's name, and what it does besides may be done twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cluster::Client;
use event::Sink;
use manifest::HookName;
use rpc::controller::Refusal;
use spec::{ClusterSpec, NodeSpec, Role};
use tokio::time::sleep;

use super::description::{is_other_master, let_go};
use super::{DRAIN, change, description, is_ready, not_now, of_etcd};
use crate::etcd::Etcd;
use crate::hooks::NodeHooks;

/// How often is looked whether a node is lost while its pods are waited for.
const LOOK: Duration = Duration::from_secs(5);

/// Why a node was not let go.
#[derive(Debug, thiserror::Error)]
pub enum RemovalError {
    /// Its first hook failed or pods are left: [`Removal::force`] goes on.
    #[error(transparent)]
    Forcible(Refusal),
    /// Nothing helps but what it says.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<RemovalError> for Refusal {
    fn from(error: RemovalError) -> Self {
        match error {
            RemovalError::Forcible(refusal) | RemovalError::Refused(refusal) => refusal,
        }
    }
}

/// Moves pods off a node, takes it out of etcd, deletes it from Kubernetes and the
/// description, with hooks before and after.
#[derive(Debug)]
pub struct Removal<'a> {
    /// The cluster.
    pub client: &'a Client,
    /// Its members of etcd.
    pub etcd: &'a Etcd,
    /// What the vendor wants to be run.
    pub hooks: &'a NodeHooks,
    /// Leave pods behind that don't go, and go on when the first hook fails.
    pub force: bool,
}

impl Removal<'_> {
    /// Lets a node go. One that is gone is fine.
    ///
    /// # Errors
    /// When the first hook fails, pods are left, nobody could take its place, or
    /// Kubernetes or etcd refuses.
    pub async fn run(&self, hostname: &str, sink: Arc<dyn Sink>) -> Result<(), RemovalError> {
        let Self { client, etcd, .. } = self;
        let cluster = description(client).await?;
        let Some(node) = cluster.nodes.iter().find(|node| node.hostname == hostname) else {
            self.drain(hostname).await?;
            return Ok(client.delete_node(hostname).await.map_err(not_now)?);
        };
        self.may_go(&cluster, node).await?;
        let what = format!("the removal of {hostname}");
        etcd.snapshot(&what, &*sink).await;
        let hook = HookName::PreNodeRemove;
        let ran = self.hooks.run(client, hook, node, node.id, sink.clone());
        match ran.await {
            Ok(()) => {}
            Err(error) if self.force => sink.warning(&error.to_string()),
            Err(error) => return Err(RemovalError::Forcible(Refusal::Refused(error.to_string()))),
        }
        let cluster = match self.take_out(node).await {
            Ok(cluster) => cluster,
            Err(error) => {
                // It goes on as before: another try is to run the hook anew.
                self.hooks.delete_job(client, hook, node, node.id).await;
                if let Err(error) = client.uncordon(hostname).await {
                    tracing::warn!(%hostname, %error, "it takes no pods any more");
                }
                return Err(error);
            }
        };
        client.delete_node(hostname).await.map_err(not_now)?;
        let Some(cluster) = cluster else {
            return self.forget(client, node, sink).await;
        };
        etcd.remove(&cluster, node).await.map_err(of_etcd)?;
        // Its API server ends with its etcd; it may be the one that was asked.
        let client = Client::connect(&etcd.kubeconfig()).await.map_err(not_now)?;
        self.forget(&client, node, sink).await
    }

    /// Whether the cluster can be without a node; returns the masters whose etcd runs or
    /// has run, where it is one.
    async fn may_go(
        &self,
        cluster: &ClusterSpec,
        node: &NodeSpec,
    ) -> Result<BTreeSet<String>, Refusal> {
        let mut started = BTreeSet::new();
        if node.role == Role::Master {
            let mut others = cluster.nodes.iter();
            if others.any(|other| is_other_master(other, node)) {
                started = self.etcd.started(cluster).await.map_err(of_etcd)?;
            }
            let_go(cluster, node, &started)?;
        }
        Ok(started)
    }

    /// Moves pods off a node. From then on nobody counts on one that is a master, and
    /// no other one leaves; of a master it returns the cluster as it is by then.
    async fn take_out(&self, node: &NodeSpec) -> Result<Option<ClusterSpec>, RemovalError> {
        self.drain(&node.hostname).await?;
        if node.role == Role::Worker {
            return Ok(None);
        }
        // Others may have joined meanwhile.
        let cluster = description(self.client).await?;
        let started = self.may_go(&cluster, node).await?;
        let (cluster, ()) = change(self.client, |cluster| {
            let_go(cluster, node, &started)?;
            let same = cluster.nodes.iter_mut().filter(|other| other.id == node.id);
            same.for_each(|node| node.leaving = true);
            Ok(())
        })
        .await?;
        Ok(Some(cluster))
    }

    async fn drain(&self, hostname: &str) -> Result<(), RemovalError> {
        let drained = tokio::select! {
            drained = self.client.drain(hostname, DRAIN) => drained,
            // Nobody ends the pods of a node that is dead; Kubernetes forgets them with it.
            () = self.is_dead(hostname), if self.force => {
                self.client.drain(hostname, Duration::ZERO).await
            }
        };
        match drained {
            Ok(()) => Ok(()),
            Err(error) if self.force => {
                tracing::warn!(%hostname, %error, "went on without its pods");
                Ok(())
            }
            Err(error) => Err(RemovalError::Forcible(not_now(error))),
        }
    }

    /// Comes back when Kubernetes counts the node as lost, which takes its time.
    async fn is_dead(&self, hostname: &str) {
        while !matches!(is_ready(self.client, hostname).await, Ok(false)) {
            sleep(LOOK).await;
        }
    }

    async fn forget(
        &self,
        client: &Client,
        node: &NodeSpec,
        sink: Arc<dyn Sink>,
    ) -> Result<(), RemovalError> {
        let hook = HookName::PostNodeRemove;
        // Once the description is without the node nobody goes on with its removal.
        let begun = self.hooks.begin(client, hook, node, node.id, &*sink).await;
        change(client, |cluster| {
            cluster.nodes.retain(|other| other.id != node.id);
            Ok(())
        })
        .await?;
        let ran = self.hooks.follow(client, begun, node.id, sink.clone());
        // The node is gone, whatever the hook says.
        if let Err(error) = ran.await {
            sink.warning(&error.to_string());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;
    use spec::layout::Layout;

    use super::*;
    use crate::controller::tests::api;
    use crate::install::tests::planned;

    #[tokio::test]
    async fn the_last_hook_has_begun_when_nobody_knows_the_node_any_more() {
        let (cluster, _) = planned(|_| ());
        let job = "{kind: Job, metadata: {name: gone}, spec: {template: {spec: \
                   {serviceAccountName: own, containers: [{name: c, image: c}]}}}}";
        let text = format!(
            "metadata: {{name: a, resourceVersion: 1.0.0}}\n\
             hooks: {{postNodeRemove: {{job: '{job}'}}}}"
        );
        let hooks = NodeHooks::of(&cluster, &manifest::parse(&text, "a").unwrap().hooks);
        let node = cluster.nodes[0].clone();
        let description = serde_json::to_string(&cluster).unwrap();
        let (client, asked, serving) = api(move |method, path| match method {
            "GET" if path == "/api/v1" => Some(json!({
                "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1",
                "resources": [{
                    "name": "secrets", "singularName": "secret", "namespaced": true,
                    "kind": "Secret", "verbs": ["patch"],
                }],
            })),
            "GET" if path.ends_with("/nodes") => Some(json!({"metadata": {}, "items": []})),
            "GET" if path.ends_with("/configmaps/gravity-cluster") => Some(json!({
                "metadata": {"name": "gravity-cluster", "resourceVersion": "1"}, "data": {"cluster.json": description},
            })),
            "GET" if !path.ends_with("/secrets/gravity-helm-values") => None,
            _ => Some(json!({"metadata": {"name": "x"}})),
        })
        .await;
        let etcd = Etcd::on_host(Path::new("/nowhere"), &Layout::new("/nowhere"));
        let removal = Removal {
            client: &client,
            etcd: &etcd,
            hooks: &hooks,
            force: false,
        };
        tokio::select! {
            forgotten = removal.forget(&client, &node, Arc::new(event::Discard)) => {
                forgotten.unwrap();
            }
            _ = serving => {}
        }
        let asked = asked.lock().unwrap();
        let when = |method: &str, end: &str| {
            let found = asked
                .iter()
                .position(|(of, path)| of == method && path.ends_with(end));
            found.unwrap_or_else(|| panic!("no {method} of {end} in {asked:?}"))
        };
        let (begins, forgets) = (when("POST", "/jobs"), when("PUT", "/gravity-cluster"));
        assert!(begins < forgets, "{asked:?}");
    }
}
