//! The install of a cluster on one node.
//!
//! In: the user's options, the manifest, what the image holds, facts of the
//! host. Out: a [`ClusterSpec`] and a [`Plan`]. Pure: nothing is touched.

mod choice;
mod error;
mod options;
mod planner;

use std::collections::BTreeMap;
use std::path::PathBuf;

use host::facts::HostFacts;
use host::users::User;
use manifest::Manifest;
use operation::Plan;
use spec::phase;
use spec::{ClusterSpec, ImageRef, NodeSpec, RegistryImage, Role};
use uuid::Uuid;

use self::choice::{DOMAIN, cluster_name, dns_listen, networks, service_user, zones};
pub(crate) use self::choice::{NODE_PREFIX, devices, node_labels, taints, volumes};
pub use self::choice::{
    choose_address, choose_first_profile, choose_profile, pod_network, with_mounts,
};
pub use self::error::Error;
pub use self::options::{
    DEFAULT_POD_CIDR, DEFAULT_SERVICE_CIDR, DEFAULT_SERVICE_ID, DEFAULT_VXLAN_PORT, Options,
    SERVICE_USER,
};
pub(crate) use self::planner::{Planner, group, leaf};
use crate::services::Context;

/// Name of the Secret with a token of the user's own in the operation's directory.
pub const TOKEN_FILE: &str = "token.yaml";
/// Phase that keeps that token in the cluster.
pub const TOKEN_PHASE: &str = "/token";
/// Phase that waits for the nodes of a flavor.
pub const NODES_PHASE: &str = "/nodes";
/// Name of the resources of `--config` in the operation's directory.
pub const CONFIG_FILE: &str = "config.yaml";
/// Name of the Secret with the license in the operation's directory.
pub const LICENSE_FILE: &str = "license.json";
/// Name of the Secret with values for hooks in the operation's directory.
pub const VALUES_FILE: &str = "values.json";
/// Name of the license's Secret in `kube-system`, and of what it holds.
const LICENSE: &str = "license";

/// What the cluster image holds.
#[derive(Debug, Clone)]
pub struct ImageContent {
    /// Where the file is on the node.
    pub path: PathBuf,
    /// Name, version and digest.
    pub reference: ImageRef,
    /// The resolved manifest as text.
    pub manifest_text: String,
    /// Root filesystem of the planet of each profile, and of `""` for a node
    /// without one.
    pub planets: BTreeMap<String, Rootfs>,
    /// Images for the registry.
    pub images: Vec<RegistryImage>,
}

/// Root filesystem of a planet.
#[derive(Debug, Clone)]
pub struct Rootfs {
    /// Digest that stands for all of it.
    pub digest: String,
    /// Its layers, lowest first.
    pub layers: Vec<phase::Layer>,
}

/// Users of the host that matter for the service user.
#[derive(Debug, Clone, Default)]
pub struct KnownUsers {
    /// Who has the wanted id.
    pub with_id: Option<User>,
    /// Who has the name [`SERVICE_USER`].
    pub named: Option<User>,
}

/// An install that can be carried out.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What the cluster will be.
    pub cluster: ClusterSpec,
    /// How it comes about.
    pub plan: Plan,
}

/// The Secret by which an application reads its license.
pub fn license_secret(text: &str) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": LICENSE, "namespace": "kube-system" },
        "type": "Opaque",
        "data": { LICENSE: pki::base64(text.as_bytes()) },
    })
}

/// Plans an install. `flavor` is the chosen one.
///
/// # Errors
/// When options, manifest and host don't fit each other.
pub fn prepare(
    options: &Options,
    manifest: &Manifest,
    image: &ImageContent,
    facts: &HostFacts,
    users: &KnownUsers,
) -> Result<Prepared, Error> {
    let address = choose_address(options.advertise_address, facts)?;
    let pods = networks(options, address)?;
    let profile =
        choose_first_profile(manifest, options.flavor.as_deref(), options.role.as_deref())?;
    let profile = with_mounts(profile, &options.mounts, &options.state_dir)?;
    let profile = profile.as_ref();
    let user = service_user(options, users)?;
    let node = NodeSpec {
        id: Uuid::new_v4(),
        hostname: facts.hostname.to_lowercase(),
        advertise_addresses: vec![address],
        profile: profile
            .map(|profile| profile.name.clone())
            .unwrap_or_default(),
        role: Role::Master,
        pod_cidrs: pods
            .subnets(NODE_PREFIX)
            .into_iter()
            .flatten()
            .take(1)
            .map(|network| network.to_string())
            .collect(),
        labels: profile
            .map(|profile| profile.labels.clone())
            .unwrap_or_default(),
        taints: taints(profile),
        dns_listen: dns_listen(options, address, facts)?,
        state_dir: options.state_dir.clone(),
        leaving: false,
        machine: facts.machine_id.clone(),
        taken_in: None,
    };
    let cluster = ClusterSpec {
        version: spec::VERSION,
        id: Uuid::new_v4(),
        name: cluster_name(options, manifest)?,
        image: image.reference.clone(),
        flavor: options.flavor.clone(),
        service_user: user.clone(),
        pod_cidrs: vec![options.pod_cidr.clone()],
        service_cidrs: vec![options.service_cidr.clone()],
        pod_network: pod_network(manifest, options.vxlan_port)?,
        vxlan_port: options.vxlan_port.unwrap_or(DEFAULT_VXLAN_PORT),
        domain: DOMAIN.into(),
        dns_zones: zones(&options.dns_zones)?,
        license: options.license.clone(),
        leaf_seconds: options.leaf_seconds,
        settings: options.services.clone(),
        nodes: vec![node.clone()],
    };
    let volumes = volumes(profile, &options.mounts);
    let services = manifest.service_options(profile);
    let operation = Uuid::new_v4().to_string();
    let context = Context {
        cluster: &cluster,
        node: &node,
        facts,
        options: &services,
        hooks: &manifest.hooks,
    };
    let planner = Planner {
        context: &context,
        manifest,
        image,
        volumes: &volumes,
        devices: devices(profile),
        operation: &operation,
    };
    let plan = Plan::new("install", &*operation, planner.phases(options)?);
    Ok(Prepared { cluster, plan })
}

#[cfg(test)]
pub(crate) mod tests;
