//! Watches the room on a disk while services start: on a full one they fail
//! again and again, and none of them says why.
//!
//! In: a directory. Out: an error once its filesystem has been full for a
//! while.

use std::path::Path;
use std::time::Duration;

use operation::PhaseError;

/// Less than this many bytes is nothing: etcd alone allocates 64 MB at once.
const NOTHING: u64 = 16 << 20;
const INTERVAL: Duration = Duration::from_secs(2);
/// Something that is about to be removed may fill it for a moment.
const PATIENCE: u32 = 3;

/// Comes back when the filesystem of `directory` is full and stays so.
pub(crate) async fn exhausted(directory: &Path) -> PhaseError {
    let mut full = 0;
    loop {
        // What can't be measured is not full.
        let available =
            host::facts::space(directory).map_or(u64::MAX, |space| space.available_bytes);
        full = if available < NOTHING { full + 1 } else { 0 };
        if full >= PATIENCE {
            return told(directory, available);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn told(directory: &Path, available: u64) -> PhaseError {
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
    async fn a_disk_with_room_is_never_exhausted_and_the_error_names_a_full_one() {
        let here = tempfile::tempdir().unwrap();
        let watched = tokio::time::timeout(Duration::from_millis(100), exhausted(here.path()));
        assert!(watched.await.is_err());
        let error = told(Path::new("/x"), 3_900_000);
        assert!(
            error.message.contains("/x has 3 MB available") && !error.transient,
            "{error}"
        );
    }
}
