//! The directory that layers are unpacked to, and the names below it.
//!
//! In: names, links and attributes as a tar has them. Out: open directories, refusals,
//! and at the end the attributes of all directories. Always holds: nothing outside the
//! directory is opened, changed or removed, as no name is resolved through a link.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::Limits;
use crate::tarstream::refuse;
use crate::{Error, Result};

/// Owner, mode, time and attributes of an entry.
#[derive(Debug, Clone)]
pub(super) struct Meta {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

impl Meta {
    pub(super) fn times(&self) -> Timestamps {
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
    pub(super) fn apply(
        &self,
        fd: BorrowedFd<'_>,
        owner: Option<&Owner>,
    ) -> rustix::io::Result<()> {
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
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

pub(super) fn shown(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}

/// Components of a path that [`safe`] made.
fn split(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty())
        .collect()
}

/// The components of a name in a tar.
pub(super) fn safe<'a>(path: &'a [u8], limits: &Limits) -> Result<Vec<&'a [u8]>> {
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

/// What directories get at the end, by path.
pub(super) type Directories = BTreeMap<Vec<u8>, Meta>;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The directory that is filled, with open descriptors down to the current
/// place: tars go through a tree in order.
pub(super) struct Tree<'a> {
    root: BorrowedFd<'a>,
    stack: Vec<(Vec<u8>, OwnedFd)>,
    /// What directories get at the end, by path.
    pub(super) directories: Directories,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: BorrowedFd<'a>) -> Self {
        Self {
            root,
            stack: Vec::new(),
            directories: Directories::new(),
        }
    }

    /// Opens the directory of these components, none of which may be a link.
    pub(super) fn directory(&mut self, parts: &[&[u8]], create: bool) -> Result<BorrowedFd<'_>> {
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
    pub(super) fn remove(&mut self, parts: &[&[u8]]) -> Result<()> {
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

/// Gives the directories below `root` what they are to have once all is in them.
pub(super) fn set_attributes(
    root: BorrowedFd<'_>,
    directories: &Directories,
    owner: Option<&Owner>,
) -> Result<()> {
    let mut tree = Tree::new(root);
    // Deepest first: work in a directory changes its time, and a mode may
    // forbid it to a user who is not root.
    for (path, meta) in directories.iter().rev() {
        let fd = tree.directory(&split(path), false)?;
        meta.apply(fd, owner)
            .map_err(Error::at("set the attributes of", &shown(path)))?;
        tree.stack.pop();
    }
    Ok(())
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

pub(super) fn children(fd: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(fd)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

pub(super) fn is_symlink(parent: BorrowedFd<'_>, name: &[u8]) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

pub(super) fn is_directory(parent: BorrowedFd<'_>, name: &[u8]) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}
