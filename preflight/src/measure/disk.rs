//! How fast a disk writes, and how soon it has written.
//!
//! In: a directory. Out: bytes a second, and the times that etcd's writes take.
//! The file has no name, so nothing stays behind whatever happens.

use std::fs::File;
use std::io::{Error, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

/// Rate that the state directory should have, in bytes a second: what the
/// original Gravity wanted.
pub(crate) const USUAL_RATE: u64 = 10_000_000;
/// From where on etcd's heartbeats get late, in microseconds (etcd's hardware
/// guide: p99 of fdatasync below 10 ms).
pub(crate) const SLOW_US: u64 = 10_000;
/// From where on a cluster doesn't stay up, in microseconds: the limit of the
/// original Gravity, after lower ones turned good hosts away.
pub(crate) const TOO_SLOW_US: u64 = 150_000;

/// Size of one write of etcd's log, in bytes.
const WRITE: usize = 2300;
/// Size of the file, in bytes; it is written again and again.
const FILE: u64 = 22 << 20;
/// Shortest and longest measurement.
const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(5);

/// Size of one block and of one try to measure a rate, in bytes.
const BLOCK: usize = 1 << 20;
const TRY: u64 = 96 << 20;
/// Longest try.
const TRY_TIME: Duration = Duration::from_secs(3);
/// Room that has to be left for it, in bytes.
const ROOM: u64 = 4 * TRY;

/// What a disk does with etcd's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the writes took no longer, in microseconds.
    pub p50_us: u64,
    /// 99 of 100 writes took no longer, in microseconds.
    pub p99_us: u64,
    /// Writes a second.
    pub iops: u64,
}

/// Measures etcd's pattern: small writes one after the other, each on the disk
/// before the next. Two seconds where the result is clear, five elsewhere.
pub(crate) fn latency(directory: &Path) -> Result<Latency, String> {
    measure_latency(directory, SHORT, LONG).map_err(|error| error.to_string())
}

fn measure_latency(directory: &Path, short: Duration, long: Duration) -> Result<Latency, Error> {
    let file = tempfile::tempfile_in(directory)?;
    let size = i64::try_from(FILE).unwrap_or(i64::MAX);
    // As etcd does; a filesystem that can't is measured as it is.
    let _ = fallocate(&file, FallocateFlags::empty(), 0, size);
    file.sync_all()?;
    let data = noise(WRITE);
    let begin = Instant::now();
    let mut times = Vec::new();
    let mut offset = 0;
    loop {
        let before = Instant::now();
        file.write_all_at(&data, offset)?;
        file.sync_data()?;
        times.push(microseconds(before.elapsed()));
        offset = (offset + WRITE as u64) % (FILE - WRITE as u64);
        let passed = begin.elapsed();
        if passed >= long || (passed >= short && times.len() >= 20 && is_clear(&times)) {
            return Ok(summary(times, passed));
        }
    }
}

/// Whether the result is far from both limits. Sorting is dear, so only a few
/// times are looked at: the slow ones decide.
fn is_clear(times: &[u64]) -> bool {
    let slow = |limit: u64| times.iter().filter(|time| **time > limit).count() * 100 / times.len();
    let clear = |limit: u64| slow(limit / 2) == 0 || slow(limit * 2) > 2;
    times.len().is_multiple_of(64) && clear(SLOW_US) && clear(TOO_SLOW_US)
}

fn summary(mut times: Vec<u64>, passed: Duration) -> Latency {
    times.sort_unstable();
    let percentile = |percent: usize| {
        let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(index).copied().unwrap_or(0)
    };
    let count = times.len() as u64;
    Latency {
        p50_us: percentile(50),
        p99_us: percentile(99),
        iops: count.saturating_mul(1_000_000) / microseconds(passed).max(1),
    }
}

/// Measures how fast is written, until on the disk: the best of up to three
/// tries. One does where it is well above `wanted` bytes a second.
pub(crate) fn rate(directory: &Path, wanted: u64) -> Result<u64, String> {
    let space = host::facts::space(directory).map_err(|error| error.to_string())?;
    if space.available_bytes < ROOM {
        return Err(format!("less than {} MB free", ROOM / 1_000_000));
    }
    let mut best = 0;
    for _ in 0..3 {
        let rate = try_rate(directory, TRY, TRY_TIME).map_err(|error| error.to_string())?;
        best = best.max(rate);
        if best >= wanted.saturating_add(wanted / 2) {
            break;
        }
    }
    Ok(best)
}

fn try_rate(directory: &Path, size: u64, time: Duration) -> Result<u64, Error> {
    let mut file: File = tempfile::tempfile_in(directory)?;
    let block = noise(BLOCK);
    let begin = Instant::now();
    let mut written = 0;
    while written < size && begin.elapsed() < time {
        file.write_all(&block)?;
        written += BLOCK as u64;
        // Else the memory takes it all, and the sync at the end all the time.
        if written.is_multiple_of(16 << 20) {
            file.sync_data()?;
        }
    }
    file.sync_data()?;
    Ok(written.saturating_mul(1_000_000) / microseconds(begin.elapsed()).max(1))
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Bytes that don't compress: some disks and filesystems do.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_summed_up() {
        let times: Vec<_> = (1..=1000).rev().collect();
        let latency = summary(times, Duration::from_secs(2));
        assert_eq!(
            (latency.p50_us, latency.p99_us, latency.iops),
            (500, 990, 500)
        );
        assert_eq!(summary(vec![7], Duration::from_millis(1)).p99_us, 7);
    }

    #[test]
    fn a_result_is_clear_when_it_is_far_from_the_limits() {
        assert!(is_clear(&[100; 128]));
        assert!(is_clear(&[SLOW_US * 3; 128]));
        assert!(is_clear(&[TOO_SLOW_US * 3; 128]));
        assert!(!is_clear(&[SLOW_US; 128]));
        assert!(!is_clear(&[TOO_SLOW_US; 128]));
    }

    #[test]
    fn this_disk_can_be_measured_and_nothing_stays() {
        let directory = tempfile::tempdir().unwrap();
        let short = Duration::from_millis(5);
        let latency = measure_latency(directory.path(), short, short * 2).unwrap();
        assert!(latency.p50_us <= latency.p99_us && latency.iops > 0);
        assert!(try_rate(directory.path(), 1, short).unwrap() > 0);
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
        assert!(super::latency(Path::new("/no/such/directory")).is_err());
        assert_eq!(noise(3), noise(3));
    }
}
