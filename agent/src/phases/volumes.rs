//! Creates the directories that the application asks for.

use std::os::unix::fs::{PermissionsExt, chown};

use host::changes::Change;
use operation::PhaseError;
use spec::phase::{Volume, Volumes};

use crate::Node;
use crate::node::{file, lasting};

pub(crate) fn execute(node: &Node, phase: &Volumes) -> Result<(), PhaseError> {
    phase
        .volumes
        .iter()
        .try_for_each(|volume| make(node, volume))
}

/// A directory that exists keeps its owner and mode: it is the customer's.
fn make(node: &Node, volume: &Volume) -> Result<(), PhaseError> {
    let path = &volume.path;
    let made = Change::Directory {
        path: path.clone(),
        parent: false,
    };
    // One of ours may have been made without its owner, by an agent that was
    // killed then.
    let ours = node.changes().changes().any(|change| *change == made);
    if path.exists() && !ours {
        return Ok(());
    }
    if !volume.create {
        return Err(PhaseError::lasting(format!(
            "volume {} does not exist; create it or mount a disk there, then run `gravity resume`",
            path.display()
        )));
    }
    node.changes()
        .create_dir(path, volume.mode)
        .map_err(|error| lasting(&error))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(volume.mode))
        .map_err(|error| file("set the mode of", path, &error))?;
    chown(path, Some(volume.uid), Some(volume.gid)).map_err(|error| file("give away", path, &error))
}
