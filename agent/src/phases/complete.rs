//! Ends an install: hooks lose their rights, what is known of the cluster is
//! stored. From then on the node has one, and its status hook runs.

use manifest::HookName;
use operation::PhaseError;
use spec::phase::Complete;

use crate::Node;
use crate::node::{lasting, transient};

pub(crate) async fn execute(node: &Node, phase: Complete) -> Result<(), PhaseError> {
    let client = node.kubernetes().await?;
    client
        .revoke_hooks(&phase.operation)
        .await
        .map_err(transient)?;
    let manifest = manifest::parse(&phase.manifest, "app.yaml");
    if manifest.is_ok_and(|manifest| manifest.hooks.contains_key(&HookName::Status)) {
        client.start_status_hook().await.map_err(transient)?;
    }
    store(node, &phase.cluster, &phase.manifest)
}

/// Stores what is known of the cluster: all there is to do at the end of a join.
pub(super) fn store(
    node: &Node,
    cluster: &spec::ClusterSpec,
    manifest: &str,
) -> Result<(), PhaseError> {
    let layout = node.layout();
    host::atomic::write(&layout.manifest(), manifest.as_bytes(), 0o644).map_err(lasting)?;
    let cluster = serde_json::to_vec_pretty(cluster).map_err(lasting)?;
    // Last: its presence says that there is a cluster.
    host::atomic::write(&layout.cluster(), &cluster, 0o644).map_err(lasting)
}
