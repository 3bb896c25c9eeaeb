//! A plan with its state, for people and for programs.
//!
//! In: plan and state. Out: a tree that serialises.

use jiff::Timestamp;
use serde::Serialize;

use crate::plan::{Phase, Plan};
use crate::state::{PlanState, State};

/// A plan with its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanView {
    /// Id of the operation.
    pub operation_id: String,
    /// What it does, such as `install`.
    pub kind: String,
    /// State of the whole.
    pub state: State,
    /// Phases at the top.
    pub phases: Vec<PhaseView>,
}

/// A phase with its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PhaseView {
    /// Path, such as `/planet/node-1`.
    pub id: String,
    /// What it does.
    pub description: String,
    /// Its state.
    pub state: State,
    /// Node that executes it.
    pub node: Option<String>,
    /// Ids of phases that have to be complete before.
    pub requires: Vec<String>,
    /// When it last changed.
    pub updated: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<String>,
    /// Phases below.
    pub phases: Vec<PhaseView>,
}

/// A plan with its state.
pub fn view(plan: &Plan, state: &PlanState) -> PlanView {
    PlanView {
        operation_id: plan.operation_id.clone(),
        kind: plan.kind.clone(),
        state: state.overall(),
        phases: plan
            .phases
            .iter()
            .map(|phase| phase_view(phase, state))
            .collect(),
    }
}

fn phase_view(phase: &Phase, states: &PlanState) -> PhaseView {
    let state = states.phase(&phase.id);
    PhaseView {
        id: phase.id.clone(),
        description: phase.description.clone(),
        state: state.state,
        node: phase.node.clone(),
        requires: phase.requires.clone(),
        updated: state.updated,
        error: state.error,
        phases: phase
            .phases
            .iter()
            .map(|phase| phase_view(phase, states))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Record;
    use crate::plan::tests::{group, leaf, plan};
    use crate::state::replay;

    #[test]
    fn a_view_has_the_tree_with_states_and_errors() {
        let below = vec![leaf("/planet/a", &["/init"]), leaf("/planet/b", &[])];
        let plan = plan(vec![leaf("/init", &[]), group("/planet", Some(2), below)]);
        let failed = Record {
            sequence: 1,
            phase: "/planet/a".into(),
            state: State::Failed,
            error: Some("no space".into()),
            time: "2026-11-02T15:04:05Z".parse().unwrap(),
        };
        let json = serde_json::to_value(view(&plan, &replay(&plan, &[failed]))).unwrap();
        assert_eq!(json["state"], "failed");
        assert_eq!(json["phases"][0]["state"], "unstarted");
        let a = serde_json::json!({
            "id": "/planet/a", "description": "Do /planet/a", "state": "failed", "node": null,
            "requires": ["/init"], "updated": "2026-11-02T15:04:05Z", "error": "no space",
            "phases": [],
        });
        assert_eq!(json["phases"][1]["phases"][0], a);
    }
}
