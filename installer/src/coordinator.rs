//! Runs an operation: keeps its plan and journal, has agents execute it.
//!
//! In: a plan and an [`Action`]. Out: phases executed or taken back by the
//! node's agent over its local socket, each recorded before and after. At most
//! one operation runs at a time; who is killed leaves a journal from which
//! [`act`] goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use event::Sink;
use host::background::Background;
use host::causes::causes;
use host::lock::Lock;
use operation::{Engine, Executor, Journal, Phase, PhaseError, Plan, PlanState, State};
use serde::{Deserialize, Serialize};
use spec::layout::Layout;
use spec::phase::PhaseSpec;

/// How long an agent may take to listen after it was started.
const AGENT_START: Duration = Duration::from_secs(10);
/// How much younger than another a plan is made, where the clock says otherwise: what
/// filesystems can tell apart.
const YOUNGER: Duration = Duration::from_secs(2);
/// So many operations are kept beside the first, which says what made the node.
const KEPT: usize = 20;

/// Why an operation could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is none.
    #[error("no operation was found below {0}; start one with `gravity install`")]
    NoOperation(PathBuf),
    /// Its files can't be read or written.
    #[error("{what} {path}")]
    Files {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The plan is not one.
    #[error("read the plan at {path}")]
    Plan {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The journal is damaged.
    #[error("open the operation's journal")]
    Journal(#[source] operation::JournalError),
    /// The agent doesn't start.
    #[error("start the agent; see {log}")]
    StartAgent {
        /// Its output.
        log: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The agent doesn't answer.
    #[error("the agent did not answer within {} s; see {log}", AGENT_START.as_secs())]
    AgentSilent {
        /// Its output.
        log: PathBuf,
        /// What the last try met.
        source: rpc::Error,
    },
    /// A phase failed.
    #[error(transparent)]
    Phase(#[from] operation::RunError),
}

/// What is to be done with an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Execute what is not complete.
    Run,
    /// Execute one phase.
    Execute {
        /// Its id.
        phase: String,
        /// Also where it is complete, and what it requires is not.
        force: bool,
    },
    /// Take one phase back.
    RollBack {
        /// Its id.
        phase: String,
        /// Also where others came after it.
        force: bool,
    },
    /// Take everything back.
    RollBackAll,
}

/// An operation on disk.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Where it is kept.
    pub directory: PathBuf,
    /// Its plan.
    pub plan: Plan,
}

impl Operation {
    /// Writes a new operation, which is the last one whatever the clock says, and removes
    /// the oldest that have ended.
    ///
    /// # Errors
    /// When the files can't be written.
    pub fn create(layout: &Layout, plan: Plan) -> Result<Self, Error> {
        let others = dated(layout);
        let directory = layout.operations().join(&plan.operation_id);
        let path = directory.join("plan.json");
        std::fs::create_dir_all(&directory).map_err(|source| Error::Files {
            what: "create",
            path: directory.clone(),
            source,
        })?;
        let json = serde_json::to_vec_pretty(&plan).map_err(|source| Error::Plan {
            path: path.clone(),
            source,
        })?;
        host::atomic::write(&path, &json, 0o600).map_err(|source| Error::Files {
            what: "write",
            path: path.clone(),
            source: std::io::Error::other(source),
        })?;
        if let Some((youngest, _)) = others.last() {
            make_youngest(&path, *youngest).map_err(|source| Error::Files {
                what: "date",
                path,
                source,
            })?;
        }
        prune(layout);
        Ok(Self { directory, plan })
    }

    /// The last operation of the node: the youngest plan.
    ///
    /// # Errors
    /// When there is none or it can't be read.
    pub fn last(layout: &Layout) -> Result<Self, Error> {
        let directory = directories(layout).pop();
        Self::read(directory.ok_or_else(|| Error::NoOperation(layout.operations()))?)
    }

    /// All operations of the node, the oldest first.
    ///
    /// # Errors
    /// When one can't be read.
    pub fn all(layout: &Layout) -> Result<Vec<Self>, Error> {
        directories(layout).into_iter().map(Self::read).collect()
    }

    /// The operation of an id.
    ///
    /// # Errors
    /// When there is none or it can't be read.
    pub fn open(layout: &Layout, id: &str) -> Result<Self, Error> {
        let operation = Self::read(layout.operations().join(id))?;
        match operation.plan.operation_id == id {
            true => Ok(operation),
            false => Err(Error::NoOperation(layout.operations())),
        }
    }

    fn read(directory: PathBuf) -> Result<Self, Error> {
        let path = directory.join("plan.json");
        let json = std::fs::read(&path).map_err(|source| Error::Files {
            what: "read",
            path: path.clone(),
            source,
        })?;
        let plan = serde_json::from_slice(&json).map_err(|source| Error::Plan { path, source })?;
        Ok(Self { directory, plan })
    }

    /// How far it is, from its journal. Reads only.
    ///
    /// # Errors
    /// When the journal is damaged.
    pub fn state(&self) -> Result<PlanState, Error> {
        Ok(operation::replay(&self.plan, &self.records()?))
    }

    /// The phases that a rollback would take back, in its order.
    ///
    /// # Errors
    /// When the journal is damaged.
    pub fn to_roll_back(&self) -> Result<Vec<&Phase>, Error> {
        Ok(operation::to_roll_back(&self.plan, &self.records()?))
    }

    fn records(&self) -> Result<Vec<operation::Record>, Error> {
        Journal::read(&self.journal()).map_err(Error::Journal)
    }

    fn journal(&self) -> PathBuf {
        self.directory.join("journal")
    }

    /// Log of the operation, with the output of hooks.
    pub fn log(&self) -> PathBuf {
        self.directory.join("operation.log")
    }

    /// What the processes that run it write.
    pub fn agent_log(&self) -> PathBuf {
        self.directory.join("agent.log")
    }
}

/// Directories of operations, that with the youngest plan last.
fn directories(layout: &Layout) -> Vec<PathBuf> {
    let dated = dated(layout).into_iter();
    dated.map(|(_, directory)| directory).collect()
}

/// The same, with the times of their plans.
fn dated(layout: &Layout) -> Vec<(SystemTime, PathBuf)> {
    let entries = std::fs::read_dir(layout.operations());
    let mut found: Vec<_> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let directory = entry.ok()?.path();
            let plan = directory.join("plan.json").metadata().ok()?;
            Some((plan.modified().ok()?, directory))
        })
        .collect();
    found.sort();
    found
}

/// Makes a plan younger than the youngest of the others: the clock may have been set back
/// since that was written.
fn make_youngest(plan: &Path, youngest: SystemTime) -> std::io::Result<()> {
    let file = std::fs::File::open(plan)?;
    if file.metadata()?.modified()? > youngest {
        return Ok(());
    }
    if let Some(later) = youngest.checked_add(YOUNGER) {
        file.set_modified(later)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Removes operations that have ended until [`KEPT`] and the first are left.
fn prune(layout: &Layout) {
    let all = directories(layout);
    let old = all.len().saturating_sub(KEPT);
    for directory in all.into_iter().take(old).skip(1) {
        let state = Operation::read(directory.clone()).and_then(|operation| operation.state());
        let has_ended = state
            .is_ok_and(|state| matches!(state.overall(), State::Completed | State::RolledBack));
        if has_ended && let Err(error) = std::fs::remove_dir_all(&directory) {
            tracing::warn!(%error, "{} can't be removed", directory.display());
        }
    }
}

/// Does something with an operation. Whoever calls this holds the lock at
/// [`Layout::operation_lock`].
///
/// # Errors
/// When the agent can't be had or a phase fails.
pub async fn act(
    layout: &Layout,
    operation: &Operation,
    action: &Action,
    _: &Lock,
    sink: Arc<dyn Sink>,
) -> Result<(), Error> {
    let mut journal = Journal::open(&operation.journal()).map_err(Error::Journal)?;
    let agent = LocalAgent {
        layout: layout.clone(),
        operation: operation.plan.operation_id.clone(),
        log: operation.agent_log(),
        starting: tokio::sync::Mutex::default(),
    };
    // What keeps it from starting at all is no phase's failure.
    agent.connect().await?;
    if matches!(action, Action::Run | Action::Execute { .. }) {
        start_again(operation, &agent, &sink).await?;
    }
    let engine = Engine::default();
    let (plan, journal) = (&operation.plan, &mut journal);
    let result = match action {
        Action::Run => engine.run(plan, journal, &agent, sink).await,
        Action::Execute { phase, force } => {
            engine
                .run_phase(plan, journal, &agent, sink, phase, *force)
                .await
        }
        Action::RollBack { phase, force } => {
            engine
                .rollback_phase(plan, journal, &agent, sink, phase, *force)
                .await
        }
        Action::RollBackAll => engine.rollback(plan, journal, &agent, sink).await,
    };
    if let Ok(connection) = rpc::Connection::open(&layout.agent_socket(), &agent.operation).await {
        connection.shutdown().await;
    }
    Ok(result?)
}

/// Has the agent start again what completed phases have started and the end of
/// the machine has ended; what runs is left alone.
async fn start_again(
    operation: &Operation,
    agent: &LocalAgent,
    sink: &Arc<dyn Sink>,
) -> Result<(), Error> {
    let state = operation.state()?;
    for phase in operation.plan.leaves() {
        let ends = serde_json::from_value(phase.payload.clone())
            .is_ok_and(|spec: PhaseSpec| spec.ends_with_the_machine());
        if ends && state.phase(&phase.id).state == operation::State::Completed {
            let started = agent.execute(phase, sink.clone()).await;
            started.map_err(|source| operation::RunError::Phase {
                phase: phase.id.clone(),
                source,
            })?;
        }
    }
    Ok(())
}

/// The node's agent; another one is started where it has died.
struct LocalAgent {
    layout: Layout,
    operation: String,
    log: PathBuf,
    starting: tokio::sync::Mutex<()>,
}

impl LocalAgent {
    async fn connect(&self) -> Result<rpc::Connection, Error> {
        let _one = self.starting.lock().await;
        agent(&self.layout, &self.operation, &self.log).await
    }

    async fn connection(&self) -> Result<rpc::Connection, PhaseError> {
        let connected = self.connect().await;
        connected.map_err(|error| PhaseError::transient(causes(&error)))
    }
}

#[async_trait::async_trait]
impl Executor for LocalAgent {
    async fn execute(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        self.connection().await?.execute(phase, sink).await
    }

    async fn execute_again(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        self.connection().await?.execute_again(phase, sink).await
    }

    async fn undo(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        self.connection().await?.undo(phase, sink).await
    }
}

/// Connects to the node's agent; starts it where none listens. An agent of a
/// coordinator that was killed is met again here, with what it runs.
async fn agent(layout: &Layout, operation: &str, log: &Path) -> Result<rpc::Connection, Error> {
    let socket = layout.agent_socket();
    if let Ok(connection) = rpc::Connection::open(&socket, operation).await {
        return Ok(connection);
    }
    let start = |source| Error::StartAgent {
        log: log.to_owned(),
        source,
    };
    let background = Background {
        name: "gravity-agent",
        description: "Gravity: executes an operation's phases on this node",
        arguments: vec![
            "agent".into(),
            "run".into(),
            "--state-dir".into(),
            layout.state_dir().into(),
        ],
        log: log.to_owned(),
    };
    // Not waited for: it outlives this process when that is killed.
    let process = tokio::task::spawn_blocking(move || background.start())
        .await
        .map_err(|error| start(error.into()))?
        .map_err(start)?;
    if let Some(error) = process.refused() {
        tracing::warn!("the agent is no service of its own: {error}");
    }
    let deadline = Instant::now() + AGENT_START;
    loop {
        match rpc::Connection::open(&socket, operation).await {
            Ok(connection) => return Ok(connection),
            Err(source) if Instant::now() > deadline => {
                return Err(Error::AgentSilent {
                    log: log.to_owned(),
                    source,
                });
            }
            // The socket appears some milliseconds after the start.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plan of an install as version 6.0.0 wrote it, with long texts cut off. It must
    /// be readable for ever: whoever goes on with it may be of a later version.
    const VERSION_1: &str = include_str!("../fixtures/plan-1.json");

    #[test]
    fn a_plan_of_version_1_is_read_with_all_that_agents_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let id = "df5bcc05-6d5f-4805-abfe-16bf268ccf25";
        let layout = Layout::new(directory.path());
        let files = layout.operations().join(id);
        std::fs::create_dir_all(&files).unwrap();
        host::atomic::write(&files.join("plan.json"), VERSION_1.as_bytes(), 0o600).unwrap();
        let plan = Operation::open(&layout, id).unwrap().plan;
        plan.validate().unwrap();
        for phase in plan.leaves() {
            let read: PhaseSpec = serde_json::from_value(phase.payload.clone())
                .unwrap_or_else(|error| panic!("{}: {error}", phase.id));
            // Nothing that it says is passed over.
            let again = serde_json::to_value(&read).unwrap();
            let has_all = contains(&again, &phase.payload);
            assert!(has_all, "{}: {again} is not {}", phase.id, phase.payload);
        }
        assert_eq!(plan.leaves().len(), 16);
    }

    /// Whether all of `part` is in `whole`.
    fn contains(whole: &serde_json::Value, part: &serde_json::Value) -> bool {
        use serde_json::Value::{Array, Object};
        match (whole, part) {
            (Object(whole), Object(part)) => part
                .iter()
                .all(|(key, value)| whole.get(key).is_some_and(|whole| contains(whole, value))),
            (Array(whole), Array(part)) => {
                whole.len() == part.len()
                    && whole
                        .iter()
                        .zip(part)
                        .all(|(whole, part)| contains(whole, part))
            }
            _ => whole == part,
        }
    }

    #[test]
    fn the_newest_operation_is_the_last_one_whatever_the_clock_says() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        let create = |id: &str| {
            let plan = Plan::new("install", id, Vec::new());
            Operation::create(&layout, plan).unwrap().directory
        };
        // The clock was set back since.
        let install = create("c").join("plan.json");
        let plan = std::fs::File::open(install).unwrap();
        let later = SystemTime::now() + Duration::from_secs(3600);
        plan.set_modified(later).unwrap();
        for id in ["b", "a"] {
            create(id);
            assert_eq!(Operation::last(&layout).unwrap().plan.operation_id, id);
        }
        let all = Operation::all(&layout).unwrap();
        let ids: Vec<_> = all.iter().map(|one| &*one.plan.operation_id).collect();
        assert_eq!(ids, ["c", "b", "a"]);
    }

    #[test]
    fn the_oldest_operations_go_once_they_have_ended() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        let phase = "/phase";
        let create = |number: usize, end: Option<State>| {
            let phases = vec![Phase::new(phase, "Do it")];
            let plan = Plan::new("install", format!("{number:02}"), phases);
            let operation = Operation::create(&layout, plan).unwrap();
            if let Some(state) = end {
                let mut journal = Journal::open(&operation.journal()).unwrap();
                journal.append(&[(phase, state, None)]).unwrap();
            }
        };
        let ids = || {
            let all = Operation::all(&layout).unwrap();
            let ids = all.iter().map(|one| one.plan.operation_id.clone());
            ids.collect::<Vec<_>>()
        };
        create(0, Some(State::Completed));
        create(1, Some(State::Failed));
        create(2, Some(State::RolledBack));
        create(3, None);
        create(4, Some(State::Completed));
        for number in 5..=20 {
            create(number, Some(State::Completed));
        }
        assert_eq!(ids().len(), 21);
        create(21, None);
        assert_eq!(ids().len(), 22);
        create(22, None);
        create(23, None);
        create(24, None);
        let left = ids();
        // 2 and 4 are gone; 1 and 3 may go on, and 0 made the node.
        assert_eq!(left[..4], ["00", "01", "03", "05"]);
        assert_eq!(left.len(), 23);
    }
}
