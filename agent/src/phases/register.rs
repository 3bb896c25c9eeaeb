//! Has the cluster's controller make the Kubernetes node object: a worker may
//! not, and its part of the pod network must be known before it is ready.

use operation::PhaseError;
use spec::phase::Register;

use crate::Node;
use crate::node::session;

pub(crate) async fn execute(node: &Node, phase: Register) -> Result<(), PhaseError> {
    let mut session = session(node.layout(), &phase.controllers).await?;
    session
        .register()
        .await
        .map_err(|error| crate::node::transient(&error))
}
