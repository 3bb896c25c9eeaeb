//! What is run for a hook, the same in every operation.
//!
//! In: the cluster, a hook of its manifest. Out: a [`phase::Hook`]. And those that
//! run when a node comes or goes, whoever of the masters runs them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use cluster::Client;
use cluster::hooks::{Begun, HookError, HookRun};
use event::Sink;
use manifest::HookName;
use serde::{Deserialize, Serialize};
use spec::layout::PLANET_RESOURCES;
use spec::{ClusterSpec, NodeSpec, ServiceUser, phase};
use uuid::Uuid;

/// `GRAVITY_CLUSTER_*`, which hooks see.
pub(crate) fn cluster_environment(cluster: &ClusterSpec) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("GRAVITY_CLUSTER_NAME".into(), cluster.name.clone()),
        ("GRAVITY_CLUSTER_PROVIDER".into(), "generic".into()),
        (
            "GRAVITY_CLUSTER_FLAVOR".into(),
            cluster.flavor.clone().unwrap_or_default(),
        ),
    ])
}

/// A hook as `operation` runs it. `job` is the manifest's.
pub fn hook(cluster: &ClusterSpec, name: HookName, job: &str, operation: &str) -> phase::Hook {
    let mut env = cluster_environment(cluster);
    let &ServiceUser { uid, gid, .. } = &cluster.service_user;
    env.insert("GRAVITY_SERVICE_USER".into(), uid.to_string());
    if name == HookName::NetworkInstall {
        // A node without a default route reaches no address of services.
        env.insert(
            "KUBERNETES_SERVICE_HOST".into(),
            spec::LEADER_ADDRESS.to_string(),
        );
        env.insert("KUBERNETES_SERVICE_PORT".into(), spec::API_PORT.to_string());
        env.insert("GRAVITY_POD_CIDR".into(), cluster.pod_cidrs.join(","));
        env.insert(
            "GRAVITY_SERVICE_CIDR".into(),
            cluster.service_cidrs.join(","),
        );
    }
    let translated = manifest::service_user::translate(job, uid, gid);
    let resources = &cluster.image.resources;
    let digest = resources.rsplit(':').next().unwrap_or_default();
    phase::Hook {
        hook: name.to_string(),
        operation: operation.into(),
        job: translated.unwrap_or_else(|| job.into()),
        env,
        resources: PathBuf::from(PLANET_RESOURCES).join(digest),
        service_uid: uid,
        avoid: None,
    }
}

/// A hook that has begun; `None` where the manifest has none.
type BegunHook = Result<Option<(HookRun, Begun)>, HookError>;

/// The hooks that run when a node comes or goes, those that the manifest has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHooks(BTreeMap<String, phase::Hook>);

impl NodeHooks {
    const ALL: [HookName; 4] = [
        HookName::PreNodeAdd,
        HookName::PostNodeAdd,
        HookName::PreNodeRemove,
        HookName::PostNodeRemove,
    ];

    /// Those of a manifest.
    pub fn of(cluster: &ClusterSpec, hooks: &BTreeMap<HookName, String>) -> Self {
        let made = Self::ALL.into_iter().filter_map(|name| {
            let job = hooks.get(&name)?;
            Some((name.to_string(), hook(cluster, name, job, "")))
        });
        Self(made.collect())
    }

    /// The hook, of no operation and no node yet; `None` where the manifest has
    /// none.
    pub(crate) fn get(&self, name: HookName) -> Option<&phase::Hook> {
        self.0.get(name.as_str())
    }

    /// The hook as `operation` runs it for a node; `None` where the manifest has
    /// none.
    fn ready(&self, name: HookName, node: &NodeSpec, operation: Uuid) -> Option<phase::Hook> {
        let mut hook = self.get(name)?.clone().about(node);
        hook.operation = operation.to_string();
        if matches!(name, HookName::PreNodeRemove | HookName::PostNodeRemove) {
            hook.avoid = Some(node.hostname.clone());
        }
        Some(hook)
    }

    /// Runs one to its end, where the manifest has it.
    ///
    /// # Errors
    /// When its Job fails or can't be run.
    pub async fn run(
        &self,
        client: &Client,
        name: HookName,
        node: &NodeSpec,
        operation: Uuid,
        sink: Arc<dyn Sink>,
    ) -> Result<(), HookError> {
        let begun = self.begin(client, name, node, operation, &*sink).await;
        self.follow(client, begun, operation, sink).await
    }

    /// The first part of [`NodeHooks::run`]: has the Job made, which runs from then on,
    /// whatever ends us.
    pub(crate) async fn begin(
        &self,
        client: &Client,
        name: HookName,
        node: &NodeSpec,
        operation: Uuid,
        sink: &dyn Sink,
    ) -> BegunHook {
        let Some(hook) = self.ready(name, node, operation) else {
            return Ok(None);
        };
        sink.step(&format!("Running the {name} hook"));
        let hook = agent::hook_run(hook);
        let begun = cluster::hooks::begin(client, &hook, sink).await?;
        Ok(Some((hook, begun)))
    }

    /// The second part of it: waits until what has begun has ended.
    pub(crate) async fn follow(
        &self,
        client: &Client,
        begun: BegunHook,
        operation: Uuid,
        sink: Arc<dyn Sink>,
    ) -> Result<(), HookError> {
        let ended = match begun {
            Ok(None) => return Ok(()),
            Ok(Some((hook, begun))) => cluster::hooks::follow(client, &hook, begun, sink).await,
            Err(error) => Err(error),
        };
        // What it came to is worth more than a failure of this.
        if let Err(error) = client.revoke_hooks(&operation.to_string()).await {
            tracing::warn!(%error, "hooks of {operation} keep their rights");
        }
        ended
    }

    /// Deletes the Job of one that has run, so that `operation` runs it anew.
    pub async fn delete_job(
        &self,
        client: &Client,
        name: HookName,
        node: &NodeSpec,
        operation: Uuid,
    ) {
        let Some(hook) = self.ready(name, node, operation) else {
            return;
        };
        if let Err(error) = cluster::hooks::remove(client, &agent::hook_run(hook)).await {
            tracing::warn!(%error, "the hook is not run anew");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::tests::planned;

    #[test]
    fn hooks_of_nodes_are_told_which_and_keep_away_from_one_that_goes() {
        let (cluster, _) = planned(|_| ());
        let text = "metadata: {name: a, resourceVersion: 1.0.0}\n\
                    hooks: {preNodeAdd: {job: '{kind: Job}'}, postNodeRemove: {job: '{kind: Job}'}, \
                    install: {job: '{kind: Job}'}}";
        let hooks = NodeHooks::of(&cluster, &manifest::parse(text, "a").unwrap().hooks);
        let node = &cluster.nodes[0];
        let id = Uuid::from_u128(7);
        let added = hooks.ready(HookName::PreNodeAdd, node, id).unwrap();
        assert_eq!(added.env["GRAVITY_NODE_NAME"], node.hostname);
        assert_eq!(added.env["GRAVITY_NODE_ADDRESS"], "192.168.7.9");
        assert_eq!((added.operation, added.avoid), (id.to_string(), None));
        let removed = hooks.ready(HookName::PostNodeRemove, node, id).unwrap();
        assert_eq!(removed.avoid.as_ref(), Some(&node.hostname));
        assert_eq!(hooks.ready(HookName::PostNodeAdd, node, id), None);
        assert_eq!(hooks.0.len(), 2);
        let json = serde_json::to_string(&hooks).unwrap();
        assert_eq!(serde_json::from_str::<NodeHooks>(&json).unwrap(), hooks);
    }
}
