//! Applies Kubernetes objects.

use operation::PhaseError;
use spec::phase::Apply;

use crate::Node;
use crate::node::transient;

pub(crate) async fn execute(node: &Node, phase: Apply) -> Result<(), PhaseError> {
    let client = node.kubernetes().await?;
    client
        .apply(&phase.objects)
        .await
        .map_err(|error| transient(&error))
}
