//! Log files within limits.
//!
//! In: a log that is appended to. Out: the same, of at most [`MAX_SIZE`] bytes when
//! somebody looks often enough, and one [`older`] part beside it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

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
///
/// # Errors
/// When it can't be emptied.
pub fn keep(log: &Path) -> io::Result<()> {
    match fs::metadata(log).is_ok_and(|found| found.len() > MAX_SIZE) {
        true => set_aside(log),
        false => Ok(()),
    }
}

fn set_aside(log: &Path) -> io::Result<()> {
    let older = older(log);
    if fs::copy(log, &older).is_err() {
        // Old lines are worth less than room on a full disk, and half of them nothing.
        drop(fs::remove_file(&older));
    }
    File::options().write(true).open(log)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

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
}
