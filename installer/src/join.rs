//! The join of a node into a cluster.
//!
//! In: the cluster's description, what the node is. Out: first a [`Candidate`],
//! which the cluster's controller takes in or refuses; then, of the
//! [`Membership`] that it answers, a [`Plan`]. Pure: nothing is touched.

use std::collections::BTreeMap;
use std::path::PathBuf;

use host::facts::HostFacts;
use manifest::{ExpandPolicy, Manifest, NodeProfile, ServiceRole};
use operation::{Phase, Plan};
use spec::phase::{self, PhaseSpec};
use spec::{Candidate, ClusterSpec, Membership, NodeSpec, Role};
use uuid::Uuid;

use crate::install::{self, ImageContent, KnownUsers, Planner, choose_address, group};
use crate::secrets;
use crate::services::{self, Context};

/// What the user chose.
#[derive(Debug, Clone)]
pub struct Options {
    /// `--advertise-addr`
    pub advertise_address: Option<std::net::IpAddr>,
    /// `--role`
    pub role: Option<String>,
    /// `--state-dir`
    pub state_dir: PathBuf,
    /// `--mount`: paths of volumes by their names.
    pub mounts: BTreeMap<String, PathBuf>,
}

/// Why a node can't join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What fails for an install, too.
    #[error(transparent)]
    Install(#[from] install::Error),
    /// It has another image than the cluster.
    #[error(
        "this is the image {mine}, the cluster was installed from {theirs}; join with a copy of that file"
    )]
    Image {
        /// The node's.
        mine: String,
        /// The cluster's.
        theirs: String,
    },
    /// Which profile it should have can't be told.
    #[error("choose the node's profile with --role; the image has {}", .0.join(", "))]
    SeveralProfiles(Vec<String>),
    /// The service user's name or id is somebody else's here.
    #[error("{0}")]
    ServiceUser(String),
    /// The answer doesn't hold the node.
    #[error("the cluster's answer does not hold this node")]
    NotTaken,
}

/// The profile that the node gets: `--role`, or the only one there is, or the
/// only one that is not of masters.
///
/// # Errors
/// When there is no such profile or it can't be told.
pub fn choose_profile<'a>(
    manifest: &'a Manifest,
    role: Option<&str>,
) -> Result<Option<&'a NodeProfile>, Error> {
    let is_master = |profile: &NodeProfile| profile.role() == Some(ServiceRole::Master);
    let all = &manifest.node_profiles;
    if role.is_some() || all.len() == 1 {
        return Ok(install::choose_profile(manifest, None, role)?);
    }
    let mut free = all.iter().filter(|profile| !is_master(profile));
    match (free.next(), free.next()) {
        (None, _) if all.is_empty() => Ok(None),
        (Some(only), None) => Ok(Some(only)),
        _ => Err(Error::SeveralProfiles(
            all.iter().map(|profile| profile.name.clone()).collect(),
        )),
    }
}

/// What the node tells the controller of itself.
///
/// # Errors
/// When node, image and cluster don't fit each other.
pub fn candidate(
    options: &Options,
    manifest: &Manifest,
    image: &ImageContent,
    cluster: &ClusterSpec,
    facts: &HostFacts,
    users: &KnownUsers,
) -> Result<Candidate, Error> {
    if image.reference.digest != cluster.image.digest {
        let name = |image: &spec::ImageRef| {
            let digest = image.digest.get(..19).unwrap_or(&image.digest);
            format!("{} {} ({digest})", image.name, image.version)
        };
        return Err(Error::Image {
            mine: name(&image.reference),
            theirs: name(&cluster.image),
        });
    }
    check_user(cluster, users)?;
    let profile = choose_profile(manifest, options.role.as_deref())?;
    Ok(Candidate {
        hostname: facts.hostname.to_lowercase(),
        advertise_addresses: vec![choose_address(options.advertise_address, facts)?],
        profile: profile
            .map(|profile| profile.name.clone())
            .unwrap_or_default(),
        role: profile.and_then(NodeProfile::role).map(|role| match role {
            ServiceRole::Master => Role::Master,
            ServiceRole::Node => Role::Worker,
        }),
        labels: profile
            .map(|profile| profile.labels.clone())
            .unwrap_or_default(),
        taints: install::taints(profile),
        state_dir: options.state_dir.clone(),
        image: image.reference.digest.clone(),
        machine: facts.machine_id.clone(),
        most: profile.and_then(|profile| most(profile, manifest, cluster.flavor.as_deref())),
    })
}

/// How many nodes there may be of a profile whose number is fixed: those of the
/// flavor.
fn most(profile: &NodeProfile, manifest: &Manifest, flavor: Option<&str>) -> Option<u32> {
    if profile.expand_policy != Some(ExpandPolicy::Fixed) {
        return None;
    }
    let mut flavors = manifest.flavors().iter();
    let flavor = flavors.find(|item| Some(item.name.as_str()) == flavor);
    let nodes = flavor.into_iter().flat_map(|item| &item.nodes);
    let of_profile = nodes.filter(|node| node.profile == profile.name);
    Some(of_profile.fold(0, |sum, node| sum.saturating_add(node.count)))
}

/// The service user has the same id on all nodes.
fn check_user(cluster: &ClusterSpec, users: &KnownUsers) -> Result<(), Error> {
    let user = &cluster.service_user;
    if let Some(here) = &users.with_id
        && here.gid != user.gid
    {
        return Err(Error::ServiceUser(format!(
            "user {} (uid {}) has group {} on this node and {} in the cluster",
            here.name, here.uid, here.gid, user.gid
        )));
    }
    match &users.named {
        Some(here) if users.with_id.is_none() => Err(Error::ServiceUser(format!(
            "user {} has uid {} on this node, where the cluster's service user has {}",
            here.name, here.uid, user.uid
        ))),
        _ => Ok(()),
    }
}

/// Plans the join of a node that was taken in; `mounts` are those of its options.
///
/// # Errors
/// When the membership is of another node, or a mount of no volume.
pub fn plan(
    membership: &Membership,
    manifest: &Manifest,
    image: &ImageContent,
    users: &KnownUsers,
    facts: &HostFacts,
    mounts: &BTreeMap<String, PathBuf>,
) -> Result<Plan, Error> {
    let mut cluster = membership.cluster.clone();
    // It is stored when this node has joined, and who else joins now has by then, too.
    for node in &mut cluster.nodes {
        node.taken_in = None;
    }
    // The user may have another name here.
    if let Some(user) = &users.with_id {
        cluster.service_user.name.clone_from(&user.name);
    }
    let node = cluster.node(membership.node).ok_or(Error::NotTaken)?;
    let profile = install::choose_profile(manifest, None, Some(&node.profile))?;
    let profile = install::with_mounts(profile, mounts, &node.state_dir)?;
    let profile = profile.as_ref();
    let volumes = install::volumes(profile, mounts);
    let options = manifest.service_options(profile);
    let operation = Uuid::new_v4().to_string();
    let context = Context {
        cluster: &cluster,
        node,
        facts,
        options: &options,
        // Of the status hook masters decide by a Lease who runs it.
        hooks: &manifest.hooks,
    };
    let planner = Planner {
        context: &context,
        manifest,
        image,
        volumes: &volumes,
        devices: install::devices(profile),
        operation: &operation,
    };
    let phases = phases(&planner, membership, node)?;
    Ok(Plan::new("join", &*operation, phases))
}

fn phases(
    planner: &Planner<'_>,
    membership: &Membership,
    node: &NodeSpec,
) -> Result<Vec<Phase>, Error> {
    let cluster = planner.context.cluster;
    let controllers = cluster.controllers();
    let requested = secrets::requested(cluster, node);
    let secrets = phase::JoinSecrets {
        user: cluster.service_user.clone(),
        controllers: controllers.clone(),
        authorities: membership.authorities.clone(),
        certificates: requested.certificates,
        kubeconfigs: requested.kubeconfigs,
        cluster_keys: match node.role {
            Role::Master => secrets::cluster_keys(),
            Role::Worker => Vec::new(),
        },
    };
    let joining = phase::Joining {
        controllers,
        operation: planner.operation.to_owned(),
    };
    // Before the planet is started: the etcd of a master begins as a member that the
    // others know, and where there is a hook before nodes are added, no kubelet may
    // add one meanwhile.
    let mut prepare = planner.prepare(PhaseSpec::JoinSecrets(secrets))?;
    prepare.push(Phase {
        // Taken back, it needs the node's keys.
        requires: vec!["/prepare/secrets".into()],
        ..planner.leaf(
            "/prepare/node",
            "Register the node",
            PhaseSpec::Register(joining.clone()),
        )?
    });
    let mut start = vec![planner.planet("kubelet")?];
    start.extend(planner.contents()?);
    let health = phase::Health {
        node: node.hostname.clone(),
        kubeconfig: "kubelet".into(),
        services: waited_for(planner.context),
    };
    let complete = phase::CompleteJoin {
        cluster: cluster.clone(),
        manifest: planner.image.manifest_text.clone(),
    };
    Ok(vec![
        planner.bootstrap()?,
        group("/prepare", "Put programs, files and keys in place", prepare),
        group("/start", "Start the node, fill its registry", start),
        planner.leaf(
            "/health",
            "Wait until the node is ready",
            PhaseSpec::Health(health),
        )?,
        planner.keep()?,
        planner.leaf(
            "/added",
            "Tell the cluster that the node works",
            PhaseSpec::Added(joining),
        )?,
        planner.leaf(
            "/complete",
            "Store the cluster's state",
            PhaseSpec::CompleteJoin(complete),
        )?,
    ])
}

/// Services that are waited for: all there are, but those of every node where the
/// control plane of a master stands by: until there are three, and beyond them.
fn waited_for(context: &Context<'_>) -> Vec<String> {
    let masters = context.cluster.masters().count();
    match context.node.role == Role::Master && masters != spec::MASTERS {
        true => services::names_everywhere(context),
        false => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
