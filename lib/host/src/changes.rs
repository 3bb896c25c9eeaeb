//! The journal of host changes: whatever touches the host is written down
//! first, with what was there before.
//!
//! In: changes, through [`Journal`]'s methods, which record and then do them.
//! Out: after [`Journal::undo`] the host is as before, but for what is
//! reported. Always holds: no change is made that isn't on disk in the journal;
//! what somebody else has changed since is not touched, but reported; every
//! method can be repeated after any crash, [`Journal::undo`] too.

mod system;
mod undo;

use std::io::{Error, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::command::CommandError;
use crate::log::{Format, Log, LogError};
use crate::modules::{self, Presence};
use crate::sysctl::{self, SysctlError};
use crate::users::UserError;
use crate::{atomic, bounded};
pub use system::sync_units;
use system::{Machine, System, sync};
pub use undo::{Left, Report};

const FORMAT: Format = Format {
    name: "gravity.host.changes",
    version: 1,
};

/// Largest file whose former content is kept, in bytes.
const MAX_PREVIOUS: u64 = 1 << 20;

/// One change to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Change {
    /// A directory is ours with all that is in it, and is removed whole.
    OwnedTree {
        /// The directory.
        path: PathBuf,
    },
    /// A directory is made that others put data in.
    Directory {
        /// The directory.
        path: PathBuf,
        /// Made only because something below was wanted: never removed with
        /// data in it.
        parent: bool,
    },
    /// A file or directory that was there gets an owner or a mode.
    Attributes {
        /// The file or directory.
        path: PathBuf,
        /// What it gets.
        attributes: Attributes,
        /// What it had.
        previous: Attributes,
    },
    /// A file is written.
    File {
        /// The file.
        path: PathBuf,
        /// SHA-256 of what is written, hexadecimal.
        written: String,
        /// What was there.
        previous: Option<Previous>,
    },
    /// A symbolic link is made.
    Symlink {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
        /// Where it led before.
        previous: Option<PathBuf>,
    },
    /// A group is made.
    Group {
        /// Its name.
        name: String,
        /// Its id.
        gid: u32,
    },
    /// A user is made.
    User {
        /// Its name.
        name: String,
        /// Its id.
        uid: u32,
    },
    /// A kernel parameter is set.
    Sysctl {
        /// Its name.
        name: String,
        /// The new value.
        value: String,
        /// The former value.
        previous: String,
    },
    /// A kernel module is loaded.
    Module {
        /// Its name.
        name: String,
    },
    /// A systemd unit is installed; its file is a change of its own.
    Unit {
        /// Name of the unit.
        name: String,
    },
    /// A systemd unit is enabled or started.
    UnitEnabled {
        /// Name of the unit.
        name: String,
    },
    /// A daemon of the host gets files of configuration, which are changes of
    /// their own.
    Configuration {
        /// Whose.
        daemon: Daemon,
    },
    /// Something is mounted.
    Mount {
        /// Where.
        target: PathBuf,
    },
    /// A network interface is made.
    Interface {
        /// Its name.
        name: String,
    },
    /// An address is added to an interface.
    Address {
        /// Name of the interface.
        interface: String,
        /// The address, in CIDR notation.
        address: String,
    },
    /// A control group is made.
    Cgroup {
        /// Its directory.
        path: PathBuf,
    },
}

/// A daemon of the host that we leave files of configuration to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Daemon {
    /// NetworkManager.
    NetworkManager,
    /// firewalld. It forgets rules that were made for the moment only.
    Firewalld,
}

/// Owner and mode of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl Attributes {
    /// Those of what is at `path`; links are followed.
    ///
    /// # Errors
    /// When there is nothing.
    pub fn of(path: &Path) -> Result<Self, Error> {
        let metadata = path.metadata()?;
        Ok(Self {
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode() & 0o7777,
        })
    }

    /// Gives them to what is at `path`, where they are on disk then. The owner
    /// first: a change of it clears bits of the mode.
    ///
    /// # Errors
    /// When nothing is there or the kernel refuses it.
    pub fn set(self, path: &Path) -> Result<(), Error> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(self.mode))?;
        sync(path)
    }
}

/// A file as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Content, base64.
    pub content: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What a line of the journal says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
enum Record {
    /// A change is about to be made.
    Change {
        sequence: u64,
        /// Who made it; see [`Journal::within`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<String>,
        change: Change,
    },
    /// A change was taken back.
    Undone { sequence: u64 },
}

/// A change that was not taken back.
#[derive(Debug, Clone)]
struct Live {
    sequence: u64,
    scope: Option<String>,
    change: Change,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// The journal can't be read or written.
    #[error(transparent)]
    Journal(#[from] LogError),
    /// A file or directory can't be made.
    #[error("{what} {path}")]
    Files {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: Error,
    },
    /// Something of somebody else is where ours should be.
    #[error("{path} exists and is {found}, expected {expected}; move it away")]
    InTheWay {
        /// The path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A user can't be had.
    #[error(transparent)]
    User(#[from] UserError),
    /// A kernel parameter can't be set.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A program of the host failed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// The journal, open for changes. One process has it open at a time.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    log: Log,
    /// Changes that were not taken back, in the order they were made.
    live: Vec<Live>,
    next: u64,
    /// Who makes the next changes.
    scope: Option<String>,
    system: Box<dyn System>,
}

impl Journal {
    /// Opens the journal at `path`; a missing one is made.
    ///
    /// # Errors
    /// When it is damaged or open in another process.
    pub fn open(path: &Path) -> Result<Self, ChangeError> {
        Self::open_on(path, Box::new(Machine))
    }

    fn open_on(path: &Path, system: Box<dyn System>) -> Result<Self, ChangeError> {
        let path = std::path::absolute(path).map_err(|source| ChangeError::Files {
            what: "find",
            path: path.to_owned(),
            source,
        })?;
        let (log, records) = Log::open::<Record>(&path, FORMAT)?;
        let mut journal = Self {
            path,
            log,
            live: Vec::new(),
            next: 1,
            scope: None,
            system,
        };
        for record in records {
            match record {
                Record::Change {
                    sequence,
                    scope,
                    change,
                } => {
                    journal.next = sequence + 1;
                    journal.live.push(Live {
                        sequence,
                        scope,
                        change,
                    });
                }
                Record::Undone { sequence } => {
                    journal.live.retain(|live| live.sequence != sequence);
                }
            }
        }
        Ok(journal)
    }

    /// Reads the changes that were not taken back, also while somebody writes.
    ///
    /// # Errors
    /// When the journal is damaged.
    pub fn read(path: &Path) -> Result<Vec<Change>, ChangeError> {
        let mut live = Vec::new();
        for record in Log::read::<Record>(path, FORMAT)? {
            match record {
                Record::Change {
                    sequence, change, ..
                } => live.push((sequence, change)),
                Record::Undone { sequence } => live.retain(|(number, _)| *number != sequence),
            }
        }
        Ok(live.into_iter().map(|(_, change)| change).collect())
    }

    /// Changes that were not taken back, in the order they were made.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.live.iter().map(|live| &live.change)
    }

    /// Says who makes the changes from now on, so that
    /// [`Journal::undo_scope`] finds them.
    pub fn within(&mut self, scope: Option<&str>) {
        self.scope = scope.map(str::to_owned);
    }

    /// Records a change that the caller makes right afterwards: a mount, an
    /// interface, an address, a control group. One that is recorded already is
    /// not recorded again.
    ///
    /// # Errors
    /// When the journal can't be written: then the change must not be made.
    pub fn record(&mut self, change: Change) -> Result<(), ChangeError> {
        if !self.changes().any(|live| *live == change) {
            self.append(change)?;
        }
        Ok(())
    }

    fn append(&mut self, change: Change) -> Result<(), ChangeError> {
        let sequence = self.next;
        let scope = self.scope.clone();
        self.log.append(&Record::Change {
            sequence,
            scope: scope.clone(),
            change: change.clone(),
        })?;
        self.next += 1;
        self.live.push(Live {
            sequence,
            scope,
            change,
        });
        Ok(())
    }

    /// Declares a directory ours with all that is or will be in it, and makes
    /// it. For the state directory, never for what others put data in.
    ///
    /// # Errors
    /// When it can't be recorded or made.
    pub fn own_tree(&mut self, path: &Path) -> Result<(), ChangeError> {
        self.record(Change::OwnedTree {
            path: path.to_owned(),
        })?;
        std::fs::create_dir_all(path).map_err(files("create", path))
    }

    /// Makes a directory with these permission bits, and its missing parents
    /// (0755); they are on disk then. One that exists is left as it is.
    ///
    /// # Errors
    /// When it can't be recorded or made, or something else is there.
    pub fn create_dir(&mut self, path: &Path, mode: u32) -> Result<(), ChangeError> {
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => return Ok(()),
            Ok(_) => return Err(in_the_way(path, "no directory", "a directory")),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(files("look at", path)(source)),
        }
        let missing: Vec<&Path> = path.ancestors().take_while(|p| !p.exists()).collect();
        for directory in missing.into_iter().rev() {
            let parent = directory != path;
            self.record(Change::Directory {
                path: directory.to_owned(),
                parent,
            })?;
            match std::fs::create_dir(directory) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(files("create", directory)(error));
                }
                _ => {}
            }
            let bits = std::fs::Permissions::from_mode(if parent { 0o755 } else { mode });
            std::fs::set_permissions(directory, bits)
                .map_err(files("set the mode of", directory))?;
            // It may lie on another disk than the journals that say it is there.
            for made in [Some(directory), directory.parent()].into_iter().flatten() {
                self.system.sync(made).map_err(files("sync", made))?;
            }
        }
        Ok(())
    }

    /// Gives what is at `path` an owner and a mode.
    ///
    /// # Errors
    /// When nothing is there, or it can't be recorded or changed.
    pub fn set_attributes(&mut self, path: &Path, wanted: Attributes) -> Result<(), ChangeError> {
        let previous = Attributes::of(path).map_err(files("look at", path))?;
        if previous == wanted {
            return Ok(());
        }
        self.record(Change::Attributes {
            path: path.to_owned(),
            attributes: wanted,
            previous,
        })?;
        wanted
            .set(path)
            .map_err(files("set the owner and mode of", path))
    }

    /// Writes a file with these permission bits, keeping what was there.
    ///
    /// # Errors
    /// When it can't be recorded or written, something else is there, or what
    /// is there is larger than 1 MiB.
    pub fn write_file(&mut self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), ChangeError> {
        let previous = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_file() => {
                Some(previous(path, &metadata).map_err(files("read", path))?)
            }
            Ok(_) => return Err(in_the_way(path, "no plain file", "a file")),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(source) => return Err(files("look at", path)(source)),
        };
        let written = sha256(bytes);
        let same = previous.as_ref().is_some_and(|p| p.is(bytes));
        if same && previous.as_ref().is_some_and(|p| p.mode == mode) {
            return Ok(());
        }
        let change = Change::File {
            path: path.to_owned(),
            written,
            previous,
        };
        self.record_last(
            change,
            |other| matches!(other, Change::File { path: p, .. } if p == path),
        )?;
        atomic::write(path, bytes, mode).map_err(|error| files("write", path)(error.source))
    }

    /// Makes a symbolic link at `link` that leads to `target`. Another link
    /// there is replaced, and restored in the end. One that leads there already
    /// stays, unless `target` lies in a tree that is ours: then nobody else has
    /// made it, and it goes with the rest.
    ///
    /// # Errors
    /// When it can't be recorded or made, or no link is there but something
    /// else.
    pub fn symlink(&mut self, target: &Path, link: &Path) -> Result<(), ChangeError> {
        let previous = match link.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() => {
                Some(std::fs::read_link(link).map_err(files("read", link))?)
            }
            Ok(_) => return Err(in_the_way(link, "no link", "a symbolic link of ours")),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(source) => return Err(files("look at", link)(source)),
        };
        if previous.as_deref() == Some(target) {
            // Left by an installation whose journal is gone.
            let stray = self.owns(target) && !self.changes().any(|change| is_link(change, link));
            return match stray {
                true => self.append(Change::Symlink {
                    path: link.to_owned(),
                    target: target.to_owned(),
                    previous: None,
                }),
                false => Ok(()),
            };
        }
        let change = Change::Symlink {
            path: link.to_owned(),
            target: target.to_owned(),
            previous,
        };
        self.record_last(change, |other| is_link(other, link))?;
        replace_link(target, link).map_err(files("link", link))
    }

    /// Whether a path lies in a tree that is ours entirely.
    fn owns(&self, path: &Path) -> bool {
        self.changes().any(
            |change| matches!(change, Change::OwnedTree { path: own } if path.starts_with(own)),
        )
    }

    /// Sets a kernel parameter.
    ///
    /// # Errors
    /// When the kernel has no such parameter or refuses the value.
    pub fn set_sysctl(&mut self, name: &str, value: &str) -> Result<(), ChangeError> {
        let previous = self.system.sysctl(name)?;
        if sysctl::same(&previous, value) {
            return Ok(());
        }
        let change = Change::Sysctl {
            name: name.into(),
            value: value.into(),
            previous,
        };
        self.record_last(
            change,
            |other| matches!(other, Change::Sysctl { name: n, .. } if n == name),
        )?;
        Ok(self.system.set_sysctl(name, value)?)
    }

    /// Makes the service user and its group, as far as they are missing.
    ///
    /// # Errors
    /// When name or ids belong to others, or the host can't make users.
    pub fn create_service_user(
        &mut self,
        name: &str,
        uid: u32,
        gid: u32,
    ) -> Result<(), ChangeError> {
        let missing = self.system.missing_user(name, uid, gid)?;
        if missing.group {
            self.record(Change::Group {
                name: name.into(),
                gid,
            })?;
            self.system.create_group(name, gid)?;
        }
        if missing.user {
            self.record(Change::User {
                name: name.into(),
                uid,
            })?;
            self.system.create_user(name, uid, gid)?;
        }
        Ok(())
    }

    /// Loads a kernel module, unless the kernel has it. It stays loaded after
    /// [`Journal::undo`], which reports it.
    ///
    /// # Errors
    /// When there is no such module.
    pub fn load_module(&mut self, name: &str) -> Result<(), ChangeError> {
        if matches!(
            modules::presence(name),
            Presence::Absent | Presence::Loadable
        ) {
            self.record(Change::Module { name: name.into() })?;
            modules::load(name)?;
        }
        Ok(())
    }

    /// Installs a systemd unit. The caller may then enable and start it: in the
    /// end it is stopped and disabled before its file is removed.
    ///
    /// # Errors
    /// When it can't be recorded or written.
    pub fn install_unit(&mut self, path: &Path, bytes: &[u8]) -> Result<(), ChangeError> {
        let Some(name) = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
        else {
            return Err(in_the_way(path, "a directory", "the path of a unit"));
        };
        // In reverse: stop and disable, remove the file, tell systemd.
        self.record(Change::Unit { name: name.clone() })?;
        self.write_file(path, bytes, 0o644)?;
        self.record(Change::UnitEnabled { name })
    }

    /// Writes a file of a daemon's configuration. The caller may then have it read
    /// ([`Journal::reload`]): in the end that is done when the file is gone.
    ///
    /// # Errors
    /// When it can't be recorded or written.
    pub fn write_configuration(
        &mut self,
        daemon: Daemon,
        path: &Path,
        bytes: &[u8],
    ) -> Result<(), ChangeError> {
        // In reverse: remove the files, have the rest read.
        self.record(Change::Configuration { daemon })?;
        self.write_file(path, bytes, 0o644)
    }

    /// Has a daemon read its configuration again, where it runs.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn reload(&self, daemon: Daemon) -> Result<(), ChangeError> {
        Ok(self.system.reload(daemon)?)
    }

    /// Records a change whose previous value was just read, unless the last
    /// one of its kind says the same: then a former try was interrupted.
    fn record_last(
        &mut self,
        change: Change,
        same_kind: impl Fn(&Change) -> bool,
    ) -> Result<(), ChangeError> {
        let mut back = self.live.iter().rev().map(|live| &live.change);
        match back.find(|live| same_kind(live)) {
            Some(last) if *last == change => Ok(()),
            _ => self.append(change),
        }
    }
}

impl Previous {
    fn is(&self, bytes: &[u8]) -> bool {
        self.bytes().is_some_and(|own| own == bytes)
    }

    fn bytes(&self) -> Option<Vec<u8>> {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD
            .decode(&self.content)
            .ok()
    }
}

fn previous(path: &Path, metadata: &std::fs::Metadata) -> Result<Previous, Error> {
    use base64::Engine as _;
    let bytes = bounded::bytes(path, MAX_PREVIOUS)?;
    Ok(Previous {
        content: base64::engine::general_purpose::STANDARD.encode(bytes),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

fn is_link(change: &Change, link: &Path) -> bool {
    matches!(change, Change::Symlink { path, .. } if path == link)
}

/// Makes a link, or replaces one, at once.
fn replace_link(target: &Path, link: &Path) -> Result<(), Error> {
    let new = atomic::unfinished(link)?;
    remove_if_there(&new)?;
    symlink(target, &new)?;
    std::fs::rename(&new, link)?;
    atomic::sync_directory(link.parent().unwrap_or(Path::new("/")))
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn files<'a>(what: &'static str, path: &'a Path) -> impl Fn(Error) -> ChangeError + 'a {
    move |source| ChangeError::Files {
        what,
        path: path.to_owned(),
        source,
    }
}

fn in_the_way(path: &Path, found: &'static str, expected: &'static str) -> ChangeError {
    ChangeError::InTheWay {
        path: path.to_owned(),
        found,
        expected,
    }
}

#[cfg(test)]
mod tests;
