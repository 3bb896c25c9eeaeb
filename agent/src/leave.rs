//! Takes everything of ours off the node.
//!
//! In: the state directory. Out: a report of what was removed and what was
//! left. Goes by the journal of host changes, so a half-finished install is
//! taken back as well as a whole one. Can be repeated.

use event::Sink;
use host::changes::{Journal, Report};
use operation::PhaseError;
use spec::layout::Layout;

use crate::node::lasting;
use crate::{daemon, residue};

/// Leaves without asking the cluster: stops the planet, reverts the host.
/// `purge` also removes data in volumes that we created.
///
/// # Errors
/// When the planet doesn't stop or the journal can't be read.
pub fn leave(layout: &Layout, purge: bool, sink: &dyn Sink) -> Result<Report, PhaseError> {
    sink.step("Stopping services and pods");
    daemon::stop(layout)?;
    sink.step("Removing interfaces and packet filter tables");
    if let Some(rootfs) = daemon::rootfs(layout) {
        residue::remove(&rootfs, sink);
    }
    sink.step("Reverting changes to the host");
    let mut journal = Journal::open(&layout.host_changes()).map_err(|error| lasting(&error))?;
    journal.undo(purge).map_err(|error| lasting(&error))
}
