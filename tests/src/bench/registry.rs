//! Filling the cluster registry with the application's images.
//!
//! In: the cluster image, and what the installs' phase took. Out: a row against
//! skopeo, which copies the same images from an OCI layout into a registry.
//! Our time is the phase's of whole installs, where Kubernetes starts beside
//! it; skopeo has the machine to itself.

use std::time::Instant;

use anyhow::{Context, Result};
use event::Sink;
use oci::Layout;

use super::cluster::PhaseTime;
use super::{Bench, Row, Target};
use crate::registry::Registry;

/// The phase that fills the registry.
const PHASE: &str = "/start/images";

pub(super) fn row(bench: &Bench<'_>, phases: &[PhaseTime]) -> Row {
    let mut row = Row::new(
        "vendored images into the registry",
        "skopeo copy of the layout",
        "s",
        Some(Target::Ratio(0.1)),
    );
    if bench.cluster.config.images.is_empty() {
        return row.missing("the image has no application images");
    }
    let Some(phase) = phases.iter().find(|phase| phase.phase == PHASE) else {
        return row.missing("it is a part of the installs, which were not measured");
    };
    row.ours.clone_from(&phase.takes);
    match peer(bench) {
        Ok(times) => row.peer = times,
        Err(error) => return row.missing(format!("{error:#}")),
    }
    row
}

fn peer(bench: &Bench<'_>) -> Result<Vec<f64>> {
    bench
        .console
        .step("Copying the application's images by skopeo");
    let path = bench.path("layout");
    let layout = Layout::open_or_create(&path)?;
    let blob = bench.path("layout-blob");
    for image in &bench.cluster.config.images {
        let mut tagged = None;
        for digest in bench.cluster.image_blobs(&image.digest)? {
            let media = bench
                .cluster
                .image
                .blob(&digest)
                .context("a blob is missing")?;
            bench.cluster.image.extract(&digest, &blob)?;
            let put = layout.put_blob_file(&blob, &media.media_type)?;
            std::fs::remove_file(&blob).context("removing a blob's copy")?;
            if digest == image.digest {
                tagged = Some(put);
            }
        }
        layout.tag(
            &image.reference,
            tagged.context("an image has no manifest")?,
        )?;
    }
    let mut times = Vec::new();
    for round in bench.rounds() {
        let registry = Registry::start(&bench.path(&format!("registry-{round}")))?;
        nix::unistd::sync();
        let started = Instant::now();
        registry.push(&path)?;
        times.push(started.elapsed().as_secs_f64());
    }
    Ok(times)
}
