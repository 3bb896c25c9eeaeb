//! Keeps the logs of services within limits.
//!
//! Services write straight into their files, opened for appending, so that
//! they go on when the supervisor ends. A file that is too large is copied
//! aside and emptied; the service writes on at its new end.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::LOGS;
use crate::error::{Context, Result};

/// A log may grow to so many bytes; one older part is kept.
const MAX_SIZE: u64 = 20 << 20;
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
            if fs::metadata(&path).is_ok_and(|log| log.len() > MAX_SIZE) {
                let result = tokio::task::spawn_blocking(move || set_aside(&path)).await;
                if let Ok(Err(error)) = result {
                    tracing::warn!("log of {service}: {error}");
                }
            }
        }
    }
}

fn set_aside(path: &Path) -> io::Result<()> {
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    fs::copy(path, &old)?;
    File::options().write(true).open(path)?.set_len(0)
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
    fn a_writer_goes_on_in_the_emptied_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let mut log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        log.write_all(b"old\n").unwrap();
        set_aside(&path).unwrap();
        log.write_all(b"new\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new\n");
        assert_eq!(
            fs::read(directory.path().join("x.log.1")).unwrap(),
            b"old\n"
        );
    }

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
