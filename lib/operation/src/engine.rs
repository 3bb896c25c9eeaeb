//! Runs a plan.
//!
//! In: a plan, its journal, an executor. Out: all leaves complete, or the first
//! failure. A leaf's start is on disk before it starts, its end before anything
//! that requires it starts; what starts or ends at one moment waits for the disk
//! once. A run that was cut short is gone on with by running
//! again: complete leaves are skipped, all others executed.

use std::sync::Arc;
use std::time::Duration;

use event::{Event, Sink};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};

use crate::executor::{Executor, PhaseError};
use crate::graph::{Graph, is_within};
use crate::journal::{Journal, JournalError, Record};
use crate::plan::{Phase, Plan, PlanError};
use crate::state::{State, replay};

/// Runs plans, and takes them back.
#[derive(Debug, Clone)]
pub struct Engine {
    /// How often a phase is tried whose failure may pass.
    pub attempts: u32,
    /// How long the first pause between tries is; each is twice the last.
    pub first_pause: Duration,
}

impl Default for Engine {
    /// Five tries within about 15 s of pauses: executors wait for slow things
    /// by themselves.
    fn default() -> Self {
        Self {
            attempts: 5,
            first_pause: Duration::from_secs(1),
        }
    }
}

/// Why a run has ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The plan can't be run.
    #[error("the plan is not valid")]
    Plan(#[from] PlanError),
    /// The journal can't be written.
    #[error("write the operation's journal")]
    Journal(#[from] JournalError),
    /// A phase has failed.
    #[error("phase {phase} failed")]
    Phase {
        /// Its id.
        phase: String,
        /// Why.
        source: PhaseError,
    },
    /// There is no such phase.
    #[error("the plan has no phase {0}; `gravity plan` lists them")]
    NoPhase(String),
    /// What a phase requires isn't complete.
    #[error("phase {phase} requires {}, which is not complete; execute that first, or use --force", .missing.join(", "))]
    Requires {
        /// Its id.
        phase: String,
        /// What is missing.
        missing: Vec<String>,
    },
    /// Others were built on a phase.
    #[error("{} came after {phase}; roll back that first, or use --force", .after.join(", "))]
    Follows {
        /// Its id.
        phase: String,
        /// Phases that follow it and were not rolled back.
        after: Vec<String>,
    },
    /// A phase can't be taken back.
    #[error("roll back phase {phase}")]
    Rollback {
        /// Its id.
        phase: String,
        /// Why.
        source: PhaseError,
    },
}

impl Engine {
    /// Executes all leaves that are not complete. After the first failure none
    /// is started any more; those that run are waited for.
    ///
    /// # Errors
    /// The first failure.
    pub async fn run(
        &self,
        plan: &Plan,
        journal: &mut Journal,
        executor: &dyn Executor,
        sink: Arc<dyn Sink>,
    ) -> Result<(), RunError> {
        self.run_below(plan, journal, executor, sink, "").await
    }

    /// Executes what is not complete of one phase, a leaf or a group. With
    /// `force` also what is complete, and without regard to what it requires.
    ///
    /// # Errors
    /// The first failure; when what it requires isn't complete.
    pub async fn run_phase(
        &self,
        plan: &Plan,
        journal: &mut Journal,
        executor: &dyn Executor,
        sink: Arc<dyn Sink>,
        phase: &str,
        force: bool,
    ) -> Result<(), RunError> {
        let chosen = plan
            .phase(phase)
            .ok_or_else(|| RunError::NoPhase(phase.to_owned()))?;
        if !force {
            return self
                .run_below(plan, journal, executor, sink, &chosen.id)
                .await;
        }
        plan.validate()?;
        let mut leaves = plan.leaves();
        leaves.retain(|leaf| is_within(&leaf.id, &chosen.id));
        self.each(leaves, journal, executor, sink, State::Completed)
            .await
    }

    /// Runs the leaves of `top`, a phase or the empty name of all.
    async fn run_below(
        &self,
        plan: &Plan,
        journal: &mut Journal,
        executor: &dyn Executor,
        sink: Arc<dyn Sink>,
        top: &str,
    ) -> Result<(), RunError> {
        plan.validate()?;
        let state = replay(plan, journal.records());
        let mut graph = Graph::new(plan)?;
        for leaf in graph.waiting() {
            if state.phase(&graph.phase(leaf).id).state == State::Completed {
                graph.complete(leaf);
            }
        }
        let mut waiting = graph.waiting();
        waiting.retain(|leaf| is_within(&graph.phase(*leaf).id, top));
        let mut running = FuturesUnordered::new();
        let mut failure = None;
        loop {
            if failure.is_none() {
                let mut begun = Vec::new();
                waiting.retain(|leaf| {
                    let begins = graph.ready(*leaf);
                    if begins {
                        graph.start(*leaf);
                        begun.push(*leaf);
                    }
                    !begins
                });
                let phases = begun.iter().map(|leaf| graph.phase(*leaf));
                let changes: Vec<_> = phases
                    .map(|phase| (phase, State::InProgress, None))
                    .collect();
                record(journal, &*sink, &changes)?;
                for leaf in begun {
                    let (phase, sink) = (graph.phase(leaf), sink.clone());
                    running.push(async move { (leaf, self.execute(phase, executor, sink).await) });
                }
            }
            let Some(first) = running.next().await else {
                break;
            };
            // What has ended by now is written down together.
            let mut ended = vec![first];
            while let Some(Some(next)) = running.next().now_or_never() {
                ended.push(next);
            }
            let changes = ended.iter().map(|(leaf, result)| {
                let state = match result {
                    Ok(()) => State::Completed,
                    Err(_) => State::Failed,
                };
                (graph.phase(*leaf), state, result.as_ref().err())
            });
            let changes: Vec<_> = changes.collect();
            record(journal, &*sink, &changes)?;
            for (leaf, result) in ended {
                match result {
                    Ok(()) => graph.complete(leaf),
                    Err(source) => {
                        failure = failure.or(Some(RunError::Phase {
                            phase: graph.phase(leaf).id.clone(),
                            source,
                        }));
                    }
                }
            }
        }
        match (failure, waiting.first()) {
            (Some(failure), _) => Err(failure),
            (None, Some(leaf)) => Err(RunError::Requires {
                phase: graph.phase(*leaf).id.clone(),
                missing: graph.missing(*leaf),
            }),
            (None, None) => Ok(()),
        }
    }

    /// Takes back every leaf that was attempted, the last one first. Stops at
    /// the first that can't be taken back.
    ///
    /// # Errors
    /// The first failure.
    pub async fn rollback(
        &self,
        plan: &Plan,
        journal: &mut Journal,
        executor: &dyn Executor,
        sink: Arc<dyn Sink>,
    ) -> Result<(), RunError> {
        plan.validate()?;
        let leaves = to_roll_back(plan, journal.records());
        self.each(leaves, journal, executor, sink, State::RolledBack)
            .await
    }

    /// Takes one phase back, a leaf or a group. With `force` also where others
    /// came after it.
    ///
    /// # Errors
    /// The first failure; when phases that follow it were not rolled back.
    pub async fn rollback_phase(
        &self,
        plan: &Plan,
        journal: &mut Journal,
        executor: &dyn Executor,
        sink: Arc<dyn Sink>,
        phase: &str,
        force: bool,
    ) -> Result<(), RunError> {
        plan.validate()?;
        let chosen = plan
            .phase(phase)
            .ok_or_else(|| RunError::NoPhase(phase.to_owned()))?;
        let (mine, others): (Vec<_>, Vec<_>) = to_roll_back(plan, journal.records())
            .into_iter()
            .partition(|leaf| is_within(&leaf.id, &chosen.id));
        let graph = Graph::new(plan)?;
        let after: Vec<String> = graph
            .leaves()
            .filter(|leaf| graph.follows(*leaf, &chosen.id))
            .map(|leaf| graph.phase(leaf).id.clone())
            .filter(|id| others.iter().any(|other| other.id == *id))
            .collect();
        if !force && !after.is_empty() {
            return Err(RunError::Follows {
                phase: phase.to_owned(),
                after,
            });
        }
        self.each(mine, journal, executor, sink, State::RolledBack)
            .await
    }

    /// Executes leaves again, or takes them back where they are `done` as rolled back, one
    /// after the other up to the first failure. The beginning of each is in the journal
    /// first: a phase that is half done, or half taken back, is not complete.
    async fn each(
        &self,
        leaves: Vec<&Phase>,
        journal: &mut Journal,
        executor: &dyn Executor,
        sink: Arc<dyn Sink>,
        done: State,
    ) -> Result<(), RunError> {
        let undoes = done == State::RolledBack;
        for leaf in leaves {
            record(journal, &*sink, &[(leaf, State::InProgress, None)])?;
            let attempt = || match undoes {
                true => executor.undo(leaf, sink.clone()),
                false => executor.execute_again(leaf, sink.clone()),
            };
            let failed = self.retry(leaf, &*sink, attempt).await.err();
            let state = failed.as_ref().map_or(done, |_| State::Failed);
            record(journal, &*sink, &[(leaf, state, failed.as_ref())])?;
            if let Some(source) = failed {
                let phase = leaf.id.clone();
                return Err(match undoes {
                    true => RunError::Rollback { phase, source },
                    false => RunError::Phase { phase, source },
                });
            }
        }
        Ok(())
    }

    async fn execute(
        &self,
        phase: &Phase,
        executor: &dyn Executor,
        sink: Arc<dyn Sink>,
    ) -> Result<(), PhaseError> {
        self.retry(phase, &*sink, || executor.execute(phase, sink.clone()))
            .await
    }

    async fn retry<F>(
        &self,
        phase: &Phase,
        sink: &dyn Sink,
        mut attempt: impl FnMut() -> F,
    ) -> Result<(), PhaseError>
    where
        F: Future<Output = Result<(), PhaseError>>,
    {
        let mut pause = self.first_pause;
        for number in 1.. {
            match attempt().await {
                Err(error) if error.transient && number < self.attempts => {
                    sink.warning(&format!(
                        "{}: {}; try {} of {} in {} s",
                        phase.id,
                        error.message,
                        number + 1,
                        self.attempts,
                        pause.as_secs_f32()
                    ));
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                result => return result,
            }
        }
        Ok(())
    }
}

/// What a rollback would take back, in order: leaves that started last come
/// first, so that what required a phase is gone before the phase is.
pub fn to_roll_back<'a>(plan: &'a Plan, records: &[Record]) -> Vec<&'a Phase> {
    let state = replay(plan, records);
    let started = |id: &str| {
        let starts = |r: &&Record| r.phase == id && r.state == State::InProgress;
        records
            .iter()
            .rev()
            .find(starts)
            .map(|record| record.sequence)
    };
    let mut leaves: Vec<_> = plan
        .leaves()
        .into_iter()
        .filter(|phase| state.phase(&phase.id).state.is_attempted())
        .map(|phase| (started(&phase.id), phase))
        .collect();
    leaves.sort_by_key(|(started, _)| std::cmp::Reverse(*started));
    leaves.into_iter().map(|(_, phase)| phase).collect()
}

/// Writes changes of phases' states down, and tells of them.
fn record(
    journal: &mut Journal,
    sink: &dyn Sink,
    changes: &[(&Phase, State, Option<&PhaseError>)],
) -> Result<(), JournalError> {
    if changes.is_empty() {
        return Ok(());
    }
    let why = |error: &Option<&PhaseError>| error.map(|error| error.message.clone());
    let written = changes
        .iter()
        .map(|(phase, state, error)| (&*phase.id, *state, why(error)));
    journal.append(&written.collect::<Vec<_>>())?;
    for (phase, state, error) in changes {
        sink.emit(Event::Phase {
            id: phase.id.clone(),
            state: state.as_str().to_owned(),
            description: phase.description.clone(),
            error: why(error),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
