//! A plan with its state, for people and programs.
//!
//! In: a plan and its state. Out: [`PlanView`], which serialises, and its text.
//! Pure.

use serde::Serialize;

use crate::{Phase, Plan, PlanState, State};

/// A plan with its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanView {
    /// Identity of the operation.
    pub operation_id: String,
    /// What it is.
    pub kind: String,
    /// State of the whole.
    pub state: State,
    /// Top of the tree.
    pub phases: Vec<PhaseView>,
}

/// A phase with its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PhaseView {
    /// Path.
    pub id: String,
    /// What it does.
    pub description: String,
    /// Its state.
    pub state: State,
    /// Where it runs.
    pub node: Option<String>,
    /// What must be complete before.
    pub requires: Vec<String>,
    /// Last change, in seconds since 1970.
    pub updated: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
    /// Children.
    pub phases: Vec<PhaseView>,
}

/// Puts plan and state together.
pub fn view(plan: &Plan, state: &PlanState) -> PlanView {
    PlanView {
        operation_id: plan.operation_id.clone(),
        kind: plan.kind.clone(),
        state: state.overall(),
        phases: plan.phases.iter().map(|phase| phase_view(phase, state)).collect(),
    }
}

fn phase_view(phase: &Phase, state: &PlanState) -> PhaseView {
    let record = state.record(&phase.id);
    PhaseView {
        id: phase.id.clone(),
        description: phase.description.clone(),
        state: state.of(phase),
        node: phase.node.clone(),
        requires: phase.requires.clone(),
        updated: record.map(|record| record.time),
        error: record.filter(|record| record.state == State::Failed).and_then(|r| r.error.clone()),
        phases: phase.phases.iter().map(|child| phase_view(child, state)).collect(),
    }
}

/// The plan as a table; errors of failed phases follow below.
pub fn render(view: &PlanView) -> String {
    let mut rows = vec![["Phase", "Description", "State", "Node", "Requires"].map(String::from)];
    let mut errors = Vec::new();
    for phase in &view.phases {
        add(phase, 0, &mut rows, &mut errors);
    }
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = format!("Operation {} ({}): {}\n\n", view.kind, view.operation_id, view.state);
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    for (id, error) in errors {
        text.push_str(&format!("\n{id}: {error}\n"));
    }
    text
}

fn add(
    phase: &PhaseView,
    depth: usize,
    rows: &mut Vec<[String; 5]>,
    errors: &mut Vec<(String, String)>,
) {
    let name = match depth {
        0 => phase.id.as_str(),
        _ => phase.id.rsplit('/').next().unwrap_or(&phase.id),
    };
    let requires = match phase.requires.is_empty() {
        true => "-".into(),
        false => phase.requires.join(","),
    };
    rows.push([
        format!("{:indent$}{} {name}", "", mark(phase.state), indent = depth * 2),
        phase.description.clone(),
        phase.state.to_string().replace('_', " "),
        phase.node.clone().unwrap_or_else(|| "-".into()),
        requires,
    ]);
    errors.extend(phase.error.clone().map(|error| (phase.id.clone(), error)));
    for child in &phase.phases {
        add(child, depth + 1, rows, errors);
    }
}

fn mark(state: State) -> &'static str {
    match state {
        State::Unstarted => "*",
        State::InProgress => "→",
        State::Completed => "✓",
        State::Failed => "×",
        State::RolledBack => "←",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{group, leaf};
    use crate::{Record, replay};

    #[test]
    fn the_table_shows_states_and_errors() {
        let plan = Plan::new(
            "17",
            "install",
            vec![leaf("/a", &[]), group("/b", &["/a"], vec![leaf("/b/one", &[])])],
        );
        let record = |sequence, phase: &str, state, error: Option<&str>| Record {
            sequence,
            phase: phase.into(),
            state,
            error: error.map(Into::into),
            time: 7,
        };
        let records = [
            record(1, "/a", State::Completed, None),
            record(2, "/b/one", State::Failed, Some("no space")),
        ];
        let text = render(&view(&plan, &replay(&plan, &records)));
        let expected = "\
Operation install (17): failed

Phase    Description  State      Node  Requires
✓ /a     does /a      completed  -     -
× /b     does /b      failed     -     /a
  × one  does /b/one  failed     -     -

/b/one: no space
";
        assert_eq!(text, expected);
    }
}
