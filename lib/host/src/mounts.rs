//! What is mounted, as this thread sees it.
//!
//! In: `/proc/thread-self/mountinfo`. Out: mounts in the order they were made, and
//! their removal below a path.

use std::ffi::OsString;
use std::io::Error;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};

use crate::bounded;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it is.
    pub target: PathBuf,
    /// Which part of the filesystem it shows: `/` but for bind mounts.
    pub root: PathBuf,
    /// Type of filesystem, such as `ext4`.
    pub filesystem: String,
    /// What is mounted, such as `/dev/sda1`; a name for filesystems without a
    /// device.
    pub source: String,
    /// Options of the mount and of the filesystem, comma-separated.
    pub options: String,
    /// Whether mounts made below it are seen elsewhere.
    pub shared: bool,
}

/// Mounts in the text of a `mountinfo`. Lines that are none are left out.
pub fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, target, options) = (mount.next()?, mount.next()?, mount.next()?);
    let shared = mount.any(|field| field.starts_with("shared:"));
    let mut filesystem = filesystem.split(' ');
    let kind = filesystem.next()?.to_owned();
    let source = unescape(filesystem.next()?);
    let options = match filesystem.next() {
        Some(more) => format!("{options},{more}"),
        None => options.to_owned(),
    };
    Some(Mount {
        target: unescape(target).into(),
        root: unescape(root).into(),
        filesystem: kind,
        source: source.to_string_lossy().into_owned(),
        options,
        shared,
    })
}

/// Undoes the kernel's `\040` for a blank, and the like.
fn unescape(text: &str) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// All mounts.
///
/// # Errors
/// When the kernel doesn't say.
pub fn list() -> Result<Vec<Mount>, Error> {
    bounded::text(Path::new("/proc/thread-self/mountinfo")).map(|text| parse(&text))
}

/// Mounts at `path` or below, the last one first: the order to unmount them.
pub fn below<'a>(mounts: &'a [Mount], path: &Path) -> Vec<&'a Mount> {
    mounts
        .iter()
        .rev()
        .filter(|mount| mount.target.starts_with(path))
        .collect()
}

/// The mount that `path` lies on. `path` is absolute and has no links.
pub fn holding<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts
        .iter()
        .enumerate()
        .filter(|(_, mount)| path.starts_with(&mount.target))
        // Of several on one path the last one is seen.
        .max_by_key(|(index, mount)| (mount.target.components().count(), *index))
        .map(|(_, mount)| mount)
}

/// Unmounts everything at `path` and below; with `keep` not what is mounted at
/// `path` itself. What is busy is tried again for a second, and then detached:
/// it is gone from the tree, and from the kernel when its last user is.
///
/// # Errors
/// When something is still mounted afterwards.
pub fn unmount_below(path: &Path, keep: bool) -> Result<(), Error> {
    for attempt in 0..RETRIES {
        let mounts = list()?;
        let mut left = below(&mounts, path);
        left.retain(|mount| !(keep && mount.target == path));
        if left.is_empty() {
            return Ok(());
        }
        let last = attempt + 1 >= RETRIES - 1;
        for mount in left {
            let mut flags = MntFlags::UMOUNT_NOFOLLOW;
            if last {
                flags |= MntFlags::MNT_DETACH;
            }
            match umount2(&mount.target, flags) {
                // Gone already, by propagation from another one.
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(Errno::EBUSY) if !last => {}
                Err(errno) => return Err(failed(&mount.target, errno)),
            }
        }
        std::thread::sleep(PAUSE);
    }
    let mounts = list()?;
    match below(&mounts, path)
        .into_iter()
        .find(|mount| !(keep && mount.target == path))
    {
        None => Ok(()),
        Some(mount) => Err(failed(&mount.target, Errno::EBUSY)),
    }
}

const RETRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

fn failed(target: &Path, errno: Errno) -> Error {
    let text = format!("unmount {}: {}", target.display(), errno.desc());
    Error::new(Error::from(errno).kind(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
30 22 0:5 / /proc rw - proc proc rw
40 22 8:2 / /var/lib/gravity rw,noatime - xfs /dev/sdb1 rw
41 40 8:2 /a\\040b /var/lib/gravity/x\\134y rw shared:7 master:1 - xfs /dev/sdb1 rw
42 40 0:50 / /var/lib/gravity2 rw - tmpfs tmpfs rw
nonsense
";

    #[test]
    fn mountinfo_is_read_with_escapes() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 5);
        assert_eq!(mounts[3].target, Path::new("/var/lib/gravity/x\\y"));
        assert_eq!(mounts[3].root, Path::new("/a b"));
        assert!(mounts[3].shared && !mounts[2].shared);
        assert_eq!(mounts[0].options, "rw,relatime,rw,errors=remount-ro");
    }

    #[test]
    fn below_goes_by_components_and_backwards() {
        let mounts = parse(TEXT);
        let targets: Vec<_> = below(&mounts, Path::new("/var/lib/gravity"))
            .iter()
            .map(|m| m.target.clone())
            .collect();
        assert_eq!(
            targets,
            [
                Path::new("/var/lib/gravity/x\\y"),
                Path::new("/var/lib/gravity")
            ]
        );
        let at = |path| holding(&mounts, Path::new(path)).unwrap().source.clone();
        assert_eq!(at("/var/lib/gravity/etcd"), "/dev/sdb1");
        assert_eq!(at("/var/lib/other"), "/dev/sda1");
    }

    #[test]
    fn this_machine_has_a_root_and_nothing_below_nowhere() {
        assert!(
            list()
                .unwrap()
                .iter()
                .any(|mount| mount.target == Path::new("/"))
        );
        unmount_below(Path::new("/no/such/path"), false).unwrap();
    }
}
