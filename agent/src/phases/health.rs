//! Waits until services and the node are ready.

use std::sync::Arc;
use std::time::Duration;

use event::Sink;
use operation::PhaseError;

use crate::node::{lasting, transient};
use crate::{Node, disk};

/// Slow machines under load take minutes.
const DEADLINE: Duration = Duration::from_secs(600);

/// What is not ready in all that time won't be after another try.
fn not_ready(error: cluster::Error) -> PhaseError {
    match error {
        cluster::Error::NotReady { .. } => lasting(error),
        _ => transient(error),
    }
}

/// `name` is the node's in Kubernetes, `kubeconfig` one of its own; no `services`
/// are all there are.
pub(crate) async fn wait_healthy(
    node: &Node,
    name: &str,
    kubeconfig: &str,
    services: &[String],
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    let ready = async {
        let planet = node.planet();
        planet
            .wait_ready(services, DEADLINE)
            .await
            .map_err(lasting)?;
        let client = node.kubernetes_as(kubeconfig).await?;
        client
            .wait_node_ready(name, DEADLINE)
            .await
            .map_err(not_ready)
    };
    let short = tokio::select! {
        ready = ready => ready?,
        full = disk::unusable(node.layout().state_dir()) => return Err(full),
    };
    sink.info(&format!("Node {name} is ready"));
    for short in short {
        sink.warning(&format!("Node {name} has {short}"));
    }
    Ok(())
}
