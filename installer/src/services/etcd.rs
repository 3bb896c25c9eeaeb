//! etcd: the state of the cluster.

use std::net::{IpAddr, SocketAddr};

use agent::etcd::CLIENT_PORT;
use planet::config::Probe;
use spec::Role;

use super::{Context, Definition, PROGRAM, choose, command, secret};

/// Port of other members.
pub const PEER_PORT: u16 = 2380;
/// Port of health and metrics, on loopback.
const METRICS_PORT: u16 = 2381;
/// Flags with the times of elections.
const TIMES: [&str; 2] = ["heartbeat-interval", "election-timeout"];
/// Where etcd keeps its data inside.
const DATA: &str = "/var/lib/etcd";

/// State of the cluster of a member that begins one.
const NEW: &str = "new";

/// Heartbeat and election timeout of a single member, in ms: it elects itself,
/// and need not wait a second for others.
const SINGLE: (&str, &str) = ("10", "100");
/// The same of several, etcd's own defaults: for a network and slow disks.
const SEVERAL: (&str, &str) = ("100", "1000");

/// URL at which a member speaks to others.
pub(crate) fn peer_url(address: IpAddr) -> String {
    format!("https://{}", SocketAddr::new(address, PEER_PORT))
}

/// URL at which a member answers clients.
fn client_url(address: IpAddr) -> String {
    format!("https://{}", SocketAddr::new(address, CLIENT_PORT))
}

/// All members, as etcd's `--initial-cluster` has them.
fn masters(context: &Context<'_>) -> impl Iterator<Item = String> {
    let masters = context.cluster.nodes.iter();
    masters
        .filter(|node| node.role == Role::Master)
        .filter_map(|node| {
            let address = node.address()?;
            Some(format!("{}={}", node.hostname, peer_url(address)))
        })
}

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let address = context.address();
    let name = &context.node.hostname;
    let peer = peer_url(address);
    let metrics = format!("http://127.0.0.1:{METRICS_PORT}");
    // All masters: those that are members already, and this node.
    let members: Vec<_> = masters(context).collect();
    let state = if members.len() > 1 { "existing" } else { NEW };
    let command = |several: bool| {
        let (heartbeat, election) = if several { SEVERAL } else { SINGLE };
        let mut command = command(
            "etcd",
            &[
                ("name", name.clone()),
                ("data-dir", DATA.into()),
                (
                    "listen-client-urls",
                    format!("https://127.0.0.1:{CLIENT_PORT},{}", client_url(address)),
                ),
                ("advertise-client-urls", client_url(address)),
                ("listen-peer-urls", peer.clone()),
                ("initial-advertise-peer-urls", peer.clone()),
                ("initial-cluster", members.join(",")),
                ("initial-cluster-token", context.cluster.id.to_string()),
                ("initial-cluster-state", state.into()),
                ("listen-metrics-urls", metrics.clone()),
                ("client-cert-auth", "true".into()),
                ("trusted-ca-file", secret("etcd-ca.crt")),
                ("cert-file", secret("etcd.crt")),
                ("key-file", secret("etcd.key")),
                ("peer-client-cert-auth", "true".into()),
                ("peer-trusted-ca-file", secret("etcd-ca.crt")),
                ("peer-cert-file", secret("etcd-peer.crt")),
                ("peer-key-file", secret("etcd-peer.key")),
                ("heartbeat-interval", heartbeat.into()),
                ("election-timeout", election.into()),
                // A second master is one until there is a third, which begins as one.
                ("max-learners", "2".into()),
                ("auto-compaction-retention", "8h".into()),
                ("quota-backend-bytes", (8_u64 << 30).to_string()),
                ("logger", "zap".into()),
                ("log-level", "warn".into()),
            ],
        );
        let chosen = &context.options.etcd;
        // They belong together: who chooses one means it beside etcd's own other.
        if TIMES.iter().any(|time| chosen.contains_key(*time)) {
            command.retain(|flag| {
                !TIMES
                    .iter()
                    .any(|time| flag.starts_with(&format!("--{time}=")))
            });
        }
        choose(&mut command, chosen);
        command
    };
    let ready = Probe::Http {
        url: format!("{metrics}/readyz"),
    };
    let mut service = context.by_masters(command, |command| {
        context.unprivileged("etcd", command, ready)
    });
    service.directories = vec![DATA.into()];
    if state == NEW {
        let prepare = [PROGRAM, "etcd", "prepare", DATA];
        service.pre_start = vec![prepare.map(ToOwned::to_owned).into()];
    }
    service.stop_timeout_seconds = 20;
    Definition {
        mounts: vec![context.data("etcd", DATA)],
        ..service.into()
    }
}
