//! How far a plan is.
//!
//! In: a plan and the records of its journal. Out: the state of every phase.
//! Pure: the same records give the same state.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Phase, Plan, Record};

/// State of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing has happened.
    Unstarted,
    /// It has begun, and nobody knows more.
    InProgress,
    /// It is done.
    Completed,
    /// It ended with an error.
    Failed,
    /// It was taken back.
    RolledBack,
}

impl State {
    /// As it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unstarted => "unstarted",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::RolledBack => "rolled_back",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The last that is known of each phase that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanState {
    leaves: HashMap<String, Record>,
    overall: State,
}

impl PlanState {
    /// State of the whole plan.
    pub fn overall(&self) -> State {
        self.overall
    }

    /// Whether every phase is complete.
    pub fn is_completed(&self) -> bool {
        self.overall == State::Completed
    }

    /// The last record of a leaf.
    pub fn record(&self, id: &str) -> Option<&Record> {
        self.leaves.get(id)
    }

    /// State of a leaf or of a group.
    pub fn of(&self, phase: &Phase) -> State {
        match phase.phases.is_empty() {
            true => self.leaves.get(&phase.id).map_or(State::Unstarted, |record| record.state),
            false => compose(phase.phases.iter().map(|child| self.of(child))),
        }
    }
}

/// Derives the state of a plan from the records of its journal.
pub fn replay(plan: &Plan, records: &[Record]) -> PlanState {
    let leaves =
        records.iter().map(|record| (record.phase.clone(), record.clone())).collect::<HashMap<_, _>>();
    let mut state = PlanState { leaves, overall: State::Unstarted };
    state.overall = compose(plan.phases.iter().map(|phase| state.of(phase)));
    state
}

/// State of a group: what all of its children have; failed where one is; in
/// progress where some have begun; rolled back where what had begun was taken
/// back.
fn compose(children: impl Iterator<Item = State>) -> State {
    let children: Vec<_> = children.collect();
    let any = |state| children.contains(&state);
    match children.first() {
        None => State::Completed,
        Some(first) if children.iter().all(|child| child == first) => *first,
        _ if any(State::Failed) => State::Failed,
        _ if any(State::InProgress) || any(State::Completed) => State::InProgress,
        _ => State::RolledBack,
    }
}

#[cfg(test)]
mod tests {
    use super::State::{Completed, Failed, InProgress, RolledBack, Unstarted};
    use super::compose;

    #[test]
    fn groups_are_what_their_children_are() {
        let cases: &[(&[super::State], super::State)] = &[
            (&[Completed, Completed], Completed),
            (&[Completed, Failed, InProgress], Failed),
            (&[Completed, Unstarted], InProgress),
            (&[Unstarted, RolledBack], RolledBack),
            (&[Unstarted, Unstarted], Unstarted),
            (&[], Completed),
        ];
        for (children, expected) in cases {
            assert_eq!(compose(children.iter().copied()), *expected, "{children:?}");
        }
    }
}
