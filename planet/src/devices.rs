//! Devices that the configuration names: with an owner, a mode and permissions
//! of their own.
//!
//! In: shell patterns. Out: in the container a node of its own over each device
//! that matches at its start; the host's node is not touched. Without the
//! permission `r`, `w` or `m` the kernel refuses it to all in the container.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, major, minor, mknod};

use crate::config::Device;
use crate::error::{Context, Error, Result};
use crate::paths;

/// Where the nodes are made; `/run` has no devices.
const NODES: &str = "/run/planet/devices";

/// A device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) block: bool,
    pub(crate) number: u64,
    pub(crate) wanted: Device,
}

impl Found {
    /// What the container may not do with it: of `r`, `w` and `m`.
    pub(crate) fn denied(&self) -> String {
        let wanted = &self.wanted.permissions;
        "rwm".chars().filter(|one| !wanted.contains(*one)).collect()
    }

    /// Its name for the devices controller, such as `c 1:3`.
    pub(crate) fn name(&self) -> String {
        let kind = if self.block { 'b' } else { 'c' };
        format!("{kind} {}:{}", major(self.number), minor(self.number))
    }
}

/// Finds what the patterns match now. A later one wins over an earlier one.
pub(crate) fn find(devices: &[Device]) -> Result<Vec<Found>> {
    let mut found: Vec<Found> = Vec::new();
    for device in devices {
        let matches = paths::matches(&device.path).map_err(Error::Start)?;
        let mut none = true;
        for path in matches {
            // Links and directories lead to devices that have paths of their own.
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            let kind = metadata.file_type();
            if !kind.is_char_device() && !kind.is_block_device() {
                continue;
            }
            none = false;
            found.retain(|other| other.path != path);
            found.push(Found {
                path,
                block: kind.is_block_device(),
                number: metadata.rdev(),
                wanted: device.clone(),
            });
        }
        if none {
            tracing::warn!(path = device.path, "no device matches");
        }
    }
    Ok(found)
}

/// Makes the nodes, inside the container.
pub(crate) fn make(devices: &[Found]) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let nodes = Path::new(NODES);
    fs::create_dir_all(nodes).at("create", nodes)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), nodes, Some("tmpfs"), flags, Some("mode=700")).at("mount", nodes)?;
    for (index, device) in devices.iter().enumerate() {
        let (path, wanted) = (&device.path, &device.wanted);
        let node = nodes.join(index.to_string());
        let kind = if device.block {
            SFlag::S_IFBLK
        } else {
            SFlag::S_IFCHR
        };
        mknod(&node, kind, Mode::empty(), device.number).at("make device", &node)?;
        chown(&node, Some(wanted.uid), Some(wanted.gid)).at("change the owner of", &node)?;
        fs::set_permissions(&node, fs::Permissions::from_mode(wanted.mode))
            .at("change the mode of", &node)?;
        if fs::symlink_metadata(path).is_err() {
            let parent = path.parent().unwrap_or(path);
            fs::create_dir_all(parent).at("create", parent)?;
            fs::File::create(path).at("create", path)?;
        }
        mount(
            Some(&node),
            path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .at("mount device", path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str, permissions: &str) -> Device {
        Device {
            path: path.into(),
            permissions: permissions.into(),
            mode: 0o666,
            uid: 0,
            gid: 0,
        }
    }

    #[test]
    fn devices_are_found_by_pattern_and_nothing_else_is() {
        let found = find(&[
            device("/dev/nul?", "rw"),
            device("/dev/no-such-*", "rw"),
            // A directory and a link.
            device("/dev/pts", "rw"),
            device("/dev/fd", "rw"),
        ])
        .unwrap();
        let [null] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(null.path, Path::new("/dev/null"));
        assert_eq!((null.name().as_str(), null.block), ("c 1:3", false));
        assert_eq!(null.denied(), "m");
    }

    #[test]
    fn the_last_entry_of_a_device_wins() {
        let found = find(&[device("/dev/*ull", "rwm"), device("/dev/null", "r")]).unwrap();
        let null: Vec<_> = found
            .iter()
            .filter(|one| one.path == Path::new("/dev/null"))
            .collect();
        assert_eq!(null.len(), 1);
        assert_eq!(null[0].denied(), "wm");
    }
}
