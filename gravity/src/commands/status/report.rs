//! What the status tells.
//!
//! In: the node's files, and what probes find. Out: a [`Report`]. Always holds: a cluster
//! is degraded just where there is a reason, which is told.

use anyhow::Result;
use cluster::NodeStatus;
use cluster::hooks::LastCheck;
use installer::attach::Follower;
use installer::controller;
use installer::coordinator::Operation;
use installer::history::Change;
use jiff::{SignedDuration, Timestamp};
use operation::{Phase, Plan, State};
use planet::client::ServiceStatus;
use serde::Serialize;
use spec::phase::PhaseSpec;
use spec::{ClusterSpec, NodeSpec};
use tokio::time::timeout;

use super::endpoints::Endpoint;
use super::etcd::{etcd, of_masters};
use super::probes::{
    PATIENCE, Runs, Stored, connect, connections, down, kubernetes, others, own_node, services,
    stands_by, stored,
};
use crate::commands::{Session, cert, own};

/// How long a node may take from its taking in until it works.
const JOIN: SignedDuration = SignedDuration::from_hours(1);

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

/// What a node knows without Kubernetes.
struct Here {
    /// The cluster as it was when this became a node of it.
    cluster: ClusterSpec,
    node: NodeSpec,
    services: Vec<ServiceStatus>,
    reasons: Vec<String>,
    warnings: Vec<String>,
}

pub(super) async fn report(session: &Session) -> Result<Report> {
    let cluster = session.cluster()?;
    let node = own::node(&session.layout)?;
    let mut reasons = Vec::from_iter(own::lost_address(&node, &own::addresses()));
    let mut warnings = certificates(session);
    warnings.extend(own::renamed(&node, &own::host_name()?));
    warnings.extend(connections());
    let socket = session.layout.planet_socket();
    let services = services(&socket, &mut reasons, &mut warnings).await;
    let here = Here {
        cluster,
        node,
        services,
        reasons,
        warnings,
    };
    match session.layout.admin_kubeconfig().exists() {
        true => master(session, here).await,
        false => worker(session, here).await,
    }
}

/// What a worker tells, which may ask Kubernetes for nothing but itself.
async fn worker(session: &Session, here: Here) -> Result<Report> {
    let Here {
        mut cluster,
        node: own,
        services,
        mut reasons,
        warnings,
    } = here;
    cluster.nodes.retain(|node| node.id == own.id);
    reasons.extend(down(&services));
    let ready = own_node(session, &own.hostname, &mut reasons).await;
    let nodes = cluster.nodes.iter().map(|node| Node {
        services: services.clone(),
        ..shown(node, ready)
    });
    Ok(Report {
        nodes: nodes.collect(),
        endpoints: Vec::new(),
        status_hook: None,
        operation: last_operation(session)?,
        cluster: described(cluster, reasons, warnings),
        changes: Vec::new(),
    })
}

/// What a master tells, which asks Kubernetes and the etcd of all masters.
async fn master(session: &Session, here: Here) -> Result<Report> {
    let Here {
        mut cluster,
        node: own,
        mut services,
        mut reasons,
        mut warnings,
    } = here;
    let own_etcd = etcd(session, &mut reasons, &mut warnings).await;
    let client = connect(session, &mut reasons).await;
    let known = match &client {
        Some(client) => kubernetes(client, &mut reasons).await,
        None => None,
    };
    let ready = known.as_ref().map_or(&[][..], |known| &known.nodes);
    // Nodes join and leave; what was installed is only what they began with.
    if let Some(client) = &client
        && let Ok(Ok(now)) = timeout(PATIENCE, controller::description(client)).await
    {
        cluster = now;
        if cluster.node(own.id).is_none() {
            reasons.push(format!(
                "the cluster goes on without {}, which was removed from it: take it off by \
                 `gravity leave --force`; then it can join again",
                own.hostname
            ));
        }
    }
    let now = Timestamp::now();
    let joining = |name: &str| {
        let mut nodes = cluster.nodes.iter();
        let node = nodes.find(|node| node.hostname == name);
        node.is_some_and(|node| joining_since(node, now).is_some())
    };
    let pods = known.iter().flat_map(|known| &known.problems);
    let pods = pods
        .filter(|pod| pod.namespace == "kube-system" && !pod.node.as_deref().is_some_and(joining));
    reasons.extend(pods.map(|pod| format!("pod {}: {}", pod.name, pod.reason)));
    reasons.extend(of_masters(session, &cluster, own.id, own_etcd.as_ref(), joining).await);
    let standby = match cluster.node(own.id) {
        Some(own) => stands_by(session, &cluster, own, &mut services).await,
        None => false,
    };
    reasons.extend(down(&services));
    let others = others(session, &cluster, ready, &own.hostname).await;
    for (hostname, other) in others.iter().filter(|(name, _)| !joining(name)) {
        let down = down(&other.services);
        reasons.extend(down.map(|reason| format!("on {hostname} {reason}")));
    }
    let stored = match &client {
        Some(client) if !ready.is_empty() => {
            stored(session, client, &services, now, &mut reasons, &mut warnings).await?
        }
        // An API that doesn't answer is told above already.
        _ => Stored::default(),
    };
    let here = Runs { services, standby };
    let nodes = cluster.nodes.iter().map(|node| {
        let known = ready.iter().find(|known| known.name == node.hostname);
        let runs = match node.id == own.id {
            true => Some(&here),
            false => others.get(&node.hostname),
        };
        row(node, known, runs, now, &mut reasons)
    });
    let nodes = nodes.collect();
    Ok(Report {
        nodes,
        endpoints: stored.endpoints,
        status_hook: stored.status_hook,
        operation: last_operation(session)?,
        cluster: described(cluster, reasons, warnings),
        changes: stored.changes,
    })
}

/// What is told of a node; why it degrades the cluster goes to `reasons`.
fn row(
    node: &NodeSpec,
    known: Option<&NodeStatus>,
    runs: Option<&Runs>,
    now: Timestamp,
    reasons: &mut Vec<String>,
) -> Node {
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
    Node {
        services: runs.map_or(Vec::new(), |runs| runs.services.clone()),
        standby: runs.is_some_and(|runs| runs.standby),
        joining_since,
        ..shown(node, kubernetes)
    }
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

#[cfg(test)]
pub(super) mod tests {
    use spec::{Role, sample};

    use super::*;

    /// A cluster with one node.
    pub(in super::super) fn cluster() -> ClusterSpec {
        let address = [10, 0, 0, 1].into();
        let node = NodeSpec {
            profile: String::new(),
            ..sample::node("one", address, Role::Master, "10.244.0.0/24")
        };
        ClusterSpec {
            nodes: vec![node],
            ..sample::cluster()
        }
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
        let clean = PhaseSpec::EtcdClean(spec::phase::EtcdSnapshot {
            operation: "1".into(),
        });
        assert_eq!(becomes(&plan(&install)), Some(("installing", cluster())));
        assert_eq!(becomes(&plan(&join)), Some(("joining", cluster())));
        assert_eq!(becomes(&plan(&clean)), None);
    }
}
