//! Takes everything of ours off the node.
//!
//! In: the state directory. Out: a report of what was removed and what was
//! left. Goes by the journal of host changes, so a half-finished install is
//! taken back as well as a whole one. Can be repeated.

use std::path::Path;
use std::time::Duration;

use event::Sink;
use host::changes::{Change, Journal, Report};
use host::lock::{Lock, LockError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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
    std::fs::create_dir_all(directory).map_err(file("create", directory))?;
    let mut journal = Journal::open(&layout.host_changes()).map_err(lasting)?;
    journal.own_tree(directory).map_err(lasting)
}

/// Leaves without asking the cluster: ends the agent, stops the planet, reverts
/// the host. `purge` also removes data in volumes that we created.
///
/// # Errors
/// When the planet doesn't stop or the journal can't be read.
pub fn leave(layout: &Layout, purge: bool, sink: &dyn Sink) -> Result<Report, PhaseError> {
    let foreign = || {
        PhaseError::lasting(format!(
            "{} was not made by gravity; look at it, then remove it by hand",
            layout.state_dir().display()
        ))
    };
    // Opening the journal would make one.
    if !layout.host_changes().exists() {
        return Err(foreign());
    }
    stop_agent(layout)?;
    let mut journal = Journal::open(&layout.host_changes()).map_err(lasting)?;
    let own = Change::OwnedTree {
        path: layout.state_dir().to_owned(),
    };
    if !journal.changes().any(|change| *change == own) {
        return Err(foreign());
    }
    sink.step("Stopping services and pods");
    daemon::stop(layout)?;
    sink.step("Removing interfaces and packet filter tables");
    let network = daemon::rootfs(layout).map(|rootfs| residue::remove(&rootfs));
    sink.step("Reverting changes to the host");
    let reverted = journal.undo(purge);
    let mut report = network.unwrap_or_default();
    report.removed.extend(reverted.removed);
    report.restored.extend(reverted.restored);
    report.left.extend(reverted.left);
    Ok(report)
}

/// Ends the node's agent, with what it executes.
///
/// # Errors
/// When it doesn't end.
pub fn stop_agent(layout: &Layout) -> Result<(), PhaseError> {
    end_agent(&layout.agent_lock(), AGENT_PATIENCE)
}

/// Has the agent end once nothing runs; kills one that goes on. Its phases may
/// end anywhere: the journal of host changes knows what they did.
fn end_agent(lock: &Path, patience: Duration) -> Result<(), PhaseError> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        match Lock::acquire(lock) {
            Err(LockError::Busy { pid: Some(pid), .. }) => {
                let pid = i32::try_from(pid).unwrap_or_default();
                // Zero and negative numbers are groups. It may have ended meanwhile.
                if pid > 0 {
                    let _ = kill(Pid::from_raw(pid), signal);
                }
            }
            Err(LockError::Busy { .. }) => {}
            Err(error) => return Err(lasting(error)),
            Ok(_) => return Ok(()),
        }
        match Lock::wait(lock, patience) {
            Err(LockError::Busy { .. }) => {}
            Err(error) => return Err(lasting(error)),
            Ok(_) => return Ok(()),
        }
    }
    Err(PhaseError::lasting(format!(
        "the agent that holds {} does not end",
        lock.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_goes_on_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.lock");
        // It holds the lock of a shell that doesn't care about SIGTERM.
        let script = "trap '' TERM; exec 9>\"$0\"; flock 9; echo $$ >\"$0\"; echo ready; while :; do sleep 0.05 9>&-; done";
        let mut child = std::process::Command::new("sh")
            .args(["-c", script])
            .arg(&path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        end_agent(&path, Duration::from_millis(300)).unwrap();
        assert!(!child.wait().unwrap().success());
        end_agent(&path, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_directory_that_is_not_ours_is_left() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("data")).unwrap();
        let layout = Layout::new(directory.path());
        let error = leave(&layout, true, &event::Discard).unwrap_err();
        assert!(
            error.message.contains("was not made by gravity"),
            "{}",
            error.message
        );
        let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
