//! Stops the node's planet and starts it again.
//!
//! In: the layout of an installed node. Out: its services have ended, or are
//! ready, with the kernel as they need it. Nothing else of the node is touched.

use std::sync::Arc;

use event::Sink;
use operation::PhaseError;
use spec::layout::Layout;
use spec::phase::Health;

use crate::{Node, daemon, phases};

/// Stops the planet; it stays stopped when the node is booted.
///
/// # Errors
/// When it doesn't stop.
pub fn stop(layout: &Layout) -> Result<(), PhaseError> {
    daemon::stop(layout)
}

/// Starts the planet unless it runs, and waits for what the node's own operation
/// waited for.
///
/// # Errors
/// When it doesn't start or isn't ready in time.
pub async fn start(
    layout: &Layout,
    health: &Health,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    let node = Arc::new(Node::open(layout.clone())?);
    phases::planet::start_configured(&node, sink.clone()).await?;
    let Health {
        node: name,
        kubeconfig,
        services,
    } = health;
    phases::wait_healthy(&node, name, kubeconfig, services, sink).await
}
