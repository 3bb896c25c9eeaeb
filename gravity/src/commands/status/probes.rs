//! Who is asked how the cluster is.
//!
//! In: the node's planet, Kubernetes, what other nodes have announced there. Out: what
//! they say, and a line for what they don't. Always holds: who does not answer in time is
//! told of, and holds nobody else up.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use cluster::NodeStatus;
use cluster::hooks::LastCheck;
use installer::history::Change;
use installer::services::OF_MASTERS;
use jiff::{SignedDuration, Timestamp};
use manifest::HookName;
use planet::client::ServiceStatus;
use spec::{ClusterSpec, NodeSpec};
use tokio::time::timeout;

use super::endpoints::{self, Endpoint};
use crate::commands::Session;

/// How long a part may take to answer before it counts as down.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How old the last check of the status hook may be. It is run every minute, has two
/// unless its Job says more, and half a minute goes by where another master takes it over;
/// the rest is for masters whose clocks differ.
const CHECK: SignedDuration = SignedDuration::from_mins(5);

/// Service that runs the status hook.
const STATUS_HOOK: &str = "status-hook";

/// How many of the last changes are shown.
const RECENT: usize = 3;

/// The answer to `asked`. Where there is none `lines` gets one more: what `failed` makes of
/// the error, or `late`.
async fn in_time<T, E>(
    asked: impl Future<Output = Result<T, E>>,
    lines: &mut Vec<String>,
    failed: impl FnOnce(E) -> String,
    late: &str,
) -> Option<T> {
    let line = match timeout(PATIENCE, asked).await {
        Ok(Ok(answer)) => return Some(answer),
        Ok(Err(error)) => failed(error),
        Err(_) => late.to_owned(),
    };
    lines.push(line);
    None
}

/// The services of this node, by the supervisor behind `socket`; it warns of what does
/// not work and is no service.
pub(super) async fn services(
    socket: &Path,
    reasons: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Vec<ServiceStatus> {
    let client = planet::client::Client::new(socket);
    let status = in_time(
        client.status(),
        reasons,
        |error| format!("the planet does not run: {error}"),
        "the planet's supervisor does not answer",
    );
    let status = status.await.unwrap_or_default();
    let told = status.warnings.into_iter();
    warnings.extend(told.map(|told| format!("since its start the planet has warned: {told}")));
    status.services
}

/// What to say where the kernel's table of connections is almost full: what it can't hold
/// is dropped.
pub(super) fn connections() -> Option<String> {
    let read = |name: &str| -> Option<u64> {
        let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    // Without packet filters that look at connections there is no table.
    almost_full(read("count")?, read("max")?)
}

fn almost_full(count: u64, max: u64) -> Option<String> {
    // 0 is no limit.
    (max > 0 && count > max / 10 * 8).then(|| {
        format!(
            "{count} of {max} connections that the kernel can track are in use, and of more it \
             drops packets: raise it by `sysctl -w net.netfilter.nf_conntrack_max={}`, and at \
             every boot in /etc/sysctl.d with `nf_conntrack` in /etc/modules-load.d, or end what makes so many",
            max.saturating_mul(2)
        )
    })
}

/// Which services are not ready, and why.
pub(super) fn down(services: &[ServiceStatus]) -> impl Iterator<Item = String> {
    let down = services
        .iter()
        .filter(|service| service.state != planet::client::State::Ready);
    down.map(|service| {
        let error = service.last_error.as_deref();
        let error = error.unwrap_or("no reason is known");
        format!("service {} is {}: {error}", service.name, service.state)
    })
}

/// Whether a worker is ready, by its kubelet's own rights.
pub(super) async fn own_node(
    session: &Session,
    name: &str,
    reasons: &mut Vec<String>,
) -> &'static str {
    let kubeconfig = session.layout.kubelet_kubeconfig();
    let ready = async {
        let client = cluster::Client::connect(&kubeconfig).await?;
        client.wait_node_ready(name, PATIENCE).await
    };
    match ready.await {
        Ok(short) => {
            reasons.extend(short.iter().map(|short| format!("this node has {short}")));
            "ready"
        }
        Err(error) => {
            reasons.push(error.to_string());
            "not ready"
        }
    }
}

/// A client of Kubernetes with all rights.
pub(super) async fn connect(
    session: &Session,
    reasons: &mut Vec<String>,
) -> Option<cluster::Client> {
    let kubeconfig = session.layout.admin_kubeconfig();
    in_time(
        cluster::Client::connect(&kubeconfig),
        reasons,
        |error| {
            let error = anyhow::Error::from(error);
            format!("the Kubernetes API does not answer: {error:#}")
        },
        "the Kubernetes API does not answer: deadline has elapsed",
    )
    .await
}

/// How nodes and pods are, as Kubernetes has it.
pub(super) async fn kubernetes(
    client: &cluster::Client,
    reasons: &mut Vec<String>,
) -> Option<cluster::Status> {
    in_time(
        client.status(),
        reasons,
        |error| format!("the Kubernetes API does not answer: {error}"),
        "the Kubernetes API does not answer in time",
    )
    .await
}

/// Whether a master's control plane waits for a third master: its services are
/// left out then. Nobody is asked where all is well.
pub(super) async fn stands_by(
    session: &Session,
    cluster: &ClusterSpec,
    node: &NodeSpec,
    services: &mut Vec<ServiceStatus>,
) -> bool {
    let is_master = node.role == spec::Role::Master && cluster.has_several_masters();
    if !is_master || down(services).next().is_none() {
        return false;
    }
    let Ok(etcd) = session.etcd() else {
        return false;
    };
    let stands_by = etcd.stands_by(cluster, node).await.unwrap_or(false);
    if stands_by {
        services.retain(|service| !OF_MASTERS.contains(&service.name.as_str()));
    }
    stands_by
}

/// What runs on a node.
pub(super) struct Runs {
    pub(super) services: Vec<ServiceStatus>,
    /// Whether it is a master that [`stands_by`].
    pub(super) standby: bool,
}

/// What the other nodes have announced of their services, those that are ready:
/// who isn't can't announce anything.
pub(super) async fn others(
    session: &Session,
    cluster: &ClusterSpec,
    known: &[NodeStatus],
    here: &str,
) -> BTreeMap<String, Runs> {
    let mut others = BTreeMap::new();
    for known in known
        .iter()
        .filter(|known| known.ready && known.name != here)
    {
        let node = cluster
            .nodes
            .iter()
            .find(|node| node.hostname == known.name);
        // One of another version tells nothing that is understood.
        let services = known.services.as_deref();
        let services = services.and_then(|json| serde_json::from_str(json).ok());
        if let (Some(node), Some(mut services)) = (node, services) {
            let standby = stands_by(session, cluster, node, &mut services).await;
            others.insert(known.name.clone(), Runs { services, standby });
        }
    }
    others
}

/// What else Kubernetes keeps.
#[derive(Default)]
pub(super) struct Stored {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) status_hook: Option<LastCheck>,
    pub(super) changes: Vec<Change>,
}

/// Asks for what else Kubernetes keeps; `services` are those of this node.
pub(super) async fn stored(
    session: &Session,
    client: &cluster::Client,
    services: &[ServiceStatus],
    now: Timestamp,
    reasons: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Result<Stored> {
    let endpoints = match timeout(PATIENCE, endpoints::endpoints(session, client)).await {
        Ok(found) => found?,
        Err(_) => {
            reasons.push("endpoints can't be looked up in time".into());
            Vec::new()
        }
    };
    let manifest = session.manifest()?;
    let job = manifest.hooks.get(&HookName::Status);
    let status_hook = match job {
        Some(_) => last_check(client, reasons).await,
        None => None,
    };
    let mut services = services.iter();
    let runner = services.find(|service| service.name == STATUS_HOOK);
    let since = runner.map_or(0, |runner| runner.since);
    let last = status_hook.as_ref();
    let age = job.map_or(CHECK, |job| allowed_age(job));
    warnings.extend(last.and_then(|last| overdue(last.time, age, since, now)));
    Ok(Stored {
        endpoints,
        status_hook,
        changes: recent(client, warnings).await,
    })
}

/// How the status hook ended last; a failure degrades the cluster.
async fn last_check(client: &cluster::Client, reasons: &mut Vec<String>) -> Option<LastCheck> {
    let last = in_time(
        client.last_check(),
        reasons,
        |error| error.to_string(),
        "the status hook's result can't be read in time",
    );
    let last = last.await.flatten();
    if let Some(failed) = last.as_ref().filter(|last| !last.passed) {
        reasons.push(failed.message.clone());
    }
    last
}

/// How old the last check may be: a Job that takes its time ends less often.
fn allowed_age(job: &str) -> SignedDuration {
    let job = cluster::hooks::parse("status", job).ok();
    let own = job.and_then(|job| job.spec?.active_deadline_seconds);
    CHECK.saturating_add(SignedDuration::from_secs(own.unwrap_or_default()))
}

/// What to say where the status hook should have ended again in this `age`. `since` is
/// when the service that runs it was started: a cluster that was stopped knows its last
/// check from before.
fn overdue(last: Timestamp, age: SignedDuration, since: u64, now: Timestamp) -> Option<String> {
    let started = i64::try_from(since).unwrap_or_default();
    let started = Timestamp::from_second(started).unwrap_or_default();
    (now.duration_since(last.max(started)) > age).then(|| {
        format!(
            "the status hook has not ended since {}; the log of service {STATUS_HOOK} says why",
            console::render::timestamp(last)
        )
    })
}

/// What has happened last.
async fn recent(client: &cluster::Client, warnings: &mut Vec<String>) -> Vec<Change> {
    let changes = in_time(
        installer::history::read(client),
        warnings,
        |error| format!("what has happened can't be read: {error}"),
        "what has happened can't be read in time",
    );
    let mut changes = changes.await.unwrap_or_default();
    changes.split_off(changes.len().saturating_sub(RECENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_supervisor_warns_of_is_told() {
        use planet::client::{Answer, Status};
        use tokio::io::AsyncWriteExt;

        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("planet.sock");
        let (mut reasons, mut warnings) = (Vec::new(), vec!["other".to_owned()]);
        services(&socket, &mut reasons, &mut warnings).await;
        assert_eq!((reasons.len(), warnings.len()), (1, 1), "{reasons:?}");

        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let status = Status {
            warnings: vec!["listen at 169.254.20.10:6443: in use".into()],
            ..Status::default()
        };
        let answer = serde_json::to_string(&Answer::Status(status)).unwrap();
        let answers = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream
                .write_all(format!("{answer}\n").as_bytes())
                .await
                .unwrap();
            stream
        };
        let asked = services(&socket, &mut reasons, &mut warnings);
        let (_stream, services) = tokio::join!(answers, asked);
        assert!(services.is_empty() && reasons.len() == 1, "{reasons:?}");
        let told = "since its start the planet has warned: listen at 169.254.20.10:6443: in use";
        assert_eq!(warnings, ["other", told]);
    }

    #[test]
    fn a_table_of_connections_is_told_of_before_it_is_full() {
        assert_eq!(almost_full(80_000, 100_000), None);
        assert_eq!(almost_full(80_000, 0), None);
        let told = almost_full(80_001, 100_000).unwrap();
        assert!(told.contains("nf_conntrack_max=200000"), "{told}");
    }

    #[test]
    fn a_status_hook_that_does_not_end_is_told_unless_it_was_just_started() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let ago = |seconds| now - SignedDuration::from_secs(seconds);
        let told = overdue(ago(301), CHECK, 0, now).unwrap();
        assert!(told.contains("has not ended since"), "{told}");
        assert!(overdue(ago(900), CHECK, 1_699_999_600, now).is_some());
        assert_eq!(overdue(ago(300), CHECK, 0, now), None);
        assert_eq!(overdue(ago(900), CHECK, 1_699_999_900, now), None);
        // The clock of another master is ahead.
        assert_eq!(overdue(ago(-900), CHECK, 0, now), None);
    }
}
