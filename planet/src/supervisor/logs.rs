//! Keeps the logs of services within limits.
//!
//! Services write straight into their files, opened for appending, so that
//! they go on when the supervisor ends.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::LOGS;
use crate::error::{Context, Result};

/// How often sizes are looked at.
const EVERY: Duration = Duration::from_secs(30);
/// So much of the end of a log is searched for its last line.
const TAIL: u64 = 4096;

pub(super) fn path(service: &str) -> PathBuf {
    Path::new(LOGS).join(format!("{service}.log"))
}

/// Opens a service's log.
pub(super) fn open(service: &str) -> Result<File> {
    let path = path(service);
    File::options()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(&path)
        .at("open", &path)
}

/// Log of the planet's daemon on hosts without systemd, which writes there from
/// outside.
pub(super) const DAEMON: &str = "planet";

/// Empties logs that are too large, for ever.
pub(super) async fn rotate(services: Vec<String>) {
    loop {
        tokio::time::sleep(EVERY).await;
        for service in &services {
            let path = path(service);
            let kept = tokio::task::spawn_blocking(move || host::limited::keep(&path)).await;
            if let Ok(Err(error)) = kept {
                tracing::warn!("log of {service}: {error}");
            }
        }
    }
}

/// The last line of a service's log, for an error message.
pub(super) fn last_line(path: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))
        .ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    let text = String::from_utf8_lossy(&tail);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.chars().take(400).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn last_line_of_a_long_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let mut log = File::create(&path).unwrap();
        for number in 0..5000 {
            writeln!(log, "line {number}").unwrap();
        }
        writeln!(log).unwrap();
        assert_eq!(last_line(&path).unwrap(), "line 4999");
        assert_eq!(last_line(Path::new("/nonexistent")), None);
    }
}
