//! How far an operation is.
//!
//! In: a plan and the records of its journal. Out: the state of every phase.
//! Nothing else is stored, so that it can't contradict the journal.

use std::collections::HashMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::journal::Record;
use crate::plan::{Phase, Plan};

/// State of a phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing was done.
    #[default]
    Unstarted,
    /// It runs, or was cut short.
    InProgress,
    /// It is done.
    Completed,
    /// It has failed, and may have done a part.
    Failed,
    /// What it did was taken back.
    RolledBack,
}

impl State {
    /// As in JSON: `in_progress`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unstarted => "unstarted",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::RolledBack => "rolled_back",
        }
    }

    /// Whether it has done something that was not taken back.
    pub(crate) fn is_attempted(self) -> bool {
        matches!(self, Self::InProgress | Self::Completed | Self::Failed)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// State of one phase.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PhaseState {
    /// The state.
    pub state: State,
    /// Why it failed.
    pub error: Option<String>,
    /// When it or a phase below last changed.
    pub updated: Option<Timestamp>,
}

/// State of an operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlanState {
    phases: HashMap<String, PhaseState>,
    overall: State,
}

impl PlanState {
    /// State of the whole operation.
    pub fn overall(&self) -> State {
        self.overall
    }

    /// Whether all of it is done.
    pub fn is_completed(&self) -> bool {
        self.overall == State::Completed
    }

    /// State of a phase, a group or a leaf; unstarted where there is none.
    pub fn phase(&self, id: &str) -> PhaseState {
        self.phases.get(id).cloned().unwrap_or_default()
    }
}

/// State of an operation from its plan and all records of its journal. Records
/// of phases that aren't in the plan are left out.
pub fn replay(plan: &Plan, records: &[Record]) -> PlanState {
    let last: HashMap<&str, &Record> = records
        .iter()
        .map(|record| (record.phase.as_str(), record))
        .collect();
    let mut phases = HashMap::new();
    let states: Vec<State> = plan
        .phases
        .iter()
        .map(|phase| derive(phase, &last, &mut phases).state)
        .collect();
    PlanState {
        phases,
        overall: composite(&states),
    }
}

fn derive(
    phase: &Phase,
    last: &HashMap<&str, &Record>,
    phases: &mut HashMap<String, PhaseState>,
) -> PhaseState {
    let state = if phase.is_leaf() {
        last.get(phase.id.as_str())
            .map_or_else(PhaseState::default, |record| PhaseState {
                state: record.state,
                error: record.error.clone(),
                updated: Some(record.time),
            })
    } else {
        let below: Vec<PhaseState> = phase
            .phases
            .iter()
            .map(|p| derive(p, last, phases))
            .collect();
        let states: Vec<State> = below.iter().map(|state| state.state).collect();
        PhaseState {
            state: composite(&states),
            error: None,
            updated: below.iter().filter_map(|state| state.updated).max(),
        }
    };
    phases.insert(phase.id.clone(), state.clone());
    state
}

/// State of a group from those of its phases.
fn composite(states: &[State]) -> State {
    let has = |state| states.contains(&state);
    match states {
        [] => State::Unstarted,
        [first, rest @ ..] if rest.iter().all(|state| state == first) => *first,
        _ if has(State::Failed) => State::Failed,
        _ if has(State::InProgress) || has(State::Completed) => State::InProgress,
        // Only unstarted and rolled back ones.
        _ => State::RolledBack,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{group, leaf, plan};

    #[test]
    fn a_group_follows_its_phases() {
        use State::{Completed, Failed, InProgress, RolledBack, Unstarted};
        for (states, expected) in [
            (&[][..], Unstarted),
            (&[Unstarted, Unstarted], Unstarted),
            (&[Completed, Completed], Completed),
            (&[RolledBack, RolledBack], RolledBack),
            (&[Completed, Failed, InProgress], Failed),
            (&[Completed, InProgress, Unstarted], InProgress),
            (&[Unstarted, RolledBack], RolledBack),
            (&[Completed, Unstarted], InProgress),
            (&[Completed, RolledBack], InProgress),
        ] {
            assert_eq!(composite(states), expected, "{states:?}");
        }
    }

    #[test]
    fn the_last_record_counts_and_strangers_do_not() {
        let plan = plan(vec![group(
            "/a",
            None,
            vec![leaf("/a/x", &[]), leaf("/a/y", &[])],
        )]);
        let record = |sequence, phase: &str, state, error: Option<&str>| Record {
            sequence,
            phase: phase.into(),
            state,
            error: error.map(str::to_owned),
            time: Timestamp::from_second(sequence as i64).unwrap(),
        };
        let records = [
            record(1, "/a/x", State::InProgress, None),
            record(2, "/a/x", State::Failed, Some("why")),
            record(3, "/a/x", State::InProgress, None),
            record(4, "/gone", State::Failed, None),
        ];
        let state = replay(&plan, &records);
        assert_eq!(state.phase("/a/x").state, State::InProgress);
        assert_eq!(state.phase("/a/x").error, None);
        assert_eq!(state.phase("/a").updated, Timestamp::from_second(3).ok());
        assert_eq!(state.overall(), State::InProgress);
        assert_eq!(state.overall().to_string(), "in_progress");
        assert_eq!(state.phase("/gone"), PhaseState::default());
    }
}
