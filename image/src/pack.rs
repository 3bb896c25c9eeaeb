//! A directory as a tar with the same bytes every time.
//!
//! In: a directory and patterns of what is left out. Out: a tar with entries
//! sorted by name, owner 0, one time for all; names, permission bits and
//! symbolic links are kept. [`crate::unpack`] with
//! [`crate::unpack::Options::resources`] takes it.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::digest::Hasher;
use crate::unpack::{Limits, Options, stays_inside};
use crate::{Error, Result};

/// Most directories in one another.
const MAX_DEPTH: usize = 60;

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Digest of the tar.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    /// Number of its entries.
    pub entries: u64,
}

struct Counting<W> {
    out: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Packs what is in `dir` to `out`.
///
/// `ignore` holds glob patterns that are matched with the path below `dir` and
/// with the name alone; an ignored directory is left out with all in it.
/// `mtime` is the time of every entry in seconds since 1970: 0 or
/// `SOURCE_DATE_EPOCH`.
///
/// # Errors
/// [`Error::Pack`] names a file that can't be packed: a device, a socket, a
/// link that leads out of the directory, a malformed pattern; or tells that there
/// is more than is unpacked.
pub fn pack_dir(dir: &Path, ignore: &[String], mtime: u64, out: impl Write) -> Result<Packed> {
    pack_within(Options::resources().limits, dir, ignore, mtime, out)
}

fn pack_within(
    limits: Limits,
    dir: &Path,
    ignore: &[String],
    mtime: u64,
    out: impl Write,
) -> Result<Packed> {
    let patterns = ignore
        .iter()
        .map(|pattern| {
            glob::Pattern::new(pattern).map_err(|error| Error::Pack {
                path: dir.to_owned(),
                reason: format!("the pattern `{pattern}` is malformed: {error}"),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let counting = Counting {
        out,
        hasher: Hasher::default(),
        size: 0,
    };
    let mut packer = Packer {
        dir,
        patterns,
        mtime,
        tar: tar::Builder::new(counting),
        limits,
        entries: 0,
        bytes: 0,
    };
    packer.tar.follow_symlinks(false);
    packer.directory(&PathBuf::new(), 0)?;
    let entries = packer.entries;
    let mut counting = packer.tar.into_inner().map_err(Error::at("pack", dir))?;
    counting.flush().map_err(Error::at("pack", dir))?;
    Ok(Packed {
        digest: counting.hasher.finish(),
        size: counting.size,
        entries,
    })
}

struct Packer<'a, W: Write> {
    dir: &'a Path,
    patterns: Vec<glob::Pattern>,
    mtime: u64,
    tar: tar::Builder<Counting<W>>,
    limits: Limits,
    entries: u64,
    /// Of files.
    bytes: u64,
}

impl<W: Write> Packer<'_, W> {
    fn directory(&mut self, relative: &Path, depth: usize) -> Result<()> {
        let path = self.dir.join(relative);
        if depth > MAX_DEPTH {
            let reason = format!("it is more than {MAX_DEPTH} directories deep");
            return Err(Error::Pack { path, reason });
        }
        let mut names: Vec<std::ffi::OsString> = std::fs::read_dir(&path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
            .map_err(Error::at("read", &path))?;
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        for name in names {
            let below = relative.join(&name);
            let ignored = self.patterns.iter().any(|pattern| {
                pattern.matches_path(&below) || pattern.matches_path(Path::new(&name))
            });
            if !ignored {
                self.entry(&below, depth)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, relative: &Path, depth: usize) -> Result<()> {
        let path = self.dir.join(relative);
        let meta = std::fs::symlink_metadata(&path).map_err(Error::at("read", &path))?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(meta.permissions().mode() & 0o777);
        header.set_mtime(self.mtime);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(self.too_much(format!("{} entries", self.limits.entries)));
        }
        if meta.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            self.tar
                .append_data(&mut header, relative, std::io::empty())
                .map_err(Error::at("pack", &path))?;
            return self.directory(relative, depth + 1);
        }
        if meta.is_symlink() {
            let target = std::fs::read_link(&path).map_err(Error::at("read", &path))?;
            if !stays_inside(target.as_os_str().as_bytes(), depth) {
                let reason = format!("it is a link out of the directory, to {}", target.display());
                return Err(Error::Pack { path, reason });
            }
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            return self
                .tar
                .append_link(&mut header, relative, target)
                .map_err(Error::at("pack", &path));
        }
        if !meta.is_file() {
            let reason = "it is neither a file, a directory nor a symbolic link".into();
            return Err(Error::Pack { path, reason });
        }
        let file = std::fs::File::open(&path).map_err(Error::at("open", &path))?;
        let size = file.metadata().map_err(Error::at("read", &path))?.len();
        header.set_size(size);
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return Err(self.too_much(format!("{} bytes in its files", self.limits.bytes)));
        }
        let before = self.tar.get_ref().size;
        // A file that grows meanwhile must not spoil the tar.
        let content = std::io::Read::take(file, size);
        self.tar
            .append_data(&mut header, relative, content)
            .map_err(Error::at("pack", &path))?;
        if self.tar.get_ref().size - before < size {
            return Err(Error::Pack {
                path,
                reason: "it shrank while it was read".into(),
            });
        }
        Ok(())
    }

    fn too_much(&self, limit: String) -> Error {
        let path = self.dir.to_owned();
        let reason = format!(
            "it has more than {limit}, which no install unpacks: leave out what the cluster doesn't need, or put it into a container image"
        );
        Error::Pack { path, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReadChunks;
    use crate::unpack::unpack;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("charts/example/templates")).unwrap();
        std::fs::create_dir_all(at(".git/objects")).unwrap();
        for (name, text) in [
            ("app.yaml", "manifest"),
            ("charts/example/Chart.yaml", "name: example"),
            (".git/objects/x", "x"),
            ("cluster.tar", "old output"),
        ] {
            std::io::Write::write_all(
                &mut std::fs::File::create(at(name)).unwrap(),
                text.as_bytes(),
            )
            .unwrap();
        }
        let long = "n".repeat(150);
        std::fs::File::create(at(&long)).unwrap();
        std::os::unix::fs::symlink("../../app.yaml", at("charts/example/link")).unwrap();
        std::fs::set_permissions(at("app.yaml"), std::fs::Permissions::from_mode(0o750)).unwrap();
        dir
    }

    #[test]
    fn the_same_directory_gives_the_same_bytes_and_comes_back() {
        let dir = tree();
        let ignore = vec![".git".to_owned(), "*.tar".to_owned()];
        let mut first = Vec::new();
        let packed = pack_dir(dir.path(), &ignore, 0, &mut first).unwrap();
        assert_eq!(packed.digest, crate::digest::sha256(&first));
        assert_eq!(packed.size, first.len() as u64);
        let later = std::fs::File::options()
            .write(true)
            .open(dir.path().join("app.yaml"))
            .unwrap();
        later
            .set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        let mut second = Vec::new();
        pack_dir(dir.path(), &ignore, 0, &mut second).unwrap();
        assert_eq!(first, second);

        let out = tempfile::tempdir().unwrap();
        let dest = out.path().join("resources");
        let mut chunks = ReadChunks::new(first.as_slice());
        unpack(
            &mut [&mut chunks],
            &dest,
            &Options::resources(),
            &event::Discard,
        )
        .unwrap();
        assert_eq!(
            std::fs::read(dest.join("charts/example/link")).unwrap(),
            b"manifest"
        );
        let mode = std::fs::metadata(dest.join("app.yaml"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o750);
        assert!(dest.join("n".repeat(150)).exists());
        assert!(!dest.join(".git").exists() && !dest.join("cluster.tar").exists());
    }

    #[test]
    fn what_cannot_be_packed_is_named() {
        let dir = tree();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("out")).unwrap();
        let error = pack_dir(dir.path(), &[], 0, Vec::new())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("out") && error.contains("/etc/passwd"),
            "{error}"
        );
        std::fs::remove_file(dir.path().join("out")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("sock")).unwrap();
        let error = pack_dir(dir.path(), &[], 0, Vec::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains("sock"), "{error}");
        assert!(pack_dir(dir.path(), &["[".into()], 0, Vec::new()).is_err());
    }

    #[test]
    fn what_no_install_unpacks_is_not_packed() {
        let dir = tree();
        let mut tar = Vec::new();
        let packed = pack_dir(dir.path(), &[], 0, &mut tar).unwrap();
        let bytes = "manifestname: examplexold output".len() as u64;
        let limits = |entries, bytes| Limits {
            entries,
            bytes,
            ..Options::resources().limits
        };
        let pack = |limits| pack_within(limits, dir.path(), &[], 0, Vec::new());
        let unpacks = |limits| {
            let dest = tempfile::tempdir().unwrap();
            let options = Options {
                limits,
                ..Options::resources()
            };
            let mut chunks = ReadChunks::new(tar.as_slice());
            let dest = dest.path().join("resources");
            unpack(&mut [&mut chunks], &dest, &options, &event::Discard).is_ok()
        };
        let enough = limits(packed.entries, bytes);
        assert!(pack(enough).unwrap() == packed && unpacks(enough));
        for (short, reason) in [
            (limits(packed.entries - 1, bytes), "entries, which"),
            (limits(packed.entries, bytes - 1), "bytes in its files"),
        ] {
            let error = pack(short).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert!(!unpacks(short));
        }
    }
}
