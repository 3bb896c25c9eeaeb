//! `gravity status`: the cluster, its nodes and services, from real probes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use agent::etcd::{Etcd, Status};
use agent::snapshots::{self, Snapshot};
use anyhow::{Context, Result, bail};
use cluster::NodeStatus;
use cluster::hooks::LastCheck;
use console::ExitCode;
use event::Sink;
use installer::attach::Follower;
use installer::controller;
use installer::coordinator::Operation;
use installer::history::Change;
use installer::services::OF_MASTERS;
use jiff::{SignedDuration, Timestamp};
use manifest::{HookName, Manifest};
use operation::{Phase, Plan, State};
use planet::client::ServiceStatus;
use serde::Serialize;
use spec::phase::PhaseSpec;
use spec::{ClusterSpec, NodeSpec};

use super::{Session, cert, own, plan, token};
use crate::cli::{self, StatusCommand};

/// How long a part may take to answer before it counts as down.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same for etcd, whose client takes a second more.
const ETCD: Duration = Duration::from_secs(3);

/// How long a node may take from its taking in until it works.
const JOIN: SignedDuration = SignedDuration::from_hours(1);

/// How many of the last changes are shown.
const RECENT: usize = 3;

/// What `gravity status --output json` prints.
#[derive(Debug, Serialize)]
struct Report {
    cluster: Cluster,
    nodes: Vec<Node>,
    endpoints: Vec<Endpoint>,
    /// How the status hook ended last, where there is one and it has run.
    status_hook: Option<LastCheck>,
    /// The last operation of this node.
    operation: Option<Progress>,
    /// What has happened last to the cluster, on a master.
    changes: Vec<Change>,
}

#[derive(Debug, Serialize)]
struct Cluster {
    name: String,
    /// `active` or `degraded`; `installing` or `joining` while this node is not one
    /// of the cluster yet.
    state: &'static str,
    /// Why it is degraded, a reason a line.
    reasons: Vec<String>,
    /// What will degrade it when nobody looks after it.
    warnings: Vec<String>,
    image: String,
    version: String,
    flavor: Option<String>,
    /// What the vendor's license allows, where the image demands one.
    license: Option<spec::License>,
}

#[derive(Debug, Serialize)]
struct Node {
    hostname: String,
    address: String,
    role: spec::Role,
    profile: String,
    kubernetes: &'static str,
    services: Vec<ServiceStatus>,
    /// Whether it is a master whose control plane waits for a third one.
    standby: bool,
    /// Since when it is joining.
    joining_since: Option<Timestamp>,
    /// Whether it is a master on its way out.
    leaving: bool,
}

/// One URL at which the application can be reached.
#[derive(Debug, Serialize)]
pub(crate) struct Endpoint {
    name: String,
    description: String,
    urls: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Progress {
    id: String,
    kind: String,
    state: String,
    /// How many phases it has, and how many are complete.
    phases: usize,
    completed: usize,
    /// What the phases do that have begun and not ended.
    current: Vec<String>,
}

pub(crate) async fn run(session: &Session, arguments: &cli::Status) -> Result<ExitCode> {
    if let Some(StatusCommand::History) = arguments.command {
        return history(session).await;
    }
    if arguments.token {
        return show_token(session).await;
    }
    if arguments.tail {
        plan::follow(session).await?;
    }
    let Some(seconds) = arguments.seconds else {
        return show(session).await;
    };
    loop {
        // One that can't be had now may be there the next time.
        if let Err(error) = show(session).await {
            session.console.warning(&format!("{error:#}"));
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

async fn history(session: &Session) -> Result<ExitCode> {
    let client = session.administrator().await?;
    let changes = installer::history::read(&client).await?;
    if session.console.is_json() {
        session.console.print_json(&changes)?;
        return Ok(ExitCode::Ok);
    }
    for change in &changes {
        session.console.print(&history_line(change));
    }
    if changes.is_empty() {
        session.console.print("Nothing has happened yet");
    }
    Ok(ExitCode::Ok)
}

fn history_line(change: &Change) -> String {
    let time = console::render::timestamp(change.time);
    let reason = change.state.reason.as_deref();
    let reason = reason.map(|reason| format!(": {reason}"));
    format!(
        "{time}  {} is {}{}",
        change.subject,
        change.state.state,
        reason.unwrap_or_default()
    )
}

/// Shows the token alone, for scripts.
async fn show_token(session: &Session) -> Result<ExitCode> {
    let client = session.administrator().await?;
    let token = token::valid(&client, SignedDuration::ZERO)
        .await?
        .context("there is no valid token that may be shown; `gravity token create` makes one")?;
    match session.console.is_json() {
        true => session.console.print_json(&serde_json::json!({
            "name": token.name, "token": token.text, "expires": token.expires,
        }))?,
        false => session.console.print(&token.text),
    }
    Ok(ExitCode::Ok)
}

async fn show(session: &Session) -> Result<ExitCode> {
    let report = match begun(session).await? {
        Some(begun) => begun,
        None => report(session).await?,
    };
    match session.console.is_json() {
        true => session.console.print_json(&report)?,
        false => session.console.print(&text(&report)),
    }
    Ok(match report.cluster.state {
        "active" => ExitCode::Ok,
        "degraded" => ExitCode::Degraded,
        // Who waits for a cluster goes on waiting.
        _ => ExitCode::Busy,
    })
}

/// What is told while an operation runs that brings this node into a cluster.
async fn begun(session: &Session) -> Result<Option<Report>> {
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

/// What is known of the node's cluster.
pub(crate) fn cluster(session: &Session) -> Result<ClusterSpec> {
    let path = session.layout.cluster();
    if session.layout.leaving().exists() {
        bail!("the cluster is being removed from this node; go on with `gravity leave`");
    }
    let Ok(json) = std::fs::read(&path) else {
        match Operation::last(&session.layout) {
            Ok(last) => bail!(
                "the {} has not ended; see `gravity plan`, go on with `gravity resume`",
                last.plan.kind
            ),
            Err(_) => bail!("there is no cluster on this node; `gravity install` makes one"),
        }
    };
    serde_json::from_slice(&json).with_context(|| format!("read {}", path.display()))
}

async fn report(session: &Session) -> Result<Report> {
    let mut spec = cluster(session)?;
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
        match tokio::time::timeout(PATIENCE, self::endpoints(session, client)).await {
            Ok(found) => endpoints = found?,
            Err(_) => reasons.push("endpoints can't be looked up in time".into()),
        }
        status_hook = last_check(session, client, &mut reasons).await?;
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

/// Since when a node is joining, unless it should long have done so.
fn joining_since(node: &NodeSpec, now: Timestamp) -> Option<Timestamp> {
    let since = Timestamp::from_second(node.taken_in?).ok()?;
    (now.duration_since(since) < JOIN).then_some(since)
}

/// Why a node that isn't ready degrades the cluster.
fn not_ready(node: &NodeSpec, kubernetes: &str, reason: Option<&str>) -> String {
    let name = &node.hostname;
    let reason = reason.unwrap_or("no reason is known");
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

/// How etcd is, unless it doesn't say, and how old its last snapshot.
async fn etcd(
    session: &Session,
    reasons: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Option<Status> {
    let layout = session.layout.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let status = Etcd::on_host(&layout).and_then(|etcd| etcd.within(ETCD).status());
        (status, snapshots::list(&layout.etcd_snapshots()))
    });
    let Ok(Ok((status, snapshots))) = tokio::time::timeout(PATIENCE, asked).await else {
        warnings.push("etcd does not say in time how it is".into());
        return None;
    };
    match &status {
        Ok(status) if status.is_full => reasons.push(format!(
            "etcd has used up its quota of {} and takes no writes",
            console::render::bytes(status.quota)
        )),
        Ok(status) if status.size > status.quota / 10 * 8 => warnings.push(format!(
            "etcd has used {} of its quota of {}",
            console::render::bytes(status.size),
            console::render::bytes(status.quota)
        )),
        Ok(_) => {}
        Err(error) => warnings.push(error.message.clone()),
    }
    match snapshots {
        Ok(all) => warnings.extend(old_snapshot(all.last(), Timestamp::now())),
        Err(error) => warnings.push(error.message),
    }
    status.ok()
}

/// How etcd of the other masters is, those that stand by too.
#[derive(Debug, Default)]
struct OtherEtcds {
    /// It doesn't answer.
    silent: BTreeSet<IpAddr>,
    /// It answers, and is of this cluster.
    well: BTreeSet<IpAddr>,
    /// It is of another cluster: one of the two was recovered without the other.
    foreign: BTreeSet<IpAddr>,
}

async fn other_etcds(
    session: &Session,
    cluster: &ClusterSpec,
    here: uuid::Uuid,
    own: Option<&Status>,
) -> OtherEtcds {
    let mut found = OtherEtcds::default();
    // One that was removed still knows the masters of its time.
    let own_addresses = cluster
        .node(here)
        .map(|node| node.advertise_addresses.clone());
    let known = super::etcd::other_masters(
        &session.layout,
        cluster,
        own_addresses.as_deref().unwrap_or_default(),
    );
    let mut asked = tokio::task::JoinSet::new();
    for address in known {
        let layout = session.layout.clone();
        asked.spawn_blocking(move || {
            let etcd = Etcd::on_host(&layout).map(|etcd| etcd.at(address).within(ETCD));
            (address, etcd.and_then(|etcd| etcd.status()))
        });
    }
    for (address, status) in asked.join_all().await {
        match (status, own) {
            (Err(_), _) => drop(found.silent.insert(address)),
            (Ok(other), Some(own)) if other.cluster != own.cluster => {
                found.foreign.insert(address);
            }
            _ => drop(found.well.insert(address)),
        }
    }
    found
}

/// What the other masters' etcd comes to, a reason a line.
fn split(cluster: &ClusterSpec, others: &OtherEtcds, has_quorum: bool) -> Vec<String> {
    let named = |masters| super::etcd::named(cluster, masters);
    let mut reasons = Vec::new();
    if !others.foreign.is_empty() {
        reasons.push(format!(
            "etcd on {} is of another cluster: it was recovered without this node. Take this node \
             off by `gravity leave --force`; then it can join again",
            named(&others.foreign)
        ));
    }
    match (has_quorum, others.silent.is_empty()) {
        (true, true) => {}
        (true, false) => reasons.push(format!(
            "etcd of other masters does not answer: {}",
            named(&others.silent)
        )),
        (false, true) => reasons.push(
            "etcd has no quorum and takes no writes; the log of service etcd says why".into(),
        ),
        (false, false) => reasons.push(format!(
            "etcd has no quorum and takes no writes: it does not answer on {}. Start what is down; \
             where too many masters are lost for good, `gravity etcd recover` on one that is left \
             goes on without them",
            named(&others.silent)
        )),
    }
    reasons
}

/// Two in a row have failed.
fn old_snapshot(last: Option<&Snapshot>, now: Timestamp) -> Option<String> {
    // A new node has none yet.
    let last = last?;
    let age = now.duration_since(last.time);
    let limit = 2 * snapshots::EVERY;
    (!age.is_negative() && age.unsigned_abs() > limit).then(|| {
        format!(
            "the last snapshot of etcd is of {}; the log of service care says why",
            console::render::timestamp(last.time)
        )
    })
}

fn shown(node: &NodeSpec, kubernetes: &'static str) -> Node {
    let address = node.advertise_addresses.first();
    Node {
        hostname: node.hostname.clone(),
        address: address.map(ToString::to_string).unwrap_or_default(),
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
    let socket = session.layout.planet_run().join("planet.sock");
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
    if !manifest(session)?.hooks.contains_key(&HookName::Status) {
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

/// The manifest of the installed image.
pub(crate) fn manifest(session: &Session) -> Result<Manifest> {
    let path = session.layout.manifest();
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    manifest::parse(&text, &path.display().to_string()).map_err(|errors| {
        anyhow::anyhow!(
            "{}",
            errors.first().map(ToString::to_string).unwrap_or_default()
        )
    })
}

/// The endpoints that the manifest shows to the user.
pub(crate) async fn endpoints(
    session: &Session,
    client: &cluster::Client,
) -> Result<Vec<Endpoint>> {
    let manifest = manifest(session)?;
    let shown = manifest.endpoints.iter().filter(|one| !one.hidden);
    look_up(client, shown).await
}

/// The endpoint at which the user goes on after the install.
pub(crate) async fn setup_endpoint(
    session: &Session,
    client: &cluster::Client,
) -> Result<Option<Endpoint>> {
    let manifest = manifest(session)?;
    let found = look_up(client, manifest.setup_endpoint().into_iter()).await?;
    Ok(found.into_iter().next())
}

async fn look_up(
    client: &cluster::Client,
    endpoints: impl Iterator<Item = &manifest::Endpoint>,
) -> Result<Vec<Endpoint>> {
    let mut found = Vec::new();
    for endpoint in endpoints {
        let wanted = cluster::Endpoint {
            namespace: endpoint.namespace.clone(),
            service: endpoint.service_name.clone(),
            selector: endpoint.selector.clone(),
            protocol: endpoint.protocol.clone(),
            port: endpoint.port,
        };
        let urls = client
            .endpoints(&wanted)
            .await
            .with_context(|| format!("look up endpoint {}", endpoint.name))?;
        found.push(Endpoint {
            name: endpoint.name.clone(),
            description: endpoint.description.clone().unwrap_or_default(),
            urls,
        });
    }
    Ok(found)
}

fn text(report: &Report) -> String {
    let cluster = &report.cluster;
    let mut lines = vec![
        format!("Cluster name:    {}", cluster.name),
        format!("Cluster status:  {}", cluster.state),
    ];
    lines.extend(
        cluster
            .reasons
            .iter()
            .map(|reason| reason.replace('\n', "\n                 "))
            .map(|reason| format!("                 {reason}")),
    );
    let warnings = cluster.warnings.iter();
    lines.extend(warnings.map(|warning| format!("Warning:         {warning}")));
    if let Some(check) = &report.status_hook {
        let result = if check.passed { "passed" } else { "failed" };
        let time = console::render::timestamp(check.time);
        lines.push(format!("Status hook:     {result}, {time}"));
    }
    lines.push(format!(
        "Cluster image:   {} {}",
        cluster.image, cluster.version
    ));
    if let Some(flavor) = &cluster.flavor {
        lines.push(format!("Flavor:          {flavor}"));
    }
    if let Some(license) = &cluster.license {
        let nodes = match license.max_nodes {
            Some(1) => "one node, ".to_owned(),
            Some(most) => format!("at most {most} nodes, "),
            None => String::new(),
        };
        let ends = jiff::Timestamp::from_second(license.ends).unwrap_or_default();
        let ends = ends.strftime("%Y-%m-%d");
        lines.push(format!(
            "License:         {}, {nodes}until {ends}",
            license.holder
        ));
    }
    lines.extend(report.operation.as_ref().map(operation_text));
    if !report.nodes.is_empty() {
        lines.push("Cluster nodes:".into());
    }
    lines.extend(report.nodes.iter().flat_map(node_text));
    if !report.changes.is_empty() {
        lines.push("Last changes:".into());
    }
    let changes = report.changes.iter();
    lines.extend(changes.map(|change| format!("  * {}", history_line(change))));
    lines.extend(endpoints_text(&report.endpoints));
    lines.join("\n")
}

fn operation_text(operation: &Progress) -> String {
    let Progress {
        id,
        kind,
        state,
        phases,
        completed,
        current,
    } = operation;
    let mut line = format!("Last operation:  {kind} ({id}), {state}");
    if completed < phases {
        line = format!("{line}: {completed} of {phases} phases are complete");
    }
    for current in current {
        line = format!("{line}\n                 now: {current}");
    }
    line
}

fn node_text(node: &Node) -> Vec<String> {
    let role = match node.role {
        spec::Role::Master => "master",
        spec::Role::Worker => "worker",
    };
    // An image without profiles has none to tell.
    let profile = match node.profile.as_str() {
        "" => String::new(),
        profile => format!("{profile} / "),
    };
    let mut lines = vec![
        format!("  * {} / {} / {profile}{role}", node.hostname, node.address),
        format!("      Kubernetes:  {}", node.kubernetes),
    ];
    if let Some(since) = node.joining_since {
        let since = console::render::timestamp(since);
        lines.push(format!("      Joining:     since {since}"));
    }
    if node.leaving {
        lines.push("      Leaving:     `gravity remove` goes on where it was cut off".into());
    }
    if node.standby {
        lines.push("      Master:      stands by until there is a third one".into());
    }
    lines.extend(node.services.iter().map(|service| {
        format!(
            "      {:<24} {:<9} {} restarts",
            service.name, service.state, service.restarts
        )
    }));
    lines
}

/// Where the user goes on, as lines.
pub(crate) fn setup_text(endpoint: &Endpoint) -> Vec<String> {
    match endpoint.urls.is_empty() {
        true => vec![format!(
            "Finish the setup at the endpoint {}, whose service can't be reached from outside yet",
            endpoint.name
        )],
        false => (endpoint.urls.iter())
            .map(|url| format!("Finish the setup at {url}"))
            .collect(),
    }
}

/// Endpoints as lines.
pub(crate) fn endpoints_text(endpoints: &[Endpoint]) -> Vec<String> {
    let mut lines = Vec::new();
    if !endpoints.is_empty() {
        lines.push("Cluster endpoints:".into());
    }
    for endpoint in endpoints {
        let description = match endpoint.description.is_empty() {
            true => String::new(),
            false => format!(" ({})", endpoint.description),
        };
        lines.push(format!("  * {}{description}", endpoint.name));
        if endpoint.urls.is_empty() {
            lines.push("      - not reachable from outside: its service has no node port".into());
        }
        lines.extend(endpoint.urls.iter().map(|url| format!("      - {url}")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use agent::snapshots::Kind;

    use super::*;

    /// A cluster with one node.
    fn cluster() -> ClusterSpec {
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
        let clean = PhaseSpec::EtcdClean(spec::phase::EtcdClean {
            operation: "1".into(),
        });
        assert_eq!(becomes(&plan(&install)), Some(("installing", cluster())));
        assert_eq!(becomes(&plan(&join)), Some(("joining", cluster())));
        assert_eq!(becomes(&plan(&clean)), None);
    }

    #[test]
    fn the_text_tells_how_far_an_operation_is_and_what_a_node_is() {
        let mut operation = Progress {
            id: "1".into(),
            kind: "install".into(),
            state: "in_progress".into(),
            phases: 3,
            completed: 1,
            current: vec!["Wait for other nodes".into()],
        };
        assert_eq!(
            operation_text(&operation),
            "Last operation:  install (1), in_progress: 1 of 3 phases are complete\n                 \
             now: Wait for other nodes"
        );
        operation.current.clear();
        operation.completed = 3;
        operation.state = "completed".into();
        assert_eq!(
            operation_text(&operation),
            "Last operation:  install (1), completed"
        );
        let mut node = shown(&cluster().nodes[0], "unknown");
        assert_eq!(node_text(&node)[0], "  * one / 10.0.0.1 / master");
        node.profile = "db".into();
        node.joining_since = Some(Timestamp::UNIX_EPOCH);
        let text = node_text(&node);
        assert_eq!(text[0], "  * one / 10.0.0.1 / db / master");
        assert!(text[2].starts_with("      Joining:     since "), "{text:?}");
    }

    #[test]
    fn a_master_that_is_silent_is_named_with_what_it_means() {
        let cluster = cluster();
        let none = BTreeSet::new();
        let two = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        let two = BTreeSet::from(two);
        let told = |silent: &BTreeSet<_>, foreign: &BTreeSet<_>, quorum| {
            let others = OtherEtcds {
                silent: silent.clone(),
                foreign: foreign.clone(),
                ..OtherEtcds::default()
            };
            split(&cluster, &others, quorum).join("\n")
        };
        assert_eq!(told(&none, &none, true), "");
        assert!(told(&two, &none, true).ends_with("answer: one (10.0.0.1), 10.0.0.2"));
        assert!(told(&two, &none, false).contains("no quorum"));
        assert!(told(&two, &none, false).contains("on one (10.0.0.1), 10.0.0.2."));
        assert!(told(&none, &none, false).contains("the log"));
        assert!(told(&none, &two, true).contains("is of another cluster"));
    }

    #[test]
    fn a_snapshot_is_missed_after_two_times() {
        let time = Timestamp::from_second(1_700_000_000).unwrap();
        let snapshot = Snapshot {
            name: "x".into(),
            time,
            kind: Kind::Scheduled,
            size: 1,
            path: "/x".into(),
        };
        let after = |hours| {
            let now = time + jiff::SignedDuration::from_hours(hours);
            old_snapshot(Some(&snapshot), now).is_some()
        };
        assert!(!after(-1) && !after(7) && !after(12) && after(13));
        assert_eq!(old_snapshot(None, time), None);
    }

    #[test]
    fn the_user_is_told_where_setup_goes_on() {
        let mut endpoint = Endpoint {
            name: "Setup".into(),
            description: String::new(),
            urls: Vec::new(),
        };
        let text = setup_text(&endpoint);
        assert!(
            text.len() == 1 && text[0].contains("endpoint Setup"),
            "{text:?}"
        );
        endpoint.urls = vec!["http://10.0.0.1:30090".into()];
        assert_eq!(
            setup_text(&endpoint),
            ["Finish the setup at http://10.0.0.1:30090"]
        );
    }
}
