//! What a copy of a member's data comes to.
//!
//! In: the data of a member that doesn't run, copied. Out: a snapshot that holds
//! all of it, also what the cluster had no time to agree on. etcd does that by
//! itself when its log says that all is committed: it runs on the copy, alone,
//! until it has applied the last entry. Nobody can reach it meanwhile but by
//! sockets below the copy, and it has no certificate to speak to others with.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use operation::PhaseError;

use super::{Etcd, log};
use crate::node::{file, transient};

/// How long it may take to apply its log: 10 000 entries, on a slow disk.
const APPLY: Duration = Duration::from_secs(600);
/// How long it may take to end.
const END: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one look may take.
const LOOK: Duration = Duration::from_secs(5);
/// Most bytes of an answer.
const MAX_ANSWER: u64 = 4 << 20;
/// Socket of metrics, below the copy; etcd demands something like a port.
const METRICS: &str = "metrics:0";
/// Its gauge of the last entry that was applied.
const APPLIED: &str = "etcd_server_proposals_applied_total ";
/// It ends when the standard input does: with this process, however that ends.
const SCRIPT: &str = r#"exec 3<&0; "$@" 3<&- & p=$!; (read -r _ <&3; kill $p) & wait $p"#;

impl Etcd {
    /// Makes the snapshot `to`, which must not exist, of what a copy holds. The
    /// copy, a data directory, is changed.
    ///
    /// # Errors
    /// When the copy is damaged, or there is no room.
    pub(crate) fn collect(&self, copy: &Path, to: &Path) -> Result<(), PhaseError> {
        let last = log::commit_all(&copy.join("member/wal"))?;
        let ended = {
            let mut running = Running(self.start(copy)?);
            running.wait_applied(copy, last)?;
            running.end()?
        };
        if !ended {
            return Err(PhaseError::transient(said(copy)));
        }
        append_sum(&copy.join("member/snap/db"), to)
    }

    fn start(&self, copy: &Path) -> Result<Child, PhaseError> {
        let program = self.programs.join("etcd");
        let output = copy.join("etcd.log");
        let failed = file("start etcd on", copy);
        let errors = File::create(&output).map_err(failed)?;
        Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(program)
            .args([
                OsStr::new("--name=copy"),
                OsStr::new("--data-dir=."),
                OsStr::new("--listen-client-urls=unix://client:0"),
                OsStr::new("--advertise-client-urls=unix://client:0"),
                OsStr::new("--listen-peer-urls=unix://peer:0"),
                OsStr::new("--initial-advertise-peer-urls=unix://peer:0"),
                OsStr::new("--initial-cluster=copy=unix://peer:0"),
                OsStr::new(&format!("--listen-metrics-urls=unix://{METRICS}")),
                OsStr::new("--log-level=warn"),
            ])
            .current_dir(copy)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .map_err(failed)
    }
}

/// An etcd that ends with this.
struct Running(Child);

impl Running {
    fn wait_applied(&mut self, copy: &Path, last: u64) -> Result<(), PhaseError> {
        let end = Instant::now() + APPLY;
        loop {
            if applied(&copy.join(METRICS)).is_some_and(|applied| applied >= last) {
                return Ok(());
            }
            let ended = !matches!(self.0.try_wait(), Ok(None));
            if ended || Instant::now() > end {
                return Err(PhaseError::transient(said(copy)));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Ends it, so that all of its data are on the disk. Whether it did.
    fn end(&mut self) -> Result<bool, PhaseError> {
        drop(self.0.stdin.take());
        let end = Instant::now() + END;
        loop {
            match self.0.try_wait() {
                Ok(None) if Instant::now() < end => std::thread::sleep(PAUSE),
                Ok(status) => return Ok(status.is_some()),
                Err(error) => return Err(transient(error)),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Where it has ended by itself there is nothing to do.
        let _ = self.end();
    }
}

/// What it wrote at last.
fn said(copy: &Path) -> String {
    let log = std::fs::read_to_string(copy.join("etcd.log")).unwrap_or_default();
    let last = log.lines().rev().find(|line| !line.trim().is_empty());
    format!(
        "etcd does not come to terms with a copy of this node's data: {}",
        last.map_or("it does not say why", |line| line)
    )
}

/// Index of the last entry that it has applied.
fn applied(socket: &Path) -> Option<u64> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(LOOK)).ok()?;
    stream
        .write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
        .ok()?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer).ok()?;
    gauge(&answer)
}

fn gauge(metrics: &str) -> Option<u64> {
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix(APPLIED))?;
    let value: f64 = value.trim().parse().ok()?;
    // Whole numbers of this size are exact.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (0.0..9e15).contains(&value).then_some(value as u64)
}

/// Makes a snapshot of a database: the same with its SHA-256.
fn append_sum(database: &Path, to: &Path) -> Result<(), PhaseError> {
    let mut from = File::open(database).map_err(file("read", database))?;
    let failed = file("write", to);
    let mut snapshot = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(failed)?;
    let mut sum = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = from.read(&mut buffer).map_err(file("read", database))?;
        if read == 0 {
            break;
        }
        sum.update(&buffer[..read]);
        snapshot.write_all(&buffer[..read]).map_err(failed)?;
    }
    snapshot
        .write_all(sum.finish().as_ref())
        .and_then(|()| snapshot.sync_all())
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_applied_entry_is_among_the_metrics() {
        let metrics = |value: &str| {
            format!(
                "HTTP/1.0 200 OK\r\n\r\n# TYPE etcd_server_proposals_applied_total gauge\n\
                 etcd_server_proposals_applied_total {value}\netcd_server_proposals_pending 0\n"
            )
        };
        assert_eq!(gauge(&metrics("1035")), Some(1035));
        assert_eq!(gauge(&metrics("1.234567e+06")), Some(1_234_567));
        for none in ["NaN", "-1", "x", "1e300"] {
            assert_eq!(gauge(&metrics(none)), None, "{none}");
        }
        assert_eq!(gauge("HTTP/1.0 404 Not Found\r\n"), None);
    }

    #[test]
    fn a_database_with_its_sum_is_a_snapshot() {
        let directory = tempfile::tempdir().unwrap();
        let (database, to) = (directory.path().join("db"), directory.path().join("a"));
        host::atomic::write(&database, &vec![7; 3 << 20], 0o600).unwrap();
        append_sum(&database, &to).unwrap();
        super::super::check_sum(&to).unwrap();
        assert!(append_sum(&database, &to).is_err(), "it exists");
    }

    #[test]
    fn a_program_ends_with_the_one_that_started_it() {
        let directory = tempfile::tempdir().unwrap();
        let started = Command::new("sh")
            .args(["-c", SCRIPT, "sh", "sh", "-c"])
            .arg("trap 'echo ended > ended; exit 3' TERM; echo > begun; while :; do sleep 0.05; done")
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let begun = directory.path().join("begun");
        let mut running = Running(started);
        while !begun.exists() {
            std::thread::sleep(PAUSE);
        }
        assert!(running.0.try_wait().unwrap().is_none());
        assert!(running.end().unwrap());
        assert!(directory.path().join("ended").exists());
    }
}
