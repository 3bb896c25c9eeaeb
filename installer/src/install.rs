//! The install of a cluster on one node.
//!
//! In: the user's options, the manifest, what the image holds, facts of the
//! host. Out: a [`ClusterSpec`] and a [`Plan`]. Pure: nothing is touched.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use host::facts::HostFacts;
use host::users::User;
use ipnet::{IpNet, Ipv4Net};
use manifest::{HookName, Manifest, Mode, NetworkType, NodeProfile, ServiceRole};
use operation::{PLAN_VERSION, Phase, Plan};
use planet::config::{Device, PlanetConfig};
use spec::layout::Layout;
use spec::phase::{self, PhaseSpec, Volume};
use spec::{
    ClusterSpec, DnsZone, ImageRef, NodeSpec, PodNetwork, RegistryImage, Role, ServiceSettings,
    ServiceUser, Taint,
};
use uuid::Uuid;

use crate::services::{Context, HostTraits};
use crate::{addons, hooks, planet_config, secrets};

/// Addresses of pods.
pub const DEFAULT_POD_CIDR: &str = "10.244.0.0/16";
/// Addresses of services.
pub const DEFAULT_SERVICE_CIDR: &str = "10.100.0.0/16";
/// The kernel's own port for VXLAN.
pub const DEFAULT_VXLAN_PORT: u16 = 8472;
/// User and group id of the service user (page, "Service User").
pub const DEFAULT_SERVICE_ID: u32 = 1000;
/// Name of the service user where it is created.
pub const SERVICE_USER: &str = "planet";
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
/// DNS domain of services.
const DOMAIN: &str = "cluster.local";
/// Part of the pod network that a node gets, as flannel has it.
pub(crate) const NODE_PREFIX: u8 = 24;
/// Phases of one node that run side by side.
const PARALLEL: usize = 4;
/// Longest prefix of a service network: leaves 256 addresses.
const SERVICE_PREFIX: u8 = 24;

/// What the user chose.
#[derive(Debug, Clone)]
pub struct Options {
    /// `--advertise-addr`
    pub advertise_address: Option<IpAddr>,
    /// `--cluster`
    pub cluster: Option<String>,
    /// `--flavor`
    pub flavor: Option<String>,
    /// `--role`
    pub role: Option<String>,
    /// `--pod-network-cidr`
    pub pod_cidr: String,
    /// `--service-cidr`
    pub service_cidr: String,
    /// `--vxlan-port`
    pub vxlan_port: Option<u16>,
    /// `--service-uid`
    pub service_uid: u32,
    /// `--service-gid`
    pub service_gid: Option<u32>,
    /// `--mount`: paths of volumes by their names
    pub mounts: BTreeMap<String, PathBuf>,
    /// `--dns-zone`
    pub dns_zones: Vec<DnsZone>,
    /// `--dns-listen-addr`
    pub dns_listen: Vec<IpAddr>,
    /// `--dns-port`
    pub dns_port: u16,
    /// Whether there are resources of Kubernetes in `--config`, as [`CONFIG_FILE`] of the operation
    pub config: bool,
    /// Whether there is a token of the user's own, as [`TOKEN_FILE`] of the operation
    pub token: bool,
    /// Whether there are values for hooks, whose Secret is [`VALUES_FILE`] of the
    /// operation
    pub values: bool,
    /// What the license allows that the image demands, whose Secret is
    /// [`LICENSE_FILE`] of the operation
    pub license: Option<spec::License>,
    /// What resources of Gravity of `--config` say of the services
    pub services: ServiceSettings,
    /// `--leaf-seconds`
    pub leaf_seconds: u64,
    /// `--state-dir`
    pub state_dir: PathBuf,
}

impl Options {
    /// What is taken where the user says nothing.
    pub fn of_defaults(state_dir: &std::path::Path) -> Self {
        Self {
            advertise_address: None,
            cluster: None,
            flavor: None,
            role: None,
            pod_cidr: DEFAULT_POD_CIDR.into(),
            service_cidr: DEFAULT_SERVICE_CIDR.into(),
            vxlan_port: None,
            service_uid: DEFAULT_SERVICE_ID,
            service_gid: None,
            mounts: BTreeMap::new(),
            dns_zones: Vec::new(),
            dns_listen: Vec::new(),
            dns_port: spec::DNS_PORT,
            config: false,
            token: false,
            values: false,
            license: None,
            services: ServiceSettings::default(),
            leaf_seconds: spec::care::LEAF_SECONDS,
            state_dir: state_dir.to_owned(),
        }
    }
}

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

/// Why an install can't be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address isn't the node's.
    #[error("{address} is not an address of this node; it has {}", list(.available))]
    ForeignAddress {
        /// What was asked for.
        address: IpAddr,
        /// What the node has.
        available: Vec<IpAddr>,
    },
    /// Which address to take can't be told.
    #[error("this node has several addresses ({}); choose one with --advertise-addr", list(.0))]
    SeveralAddresses(Vec<IpAddr>),
    /// Nothing other nodes could reach.
    #[error("this node has no address but loopback; configure its network first")]
    NoAddress,
    /// Not a network, or too small.
    #[error("--{option} {value} is not an IPv4 network of at least a /{prefix}, such as {example}")]
    Network {
        /// The flag.
        option: &'static str,
        /// Its value.
        value: String,
        /// Longest prefix.
        prefix: u8,
        /// One that works.
        example: &'static str,
    },
    /// Two networks have addresses in common.
    #[error(
        "{one} and {other} overlap; choose other networks with --pod-network-cidr and --service-cidr"
    )]
    Overlap {
        /// One network.
        one: String,
        /// The other.
        other: String,
    },
    /// The manifest has no such flavor.
    #[error("there is no flavor \"{name}\"; the image has {}", .available.join(", "))]
    Flavor {
        /// What was asked for.
        name: String,
        /// What there is.
        available: Vec<String>,
    },
    /// A cluster begins with a master.
    #[error(
        "profile \"{0}\" is of workers, and a cluster's first node is its master: choose another with --role, and let nodes of this one join"
    )]
    Worker(String),
    /// The manifest has no such profile.
    #[error("there is no profile \"{name}\"; the image has {}", .available.join(", "))]
    Profile {
        /// What was asked for.
        name: String,
        /// What there is.
        available: Vec<String>,
    },
    /// The name can't be one of a cluster.
    #[error("\"{0}\" can't be a cluster's name: use lower-case letters, digits and -, at most 63")]
    ClusterName(String),
    /// `--mount` names no volume.
    #[error(
        "there is no volume \"{name}\" for --mount; {}",
        if .available.is_empty() { "the profile names none".to_owned() }
        else { format!("the profile has {}", .available.join(", ")) }
    )]
    Mount {
        /// What was asked for.
        name: String,
        /// What there is.
        available: Vec<String>,
    },
    /// `--mount` names no path.
    #[error("{} can't be mounted: --mount takes an absolute path without \"..\"", .0.display())]
    MountPath(PathBuf),
    /// The network of pods has no such port.
    #[error(
        "--vxlan-port {port}: the pods of this image have no VXLAN, {}; leave it out",
        match .network {
            PodNetwork::Wireguard => "they have WireGuard at UDP port 51820",
            _ => "their network is the vendor's own",
        }
    )]
    VxlanPort {
        /// What was asked for.
        port: u16,
        /// What the image has.
        network: PodNetwork,
    },
    /// DNS can't answer there.
    #[error("--dns-listen-addr {address} is no address of this node nor of loopback; it has {}", list(.available))]
    DnsAddress {
        /// What was asked for.
        address: IpAddr,
        /// What the node has.
        available: Vec<IpAddr>,
    },
    /// DNS answers there already.
    #[error(
        "--dns-listen-addr {0} --dns-port {1}: the cluster's own DNS answers there; choose another port"
    )]
    DnsTaken(IpAddr, u16),
    /// A zone is the cluster's.
    #[error("--dns-zone {0} is answered by the cluster itself; choose a zone outside of it")]
    DnsZone(String),
    /// The service user conflicts with a user of the host.
    #[error("{0}")]
    ServiceUser(String),
    /// The image has no planet for the node's profile.
    #[error("the image holds no planet for profile \"{0}\"; build it anew")]
    Planet(String),
    /// A payload can't be written.
    #[error("write the plan")]
    Payload(#[from] serde_json::Error),
}

impl Error {
    /// Whether the command line has to be changed, rather than the node.
    pub fn is_usage(&self) -> bool {
        !matches!(
            self,
            Self::NoAddress | Self::ServiceUser(_) | Self::Payload(_)
        )
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// An install that can be carried out.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What the cluster will be.
    pub cluster: ClusterSpec,
    /// How it comes about.
    pub plan: Plan,
}

/// The profile that a cluster's first node gets: `--role`, the flavor's first, or
/// the manifest's first that is not of workers. `None` where the manifest has no
/// profiles.
///
/// # Errors
/// When there is no such flavor or profile, or the profile is of workers.
pub fn choose_first_profile<'a>(
    manifest: &'a Manifest,
    flavor: Option<&str>,
    role: Option<&str>,
) -> Result<Option<&'a NodeProfile>, Error> {
    let of_workers = |profile: &&NodeProfile| profile.role() == Some(ServiceRole::Node);
    if flavor.is_none() && role.is_none() {
        let mut profiles = manifest.node_profiles.iter();
        let first = profiles.find(|profile| !of_workers(profile));
        return match (first, manifest.node_profiles.first()) {
            (None, Some(worker)) => Err(Error::Worker(worker.name.clone())),
            (first, _) => Ok(first),
        };
    }
    let chosen = choose_profile(manifest, flavor, role)?;
    match chosen.filter(of_workers) {
        Some(worker) => Err(Error::Worker(worker.name.clone())),
        None => Ok(chosen),
    }
}

/// How many nodes of each profile a flavor has; none where it has one in all.
fn wanted_nodes(manifest: &Manifest, flavor: Option<&str>) -> BTreeMap<String, u32> {
    let mut flavors = manifest.flavors().iter();
    let flavor = flavors.find(|item| Some(item.name.as_str()) == flavor);
    let mut wanted = BTreeMap::new();
    for node in flavor.into_iter().flat_map(|item| &item.nodes) {
        let count: &mut u32 = wanted.entry(node.profile.clone()).or_default();
        *count = count.saturating_add(node.count);
    }
    if wanted
        .values()
        .fold(0, |sum: u32, count| sum.saturating_add(*count))
        <= 1
    {
        wanted.clear();
    }
    wanted
}

/// The profile of a name, else the flavor's or the manifest's first.
///
/// # Errors
/// When there is no such flavor or profile.
pub fn choose_profile<'a>(
    manifest: &'a Manifest,
    flavor: Option<&str>,
    role: Option<&str>,
) -> Result<Option<&'a NodeProfile>, Error> {
    let mut wanted = role.map(ToOwned::to_owned);
    if let Some(name) = flavor {
        let items = manifest.flavors();
        let item = items
            .iter()
            .find(|item| item.name == name)
            .ok_or_else(|| Error::Flavor {
                name: name.to_owned(),
                available: items.iter().map(|item| item.name.clone()).collect(),
            })?;
        // A cluster begins with one that can be a master.
        let of_workers = |name: &str| {
            let mut profiles = manifest.node_profiles.iter();
            let profile = profiles.find(|profile| profile.name == name);
            profile.and_then(NodeProfile::role) == Some(ServiceRole::Node)
        };
        let mut nodes: Vec<_> = item.nodes.iter().filter(|node| node.count > 0).collect();
        nodes.sort_by_key(|node| of_workers(&node.profile));
        wanted = wanted.or_else(|| nodes.first().map(|node| node.profile.clone()));
    }
    let profiles = &manifest.node_profiles;
    let Some(name) = wanted else {
        return Ok(profiles.first());
    };
    let found = profiles.iter().find(|profile| profile.name == name);
    found.map(Some).ok_or_else(|| Error::Profile {
        name,
        available: profiles
            .iter()
            .map(|profile| profile.name.clone())
            .collect(),
    })
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

/// The address by which the node is known.
///
/// # Errors
/// When the wanted one isn't the node's, or none was wanted and there are none
/// or several.
pub fn choose_address(wanted: Option<IpAddr>, facts: &HostFacts) -> Result<IpAddr, Error> {
    let available: Vec<_> = facts
        .addresses
        .iter()
        .map(|address| address.address)
        .filter(
            |address| matches!(address, IpAddr::V4(v4) if !v4.is_loopback() && !v4.is_link_local()),
        )
        .collect();
    match (wanted, &available[..]) {
        (Some(address), _) if available.contains(&address) => Ok(address),
        (Some(address), _) => Err(Error::ForeignAddress { address, available }),
        (None, []) => Err(Error::NoAddress),
        (None, [one]) => Ok(*one),
        (None, _) => Err(Error::SeveralAddresses(available)),
    }
}

/// The network of pods. IPv4 until dual stack is tested.
fn networks(options: &Options, address: IpAddr) -> Result<Ipv4Net, Error> {
    let read = |option, value: &str, prefix, example| {
        let network: Option<Ipv4Net> = value.parse().ok();
        network
            .filter(|network| network.addr() == network.network())
            .filter(|network| (1..=prefix).contains(&network.prefix_len()))
            .ok_or(Error::Network {
                option,
                value: value.to_owned(),
                prefix,
                example,
            })
    };
    let pods = read(
        "pod-network-cidr",
        &options.pod_cidr,
        NODE_PREFIX,
        DEFAULT_POD_CIDR,
    )?;
    let services = read(
        "service-cidr",
        &options.service_cidr,
        SERVICE_PREFIX,
        DEFAULT_SERVICE_CIDR,
    )?;
    let overlap = |one: &str, other: &str| Error::Overlap {
        one: one.into(),
        other: other.into(),
    };
    if pods.contains(&services) || services.contains(&pods) {
        return Err(overlap(&options.pod_cidr, &options.service_cidr));
    }
    for (network, text) in [(pods, &options.pod_cidr), (services, &options.service_cidr)] {
        if IpNet::V4(network).contains(&address) {
            return Err(overlap(text, &address.to_string()));
        }
    }
    Ok(pods)
}

/// How packets of pods travel between nodes: as the vendor has chosen. `vxlan_port`
/// is what the user did.
///
/// # Errors
/// When the user has chosen a port that this network doesn't have.
pub fn pod_network(manifest: &Manifest, vxlan_port: Option<u16>) -> Result<PodNetwork, Error> {
    let network = if manifest.hooks.contains_key(&HookName::NetworkInstall) {
        PodNetwork::Vendor
    } else if manifest.providers.generic.network.kind == Some(NetworkType::Wireguard) {
        PodNetwork::Wireguard
    } else {
        PodNetwork::Vxlan
    };
    match vxlan_port {
        Some(port) if network != PodNetwork::Vxlan => Err(Error::VxlanPort { port, network }),
        _ => Ok(network),
    }
}

/// Where DNS answers beside the link-local address.
fn dns_listen(
    options: &Options,
    address: IpAddr,
    facts: &HostFacts,
) -> Result<Vec<SocketAddr>, Error> {
    let has: Vec<_> = facts.addresses.iter().map(|one| one.address).collect();
    let port = options.dns_port;
    let check = |&listen: &IpAddr| {
        // All of 127.0.0.0/8 is there without being listed.
        if !(has.contains(&listen) || listen.is_loopback() && listen.is_ipv4()) {
            return Err(Error::DnsAddress {
                address: listen,
                available: has.clone(),
            });
        }
        match listen == address && port == crate::services::dns_service_port() {
            true => Err(Error::DnsTaken(listen, port)),
            false => Ok(SocketAddr::new(listen, port)),
        }
    };
    options.dns_listen.iter().map(check).collect()
}

/// Zones of others: none of the cluster's own.
fn zones(zones: &[DnsZone]) -> Result<Vec<DnsZone>, Error> {
    let ours = |zone: &str| {
        let below = |domain: &str| zone == domain || zone.ends_with(&format!(".{domain}"));
        below(DOMAIN) || below(spec::LEADER_NAME)
    };
    match zones.iter().find(|zone| ours(&zone.name)) {
        Some(DnsZone { name, .. }) => Err(Error::DnsZone(name.clone())),
        None => Ok(zones.to_vec()),
    }
}

pub(crate) fn taints(profile: Option<&NodeProfile>) -> Vec<Taint> {
    let taint = |taint: &manifest::Taint| Taint {
        key: taint.key.clone(),
        value: taint.value.clone(),
        effect: taint.effect.as_str().into(),
    };
    let taints = profile.map(|profile| profile.taints.iter().map(taint));
    taints.into_iter().flatten().collect()
}

/// The service user: one that has the id already, whatever its name, or a new
/// one. A name or group that is somebody else's is a conflict.
fn service_user(options: &Options, users: &KnownUsers) -> Result<ServiceUser, Error> {
    let uid = options.service_uid;
    if let Some(user) = &users.with_id {
        if options.service_gid.is_some_and(|gid| gid != user.gid) {
            return Err(Error::ServiceUser(format!(
                "user {} (uid {uid}) has group {}, not --service-gid",
                user.name, user.gid
            )));
        }
        return Ok(ServiceUser {
            name: user.name.clone(),
            uid,
            gid: user.gid,
        });
    }
    if let Some(user) = &users.named {
        return Err(Error::ServiceUser(format!(
            "user {SERVICE_USER} exists with uid {}; use --service-uid={0}",
            user.uid
        )));
    }
    Ok(ServiceUser {
        name: SERVICE_USER.into(),
        uid,
        gid: options.service_gid.unwrap_or(uid),
    })
}

fn cluster_name(options: &Options, manifest: &Manifest) -> Result<String, Error> {
    let name = match &options.cluster {
        Some(name) => name.clone(),
        None => manifest.metadata.name.to_lowercase().replace('_', "-"),
    };
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match (1..=63).contains(&name.len())
        && name.chars().all(good)
        && !name.starts_with('-')
        && !name.ends_with('-')
    {
        true => Ok(name),
        false => Err(Error::ClusterName(name)),
    }
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
    host: &HostTraits,
) -> Result<Prepared, Error> {
    let address = choose_address(options.advertise_address, facts)?;
    let pods = networks(options, address)?;
    let profile =
        choose_first_profile(manifest, options.flavor.as_deref(), options.role.as_deref())?;
    let profile = with_mounts(profile, &options.mounts)?;
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
        host,
        options: &services,
        hooks: &manifest.hooks,
    };
    let planner = Planner {
        context: &context,
        manifest,
        image,
        volumes: &volumes,
        devices: devices(profile),
        config: options.config,
        token: options.token,
        values: options.values,
        operation: &operation,
    };
    let plan = Plan {
        version: PLAN_VERSION,
        operation_id: operation.clone(),
        kind: "install".into(),
        created_by_version: env!("CARGO_PKG_VERSION").into(),
        phases: planner.phases()?,
    };
    Ok(Prepared { cluster, plan })
}

/// The profile with the paths of `--mount` in place of its own.
///
/// # Errors
/// When a name is of no volume, or a path isn't absolute.
pub fn with_mounts(
    profile: Option<&NodeProfile>,
    mounts: &BTreeMap<String, PathBuf>,
) -> Result<Option<NodeProfile>, Error> {
    let mut profile = profile.cloned();
    let volumes = profile
        .as_mut()
        .map(|profile| &mut profile.requirements.volumes[..])
        .unwrap_or_default();
    for (name, path) in mounts {
        let text = path.to_str().filter(|_| path.is_absolute());
        let Some(text) = text.filter(|text| !text.contains("/../") && !text.ends_with("/.."))
        else {
            return Err(Error::MountPath(path.clone()));
        };
        let named = |volume: &&mut manifest::Volume| volume.name.as_ref() == Some(name);
        let Some(volume) = volumes.iter_mut().find(|volume| named(volume)) else {
            let names = volumes.iter().filter_map(|volume| volume.name.clone());
            return Err(Error::Mount {
                name: name.clone(),
                available: names.collect(),
            });
        };
        volume.path = text.to_owned();
    }
    Ok(profile)
}

pub(crate) fn volumes(
    profile: Option<&NodeProfile>,
    mounts: &BTreeMap<String, PathBuf>,
) -> Vec<Volume> {
    let volumes = profile
        .map(|profile| &profile.requirements.volumes[..])
        .unwrap_or_default();
    let mut volumes: Vec<_> = volumes
        .iter()
        .map(|volume| Volume {
            path: volume.path.clone().into(),
            // What the customer names is one path.
            pattern: volume.is_pattern()
                && !volume
                    .name
                    .as_ref()
                    .is_some_and(|name| mounts.contains_key(name)),
            target: volume.target_path.clone().map(Into::into),
            uid: volume.uid,
            gid: volume.gid,
            mode: volume.mode.map(Mode::bits),
            create: volume.create_if_missing,
            skip_if_missing: volume.skip_if_missing,
            recursive: volume.recursive,
        })
        .collect();
    // What is mounted below another comes after it, whatever the order in the
    // manifest.
    volumes.sort_by(|one, other| one.target.cmp(&other.target));
    volumes
}

pub(crate) fn devices(profile: Option<&NodeProfile>) -> Vec<Device> {
    let devices = profile
        .map(|profile| &profile.requirements.devices[..])
        .unwrap_or_default();
    devices
        .iter()
        .map(|device| Device {
            path: device.path.clone(),
            permissions: device.permissions.clone().unwrap_or_else(|| "rw".into()),
            mode: device.file_mode.map_or(0o666, Mode::bits),
            uid: device.uid,
            gid: device.gid,
        })
        .collect()
}

/// Labels of a node in Kubernetes.
pub(crate) fn node_labels(node: &NodeSpec) -> BTreeMap<String, String> {
    let mut labels = node.labels.clone();
    let address = node.advertise_addresses.first().map(ToString::to_string);
    labels.insert(
        "gravitational.io/advertise-ip".into(),
        address.unwrap_or_default(),
    );
    let role = match node.role {
        Role::Master => {
            labels.insert(
                "node-role.kubernetes.io/control-plane".into(),
                String::new(),
            );
            "master"
        }
        Role::Worker => "node",
    };
    labels.insert("gravitational.io/k8s-role".into(), role.into());
    if !node.profile.is_empty() {
        labels.insert("role".into(), node.profile.clone());
        labels.extend(node.labels.clone());
    }
    labels
}

/// A group whose phases run side by side.
pub(crate) fn group(id: &str, description: &str, phases: Vec<Phase>) -> Phase {
    Phase {
        limit_parallel: Some(PARALLEL),
        phases,
        ..Phase::new(id, description)
    }
}

/// Makes phases.
pub(crate) struct Planner<'a> {
    pub(crate) context: &'a Context<'a>,
    pub(crate) manifest: &'a Manifest,
    pub(crate) image: &'a ImageContent,
    pub(crate) volumes: &'a [Volume],
    pub(crate) devices: Vec<Device>,
    /// Whether there are resources of `--config`.
    pub(crate) config: bool,
    /// Whether there is a token of the user's own.
    pub(crate) token: bool,
    /// Whether there are values for hooks.
    pub(crate) values: bool,
    pub(crate) operation: &'a str,
}

impl Planner<'_> {
    /// All phases: the ones of a group overlap where they can, so that images
    /// are copied while Kubernetes starts.
    fn phases(&self) -> Result<Vec<Phase>, Error> {
        let mut phases = vec![
            self.bootstrap()?,
            group(
                "/prepare",
                "Put programs, files and keys in place",
                self.prepare(PhaseSpec::Secrets(secrets::secrets(self.context)))?,
            ),
            group(
                "/start",
                "Start Kubernetes, fill the registry",
                self.start()?,
            ),
        ];
        phases.extend(self.of_hooks()?);
        if let Some(job) = self.manifest.hooks.get(&HookName::NetworkInstall) {
            let name = HookName::NetworkInstall;
            let hook = hooks::hook(self.context.cluster, name, job, self.operation);
            let hook = PhaseSpec::Hook(hook);
            phases.push(self.leaf("/overlay", "Run the hook of the pods' network", hook)?);
        }
        let node = self.context.node.hostname.clone();
        let health = PhaseSpec::Health(phase::Health {
            node,
            kubeconfig: "admin".into(),
            services: Vec::new(),
        });
        phases.push(self.leaf("/health", "Wait until the node is ready", health)?);
        phases.push(self.keep()?);
        if self.token {
            let token = PhaseSpec::Config(phase::Config {
                operation: self.operation.into(),
                file: TOKEN_FILE.into(),
            });
            phases.push(self.leaf(TOKEN_PHASE, "Keep the token that nodes join with", token)?);
        }
        let wanted = wanted_nodes(self.manifest, self.context.cluster.flavor.as_deref());
        if !wanted.is_empty() {
            let nodes = PhaseSpec::Nodes(phase::Nodes { wanted });
            phases.push(self.leaf(
                NODES_PHASE,
                "Wait until all nodes of the flavor have joined",
                nodes,
            )?);
        }
        for (hook, id, description) in [
            (HookName::Install, "/install", "Run the install hook"),
            (
                HookName::PostInstall,
                "/post-install",
                "Run the post-install hook",
            ),
        ] {
            if let Some(job) = self.manifest.hooks.get(&hook) {
                let hook = hooks::hook(self.context.cluster, hook, job, self.operation);
                let hook = PhaseSpec::Hook(hook);
                phases.push(self.leaf(id, description, hook)?);
            }
        }
        if self.config {
            let config = PhaseSpec::Config(phase::Config {
                operation: self.operation.into(),
                file: CONFIG_FILE.into(),
            });
            phases.push(self.leaf("/config", "Create the resources of --config", config)?);
        }
        let complete = PhaseSpec::Complete(phase::Complete {
            operation: self.operation.into(),
            cluster: self.context.cluster.clone(),
            manifest: self.image.manifest_text.clone(),
        });
        phases.push(self.leaf("/complete", "Store the cluster's state", complete)?);
        Ok(phases)
    }

    /// What hooks may read; those of nodes that join run while this install waits
    /// for them.
    fn of_hooks(&self) -> Result<Vec<Phase>, Error> {
        let mut phases = Vec::new();
        if self.context.cluster.license.is_some() {
            let license = PhaseSpec::Config(phase::Config {
                operation: self.operation.into(),
                file: LICENSE_FILE.into(),
            });
            phases.push(self.leaf("/license", "Keep the license in the cluster", license)?);
        }
        if self.values {
            let values = PhaseSpec::Config(phase::Config {
                operation: self.operation.into(),
                file: VALUES_FILE.into(),
            });
            phases.push(self.leaf(
                "/values",
                "Keep the values for hooks in the cluster",
                values,
            )?);
        }
        Ok(phases)
    }

    pub(crate) fn bootstrap(&self) -> Result<Phase, Error> {
        let user = self.context.cluster.service_user.clone();
        let spec = PhaseSpec::Bootstrap(phase::Bootstrap { user });
        self.leaf(
            "/bootstrap",
            "Create the service user and directories",
            spec,
        )
    }

    pub(crate) fn prepare(&self, secrets: PhaseSpec) -> Result<Vec<Phase>, Error> {
        let image = self.image.path.clone();
        let volumes = phase::Volumes {
            volumes: self.volumes.to_vec(),
            user: self.context.cluster.service_user.clone(),
        };
        let program = phase::Program {
            image: image.clone(),
            links: ["gravity", "kubectl", "helm"].map(String::from).into(),
        };
        let rootfs = phase::Rootfs {
            image,
            layers: self.filesystem()?.layers.clone(),
            target: self.rootfs()?,
        };
        Ok(vec![
            self.leaf(
                "/prepare/rootfs",
                "Unpack the planet",
                PhaseSpec::Rootfs(rootfs),
            )?,
            self.leaf("/prepare/secrets", "Make certificates and keys", secrets)?,
            self.leaf(
                "/prepare/program",
                "Install gravity, kubectl and helm",
                PhaseSpec::Program(program),
            )?,
            self.leaf(
                "/prepare/volumes",
                "Create volumes",
                PhaseSpec::Volumes(volumes),
            )?,
        ])
    }

    fn start(&self) -> Result<Vec<Phase>, Error> {
        let node = self.context.node;
        let registered = phase::Node {
            name: node.hostname.clone(),
            labels: node_labels(node),
            taints: node.taints.clone(),
            pod_cidrs: node.pod_cidrs.clone(),
        };
        let mut objects = addons::dns(self.context.cluster);
        objects.extend(addons::cluster_info(self.context)?);
        let planet = self.planet("kube-apiserver")?;
        let after_planet = |phase| Phase {
            requires: vec![planet.id.clone()],
            ..phase
        };
        let node = self.leaf(
            "/start/node",
            "Register the node",
            PhaseSpec::Node(registered),
        )?;
        let objects = PhaseSpec::Apply(phase::Apply { objects });
        let objects = self.leaf(
            "/start/resources",
            "Create the cluster's DNS service and description",
            objects,
        )?;
        let (node, objects) = (after_planet(node), after_planet(objects));
        let mut phases = vec![planet, node, objects];
        phases.extend(self.contents()?);
        Ok(phases)
    }

    /// Whether the node becomes one more master.
    fn is_joining_master(&self) -> bool {
        self.context.node.role == Role::Master && self.context.cluster.has_several_masters()
    }

    /// Starts the planet and waits for one of its services.
    pub(crate) fn planet(&self, wait_for: &str) -> Result<Phase, Error> {
        let config = PlanetConfig {
            devices: self.devices.clone(),
            ..planet_config::planet_config(self.context, self.rootfs()?, self.volumes)
        };
        let planet = phase::Planet {
            config: serde_json::to_value(&config)?,
            wait_for: vec![wait_for.into()],
            member_of: match self.is_joining_master() {
                true => self.context.cluster.controllers(),
                false => Vec::new(),
            },
        };
        self.leaf(
            "/start/planet",
            "Start the planet",
            PhaseSpec::Planet(planet),
        )
    }

    /// What every node keeps of the image.
    pub(crate) fn contents(&self) -> Result<[Phase; 2], Error> {
        let images = phase::Images {
            image: self.image.path.clone(),
            images: self.image.images.clone(),
        };
        let resources = phase::Resources {
            image: self.image.path.clone(),
            digest: self.image.reference.resources.clone(),
            service_uid: self.context.cluster.service_user.uid,
            service_gid: self.context.cluster.service_user.gid,
        };
        Ok([
            self.leaf(
                "/start/images",
                "Fill the registry with container images",
                PhaseSpec::Images(images),
            )?,
            self.leaf(
                "/start/hook-resources",
                "Unpack the resources of hooks",
                PhaseSpec::Resources(resources),
            )?,
        ])
    }

    /// What nodes that join get of the image.
    pub(crate) fn keep(&self) -> Result<Phase, Error> {
        let image = self.image.path.clone();
        self.leaf(
            "/image",
            "Keep the image for nodes that join",
            PhaseSpec::Keep(phase::Keep { image }),
        )
    }

    fn filesystem(&self) -> Result<&Rootfs, Error> {
        let profile = &self.context.node.profile;
        let planet = self.image.planets.get(profile);
        planet.ok_or_else(|| Error::Planet(profile.clone()))
    }

    fn rootfs(&self) -> Result<PathBuf, Error> {
        let layout = Layout::new(&self.context.node.state_dir);
        Ok(layout.rootfs(&self.filesystem()?.digest))
    }

    pub(crate) fn leaf(
        &self,
        id: &str,
        description: &str,
        payload: PhaseSpec,
    ) -> Result<Phase, Error> {
        Ok(Phase {
            node: Some(self.context.node.hostname.clone()),
            payload: serde_json::to_value(payload)?,
            ..Phase::new(id, description)
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
