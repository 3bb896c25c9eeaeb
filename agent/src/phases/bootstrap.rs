//! Creates the service user and the directories of its services.

use std::os::unix::fs::chown;

use operation::PhaseError;
use spec::ServiceUser;
use spec::layout::Layout;
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

pub(crate) fn execute(node: &Node, phase: &Bootstrap) -> Result<(), PhaseError> {
    let user = &phase.user;
    node.changes()
        .create_service_user(&user.name, user.uid, user.gid)
        .map_err(lasting)?;
    directories(node.layout(), user)
}

/// Makes the directories: root's, but for the data of etcd. Root works in the others by
/// path, which nobody else may lead elsewhere.
fn directories(layout: &Layout, user: &ServiceUser) -> Result<(), PhaseError> {
    for (name, mode) in DIRECTORIES {
        let path = layout.state_dir().join(name);
        std::fs::create_dir_all(&path).map_err(file("create", &path))?;
        set_mode(&path, *mode)?;
    }
    let etcd = layout.service("etcd");
    chown(&etcd, Some(user.uid), Some(user.gid)).map_err(file("give away", &etcd))
}

fn set_mode(path: &std::path::Path, mode: u32) -> Result<(), PhaseError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(file("set the mode of", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_service_user_owns_its_data_and_root_all_else() {
        let own = nix::unistd::geteuid();
        let (uid, gid) = match own.is_root() {
            true => (12345, 12345),
            // It can give nothing away.
            false => (own.as_raw(), nix::unistd::getegid().as_raw()),
        };
        let user = ServiceUser {
            name: "planet".into(),
            uid,
            gid,
        };
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        for _ in 0..2 {
            directories(&layout, &user).unwrap();
        }
        for (name, mode) in DIRECTORIES {
            let metadata = layout.state_dir().join(name).metadata().unwrap();
            let owner = if *name == "etcd" { uid } else { own.as_raw() };
            assert_eq!(metadata.uid(), owner, "{name}");
            assert_eq!(metadata.mode() & 0o7777, *mode, "{name}");
        }
    }
}
