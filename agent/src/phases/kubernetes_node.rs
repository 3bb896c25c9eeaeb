//! Makes the Kubernetes node object as planned: labels, pod network.

use operation::PhaseError;
use spec::phase;

use crate::Node;
use crate::node::transient;

pub(crate) async fn execute(node: &Node, phase: phase::Node) -> Result<(), PhaseError> {
    let client = node.kubernetes().await?;
    client
        .ensure_node(&phase.name, &phase.labels, &phase.pod_cidrs)
        .await
        .map_err(|error| transient(&error))
}
