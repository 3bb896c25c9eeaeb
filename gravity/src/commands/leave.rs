//! `gravity leave`: takes everything of ours off the node.

use anyhow::{Context, Result, anyhow, bail};
use console::ExitCode;

use super::{Session, require_root};
use crate::cli::Leave;

pub(crate) fn run(session: &Session, arguments: &Leave) -> Result<ExitCode> {
    require_root()?;
    // Nothing is written to a directory that is not ours.
    if !session.layout.host_changes().exists() {
        bail!(
            "there is no cluster in {}",
            session.layout.state_dir().display()
        );
    }
    if !arguments.force {
        bail!(
            "this is the cluster's last node: leaving it ends the cluster; use `gravity leave --force`"
        );
    }
    if !arguments.confirm
        && !session
            .console
            .confirm("All of the cluster's data on this node will be lost. Go on?")?
    {
        bail!("nothing was changed");
    }
    let lock = host::lock::Lock::acquire(&session.layout.operation_lock())?;
    let report = agent::leave::leave(&session.layout, arguments.purge, &*session.console)
        .map_err(|error| anyhow!(error.message))
        .context("leave")?;
    drop(lock);
    match session.console.is_json() {
        true => session.console.print_json(&report)?,
        false => session.console.print(&report.to_string()),
    }
    Ok(ExitCode::Ok)
}
