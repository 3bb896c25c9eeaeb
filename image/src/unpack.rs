//! Applies tar layers to a fresh directory, trusting nothing in them.
//!
//! In: layers as chunks, lowest first. Out: a directory that appears at its
//! name complete and synced, or not at all. Always holds:
//!
//! - Names are resolved one component at a time below a directory descriptor
//!   and never through a symbolic link; absolute names and `..` are refused.
//! - The number of entries, the depth and the bytes are bounded.
//! - OCI whiteouts and opaque directories hide what lower layers brought.
//! - A crash leaves `.partial-<name>` beside the destination, which the next
//!   attempt removes; two processes at once exclude each other.
//!
//! One thread reads the tar and makes the names, others write the content from
//! the chunks as they are and set owner, mode, attributes and time. The chunks
//! of an image's blob are decompressed and hashed on further threads.

mod entries;
mod tree;
mod writers;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;

use event::Sink;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use self::entries::Unpacker;
pub(crate) use self::tree::stays_inside;
use self::tree::{Owner, set_attributes};
use self::writers::{Failure, Job, write};
use crate::chunks::Chunks;
use crate::{Error, Result};

/// Bounds of what is unpacked.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Entries of all layers together.
    pub entries: u64,
    /// Components of a path.
    pub depth: usize,
    /// Bytes of a path or of a symbolic link's target.
    pub path: usize,
    /// Bytes of all files together.
    pub bytes: u64,
}

/// What happens to device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// The layer is refused.
    Refuse,
    /// They are left out and counted: whoever mounts the directory brings a
    /// `/dev` of its own.
    Skip,
}

/// How layers are unpacked.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whether owners are set as in the tar, which takes root; otherwise all
    /// belongs to the caller.
    pub owners: bool,
    /// What happens to device nodes.
    pub devices: Devices,
    /// Whether symbolic links that lead out of the directory are refused. The
    /// links of a root filesystem may be absolute: they mean its own root.
    pub confine_symlinks: bool,
    /// Bounds.
    pub limits: Limits,
}

impl Options {
    /// For the root filesystem of a container.
    pub fn rootfs() -> Self {
        Self {
            owners: rustix::process::geteuid().is_root(),
            devices: Devices::Skip,
            confine_symlinks: false,
            limits: Limits {
                entries: 2_000_000,
                depth: 128,
                path: 4096,
                bytes: 64 << 30,
            },
        }
    }

    /// For files that programs of the host read.
    pub fn resources() -> Self {
        Self {
            owners: false,
            devices: Devices::Refuse,
            confine_symlinks: true,
            limits: Limits {
                entries: 200_000,
                depth: 64,
                path: 4096,
                bytes: 16 << 30,
            },
        }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Entries, whiteouts included.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// Device nodes left out.
    pub skipped_devices: u64,
}

/// Threads that write content: the reader is a third, decompression more.
const WRITERS: usize = 2;
/// Batches that wait for a writer. With their chunks, of at most 1 MiB as we
/// write them, this bounds the memory.
const QUEUE: usize = 8;

/// Unpacks `layers`, lowest first, to the new directory `dest`.
///
/// # Errors
/// [`Error::Exists`], [`Error::Busy`], [`Error::Layer`] for what must not be
/// unpacked, and whatever the chunks or the filesystem report. `dest` does not
/// exist then.
pub fn unpack(
    layers: &mut [&mut dyn Chunks],
    dest: &Path,
    options: &Options,
    sink: &dyn Sink,
) -> Result<Report> {
    let (parent, name) = match (dest.parent(), dest.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => (parent, name),
        (_, Some(name)) => (Path::new("."), name),
        _ => {
            return Err(Error::Exists {
                path: dest.to_owned(),
            });
        }
    };
    std::fs::create_dir_all(parent).map_err(Error::at("create", parent))?;
    if std::fs::symlink_metadata(dest).is_ok() {
        return Err(Error::Exists {
            path: dest.to_owned(),
        });
    }
    let mut temp_name = std::ffi::OsString::from(crate::PARTIAL);
    temp_name.push(name);
    let temp = parent.join(temp_name);
    let root = claim(&temp, dest)?;
    let result = (|| {
        let report = fill(&root, layers, options, sink)?;
        rustix::fs::syncfs(&root).map_err(Error::at("sync", &temp))?;
        match rustix::fs::renameat_with(
            rustix::fs::CWD,
            &temp,
            rustix::fs::CWD,
            dest,
            rustix::fs::RenameFlags::NOREPLACE,
        ) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                return Err(Error::Exists {
                    path: dest.to_owned(),
                });
            }
            // Not on every filesystem; a rename replaces an empty directory only.
            Err(Errno::INVAL | Errno::NOSYS) => {
                std::fs::rename(&temp, dest).map_err(Error::at("create", dest))?;
            }
            Err(error) => return Err(Error::io("create", dest, error.into())),
        }
        let parent_dir = File::open(parent).map_err(Error::at("open", parent))?;
        parent_dir.sync_all().map_err(Error::at("sync", parent))?;
        Ok(report)
    })();
    if result.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_dir_all(&temp);
    }
    result
}

/// Makes `temp` anew and locks it as long as the descriptor is open.
fn claim(temp: &Path, dest: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::open(temp, flags, Mode::empty());
    let lock = |fd: &OwnedFd| match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive)
    {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(Error::Busy {
            path: dest.to_owned(),
        }),
        Err(error) => Err(Error::io("lock", temp, error.into())),
    };
    if std::fs::symlink_metadata(temp).is_ok_and(|meta| meta.is_dir()) {
        let stale = open().map_err(Error::at("open", temp))?;
        lock(&stale)?;
        std::fs::remove_dir_all(temp).map_err(Error::at("remove", temp))?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(temp) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::Busy {
                path: dest.to_owned(),
            });
        }
        Err(error) => return Err(Error::io("create", temp, error)),
    }
    let fd = open().map_err(Error::at("open", temp))?;
    lock(&fd)?;
    Ok(fd)
}

/// Unpacks `layers` to the directory `root`, which nobody else knows yet.
fn fill(
    root: &OwnedFd,
    layers: &mut [&mut dyn Chunks],
    options: &Options,
    sink: &dyn Sink,
) -> Result<Report> {
    let stat = rustix::fs::fstat(root).map_err(Error::at("read", Path::new("the directory")))?;
    // Created files take the group of a set-gid directory; ours has no such bit.
    let owner = options.owners.then_some(Owner {
        uid: stat.st_uid,
        gid: stat.st_gid,
    });
    let failure = Failure::default();
    let (jobs, receiver) = sync_channel::<Vec<Job>>(QUEUE);
    let receiver = Mutex::new(receiver);
    let (directories, report) = std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| write(&receiver, owner.as_ref(), &failure));
        }
        Unpacker::new(root.as_fd(), options, owner, jobs, &failure, sink).run(layers)
    })?;
    // All writers have ended here.
    failure.check()?;
    set_attributes(root.as_fd(), &directories, owner.as_ref())?;
    Ok(report)
}

#[cfg(test)]
mod tests;
