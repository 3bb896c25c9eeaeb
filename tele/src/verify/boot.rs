//! `tele verify --offline-boot`: whether a cluster image installs where there is
//! nothing but the image.
//!
//! In: the image, a flavor. Out: everything that went wrong. The image is installed
//! on as many throwaway nodes as the flavor has, on this machine; their root is the
//! base's planet. What the vendor demands of nodes (processors, memory, disks,
//! devices) doesn't count. Always holds: the nodes reach each other and nothing
//! else, and are removed whatever happens; those of a process that was killed, by
//! the next one.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use console::{Console, render};
use event::Sink;
use image::cluster::ClusterImage;
use image::{layer, unpack};
use manifest::{Manifest, NodeProfile, ServiceRole};
use serde::Deserialize;
use throwaway::node::{self, Node, Options, Throwaway};
use tokio::runtime::Runtime;

use crate::unfinished::{self, Directory};

/// Nodes that one machine is asked to carry.
const MAX_NODES: usize = 5;
/// How long an install may take; hooks have 20 minutes each.
const INSTALL: Duration = Duration::from_secs(3600);
/// How long pods may take to be ready after it.
const SETTLE: Duration = Duration::from_secs(300);
/// Prefix of the directory with the nodes' root and disks.
const SCRATCH: &str = "tele-boot-";
/// The image, in a node.
const PROGRAM: &str = "/root/gravity";
/// The license, in a node.
const LICENSE: &str = "/root/license";
/// The token, in a node.
const TOKEN: &str = "/root/token";
/// What says that a container's image isn't there (kubelet, pkg/kubelet/images).
const NOT_PULLED: &[&str] = &[
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
];

/// How to boot.
#[derive(Debug, clap::Args)]
pub(crate) struct Boot {
    /// Install it on throwaway nodes without network, too, and fail where an
    /// image is pulled that isn't in it; needs root
    #[arg(long)]
    pub(crate) offline_boot: bool,
    /// Flavor to install; by default the manifest's
    #[arg(long, value_name = "NAME", requires = "offline_boot")]
    pub(crate) flavor: Option<String>,
    /// License for an image that demands one
    #[arg(long, value_name = "FILE", requires = "offline_boot")]
    pub(crate) license: Option<PathBuf>,
    /// Where the nodes' disks are, while it lasts
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/tmp",
        requires = "offline_boot"
    )]
    pub(crate) scratch_dir: PathBuf,
}

/// Installs `cluster` and returns what went wrong in it.
///
/// # Errors
/// When it could not be tried.
pub(crate) fn problems(
    cluster: &ClusterImage,
    boot: &Boot,
    console: &Console,
) -> Result<Vec<String>> {
    node::require_root()?;
    let manifest = manifest::parse(&cluster.manifest_yaml()?, "the Image Manifest");
    let manifest = manifest.map_err(|_| anyhow::anyhow!("the manifest can't be read"))?;
    let nodes = nodes(&manifest, boot.flavor.as_deref())?;
    remove_abandoned()?;
    let scratch = Directory::create(&boot.scratch_dir, SCRATCH)?;
    let runtime = Runtime::new().context("cannot start the runtime")?;
    let making = Arc::new(Mutex::new(()));
    remove_on_signal(&runtime, scratch.path(), nodes.1.len(), &making)?;
    let found = attempt(cluster, boot, &nodes, scratch.path(), &making, console);
    drop(scratch);
    // Who is told to end holds it: the exit code is his.
    let _ended = making.lock();
    found
}

/// The name of a node of this process, whose numbers begin with 1.
fn name(number: usize) -> String {
    format!("boot-{}-{number}", std::process::id())
}

/// Whether the node of this name is of a process that is gone.
fn is_abandoned(name: &str) -> bool {
    let pid = || name.strip_prefix("boot-")?.split_once('-')?.0.parse().ok();
    // This process has made none yet.
    let gone =
        |pid: u32| pid == std::process::id() || !Path::new("/proc").join(pid.to_string()).exists();
    pid().is_some_and(gone)
}

/// Removes the nodes that killed processes left.
fn remove_abandoned() -> Result<()> {
    for node in Node::list()? {
        if is_abandoned(node.name()) {
            let what = format!("remove the node {}, which was left", node.name());
            node.delete().context(what)?;
        }
    }
    Ok(())
}

/// Has up to `count` nodes and what is in `scratch` removed once this process is
/// told to end. Nodes are made while `making` is held: then none comes afterwards.
fn remove_on_signal(
    runtime: &Runtime,
    scratch: &Path,
    count: usize,
    making: &Arc<Mutex<()>>,
) -> Result<()> {
    let (scratch, making) = (scratch.to_owned(), Arc::clone(making));
    unfinished::on_signal(runtime, move || {
        // Until the end.
        std::mem::forget(making.lock());
        for number in 1..=count {
            if let Err(error) = node::delete(&name(number)) {
                Console::new(console::Format::Plain)
                    .error_text(&format!("removing the node: {error:#}"));
            }
        }
        unfinished::remove(&scratch);
    })
}

/// Makes nodes and installs on them.
fn attempt(
    cluster: &ClusterImage,
    boot: &Boot,
    (flavor, profiles): &Nodes,
    scratch: &Path,
    making: &Mutex<()>,
    console: &Console,
) -> Result<Vec<String>> {
    let mut path = Cow::from(cluster.image.path());
    if cluster.image.is_archived() {
        path = scratch.join("gravity").into();
        cluster.image.extract_image(&path)?;
    }
    let options = Options {
        root: root(cluster, scratch, console)?,
        data: scratch.join("nodes"),
        ..Options::default()
    };
    let token = fs::read_to_string("/proc/sys/kernel/random/uuid").context("make a token")?;
    let token = token.trim();
    let mut started = Vec::new();
    for number in 1..=profiles.len() {
        let _making = making.lock();
        let node = Throwaway::create(&name(number), &options)?;
        node.copy(&path, PROGRAM)?;
        node.run(&["chmod", "755", PROGRAM])?;
        node.run(&["sh", "-c", &format!("umask 077; echo {token} > {TOKEN}")])?;
        if let Some(license) = &boot.license {
            node.copy(license, LICENSE)?;
        }
        started.push(node);
    }
    let cluster = Cluster {
        nodes: &started,
        profiles,
        flavor: flavor.as_deref(),
        license: boot.license.is_some(),
        console,
    };
    let mut found = Vec::new();
    if let Err(error) = cluster.install() {
        found.push(format!("{error:#}"));
    }
    found.extend(cluster.settle()?);
    Ok(found)
}

/// The flavor, and the profile of each of its nodes, where the manifest has any.
type Nodes = (Option<String>, Vec<Option<String>>);

/// The nodes to install on. As in an install, the first is of workers only if all are.
fn nodes(manifest: &Manifest, flavor: Option<&str>) -> Result<Nodes> {
    let of_workers = |name: &str| {
        let mut profiles = manifest.node_profiles.iter();
        let profile = profiles.find(|profile| profile.name == name);
        profile.and_then(NodeProfile::role) == Some(ServiceRole::Node)
    };
    let Some(flavors) = &manifest.installer.flavors else {
        ensure!(flavor.is_none(), "the manifest has no flavors");
        let profiles = manifest.node_profiles.iter();
        let first = profiles.min_by_key(|profile| of_workers(&profile.name));
        return Ok((None, vec![first.map(|profile| profile.name.clone())]));
    };
    let wanted = flavor.or(flavors.default.as_deref());
    let mut items = flavors.items.iter();
    let found = items.find(|item| wanted.is_none_or(|name| item.name == name));
    let found = found.with_context(|| {
        let names: Vec<_> = flavors
            .items
            .iter()
            .map(|item| item.name.as_str())
            .collect();
        format!("there is no such flavor; there are {}", names.join(", "))
    })?;
    let mut profiles: Vec<_> = (found.nodes.iter())
        .flat_map(|of| (0..of.count.min(MAX_NODES as u32 + 1)).map(|_| of.profile.clone()))
        .collect();
    profiles.sort_by_key(|name| of_workers(name));
    ensure!(
        (1..=MAX_NODES).contains(&profiles.len()),
        "flavor {} has not between 1 and {MAX_NODES} nodes; choose another with --flavor",
        found.name
    );
    let profiles = profiles.into_iter().map(Some).collect();
    Ok((Some(found.name.clone()), profiles))
}

/// The nodes' root filesystem: the base's planet without what is installed there.
fn root(cluster: &ClusterImage, scratch: &Path, sink: &dyn Sink) -> Result<PathBuf> {
    let root = scratch.join("root");
    let digest = cluster.base()?.rootfs;
    let mut rootfs = layer::open(&cluster.image, &digest, image::cluster::LAYER_TAR)?;
    unpack::unpack(
        &mut [rootfs.as_mut()],
        &root,
        &unpack::Options::rootfs(),
        sink,
    )?;
    let own = root.join("usr/local");
    fs::remove_dir_all(&own).with_context(|| format!("remove {}", own.display()))?;
    let programs = own.join("bin");
    fs::create_dir_all(&programs).with_context(|| format!("make {}", programs.display()))?;
    for program in ["bash", "useradd", "ip"] {
        let known = ["bin", "sbin"]
            .iter()
            .any(|bin| root.join("usr").join(bin).join(program).exists());
        ensure!(
            known,
            "the base has no program {program}: nodes can't be made of it"
        );
    }
    Ok(root)
}

/// The option that says which profile a node gets.
fn role(profile: &Option<String>) -> Option<String> {
    Some(format!("--role={}", profile.as_ref()?))
}

/// A cluster on throwaway nodes.
struct Cluster<'a> {
    nodes: &'a [Throwaway],
    profiles: &'a [Option<String>],
    flavor: Option<&'a str>,
    license: bool,
    console: &'a Console,
}

impl Cluster<'_> {
    fn first(&self) -> &Node {
        &self.nodes[0]
    }

    /// Installs on the first node and joins the others.
    fn install(&self) -> Result<()> {
        let first = self.first();
        let mut arguments = vec!["install".to_owned(), "--accept-eula".into()];
        arguments.extend(role(&self.profiles[0]));
        arguments.extend(self.flavor.map(|flavor| format!("--flavor={flavor}")));
        if self.license {
            arguments.push(format!("--license={LICENSE}"));
        }
        let (mut install, lines) = self.start(first, &arguments)?;
        let mut last = String::new();
        let mut others = self.nodes.iter().zip(self.profiles).skip(1);
        for line in lines {
            self.console.print(&format!("{}: {line}", first.name()));
            // It says how to join once it can be joined.
            if line.contains(" join ") {
                for (node, profile) in others.by_ref() {
                    self.join(node, profile)?;
                }
            }
            keep_error(&mut last, line);
        }
        let ended = install.wait().context("wait for the install")?;
        ensure!(ended.success(), "the install ended with {ended}: {last}");
        Ok(())
    }

    fn join(&self, node: &Node, profile: &Option<String>) -> Result<()> {
        let mut arguments = vec!["join".to_owned(), self.first().address().to_owned()];
        arguments.extend(role(profile));
        let (mut join, lines) = self.start(node, &arguments)?;
        let mut last = String::new();
        for line in lines {
            self.console.print(&format!("{}: {line}", node.name()));
            keep_error(&mut last, line);
        }
        let ended = join.wait().context("wait for a join")?;
        ensure!(ended.success(), "the join ended with {ended}: {last}");
        Ok(())
    }

    /// Starts an operation on a node. Returns the lines that it says.
    fn start(&self, node: &Node, arguments: &[String]) -> Result<(Child, Receiver<String>)> {
        let seconds = INSTALL.as_secs().to_string();
        let words = ["timeout", "--kill-after=10", &seconds, "sh", "-c"];
        let mut command = node.command(&words)?;
        command
            .args(["exec \"$@\" 2>&1", "sh", PROGRAM])
            .args(arguments);
        command.arg(format!("--token-file={TOKEN}"));
        command.arg(format!("--advertise-addr={}", node.address()));
        let checks = preflight::checks().filter(|check| !check.strict);
        command.args(checks.map(|check| format!("--ignore={}", check.id)));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start an operation on {}", node.name()))?;
        let pipe = child.stdout.take().context("it has no output")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if sender.send(render::sanitize(&line)).is_err() {
                    return;
                }
            }
        });
        Ok((child, lines))
    }

    /// Waits until all pods are ready or done. Returns what is not, and every image
    /// that was to be pulled and isn't in the cluster.
    fn settle(&self) -> Result<Vec<String>> {
        self.console.step("Waiting until every pod is ready");
        if self.first().run(&["kubectl", "version"]).is_err() {
            // The install ended before there was anything to look at.
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + SETTLE;
        loop {
            let pods: List<Pod> = self.get("pods")?;
            let waiting: Vec<_> = pods.items.iter().filter_map(Pod::waiting).collect();
            let pulls = self.pulls(&pods)?;
            if !pulls.is_empty() || waiting.is_empty() {
                return Ok(pulls);
            }
            if Instant::now() >= deadline {
                return Ok(waiting);
            }
            thread::sleep(Duration::from_secs(2));
        }
    }

    /// Images that containers wait for in vain, or that were asked for in vain.
    fn pulls(&self, pods: &List<Pod>) -> Result<Vec<String>> {
        let mut found: BTreeSet<_> = pods.items.iter().flat_map(Pod::not_pulled).collect();
        let events: List<KubernetesEvent> = self.get("events")?;
        let failed = events.items.into_iter().filter(|event| {
            event.reason == "Failed" && event.message.starts_with("Failed to pull image")
        });
        found.extend(failed.map(|event| render::sanitize(&event.message)));
        Ok(found.into_iter().collect())
    }

    fn get<T: for<'de> Deserialize<'de>>(&self, kind: &str) -> Result<List<T>> {
        let words = ["kubectl", "get", kind, "--all-namespaces", "--output=json"];
        let text = self.first().text(&words)?;
        serde_json::from_str(&text).with_context(|| format!("read the {kind}"))
    }
}

/// Keeps a line that says what went wrong, until one comes that says more.
fn keep_error(last: &mut String, line: String) {
    if line.starts_with("[ERROR]") || !last.starts_with("[ERROR]") && !line.trim().is_empty() {
        *last = line;
    }
}

/// What `kubectl get` prints of each kind.
#[derive(Debug, Deserialize)]
struct List<T> {
    items: Vec<T>,
}

#[derive(Debug, Deserialize)]
struct KubernetesEvent {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

#[derive(Debug, Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: String,
    init_container_statuses: Vec<ContainerStatus>,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    image: String,
    ready: bool,
    state: ContainerState,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    waiting: Option<Waiting>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Waiting {
    reason: String,
}

impl Pod {
    /// What it is, where it is neither ready nor done.
    fn waiting(&self) -> Option<String> {
        let status = &self.status;
        let ready = !status.container_statuses.is_empty()
            && status
                .container_statuses
                .iter()
                .all(|container| container.ready);
        match status.phase.as_str() {
            // A Job tries again; what counts is that its hook succeeded.
            "Succeeded" | "Failed" => None,
            "Running" if ready => None,
            phase => Some(format!(
                "pod {}/{} is {phase} and not ready",
                self.metadata.namespace, self.metadata.name
            )),
        }
    }

    /// Its images that are not there.
    fn not_pulled(&self) -> Vec<String> {
        let status = &self.status;
        let all = status
            .init_container_statuses
            .iter()
            .chain(&status.container_statuses);
        let waiting = all.filter(|container| {
            let waiting = container.state.waiting.as_ref();
            waiting.is_some_and(|waiting| NOT_PULLED.contains(&waiting.reason.as_str()))
        });
        let Metadata { namespace, name } = &self.metadata;
        waiting
            .map(|container| format!("pod {namespace}/{name} pulls {}", container.image))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(text: &str) -> List<Pod> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn pods_that_wait_for_images_are_told_from_ready_and_ended_ones() {
        let list = pods(
            r#"{"items": [
            {"metadata": {"name": "a", "namespace": "x"}, "status": {"phase": "Running",
             "containerStatuses": [{"image": "i:1", "ready": true, "state": {"running": {}}}]}},
            {"metadata": {"name": "b", "namespace": "x"}, "status": {"phase": "Pending",
             "containerStatuses": [{"image": "i:2", "ready": false,
              "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}},
            {"metadata": {"name": "c", "namespace": "x"}, "status": {"phase": "Pending",
             "initContainerStatuses": [{"image": "i:3", "ready": false,
              "state": {"waiting": {"reason": "ErrImagePull"}}}]}},
            {"metadata": {"name": "d", "namespace": "x"}, "status": {"phase": "Succeeded"}},
            {"metadata": {"name": "e", "namespace": "x"}}]}"#,
        );
        let waiting: Vec<_> = list.items.iter().filter_map(Pod::waiting).collect();
        assert_eq!(waiting.len(), 3, "{waiting:?}");
        let pulls: Vec<_> = list.items.iter().flat_map(Pod::not_pulled).collect();
        assert_eq!(pulls, ["pod x/b pulls i:2", "pod x/c pulls i:3"]);
    }

    #[test]
    fn nodes_of_processes_that_are_gone_are_abandoned() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = child.id();
        child.wait().unwrap();
        assert!(is_abandoned(&format!("boot-{gone}-1")));
        assert!(is_abandoned(&name(1)));
        // Process 1 lives as long as the machine.
        for other in [
            "boot-1-1",
            "boot-x-1",
            "boot-",
            "demo",
            &format!("test-{gone}-1"),
        ] {
            assert!(!is_abandoned(other), "{other}");
        }
    }

    #[test]
    fn a_flavor_says_how_many_nodes_there_are() {
        let text = "metadata: {name: a, resourceVersion: 1.0.0}\n\
            nodeProfiles: [{name: n}, {name: m}]\n\
            installer: {flavors: {default: two, items: [\n\
              {name: many, nodes: [{profile: n, count: 9}]},\n\
              {name: two, nodes: [{profile: n, count: 1}, {profile: m, count: 1}]}]}}";
        let manifest = manifest::parse(text, "a").unwrap();
        let (flavor, profiles) = nodes(&manifest, None).unwrap();
        assert_eq!(
            (flavor.as_deref(), profiles),
            (Some("two"), vec![Some("n".into()), Some("m".into())])
        );
        assert!(nodes(&manifest, Some("many")).is_err());
        assert!(nodes(&manifest, Some("none")).is_err());
        let plain = "metadata: {name: a, resourceVersion: 1.0.0}\nnodeProfiles: [{name: n}]";
        let plain = manifest::parse(plain, "a").unwrap();
        let one = |name: &str| (None, vec![Some(name.to_owned())]);
        assert_eq!(nodes(&plain, None).unwrap(), one("n"));
        assert!(nodes(&plain, Some("two")).is_err());
    }

    #[test]
    fn the_first_node_is_the_one_that_an_install_chooses() {
        let chosen = |more: &str| {
            let text = format!("metadata: {{name: a, resourceVersion: 1.0.0}}\n{more}");
            let (_, profiles) = nodes(&manifest::parse(&text, "a").unwrap(), None).unwrap();
            profiles.iter().filter_map(role).collect::<Vec<_>>()
        };
        // A bare chart.
        assert_eq!(chosen(""), [""; 0]);
        let worker = "{name: w, serviceRole: node}";
        let profiles = format!("nodeProfiles: [{worker}, {{name: m}}, {{name: n}}]\n");
        assert_eq!(chosen(&profiles), ["--role=m"]);
        let flavors = "installer: {flavors: {items: [{name: f, nodes: [\
            {profile: w, count: 2}, {profile: n, count: 1}, {profile: m, count: 1}]}]}}";
        assert_eq!(
            chosen(&(profiles + flavors)),
            ["--role=n", "--role=m", "--role=w", "--role=w"]
        );
        // The install tells what is wrong.
        assert_eq!(chosen(&format!("nodeProfiles: [{worker}]")), ["--role=w"]);
    }
}
