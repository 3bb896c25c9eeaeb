//! The floor: the same programs, started by a script with certificates ready.
//!
//! In: the planet's root filesystem. Out: how long its programs take to a node
//! that is Ready when nothing else is done: nothing is unpacked, checked,
//! generated, recorded or supervised.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use pki::{Authority, Issued, Leaf};
use serde_json::json;

use super::Bench;
use super::cluster::{Times, create, inside, watch};
use crate::node::Node;
use crate::{file, process};

/// Where programs and files are in a node.
pub(super) const PLACE: &str = "/var/lib/bench";
const SERVICES: &str = "10.100.0.0/16";
const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// `$A` is the node's address, `$N` its name. What needs the API server starts
/// when it is ready: earlier it would only take its processor time.
const SCRIPT: &str = r#"
set -eu
cd /var/lib/bench
export PATH=$PWD/usr/local/bin:$PATH
mkdir -p log
S=$PWD/secrets
run() { name=$1; shift; "$@" >log/$name 2>&1 </dev/null & }
run etcd etcd --name="$N" --data-dir=/var/lib/etcd \
  --listen-client-urls=https://127.0.0.1:2379 --advertise-client-urls=https://127.0.0.1:2379 \
  --listen-peer-urls=https://127.0.0.1:2380 --initial-advertise-peer-urls=https://127.0.0.1:2380 \
  --initial-cluster="$N=https://127.0.0.1:2380" \
  --client-cert-auth --trusted-ca-file=$S/ca.crt --cert-file=$S/server.crt --key-file=$S/server.key \
  --peer-client-cert-auth --peer-trusted-ca-file=$S/ca.crt \
  --peer-cert-file=$S/server.crt --peer-key-file=$S/server.key --log-level=warn
run apiserver kube-apiserver --advertise-address="$A" --secure-port=6443 \
  --etcd-servers=https://127.0.0.1:2379 --etcd-cafile=$S/ca.crt \
  --etcd-certfile=$S/server.crt --etcd-keyfile=$S/server.key \
  --tls-cert-file=$S/server.crt --tls-private-key-file=$S/server.key --client-ca-file=$S/ca.crt \
  --service-cluster-ip-range="$SERVICES" --service-account-issuer=https://kubernetes.default.svc \
  --service-account-key-file=$S/service-account.pub \
  --service-account-signing-key-file=$S/service-account.key \
  --authorization-mode=Node,RBAC --allow-privileged=true --v=1
run containerd containerd --config $PWD/etc/containerd.toml
until curl -sf --cacert $S/ca.crt --cert $S/admin.crt --key $S/admin.key \
  "https://$A:6443/readyz" >/dev/null; do sleep 0.05; done
K=$S/admin.kubeconfig
run controller-manager kube-controller-manager --kubeconfig=$K --leader-elect=false \
  --authentication-kubeconfig=$K --authorization-kubeconfig=$K --use-service-account-credentials \
  --service-account-private-key-file=$S/service-account.key --root-ca-file=$S/ca.crt --v=1
run scheduler kube-scheduler --kubeconfig=$K --authentication-kubeconfig=$K \
  --authorization-kubeconfig=$K --leader-elect=false --v=1
run kubelet kubelet --config=$PWD/etc/kubelet.json --kubeconfig=$S/kubelet.kubeconfig \
  --hostname-override="$N" --node-ip="$A" --v=1
"#;

/// How long the programs of the image take in a node of their own.
pub(super) fn run(bench: &Bench<'_>) -> Result<Times> {
    let programs = programs(bench)?;
    let node = create("bench-floor", "10.99.0.41")?;
    let place = place(&node, &programs)?;
    write_secrets(&node, &place.join("secrets"))?;
    file::write(&place.join("etc/kubelet.json"), kubelet(&node))?;
    file::write(&place.join("start.sh"), SCRIPT)?;
    let admin = format!("{PLACE}/secrets/admin.kubeconfig");
    let address = format!("A={}", node.address());
    let name = format!("N={}", node.name());
    let services = format!("SERVICES={SERVICES}");
    let script = format!("{PLACE}/start.sh");
    let words = ["env", &address, &name, &services, "bash", &script];
    watch(bench, &node, &node, node.command(&words)?, &admin)
}

/// The image's programs, unpacked once.
pub(super) fn programs(bench: &Bench<'_>) -> Result<PathBuf> {
    let directory = bench.path("programs");
    if !directory.exists() {
        let part = bench.path("programs.part");
        file::make_directory(&part)?;
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(bench.rootfs()?).arg("-C").arg(&part);
        // What is not started is not copied into nodes.
        for name in ["coredns", "etcdctl", "flanneld", "helm", "registry"] {
            tar.arg(format!("--exclude=usr/local/bin/{name}"));
        }
        process::run(tar.args(["usr/local/bin", "usr/local/share/planet", "opt/cni"]))?;
        std::fs::rename(&part, &directory).context("renaming the programs")?;
    }
    Ok(directory)
}

/// Puts the programs and the runtime's settings into a node. Returns where
/// [`PLACE`] is on the machine.
pub(super) fn place(node: &Node, programs: &Path) -> Result<PathBuf> {
    let place = inside(node, PLACE)?;
    process::run(Command::new("cp").arg("-a").arg(programs).arg(&place))?;
    for directory in ["etc/cni", "secrets"] {
        file::make_directory(&place.join(directory))?;
    }
    let runtime = format!(
        r#"version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "leader.telekube.local:5000/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{PLACE}/opt/cni/bin"]
conf_dir = "{PLACE}/etc/cni"
"#
    );
    file::write(&place.join("etc/containerd.toml"), runtime)?;
    let network = json!({
        "cniVersion": "1.0.0",
        "name": "bench",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.244.0.0/24" }]] },
        }],
    });
    file::write(
        &place.join("etc/cni/10-bench.conflist"),
        network.to_string(),
    )?;
    Ok(place)
}

/// What kubelet needs to run in a node of namespaces, for any way to start it.
pub(super) fn kubelet_settings() -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "oomScoreAdj": 0,
    })
}

fn kubelet(node: &Node) -> String {
    let mut settings = kubelet_settings();
    let secrets = format!("{PLACE}/secrets");
    settings["authentication"] = json!({
        "anonymous": { "enabled": false },
        "x509": { "clientCAFile": format!("{secrets}/ca.crt") },
    });
    settings["tlsCertFile"] = json!(format!("{secrets}/server.crt"));
    settings["tlsPrivateKeyFile"] = json!(format!("{secrets}/server.key"));
    settings["address"] = json!(node.address());
    settings.to_string()
}

/// One authority for all: this is no cluster to keep.
fn write_secrets(node: &Node, directory: &Path) -> Result<()> {
    let authority = Authority::generate("bench", LIFETIME)?;
    let address: IpAddr = node.address().parse().context("the node's address")?;
    let issue = |user: &str, group: &str| {
        authority.issue(&Leaf::client(user, &[group.to_owned()], LIFETIME))
    };
    let server = authority.issue(&Leaf {
        server: true,
        dns_names: vec![node.name().to_owned(), "localhost".into()],
        ip_addresses: vec![
            address,
            Ipv4Addr::LOCALHOST.into(),
            Ipv4Addr::new(10, 100, 0, 1).into(),
        ],
        ..Leaf::client("kube-apiserver", &[], LIFETIME)
    })?;
    let put = |name: &str, content: &str| file::write(&directory.join(name), content);
    let put_pair = |name: &str, issued: &Issued| {
        put(&format!("{name}.crt"), &issued.certificate_pem)?;
        put(&format!("{name}.key"), &issued.key_pem)
    };
    put("ca.crt", authority.certificate_pem())?;
    put_pair("server", &server)?;
    let admin = issue("admin", "system:masters")?;
    put_pair("admin", &admin)?;
    let user = format!("system:node:{}", node.name());
    let kubelet = issue(&user, "system:nodes")?;
    for (name, issued) in [("admin", &admin), ("kubelet", &kubelet)] {
        let text = kubeconfig(node, &authority, issued);
        put(&format!("{name}.kubeconfig"), &text)?;
    }
    let accounts = pki::key_pair()?;
    put("service-account.key", &accounts.key_pem)?;
    put("service-account.pub", &accounts.public_pem)
}

fn kubeconfig(node: &Node, authority: &Authority, issued: &Issued) -> String {
    use base64::Engine;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "bench",
        "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": "bench" } }],
        "clusters": [{ "name": "bench", "cluster": {
            "server": format!("https://{}:6443", node.address()),
            "certificate-authority-data": encode(authority.certificate_pem()),
        } }],
        "users": [{ "name": "bench", "user": {
            "client-certificate-data": encode(&issued.certificate_pem),
            "client-key-data": encode(&issued.key_pem),
        } }],
    })
    .to_string()
}
