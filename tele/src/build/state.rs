//! The state directory: what is kept between builds and pulls.
//!
//! In: a directory. Out: the caches in it, free of what killed commands left.
//! Any number of them may use it at once: content appears whole, under its
//! digest.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Prefix of unfinished files of the caches.
const UNFINISHED: &str = ".partial-";

/// A state directory in use.
#[derive(Debug)]
pub(crate) struct State {
    dir: PathBuf,
    /// Shared by all commands that run.
    _lock: File,
}

impl State {
    /// Opens the directory, which is made where there is none.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let what = || format!("cannot use the state directory {}", dir.display());
        std::fs::create_dir_all(dir).with_context(what)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("lock"))
            .with_context(what)?;
        let state = Self {
            dir: dir.to_owned(),
            _lock: lock,
        };
        let lock = &state._lock;
        match lock.try_lock() {
            // Nobody else is there: what is unfinished will stay so.
            Ok(()) => {
                for layout in [state.images(), state.hub()] {
                    remove_unfinished(&layout);
                    remove_unfinished(&layout.join("blobs/sha256"));
                }
                remove_unfinished(&state.encoded());
                lock.unlock().with_context(what)?;
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error).with_context(what),
        }
        lock.lock_shared().with_context(what)?;
        Ok(state)
    }

    /// Layout with container images.
    pub(crate) fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    /// Layout with base images of a registry.
    fn hub(&self) -> PathBuf {
        self.dir.join("hub")
    }

    /// Cache of compressed content.
    pub(crate) fn encoded(&self) -> PathBuf {
        self.dir.join("encoded")
    }
}

fn remove_unfinished(dir: &Path) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            // What can't be removed is in nobody's way.
            let _ = match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => std::fs::remove_dir_all(entry.path()),
                false => std::fs::remove_file(entry.path()),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_commands_left_is_removed_when_nobody_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut left = Vec::new();
        for below in [
            "images",
            "images/blobs/sha256",
            "hub",
            "hub/blobs/sha256",
            "encoded",
        ] {
            let below = dir.path().join(below);
            std::fs::create_dir_all(below.join(".partial-a")).unwrap();
            host::atomic::write(&below.join(".partial-a/image.tar"), b"", 0o644).unwrap();
            host::atomic::write(&below.join(".partial-b"), b"", 0o644).unwrap();
            host::atomic::write(&below.join("kept"), b"", 0o644).unwrap();
            left.extend([below.join(".partial-a"), below.join(".partial-b")]);
        }
        // A pull that runs.
        let (_state, cache) = crate::hub::cache(Some(&dir.path().to_owned())).unwrap();
        assert!(left.iter().all(|path| !path.exists()));
        assert!(dir.path().join("images/kept").exists());
        let blob = cache.begin_blob().unwrap();
        State::open(dir.path()).unwrap();
        blob.finish("a/b").unwrap();
    }
}
