//! Runs on every node: executes phases there.
//!
//! In: [`operation::Phase`]s whose payloads are [`spec::phase::PhaseSpec`].
//! Out: a node changed as they say, with every change to the host in its
//! journal first. A phase can be executed again at any time, after any end:
//! what is done already is found and left.

pub mod care;
mod daemon;
mod disk;
pub mod etcd;
pub mod leave;
mod network_manager;
mod node;
mod phases;
pub mod power;
pub mod preview;
mod residue;
pub mod snapshots;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use event::Sink;
use operation::{Executor, Journal, Phase, PhaseError, State};
use spec::layout::Layout;
use spec::phase::PhaseSpec;

pub use node::{Node, session};
pub use phases::{hook_run, taints};

/// How long an agent lives with nothing to do.
const IDLE: Duration = Duration::from_secs(30);

/// Serves the node's agent socket until nothing is left to do. SIGTERM ends it
/// when nothing runs.
///
/// # Errors
/// When the socket can't be made.
pub async fn serve(state_dir: &Path) -> Result<(), rpc::Error> {
    let layout = Layout::new(state_dir);
    let socket = layout.agent_socket();
    let operations: Mutex<HashMap<String, Arc<Agent>>> = Mutex::default();
    let open = move |id: &str| {
        let mut operations = operations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = operations.get(id) {
            return Ok(agent.clone() as Arc<dyn Executor>);
        }
        let agent = Arc::new(Agent::open(&layout, id)?);
        operations.insert(id.to_owned(), agent.clone());
        Ok(agent as Arc<dyn Executor>)
    };
    rpc::serve(&socket, IDLE, terminated(), Arc::new(open)).await
}

/// Comes back at the first SIGTERM. From then on that does not end the process by itself.
pub async fn terminated() {
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut signals) => drop(signals.recv().await),
        // Then the signal kills at once, as it does by default.
        Err(_) => std::future::pending().await,
    }
}

/// Executes the phases of one operation on this node.
struct Agent {
    operation: String,
    node: Node,
    journal: tokio::sync::Mutex<Journal>,
    /// One lock a phase: who asks for a running phase waits for its end.
    phases: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Agent {
    fn open(layout: &Layout, operation: &str) -> Result<Self, PhaseError> {
        // The identity becomes part of a path.
        if operation.is_empty()
            || !operation
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-')
        {
            return Err(PhaseError::lasting(format!(
                "`{operation}` is no operation id"
            )));
        }
        let directory = layout.operations().join(operation);
        let journal = Journal::open(&directory.join("agent-journal")).map_err(node::lasting)?;
        Ok(Self {
            operation: operation.to_owned(),
            node: Node::open(layout.clone())?,
            journal: tokio::sync::Mutex::new(journal),
            phases: Mutex::default(),
        })
    }

    fn lock(&self, phase: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        phases.entry(phase.to_owned()).or_default().clone()
    }

    async fn record(
        &self,
        phase: &Phase,
        state: State,
        error: Option<String>,
    ) -> Result<(), PhaseError> {
        let mut journal = self.journal.lock().await;
        journal
            .append(&[(&phase.id, state, error)])
            .map_err(node::lasting)?;
        Ok(())
    }

    fn node_of(&self, phase: &Phase) -> Arc<Node> {
        Arc::new(self.node.within(&self.operation, &phase.id))
    }

    /// Does `work` with a phase. In the journal are its beginning and its end: `done`, or a
    /// failure. From the beginning on the phase is not complete, wherever the work ends.
    async fn recorded(
        &self,
        phase: &Phase,
        done: State,
        work: impl Future<Output = Result<(), PhaseError>>,
    ) -> Result<(), PhaseError> {
        self.record(phase, State::InProgress, None).await?;
        let result = work.await;
        let (state, error) = match &result {
            Ok(()) => (done, None),
            Err(error) => (State::Failed, Some(error.message.clone())),
        };
        self.record(phase, state, error).await?;
        result
    }

    async fn run(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        let (node, spec) = (self.node_of(phase), read(phase)?);
        let work = phases::execute(&node, spec, sink);
        self.recorded(phase, State::Completed, work).await
    }

    async fn last_state(&self, phase: &Phase) -> Option<State> {
        self.journal.lock().await.last_state(&phase.id)
    }
}

#[async_trait::async_trait]
impl Executor for Agent {
    async fn execute(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        let lock = self.lock(&phase.id);
        let _running = lock.lock().await;
        if self.last_state(phase).await == Some(State::Completed) {
            return phases::start_again(&self.node_of(phase), read(phase)?, sink).await;
        }
        self.run(phase, sink).await
    }

    async fn execute_again(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        let lock = self.lock(&phase.id);
        let _running = lock.lock().await;
        self.run(phase, sink).await
    }

    async fn undo(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        let lock = self.lock(&phase.id);
        let _running = lock.lock().await;
        // What has begun is in the journal: without a record nothing was done.
        if matches!(
            self.last_state(phase).await,
            None | Some(State::Unstarted | State::RolledBack)
        ) {
            return Ok(());
        }
        let (node, spec) = (self.node_of(phase), read(phase)?);
        let work = phases::undo(&node, spec, sink);
        self.recorded(phase, State::RolledBack, work).await
    }
}

fn read(phase: &Phase) -> Result<PhaseSpec, PhaseError> {
    serde_json::from_value(phase.payload.clone())
        .map_err(|error| PhaseError::lasting(format!("read the payload of {}: {error}", phase.id)))
}
