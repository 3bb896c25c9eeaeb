//! The disk test of `gravity check` against fio.
//!
//! In: the cache directory's disk. Out: rows for the writes a second and the
//! slowest of a hundred. Both write as etcd's log does: 2,300 bytes, then
//! fdatasync, into 22 MiB. The state directory is on the same disk as fio's
//! file.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use event::Sink;
use serde_json::Value;

use super::{Bench, Row, Target};
use crate::{file, process};

/// Least runs: disks of test machines differ from second to second.
const RUNS: u16 = 5;
/// By how much both may differ.
const BOUND: f64 = 1.2;

/// What one run found: writes a second, milliseconds.
struct Found {
    iops: f64,
    p99: f64,
}

/// The rows of the disk test.
pub(super) fn rows(bench: &Bench<'_>) -> Vec<Row> {
    bench.console.step("Testing the disk");
    let target = Some(Target::Within(BOUND));
    let mut iops = Row::new(
        "disk test, writes a second",
        "fio, the same job",
        "/s",
        target,
    );
    let mut p99 = Row::new(
        "disk test, slowest of 100",
        "fio, the same job",
        "ms",
        target,
    );
    for _ in 1..=bench.options.runs.max(RUNS) {
        match ours(bench).and_then(|ours| Ok((ours, fio(bench)?))) {
            Ok((ours, peer)) => {
                iops.ours.push(ours.iops);
                iops.peer.push(peer.iops);
                p99.ours.push(ours.p99);
                p99.peer.push(peer.p99);
            }
            Err(error) => {
                iops.note(&format!("{error:#}"));
                break;
            }
        }
    }
    vec![iops, p99]
}

fn ours(bench: &Bench<'_>) -> Result<Found> {
    let facts = bench.path("facts.json");
    let mut command = Command::new(&bench.file);
    command.args(["check", "--state-dir"]);
    command.arg(bench.path("state"));
    command.arg("--facts-out").arg(&facts);
    // What it finds of this machine is not what counts here.
    command.output().context("running gravity check")?;
    let facts: Value = serde_json::from_str(&file::read(&facts)?)?;
    let latency = &facts["measured"]["latency"]["Ok"];
    let number = |name: &str| {
        latency[name]
            .as_f64()
            .with_context(|| format!("the disk was not measured: {latency}"))
    };
    Ok(Found {
        iops: number("iops")?,
        p99: number("p99_us")? / 1e3,
    })
}

fn fio(bench: &Bench<'_>) -> Result<Found> {
    let path = bench.path("fio");
    let mut command = Command::new("fio");
    command.arg(format!("--filename={}", path.display()));
    command.args([
        "--name=etcd",
        "--rw=write",
        "--ioengine=psync",
        "--fdatasync=1",
        "--size=22m",
        "--bs=2300",
        "--runtime=3",
        "--time_based",
        "--output-format=json",
    ]);
    let text = process::text(&mut command)?;
    std::fs::remove_file(&path).context("removing fio's file")?;
    let found: Value = serde_json::from_str(&text).context("reading what fio says")?;
    let job = &found["jobs"][0];
    let iops = job["write"]["iops"].as_f64().unwrap_or_default();
    let p99 = job["sync"]["lat_ns"]["percentile"]["99.000000"].as_f64();
    ensure!(iops > 0.0, "fio wrote nothing");
    Ok(Found {
        iops,
        p99: p99.context("fio tells no percentile")? / 1e6,
    })
}
