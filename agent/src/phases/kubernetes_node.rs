//! Makes the Kubernetes node object as planned: labels, taints, pod network.

use operation::PhaseError;
use spec::phase;

use crate::Node;
use crate::node::transient;

pub(crate) async fn execute(node: &Node, phase: phase::Node) -> Result<(), PhaseError> {
    let client = node.kubernetes().await?;
    let taints = taints(&phase.taints);
    client
        .ensure_node(&phase.name, &phase.labels, &taints, &phase.pod_cidrs)
        .await
        .map_err(transient)
}

/// Taints as Kubernetes has them.
pub fn taints(planned: &[spec::Taint]) -> Vec<cluster::Taint> {
    let taint = |taint: &spec::Taint| cluster::taint(&taint.key, &taint.value, &taint.effect);
    planned.iter().map(taint).collect()
}
