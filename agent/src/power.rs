//! Stops the node's planet and starts it again.
//!
//! In: the layout of an installed node. Out: its services have ended, or are
//! ready. Nothing else of the node is touched.

use std::sync::Arc;

use event::Sink;
use operation::PhaseError;
use spec::layout::Layout;

use crate::node::lasting;
use crate::{Node, daemon, phases};

/// Stops the planet; it stays stopped when the node is booted.
///
/// # Errors
/// When it doesn't stop.
pub fn stop(layout: &Layout) -> Result<(), PhaseError> {
    daemon::stop(layout)
}

/// Starts the planet unless it runs, and waits until `services`, all where none
/// are named, and the Kubernetes node `name` are ready.
///
/// # Errors
/// When it doesn't start or isn't ready in time.
pub async fn start(
    layout: &Layout,
    name: &str,
    services: &[String],
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    let node = Arc::new(Node::open(layout.clone())?);
    let starting = node.clone();
    tokio::task::spawn_blocking(move || daemon::start(&starting))
        .await
        .map_err(|error| lasting(&error))??;
    phases::wait_healthy(&node, name, "admin", services, sink).await
}
