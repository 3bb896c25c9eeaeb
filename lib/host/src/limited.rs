//! Log files within limits.
//!
//! In: a log that is appended to. Out: the same, of at most [`MAX_SIZE`] bytes when
//! somebody looks often enough, and one [`older`] part beside it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// A log may grow to so many bytes.
pub const MAX_SIZE: u64 = 20 << 20;

/// Where the older part of a log is.
pub fn older(log: &Path) -> PathBuf {
    let mut older = log.as_os_str().to_owned();
    older.push(".1");
    older.into()
}

/// Copies a log that is too large aside, where there is room for that, and empties it.
/// Whoever has it open for appending writes on at its new end. A missing log is small.
/// Links are not followed: whoever may write to the directory could have made them.
///
/// # Errors
/// When it can't be opened or emptied.
pub fn keep(log: &Path) -> io::Result<()> {
    let opened = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(log);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    if file.metadata()?.len() <= MAX_SIZE {
        return Ok(());
    }
    let older = older(log);
    if set_aside(&file, &older).is_err() {
        // Old lines are worth less than room on a full disk, and half of them nothing.
        drop(fs::remove_file(&older));
    }
    file.set_len(0)
}

/// Copies a log into a file of our own, in place of whatever is there.
fn set_aside(mut log: &File, older: &Path) -> io::Result<()> {
    drop(fs::remove_file(older));
    let mut copy = File::options()
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(older)?;
    io::copy(&mut log, &mut copy).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_writer_goes_on_in_the_emptied_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        keep(&path).unwrap();
        let mut log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        log.write_all(b"old\n").unwrap();
        keep(&path).unwrap();
        assert!(!older(&path).exists());
        log.set_len(MAX_SIZE + 1).unwrap();
        keep(&path).unwrap();
        log.write_all(b"new\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new\n");
        let aside = fs::metadata(directory.path().join("x.log.1")).unwrap();
        assert_eq!(aside.len(), MAX_SIZE + 1);
    }

    #[test]
    fn a_log_is_emptied_also_where_it_can_not_be_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        fs::create_dir(older(&path)).unwrap();
        let log = File::create(&path).unwrap();
        log.set_len(MAX_SIZE + 1).unwrap();
        keep(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, target) = (
            directory.path().join("x.log"),
            directory.path().join("target"),
        );
        let file = File::create(&target).unwrap();
        file.set_len(MAX_SIZE + 1).unwrap();
        symlink(&target, &path).unwrap();
        assert!(keep(&path).is_err());
        assert_eq!(file.metadata().unwrap().len(), MAX_SIZE + 1);

        fs::remove_file(&path).unwrap();
        file.set_len(0).unwrap();
        symlink(&target, older(&path)).unwrap();
        let log = File::create(&path).unwrap();
        log.set_len(MAX_SIZE + 1).unwrap();
        keep(&path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        assert!(fs::symlink_metadata(older(&path)).unwrap().is_file());
    }

    #[test]
    fn the_older_part_has_a_mode_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let log = File::create(&path).unwrap();
        log.set_len(MAX_SIZE + 1).unwrap();
        // After the length, which takes these bits away.
        log.set_permissions(fs::Permissions::from_mode(0o4755))
            .unwrap();
        keep(&path).unwrap();
        let mode = fs::metadata(older(&path)).unwrap().permissions().mode();
        // The umask may take more.
        assert_eq!(mode & 0o7777 & !0o640, 0, "{mode:o}");
    }
}
