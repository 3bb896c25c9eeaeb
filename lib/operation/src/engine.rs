//! Runs plans.
//!
//! In: a plan, its journal, an executor. Out: every leaf executed once after
//! what it requires, side by side where nothing forbids it. After an error
//! nothing new begins; what runs is waited for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use event::{Event, Sink};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::plan::Leaf;
use crate::{Journal, JournalError, Phase, Plan, PlanError, State, replay};

/// Executes phases somewhere. Executing is: see what is done already, do the
/// rest, see that it is so. It may be repeated after any end.
#[async_trait::async_trait]
pub trait Executor: Send + Sync {
    /// Executes a leaf.
    async fn execute(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError>;
    /// Takes a leaf back.
    async fn undo(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError>;
}

/// Why a phase failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PhaseError {
    /// What happened, with causes.
    pub message: String,
    /// Whether trying again may help.
    pub transient: bool,
}

impl PhaseError {
    /// An error that trying again may mend.
    pub fn transient(message: impl Into<String>) -> Self {
        Self { message: message.into(), transient: true }
    }

    /// An error that stays until somebody does something.
    pub fn lasting(message: impl Into<String>) -> Self {
        Self { message: message.into(), transient: false }
    }
}

/// Why a plan was not run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// It is no plan.
    #[error("the plan is not valid")]
    Plan(#[from] PlanError),
    /// The journal can't be written.
    #[error("record the operation's progress")]
    Journal(#[from] JournalError),
    /// A phase failed.
    #[error("phase {phase} ({description}) failed")]
    Phase {
        /// The phase.
        phase: String,
        /// What it does.
        description: String,
        /// Why it failed.
        source: PhaseError,
    },
}

/// Runs plans.
#[derive(Debug, Clone)]
pub struct Engine {
    /// How often a phase is tried when its errors are transient.
    pub attempts: u32,
    /// Pause before the second try; it doubles before each further one.
    pub pause: Duration,
}

impl Default for Engine {
    /// Five tries within half a minute: a restart of the API server.
    fn default() -> Self {
        Self { attempts: 5, pause: Duration::from_secs(2) }
    }
}

impl Engine {
    /// Executes what the journal doesn't say is complete.
    ///
    /// # Errors
    /// The first failure of a phase, or of the journal.
    pub async fn run(
        &self,
        plan: &Plan,
        journal: &mut Journal,
        executor: &dyn Executor,
        sink: Arc<dyn Sink>,
    ) -> Result<(), RunError> {
        let leaves = plan.leaves()?;
        let state = replay(plan, journal.records());
        let mut done: HashSet<&str> = leaves
            .iter()
            .filter(|leaf| state.of(leaf.phase) == State::Completed)
            .map(|leaf| leaf.phase.id.as_str())
            .collect();
        let mut waiting: Vec<&Leaf<'_>> =
            leaves.iter().filter(|leaf| !done.contains(leaf.phase.id.as_str())).collect();
        let mut running = FuturesUnordered::new();
        let mut per_group: HashMap<&str, usize> = HashMap::new();
        let mut failure = None;
        loop {
            let mut index = 0;
            while failure.is_none() && index < waiting.len() {
                let leaf = waiting[index];
                let free = leaf.limit.is_none_or(|(group, limit)| {
                    per_group.get(group).copied().unwrap_or_default() < limit
                });
                if !free || !leaf.requires.iter().all(|required| done.contains(required)) {
                    index += 1;
                    continue;
                }
                waiting.remove(index);
                record(journal, &*sink, leaf.phase, State::InProgress, None)?;
                if let Some((group, _)) = leaf.limit {
                    *per_group.entry(group).or_default() += 1;
                }
                let sink = sink.clone();
                running.push(async move { (leaf, self.attempt(leaf.phase, executor, sink).await) });
            }
            let Some((leaf, result)) = running.next().await else { break };
            if let Some((group, _)) = leaf.limit {
                per_group.entry(group).and_modify(|count| *count -= 1);
            }
            match result {
                Ok(()) => {
                    record(journal, &*sink, leaf.phase, State::Completed, None)?;
                    done.insert(&leaf.phase.id);
                }
                Err(error) => {
                    record(journal, &*sink, leaf.phase, State::Failed, Some(error.message.clone()))?;
                    failure.get_or_insert(RunError::Phase {
                        phase: leaf.phase.id.clone(),
                        description: leaf.phase.description.clone(),
                        source: error,
                    });
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    async fn attempt(
        &self,
        phase: &Phase,
        executor: &dyn Executor,
        sink: Arc<dyn Sink>,
    ) -> Result<(), PhaseError> {
        let mut pause = self.pause;
        for _ in 1..self.attempts {
            match executor.execute(phase, sink.clone()).await {
                Err(error) if error.transient => {
                    sink.warning(&format!("{}: {error}; trying again", phase.id));
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                other => return other,
            }
        }
        executor.execute(phase, sink).await
    }

    /// Takes back every leaf that has begun, the last one first.
    ///
    /// # Errors
    /// The first failure of a phase, or of the journal.
    pub async fn rollback(
        &self,
        plan: &Plan,
        journal: &mut Journal,
        executor: &dyn Executor,
        sink: Arc<dyn Sink>,
    ) -> Result<(), RunError> {
        let leaves = plan.leaves()?;
        let state = replay(plan, journal.records());
        let mut begun: Vec<_> = leaves
            .iter()
            .filter_map(|leaf| Some((state.record(&leaf.phase.id)?, leaf.phase)))
            .filter(|(record, _)| record.state != State::RolledBack)
            .collect();
        begun.sort_by_key(|(record, _)| std::cmp::Reverse(record.sequence));
        let begun: Vec<_> = begun.into_iter().map(|(_, phase)| phase).collect();
        for phase in begun {
            executor.undo(phase, sink.clone()).await.map_err(|source| RunError::Phase {
                phase: phase.id.clone(),
                description: phase.description.clone(),
                source,
            })?;
            record(journal, &*sink, phase, State::RolledBack, None)?;
        }
        Ok(())
    }
}

fn record(
    journal: &mut Journal,
    sink: &dyn Sink,
    phase: &Phase,
    state: State,
    error: Option<String>,
) -> Result<(), JournalError> {
    journal.append(&phase.id, state, error.clone())?;
    sink.emit(Event::Phase {
        id: phase.id.clone(),
        state: state.to_string(),
        description: phase.description.clone(),
        error,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use event::Discard;
    use proptest::prelude::*;

    use super::*;
    use crate::plan::tests::{group, leaf};

    /// Executes by taking a note; fails what it is told to.
    #[derive(Default)]
    struct Notes {
        executed: Mutex<Vec<String>>,
        undone: Mutex<Vec<String>>,
        fail: Mutex<HashMap<String, (u32, bool)>>,
    }

    #[async_trait::async_trait]
    impl Executor for Notes {
        async fn execute(&self, phase: &Phase, _: Arc<dyn Sink>) -> Result<(), PhaseError> {
            tokio::task::yield_now().await;
            if let Some((times, transient)) = self.fail.lock().unwrap().get_mut(&phase.id)
                && *times > 0
            {
                *times -= 1;
                return Err(PhaseError { message: "told to".into(), transient: *transient });
            }
            self.executed.lock().unwrap().push(phase.id.clone());
            Ok(())
        }

        async fn undo(&self, phase: &Phase, _: Arc<dyn Sink>) -> Result<(), PhaseError> {
            self.undone.lock().unwrap().push(phase.id.clone());
            Ok(())
        }
    }

    fn engine() -> Engine {
        Engine { attempts: 3, pause: Duration::ZERO }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    fn diamond() -> Plan {
        let phases = vec![
            leaf("/a", &[]),
            group("/b", &["/a"], vec![leaf("/b/1", &[]), leaf("/b/2", &[])]),
            leaf("/c", &["/b"]),
        ];
        Plan::new("op", "install", phases)
    }

    #[test]
    fn a_transient_error_is_tried_again_and_a_lasting_one_stops() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&directory.path().join("journal")).unwrap();
        let notes = Notes::default();
        notes.fail.lock().unwrap().insert("/a".into(), (2, true));
        notes.fail.lock().unwrap().insert("/b/1".into(), (1, false));
        let plan = diamond();
        let run = engine().run(&plan, &mut journal, &notes, Arc::new(Discard));
        let error = block_on(run).unwrap_err();
        assert!(matches!(error, RunError::Phase { ref phase, .. } if phase == "/b/1"), "{error}");
        let state = replay(&plan, journal.records());
        assert_eq!(state.overall(), State::Failed);
        assert!(!notes.executed.lock().unwrap().contains(&"/c".to_owned()));
        // What ran beside it was waited for.
        assert_eq!(journal.last_state("/b/2"), Some(State::Completed));
        block_on(engine().run(&plan, &mut journal, &notes, Arc::new(Discard))).unwrap();
        assert!(replay(&plan, journal.records()).is_completed());
        let executed = notes.executed.lock().unwrap().clone();
        assert_eq!(executed.iter().filter(|id| *id == "/b/2").count(), 1);
    }

    #[test]
    fn rollback_goes_backwards() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&directory.path().join("journal")).unwrap();
        let notes = Notes::default();
        let plan = diamond();
        block_on(engine().run(&plan, &mut journal, &notes, Arc::new(Discard))).unwrap();
        block_on(engine().rollback(&plan, &mut journal, &notes, Arc::new(Discard))).unwrap();
        let mut backwards = notes.executed.lock().unwrap().clone();
        backwards.reverse();
        assert_eq!(*notes.undone.lock().unwrap(), backwards);
        assert_eq!(replay(&plan, journal.records()).overall(), State::RolledBack);
    }

    /// Plans without circles: a phase may require those before it.
    fn plans() -> impl Strategy<Value = Plan> {
        prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..3), 1..9)
            .prop_map(|requirements| {
                let phases = requirements.iter().enumerate().map(|(number, required)| {
                    let mut required: Vec<_> = match number {
                        0 => Vec::new(),
                        _ => required.iter().map(|i| format!("/{}", i.index(number))).collect(),
                    };
                    required.sort();
                    required.dedup();
                    let required: Vec<_> = required.iter().map(String::as_str).collect();
                    leaf(&format!("/{number}"), &required)
                });
                Plan::new("op", "install", phases.collect())
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever the plan and wherever the process ends, going on completes
        /// it, and nothing ever begins before what it requires is complete.
        #[test]
        fn a_crash_after_any_record_ends_in_the_same_plan(plan in plans(), cut in any::<prop::sample::Index>()) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("journal");
            let mut journal = Journal::open(&path).unwrap();
            block_on(engine().run(&plan, &mut journal, &Notes::default(), Arc::new(Discard))).unwrap();
            drop(journal);
            let text = std::fs::read_to_string(&path).unwrap();
            let lines: Vec<_> = text.split_inclusive('\n').collect();
            let kept = lines[..cut.index(lines.len() + 1)].concat();
            host::atomic::write(&path, kept.as_bytes(), 0o600).unwrap();

            let mut journal = Journal::open(&path).unwrap();
            block_on(engine().run(&plan, &mut journal, &Notes::default(), Arc::new(Discard))).unwrap();
            prop_assert!(replay(&plan, journal.records()).is_completed());
            let mut done = HashSet::new();
            for record in journal.records() {
                let phase = plan.phases.iter().find(|phase| phase.id == record.phase).unwrap();
                match record.state {
                    State::InProgress => prop_assert!(phase.requires.iter().all(|id| done.contains(id))),
                    State::Completed => { done.insert(record.phase.clone()); }
                    _ => prop_assert!(false),
                }
            }
        }
    }
}
