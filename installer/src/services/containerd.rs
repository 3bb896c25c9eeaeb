//! The container runtime.

use planet::config::{Mount, Probe};
use spec::PodNetwork;

use super::{Context, Definition, config, program, secret};

/// Image of the process that holds a pod's namespaces; it lies in the base
/// image, so that no pod waits for the registry.
const PAUSE: &str = "leader.telekube.local:5000/pause:1";
const PAUSE_ARCHIVE: &str = "/usr/local/share/planet/pause.tar";
const SOCKET: &str = "/run/containerd/containerd.sock";
const DATA: &str = "/var/lib/containerd";

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let command = vec![
        program("containerd"),
        "--config".into(),
        config("containerd.toml"),
    ];
    let ready = Probe::Unix {
        path: SOCKET.into(),
    };
    let mut service = context.privileged("containerd", command, ready);
    service.post_start = vec![
        [
            &program("ctr"),
            "--namespace",
            "k8s.io",
            "images",
            "import",
            "--local",
            "--sync-fs",
            PAUSE_ARCHIVE,
        ]
        .map(String::from)
        .into(),
    ];
    // The shims outlive it: pods don't notice a restart.
    service.keep_children = true;
    let mut registry = context.file("", hosts());
    registry.path = "/etc/containerd/certs.d/_default/hosts.toml".into();
    let mut files = vec![context.file("containerd.toml", settings(context)), registry];
    if context.cluster.pod_network != PodNetwork::Vendor {
        let mut network = context.file("", network(context));
        network.path = "/etc/cni/net.d/10-planet.conflist".into();
        files.push(network);
    }
    Definition {
        service,
        files,
        mounts: vec![Mount {
            recursive: true,
            ..context.data("containerd", DATA)
        }],
    }
}

fn settings(context: &Context<'_>) -> String {
    let restrict_oom_score = !context.facts.can_lower_oom_score;
    let options = context.options;
    let level = options.runtime_log_level.as_deref().unwrap_or("info");
    let downloads = match options.max_concurrent_downloads {
        Some(count) => format!("max_concurrent_downloads = {count}\n"),
        None => String::new(),
    };
    format!(
        r#"version = 3
root = "{DATA}"
state = "/run/containerd"

[grpc]
address = "{SOCKET}"

[debug]
level = "{level}"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
# Layers that are known are on the disk, also when the machine ends right after.
image_pull_with_sync_fs = true
{downloads}[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "/etc/containerd/certs.d"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = {restrict_oom_score}
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
# How a pod ends: the supervisor reads them when the planet stops.
container_annotations = [
  "io.kubernetes.pod.terminationGracePeriod",
  "io.kubernetes.container.preStopHandler",
  "io.kubernetes.container.ports",
]
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
"#
    )
}

/// Every image comes from the cluster's registry, whatever registry its name
/// says: nodes have no other.
fn hosts() -> String {
    let url = format!("https://{}:{}", spec::LEADER_NAME, spec::REGISTRY_PORT);
    format!(
        r#"server = "{url}"

[host."{url}"]
capabilities = ["pull", "resolve"]
ca = "{}"
client = [["{}", "{}"]]
"#,
        secret("registry-ca.crt"),
        secret("registry-client.crt"),
        secret("registry-client.key"),
    )
}

/// The bridge that pods are on. The node's part of the pod network is known
/// before anything starts, so the runtime is ready at once.
fn network(context: &Context<'_>) -> String {
    let ranges: Vec<_> = context
        .node
        .pod_cidrs
        .iter()
        .map(|cidr| serde_json::json!([{ "subnet": cidr }]))
        .collect();
    let mut bridge = serde_json::json!({
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": true,
        "isDefaultGateway": true,
        "ipMasq": false,
        // A pod reaches itself through its Service.
        "hairpinMode": true,
        "ipam": { "type": "host-local", "ranges": ranges },
    });
    if let Some(mtu) = mtu(context) {
        bridge["mtu"] = mtu.into();
    }
    let conflist = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "planet",
        "plugins": [
            bridge,
            {
                "type": "portmap",
                "backend": "nftables",
                "capabilities": { "portMappings": true },
            },
        ],
    });
    format!("{conflist:#}\n")
}

/// Largest packets of pods: those that the overlay sends to other nodes in one piece, as
/// flannel counts it, too. `None` where the host doesn't say.
fn mtu(context: &Context<'_>) -> Option<u32> {
    let overhead = match context.cluster.pod_network {
        PodNetwork::Vxlan => 50,
        PodNetwork::Wireguard => 80,
        PodNetwork::Vendor => return None,
    };
    let name = &context.host_address()?.interface;
    let interface = context.facts.network.interface(name)?;
    interface.mtu.checked_sub(overhead)
}
