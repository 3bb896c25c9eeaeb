//! What the status tells, from real probes.
//!
//! In: the node's files, its planet, Kubernetes, etcd of all masters. Out: a [`Report`].
//! Always holds: who does not answer in time is told of, and holds nobody else up.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use cluster::NodeStatus;
use cluster::hooks::LastCheck;
use installer::attach::Follower;
use installer::controller;
use installer::coordinator::Operation;
use installer::history::Change;
use installer::services::OF_MASTERS;
use jiff::{SignedDuration, Timestamp};
use manifest::HookName;
use operation::{Phase, Plan, State};
use planet::client::ServiceStatus;
use serde::Serialize;
use spec::phase::PhaseSpec;
use spec::{ClusterSpec, NodeSpec};

use super::endpoints::{self, Endpoint};
use super::etcd::{etcd, other_etcds, split};
use crate::commands::{Session, cert, own};

/// How long a part may take to answer before it counts as down.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How long a node may take from its taking in until it works.
const JOIN: SignedDuration = SignedDuration::from_hours(1);

/// How old the last check of the status hook may be. It is run every minute, has two
/// unless its Job says more, and half a minute goes by where another master takes it over;
/// the rest is for masters whose clocks differ.
const CHECK: SignedDuration = SignedDuration::from_mins(5);

/// Service that runs the status hook.
const STATUS_HOOK: &str = "status-hook";

/// How many of the last changes are shown.
const RECENT: usize = 3;

/// What `gravity status --output json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) cluster: Cluster,
    pub(super) nodes: Vec<Node>,
    pub(super) endpoints: Vec<Endpoint>,
    /// How the status hook ended last, where there is one and it has run.
    pub(super) status_hook: Option<LastCheck>,
    /// The last operation of this node.
    pub(super) operation: Option<Progress>,
    /// What has happened last to the cluster, on a master.
    pub(super) changes: Vec<Change>,
}

#[derive(Debug, Serialize)]
pub(super) struct Cluster {
    pub(super) name: String,
    /// `active` or `degraded`; `installing` or `joining` while this node is not one
    /// of the cluster yet.
    pub(super) state: &'static str,
    /// Why it is degraded, a reason a line.
    pub(super) reasons: Vec<String>,
    /// What will degrade it when nobody looks after it.
    pub(super) warnings: Vec<String>,
    pub(super) image: String,
    pub(super) version: String,
    pub(super) flavor: Option<String>,
    /// What the vendor's license allows, where the image demands one.
    pub(super) license: Option<spec::License>,
}

#[derive(Debug, Serialize)]
pub(super) struct Node {
    pub(super) hostname: String,
    pub(super) address: String,
    pub(super) role: spec::Role,
    pub(super) profile: String,
    pub(super) kubernetes: &'static str,
    pub(super) services: Vec<ServiceStatus>,
    /// Whether it is a master whose control plane waits for a third one.
    pub(super) standby: bool,
    /// Since when it is joining.
    pub(super) joining_since: Option<Timestamp>,
    /// Whether it is a master on its way out.
    pub(super) leaving: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Progress {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) state: String,
    /// How many phases it has, and how many are complete.
    pub(super) phases: usize,
    pub(super) completed: usize,
    /// What the phases do that have begun and not ended.
    pub(super) current: Vec<String>,
}

pub(super) async fn report(session: &Session) -> Result<Report> {
    let mut spec = session.cluster()?;
    let own = own::node(&session.layout)?;
    let here = &own.hostname;
    let mut reasons = Vec::from_iter(own::lost_address(&own, &own::addresses()));
    let mut warnings = certificates(session);
    warnings.extend(own::renamed(&own, &own::host_name()?));
    let mut services = services(session, &mut reasons).await;
    if !session.layout.admin_kubeconfig().exists() {
        // A worker may ask Kubernetes for nothing but itself.
        spec.nodes.retain(|node| node.id == own.id);
        reasons.extend(down(&services));
        let ready = own_node(session, here, &mut reasons).await;
        let nodes = spec.nodes.iter().map(|node| Node {
            services: services.clone(),
            ..shown(node, ready)
        });
        return Ok(Report {
            nodes: nodes.collect(),
            endpoints: Vec::new(),
            status_hook: None,
            operation: last_operation(session)?,
            cluster: described(spec, reasons, warnings),
            changes: Vec::new(),
        });
    }
    let own_etcd = etcd(session, &mut reasons, &mut warnings).await;
    let client = tokio::time::timeout(
        PATIENCE,
        cluster::Client::connect(&session.layout.admin_kubeconfig()),
    )
    .await
    .map_err(anyhow::Error::from)
    .and_then(|client| client.map_err(anyhow::Error::from));
    let known = match &client {
        Ok(client) => kubernetes(client, &mut reasons).await,
        Err(error) => {
            reasons.push(format!("the Kubernetes API does not answer: {error:#}"));
            None
        }
    };
    let ready = known.as_ref().map_or(&[][..], |known| &known.nodes);
    // Nodes join and leave; what was installed is only what they began with.
    if let Ok(client) = &client
        && let Ok(Ok(now)) = tokio::time::timeout(PATIENCE, controller::description(client)).await
    {
        spec = now;
        if spec.node(own.id).is_none() {
            reasons.push(format!(
                "the cluster goes on without {here}, which was removed from it: take it off by \
                 `gravity leave --force`; then it can join again"
            ));
        }
    }
    let now = Timestamp::now();
    let joining = |name: &str| {
        let mut nodes = spec.nodes.iter();
        let node = nodes.find(|node| node.hostname == name);
        node.is_some_and(|node| joining_since(node, now).is_some())
    };
    let pods = known.iter().flat_map(|known| &known.problems);
    let pods = pods
        .filter(|pod| pod.namespace == "kube-system" && !pod.node.as_deref().is_some_and(joining));
    reasons.extend(pods.map(|pod| format!("pod {}: {}", pod.name, pod.reason)));
    let mut etcds = other_etcds(session, &spec, own.id, own_etcd.as_ref()).await;
    for node in spec.nodes.iter().filter(|node| joining(&node.hostname)) {
        etcds
            .silent
            .retain(|address| !node.advertise_addresses.contains(address));
    }
    let has_quorum = own_etcd
        .is_none_or(|status| status.has_leader && !(status.is_learner && etcds.well.is_empty()));
    reasons.extend(split(&spec, &etcds, has_quorum));
    let standby = match spec.node(own.id) {
        Some(own) => stands_by(session, &spec, own, &mut services).await,
        None => false,
    };
    reasons.extend(down(&services));
    let others = others(session, &spec, ready, here).await;
    for (hostname, other) in others.iter().filter(|(name, _)| !joining(name)) {
        let down = down(&other.services);
        reasons.extend(down.map(|reason| format!("on {hostname} {reason}")));
    }
    let mut endpoints = Vec::new();
    let mut status_hook = None;
    let mut changes = Vec::new();
    // An API that doesn't answer is told above already.
    if let Ok(client) = &client
        && !ready.is_empty()
    {
        match tokio::time::timeout(PATIENCE, endpoints::endpoints(session, client)).await {
            Ok(found) => endpoints = found?,
            Err(_) => reasons.push("endpoints can't be looked up in time".into()),
        }
        status_hook = last_check(session, client, &mut reasons).await?;
        let mut services = services.iter();
        let runner = services.find(|service| service.name == STATUS_HOOK);
        let since = runner.map_or(0, |runner| runner.since);
        let last = status_hook.as_ref();
        warnings.extend(last.and_then(|last| overdue(last.time, since, now)));
        changes = recent(client, &mut warnings).await;
    }
    let nodes = spec.nodes.iter().map(|node| {
        let known = ready.iter().find(|known| known.name == node.hostname);
        let kubernetes = match known.map(|known| known.ready) {
            Some(true) => "ready",
            Some(false) => "not ready",
            None => "unknown",
        };
        let joining_since = joining_since(node, now);
        if kubernetes != "ready" && joining_since.is_none() {
            let reason = known.and_then(|known| known.reason.as_deref());
            reasons.push(not_ready(node, kubernetes, reason));
        }
        let short = known.into_iter().flat_map(|known| &known.pressure);
        reasons.extend(short.map(|short| format!("node {} has {short}", node.hostname)));
        let other = others.get(&node.hostname);
        Node {
            services: match node.id == own.id {
                true => services.clone(),
                false => other.map_or(Vec::new(), |other| other.services.clone()),
            },
            standby: match node.id == own.id {
                true => standby,
                false => other.is_some_and(|other| other.standby),
            },
            joining_since,
            ..shown(node, kubernetes)
        }
    });
    let nodes = nodes.collect();
    Ok(Report {
        nodes,
        endpoints,
        status_hook,
        operation: last_operation(session)?,
        cluster: described(spec, reasons, warnings),
        changes,
    })
}

/// What is told while an operation runs that brings this node into a cluster.
pub(super) async fn begun(session: &Session) -> Result<Option<Report>> {
    let layout = &session.layout;
    if layout.cluster().exists() || layout.leaving().exists() {
        return Ok(None);
    }
    let Ok(last) = Operation::last(layout) else {
        return Ok(None);
    };
    let (Some((state, spec)), Ok(_)) = (
        becomes(&last.plan),
        Follower::open(&layout.operation_socket()).await,
    ) else {
        return Ok(None);
    };
    Ok(Some(Report {
        cluster: Cluster {
            state,
            ..described(spec, Vec::new(), Vec::new())
        },
        nodes: Vec::new(),
        endpoints: Vec::new(),
        status_hook: None,
        operation: Some(progress(last)?),
        changes: Vec::new(),
    }))
}

/// What a node does while a plan brings it into a cluster, and into which one.
fn becomes(plan: &Plan) -> Option<(&'static str, ClusterSpec)> {
    let payloads = plan.leaves().into_iter().rev();
    let mut payloads =
        payloads.filter_map(|phase| serde_json::from_value(phase.payload.clone()).ok());
    payloads.find_map(|payload| match payload {
        PhaseSpec::Complete(phase) => Some(("installing", phase.cluster)),
        PhaseSpec::CompleteJoin(phase) => Some(("joining", phase.cluster)),
        _ => None,
    })
}

/// Since when a node is joining, unless it should long have done so.
fn joining_since(node: &NodeSpec, now: Timestamp) -> Option<Timestamp> {
    let since = Timestamp::from_second(node.taken_in?).ok()?;
    (now.duration_since(since) < JOIN).then_some(since)
}

/// Why a node that isn't ready degrades the cluster.
fn not_ready(node: &NodeSpec, kubernetes: &str, reason: Option<&str>) -> String {
    let name = &node.hostname;
    let reason = reason.unwrap_or("no reason is known");
    if node.leaving {
        return format!(
            "node {name} is being removed; where that was cut off, `gravity remove {name}` goes on"
        );
    }
    match node.taken_in.map(Timestamp::from_second) {
        Some(Ok(since)) => format!(
            "node {name} began to join on {} and has not come: `gravity resume` on it goes on, \
             `gravity remove {name}` on a master forgets it",
            console::render::timestamp(since)
        ),
        _ => format!("node {name} is {kubernetes} in Kubernetes: {reason}"),
    }
}

/// What has happened last.
async fn recent(client: &cluster::Client, warnings: &mut Vec<String>) -> Vec<Change> {
    let history = tokio::time::timeout(PATIENCE, installer::history::read(client)).await;
    match history {
        Ok(Ok(mut changes)) => changes.split_off(changes.len().saturating_sub(RECENT)),
        Ok(Err(error)) => {
            warnings.push(format!("what has happened can't be read: {error}"));
            Vec::new()
        }
        Err(_) => {
            warnings.push("what has happened can't be read in time".into());
            Vec::new()
        }
    }
}

/// Certificates that should have been renewed long ago.
fn certificates(session: &Session) -> Vec<String> {
    match cert::list(&session.layout.secrets(), Timestamp::now()) {
        Ok(rows) => rows.iter().filter_map(cert::Row::warning).collect(),
        Err(error) => vec![format!("{error:#}")],
    }
}

pub(super) fn shown(node: &NodeSpec, kubernetes: &'static str) -> Node {
    let address = node.address();
    Node {
        hostname: node.hostname.clone(),
        address: address
            .map(|address| address.to_string())
            .unwrap_or_default(),
        role: node.role,
        profile: node.profile.clone(),
        kubernetes,
        services: Vec::new(),
        standby: false,
        joining_since: None,
        leaving: node.leaving,
    }
}

/// Whether a master's control plane waits for a third master: its services are
/// left out then. Nobody is asked where all is well.
async fn stands_by(
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

/// What another node has announced.
struct Other {
    services: Vec<ServiceStatus>,
    standby: bool,
}

/// What the other nodes have announced of their services, those that are ready:
/// who isn't can't announce anything.
async fn others(
    session: &Session,
    cluster: &ClusterSpec,
    known: &[NodeStatus],
    here: &str,
) -> BTreeMap<String, Other> {
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
            others.insert(known.name.clone(), Other { services, standby });
        }
    }
    others
}

/// Which services are not ready, and why.
fn down(services: &[ServiceStatus]) -> impl Iterator<Item = String> {
    let down = services
        .iter()
        .filter(|service| service.state != planet::client::State::Ready);
    down.map(|service| {
        let error = service.last_error.as_deref();
        let error = error.unwrap_or("no reason is known");
        format!("service {} is {}: {error}", service.name, service.state)
    })
}

fn described(spec: ClusterSpec, mut reasons: Vec<String>, warnings: Vec<String>) -> Cluster {
    let over = |license: &&spec::License| license.is_over(std::time::SystemTime::now());
    if let Some(license) = spec.license.as_ref().filter(over) {
        reasons.push(format!("the license of {} is over", license.holder));
    }
    Cluster {
        name: spec.name,
        state: if reasons.is_empty() {
            "active"
        } else {
            "degraded"
        },
        reasons,
        warnings,
        image: spec.image.name,
        version: spec.image.version,
        flavor: spec.flavor,
        license: spec.license,
    }
}

fn last_operation(session: &Session) -> Result<Option<Progress>> {
    let last = Operation::last(&session.layout).ok();
    last.map(progress).transpose()
}

fn progress(operation: Operation) -> Result<Progress> {
    let state = operation.state()?;
    let leaves = operation.plan.leaves();
    let state_of = |phase: &&&Phase| state.phase(&phase.id).state;
    Ok(Progress {
        state: state.overall().to_string(),
        phases: leaves.len(),
        completed: leaves
            .iter()
            .filter(|phase| state_of(phase) == State::Completed)
            .count(),
        current: leaves
            .iter()
            .filter(|phase| state_of(phase) == State::InProgress)
            .map(|phase| phase.description.clone())
            .collect(),
        id: operation.plan.operation_id,
        kind: operation.plan.kind,
    })
}

/// Whether a worker is ready, by its kubelet's own rights.
async fn own_node(session: &Session, name: &str, reasons: &mut Vec<String>) -> &'static str {
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

async fn services(session: &Session, reasons: &mut Vec<String>) -> Vec<ServiceStatus> {
    let socket = session.layout.planet_socket();
    let client = planet::client::Client::new(&socket);
    match tokio::time::timeout(PATIENCE, client.status()).await {
        Ok(Ok(status)) => status.services,
        Ok(Err(error)) => {
            reasons.push(format!("the planet does not run: {error}"));
            Vec::new()
        }
        Err(_) => {
            reasons.push("the planet's supervisor does not answer".into());
            Vec::new()
        }
    }
}

async fn kubernetes(
    client: &cluster::Client,
    reasons: &mut Vec<String>,
) -> Option<cluster::Status> {
    match tokio::time::timeout(PATIENCE, client.status()).await {
        Ok(Ok(status)) => Some(status),
        Ok(Err(error)) => {
            reasons.push(format!("the Kubernetes API does not answer: {error}"));
            None
        }
        Err(_) => {
            reasons.push("the Kubernetes API does not answer in time".into());
            None
        }
    }
}

/// How the status hook ended last; a failure degrades the cluster.
async fn last_check(
    session: &Session,
    client: &cluster::Client,
    reasons: &mut Vec<String>,
) -> Result<Option<LastCheck>> {
    if !session.manifest()?.hooks.contains_key(&HookName::Status) {
        return Ok(None);
    }
    let last = match tokio::time::timeout(PATIENCE, client.last_check()).await {
        Ok(Ok(last)) => last,
        Ok(Err(error)) => {
            reasons.push(error.to_string());
            None
        }
        Err(_) => {
            reasons.push("the status hook's result can't be read in time".into());
            None
        }
    };
    if let Some(failed) = last.as_ref().filter(|last| !last.passed) {
        reasons.push(failed.message.clone());
    }
    Ok(last)
}

/// What to say where the status hook should have ended again. `since` is when the service
/// that runs it was started: a cluster that was stopped knows its last check from before.
fn overdue(last: Timestamp, since: u64, now: Timestamp) -> Option<String> {
    let started = i64::try_from(since).unwrap_or_default();
    let started = Timestamp::from_second(started).unwrap_or_default();
    (now.duration_since(last.max(started)) > CHECK).then(|| {
        format!(
            "the status hook has not ended since {}; the log of service {STATUS_HOOK} says why",
            console::render::timestamp(last)
        )
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A cluster with one node.
    pub(in super::super) fn cluster() -> ClusterSpec {
        serde_json::from_value(serde_json::json!({
            "version": 1, "id": "00000000-0000-0000-0000-000000000000", "name": "c",
            "image": {"name": "i", "version": "1.0.0", "digest": "", "resources": ""},
            "flavor": null, "service_user": {"name": "planet", "uid": 1, "gid": 1},
            "pod_cidrs": [], "service_cidrs": [], "vxlan_port": 1, "domain": "x",
            "nodes": [{
                "id": "00000000-0000-0000-0000-000000000000", "hostname": "one",
                "advertise_addresses": ["10.0.0.1"], "profile": "", "role": "master",
                "pod_cidrs": [], "labels": {}, "state_dir": "/x",
            }],
        }))
        .unwrap()
    }

    #[test]
    fn a_node_that_joins_is_missed_after_an_hour() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let mut node = cluster().nodes.remove(0);
        assert_eq!(joining_since(&node, now), None);
        let lost = not_ready(&node, "unknown", None);
        assert!(lost.contains("one is unknown in Kubernetes"), "{lost}");
        node.leaving = true;
        let leaves = not_ready(&node, "unknown", None);
        assert!(leaves.contains("`gravity remove one` goes on"), "{leaves}");
        node.leaving = false;
        node.taken_in = Some(now.as_second());
        assert_eq!(joining_since(&node, now), Some(now));
        let later = now + JOIN - SignedDuration::from_secs(1);
        assert_eq!(joining_since(&node, later), Some(now));
        assert_eq!(joining_since(&node, now + JOIN), None);
        let lost = not_ready(&node, "unknown", None);
        assert!(lost.contains("`gravity remove one`"), "{lost}");
    }

    #[test]
    fn a_status_hook_that_does_not_end_is_told_unless_it_was_just_started() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let ago = |seconds| now - SignedDuration::from_secs(seconds);
        let told = overdue(ago(301), 0, now).unwrap();
        assert!(told.contains("has not ended since"), "{told}");
        assert!(overdue(ago(900), 1_699_999_600, now).is_some());
        assert_eq!(overdue(ago(300), 0, now), None);
        assert_eq!(overdue(ago(900), 1_699_999_900, now), None);
        // The clock of another master is ahead.
        assert_eq!(overdue(ago(-900), 0, now), None);
    }

    #[test]
    fn a_plan_says_which_cluster_the_node_will_be_of() {
        let plan = |payload: &PhaseSpec| Plan {
            version: operation::PLAN_VERSION,
            operation_id: "1".into(),
            kind: "x".into(),
            created_by_version: String::new(),
            phases: vec![operation::Phase {
                id: "/complete".into(),
                payload: serde_json::to_value(payload).unwrap(),
                ..operation::Phase::default()
            }],
        };
        let install = PhaseSpec::Complete(spec::phase::Complete {
            operation: "1".into(),
            cluster: cluster(),
            manifest: String::new(),
        });
        let join = PhaseSpec::CompleteJoin(spec::phase::CompleteJoin {
            cluster: cluster(),
            manifest: String::new(),
        });
        let clean = PhaseSpec::EtcdClean(spec::phase::EtcdClean {
            operation: "1".into(),
        });
        assert_eq!(becomes(&plan(&install)), Some(("installing", cluster())));
        assert_eq!(becomes(&plan(&join)), Some(("joining", cluster())));
        assert_eq!(becomes(&plan(&clean)), None);
    }
}
