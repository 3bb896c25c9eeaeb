//! Files that are there whole or not at all.
//!
//! In: a path, bytes, permission bits, an owner. Out: after success the file is on
//! disk, also after a loss of power; after any failure the former file is untouched.
//! A writer that was killed leaves at most `.NAME.new` beside it, which the
//! next writer of the same file uses up.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Error, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write {path}")]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: Error,
}

/// Writes a file with exactly these permission bits. The directory must exist.
/// Several writers of one file wait for each other.
///
/// # Errors
/// When the kernel refuses any of it, a full disk included.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), WriteError> {
    replace(path, bytes, mode, None).map_err(failed(path))
}

/// [`write`] for a file of another user: nobody ever finds it with another owner.
///
/// # Errors
/// As [`write`], and when this process may not give files away.
pub fn write_owned(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    uid: u32,
    gid: u32,
) -> Result<(), WriteError> {
    replace(path, bytes, mode, Some((uid, gid))).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(Error) -> WriteError {
    move |source| WriteError {
        path: path.to_owned(),
        source,
    }
}

fn replace(path: &Path, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<(), Error> {
    let new = unfinished(path)?;
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    let mut file = claim(&new)?;
    let written = (|| {
        file.set_len(0)?;
        file.write_all(bytes)?;
        // The owner first: a change of it clears bits of the mode.
        if let Some((uid, gid)) = owner {
            fchown(&file, Some(uid), Some(gid))?;
        }
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    })();
    if let Err(error) = written {
        // The first error counts; a leftover would be used up by the next write.
        drop(std::fs::remove_file(&new));
        return Err(error);
    }
    sync_directory(directory)
}

/// Where what is to be at `path` is made: `.NAME.new` beside it.
pub(crate) fn unfinished(path: &Path) -> Result<PathBuf, Error> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "not the path of a file"))?;
    let mut new = std::ffi::OsString::from(".");
    new.push(name);
    new.push(".new");
    Ok(path.with_file_name(new))
}

/// Opens the new file and locks it. Whoever waited for the lock finds that the
/// file was renamed meanwhile, and starts again.
fn claim(new: &Path) -> Result<File, Error> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(new)?;
        file.lock()?;
        let ours = file.metadata()?;
        match new.symlink_metadata() {
            Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Makes names in a directory durable.
///
/// # Errors
/// When the kernel can't.
pub fn sync_directory(directory: &Path) -> Result<(), Error> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        write(&path, b"one, longer", 0o644).unwrap();
        // What a killed writer left is used up.
        std::fs::copy(&path, directory.path().join(".f.new")).unwrap();
        write(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(
            path.metadata().unwrap().permissions().mode() & 0o7777,
            0o600
        );
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_replaced_by_one_of_its_owner_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        write(&path, b"former", 0o600).unwrap();
        let own = path.metadata().unwrap();
        let (uid, gid) = (own.uid(), own.gid());
        write_owned(&path, b"own", 0o4755, uid, gid).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o4755);
        // Root may give it away.
        let given = write_owned(&path, b"given", 0o600, uid + 1, gid).is_ok();
        let (content, owner) = match given {
            true => ("given", uid + 1),
            false => ("own", uid),
        };
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        assert_eq!(path.metadata().unwrap().uid(), owner);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn errors_name_the_file() {
        let error = write(Path::new("/nonexistent/f"), b"", 0o644).unwrap_err();
        assert_eq!(error.to_string(), "write /nonexistent/f");
        assert!(write(Path::new("/"), b"", 0o644).is_err());
    }

    #[test]
    fn concurrent_writers_leave_one_whole_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::thread::scope(|scope| {
            for byte in 0..8u8 {
                let path = &path;
                scope.spawn(move || write(path, &vec![byte; 50_000], 0o644).unwrap());
            }
        });
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 50_000);
        assert!(bytes.iter().all(|b| *b == bytes[0]));
    }
}
