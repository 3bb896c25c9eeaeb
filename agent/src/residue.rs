//! What Kubernetes leaves in the host's network: interfaces of pods and the
//! tables of packet filters, each by a name that only the planet uses.
//!
//! In: the planet's root filesystem, whose programs are used: a bare host may
//! have none. Out: they are gone; what can't be removed is told.

use std::path::Path;

use event::Sink;
use host::command::Cmd;

/// The bridge of pods and the overlay network's devices; the pods' own ends go
/// with their namespaces.
const INTERFACES: &[&str] = &["cni0", "flannel.1", "flannel-wg", "flannel-wg-v6"];

/// Tables of kube-proxy, flannel and the portmap plugin.
const TABLES: &[(&str, &str)] = &[
    ("ip", "kube-proxy"),
    ("ip6", "kube-proxy"),
    ("ip", "flannel-ipv4"),
    ("ip6", "flannel-ipv6"),
    ("inet", "cni_hostport"),
];

/// Removes what is there.
pub(crate) fn remove(rootfs: &Path, sink: &dyn Sink) {
    let run = |program: &str, arguments: &[&str]| {
        Cmd::new("chroot")
            .arg(rootfs)
            .arg(program)
            .args(arguments)
            .run()
    };
    let leader = format!("{}/32", spec::LEADER_ADDRESS);
    // Most often the planet has taken its address with it.
    drop(run("ip", &["address", "del", &leader, "dev", "lo"]));
    for interface in INTERFACES {
        if Path::new("/sys/class/net").join(interface).exists() {
            tell(sink, run("ip", &["link", "delete", interface]));
        }
    }
    let Ok(listed) = run("nft", &["list", "tables"]) else {
        return;
    };
    for (family, table) in TABLES {
        if listed
            .stdout
            .lines()
            .any(|line| line == format!("table {family} {table}"))
        {
            tell(sink, run("nft", &["delete", "table", family, table]));
        }
    }
}

fn tell<T>(sink: &dyn Sink, result: Result<T, host::command::CommandError>) {
    if let Err(error) = result {
        sink.warning(&crate::text(&error));
    }
}
