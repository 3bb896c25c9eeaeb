//! `gravity agent`: the processes that live without a terminal. One executes
//! phases on this node, one runs an operation.

use std::time::Duration;

use anyhow::{Context, Result};
use console::ExitCode;
use nix::sys::signal::{SigSet, Signal};

use super::{Session, process};
use crate::cli::Agent;

/// How long the last agent may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn run(session: &Session, arguments: &Agent) -> Result<ExitCode> {
    // A session of its own, which a service has: the end of the terminal is not its
    // end.
    if nix::unistd::getsid(None) != Ok(nix::unistd::getpid()) {
        nix::unistd::setsid().context("start a session")?;
    }
    super::log_to_stderr();
    // They are ended by these signals, which whoever started us may have blocked.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_unblock().context("unblock signals")?;
    match arguments {
        Agent::Run => {
            // The last agent may be about to end.
            let _lock = host::lock::Lock::wait(&session.layout.agent_lock(), PATIENCE)?;
            agent::serve(session.layout.state_dir())
                .await
                .context("serve phases")?;
            Ok(ExitCode::Ok)
        }
        Agent::Operate { operation, action } => process::operate(session, operation, action).await,
    }
}
