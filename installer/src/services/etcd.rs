//! etcd: the state of the cluster.

use planet::config::Probe;

use super::{Context, Definition, choose, command, secret};

/// Port of clients.
const CLIENT_PORT: u16 = 2379;
/// Port of other members.
const PEER_PORT: u16 = 2380;
/// Port of health and metrics, on loopback.
const METRICS_PORT: u16 = 2381;
/// Flags with the times of elections.
const TIMES: [&str; 2] = ["heartbeat-interval", "election-timeout"];
/// Where etcd keeps its data inside.
const DATA: &str = "/var/lib/etcd";

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let address = context.address();
    let name = &context.node.hostname;
    let peer = format!("https://{address}:{PEER_PORT}");
    let metrics = format!("http://127.0.0.1:{METRICS_PORT}");
    let mut command = command(
        "etcd",
        &[
            ("name", name.clone()),
            ("data-dir", DATA.into()),
            (
                "listen-client-urls",
                format!("https://127.0.0.1:{CLIENT_PORT},https://{address}:{CLIENT_PORT}"),
            ),
            (
                "advertise-client-urls",
                format!("https://{address}:{CLIENT_PORT}"),
            ),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer.clone()),
            ("initial-cluster", format!("{name}={peer}")),
            ("initial-cluster-token", context.cluster.id.to_string()),
            ("initial-cluster-state", "new".into()),
            ("listen-metrics-urls", metrics.clone()),
            ("client-cert-auth", "true".into()),
            ("trusted-ca-file", secret("etcd-ca.crt")),
            ("cert-file", secret("etcd.crt")),
            ("key-file", secret("etcd.key")),
            ("peer-client-cert-auth", "true".into()),
            ("peer-trusted-ca-file", secret("etcd-ca.crt")),
            ("peer-cert-file", secret("etcd-peer.crt")),
            ("peer-key-file", secret("etcd-peer.key")),
            // A single member elects itself: it need not wait a second for
            // others. Several members get times for a network between them.
            ("heartbeat-interval", "10".into()),
            ("election-timeout", "100".into()),
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
    let mut service = context.unprivileged(
        "etcd",
        command,
        Probe::Http {
            url: format!("{metrics}/readyz"),
        },
    );
    service.directories = vec![DATA.into()];
    service.stop_timeout_seconds = 20;
    Definition {
        service,
        files: Vec::new(),
        mounts: vec![context.data("etcd", DATA)],
    }
}
