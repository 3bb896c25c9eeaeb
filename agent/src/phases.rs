//! What an agent can do, one file a phase.
//!
//! In: a payload. Out: the node changed as it says, or an error that says what
//! was met. All are idempotent.

mod apply;
mod bootstrap;
mod complete;
mod config;
mod health;
mod hook;
mod images;
mod join_secrets;
mod keep;
mod kubernetes_node;
mod lost_masters;
mod nodes;
mod own_data;
pub(crate) mod planet;
pub(crate) mod program;
mod recovery;
mod register;
mod resources;
mod rootfs;
pub(crate) mod secrets;
mod undo;
mod volumes;

pub(crate) use undo::undo;

use std::sync::Arc;

use event::Sink;
use operation::PhaseError;
use spec::phase::{self, PhaseSpec};

use crate::{Node, disk};

pub(crate) use health::wait_healthy;
pub use hook::hook_run;
pub use kubernetes_node::taints;

/// Executes one phase.
pub(crate) async fn execute(
    node: &Arc<Node>,
    phase: PhaseSpec,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    match phase {
        PhaseSpec::Bootstrap(phase) => {
            blocking(node, sink, move |n, _| bootstrap::execute(n, &phase)).await
        }
        PhaseSpec::Volumes(phase) => {
            blocking(node, sink, move |n, s| volumes::execute(n, &phase, s)).await
        }
        PhaseSpec::Program(phase) => {
            blocking(node, sink, move |n, _| program::execute(n, &phase)).await
        }
        PhaseSpec::Rootfs(phase) => {
            blocking(node, sink, move |n, s| rootfs::execute(n, &phase, s)).await
        }
        PhaseSpec::Images(phase) => {
            blocking(node, sink, move |n, s| images::execute(n, &phase, s)).await
        }
        PhaseSpec::Resources(phase) => {
            blocking(node, sink, move |n, s| resources::execute(n, &phase, s)).await
        }
        PhaseSpec::Keep(phase) => blocking(node, sink, move |n, _| keep::execute(n, &phase)).await,
        PhaseSpec::Secrets(phase) => {
            blocking(node, sink, move |n, _| secrets::execute(n, &phase)).await
        }
        PhaseSpec::JoinSecrets(phase) => join_secrets::execute(node, phase).await,
        PhaseSpec::Register(phase) => register::execute(node, phase, &*sink).await,
        PhaseSpec::Added(phase) => register::added(node, phase, &*sink).await,
        PhaseSpec::CompleteJoin(phase) => {
            blocking(node, sink, move |n, _| {
                complete::store(n, &phase.cluster, &phase.manifest)
            })
            .await
        }
        PhaseSpec::Planet(phase) => planet::execute(node, phase, sink).await,
        PhaseSpec::Node(phase) => kubernetes_node::execute(node, phase).await,
        PhaseSpec::Apply(phase) => apply::execute(node, phase).await,
        PhaseSpec::Nodes(phase) => nodes::execute(node, &phase, &*sink).await,
        PhaseSpec::Config(phase) => config::execute(node, phase).await,
        PhaseSpec::Health(phase) => {
            let phase::Health {
                node: name,
                kubeconfig,
                services,
            } = &phase;
            health::wait_healthy(node, name, kubeconfig, services, sink).await
        }
        // Without room its pods wait for ever; its Job is found again.
        PhaseSpec::Hook(phase) => tokio::select! {
            done = hook::execute(node, phase, sink) => done,
            full = disk::unusable(node.layout().state_dir()) => Err(full),
        },
        PhaseSpec::Complete(phase) => complete::execute(node, phase).await,
        PhaseSpec::EtcdCollect(phase) => own_data::collect(node, phase, sink).await,
        PhaseSpec::EtcdRestore(phase) => {
            blocking(node, sink, move |n, _| recovery::restore(n, &phase)).await
        }
        PhaseSpec::EtcdReplace(_) => recovery::replace(node, sink).await,
        PhaseSpec::EtcdStart(phase) => recovery::start(node, &phase.node, sink).await,
        PhaseSpec::ForgetMasters(phase) => lost_masters::forget(node, phase, sink).await,
        PhaseSpec::EtcdClean(phase) => {
            blocking(node, sink, move |n, _| recovery::clean(n, &phase)).await
        }
    }
}

/// Starts again what a completed phase has started and the end of the machine
/// has ended.
pub(crate) async fn start_again(
    node: &Arc<Node>,
    phase: PhaseSpec,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    match phase {
        PhaseSpec::Planet(phase) => planet::start_again(node, phase, sink).await,
        _ => Ok(()),
    }
}

/// Runs work with files on a thread that may block.
async fn blocking<F>(node: &Arc<Node>, sink: Arc<dyn Sink>, work: F) -> Result<(), PhaseError>
where
    F: FnOnce(&Node, &dyn Sink) -> Result<(), PhaseError> + Send + 'static,
{
    let node = node.clone();
    tokio::task::spawn_blocking(move || work(&node, &*sink))
        .await
        .map_err(|error| PhaseError::transient(format!("the phase's thread ended: {error}")))?
}
