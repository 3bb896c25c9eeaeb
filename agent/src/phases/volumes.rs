//! Makes the directories that the application asks for, and gives volumes the
//! owner and mode that it asks for.

use std::path::Path;

use event::Sink;
use host::changes::{Attributes, Change};
use operation::PhaseError;
use spec::ServiceUser;
use spec::phase::{Volume, Volumes};

use crate::Node;
use crate::node::{file, lasting};

/// Mode of a directory for which none is given.
const MODE: u32 = 0o755;

pub(crate) fn execute(node: &Node, phase: &Volumes, sink: &dyn Sink) -> Result<(), PhaseError> {
    phase
        .volumes
        .iter()
        .try_for_each(|volume| match volume.pattern {
            true => existing(node, volume, sink),
            false => make(node, volume, &phase.user),
        })
}

/// What matches a pattern. It is looked for again at each start of the planet.
fn existing(node: &Node, volume: &Volume, sink: &dyn Sink) -> Result<(), PhaseError> {
    let pattern = volume.path.to_string_lossy();
    let found = planet::paths::matches(&pattern).map_err(PhaseError::lasting)?;
    if found.is_empty() && !volume.skip_if_missing {
        sink.warning(&format!(
            "Nothing on this node matches the volume {pattern}; what does later is mounted at \
             the next start of the planet"
        ));
    }
    found.iter().try_for_each(|path| give(node, path, volume))
}

fn make(node: &Node, volume: &Volume, user: &ServiceUser) -> Result<(), PhaseError> {
    let path = &volume.path;
    let made = Change::Directory {
        path: path.clone(),
        parent: false,
    };
    // One of ours may have been made without its owner, by an agent that was
    // killed then.
    let ours = node.changes().changes().any(|change| *change == made);
    if path.exists() && !ours {
        return give(node, path, volume);
    }
    if !volume.create && volume.skip_if_missing {
        return Ok(());
    }
    if !volume.create {
        return Err(PhaseError::lasting(format!(
            "volume {} does not exist; create it or mount a disk there, then run `gravity resume`",
            path.display()
        )));
    }
    let mode = volume.mode.unwrap_or(MODE);
    node.changes().create_dir(path, mode).map_err(lasting)?;
    let wanted = Attributes {
        uid: volume.uid.unwrap_or(user.uid),
        gid: volume.gid.unwrap_or(user.gid),
        mode,
    };
    wanted
        .set(path)
        .map_err(file("set the owner and mode of", path))
}

/// Gives what existed before what the volume asks for. Without a word of the
/// manifest it stays the customer's.
fn give(node: &Node, path: &Path, volume: &Volume) -> Result<(), PhaseError> {
    let has = Attributes::of(path).map_err(file("look at", path))?;
    let wanted = Attributes {
        uid: volume.uid.unwrap_or(has.uid),
        gid: volume.gid.unwrap_or(has.gid),
        mode: volume.mode.unwrap_or(has.mode),
    };
    node.changes().set_attributes(path, wanted).map_err(lasting)
}
