//! `gravity leave`: takes everything of ours off the node.

use anyhow::{Context, Result, anyhow, bail};
use console::ExitCode;
use event::Sink;

use super::{Session, require_root};
use crate::cli::Leave;

pub(crate) async fn run(session: &Session, arguments: &Leave) -> Result<ExitCode> {
    require_root()?;
    // Nothing is written to a directory that is not ours.
    if !session.layout.host_changes().exists() {
        bail!(
            "there is no cluster in {}",
            session.layout.state_dir().display()
        );
    }
    let joined = session.layout.node_certificate().exists();
    if !arguments.force && !joined {
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
    if joined && !arguments.force {
        session.console.step("Moving pods to other nodes");
        leave_cluster(session).await.context(
            "leave the cluster; nothing was changed on this node. `gravity leave --force` cleans \
             it up without the cluster, `gravity remove` on a master then forgets it",
        )?;
    }
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

/// Has the cluster move pods off this node and forget it.
async fn leave_cluster(session: &Session) -> Result<()> {
    let path = session.layout.cluster();
    let json = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let cluster: spec::ClusterSpec =
        serde_json::from_slice(&json).with_context(|| format!("read {}", path.display()))?;
    let mut member = agent::session(&session.layout, &cluster.controllers())
        .await
        .map_err(|error| anyhow!(error.message))?;
    member.leave(false).await?;
    Ok(())
}
