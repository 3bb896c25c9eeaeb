//! How the description of a cluster changes: who is taken in, and who may go.
//!
//! In: a description of the cluster and what a node asks. Out: the changed one, or a
//! refusal, after which the caller drops what may be changed by half. Pure but for the id
//! that a node gets: the time and what only Kubernetes and etcd know are passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::Ipv4Net;
use pki::Leaf;
use rpc::controller::{Refusal, member_name};
use spec::phase::Certificate;
use spec::{Candidate, ClusterSpec, KUBERNETES_AUTHORITY, NodeSpec, RPC_AUTHORITY, Role};
use uuid::Uuid;

use crate::install::NODE_PREFIX;
use crate::secrets;

/// Largest description in bytes: a ConfigMap of Kubernetes has at most 1 MiB.
const MAX_DESCRIPTION: usize = 1_000_000;
/// How long after it was last heard of a node that joins is waited for, before
/// another machine may take its name and address.
const LOST: Duration = Duration::from_secs(30 * 60);
/// Most masters: three vote in etcd, and it lets two more stand by.
const MAX_MASTERS: usize = 5;
/// Most labels and taints of a node, and the longest text in them: a key of
/// Kubernetes has at most 317 bytes.
const MAX_LABELS: usize = 128;
const MAX_TEXT: usize = 320;

/// Whether there can't be both.
pub(super) fn is_in_the_way(node: &NodeSpec, candidate: &Candidate) -> bool {
    node.hostname == candidate.hostname || shares_address(node, candidate)
}

fn shares_address(node: &NodeSpec, candidate: &Candidate) -> bool {
    let wanted = &candidate.advertise_addresses;
    node.advertise_addresses
        .iter()
        .any(|address| wanted.contains(address))
}

/// What the node will be: as its profile says, else one of the first masters.
pub(super) fn role(cluster: &ClusterSpec, candidate: &Candidate) -> Role {
    let others = cluster
        .nodes
        .iter()
        .filter(|node| node.role == Role::Master && node.hostname != candidate.hostname);
    candidate
        .role
        .unwrap_or(match others.count() < spec::MASTERS {
            true => Role::Master,
            false => Role::Worker,
        })
}

/// Whether that is so long ago.
fn is_over(heard: i64, now: SystemTime, limit: Duration) -> bool {
    let since = seconds(now).unwrap_or_default().saturating_sub(heard);
    since.unsigned_abs() > limit.as_secs()
}

/// A node that goes on with its join, if it still is one. From here on it is not
/// lost for some time, whoever would like to have its name.
pub(super) fn hear(
    cluster: &mut ClusterSpec,
    id: Uuid,
    now: SystemTime,
) -> Result<NodeSpec, Refusal> {
    let mut nodes = cluster.nodes.iter_mut();
    let node = nodes.find(|node| node.id == id).ok_or_else(gone)?;
    if node
        .taken_in
        .is_some_and(|heard| is_over(heard, now, LOST / 2))
    {
        node.taken_in = seconds(now);
    }
    Ok(node.clone())
}

/// Adds a node to the description. `registered` are the names, of those that it could
/// be in conflict with, which Kubernetes has; `voting` are those of masters whose etcd
/// runs.
pub(super) fn take_in(
    cluster: &mut ClusterSpec,
    candidate: &Candidate,
    registered: &BTreeSet<String>,
    voting: &BTreeSet<String>,
    now: SystemTime,
) -> Result<Uuid, Refusal> {
    let hostname = &candidate.hostname;
    if candidate.image != cluster.image.digest {
        return Err(Refusal::Refused(format!(
            "the cluster was installed from another image: {} {} ({})",
            cluster.image.name, cluster.image.version, cluster.image.digest
        )));
    }
    check_candidate(cluster, candidate)?;
    if !manifest::is_dns_name(hostname) {
        return Err(Refusal::Refused(format!(
            "\"{hostname}\" can't be a node's name: use lower-case letters, digits, - and ."
        )));
    }
    make_way(cluster, candidate, registered, now)?;
    allowed(cluster, now)?;
    expands(cluster, candidate)?;
    let role = role(cluster, candidate);
    if role == Role::Master {
        may_be_master(cluster, voting)?;
    }
    let id = Uuid::new_v4();
    let pod_cidr = free_pod_cidr(cluster)?;
    cluster.nodes.push(NodeSpec {
        id,
        hostname: hostname.clone(),
        advertise_addresses: candidate.advertise_addresses.clone(),
        profile: candidate.profile.clone(),
        role,
        pod_cidrs: vec![pod_cidr],
        labels: candidate.labels.clone(),
        taints: candidate.taints.clone(),
        dns_listen: Vec::new(),
        state_dir: candidate.state_dir.clone(),
        leaving: false,
        machine: candidate.machine.clone(),
        taken_in: seconds(now),
    });
    Ok(id)
}

/// Sees to it that no node has the candidate's name or address. One that never reached
/// Kubernetes is a lost try, and removed: for the same machine at once, for another when
/// nothing was heard of it for long.
fn make_way(
    cluster: &mut ClusterSpec,
    candidate: &Candidate,
    registered: &BTreeSet<String>,
    now: SystemTime,
) -> Result<(), Refusal> {
    let hostname = &candidate.hostname;
    let first = cluster.nodes.first().map(|node| node.id);
    let joins = |node: &NodeSpec| {
        Some(node.id) != first && !node.leaving && !registered.contains(&node.hostname)
    };
    // It may have been registered since somebody looked, but was heard of then.
    let is_lost = |node: &NodeSpec| {
        let is_same = node.hostname == *hostname
            && node.advertise_addresses == candidate.advertise_addresses
            && node.machine == candidate.machine;
        is_in_the_way(node, candidate)
            && joins(node)
            && (is_same || is_over(node.taken_in.unwrap_or_default(), now, LOST))
    };
    for node in &cluster.nodes {
        if is_lost(node) {
            continue;
        }
        if is_in_the_way(node, candidate) && joins(node) {
            let (name, address) = (&node.hostname, &node.advertise_addresses);
            return Err(Refusal::Refused(format!(
                "node {name} ({}) is joining just now and has the same name or address; give this one its own, or take that out with `gravity remove {name}` on a master",
                address
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            )));
        }
        if node.hostname == *hostname {
            return Err(Refusal::Refused(format!(
                "the cluster has a node {hostname}; rename this one, or remove that with `gravity remove {hostname}` on a master"
            )));
        }
        if shares_address(node, candidate) {
            return Err(Refusal::Refused(format!(
                "node {} of the cluster has the same address",
                node.hostname
            )));
        }
    }
    cluster.nodes.retain(|node| !is_lost(node));
    Ok(())
}

/// Whether the cluster may have one more master; `voting` are those whose etcd runs.
fn may_be_master(cluster: &ClusterSpec, voting: &BTreeSet<String>) -> Result<(), Refusal> {
    let masters: Vec<_> = cluster
        .nodes
        .iter()
        .filter(|node| node.role == Role::Master)
        .map(|node| &node.hostname)
        .collect();
    if masters.len() >= MAX_MASTERS {
        return Err(Refusal::Refused(format!(
            "the cluster has {MAX_MASTERS} masters, which is the most; join with a profile of workers"
        )));
    }
    // A member of etcd is told of all others when it first starts.
    if let Some(joining) = masters.iter().find(|name| !voting.contains(**name)) {
        return Err(is_joining(joining));
    }
    match cluster.nodes.iter().find(|node| node.leaving) {
        Some(leaving) => Err(is_leaving(&leaving.hostname)),
        None => Ok(()),
    }
}

/// Whether the profile of the candidate may have one more node.
fn expands(cluster: &ClusterSpec, candidate: &Candidate) -> Result<(), Refusal> {
    let profile = &candidate.profile;
    let nodes = cluster.nodes.iter();
    let there = nodes.filter(|node| node.profile == *profile).count() as u64;
    match candidate.most {
        Some(most) if there >= u64::from(most) => Err(Refusal::Refused(format!(
            "nodes of profile {profile} can't be added after the install: its expandPolicy is fixed, the flavor has {most} of them, and the cluster {there}"
        ))),
        _ => Ok(()),
    }
}

/// The node works: from now on it is missed when it is away.
pub(super) fn has_joined(cluster: &mut ClusterSpec, id: Uuid) {
    let mut nodes = cluster.nodes.iter_mut();
    if let Some(node) = nodes.find(|node| node.id == id) {
        node.taken_in = None;
    }
}

fn seconds(time: SystemTime) -> Option<i64> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

/// Whether the license allows one more node.
fn allowed(cluster: &ClusterSpec, now: SystemTime) -> Result<(), Refusal> {
    let Some(license) = &cluster.license else {
        return Ok(());
    };
    if license.is_over(now) {
        return Err(Refusal::Refused(format!(
            "the license of {} is over: the cluster takes no more nodes",
            license.holder
        )));
    }
    match license.max_nodes {
        Some(most) if cluster.nodes.len() as u64 >= u64::from(most) => {
            Err(Refusal::Refused(format!(
                "the license of {} allows {most} node(s), and the cluster has {}",
                license.holder,
                cluster.nodes.len()
            )))
        }
        _ => Ok(()),
    }
}

/// What the candidate says of itself becomes part of certificates and of a
/// description of limited size.
fn check_candidate(cluster: &ClusterSpec, candidate: &Candidate) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(Refusal::Refused(reason));
    let [address] = candidate.advertise_addresses[..] else {
        return refuse("a node has exactly one address".into());
    };
    let networks = cluster.pod_cidrs.iter().chain(&cluster.service_cidrs);
    let inside = networks
        .filter_map(|cidr| cidr.parse::<ipnet::IpNet>().ok())
        .any(|network| network.contains(&address));
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if inside
        || local
        || address.is_loopback()
        || address.is_multicast()
        || address.is_unspecified()
    {
        return refuse(format!("{address} can't be a node's address"));
    }
    let name = candidate.hostname.as_str();
    let reserved = ["localhost", "kubernetes", spec::LEADER_NAME];
    if reserved.contains(&name) || name.starts_with("kubernetes.") {
        return refuse(format!("\"{name}\" is a name of the cluster's own"));
    }
    let entries = candidate.labels.len() + candidate.taints.len();
    let texts = candidate
        .labels
        .iter()
        .flat_map(|(key, value)| [key, value]);
    let taints = candidate.taints.iter();
    let taints = taints.flat_map(|taint| [&taint.key, &taint.value, &taint.effect]);
    let longest = texts
        .chain(taints)
        .chain([&candidate.profile])
        .map(String::len)
        .max();
    if entries > MAX_LABELS || longest.is_some_and(|longest| longest > MAX_TEXT) {
        return refuse("the profile has too many or too long labels and taints".into());
    }
    Ok(())
}

fn free_pod_cidr(cluster: &ClusterSpec) -> Result<String, Refusal> {
    let text = cluster.pod_cidrs.first().map_or("", String::as_str);
    let full = || {
        Refusal::Refused(format!(
            "the pod network {text} has no part left for another node"
        ))
    };
    let network: Ipv4Net = text.parse().map_err(|_| full())?;
    let taken: BTreeSet<_> = cluster
        .nodes
        .iter()
        .flat_map(|node| &node.pod_cidrs)
        .collect();
    let parts = network.subnets(NODE_PREFIX).map_err(|_| full())?;
    parts
        .map(|part| part.to_string())
        .find(|part| !taken.contains(part))
        .ok_or_else(full)
}

pub(super) fn is_other_master(other: &NodeSpec, master: &NodeSpec) -> bool {
    other.id != master.id && other.role == Role::Master && !other.leaving
}

/// Whether a master may leave; `started` are the masters whose etcd runs or has
/// run.
pub(super) fn let_go(
    cluster: &ClusterSpec,
    master: &NodeSpec,
    started: &BTreeSet<String>,
) -> Result<(), Refusal> {
    let mut others = cluster
        .nodes
        .iter()
        .filter(|other| is_other_master(other, master))
        .peekable();
    if others.peek().is_none() {
        return Err(Refusal::Refused(format!(
            "{} is the cluster's only master; `gravity leave --force` there ends the cluster",
            master.hostname
        )));
    }
    // One that was cut off goes on.
    let mut leaving = cluster.nodes.iter().filter(|other| other.leaving);
    if let (false, Some(leaving)) = (master.leaving, leaving.find(|other| other.id != master.id)) {
        return Err(is_leaving(&leaving.hostname));
    }
    // It was told of all members when it was taken in, and has no vote to inherit.
    match others.find(|other| !started.contains(&other.hostname)) {
        Some(joining) => Err(is_joining(&joining.hostname)),
        None => Ok(()),
    }
}

pub(super) fn gone() -> Refusal {
    Refusal::Refused("this node is no member of the cluster any more".into())
}

fn is_joining(hostname: &str) -> Refusal {
    Refusal::NotNow(format!(
        "master {hostname} is joining just now: try again when it has, or take it out with `gravity remove {hostname}`"
    ))
}

fn is_leaving(hostname: &str) -> Refusal {
    Refusal::NotNow(format!(
        "master {hostname} is leaving just now; `gravity remove {hostname}` goes on with one that was cut off"
    ))
}

/// Every certificate that a node has, by the name it asks for it: its authority
/// and what it says.
pub(super) fn leaves(cluster: &ClusterSpec, node: &NodeSpec) -> BTreeMap<String, (String, Leaf)> {
    let requested = secrets::requested(cluster, node);
    let life = cluster.leaf_lifetime();
    let certificates = requested.certificates.iter().map(|certificate| {
        let Certificate {
            name, authority, ..
        } = certificate.clone();
        (name, (authority, Leaf::planned(certificate, life)))
    });
    let kubeconfigs = requested.kubeconfigs.iter().map(|kubeconfig| {
        let name = kubeconfig.certificate();
        let (user, groups) = (&kubeconfig.common_name, &kubeconfig.organizations);
        let leaf = Leaf::client(user, groups, life);
        (name, (KUBERNETES_AUTHORITY.into(), leaf))
    });
    let identity = (
        spec::NODE_IDENTITY.to_owned(),
        (RPC_AUTHORITY.to_owned(), identity(node.id, life)),
    );
    certificates.chain(kubeconfigs).chain([identity]).collect()
}

/// What a node is known to controllers by.
pub(super) fn identity(node: Uuid, life: Duration) -> Leaf {
    Leaf::client(&member_name(node), &[], life)
}

/// Whether Kubernetes takes a description of so many nodes.
pub(super) fn has_room(description: &str, nodes: usize) -> Result<(), Refusal> {
    match description.len() <= MAX_DESCRIPTION {
        true => Ok(()),
        false => Err(Refusal::Refused(format!(
            "the cluster's description has no room for {nodes} nodes: it would have {} bytes, and {MAX_DESCRIPTION} are the most",
            description.len()
        ))),
    }
}

pub(super) fn parse(description: &str) -> Result<ClusterSpec, Refusal> {
    serde_json::from_str(description).map_err(unreadable)
}

pub(super) fn unreadable(error: serde_json::Error) -> Refusal {
    Refusal::Refused(format!("read the cluster's description: {error}"))
}

#[cfg(test)]
mod tests;
