//! One at a time: a lock file that ends with its holder, however that ends.
//!
//! In: a path. Out: a [`Lock`], or who holds it. The file stays.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A lock that this process holds until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why a lock could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else holds it.
    #[error(
        "another operation ({}) is running; wait for its end, `gravity plan` shows how far it is",
        holder(*.pid)
    )]
    Busy {
        /// The lock.
        path: PathBuf,
        /// Process id of the holder, where it has said it.
        pid: Option<u32>,
    },
    /// The file can't be opened or locked.
    #[error("lock {path}")]
    Io {
        /// The lock.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "of an unknown process".into(),
        |pid| format!("pid {pid}"),
    )
}

impl Lock {
    /// Takes the lock, waiting up to `patience` for its holder.
    ///
    /// # Errors
    /// When somebody holds it until then.
    pub fn wait(path: &Path, patience: Duration) -> Result<Self, LockError> {
        let until = Instant::now() + patience;
        loop {
            match Self::acquire(path) {
                Err(LockError::Busy { .. }) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                result => return result,
            }
        }
    }

    /// Takes the lock, or fails at once. Missing directories are made.
    ///
    /// # Errors
    /// When somebody holds it, this process included.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let io = |source| LockError::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(io)?;
        }
        loop {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(path)
                .map_err(io)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Busy {
                        path: path.to_owned(),
                        pid: read_pid(&mut file),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(io(source)),
            }
            // The last holder may have removed the file: then this one is
            // nobody's, and the next comer would lock another.
            let ours = file.metadata().map_err(io)?;
            match path.metadata() {
                Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => {}
                _ => continue,
            }
            // What the last holder wrote must go: its process id may be another's now.
            file.set_len(0).map_err(io)?;
            file.rewind().map_err(io)?;
            if writeln!(file, "{}", std::process::id()).is_err() {
                // A full disk keeps nobody from the lock: the id is a hint, though half
                // of one would name somebody else.
                drop(file.set_len(0));
            }
            return Ok(Self { _file: file });
        }
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/lock");
        let first = Lock::acquire(&path).unwrap();
        let error = Lock::acquire(&path).unwrap_err();
        let expected = format!("another operation (pid {}) is running", std::process::id());
        assert!(error.to_string().starts_with(&expected), "{error}");
        let short = Lock::wait(&path, Duration::from_millis(30));
        assert!(matches!(short, Err(LockError::Busy { .. })));
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            drop(first);
        });
        drop(Lock::wait(&path, Duration::from_secs(10)).unwrap());
        let first = Lock::acquire(&path).unwrap();
        drop(first);
        let again = Lock::acquire(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        Lock::acquire(&path).unwrap();
        drop(again);
    }

    /// Set for the process of this test that can't write to files.
    const FULL: &str = "GRAVITY_TEST_LOCK_ON_A_FULL_DISK";

    #[test]
    fn a_full_disk_keeps_nobody_from_the_lock() {
        if let Some(path) = std::env::var_os(FULL) {
            let path = Path::new(&path);
            let _lock = Lock::acquire(path).unwrap();
            assert_eq!(path.metadata().unwrap().len(), 0);
            let again = Lock::acquire(path);
            assert!(matches!(again, Err(LockError::Busy { pid: None, .. })));
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        // Without room for one byte a write fails, where the signal doesn't kill.
        let script = "trap '' XFSZ; ulimit -f 0; exec \"$0\" --exact \"$1\"";
        let output = std::process::Command::new("sh")
            .args(["-c", script])
            .arg(std::env::current_exe().unwrap())
            .arg("lock::tests::a_full_disk_keeps_nobody_from_the_lock")
            .env(FULL, directory.path().join("lock"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{output:?}"
        );
    }
}
