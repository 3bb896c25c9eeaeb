//! What a user's choices, the manifest and the host come to: profile, networks, service
//! user and the like, or why they don't fit each other.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use host::facts::HostFacts;
use ipnet::{IpNet, Ipv4Net};
use manifest::{HookName, Manifest, Mode, NetworkType, NodeProfile, ServiceRole};
use planet::config::Device;
use spec::phase::Volume;
use spec::{DnsZone, NodeSpec, PodNetwork, Role, ServiceUser, Taint};

use super::{DEFAULT_POD_CIDR, DEFAULT_SERVICE_CIDR, Error, KnownUsers, Options, SERVICE_USER};

/// DNS domain of services.
pub(super) const DOMAIN: &str = "cluster.local";
/// Part of the pod network that a node gets, as flannel has it.
pub(crate) const NODE_PREFIX: u8 = 24;
/// Longest prefix of a service network: leaves 256 addresses.
const SERVICE_PREFIX: u8 = 24;

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
pub(super) fn wanted_nodes(manifest: &Manifest, flavor: Option<&str>) -> BTreeMap<String, u32> {
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

/// The flavor and the profile of an image that has no profiles, as the original
/// Gravity calls them.
const ONLY_FLAVOR: &str = "default";
const ONLY_PROFILE: &str = "node";

/// The profile of a name, else the flavor's or the manifest's first. `None` where the
/// manifest has no profiles.
///
/// # Errors
/// When there is no such flavor or profile.
pub fn choose_profile<'a>(
    manifest: &'a Manifest,
    flavor: Option<&str>,
    role: Option<&str>,
) -> Result<Option<&'a NodeProfile>, Error> {
    // A node without a profile has the name "" for it.
    if manifest.node_profiles.is_empty()
        && flavor.is_none_or(|name| name == ONLY_FLAVOR)
        && role.is_none_or(|name| [ONLY_PROFILE, ""].contains(&name))
    {
        return Ok(None);
    }
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
pub(super) fn networks(options: &Options, address: IpAddr) -> Result<Ipv4Net, Error> {
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
pub(super) fn dns_listen(
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
        match listen == address && port == spec::DNS_SERVICE_PORT {
            true => Err(Error::DnsTaken(listen, port)),
            false => Ok(SocketAddr::new(listen, port)),
        }
    };
    options.dns_listen.iter().map(check).collect()
}

/// Zones of others: none of the cluster's own.
pub(super) fn zones(zones: &[DnsZone]) -> Result<Vec<DnsZone>, Error> {
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
pub(super) fn service_user(options: &Options, users: &KnownUsers) -> Result<ServiceUser, Error> {
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

pub(super) fn cluster_name(options: &Options, manifest: &Manifest) -> Result<String, Error> {
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

/// The profile with volumes as this node has them: with the paths of `--mount` in place
/// of its own, and the node's state directory in place of the usual one.
///
/// # Errors
/// When a name is of no volume, or a path isn't absolute.
pub fn with_mounts(
    profile: Option<&NodeProfile>,
    mounts: &BTreeMap<String, PathBuf>,
    state_dir: &Path,
) -> Result<Option<NodeProfile>, Error> {
    let mut profile = profile.cloned();
    let volumes = profile
        .as_mut()
        .map(|profile| &mut profile.requirements.volumes[..])
        .unwrap_or_default();
    for volume in &mut *volumes {
        if Path::new(&volume.path) == Path::new(spec::DEFAULT_STATE_DIR) {
            volume.path = state_dir.to_string_lossy().into_owned();
        }
    }
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
    let address = node.address().map(|address| address.to_string());
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
