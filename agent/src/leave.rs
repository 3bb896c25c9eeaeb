//! Takes everything of ours off the node.
//!
//! In: the state directory. Out: a report of what was removed and what was
//! left. Goes by the journal of host changes, so a half-finished install is
//! taken back as well as a whole one. Can be repeated.

use std::path::Path;
use std::time::{Duration, Instant};

use event::Sink;
use host::changes::{Change, Journal, Report};
use operation::PhaseError;
use spec::layout::Layout;

use crate::node::{file, lasting};
use crate::{daemon, residue};

/// How long a phase that runs may take to end before its agent is killed.
const AGENT_PATIENCE: Duration = Duration::from_secs(10);

/// Makes the state directory ours: from now on `leave` removes it.
///
/// # Errors
/// When it can't be made or its journal is damaged.
pub fn adopt_state_dir(layout: &Layout) -> Result<(), PhaseError> {
    let directory = layout.state_dir();
    std::fs::create_dir_all(directory).map_err(|error| file("create", directory, &error))?;
    let mut journal = Journal::open(&layout.host_changes()).map_err(|error| lasting(&error))?;
    journal.own_tree(directory).map_err(|error| lasting(&error))
}

/// Leaves without asking the cluster: ends the agent, stops the planet, reverts
/// the host. `purge` also removes data in volumes that we created.
///
/// # Errors
/// When the planet doesn't stop or the journal can't be read.
pub fn leave(layout: &Layout, purge: bool, sink: &dyn Sink) -> Result<Report, PhaseError> {
    end_agent(&layout.agent_lock())?;
    sink.step("Stopping services and pods");
    daemon::stop(layout)?;
    sink.step("Removing interfaces and packet filter tables");
    if let Some(rootfs) = daemon::rootfs(layout) {
        residue::remove(&rootfs, sink);
    }
    sink.step("Reverting changes to the host");
    let mut journal = Journal::open(&layout.host_changes()).map_err(|error| lasting(&error))?;
    let own = Change::OwnedTree { path: layout.state_dir().to_owned() };
    if !journal.changes().any(|change| *change == own) {
        return Err(PhaseError::lasting(format!(
            "{} was not made by gravity; look at it, then remove it by hand",
            layout.state_dir().display()
        )));
    }
    journal.undo(purge).map_err(|error| lasting(&error))
}

/// Waits for the agent's end; kills one that goes on. Its phases may end
/// anywhere: the journal of host changes knows what they did.
fn end_agent(lock: &Path) -> Result<(), PhaseError> {
    let until = Instant::now() + AGENT_PATIENCE;
    let mut killed = false;
    loop {
        match host::lock::Lock::acquire(lock) {
            Ok(_) => return Ok(()),
            Err(host::lock::LockError::Busy { pid: Some(pid), .. }) if !killed && Instant::now() > until => {
                let pid = i32::try_from(pid).unwrap_or_default();
                // It may have ended meanwhile.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
                killed = true;
            }
            Err(host::lock::LockError::Busy { .. }) => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(lasting(&error)),
        }
    }
}
