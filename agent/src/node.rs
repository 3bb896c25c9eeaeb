//! The node that phases are executed on.
//!
//! In: the state directory. Out: where things are, the journal of changes to
//! the host, a connection to the planet and to Kubernetes.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use host::changes::Journal;
use operation::PhaseError;
use spec::layout::Layout;

/// A node and the journal of what was changed on it.
#[derive(Debug)]
pub struct Node {
    layout: Layout,
    changes: Mutex<Journal>,
}

impl Node {
    /// Opens the node whose state is in `layout`.
    ///
    /// # Errors
    /// When the journal of changes is damaged or can't be written.
    pub fn open(layout: Layout) -> Result<Self, PhaseError> {
        let changes = Journal::open(&layout.host_changes())
            .map_err(|error| PhaseError::lasting(crate::text(&error)))?;
        Ok(Self {
            layout,
            changes: Mutex::new(changes),
        })
    }

    /// Where things are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The journal of changes to the host; whatever touches the host goes
    /// through it.
    pub fn changes(&self) -> MutexGuard<'_, Journal> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects to Kubernetes as administrator.
    pub(crate) async fn kubernetes(&self) -> Result<cluster::Client, PhaseError> {
        let path = self.layout.admin_kubeconfig();
        cluster::Client::connect(&path)
            .await
            .map_err(|error| transient(&error))
    }

    /// The planet's control socket.
    pub(crate) fn planet(&self) -> planet::client::Client {
        planet::client::Client::new(&self.layout.planet_run().join("planet.sock"))
    }
}

/// A failure that trying again may mend.
pub(crate) fn transient(error: &(dyn std::error::Error + 'static)) -> PhaseError {
    PhaseError::transient(crate::text(error))
}

/// A failure that stays until somebody does something.
pub(crate) fn lasting(error: &(dyn std::error::Error + 'static)) -> PhaseError {
    PhaseError::lasting(crate::text(error))
}

/// A failure to do something with a file.
pub(crate) fn file(what: &str, path: &Path, error: &std::io::Error) -> PhaseError {
    PhaseError::lasting(format!("{what} {}: {error}", path.display()))
}
