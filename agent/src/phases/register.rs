//! Has the cluster's controller make the Kubernetes node object: a worker may
//! not, and its part of the pod network must be known before it is ready. And
//! tells it when the node works. The controller runs the vendor's hooks.

use event::Sink;
use operation::PhaseError;
use spec::phase::Joining;

use crate::Node;
use crate::node::{of_controller, session};

pub(crate) async fn execute(
    node: &Node,
    phase: Joining,
    sink: &dyn Sink,
) -> Result<(), PhaseError> {
    let mut session = session(node.layout(), &phase.controllers).await?;
    let registered = session.register(&phase.operation, sink).await;
    registered.map_err(of_controller)
}

pub(crate) async fn added(node: &Node, phase: Joining, sink: &dyn Sink) -> Result<(), PhaseError> {
    let mut session = session(node.layout(), &phase.controllers).await?;
    let told = session.added(&phase.operation, sink).await;
    told.map_err(of_controller)
}
