//! `tele build` with a warm cache against a copy of its result.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use event::Sink;

use super::{Bench, Row, Target};
use crate::registry::{Registry, component, tele};
use crate::scenario::{Setup, path_with};
use crate::{process, sample};

pub(super) fn row(bench: &Bench<'_>, setup: &Setup) -> Row {
    let mut row = Row::new(
        "tele build, warm cache",
        "cp --reflink=never",
        "s",
        Some(Target::Ratio(1.5)),
    );
    match fill(bench, setup, &mut row) {
        Ok(()) => row,
        Err(error) => row.missing(format!("{error:#}")),
    }
}

fn fill(bench: &Bench<'_>, setup: &Setup, row: &mut Row) -> Result<()> {
    let tele = tele()?;
    bench.console.step("Building the sample with a warm cache");
    let (images, mirrors) = (bench.path("sample-images"), bench.path("registries.conf"));
    sample::make_images(&images)?;
    let registry = Registry::start(&bench.path("sample-registry"))?;
    registry.push(&images)?;
    registry.write_mirrors(&mirrors)?;
    let helm = component("helm")?;
    let path = path_with(helm.parent().context("helm has no directory")?)?;
    let build = |output: &Path| {
        let mut command = Command::new(&tele);
        command
            .arg("build")
            .arg("-o")
            .arg(output)
            .arg(setup.sample.join("app.yaml"));
        command
            .env("CONTAINERS_REGISTRIES_CONF", &mirrors)
            .env("PATH", &path);
        process::run(&mut command)
    };
    let (built, copy) = (bench.path("built"), bench.path("copy"));
    build(&built)?;
    for _ in bench.rounds() {
        std::fs::remove_file(&built).context("removing the former image")?;
        nix::unistd::sync();
        let started = Instant::now();
        build(&built)?;
        row.ours.push(started.elapsed().as_secs_f64());

        nix::unistd::sync();
        let started = Instant::now();
        let mut cp = Command::new("cp");
        process::run(cp.arg("--reflink=never").arg(&built).arg(&copy))?;
        row.peer.push(started.elapsed().as_secs_f64());
        std::fs::remove_file(&copy).context("removing the copy")?;
    }
    Ok(())
}
