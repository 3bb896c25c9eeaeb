//! A process that is known by more than its id.
//!
//! In: a process id. Out: an identity that a later process with the same id
//! doesn't have, to be written down and found again.

use std::os::fd::OwnedFd;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::sys;

/// A process and when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Process id, as seen by who wrote it down.
    pub(crate) pid: i32,
    /// Start, in clock ticks since the machine started.
    pub(crate) start_ticks: u64,
}

impl ProcessId {
    /// Identity of a running process.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = procfs::process::Process::new(pid).ok()?.stat().ok()?;
        // A zombie has ended: nothing of it is left to use.
        (stat.state != 'Z' && stat.state != 'X').then_some(Self {
            pid,
            start_ticks: stat.starttime,
        })
    }

    /// Opens the process, if it still is the same one.
    pub(crate) fn open(self) -> Option<OwnedFd> {
        let fd = sys::pidfd_open(Pid::from_raw(self.pid)).ok()?;
        // Only now: the descriptor pins the process that the check is about.
        (Self::of(self.pid)? == self).then_some(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_again_and_a_later_one_is_not_taken_for_it() {
        let me = ProcessId::of(std::process::id().cast_signed()).unwrap();
        assert!(me.open().is_some());
        let other = ProcessId {
            start_ticks: me.start_ticks + 1,
            ..me
        };
        assert!(other.open().is_none());
    }
}
