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

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use event::{Event, Sink, Unit};
use rustix::fs::{AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::chunks::{Chunk, Chunks};
use crate::tarstream::{Entry, Kind, TarStream};
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
/// Pieces that a writer is handed at once: waking it for each small file costs
/// more than the file. With [`QUEUE`] this bounds the open files too.
const BATCH: usize = 16;
/// Bytes of pieces from which on a batch is handed over.
const BATCH_BYTES: usize = 256 << 10;
/// Bytes of a tar that an entry takes beside its content, a long name and some
/// attributes included. Bounds what a layer decompresses to.
const HEADERS: u64 = 4096;
/// From this size on a piece is sent to the disk at once, not at the end.
const EARLY_WRITEBACK: usize = 256 << 10;

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
    let mut temp_name = std::ffi::OsString::from(".partial-");
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

/// Owner, mode, time and attributes of an entry.
#[derive(Debug, Clone)]
struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Meta {
    fn times(&self) -> Timestamps {
        let time = Timespec {
            tv_sec: self.mtime.0,
            tv_nsec: self.mtime.1.into(),
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }

    /// Sets all of it, in the order in which the kernel keeps it: a change of
    /// owner clears set-uid bits and capabilities.
    fn apply(&self, fd: BorrowedFd<'_>, owner: Option<&Owner>) -> rustix::io::Result<()> {
        if let Some(owner) = owner
            && (self.uid, self.gid) != (owner.uid, owner.gid)
        {
            rustix::fs::fchown(
                fd,
                Some(Uid::from_raw(self.uid)),
                Some(Gid::from_raw(self.gid)),
            )?;
        }
        rustix::fs::fchmod(fd, Mode::from_raw_mode(self.mode))?;
        for (name, value) in &self.xattrs {
            rustix::fs::fsetxattr(fd, name.as_str(), value, rustix::fs::XattrFlags::empty())?;
        }
        rustix::fs::futimens(fd, &self.times())
    }
}

/// Who owns what this process creates.
#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

/// A file that is being written by several threads.
struct Target {
    file: File,
    path: PathBuf,
    meta: Meta,
    remaining: AtomicU64,
}

struct Job {
    target: Arc<Target>,
    offset: u64,
    piece: Option<(Arc<Chunk>, Range<usize>)>,
}

impl Job {
    fn run(self, owner: Option<&Owner>) -> Result<()> {
        let target = &self.target;
        let mut length = 0;
        if let Some((chunk, range)) = &self.piece {
            let bytes = &chunk[range.clone()];
            target
                .file
                .write_all_at(bytes, self.offset)
                .map_err(Error::at("write", &target.path))?;
            length = bytes.len() as u64;
            if bytes.len() >= EARLY_WRITEBACK {
                // Starts the writeback of dirty pages, so that the sync at the
                // end finds little to do. Only a hint.
                let _ = rustix::fs::fadvise(
                    &target.file,
                    self.offset,
                    std::num::NonZeroU64::new(length),
                    rustix::fs::Advice::DontNeed,
                );
            }
        }
        // Whoever writes the last byte sets the time.
        if target.remaining.fetch_sub(length, Ordering::AcqRel) == length {
            target
                .meta
                .apply(target.file.as_fd(), owner)
                .map_err(Error::at("set the attributes of", &target.path))?;
        }
        Ok(())
    }
}

/// What the threads share.
#[derive(Default)]
struct Failure {
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
}

impl Failure {
    fn set(&self, error: Error) {
        self.error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    fn check(&self) -> Result<()> {
        if self.failed.load(Ordering::Acquire)
            && let Some(error) = self
                .error
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
        {
            return Err(error);
        }
        Ok(())
    }
}

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
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| write(&receiver, owner.as_ref(), &failure));
        }
        let mut unpacker = Unpacker {
            tree: Tree {
                root: root.as_fd(),
                stack: Vec::new(),
                directories: BTreeMap::new(),
            },
            options,
            owner,
            jobs,
            batch: Vec::new(),
            batch_bytes: 0,
            failure: &failure,
            created: HashSet::new(),
            first_layer: true,
            report: Report::default(),
            sink,
            told: 0,
        };
        let result = layers
            .iter_mut()
            .try_for_each(|layer| unpacker.layer(*layer))
            .and_then(|()| unpacker.hand_over());
        let Unpacker {
            tree, jobs, report, ..
        } = unpacker;
        // Ends the writers once the queue is empty.
        drop(jobs);
        result.map(|()| (tree.directories, report))
    })
    .and_then(|(directories, report)| {
        // All writers have ended here.
        failure.check()?;
        let mut tree = Tree {
            root: root.as_fd(),
            stack: Vec::new(),
            directories: BTreeMap::new(),
        };
        // Deepest first: work in a directory changes its time, and a mode may
        // forbid it to a user who is not root.
        for (path, meta) in directories.iter().rev() {
            let parts = split(path);
            let at = || shown(path);
            let fd = tree.directory(&parts, false)?;
            meta.apply(fd, owner.as_ref())
                .map_err(Error::at("set the attributes of", &at()))?;
            tree.stack.pop();
        }
        Ok(report)
    })
}

fn write(receiver: &Mutex<Receiver<Vec<Job>>>, owner: Option<&Owner>, failure: &Failure) {
    loop {
        let batch = receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(batch) = batch else { return };
        for job in batch {
            // After a failure jobs are only taken, so that the sender goes on.
            if !failure.failed.load(Ordering::Acquire)
                && let Err(error) = job.run(owner)
            {
                failure.set(error);
            }
        }
    }
}

fn shown(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}

fn refuse(entry: &[u8], reason: impl Into<String>) -> Error {
    Error::Layer {
        entry: String::from_utf8_lossy(entry).into_owned(),
        reason: reason.into(),
    }
}

/// Components of a path that [`safe`] made.
fn split(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty())
        .collect()
}

/// The components of a name in a tar.
fn safe<'a>(path: &'a [u8], limits: &Limits) -> Result<Vec<&'a [u8]>> {
    if path.len() > limits.path {
        return Err(refuse(
            &path[..100],
            format!("its path is longer than {} bytes", limits.path),
        ));
    }
    if path.starts_with(b"/") {
        return Err(refuse(path, "its path is absolute"));
    }
    if path.contains(&0) {
        return Err(refuse(path, "its path holds a NUL byte"));
    }
    let parts: Vec<_> = path
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect();
    if parts.contains(&b"..".as_slice()) {
        return Err(refuse(path, "its path leads out of the directory by `..`"));
    }
    if parts.len() > limits.depth {
        return Err(refuse(
            path,
            format!("its path has more than {} components", limits.depth),
        ));
    }
    Ok(parts)
}

/// Whether a link at `depth` directories below the root stays inside, whatever
/// other links that do so are on its way.
pub(crate) fn stays_inside(target: &[u8], depth: usize) -> bool {
    if target.starts_with(b"/") {
        return false;
    }
    let mut ups = 0;
    let mut down = false;
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            // After a name `..` may mean the parent of what a link points to.
            b".." if down => return false,
            b".." => ups += 1,
            _ => down = true,
        }
    }
    ups <= depth
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The directory that is filled, with open descriptors down to the current
/// place: tars go through a tree in order.
struct Tree<'a> {
    root: BorrowedFd<'a>,
    stack: Vec<(Vec<u8>, OwnedFd)>,
    /// What directories get at the end, by path.
    directories: BTreeMap<Vec<u8>, Meta>,
}

impl Tree<'_> {
    /// Opens the directory of these components, none of which may be a link.
    fn directory(&mut self, parts: &[&[u8]], create: bool) -> Result<BorrowedFd<'_>> {
        let same = self
            .stack
            .iter()
            .zip(parts)
            .take_while(|((name, _), part)| name == *part)
            .count();
        self.stack.truncate(same);
        for (depth, part) in parts.iter().enumerate().skip(same) {
            let parent = self.stack.last().map_or(self.root, |(_, fd)| fd.as_fd());
            let mut opened = rustix::fs::openat(parent, *part, DIRECTORY, Mode::empty());
            if create && matches!(opened, Err(Errno::NOENT)) {
                rustix::fs::mkdirat(parent, *part, Mode::RWXU).map_err(|e| {
                    Error::io("create", &shown(&parts[..=depth].join(&b'/')), e.into())
                })?;
                let meta = Meta {
                    mode: 0o755,
                    uid: 0,
                    gid: 0,
                    mtime: (0, 0),
                    xattrs: Vec::new(),
                };
                self.directories.insert(parts[..=depth].join(&b'/'), meta);
                opened = rustix::fs::openat(parent, *part, DIRECTORY, Mode::empty());
            }
            let fd = opened.map_err(|error| match error {
                Errno::NOTDIR | Errno::LOOP => refuse(
                    &parts.join(&b'/'),
                    format!(
                        "`{}` on its way is a link or a file, not a directory",
                        String::from_utf8_lossy(&parts[..=depth].join(&b'/'))
                    ),
                ),
                error => Error::io("open", &shown(&parts[..=depth].join(&b'/')), error.into()),
            })?;
            self.stack.push((part.to_vec(), fd));
        }
        Ok(self.stack.last().map_or(self.root, |(_, fd)| fd.as_fd()))
    }

    /// Removes whatever is at these components.
    fn remove(&mut self, parts: &[&[u8]]) -> Result<()> {
        let Some((name, parents)) = parts.split_last() else {
            return Ok(());
        };
        let path = parts.join(&b'/');
        let parent = self.directory(parents, false)?;
        remove_tree(parent, name).map_err(Error::at("remove", &shown(&path)))?;
        self.directories.remove(&path);
        let mut below = path;
        below.push(b'/');
        let gone: Vec<_> = self
            .directories
            .range(below.clone()..)
            .map(|(path, _)| path)
            .take_while(|path| path.starts_with(&below))
            .cloned()
            .collect();
        for path in gone {
            self.directories.remove(&path);
        }
        Ok(())
    }
}

/// Removes a file or a directory with all that is in it; nothing is fine too.
/// Depth is bounded by how deep unpacking went.
fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let fd = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
    for child in children(fd.as_fd())? {
        remove_tree(fd.as_fd(), &child)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn children(fd: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(fd)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

struct Unpacker<'a> {
    tree: Tree<'a>,
    options: &'a Options,
    owner: Option<Owner>,
    jobs: SyncSender<Vec<Job>>,
    /// Pieces that no writer has yet.
    batch: Vec<Job>,
    batch_bytes: usize,
    failure: &'a Failure,
    /// Paths of the current layer, which its whiteouts don't hide. Not kept
    /// for the first one: there is nothing below it.
    created: HashSet<Vec<u8>>,
    first_layer: bool,
    report: Report,
    sink: &'a dyn Sink,
    told: u64,
}

impl Unpacker<'_> {
    fn layer(&mut self, source: &mut dyn Chunks) -> Result<()> {
        self.created.clear();
        let limits = &self.options.limits;
        let headers = limits.entries.saturating_mul(HEADERS);
        let mut tar = TarStream::new(source, limits.bytes.saturating_add(headers));
        while let Some(entry) = tar.next_entry()? {
            self.failure.check()?;
            self.report.entries += 1;
            if self.report.entries > limits.entries {
                let reason = format!("there are more than {} entries", limits.entries);
                return Err(refuse(&entry.path, reason));
            }
            // Asked before anything is written, so that no single file passes.
            let bytes = self.report.bytes.saturating_add(entry.size);
            if bytes > limits.bytes {
                let what = "the content of the layers".into();
                return Err(Error::TooLarge {
                    what,
                    size: bytes,
                    limit: limits.bytes,
                });
            }
            self.report.bytes = bytes;
            self.entry(entry, &mut tar)?;
            if self.report.bytes - self.told >= 16 << 20 {
                self.told = self.report.bytes;
                let (done, unit) = (self.told, Unit::Bytes);
                self.sink.emit(Event::Progress {
                    task: "unpack".into(),
                    done,
                    total: None,
                    unit,
                });
            }
        }
        self.first_layer = false;
        Ok(())
    }

    fn entry(&mut self, mut entry: Entry, tar: &mut TarStream<'_>) -> Result<()> {
        let path = std::mem::take(&mut entry.path);
        let parts = safe(&path, &self.options.limits)?;
        let meta = self.meta(&path, &mut entry)?;
        let Some((name, parents)) = parts.split_last() else {
            // The directory itself.
            if entry.kind == Kind::Directory {
                self.tree.directories.insert(Vec::new(), meta);
                return Ok(());
            }
            return Err(refuse(&path, "it would replace the directory itself"));
        };
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(parents, hidden);
        }
        let at = parts.join(&b'/');
        if !self.first_layer {
            for depth in 1..=parts.len() {
                self.created.insert(parts[..depth].join(&b'/'));
            }
        }
        match entry.kind {
            Kind::File => self.file(parents, name, &at, entry.size, meta, tar),
            Kind::Directory => {
                let parent = self.tree.directory(parents, true)?;
                match rustix::fs::mkdirat(parent, *name, Mode::RWXU) {
                    Ok(()) => {}
                    Err(Errno::EXIST) if is_directory(parent, name) => {}
                    Err(Errno::EXIST) => {
                        self.tree.remove(&parts)?;
                        let parent = self.tree.directory(parents, true)?;
                        rustix::fs::mkdirat(parent, *name, Mode::RWXU)
                            .map_err(Error::at("create", &shown(&at)))?;
                    }
                    Err(error) => return Err(Error::io("create", &shown(&at), error.into())),
                }
                self.tree.directories.insert(at, meta);
                Ok(())
            }
            Kind::Symlink => {
                let target = &entry.link;
                if target.is_empty()
                    || target.contains(&0)
                    || target.len() > self.options.limits.path
                {
                    return Err(refuse(&path, "the target of the link is empty or too long"));
                }
                if self.options.confine_symlinks && !stays_inside(target, parents.len()) {
                    let target = String::from_utf8_lossy(target);
                    let reason = format!("it is a link out of the directory, to `{target}`");
                    return Err(refuse(&path, reason));
                }
                if !meta.xattrs.is_empty() {
                    return Err(refuse(
                        &path,
                        "extended attributes of links are not supported",
                    ));
                }
                let target = entry.link.clone();
                self.make(&parts, |parent, name| {
                    rustix::fs::symlinkat(target.as_slice(), parent, name)
                })?;
                self.set_link(parents, name, &at, &meta)
            }
            Kind::Hardlink => {
                let target = safe(&entry.link, &self.options.limits)?;
                let Some((target_name, target_parents)) = target.split_last() else {
                    return Err(refuse(&path, "it is a hard link to the directory itself"));
                };
                if target == parts {
                    return Err(refuse(&path, "it is a hard link to itself"));
                }
                let from = self
                    .tree
                    .directory(target_parents, false)?
                    .try_clone_to_owned()
                    .map_err(Error::at("open", &shown(&entry.link)))?;
                if self.options.confine_symlinks && is_symlink(from.as_fd(), target_name) {
                    // It stays inside where it is, not where the link would be.
                    return Err(refuse(&path, "it is a hard link to a symbolic link"));
                }
                self.make(&parts, |parent, name| {
                    rustix::fs::linkat(&from, *target_name, parent, name, AtFlags::empty())
                })
                .map_err(|error| match error {
                    Error::Io { source, .. } => {
                        let target = String::from_utf8_lossy(&entry.link);
                        refuse(
                            &path,
                            format!("cannot make a hard link to `{target}`: {source}"),
                        )
                    }
                    other => other,
                })
            }
            Kind::Fifo => {
                let mode = Mode::from_raw_mode(meta.mode);
                self.make(&parts, |parent, name| {
                    rustix::fs::mknodat(parent, name, FileType::Fifo, mode, 0)
                })?;
                self.set_node(parents, name, &at, &meta)
            }
            Kind::Device => match self.options.devices {
                Devices::Refuse => Err(refuse(&path, "it is a device")),
                Devices::Skip => {
                    self.report.skipped_devices += 1;
                    Ok(())
                }
            },
        }
    }

    fn meta(&self, path: &[u8], entry: &mut Entry) -> Result<Meta> {
        let mut xattrs = std::mem::take(&mut entry.xattrs);
        // The host's policy gives labels.
        xattrs.retain(|(name, _)| name != "security.selinux");
        for (name, _) in &xattrs {
            // `trusted.overlay.*` would steer the overlay that is put on top.
            let known = name.starts_with("user.")
                || name == "security.capability"
                || name.starts_with("system.posix_acl_");
            if !known || name.contains('\0') {
                return Err(refuse(
                    path,
                    format!("its extended attribute `{name}` is not supported"),
                ));
            }
        }
        if !self.options.owners {
            xattrs.retain(|(name, _)| name != "security.capability");
        }
        // A file of the caller must not run as the caller for others.
        let mode = if self.options.owners {
            entry.mode
        } else {
            entry.mode & 0o777
        };
        Ok(Meta {
            mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs,
        })
    }

    fn file(
        &mut self,
        parents: &[&[u8]],
        name: &[u8],
        at: &[u8],
        size: u64,
        meta: Meta,
        tar: &mut TarStream<'_>,
    ) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut parts = parents.to_vec();
        parts.push(name);
        let fd = self.make(&parts, |parent, name| {
            rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        let target = Arc::new(Target {
            file: File::from(fd),
            path: shown(at),
            meta,
            remaining: AtomicU64::new(size),
        });
        let mut offset = 0;
        loop {
            let piece = tar.content()?;
            if piece.is_none() && size > 0 {
                return Ok(());
            }
            let last = piece.is_none();
            let length = piece.as_ref().map_or(0, |(_, range)| range.len() as u64);
            let job = Job {
                target: Arc::clone(&target),
                offset,
                piece,
            };
            offset += length;
            self.batch.push(job);
            self.batch_bytes += length as usize;
            if self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES {
                self.hand_over()?;
            }
            if last {
                return Ok(());
            }
        }
    }

    /// Gives the writers what waits.
    fn hand_over(&mut self) -> Result<()> {
        self.batch_bytes = 0;
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        match self.jobs.send(batch) {
            Ok(()) => Ok(()),
            // They ended early, by a panic at worst.
            Err(_) => self.failure.check(),
        }
    }

    /// Makes something new, in place of whatever has its name.
    fn make<T>(
        &mut self,
        parts: &[&[u8]],
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let Some((name, parents)) = parts.split_last() else {
            return Err(refuse(b".", "it would replace the directory itself"));
        };
        let parent = self.tree.directory(parents, true)?;
        let made = match make(parent, name) {
            Err(Errno::EXIST) => {
                self.tree.remove(parts)?;
                let parent = self.tree.directory(parents, true)?;
                make(parent, name)
            }
            other => other,
        };
        made.map_err(|error| Error::io("create", &shown(&parts.join(&b'/')), error.into()))
    }

    fn set_link(&mut self, parents: &[&[u8]], name: &[u8], at: &[u8], meta: &Meta) -> Result<()> {
        let owner = self.owner;
        let parent = self.tree.directory(parents, false)?;
        let set = || {
            if owner.is_some_and(|owner| (meta.uid, meta.gid) != (owner.uid, owner.gid)) {
                let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
                rustix::fs::chownat(
                    parent,
                    name,
                    Some(uid),
                    Some(gid),
                    AtFlags::SYMLINK_NOFOLLOW,
                )?;
            }
            rustix::fs::utimensat(parent, name, &meta.times(), AtFlags::SYMLINK_NOFOLLOW)
        };
        set().map_err(Error::at("set the attributes of", &shown(at)))
    }

    fn set_node(&mut self, parents: &[&[u8]], name: &[u8], at: &[u8], meta: &Meta) -> Result<()> {
        self.set_link(parents, name, at, meta)?;
        let parent = self.tree.directory(parents, false)?;
        // Made just now in a directory that only we can enter: no link.
        rustix::fs::chmodat(
            parent,
            name,
            Mode::from_raw_mode(meta.mode),
            AtFlags::empty(),
        )
        .map_err(Error::at("set the mode of", &shown(at)))
    }

    fn whiteout(&mut self, parents: &[&[u8]], hidden: &[u8]) -> Result<()> {
        if self.first_layer {
            return Ok(());
        }
        if hidden == b".wh..opq" {
            let mut parts = parents.to_vec();
            return self.hide_children(&mut parts);
        }
        if hidden.starts_with(b".wh.") || hidden.is_empty() || hidden == b"." || hidden == b".." {
            let mut entry = parents.join(&b'/');
            entry.extend_from_slice(b"/.wh.");
            entry.extend_from_slice(hidden);
            return Err(refuse(&entry, "it is no whiteout that OCI knows"));
        }
        let mut parts = parents.to_vec();
        parts.push(hidden);
        self.hide(&mut parts)
    }

    /// Removes what lower layers brought to this place.
    fn hide(&mut self, parts: &mut Vec<&[u8]>) -> Result<()> {
        if self.created.contains(&parts.join(&b'/')) {
            return self.hide_children(parts);
        }
        let Some((name, parents)) = parts.split_last() else {
            return Ok(());
        };
        // Nothing there, or something on its way is no directory: nothing to hide.
        match self.tree.directory(parents, false) {
            Ok(parent) => {
                if rustix::fs::statat(parent, *name, AtFlags::SYMLINK_NOFOLLOW).is_err() {
                    return Ok(());
                }
            }
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.tree.remove(parts)?;
        Ok(())
    }

    fn hide_children(&mut self, parts: &mut Vec<&[u8]>) -> Result<()> {
        let names = match self.tree.directory(parts, false) {
            Ok(fd) => children(fd).map_err(Error::at("read", &shown(&parts.join(&b'/'))))?,
            // Not a directory (any more): it has no children.
            Err(_) => return Ok(()),
        };
        for name in names {
            let mut child: Vec<&[u8]> = parts.clone();
            child.push(&name);
            self.hide(&mut child)?;
        }
        Ok(())
    }
}

fn is_symlink(parent: BorrowedFd<'_>, name: &[u8]) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

fn is_directory(parent: BorrowedFd<'_>, name: &[u8]) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests;
