//! `kubeadm init` and `kubeadm join` with the same programs, as images that are
//! imported before.
//!
//! In: the image's programs and a kubeadm of the same version. Out: how long
//! each takes to a node that is Ready. containerd runs before, addons are left
//! out, and kubelet is started by hand as soon as kubeadm has written its
//! configuration, as nodes of namespaces have no init system.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use event::Sink;
use serde_json::json;

use super::cluster::{Times, create, inside, watch};
use super::floor::{self, PLACE};
use super::{Bench, Row, Target};

use crate::node::{Node, Throwaway};
use crate::registry::component;
use crate::scenario::IMAGE;
use crate::{file, process};

/// Where its images would come from.
const REPOSITORY: &str = "bench.invalid";
const TAG: &str = "bench";
/// Checks are short: more of them make the median good.
const CHECKS: u16 = 7;

const PREPARE: &str = r#"
set -eu
cd /var/lib/bench
export PATH=$PWD/usr/local/bin:$PATH
mkdir -p log
containerd --config $PWD/etc/containerd.toml >log/containerd 2>&1 </dev/null &
until ctr version >/dev/null 2>&1; do sleep 0.1; done
ctr --namespace k8s.io images import --local $PWD/usr/local/share/planet/pause.tar >/dev/null
sync
"#;

const IMPORT: &str = r#"
cd /var/lib/bench
usr/local/bin/ctr --namespace k8s.io images import --local $PWD/images.tar >/dev/null
"#;

/// `$CREDENTIALS` is what kubelet begins with; arguments are kubeadm's.
const START: &str = r#"
set -eu
cd /var/lib/bench
export PATH=$PWD/usr/local/bin:$PATH
{
  until [ -s /var/lib/kubelet/config.yaml ] && [ -s /var/lib/kubelet/kubeadm-flags.env ] &&
    [ -s "/etc/kubernetes/$CREDENTIALS" ]; do sleep 0.02; done
  . /var/lib/kubelet/kubeadm-flags.env
  exec kubelet --config=/var/lib/kubelet/config.yaml --kubeconfig=/etc/kubernetes/kubelet.conf \
    --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf $KUBELET_KUBEADM_ARGS
} >log/kubelet 2>&1 </dev/null &
exec kubeadm "$@" --config=$PWD/etc/kubeadm.yaml --ignore-preflight-errors=all
"#;
/// By which kubeadm's nodes know each other, in namespaces that reach nothing else.
const TOKEN: &str = "abcdef.0123456789abcdef";
/// Where kubeadm writes the administrator's credentials.
const ADMIN: &str = "/etc/kubernetes/admin.conf";

/// kubeadm and the images that it starts.
#[derive(Debug)]
pub(super) struct Kubeadm {
    program: PathBuf,
    version: String,
    images: PathBuf,
}

impl Kubeadm {
    /// Finds the program and makes the images.
    pub(super) fn prepare(bench: &Bench<'_>) -> Result<Self> {
        let program = match &bench.options.kubeadm {
            Some(program) => program.clone(),
            None => component("kubeadm")
                .context("`make-base --kubeadm DIR` builds it, `--kubeadm DIR/kubeadm` names it")?,
        };
        let version = process::text(Command::new(&program).args(["version", "-o", "short"]))?;
        let version = version.trim().to_owned();
        let images = make_images(bench, &version)?;
        Ok(Self {
            program,
            version,
            images,
        })
    }

    /// How long it takes in a node of its own; seconds of the import of its
    /// images, and of the rest.
    pub(super) fn run(&self, bench: &Bench<'_>) -> Result<(f64, Times)> {
        let (node, import, times) = self.init(bench)?;
        drop(node);
        Ok((import, times))
    }

    /// A node with a cluster of its own, and what [`Kubeadm::run`] returns.
    pub(super) fn init(&self, bench: &Bench<'_>) -> Result<(Throwaway, f64, Times)> {
        let node = self.first(bench)?;
        let started = Instant::now();
        node.run(&["bash", "-ec", IMPORT])?;
        let import = started.elapsed().as_secs_f64();
        let init = start(&node, "kubelet.conf", &["init", "--skip-phases=addon"])?;
        let times = watch(bench, &node, &node, init, ADMIN)?;
        Ok((node, import, times))
    }

    /// How long it takes until another node is Ready in the cluster of `first`.
    pub(super) fn join(&self, bench: &Bench<'_>, first: &Node) -> Result<Times> {
        let node = self.node(bench, "bench-kubeadm-2", "10.99.0.43")?;
        let settings = json!({
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "JoinConfiguration",
            "discovery": { "bootstrapToken": {
                "token": TOKEN,
                "apiServerEndpoint": format!("{}:6443", first.address()),
                "unsafeSkipCAVerification": true,
            } },
            "nodeRegistration": registration(&node),
        });
        settings_of(&node, &[settings])?;
        let join = start(&node, "bootstrap-kubelet.conf", &["join"])?;
        let times = watch(bench, first, &node, join, ADMIN)?;
        let kubectl = format!("{PLACE}/usr/local/bin/kubectl");
        first.run(&[
            &kubectl,
            "--kubeconfig",
            ADMIN,
            "delete",
            "node",
            node.name(),
        ])?;
        Ok(times)
    }

    /// Our checks against its own, in one node: those that are quick in
    /// milliseconds, all in seconds.
    fn checks(&self, bench: &Bench<'_>, quick: &mut Row, all: &mut Row) -> Result<()> {
        let node = self.first(bench)?;
        node.copy(&bench.file, IMAGE)?;
        let address = node.address();
        let every = format!("{IMAGE} check --advertise-addr={address}");
        let ours = format!("{every} --quick");
        let peer = format!(
            "{PLACE}/usr/local/bin/kubeadm init phase preflight --config={PLACE}/etc/kubeadm.yaml \
             --ignore-preflight-errors=all"
        );
        // What they find is not what counts here.
        let timed = |command: &str| -> Result<f64> {
            let script =
                format!("PATH={PLACE}/usr/local/bin:$PATH {command} >/dev/null 2>&1 || true");
            let started = Instant::now();
            node.run(&["bash", "-c", &script])?;
            Ok(started.elapsed().as_secs_f64())
        };
        // Once before, for the page cache.
        timed(&ours)?;
        timed(&peer)?;
        for _ in 0..bench.options.runs.max(CHECKS) {
            quick.ours.push(timed(&ours)? * 1e3);
            quick.peer.push(timed(&peer)? * 1e3);
        }
        for _ in bench.rounds() {
            all.ours.push(timed(&every)?);
            all.peer.push(timed(&peer)?);
        }
        Ok(())
    }

    /// A node that is to have a cluster of its own.
    fn first(&self, bench: &Bench<'_>) -> Result<Throwaway> {
        let node = self.node(bench, "bench-kubeadm", "10.99.0.42")?;
        let settings = [
            json!({
                "apiVersion": "kubeadm.k8s.io/v1beta4",
                "kind": "InitConfiguration",
                "bootstrapTokens": [{ "token": TOKEN }],
                "localAPIEndpoint": { "advertiseAddress": node.address(), "bindPort": 6443 },
                "nodeRegistration": registration(&node),
            }),
            json!({
                "apiVersion": "kubeadm.k8s.io/v1beta4",
                "kind": "ClusterConfiguration",
                "kubernetesVersion": self.version,
                "imageRepository": REPOSITORY,
                "etcd": { "local": { "imageTag": TAG } },
                "networking": { "podSubnet": "10.244.0.0/16", "serviceSubnet": "10.100.0.0/16" },
            }),
            floor::kubelet_settings(),
        ];
        settings_of(&node, &settings)?;
        Ok(node)
    }

    /// A node with containerd and the programs.
    fn node(&self, bench: &Bench<'_>, name: &str, address: &str) -> Result<Throwaway> {
        let node = create(name, address)?;
        let place = floor::place(&node, &floor::programs(bench)?)?;
        std::fs::copy(&self.program, place.join("usr/local/bin/kubeadm"))
            .context("copying kubeadm")?;
        std::fs::copy(&self.images, place.join("images.tar")).context("copying the images")?;
        file::write(&place.join("prepare.sh"), PREPARE)?;
        file::write(&place.join("start.sh"), START)?;
        node.run(&["bash", &format!("{PLACE}/prepare.sh")])?;
        Ok(node)
    }
}

fn registration(node: &Node) -> serde_json::Value {
    json!({
        "name": node.name(),
        "criSocket": "unix:///run/containerd/containerd.sock",
        "imagePullPolicy": "Never",
        "taints": [],
    })
}

/// Writes kubeadm's settings.
fn settings_of(node: &Node, documents: &[serde_json::Value]) -> Result<()> {
    // JSON is YAML.
    let documents: Vec<_> = documents.iter().map(ToString::to_string).collect();
    let path = inside(node, PLACE)?.join("etc/kubeadm.yaml");
    file::write(&path, documents.join("\n---\n"))
}

fn start(node: &Node, credentials: &str, words: &[&str]) -> Result<Command> {
    let credentials = format!("CREDENTIALS={credentials}");
    let script = format!("{PLACE}/start.sh");
    node.command(&[&["env", &credentials, "bash", &script][..], words].concat())
}

/// The rows of local checks: those that are quick, and all of one node.
pub(super) fn checks(bench: &Bench<'_>) -> Vec<Row> {
    let row =
        |what, unit, target| Row::new(what, "kubeadm init phase preflight", unit, Some(target));
    let mut quick = row(
        "local checks (gravity check --quick)",
        "ms",
        Target::Ratio(1.0),
    );
    let mut all = row(
        "all checks of a node (gravity check)",
        "s",
        Target::Most(10.0),
    );
    bench.console.step("Checking");
    let result =
        Kubeadm::prepare(bench).and_then(|kubeadm| kubeadm.checks(bench, &mut quick, &mut all));
    if let Err(error) = result {
        quick.note(&format!("{error:#}"));
    }
    vec![quick, all]
}

/// One image under all names, of the static programs alone.
fn make_images(bench: &Bench<'_>, version: &str) -> Result<PathBuf> {
    let programs = floor::programs(bench)?;
    let directory = bench.path("images");
    file::make_directory(&directory)?;
    let layer = directory.join("layer.tar");
    let services = [
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
    ];
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(&layer).arg("-C").arg(&programs);
    tar.args(["usr/local/bin/kubernetes", "usr/local/bin/etcd"]);
    process::run(tar.args(services.map(|name| format!("usr/local/bin/{name}"))))?;
    let mut content = File::open(&layer).with_context(|| layer.display().to_string())?;
    let (diff, _) = oci::digest::copy(&mut content, &mut std::io::sink())?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Env": ["PATH=/usr/local/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [diff] },
    });
    file::write(&directory.join("config.json"), config.to_string())?;
    let mut names: Vec<_> = services
        .iter()
        .map(|name| format!("{REPOSITORY}/{name}:{version}"))
        .collect();
    names.push(format!("{REPOSITORY}/etcd:{TAG}"));
    let manifest = json!([{ "Config": "config.json", "RepoTags": names, "Layers": ["layer.tar"] }]);
    file::write(&directory.join("manifest.json"), manifest.to_string())?;
    let images = bench.path("images.tar");
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(&images).arg("-C").arg(&directory);
    process::run(tar.args(["manifest.json", "config.json", "layer.tar"]))?;
    file::remove_directory(&directory)?;
    Ok(images)
}
