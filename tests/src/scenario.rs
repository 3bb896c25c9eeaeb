//! The sample cluster, from its manifest to a node that serves its page, and
//! off again.
//!
//! In: the programs gravity and tele, a base image in the hub. Out: a cluster
//! image that is built with a registry which is gone afterwards, and a node on
//! which it is installed.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::{Console, render};
use event::Sink;
use serde::Deserialize;

use crate::node::{self, Node, Options};
use crate::registry::{Registry, component, tele};
use crate::said::last_json;
use crate::snapshot::Snapshot;
use crate::{file, process, sample};

/// The image in a node.
pub(crate) const IMAGE: &str = "/root/gravity";
/// How long a page may take to be there after an install.
const PAGE: Duration = Duration::from_secs(30);

/// What the scenarios need.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Directory of the sample application.
    pub sample: PathBuf,
    /// A cluster image that is built already.
    pub image: Option<PathBuf>,
    /// The Hub that tele builds from; the user's otherwise.
    pub hub: Option<PathBuf>,
    /// Whether nodes have a default route.
    pub default_route: bool,
}

impl Setup {
    /// This sample, to be built by the `tele` beside this program.
    #[must_use]
    pub fn new(sample: impl Into<PathBuf>) -> Self {
        Self {
            sample: sample.into(),
            image: None,
            hub: None,
            default_route: false,
        }
    }

    /// The sample cluster image, built by tele.
    ///
    /// # Errors
    /// When a program is missing or the build fails.
    pub fn image(&self, sink: &dyn Sink) -> Result<PathBuf> {
        if let Some(image) = &self.image {
            return Ok(image.clone());
        }
        let tele = tele()?;
        let directory = file::cache()?.join("sample");
        let name = self.sample.file_name().context("the sample has no name")?;
        let (images, output) = (directory.join("images"), directory.join(name));
        let mirrors = directory.join("registries.conf");
        sink.step("Making the sample's container images and serving them as quay.io");
        sample::make_images(&images)?;
        let registry = Registry::start(&directory.join("registry"))?;
        registry.push(&images)?;
        registry.write_mirrors(&mirrors)?;
        let started = Instant::now();
        sink.step("tele build");
        // tele calls helm.
        let helm = component("helm")?;
        let path = path_with(helm.parent().context("helm has no directory")?)?;
        if output.exists() {
            fs::remove_file(&output).context("removing the former image")?;
        }
        let mut command = Command::new(&tele);
        command
            .args(["build", "--overwrite", "-o"])
            .arg(&output)
            .arg(self.sample.join("app.yaml"));
        command
            .env("CONTAINERS_REGISTRIES_CONF", &mirrors)
            .env("PATH", path);
        if let Some(hub) = &self.hub {
            command.arg("--hub").arg(hub);
        }
        run_visibly(&mut command)?;
        drop(registry);
        // Whatever asks for quay.io from now on would find nobody.
        fs::remove_file(&mirrors).context("removing registries.conf")?;
        let size = fs::metadata(&output)
            .with_context(|| output.display().to_string())?
            .len();
        sink.info(&format!(
            "{}: {} in {}; the registry is stopped",
            output.display(),
            render::bytes(size),
            render::duration(started.elapsed())
        ));
        Ok(output)
    }

    pub(crate) fn create(&self, name: &str, sink: &dyn Sink) -> Result<Node> {
        if node::delete(name)? {
            sink.info(&format!("Removed the node {name} of a former run"));
        }
        let options = Options {
            default_route: self.default_route,
            ..node::usual(sink)?
        };
        Node::create(name, &options)
    }

    /// A node with the image.
    pub(crate) fn create_with(&self, name: &str, image: &Path, sink: &dyn Sink) -> Result<Node> {
        let node = self.create(name, sink)?;
        node.copy(image, IMAGE)?;
        Ok(node)
    }
}

/// `PATH` with a directory before all others.
pub(crate) fn path_with(directory: &Path) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(directory.to_owned()).chain(std::env::split_paths(&path));
    std::env::join_paths(all).context("joining PATH")
}

/// Runs a program whose output the user sees.
pub(crate) fn run_visibly(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

pub(crate) fn install(node: &Node, image: &Path, sink: &dyn Sink) -> Result<Duration> {
    install_with(node, image, &[], sink)
}

/// An install with more flags.
pub(crate) fn install_with(
    node: &Node,
    image: &Path,
    flags: &[&str],
    sink: &dyn Sink,
) -> Result<Duration> {
    sink.step(&format!("Copying the image to node {}", node.name()));
    node.copy(image, IMAGE)?;
    sink.step("./gravity install");
    let started = Instant::now();
    let address = format!("--advertise-addr={}", node.address());
    let fixed = [IMAGE, "install", &address, "--flavor=one", "--accept-eula"];
    run_visibly(&mut node.command(&[&fixed, flags].concat())?)?;
    Ok(started.elapsed())
}

/// What these scenarios read of `gravity status --output json`.
#[derive(Debug, Deserialize)]
struct Status {
    cluster: Cluster,
    nodes: Vec<NodeStatus>,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Cluster {
    state: String,
}

/// Says when what was done, from the start on.
pub(crate) struct Timeline<'a> {
    started: Instant,
    sink: &'a dyn Sink,
}

impl<'a> Timeline<'a> {
    pub(crate) fn new(sink: &'a dyn Sink) -> Self {
        Self {
            started: Instant::now(),
            sink,
        }
    }

    pub(crate) fn tell(&self, what: &str) {
        let time = render::duration(self.started.elapsed());
        self.sink.info(&format!("{time:>8}  {what}"));
    }
}

#[derive(Debug, Deserialize)]
struct NodeStatus {
    hostname: String,
    kubernetes: String,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    name: String,
    urls: Vec<String>,
}

/// The URL of the sample's endpoint, from a status in JSON that says that all
/// is well.
pub(crate) fn check_status(text: &str) -> Result<String> {
    let status: Status = serde_json::from_value(last_json(text)?).context("reading the status")?;
    ensure!(
        status.cluster.state == "active",
        "the cluster is not well: {text}"
    );
    for node in &status.nodes {
        ensure!(
            node.kubernetes.eq_ignore_ascii_case("ready"),
            "node {} is {}: {text}",
            node.hostname,
            node.kubernetes
        );
    }
    let endpoint = status
        .endpoints
        .iter()
        .find(|endpoint| endpoint.name == "Web");
    let url = endpoint.and_then(|endpoint| endpoint.urls.first());
    url.cloned()
        .with_context(|| format!("no endpoint Web with a URL: {text}"))
}

/// Fails unless the node is well and its endpoint serves the page. Returns the
/// endpoint's URL.
pub(crate) fn check(node: &Node) -> Result<String> {
    let url = check_status(&node.text(&[IMAGE, "status", "--output", "json"])?)?;
    let mut last = String::new();
    let served = process::wait_until(PAGE, || {
        match node.text(&["curl", "-sS", "--fail", "-m", "5", &url]) {
            Ok(page) => last = page,
            Err(error) => last = format!("{error:#}"),
        }
        last == sample::PAGE
    });
    ensure!(served, "{url} does not serve the page: {last}");
    Ok(url)
}

/// Builds the sample, installs it into the new node `name` and leaves it there.
///
/// # Errors
/// When any of it fails; the node stays to be looked at.
pub fn demo(setup: &Setup, name: &str, console: &Console) -> Result<()> {
    node::require_root()?;
    let image = setup.image(console)?;
    let node = setup.create(name, console)?;
    let program = std::env::current_exe().context("finding this program")?;
    let program = program.display();
    let looking = format!(
        "  a shell on the node:  {program} exec {name} -- bash\n\
         \x20 the cluster's state:  {program} exec {name} -- {IMAGE} status\n\
         \x20 remove all of it:     {program} delete {name} (make demo-clean)"
    );
    let installed = install(&node, &image, console);
    let Ok(time) = installed else {
        console.print(&format!(
            "The node is still there, to find out why:\n{looking}"
        ));
        return installed.map(drop);
    };
    run_visibly(&mut node.command(&[IMAGE, "status"])?)?;
    let url = check(&node)?;
    console.print(&format!(
        "\n{url} on the node says:\n{}\nInstalled in {}. To look around:\n{looking}",
        sample::PAGE,
        render::duration(time)
    ));
    Ok(())
}

/// Installs the sample on a new node, checks it, removes it, and finds the
/// node as it was.
///
/// # Errors
/// At the first check that fails; the node stays to be looked at.
pub fn install_and_leave(setup: &Setup, name: &str, console: &Console) -> Result<()> {
    node::require_root()?;
    let image = setup.image(console)?;
    let node = setup.create(name, console)?;
    comes_and_goes(&node, &image, console)?;
    node.delete()
}

/// Installs the sample on a node, checks it, removes it and compares the node.
pub(crate) fn comes_and_goes(node: &Node, image: &Path, console: &Console) -> Result<()> {
    // Before the snapshot: the image is not the product's to remove.
    node.copy(image, IMAGE)?;
    let before = Snapshot::take(node)?;
    let time = install(node, image, console)?;
    console.info(&format!("Installed in {}", render::duration(time)));
    check(node)?;
    console.step("./gravity leave");
    run_visibly(&mut node.command(&[IMAGE, "leave", "--force", "--confirm"])?)?;
    before.is_still(node, "`leave`")?;
    console.info("After `leave` the node is as it was");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"step":"looking"}
        {"cluster": {"state": "active", "name": "x"}, "operation": null,
         "nodes": [{"hostname": "a", "kubernetes": "ready"}],
         "endpoints": [{"name": "Web", "urls": ["http://10.99.0.1:30080"]}]}"#;

    #[test]
    fn only_a_status_in_which_all_is_well_passes() {
        assert_eq!(check_status(GOOD).unwrap(), "http://10.99.0.1:30080");
        for (from, to) in [
            ("active", "degraded"),
            ("ready", "not ready"),
            ("Web", "Other"),
        ] {
            assert!(check_status(&GOOD.replace(from, to)).is_err(), "{to}");
        }
        assert!(check_status("").is_err());
        assert!(check_status("no status").is_err());
    }
}
