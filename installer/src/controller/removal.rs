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

use super::{DRAIN, change, description, is_other_master, is_ready, let_go, not_now, of_etcd};
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
        change(client, |cluster| {
            cluster.nodes.retain(|other| other.id != node.id);
            Ok(())
        })
        .await?;
        let hook = HookName::PostNodeRemove;
        let ran = self.hooks.run(client, hook, node, node.id, sink.clone());
        // The node is gone, whatever the hook says.
        if let Err(error) = ran.await {
            sink.warning(&error.to_string());
        }
        Ok(())
    }
}
