//! Start of commands on a large image: time and memory.
//!
//! In: the cluster image. Out: rows for `version` and `--help`. The large
//! image has the same program and documents, and blobs of 2 GB.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use ::image::{Encoding, Writer};
use anyhow::{Context, Result, ensure};
use console::Console;
use event::Sink;
use nix::sys::resource::{UsageWho, getrusage};

use super::{Bench, Row, Target};
use crate::process;

/// Length of the large image, in bytes.
const LARGE: u64 = 2_000_000_000;
/// A start is short: more of them make the median good.
const STARTS: u16 = 7;

pub(super) fn rows(bench: &Bench<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    let large = bench.path("large");
    let made = make_large(bench, &large);
    for command in ["version", "--help"] {
        let row = |what: &str, unit, most| {
            Row::new(
                &format!("gravity {command}, 2 GB image, {what}"),
                "the image alone",
                unit,
                Some(Target::Most(most)),
            )
        };
        let (mut time, mut memory) = (row("time", "ms", 30.0), row("memory", "MB", 30.0));
        let result = match &made {
            Ok(()) => compare(bench, &large, command, &mut time, &mut memory),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        if let Err(error) = result {
            time = time.missing(format!("{error:#}"));
            memory = memory.missing("as before");
        }
        rows.extend([time, memory]);
    }
    let _ = std::fs::remove_file(&large);
    rows
}

/// Writes the image anew with all blobs as they are, and zeros up to 2 GB.
fn make_large(bench: &Bench<'_>, path: &Path) -> Result<()> {
    bench.console.step("Making an image of 2 GB");
    let image = &bench.cluster.image;
    let elf = bench.path("elf");
    image.extract_elf(&elf)?;
    let mut writer = Writer::create(path, &elf)?;
    let mut length = 0;
    let blob_file = bench.path("blob");
    for blob in image.blobs() {
        image.extract(&blob.digest, &blob_file)?;
        writer.add_blob_file(&blob_file, &blob.digest, &blob.media_type, Encoding::Raw)?;
        length += blob.size;
        std::fs::remove_file(&blob_file).context("removing a blob's copy")?;
    }
    let zeros = bench.path("zeros");
    let zeros_file = File::create(&zeros).context("making a sparse file")?;
    zeros_file
        .set_len(LARGE.saturating_sub(length))
        .context("making a sparse file")?;
    let mut zeros_file = File::open(&zeros).context("opening a sparse file")?;
    let (digest, _) = oci::digest::copy(&mut zeros_file, &mut std::io::sink())?;
    let media_type = "application/octet-stream";
    writer.add_blob_file(&zeros, digest.as_str(), media_type, Encoding::Raw)?;
    let written = writer.finish(image.root(), image.platform())?;
    let length = written.length;
    ensure!(length >= LARGE, "the image has {length} bytes only");
    Ok(())
}

fn compare(
    bench: &Bench<'_>,
    large: &Path,
    command: &str,
    time: &mut Row,
    memory: &mut Row,
) -> Result<()> {
    // Once before, for the page cache.
    measured(large, command)?;
    measured(&bench.file, command)?;
    for _ in 0..bench.options.runs.max(STARTS) {
        let (ms, megabytes) = measured(large, command)?;
        time.ours.push(ms);
        memory.ours.push(megabytes);
        let (ms, megabytes) = measured(&bench.file, command)?;
        time.peer.push(ms);
        memory.peer.push(megabytes);
    }
    Ok(())
}

fn measured(program: &Path, command: &str) -> Result<(f64, f64)> {
    run_measured(Command::new(program).arg(command))
}

/// Milliseconds and megabytes of a command, taken by a process of its own, as
/// the kernel keeps one maximum for all children.
pub(super) fn run_measured(command: &Command) -> Result<(f64, f64)> {
    let own = std::env::current_exe().context("finding this program")?;
    let mut helper = Command::new(own);
    helper.args(["bench", "--"]).arg(command.get_program());
    helper.args(command.get_args());
    for (name, value) in command.get_envs() {
        helper.env(name, value.unwrap_or_default());
    }
    let text = process::text(&mut helper)?;
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(micros)), Some(Ok(kib))) => Ok((micros / 1e3, kib * 1024.0 / 1e6)),
        _ => anyhow::bail!("the helper said {text:?}"),
    }
}

/// Runs the command and prints microseconds and KiB.
pub(super) fn measure(command: &[OsString], console: &Console) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command")?;
    let started = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("starting {}", program.display()))?;
    let micros = started.elapsed().as_micros();
    ensure!(
        status.success(),
        "{} ended with {status}",
        program.display()
    );
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("asking for memory")?;
    console.print(&format!("{micros} {}", usage.max_rss()));
    Ok(())
}
