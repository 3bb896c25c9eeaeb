//! A path of the host, as it is now.
//!
//! In: a path that need not exist. Out: what is there, and what the filesystem
//! is like that holds it or would. Nothing is written.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, glob_with};
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
    /// Directories on the way, itself included, in which others than root can put
    /// something else in the place of what comes next.
    pub open: Vec<PathBuf>,
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
            closed: directories(path, |_, metadata| metadata.mode() & 0o001 == 0),
            open: directories(path, |at, metadata| {
                // Nobody replaces what is root's in a sticky directory, but all can add
                // to it: at the end of the way that is as bad.
                let sticky = if at == path { 0 } else { STICKY };
                is_open(metadata.uid(), metadata.gid(), metadata.mode(), sticky)
            }),
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

/// Those directories on the way that are so.
fn directories(path: &Path, are: impl Fn(&Path, &Metadata) -> bool) -> Vec<PathBuf> {
    let is = |path: &&Path| {
        path.metadata()
            .is_ok_and(|metadata| metadata.is_dir() && are(path, &metadata))
    };
    downwards(path)
        .into_iter()
        .filter(is)
        .map(Path::to_owned)
        .collect()
}

/// In a directory with this bit only owners remove and rename.
const STICKY: u32 = 0o1000;

/// Whether others than root can replace what is in a directory, unless it has the bit
/// that guards it.
fn is_open(owner: u32, group: u32, mode: u32, guard: u32) -> bool {
    // Root's group is as good as root.
    let others = if group == 0 { 0o002 } else { 0o022 };
    owner != 0 || (mode & others != 0 && mode & guard == 0)
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

/// More matches than this are a mistake in the pattern.
const MAX_MATCHES: usize = 4096;

/// Paths that a shell pattern means now, sorted: `*`, `?` and `[...]` match within one
/// component and never a leading dot. None is not an error; what can't be read is left
/// out.
///
/// # Errors
/// A text, when it is no pattern or thousands of paths match.
pub fn matches(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let options = MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let found = glob_with(pattern, options).map_err(|error| format!("{pattern}: {error}"))?;
    let found: Vec<_> = found.flatten().take(MAX_MATCHES + 1).collect();
    match found.len() > MAX_MATCHES {
        true => Err(format!("{pattern} matches more than {MAX_MATCHES} paths")),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

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
    fn only_root_replaces_what_is_on_the_way() {
        for (owner, group, mode, open) in [
            (0, 0, 0o755, false),
            (0, 0, 0o1777, false),
            (0, 0, 0o777, true),
            (0, 0, 0o775, false),
            (0, 50, 0o775, true),
            (1000, 0, 0o755, true),
            (1000, 0, 0o1777, true),
        ] {
            assert_eq!(
                is_open(owner, group, mode, STICKY),
                open,
                "{owner} {group} {mode:o}"
            );
        }
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        set(root, 0o777);
        let state = root.join("gravity");
        assert!(Place::look(&state).open.contains(&root.to_owned()));
        // Whoever runs this, all can add something there.
        std::fs::create_dir(&state).unwrap();
        set(&state, 0o1777);
        assert!(Place::look(&state).open.contains(&state));
    }

    #[test]
    fn patterns_mean_what_they_do_in_a_shell() {
        let directory = tempfile::tempdir().unwrap();
        // The directory's own name begins with a dot: what is spelled out matches.
        for name in ["dir-002", "dir-001", "other", ".snapshot"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let find = |pattern: &str| {
            let pattern = directory.path().join(pattern);
            let found = matches(pattern.to_str().unwrap()).unwrap();
            let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            found.iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(find("dir-???"), ["dir-001", "dir-002"]);
        assert_eq!(find("*"), ["dir-001", "dir-002", "other"]);
        assert_eq!(find("none-*"), Vec::<String>::new());
        assert!(matches("/x/[").is_err());
    }
}
