//! The overlay network between nodes, unless the vendor has one of its own.

use planet::config::Probe;
use serde_json::json;
use spec::PodNetwork;

use super::{Context, Definition, command, config, secret};

/// Where flannel keeps the node's private key for WireGuard, by an environment
/// variable: in the memory of the planet, in a directory that root alone may
/// enter. The key ends with the planet; others learn the next one's public half
/// by an annotation of the node.
const KEY_DIRECTORY: &str = "/run/wireguard";
const KEY_FILE: (&str, &str) = ("WIREGUARD_KEY_FILE", "/run/wireguard/key");

pub(crate) fn define(context: &Context<'_>) -> Option<Definition> {
    let backend = match context.cluster.pod_network {
        PodNetwork::Vxlan => json!({ "Type": "vxlan", "Port": context.cluster.vxlan_port }),
        PodNetwork::Wireguard => json!({ "Type": "wireguard", "ListenPort": spec::WIREGUARD_PORT }),
        PodNetwork::Vendor => return None,
    };
    let settings = json!({
        "Network": context.pod_cidr(),
        "EnableNFTables": true,
        "Backend": backend,
    });
    let command = command(
        "flanneld",
        &[
            ("kube-subnet-mgr", "true".into()),
            // It may write to this node's object and to no other.
            ("kubeconfig-file", secret("kubelet.kubeconfig")),
            ("net-config-path", config("flannel.json")),
            ("iface", context.address().to_string()),
            ("ip-masq", "true".into()),
        ],
    );
    let ready = Probe::File {
        path: "/run/flannel/subnet.env".into(),
    };
    let mut service = context.privileged("flannel", command, ready);
    service.requires = vec![super::rbac::NAME.into()];
    service
        .env
        .insert("NODE_NAME".into(), context.node.hostname.clone());
    // It makes them at its start alone.
    service.tables = vec!["ip flannel-ipv4".into(), "ip6 flannel-ipv6".into()];
    if context.cluster.pod_network == PodNetwork::Wireguard {
        let (name, path) = KEY_FILE;
        service.env.insert(name.into(), path.into());
        service.directories = vec![KEY_DIRECTORY.into()];
    }
    let files = vec![context.file("flannel.json", format!("{settings:#}\n"))];
    Some(Definition {
        files,
        ..service.into()
    })
}
