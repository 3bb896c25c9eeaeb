//! A plan with its state, for people and for programs.
//!
//! In: plan and state. Out: a tree that serialises, and the same as a table.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::plan::{Phase, Plan};
use crate::state::{PlanState, State};

/// A plan with its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

const COLUMNS: [&str; 6] = [
    "Phase",
    "Description",
    "State",
    "Node",
    "Requires",
    "Updated",
];

/// The plan as a table, with why phases failed below it. Ends with a line break.
pub fn render(plan: &PlanView) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    let mut errors = Vec::new();
    for phase in &plan.phases {
        add(phase, 0, &mut rows, &mut errors);
    }
    let mut widths = [0; COLUMNS.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    for error in errors {
        text.push('\n');
        text.push_str(&error);
        text.push('\n');
    }
    text
}

fn add(
    phase: &PhaseView,
    depth: usize,
    rows: &mut Vec<[String; COLUMNS.len()]>,
    errors: &mut Vec<String>,
) {
    let name = phase.id.rsplit('/').next().unwrap_or(&phase.id);
    let or_dash = |text: String| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text
        }
    };
    rows.push([
        format!(
            "{:indent$}{} {name}",
            "",
            mark(phase.state),
            indent = depth * 2
        ),
        line(&phase.description),
        words(phase.state).to_owned(),
        or_dash(phase.node.clone().unwrap_or_default()),
        or_dash(phase.requires.join(", ")),
        phase.updated.map_or_else(|| "-".into(), time),
    ]);
    if phase.state == State::Failed
        && let Some(error) = &phase.error
    {
        errors.push(format!(
            "The phase {} (\"{}\") has failed: {error}",
            phase.id, phase.description
        ));
    }
    for below in &phase.phases {
        add(below, depth + 1, rows, errors);
    }
}

/// The first line of a text: a table has no room for more.
fn line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn mark(state: State) -> char {
    match state {
        State::Unstarted => '*',
        State::InProgress => '→',
        State::Completed => '✓',
        State::Failed => '×',
        State::RolledBack => '⤺',
    }
}

fn words(state: State) -> &'static str {
    match state {
        State::Unstarted => "Unstarted",
        State::InProgress => "In Progress",
        State::Completed => "Completed",
        State::Failed => "Failed",
        State::RolledBack => "Rolled Back",
    }
}

fn time(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC)
        .strftime("%a %b %e %H:%M UTC")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Record;
    use crate::plan::tests::{group, leaf, plan};
    use crate::state::replay;

    #[test]
    fn the_table_shows_tree_marks_and_errors() {
        let node = |phase: Phase| Phase {
            node: Some("node-1".into()),
            ..phase
        };
        let plan = plan(vec![
            leaf("/init", &[]),
            group(
                "/planet",
                Some(2),
                vec![
                    node(leaf("/planet/node-1", &["/init"])),
                    leaf("/planet/b", &[]),
                ],
            ),
            leaf("/done", &["/init", "/planet"]),
        ]);
        let record = |sequence, phase: &str, state, error: Option<&str>| Record {
            sequence,
            phase: phase.into(),
            state,
            error: error.map(str::to_owned),
            time: "2026-11-02T15:04:05Z".parse().unwrap(),
        };
        let records = [
            record(1, "/init", State::Completed, None),
            record(2, "/planet/node-1", State::Failed, Some("no space")),
            record(3, "/planet/b", State::InProgress, None),
        ];
        let view = view(&plan, &replay(&plan, &records));
        let expected = "\
Phase       Description        State        Node    Requires        Updated
✓ init      Do /init           Completed    -       -               Mon Nov  2 15:04 UTC
× planet    All of /planet     Failed       -       -               Mon Nov  2 15:04 UTC
  × node-1  Do /planet/node-1  Failed       node-1  /init           Mon Nov  2 15:04 UTC
  → b       Do /planet/b       In Progress  -       -               Mon Nov  2 15:04 UTC
* done      Do /done           Unstarted    -       /init, /planet  -

The phase /planet/node-1 (\"Do /planet/node-1\") has failed: no space
";
        assert_eq!(render(&view), expected);
        let json = serde_json::to_string(&view).unwrap();
        assert_eq!(serde_json::from_str::<PlanView>(&json).unwrap(), view);
    }
}
