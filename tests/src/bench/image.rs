//! Unpacking the planet's root filesystem, until it is on the disk.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use ::image::unpack::{Options, unpack as unpack_layers};
use anyhow::Result;
use event::{Discard, Sink};

use super::{Bench, Row, Target};
use crate::{file, process};

pub(super) fn unpack(bench: &Bench<'_>) -> Row {
    let mut row = Row::new(
        "unpack of the planet, with sync",
        "tar --zstd -x and sync",
        "s",
        Some(Target::Ratio(0.6)),
    );
    match fill(bench, &mut row) {
        Ok(()) => row,
        Err(error) => row.missing(format!("{error:#}")),
    }
}

fn fill(bench: &Bench<'_>, row: &mut Row) -> Result<()> {
    bench.console.step("Unpacking the planet's root filesystem");
    let tar = bench.rootfs()?;
    let packed = bench.path("rootfs.tar.zst");
    let mut zstd = Command::new("zstd");
    zstd.args(["-q", "-3", "-T0"])
        .arg(&tar)
        .arg("-o")
        .arg(&packed);
    process::run(&mut zstd)?;
    let layer = bench.cluster.base()?.rootfs;
    let image = &bench.cluster.image;
    for round in bench.rounds() {
        // A new place each time, removed at the end: ext4 is slow to use
        // inodes again that were freed just now, which an install never does.
        let target = bench.path(&format!("ours-{round}"));
        nix::unistd::sync();
        let started = Instant::now();
        let mut reader = image.reader(&layer)?;
        unpack_layers(&mut [&mut reader], &target, &Options::rootfs(), &Discard)?;
        row.ours.push(started.elapsed().as_secs_f64());

        let target = bench.path(&format!("peer-{round}"));
        nix::unistd::sync();
        let started = Instant::now();
        tar_and_sync(&packed, &target)?;
        row.peer.push(started.elapsed().as_secs_f64());
    }
    for round in bench.rounds() {
        for side in ["ours", "peer"] {
            file::remove_directory(&bench.path(&format!("{side}-{round}")))?;
        }
    }
    Ok(())
}

fn tar_and_sync(packed: &Path, target: &Path) -> Result<()> {
    file::make_directory(target)?;
    let mut tar = Command::new("tar");
    process::run(
        tar.args(["--zstd", "-xf"])
            .arg(packed)
            .arg("-C")
            .arg(target),
    )?;
    process::run(Command::new("sync").arg("-f").arg(target))?;
    Ok(())
}
