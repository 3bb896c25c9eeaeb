//! `gravity agent run`: executes phases on this node.

use anyhow::{Context, Result};
use console::ExitCode;

use super::Session;
use crate::cli::Agent;

pub(crate) async fn run(session: &Session, Agent::Run: &Agent) -> Result<ExitCode> {
    // A session of its own: the end of the terminal is not its end.
    nix::unistd::setsid().context("start a session")?;
    super::log_to_stderr();
    let _lock = host::lock::Lock::acquire(&session.layout.agent_lock())?;
    agent::serve(session.layout.state_dir()).await.context("serve phases")?;
    Ok(ExitCode::Ok)
}
