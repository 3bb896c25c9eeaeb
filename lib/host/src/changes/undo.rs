//! Taking changes back, the last one first.
//!
//! In: the journal. Out: a report of what was removed, restored and left. A
//! change is taken back only where the host still is as the change made it.
//! Data is removed only below what is ours entirely, never on a filesystem that
//! is mounted there, and in directories for others only when told to.

use std::fmt;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Attributes, Change, Daemon, Journal, Live, MAX_PREVIOUS, Previous, Record, remove_if_there,
    replace_link, sha256, sync_units,
};
use crate::causes::causes;
use crate::mounts::{self, Mount};
use crate::{atomic, bounded, sysctl};

/// What became of the changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What is gone.
    pub removed: Vec<String>,
    /// What is as it was before.
    pub restored: Vec<String>,
    /// What is still there.
    pub left: Vec<Left>,
}

/// Something that is still on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// What it is.
    pub what: String,
    /// Why it was left.
    pub why: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let removed = self.removed.iter().map(|what| format!("removed {what}"));
        let restored = self.restored.iter().map(|what| format!("restored {what}"));
        let left = self
            .left
            .iter()
            .map(|left| format!("left {}: {}", left.what, left.why));
        let lines: Vec<String> = removed.chain(restored).chain(left).collect();
        match lines.is_empty() {
            true => f.write_str("nothing was to be undone"),
            false => f.write_str(&lines.join("\n")),
        }
    }
}

/// What became of one change.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Removed(String),
    Restored(String),
    /// It was as before already.
    Nothing,
}

/// Why a change was left, in words.
type Undone = Result<Outcome, String>;

impl Journal {
    /// Takes all changes back, the last one first. `purge` also removes the
    /// data in directories that were made for others. What is left is tried
    /// again by the next call, while there is a journal: it goes with the
    /// [`Change::OwnedTree`] that holds it.
    pub fn undo(&mut self, purge: bool) -> Report {
        let (ours, others): (Vec<_>, Vec<_>) = self
            .live
            .iter()
            .rev()
            .cloned()
            .partition(|live| self.holds_journal(&live.change));
        // What holds the journal goes last: until then it says what is left.
        self.undo_all(others.into_iter().chain(ours), purge)
    }

    /// Takes back what was changed within a scope (see [`Journal::within`]), the
    /// last change first. Data in directories that were made for others stays.
    pub fn undo_scope(&mut self, scope: &str) -> Report {
        let within: Vec<_> = self
            .live
            .iter()
            .rev()
            .filter(|live| live.scope.as_deref() == Some(scope))
            .cloned()
            .collect();
        self.undo_all(within, false)
    }

    fn undo_all(&mut self, changes: impl IntoIterator<Item = Live>, purge: bool) -> Report {
        let mut report = Report::default();
        for Live {
            sequence, change, ..
        } in changes
        {
            let last = self.holds_journal(&change);
            match self.take_back(&change, purge, &mut report.left) {
                Ok(outcome) => {
                    match outcome {
                        Outcome::Removed(what) => report.removed.push(what),
                        Outcome::Restored(what) => report.restored.push(what),
                        Outcome::Nothing => {}
                    }
                    self.live.retain(|live| live.sequence != sequence);
                    // A full disk, or one that fails, must not keep anyone from
                    // leaving; the change would be found undone the next time.
                    if !last && self.sync_undone(&change).is_ok() {
                        drop(self.log.append(&Record::Undone { sequence }));
                    }
                }
                Err(why) => {
                    let left = Left {
                        what: change.to_string(),
                        why,
                    };
                    if !report.left.contains(&left) {
                        report.left.push(left);
                    }
                }
            }
        }
        report
    }

    /// Has it on disk that a change was undone. That may be another disk than the
    /// journal's: after a loss of power what comes back must still be recorded.
    fn sync_undone(&self, change: &Change) -> Result<(), Error> {
        match change {
            Change::Directory { path, .. }
            | Change::File { path, .. }
            | Change::Symlink { path, .. } => {
                // The directory it was in may be gone as well.
                let above = path.ancestors().skip(1).find(|above| above.is_dir());
                above.map_or(Ok(()), |above| self.system.sync(above))
            }
            Change::UnitEnabled { .. } => sync_units(),
            _ => Ok(()),
        }
    }

    fn holds_journal(&self, change: &Change) -> bool {
        matches!(change, Change::OwnedTree { path } if self.path.starts_with(path))
    }

    fn take_back(&self, change: &Change, purge: bool, left: &mut Vec<Left>) -> Undone {
        let named = change.to_string();
        let removed = |was_there| match was_there {
            true => Outcome::Removed(named.clone()),
            false => Outcome::Nothing,
        };
        match change {
            Change::OwnedTree { path } => self.remove_tree(path, left).map(removed),
            Change::Directory { path, parent } => {
                self.remove_directory(path, purge && !parent).map(removed)
            }
            Change::Attributes {
                path,
                attributes,
                previous,
            } => restore_attributes(path, *attributes, *previous),
            Change::File {
                path,
                written,
                previous,
            } => restore_file(path, written, previous.as_ref()),
            Change::Symlink {
                path,
                target,
                previous,
            } => restore_link(path, target, previous.as_deref()),
            Change::Group { name, gid } => match self.system.gid(name).map_err(chain)? {
                None => Ok(Outcome::Nothing),
                Some(found) if found != *gid => Err(format!("it has id {found} now, not {gid}")),
                Some(_) => self
                    .system
                    .delete_group(name)
                    .map(|()| removed(true))
                    .map_err(chain),
            },
            Change::User { name, uid } => match self.system.uid(name).map_err(chain)? {
                None => Ok(Outcome::Nothing),
                Some(found) if found != *uid => Err(format!("it has id {found} now, not {uid}")),
                Some(_) => self
                    .system
                    .delete_user(name)
                    .map(|()| removed(true))
                    .map_err(chain),
            },
            Change::Sysctl {
                name,
                value,
                previous,
            } => self.restore_sysctl(name, value, previous),
            Change::Module { .. } => Err("it stays loaded until the next boot".into()),
            Change::Unit { .. } => self
                .system
                .systemctl(&["daemon-reload"])
                .map(|()| Outcome::Nothing)
                .map_err(chain),
            Change::UnitEnabled { name } => self
                .system
                .systemctl(&["disable", "--now", name])
                .map(|()| Outcome::Nothing)
                .map_err(chain),
            Change::Configuration { daemon } => self
                .system
                .reload(*daemon)
                .map(|()| Outcome::Nothing)
                .map_err(chain),
            Change::Mount { target } => {
                let mounts = self.system.mounts().map_err(chain)?;
                let there = !mounts::below(&mounts, target).is_empty();
                self.system
                    .unmount(target, false)
                    .map(|()| removed(there))
                    .map_err(chain)
            }
            Change::Interface { name } => self
                .system
                .delete_interface(name)
                .map(removed)
                .map_err(chain),
            Change::Address { interface, address } => self
                .system
                .delete_address(interface, address)
                .map(removed)
                .map_err(chain),
            Change::Cgroup { path } => remove_cgroup(path).map(removed).map_err(chain),
        }
    }

    fn restore_sysctl(&self, name: &str, value: &str, previous: &str) -> Undone {
        let current = match self.system.sysctl(name) {
            Ok(current) => current,
            // Gone with its interface.
            Err(error) if error.is_missing() => return Ok(Outcome::Nothing),
            Err(error) => return Err(chain(error)),
        };
        if sysctl::same(&current, previous) {
            return Ok(Outcome::Nothing);
        }
        if !sysctl::same(&current, value) {
            return Err(format!(
                "it is `{current}` now, we had set `{value}`; it was `{previous}`"
            ));
        }
        self.system.set_sysctl(name, previous).map_err(chain)?;
        Ok(Outcome::Restored(format!(
            "kernel parameter {name} to `{previous}`"
        )))
    }

    /// Removes a directory that was made for others.
    fn remove_directory(&self, path: &Path, purge: bool) -> Result<bool, String> {
        let error = match std::fs::remove_dir(path) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => error,
        };
        let mounts = self.system.mounts().map_err(chain)?;
        if !mounts::below(&mounts, path).is_empty() {
            return Err("something is mounted there; unmount it and try again".into());
        }
        match error.kind() {
            ErrorKind::DirectoryNotEmpty if purge => {
                std::fs::remove_dir_all(path).map(|()| true).map_err(chain)
            }
            ErrorKind::DirectoryNotEmpty => Err("it holds data; `--purge` removes it".into()),
            _ => Err(chain(error)),
        }
    }

    /// Removes a tree that is ours entirely. What is mounted below is unmounted
    /// and never removed; the journal goes last, so that a removal that was cut
    /// short can go on.
    fn remove_tree(&self, path: &Path, left: &mut Vec<Left>) -> Result<bool, String> {
        if !path.exists() {
            return Ok(false);
        }
        let path = path.canonicalize().map_err(chain)?;
        let mounts = self.system.mounts().map_err(chain)?;
        let (own, below): (Vec<&Mount>, Vec<&Mount>) = mounts::below(&mounts, &path)
            .into_iter()
            .partition(|mount| mount.target == path);
        for mount in below {
            if mount.source.starts_with("/dev/") && mount.root == Path::new("/") {
                left.push(Left {
                    what: format!("filesystem {}", mount.source),
                    why: format!(
                        "it was mounted at {}: unmounted, its data kept",
                        mount.target.display()
                    ),
                });
            }
        }
        self.system.unmount(&path, true).map_err(chain)?;
        let journal = self
            .path
            .canonicalize()
            .unwrap_or_else(|_| self.path.clone());
        empty(&path, &journal).map_err(chain)?;
        if journal.starts_with(&path) {
            remove_with_parents(&journal, &path).map_err(chain)?;
        }
        match own.is_empty() {
            true => std::fs::remove_dir(&path).map_err(chain)?,
            false => left.push(Left {
                what: format!("directory {}", path.display()),
                why: "a filesystem is mounted there; it was emptied".into(),
            }),
        }
        Ok(true)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnedTree { path } | Self::Directory { path, .. } => {
                write!(f, "directory {}", path.display())
            }
            Self::Attributes { path, .. } => {
                write!(f, "owner and mode of {}", path.display())
            }
            Self::File { path, .. } => write!(f, "file {}", path.display()),
            Self::Symlink { path, .. } => write!(f, "link {}", path.display()),
            Self::Group { name, .. } => write!(f, "group {name}"),
            Self::User { name, .. } => write!(f, "user {name}"),
            Self::Sysctl { name, .. } => write!(f, "kernel parameter {name}"),
            Self::Module { name } => write!(f, "kernel module {name}"),
            Self::Unit { name } | Self::UnitEnabled { name } => write!(f, "systemd unit {name}"),
            Self::Configuration { daemon } => f.write_str(match daemon {
                Daemon::NetworkManager => "configuration of NetworkManager",
                Daemon::Firewalld => "configuration of firewalld",
            }),
            Self::Mount { target } => write!(f, "mount {}", target.display()),
            Self::Interface { name } => write!(f, "network interface {name}"),
            Self::Address { interface, address } => write!(f, "address {address} on {interface}"),
            Self::Cgroup { path } => write!(f, "control group {}", path.display()),
        }
    }
}

/// Why something is left.
fn chain(error: impl std::error::Error + 'static) -> String {
    causes(&error)
}

fn restore_attributes(path: &Path, written: Attributes, previous: Attributes) -> Undone {
    let current = match Attributes::of(path) {
        Ok(current) => current,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Outcome::Nothing),
        Err(error) => return Err(chain(error)),
    };
    if current == previous {
        return Ok(Outcome::Nothing);
    }
    // Killed after the owner was set, which clears some bits, the mode is as it
    // was.
    let modes = [written.mode, previous.mode, previous.mode & 0o1777];
    let owner = (current.uid, current.gid) == (written.uid, written.gid);
    if !owner || !modes.contains(&current.mode) {
        return Err("it was changed since".into());
    }
    previous.set(path).map_err(chain)?;
    Ok(Outcome::Restored(format!(
        "owner and mode of {}",
        path.display()
    )))
}

/// Removes what a process that was killed while it wrote has left beside `path`.
fn remove_unfinished(path: &Path) -> Result<(), String> {
    atomic::unfinished(path)
        .and_then(|new| remove_if_there(&new))
        .map_err(chain)
}

fn restore_file(path: &Path, written: &str, previous: Option<&Previous>) -> Undone {
    remove_unfinished(path)?;
    let named = format!("file {}", path.display());
    let current = match path.symlink_metadata() {
        Ok(metadata) if !metadata.is_file() => return Err("it is no plain file any more".into()),
        // A larger file than we keep is not ours.
        Ok(_) => match bounded::bytes(path, MAX_PREVIOUS.max(1 << 26)) {
            Ok(bytes) => Some(bytes),
            Err(error) => return Err(chain(error)),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(chain(error)),
    };
    match (current, previous) {
        (None, None) => Ok(Outcome::Nothing),
        (None, Some(_)) => Err("it was removed since; its former content is in the journal".into()),
        (Some(current), Some(previous)) if previous.is(&current) && sha256(&current) != written => {
            Ok(Outcome::Nothing)
        }
        (Some(current), _) if sha256(&current) != written => Err("it was changed since".into()),
        (Some(_), None) => {
            std::fs::remove_file(path).map_err(chain)?;
            Ok(Outcome::Removed(named))
        }
        (Some(_), Some(previous)) => {
            let bytes = previous.bytes().ok_or("its former content can't be read")?;
            let (uid, gid) = (previous.uid, previous.gid);
            atomic::write_owned(path, &bytes, previous.mode, uid, gid).map_err(chain)?;
            Ok(Outcome::Restored(named))
        }
    }
}

fn restore_link(path: &Path, target: &Path, previous: Option<&Path>) -> Undone {
    remove_unfinished(path)?;
    let named = format!("link {}", path.display());
    let current = match std::fs::read_link(path) {
        Ok(current) => Some(current),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            return Err("it is no link any more".into());
        }
        Err(error) => return Err(chain(error)),
    };
    if current.as_deref() == previous {
        return Ok(Outcome::Nothing);
    }
    match current {
        Some(current) if current == target => {}
        Some(current) => return Err(format!("it leads to {} now", current.display())),
        None => return Err("it was removed since".into()),
    }
    match previous {
        Some(previous) => {
            replace_link(previous, path).map_err(chain)?;
            Ok(Outcome::Restored(named))
        }
        None => {
            std::fs::remove_file(path).map_err(chain)?;
            Ok(Outcome::Removed(named))
        }
    }
}

/// Removes everything in a directory but `keep` and the directories above it.
fn empty(directory: &Path, keep: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        let result = match entry.file_type()?.is_dir() {
            _ if path == keep => Ok(()),
            true if keep.starts_with(&path) => empty(&path, keep),
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        match result {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::new(
                    error.kind(),
                    format!("remove {}: {error}", path.display()),
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes a file and the directories above it, up to but without `root`.
fn remove_with_parents(file: &Path, root: &Path) -> Result<(), Error> {
    std::fs::remove_file(file)?;
    let parents: Vec<PathBuf> = file
        .ancestors()
        .skip(1)
        .take_while(|p| *p != root)
        .map(Path::to_owned)
        .collect();
    parents.iter().try_for_each(std::fs::remove_dir)
}

/// Removes a control group and those below. Whether there was one.
fn remove_cgroup(path: &Path) -> Result<bool, Error> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    std::fs::remove_dir(path)?;
    Ok(true)
}
