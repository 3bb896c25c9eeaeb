//! What each entry of a tar comes to below the directory.
//!
//! In: the layers, lowest first. Out: names in the [`Tree`], content in the queue of the
//! writers, and what directories get at the end. Always holds: an entry that is out of
//! bounds, names what is outside or isn't understood is refused before anything of it is
//! made; a whiteout hides what lower layers brought, never what its own did.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::SyncSender;

use event::{Event, Sink, Unit};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::tree::{
    Directories, Meta, Owner, Tree, children, is_directory, is_symlink, safe, shown, stays_inside,
};
use super::writers::{Failure, Job, Target};
use super::{Devices, Options, Report};
use crate::chunks::Chunks;
use crate::tarstream::{Entry, Kind, TarStream, refuse};
use crate::{Error, Result};

/// Pieces that a writer is handed at once: waking it for each small file costs
/// more than the file. With [`QUEUE`](super::QUEUE) this bounds the open files too.
const BATCH: usize = 16;
/// Bytes of pieces from which on a batch is handed over.
const BATCH_BYTES: usize = 256 << 10;
/// Bytes of a tar that an entry takes beside its content, a long name and some
/// attributes included. Bounds what a layer decompresses to.
const HEADERS: u64 = 4096;

/// Where an entry goes: never to the place of the directory itself.
struct Place<'a> {
    /// As the tar has it.
    path: &'a [u8],
    /// The components, the last one and those before it.
    parts: &'a [&'a [u8]],
    name: &'a [u8],
    parents: &'a [&'a [u8]],
    /// The components as one path.
    at: Vec<u8>,
}

/// Reads the tars, makes names and hands content over.
pub(super) struct Unpacker<'a> {
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

impl<'a> Unpacker<'a> {
    pub(super) fn new(
        root: BorrowedFd<'a>,
        options: &'a Options,
        owner: Option<Owner>,
        jobs: SyncSender<Vec<Job>>,
        failure: &'a Failure,
        sink: &'a dyn Sink,
    ) -> Self {
        Self {
            tree: Tree::new(root),
            options,
            owner,
            jobs,
            batch: Vec::new(),
            batch_bytes: 0,
            failure,
            created: HashSet::new(),
            first_layer: true,
            report: Report::default(),
            sink,
            told: 0,
        }
    }

    /// Takes the layers, lowest first; returns what directories are to get when the
    /// writers have ended, which they do once the queue is empty.
    pub(super) fn run(mut self, layers: &mut [&mut dyn Chunks]) -> Result<(Directories, Report)> {
        layers.iter_mut().try_for_each(|layer| self.layer(*layer))?;
        self.hand_over()?;
        Ok((self.tree.directories, self.report))
    }

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
        let Some((&name, parents)) = parts.split_last() else {
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
        if !self.first_layer {
            for depth in 1..=parts.len() {
                self.created.insert(parts[..depth].join(&b'/'));
            }
        }
        let place = Place {
            path: &path,
            parts: &parts,
            name,
            parents,
            at: parts.join(&b'/'),
        };
        match entry.kind {
            Kind::File => self.file(&place, entry.size, meta, tar),
            Kind::Directory => self.directory(place, meta),
            Kind::Symlink => self.symlink(&place, &entry.link, &meta),
            Kind::Hardlink => self.hardlink(&place, &entry.link),
            Kind::Fifo => {
                let mode = Mode::from_raw_mode(meta.mode);
                self.make(&place, |parent, name| {
                    rustix::fs::mknodat(parent, name, FileType::Fifo, mode, 0)
                })?;
                self.set_node(&place, &meta)
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
        // The host's policy gives labels, and its users must not get rights by programs
        // that lie on it: nothing in a planet needs that, nor setuid bits.
        let kept = |name: &str| !["security.selinux", "security.capability"].contains(&name);
        xattrs.retain(|(name, _)| kept(name));
        for (name, _) in &xattrs {
            // `trusted.overlay.*` would steer the overlay that is put on top.
            let known = name.starts_with("user.") || name.starts_with("system.posix_acl_");
            if !known || name.contains('\0') {
                return Err(refuse(
                    path,
                    format!("its extended attribute `{name}` is not supported"),
                ));
            }
        }
        let mode = match self.options.owners {
            true => entry.mode & 0o1777,
            false => entry.mode & 0o777,
        };
        Ok(Meta {
            mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs,
        })
    }

    fn directory(&mut self, place: Place<'_>, meta: Meta) -> Result<()> {
        let Place { name, parents, .. } = place;
        let parent = self.tree.directory(parents, true)?;
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) if is_directory(parent, name) => {}
            Err(Errno::EXIST) => {
                self.tree.remove(place.parts)?;
                let parent = self.tree.directory(parents, true)?;
                rustix::fs::mkdirat(parent, name, Mode::RWXU)
                    .map_err(Error::at("create", &shown(&place.at)))?;
            }
            Err(error) => return Err(Error::io("create", &shown(&place.at), error.into())),
        }
        self.tree.directories.insert(place.at, meta);
        Ok(())
    }

    fn symlink(&mut self, place: &Place<'_>, target: &[u8], meta: &Meta) -> Result<()> {
        let path = place.path;
        if target.is_empty() || target.contains(&0) || target.len() > self.options.limits.path {
            return Err(refuse(path, "the target of the link is empty or too long"));
        }
        if self.options.confine_symlinks && !stays_inside(target, place.parents.len()) {
            let target = String::from_utf8_lossy(target);
            let reason = format!("it is a link out of the directory, to `{target}`");
            return Err(refuse(path, reason));
        }
        if !meta.xattrs.is_empty() {
            return Err(refuse(
                path,
                "extended attributes of links are not supported",
            ));
        }
        self.make(place, |parent, name| {
            rustix::fs::symlinkat(target, parent, name)
        })?;
        self.set_link(place, meta)
    }

    fn hardlink(&mut self, place: &Place<'_>, link: &[u8]) -> Result<()> {
        let path = place.path;
        let target = safe(link, &self.options.limits)?;
        let Some((&target_name, target_parents)) = target.split_last() else {
            return Err(refuse(path, "it is a hard link to the directory itself"));
        };
        if target == place.parts {
            return Err(refuse(path, "it is a hard link to itself"));
        }
        let from = self
            .tree
            .directory(target_parents, false)?
            .try_clone_to_owned()
            .map_err(Error::at("open", &shown(link)))?;
        if self.options.confine_symlinks && is_symlink(from.as_fd(), target_name) {
            // It stays inside where it is, not where the link would be.
            return Err(refuse(path, "it is a hard link to a symbolic link"));
        }
        self.make(place, |parent, name| {
            rustix::fs::linkat(&from, target_name, parent, name, AtFlags::empty())
        })
        .map_err(|error| match error {
            Error::Io { source, .. } => {
                let target = String::from_utf8_lossy(link);
                let reason = format!("cannot make a hard link to `{target}`: {source}");
                refuse(path, reason)
            }
            other => other,
        })
    }

    fn file(
        &mut self,
        place: &Place<'_>,
        size: u64,
        meta: Meta,
        tar: &mut TarStream<'_>,
    ) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.make(place, |parent, name| {
            rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        let target = Arc::new(Target {
            file: File::from(fd),
            path: shown(&place.at),
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
        place: &Place<'_>,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let parent = self.tree.directory(place.parents, true)?;
        let made = match make(parent, place.name) {
            Err(Errno::EXIST) => {
                self.tree.remove(place.parts)?;
                let parent = self.tree.directory(place.parents, true)?;
                make(parent, place.name)
            }
            other => other,
        };
        made.map_err(|error| Error::io("create", &shown(&place.at), error.into()))
    }

    fn set_link(&mut self, place: &Place<'_>, meta: &Meta) -> Result<()> {
        let owner = self.owner;
        let name = place.name;
        let parent = self.tree.directory(place.parents, false)?;
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
        set().map_err(Error::at("set the attributes of", &shown(&place.at)))
    }

    fn set_node(&mut self, place: &Place<'_>, meta: &Meta) -> Result<()> {
        self.set_link(place, meta)?;
        let parent = self.tree.directory(place.parents, false)?;
        // Made just now in a directory that only we can enter: no link.
        rustix::fs::chmodat(
            parent,
            place.name,
            Mode::from_raw_mode(meta.mode),
            AtFlags::empty(),
        )
        .map_err(Error::at("set the mode of", &shown(&place.at)))
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
