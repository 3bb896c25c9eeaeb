//! Creates the service user and the directories of its services.

use std::os::unix::fs::chown;

use operation::PhaseError;
use spec::phase::Bootstrap;

use crate::Node;
use crate::node::{file, lasting};

/// Directories of the state directory, with their modes. The container's own
/// services make what lies below them.
pub(super) const DIRECTORIES: &[(&str, u32)] = &[
    ("bin", 0o755),
    ("store/blobs/sha256", 0o755),
    ("image", 0o755),
    ("planet/rootfs", 0o755),
    ("planet/overlay", 0o755),
    ("planet/run", 0o755),
    ("resources", 0o755),
    ("registry", 0o755),
    ("log", 0o755),
    ("etcd", 0o700),
    ("etcd-snapshots", 0o700),
    ("containerd", 0o711),
    ("kubelet", 0o755),
    ("secrets", 0o700),
    ("secrets/planet", 0o755),
];

/// Directories that the service user writes to.
const OWNED: &[&str] = &["etcd", "log"];

pub(crate) fn execute(node: &Node, phase: &Bootstrap) -> Result<(), PhaseError> {
    let user = &phase.user;
    node.changes()
        .create_service_user(&user.name, user.uid, user.gid)
        .map_err(lasting)?;
    for (name, mode) in DIRECTORIES {
        let path = node.layout().state_dir().join(name);
        std::fs::create_dir_all(&path).map_err(file("create", &path))?;
        set_mode(&path, *mode)?;
    }
    for name in OWNED {
        let path = node.layout().service(name);
        chown(&path, Some(user.uid), Some(user.gid)).map_err(file("give away", &path))?;
    }
    Ok(())
}

fn set_mode(path: &std::path::Path, mode: u32) -> Result<(), PhaseError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(file("set the mode of", path))
}
