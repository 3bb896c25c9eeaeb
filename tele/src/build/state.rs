//! The state directory: what is kept between builds.
//!
//! In: a directory. Out: the caches in it, free of what killed builds left.
//! Any number of builds may use it at once: content appears whole, under its
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
    /// Shared by all builds that run.
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
            // Nobody else builds: what is unfinished will stay so.
            Ok(()) => {
                remove_unfinished(&state.images().join("blobs/sha256"));
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
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
