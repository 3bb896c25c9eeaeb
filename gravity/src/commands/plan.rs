//! `gravity plan`: the phases of the last operation, all or one by one.

use anyhow::{Context, Result, bail};
use console::ExitCode;
use event::Sink;
use installer::attach::{Follower, Line};
use installer::coordinator::{Action, Operation};
use operation::State;

use super::{Session, operation as process, require_root, resume};
use crate::cli::{Output, Plan, PlanCommand};

pub(crate) async fn run(session: &Session, arguments: &Plan) -> Result<ExitCode> {
    let action = match &arguments.command {
        None => {
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
        Output::Text => session.console.print(&operation::render(&view)),
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
