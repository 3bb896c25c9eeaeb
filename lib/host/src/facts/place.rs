//! A path of the host, as it is now.
//!
//! In: a path that need not exist. Out: what is there, and what the filesystem
//! is like that holds it or would. Nothing is written.

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use super::Space;
use crate::mounts::{self, Mount};

/// A path of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Place {
    /// What is there; `None` for nothing.
    pub kind: Option<Kind>,
    /// A symbolic link is there, wherever it leads.
    pub is_link: bool,
    /// Number of the device that holds it or would.
    pub device: Option<u64>,
    /// Room there; `None` where it is unknown.
    pub space: Option<Space>,
    /// Why the room is unknown.
    pub error: String,
    /// Options of the mount it lies on.
    pub mount_options: Vec<String>,
    /// Whether directories there say what their entries are. Overlays need it;
    /// XFS made with `ftype=0` hasn't it.
    pub has_entry_types: Option<bool>,
    /// The first symbolic link on the way, itself included.
    pub link: Option<PathBuf>,
    /// Directories on the way, itself included, that others than the owner
    /// can't enter.
    pub closed: Vec<PathBuf>,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file.
    File,
    /// A device with bytes one after the other.
    CharacterDevice,
    /// A device with blocks.
    BlockDevice,
    /// Something else.
    Other,
}

impl Place {
    /// Looks at a path.
    pub fn look(path: &Path) -> Self {
        let all = mounts::list().unwrap_or_default();
        let space = super::space_among(path, &all);
        let mut place = Self {
            kind: kind(path),
            is_link: is_link(path),
            link: link(path),
            closed: closed(path),
            ..Self::default()
        };
        match space {
            Ok(space) => {
                let at = &space.measured_at;
                place.device = at.metadata().ok().map(|metadata| metadata.dev());
                place.mount_options = mounts::holding(&all, at).map(options).unwrap_or_default();
                place.has_entry_types = entry_types(at);
                place.space = Some(space);
            }
            Err(error) => place.error = error.to_string(),
        }
        place
    }

    /// Whether there is anything.
    pub fn exists(&self) -> bool {
        self.kind.is_some()
    }

    /// Whether the mount has an option, such as `noexec`.
    pub fn has_option(&self, name: &str) -> bool {
        self.mount_options.iter().any(|option| option == name)
    }

    /// Whether there is a device.
    pub fn is_device(&self) -> bool {
        matches!(self.kind, Some(Kind::CharacterDevice | Kind::BlockDevice))
    }
}

fn kind(path: &Path) -> Option<Kind> {
    use std::os::unix::fs::FileTypeExt;
    let kind = path.metadata().ok()?.file_type();
    Some(if kind.is_dir() {
        Kind::Directory
    } else if kind.is_file() {
        Kind::File
    } else if kind.is_char_device() {
        Kind::CharacterDevice
    } else if kind.is_block_device() {
        Kind::BlockDevice
    } else {
        Kind::Other
    })
}

fn options(mount: &Mount) -> Vec<String> {
    mount.options.split(',').map(str::to_owned).collect()
}

/// From the root down to the path itself.
fn downwards(path: &Path) -> Vec<&Path> {
    let mut way: Vec<_> = path.ancestors().collect();
    way.reverse();
    way
}

fn is_link(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|metadata| metadata.is_symlink())
}

fn link(path: &Path) -> Option<PathBuf> {
    downwards(path)
        .into_iter()
        .find(|path| is_link(path))
        .map(Path::to_owned)
}

fn closed(path: &Path) -> Vec<PathBuf> {
    let is_closed = |path: &&Path| {
        path.metadata()
            .is_ok_and(|metadata| metadata.is_dir() && metadata.permissions().mode() & 0o001 == 0)
    };
    downwards(path)
        .into_iter()
        .filter(is_closed)
        .map(Path::to_owned)
        .collect()
}

/// Whether entries of a directory have types. Every directory has the entry
/// `.`, so an empty one will do.
fn entry_types(directory: &Path) -> Option<bool> {
    let directory = match directory.is_dir() {
        true => directory,
        false => directory.parent()?,
    };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut directory = Dir::open(directory, flags, Mode::empty()).ok()?;
    let entry = directory.iter().next()?.ok()?;
    Some(entry.file_type().is_some())
}

/// Paths that a shell pattern means; at most `limit` of them, sorted.
///
/// # Errors
/// When the pattern is none, or more paths match.
pub fn matches(pattern: &str, limit: usize) -> Result<Vec<PathBuf>, std::io::Error> {
    let bad = |message: String| std::io::Error::new(ErrorKind::InvalidInput, message);
    let found = glob::glob(pattern).map_err(|error| bad(error.to_string()))?;
    // What can't be read isn't there for us either.
    let found: Vec<_> = found.flatten().take(limit + 1).collect();
    match found.len() > limit {
        true => Err(bad(format!("more than {limit} paths match"))),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_is_looked_at_and_its_way() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let closed = root.join("closed");
        std::fs::create_dir(&closed).unwrap();
        std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o744)).unwrap();
        symlink(&closed, root.join("link")).unwrap();
        let place = Place::look(&root.join("link/new"));
        assert!(!place.exists() && place.space.is_some());
        assert_eq!(place.link, Some(root.join("link")));
        assert!(place.closed.contains(&root.join("link")));
        assert_eq!(place.has_entry_types, Some(true));
        assert!(place.has_option("rw") && place.device.is_some());
        let null = Place::look(Path::new("/dev/null"));
        assert!(null.is_device() && null.link.is_none() && !null.is_link);
        symlink("/nonexistent", root.join("dangling")).unwrap();
        let dangling = Place::look(&root.join("dangling"));
        assert!(dangling.is_link && !dangling.exists());
        assert!(!Place::look(&root.join("link/new")).is_link);
    }

    #[test]
    fn patterns_mean_paths_and_have_a_limit() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["dir-001", "dir-002", "other"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let pattern = directory.path().join("dir-???");
        let pattern = pattern.to_str().unwrap();
        assert_eq!(matches(pattern, 2).unwrap().len(), 2);
        assert!(matches(pattern, 1).is_err());
        assert!(matches("/x/[", 1).is_err());
    }
}
