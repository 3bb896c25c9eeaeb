//! A container image of some gigabytes and 40 layers: built into a cluster image,
//! pushed to a registry and pulled from it, against skopeo, tar and cp with the
//! same bytes.
//!
//! In: the size. Out: rows of seconds and of the most memory. Always holds: at
//! most three copies are on the disk at a time; two more are deleted.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use event::Sink;
use flate2::{Compression, GzBuilder};
use nix::unistd::sync;
use oci::Layout;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;

use super::start::run_measured;
use super::{Bench, Row, Target};
use crate::file;
use crate::registry::{Registry, tele};

/// Layers of the image.
const LAYERS: u64 = 40;
/// Its name.
const NAME: &str = "quay.io/large/image:1.0.0";
/// Bytes that are made at once.
const CHUNK: usize = 1 << 20;
/// The cluster image's manifest, and what names the large image in it.
const APP: &str = "apiVersion: cluster.gravitational.io/v2\nkind: Cluster\n\
    metadata: {name: large, resourceVersion: 1.0.0}\n";
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: large}\n\
    spec: {containers: [{name: large, image: 'quay.io/large/image:1.0.0'}]}\n";

/// The rows, each with one for memory.
struct Rows {
    cold: [Row; 2],
    warm: [Row; 2],
    push: [Row; 2],
    pull: [Row; 2],
}

/// What a command took: seconds, megabytes.
type Took = (f64, f64);

/// The rows of a large image.
pub(super) fn rows(bench: &Bench<'_>, gigabytes: u16) -> Vec<Row> {
    let pair = |what: &str, peer: &str, target| {
        let what = format!("{what}, {gigabytes} GB in {LAYERS} layers");
        [
            Row::new(&what, peer, "s", target),
            Row::new(&format!("{what}, memory"), peer, "MB", None),
        ]
    };
    let most = |ratio| Some(Target::Ratio(ratio));
    let mut rows = Rows {
        cold: pair("tele build, cold", "skopeo copy and tar --zstd", most(1.0)),
        warm: pair("tele build, warm", "cp --reflink=never", most(1.5)),
        push: pair("tele push", "skopeo copy", most(1.0)),
        pull: pair("tele pull", "skopeo copy", most(1.0)),
    };
    if let Err(error) = measure(bench, gigabytes, &mut rows) {
        let [time, _] = &mut rows.cold;
        time.note(&format!("{error:#}"));
    }
    let Rows {
        cold,
        warm,
        push,
        pull,
    } = rows;
    [cold, warm, push, pull].into_iter().flatten().collect()
}

fn add(rows: &mut [Row; 2], ours: Took, peer: Took) {
    let [time, memory] = rows;
    time.ours.push(ours.0);
    time.peer.push(peer.0);
    memory.ours.push(ours.1);
    memory.peer.push(peer.1);
}

/// One round: it takes minutes.
fn measure(bench: &Bench<'_>, gigabytes: u16, rows: &mut Rows) -> Result<()> {
    let console = bench.console;
    let step = |text: &str| console.step(text);
    let at = |name: &str| bench.path(name);
    let remove = |path: &Path| file::remove_directory(path);
    step(&format!("Making an image of {gigabytes} GB"));
    let source = at("large-source");
    make_image(&source, u64::from(gigabytes) * 1_000_000_000)?;
    let registry = Registry::start(&at("large-registry"))?;
    registry.push(&source)?;
    remove(&source)?;
    let mirrors = at("large-registries.conf");
    registry.write_mirrors(&mirrors)?;
    let remote = format!("docker://{}/large/image:1.0.0", registry.address());

    step("skopeo copy and tar --zstd");
    let (layout, archive) = (at("large-layout"), at("large.tar.zst"));
    let copied = run(&skopeo(
        &remote,
        &format!("oci:{}:{NAME}", layout.display()),
    ))?;
    let packed = run(Command::new("tar")
        .args(["--zstd", "-cf"])
        .arg(&archive)
        .arg("-C")
        .arg(&layout)
        .arg("."))?;
    remove(&layout)?;
    fs::remove_file(&archive).context("removing the archive")?;

    let app = at("large-app");
    file::make_directory(&app)?;
    file::write(&app.join("app.yaml"), APP)?;
    file::write(&app.join("pod.yaml"), POD)?;
    let (state, built, copy) = (at("large-state"), at("large-built"), at("large-copy"));
    let build = || {
        let mut command = Command::new(tele()?);
        command.args(["build", "--overwrite", "-o"]).arg(&built);
        command.arg("--state-dir").arg(&state).arg(&app);
        run(command.env("CONTAINERS_REGISTRIES_CONF", &mirrors))
    };
    step("tele build");
    let cold = build()?;
    add(
        &mut rows.cold,
        cold,
        (copied.0 + packed.0, copied.1.max(packed.1)),
    );
    fs::remove_file(&built).context("removing the former image")?;
    let warm = build()?;
    drop(registry);
    remove(&at("large-registry"))?;
    let mut cp = Command::new("cp");
    let cp = run(cp.arg("--reflink=never").arg(&built).arg(&copy))?;
    fs::remove_file(&copy).context("removing the copy")?;
    add(&mut rows.warm, warm, cp);
    remove(&state)?;

    step("tele push and tele pull");
    let registry = Registry::start(&at("large-hub"))?;
    let hub = format!("http://{}", registry.address());
    let mut push = Command::new(tele()?);
    let pushed = run(push.args(["push", "--hub", &hub]).arg(&built))?;
    fs::remove_file(&built).context("removing the image")?;
    let mut pull = Command::new(tele()?);
    pull.args(["pull", "large", "--hub", &hub, "-o"])
        .arg(&built);
    let pulled = run(pull.arg("--state-dir").arg(&state))?;
    fs::remove_file(&built).context("removing the image")?;
    remove(&state)?;
    drop(registry);
    remove(&at("large-hub"))?;

    step("The same by skopeo");
    make_image(&source, u64::from(gigabytes) * 1_000_000_000)?;
    let registry = Registry::start(&at("large-registry"))?;
    let remote = format!("docker://{}/large/image:1.0.0", registry.address());
    let local = format!("oci:{}:{NAME}", source.display());
    let peer_push = run(&skopeo(&local, &remote))?;
    remove(&source)?;
    let peer_pull = run(&skopeo(
        &remote,
        &format!("oci:{}:{NAME}", layout.display()),
    ))?;
    remove(&layout)?;
    drop(registry);
    remove(&at("large-registry"))?;
    add(&mut rows.push, pushed, peer_push);
    add(&mut rows.pull, pulled, peer_pull);
    Ok(())
}

/// Runs a command with nothing left to be written from before.
fn run(command: &Command) -> Result<Took> {
    sync();
    let (milliseconds, megabytes) = run_measured(command)?;
    Ok((milliseconds / 1e3, megabytes))
}

fn skopeo(from: &str, to: &str) -> Command {
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet", "--preserve-digests", "--insecure-policy"]);
    command.args([
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        from,
        to,
    ]);
    command
}

/// An OCI layout of one image, of noise that nothing compresses.
fn make_image(path: &Path, bytes: u64) -> Result<()> {
    let layout = Layout::open_or_create(path)?;
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for number in 0..LAYERS {
        let tar = path.join("layer.tar");
        make_layer(&tar, number, bytes / LAYERS)?;
        let mut content = File::open(&tar).context("opening a layer")?;
        diff_ids.push(oci::digest::copy(&mut content, &mut std::io::sink())?.0);
        let gzip = compressed(&tar)?;
        let media = oci::spec::MediaType::ImageLayerGzip;
        layers.push(layout.put_blob_file(&gzip, media.as_ref())?);
        fs::remove_file(&tar).context("removing a layer")?;
        fs::remove_file(&gzip).context("removing a layer")?;
    }
    let config = json!({
        "created": "1970-01-01T00:00:00Z", "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = layout.put_blob_bytes(
        &serde_json::to_vec(&config)?,
        "application/vnd.oci.image.config.v1+json",
    )?;
    let media = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media, "config": config, "layers": layers,
    });
    let manifest = layout.put_blob_bytes(&serde_json::to_vec(&manifest)?, media)?;
    layout.tag(NAME, manifest)?;
    Ok(())
}

/// A tar with one file of noise.
fn make_layer(path: &Path, number: u64, bytes: u64) -> Result<()> {
    let noise = path.with_extension("noise");
    let mut file = File::create(&noise).context("making noise")?;
    let (random, mut chunk) = (SystemRandom::new(), vec![0; CHUNK]);
    let mut left = bytes;
    while left > 0 {
        let length = left.min(CHUNK as u64);
        random
            .fill(&mut chunk)
            .map_err(|_| anyhow::anyhow!("there is no noise"))?;
        file.write_all(&chunk[..usize::try_from(length)?])
            .context("writing noise")?;
        left -= length;
    }
    let mut tar = tar::Builder::new(File::create(path).context("making a layer")?);
    tar.append_path_with_name(&noise, format!("noise-{number}"))
        .and_then(|()| tar.finish())
        .context("writing a layer")?;
    fs::remove_file(&noise).context("removing noise")
}

/// The same as gzip, stored: noise doesn't get smaller.
fn compressed(tar: &Path) -> Result<PathBuf> {
    let path = tar.with_extension("tar.gz");
    let output = File::create(&path).context("making a layer")?;
    let mut gzip = GzBuilder::new().mtime(0).write(output, Compression::none());
    let mut input = File::open(tar).context("opening a layer")?;
    std::io::copy(&mut input, &mut gzip)
        .and_then(|_| gzip.finish())
        .context("compressing a layer")?;
    Ok(path)
}
