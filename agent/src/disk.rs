//! Watches a disk while services start: on a full or a broken one they fail
//! again and again, and none of them says why.
//!
//! In: a directory. Out: an error once its filesystem has been full for a
//! while, or has not taken a write.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use operation::PhaseError;

/// Less than this many bytes is nothing: etcd alone allocates 64 MB at once.
const NOTHING: u64 = 16 << 20;
const INTERVAL: Duration = Duration::from_secs(2);
/// Something that is about to be removed may fill it for a moment.
const PATIENCE: u32 = 3;
/// Each so many intervals it is written to.
const WRITES: u32 = 5;

/// Comes back when the filesystem of `directory` is full and stays so, or
/// takes no writes.
pub(crate) async fn unusable(directory: &Path) -> PhaseError {
    let (mut full, mut interval) = (0, 0_u32);
    loop {
        interval = interval.wrapping_add(1);
        // What can't be measured is not full.
        let available =
            host::facts::space(directory).map_or(u64::MAX, |space| space.available_bytes);
        full = if available < NOTHING { full + 1 } else { 0 };
        if full >= PATIENCE {
            return is_full(directory, available);
        }
        if interval.is_multiple_of(WRITES) && full == 0 {
            let directory = directory.to_owned();
            let write = tokio::task::spawn_blocking(move || try_write(&directory));
            if let Ok(Err(error)) = write.await {
                return error;
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Writes a block through to the disk, in a file without a name.
fn try_write(directory: &Path) -> Result<(), PhaseError> {
    let written = tempfile::tempfile_in(directory).and_then(|mut file| {
        file.write_all(&[0; 4096])?;
        file.sync_all()
    });
    match written {
        // That is told by who looks at the room.
        Err(error) if error.kind() != std::io::ErrorKind::StorageFull => {
            Err(PhaseError::lasting(format!(
                "the disk of {} takes no writes: {error}; the kernel's log says why. Mend or replace \
                 the disk, check its filesystem, then go on",
                directory.display()
            )))
        }
        _ => Ok(()),
    }
}

fn is_full(directory: &Path, available: u64) -> PhaseError {
    PhaseError::lasting(format!(
        "No space left on device: {} has {} MB available, and services can't start; free some",
        directory.display(),
        available / 1_000_000
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_good_disk_is_watched_for_ever() {
        let here = tempfile::tempdir().unwrap();
        let watched = tokio::time::timeout(Duration::from_millis(100), unusable(here.path()));
        assert!(watched.await.is_err());
        assert_eq!(try_write(here.path()), Ok(()));
    }

    #[test]
    fn the_error_names_a_disk_that_is_full_or_takes_no_writes() {
        let full = is_full(Path::new("/x"), 3_900_000);
        assert!(
            full.message.contains("/x has 3 MB available") && !full.transient,
            "{full}"
        );
        let broken = try_write(Path::new("/proc")).unwrap_err();
        assert!(
            broken.message.contains("/proc takes no writes") && !broken.transient,
            "{broken}"
        );
    }
}
