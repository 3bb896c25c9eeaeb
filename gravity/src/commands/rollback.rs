//! `gravity rollback`: takes an operation back that has not ended.

use anyhow::{Result, bail};
use console::ExitCode;
use host::changes::{Change, Journal};
use host::lock::Lock;
use installer::coordinator::{Action, Operation};
use serde::Serialize;

use super::{Session, process, require_root};
use crate::cli::Rollback;

/// What a rollback would do.
#[derive(Debug, Serialize)]
struct Preview {
    /// Phases that would be taken back, in this order.
    phases: Vec<String>,
    /// What is of ours on the host.
    changes: Vec<String>,
}

pub(crate) async fn run(session: &Session, arguments: &Rollback) -> Result<ExitCode> {
    require_root()?;
    let last = Operation::last(&session.layout)?;
    if last.state()?.is_completed() {
        bail!("the last operation is complete; `gravity leave` removes the cluster");
    }
    drop(Lock::acquire(&session.layout.operation_lock())?);
    if arguments.dry_run {
        preview(session, &last)?;
        return Ok(ExitCode::Ok);
    }
    let question = "All that the operation has done will be taken back. Go on?";
    session.go_on(arguments.confirm, question)?;
    process::start(session, &last, &Action::RollBackAll).await
}

fn preview(session: &Session, last: &Operation) -> Result<()> {
    let phases = last.to_roll_back()?;
    let phases = phases.iter().map(|phase| phase.id.clone()).collect();
    let changes = match process::FIRST.contains(&last.plan.kind.as_str()) {
        true => Journal::read(&session.layout.host_changes())?,
        // The node stays in its cluster.
        false => Vec::new(),
    };
    let preview = Preview {
        phases,
        changes: changes.iter().rev().map(Change::to_string).collect(),
    };
    if session.console.is_json() {
        session.console.print_json(&preview)?;
        return Ok(());
    }
    let mut lines = Vec::new();
    for phase in &preview.phases {
        lines.push(format!("would roll back {phase}"));
    }
    for change in &preview.changes {
        lines.push(format!("would take back {change}"));
    }
    if lines.is_empty() {
        lines.push("nothing is to be taken back".to_owned());
    }
    session.console.print(&lines.join("\n"));
    Ok(())
}
