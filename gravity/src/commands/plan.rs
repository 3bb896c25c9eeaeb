//! `gravity plan`: the phases of the last operation, all or one by one.

use anyhow::{Context, Result, bail};
use console::{ExitCode, render};
use event::Sink;
use installer::attach::{Follower, Line};
use installer::coordinator::{Action, Operation};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use operation::{PhaseView, PlanView, State};

use super::{Session, process, require_root, resume};
use crate::cli::{Output, Plan, PlanCommand};

pub(crate) async fn run(session: &Session, arguments: &Plan) -> Result<ExitCode> {
    let action = match &arguments.command {
        None | Some(PlanCommand::Display) => {
            show(session, &Operation::last(&session.layout)?)?;
            if arguments.tail {
                tail(session).await?;
            }
            return Ok(ExitCode::Ok);
        }
        Some(PlanCommand::Resume) => return resume::run(session).await,
        Some(PlanCommand::Complete) => return complete(session).await,
        Some(PlanCommand::Execute(one)) => Action::Execute {
            phase: one.phase.clone(),
            force: one.force,
        },
        Some(PlanCommand::Rollback(one)) => Action::RollBack {
            phase: one.phase.clone(),
            force: one.force,
        },
    };
    require_root()?;
    let last = Operation::last(&session.layout)?;
    process::start(session, &last, &action).await
}

fn show(session: &Session, last: &Operation) -> Result<()> {
    let view = operation::view(&last.plan, &last.state()?);
    match session.global.output {
        Output::Json => session.console.print_json(&view)?,
        Output::Yaml => {
            let yaml = serde_saphyr::to_string(&view).context("write the plan as YAML")?;
            session.console.print(yaml.trim_end());
        }
        Output::Text => session.console.print(&table(&view)),
    }
    Ok(())
}

async fn tail(session: &Session) -> Result<()> {
    follow(session).await?;
    // A rollback takes the operation itself away.
    match Operation::last(&session.layout) {
        Ok(last) => show(session, &last),
        Err(_) => Ok(()),
    }
}

/// Shows what the running operation tells, from its beginning to its end.
pub(crate) async fn follow(session: &Session) -> Result<()> {
    let Ok(mut follower) = Follower::open(&session.layout.operation_socket()).await else {
        session.console.info("No operation runs");
        return Ok(());
    };
    while let Some(line) = follower.next().await.context("follow the operation")? {
        if let Line::Event { event } = line {
            session.console.emit(event);
        }
    }
    Ok(())
}

/// Ends an operation that somebody has executed phase by phase.
async fn complete(session: &Session) -> Result<ExitCode> {
    require_root()?;
    let last = Operation::last(&session.layout)?;
    match last.state()?.overall() {
        State::Completed => {
            session
                .console
                .info("The operation is complete; `gravity status` shows the cluster");
            Ok(ExitCode::Ok)
        }
        // What is left is the operation itself.
        State::RolledBack | State::Unstarted => {
            process::start(session, &last, &Action::RollBackAll).await
        }
        state @ (State::InProgress | State::Failed) => bail!(
            "the operation is {state}: execute what is left, or roll it back, phase by phase \
             or with `gravity resume` or `gravity rollback`"
        ),
    }
}

/// The plan as a table, with why phases failed below it. Ends with a line break.
fn table(plan: &PlanView) -> String {
    let header = [
        "Phase",
        "Description",
        "State",
        "Node",
        "Requires",
        "Updated",
    ];
    let (mut rows, mut errors) = (Vec::new(), String::new());
    for phase in &plan.phases {
        add(phase, 0, &mut rows, &mut errors);
    }
    format!("{}\n{errors}", render::table(&header, &rows))
}

fn add(phase: &PhaseView, depth: usize, rows: &mut Vec<Vec<String>>, errors: &mut String) {
    let name = phase.id.rsplit('/').next().unwrap_or(&phase.id);
    let or_dash = |text: String| match text.is_empty() {
        true => "-".to_owned(),
        false => text,
    };
    let (mark, state) = words(phase.state);
    rows.push(vec![
        format!("{:indent$}{mark} {name}", "", indent = depth * 2),
        // A table has no room for more.
        phase.description.lines().next().unwrap_or_default().into(),
        state.into(),
        or_dash(phase.node.clone().unwrap_or_default()),
        or_dash(phase.requires.join(", ")),
        phase.updated.map_or_else(|| "-".into(), time),
    ]);
    if phase.state == State::Failed
        && let Some(error) = &phase.error
    {
        errors.push_str(&format!(
            "\nThe phase {} (\"{}\") has failed: {error}\n",
            phase.id, phase.description
        ));
    }
    for below in &phase.phases {
        add(below, depth + 1, rows, errors);
    }
}

/// Mark and name of a state.
fn words(state: State) -> (char, &'static str) {
    match state {
        State::Unstarted => ('*', "Unstarted"),
        State::InProgress => ('→', "In Progress"),
        State::Completed => ('✓', "Completed"),
        State::Failed => ('×', "Failed"),
        State::RolledBack => ('⤺', "Rolled Back"),
    }
}

fn time(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC)
        .strftime("%a %b %e %H:%M UTC")
        .to_string()
}

#[cfg(test)]
mod tests {
    use operation::{Phase, Record};

    use super::*;

    #[test]
    fn the_table_shows_tree_marks_and_errors() {
        let phase = |id: &str, requires: &[&str]| Phase {
            requires: requires.iter().map(|id| (*id).to_owned()).collect(),
            ..Phase::new(id, format!("Do {id}"))
        };
        let node = Phase {
            node: Some("node-1".into()),
            ..phase("/planet/node-1", &["/init"])
        };
        let planet = Phase {
            phases: vec![node, phase("/planet/b", &[])],
            ..Phase::new("/planet", "All of /planet")
        };
        let phases = vec![
            phase("/init", &[]),
            planet,
            phase("/done", &["/init", "/planet"]),
        ];
        let plan = operation::Plan::new("install", "op", phases);
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
        let view = operation::view(&plan, &operation::replay(&plan, &records));
        let expected = "\
Phase       Description        State        Node    Requires        Updated
✓ init      Do /init           Completed    -       -               Mon Nov  2 15:04 UTC
× planet    All of /planet     Failed       -       -               Mon Nov  2 15:04 UTC
  × node-1  Do /planet/node-1  Failed       node-1  /init           Mon Nov  2 15:04 UTC
  → b       Do /planet/b       In Progress  -       -               Mon Nov  2 15:04 UTC
* done      Do /done           Unstarted    -       /init, /planet  -

The phase /planet/node-1 (\"Do /planet/node-1\") has failed: no space
";
        assert_eq!(table(&view), expected);
    }
}
