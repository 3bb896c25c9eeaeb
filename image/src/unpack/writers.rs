//! The threads that write the content of files.
//!
//! In: batches of pieces, of several files at once. Out: written files, whose attributes
//! are set with their last byte, or the first error. Always holds: the queue is emptied
//! whatever fails, so that who fills it is never held up for ever.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

use super::tree::{Meta, Owner};
use crate::chunks::Chunk;
use crate::{Error, Result};

/// From this size on a piece is sent to the disk at once, not at the end.
const EARLY_WRITEBACK: usize = 256 << 10;

/// A file that is being written by several threads.
pub(super) struct Target {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) meta: Meta,
    /// Bytes that nobody has written yet.
    pub(super) remaining: AtomicU64,
}

/// A piece of a file; none for an empty file.
pub(super) struct Job {
    pub(super) target: Arc<Target>,
    pub(super) offset: u64,
    pub(super) piece: Option<(Arc<Chunk>, Range<usize>)>,
}

impl Job {
    fn run(self, owner: Option<&Owner>) -> Result<()> {
        let target = &self.target;
        let mut length = 0;
        if let Some((chunk, range)) = &self.piece {
            let bytes = &chunk[range.clone()];
            target
                .file
                .write_all_at(bytes, self.offset)
                .map_err(Error::at("write", &target.path))?;
            length = bytes.len() as u64;
            if bytes.len() >= EARLY_WRITEBACK {
                // Starts the writeback of dirty pages, so that the sync at the
                // end finds little to do. Only a hint.
                let _ = rustix::fs::fadvise(
                    &target.file,
                    self.offset,
                    std::num::NonZeroU64::new(length),
                    rustix::fs::Advice::DontNeed,
                );
            }
        }
        // Whoever writes the last byte sets the time.
        if target.remaining.fetch_sub(length, Ordering::AcqRel) == length {
            target
                .meta
                .apply(target.file.as_fd(), owner)
                .map_err(Error::at("set the attributes of", &target.path))?;
        }
        Ok(())
    }
}

/// The first error of a thread, for who hands out the jobs.
#[derive(Default)]
pub(super) struct Failure {
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
}

impl Failure {
    fn set(&self, error: Error) {
        self.error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.failed.load(Ordering::Acquire)
            && let Some(error) = self
                .error
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
        {
            return Err(error);
        }
        Ok(())
    }
}

/// Does the jobs of one thread until there will be no more.
pub(super) fn write(
    receiver: &Mutex<Receiver<Vec<Job>>>,
    owner: Option<&Owner>,
    failure: &Failure,
) {
    loop {
        let batch = receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(batch) = batch else { return };
        for job in batch {
            // After a failure jobs are only taken, so that the sender goes on.
            if !failure.failed.load(Ordering::Acquire)
                && let Err(error) = job.run(owner)
            {
                failure.set(error);
            }
        }
    }
}
