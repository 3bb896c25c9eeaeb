//! Persistent, versioned types that cross processes.
//!
//! In: what the installer decided from the manifest, the flags and the host.
//! Out: [`ClusterSpec`], which is stored in the state directory, and
//! [`phase::PhaseSpec`], the payload that an agent executes. Both carry a version, and a
//! reader refuses a newer one. Neither holds secrets.

pub mod care;
pub mod layout;
pub mod phase;
#[doc(hidden)]
pub mod sample;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Version of the types of this crate.
pub const VERSION: u32 = 1;

/// Where a node keeps everything, unless `--state-dir` says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/gravity";

/// Where links to the programs of a node are: on every distribution's PATH.
pub const LINKS: &str = "/usr/local/bin";

/// Programs of a node that [`LINKS`] has links to.
pub const LINKED: [&str; 3] = ["gravity", "kubectl", "helm"];

/// Name by which the cluster's registry and API are known on every node.
pub const LEADER_NAME: &str = "leader.telekube.local";

/// Link-local address that every node has on `lo` and that
/// [`LEADER_NAME`] stands for.
pub const LEADER_ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 20, 10));

/// Port of the cluster registry.
pub const REGISTRY_PORT: u16 = 5000;

/// How many masters a cluster takes of the nodes whose profiles have no role:
/// etcd goes on without one of three (design of etcd: a majority must agree).
pub const MASTERS: usize = 3;

/// Port of the Kubernetes API.
pub const API_PORT: u16 = 6443;

/// Port at which the controllers of a cluster listen, on masters.
pub const CONTROLLER_PORT: u16 = 3009;

/// Port of the cluster's DNS on the advertise addresses of masters, for the `kube-dns`
/// Service.
pub const DNS_SERVICE_PORT: u16 = 1053;

/// TCP ports that services of a node listen on: those of DNS, etcd, the controller, the
/// registry, the API, kubelet, kube-proxy, kube-controller-manager and kube-scheduler.
pub const SERVICE_PORTS: [u16; 12] = [
    DNS_SERVICE_PORT,
    2379,
    2380,
    CONTROLLER_PORT,
    REGISTRY_PORT,
    API_PORT,
    10248,
    10249,
    10250,
    10256,
    10257,
    10259,
];

/// UDP port at which nodes take what WireGuard has encrypted.
pub const WIREGUARD_PORT: u16 = 51820;

/// Name under which a controller signs the certificate that a worker is known
/// to controllers by.
pub const NODE_IDENTITY: &str = "node";

/// Authority of Kubernetes, also of what kubeconfigs hold.
pub const KUBERNETES_AUTHORITY: &str = "kubernetes-ca";

/// Authority that controllers and nodes know each other by.
pub const RPC_AUTHORITY: &str = "rpc-ca";

/// What is known of a cluster; the same on all of its nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Identity of the cluster.
    pub id: Uuid,
    /// Name, a DNS label.
    pub name: String,
    /// Name and version of the cluster image.
    pub image: ImageRef,
    /// Chosen flavor, where the image has flavors.
    pub flavor: Option<String>,
    /// User and group of the services.
    pub service_user: ServiceUser,
    /// Addresses of pods, CIDR notation.
    pub pod_cidrs: Vec<String>,
    /// Addresses of services, CIDR notation.
    pub service_cidrs: Vec<String>,
    /// How packets of pods travel between nodes.
    #[serde(default)]
    pub pod_network: PodNetwork,
    /// UDP port of [`PodNetwork::Vxlan`].
    pub vxlan_port: u16,
    /// DNS domain of services.
    pub domain: String,
    /// Zones of DNS that other servers answer for.
    #[serde(default)]
    pub dns_zones: Vec<DnsZone>,
    /// What the vendor's license allows, where the image demands one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<License>,
    /// How long certificates of services and nodes live, in seconds.
    #[serde(default = "care::leaf_seconds")]
    pub leaf_seconds: u64,
    /// What the user chose for the services.
    #[serde(default)]
    pub settings: ServiceSettings,
    /// All nodes.
    pub nodes: Vec<NodeSpec>,
}

/// What a user chose for the services of all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSettings {
    /// Variables of the environment of the services that are not our own program.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Feature gates of Kubernetes by their names.
    #[serde(default)]
    pub feature_gates: BTreeMap<String, bool>,
    /// Ports of Services that nodes answer at, `FIRST-LAST`; Kubernetes' own otherwise.
    #[serde(default)]
    pub node_ports: Option<String>,
    /// Fields of kubelets' configuration, in place of ours.
    #[serde(default)]
    pub kubelet: serde_json::Map<String, serde_json::Value>,
}

/// How packets of pods travel between nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodNetwork {
    /// As they are, by VXLAN.
    #[default]
    Vxlan,
    /// Encrypted, by WireGuard.
    Wireguard,
    /// By what the vendor's `networkInstall` hook installs.
    Vendor,
}

impl PodNetwork {
    /// UDP port at which nodes take packets of each other's pods, where VXLAN
    /// has `vxlan`; `None` where the vendor's network knows.
    pub fn port(self, vxlan: u16) -> Option<u16> {
        match self {
            Self::Vxlan => Some(vxlan),
            Self::Wireguard => Some(WIREGUARD_PORT),
            Self::Vendor => None,
        }
    }
}

/// What a license allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct License {
    /// Whom it is for.
    pub holder: String,
    /// Most nodes of the cluster; any number where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_nodes: Option<u32>,
    /// Until when, in seconds since 1970.
    pub ends: i64,
}

impl License {
    /// Whether its time is over.
    pub fn is_over(&self, now: std::time::SystemTime) -> bool {
        let since = now.duration_since(std::time::UNIX_EPOCH);
        since.is_ok_and(|since| i64::try_from(since.as_secs()).is_ok_and(|now| now > self.ends))
    }
}

/// Port of DNS.
pub const DNS_PORT: u16 = 53;

/// A zone and who answers for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsZone {
    /// Domain, lower-case, without a dot at its end.
    pub name: String,
    /// Servers that are asked.
    pub servers: Vec<std::net::SocketAddr>,
}

/// A Kubernetes taint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value, perhaps empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// Name and version of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// Name of the cluster image.
    pub name: String,
    /// Its semantic version.
    pub version: String,
    /// Digest of its manifest blob, `sha256:...`.
    pub digest: String,
    /// Digest of the tar of its resources.
    pub resources: String,
}

/// The user that services run as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceUser {
    /// Name on the host.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What Kubernetes services a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Control plane and workloads.
    Master,
    /// Workloads only.
    Worker,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Identity of the node.
    pub id: Uuid,
    /// Host name, which is also the Kubernetes node name.
    pub hostname: String,
    /// Addresses by which other nodes reach it; the first is advertised.
    pub advertise_addresses: Vec<IpAddr>,
    /// Profile of the manifest.
    pub profile: String,
    /// Master or worker.
    pub role: Role,
    /// Part of the pod network that belongs to this node, CIDR notation.
    pub pod_cidrs: Vec<String>,
    /// Kubernetes labels.
    pub labels: BTreeMap<String, String>,
    /// Kubernetes taints.
    #[serde(default)]
    pub taints: Vec<Taint>,
    /// Where DNS answers beside [`LEADER_ADDRESS`].
    #[serde(default)]
    pub dns_listen: Vec<std::net::SocketAddr>,
    /// Where the node keeps everything.
    pub state_dir: PathBuf,
    /// Whether it is on its way out: others don't count on it any more.
    #[serde(default)]
    pub leaving: bool,
    /// The machine that was taken in, by its machine-id; empty where nobody knows.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub machine: String,
    /// When its join was last heard of, in seconds since 1970, until it has said that it
    /// works; nothing from then on, and of who began the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_in: Option<i64>,
}

/// An image that the cluster registry serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryImage {
    /// Repository in the registry, such as `gravitational/debian-tall`.
    pub repository: String,
    /// Tag, where it has one.
    pub tag: Option<String>,
    /// Digest of its manifest.
    pub digest: String,
}

/// A node that asks to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Host name, lower-case.
    pub hostname: String,
    /// Addresses by which other nodes reach it.
    pub advertise_addresses: Vec<IpAddr>,
    /// Profile of the manifest.
    pub profile: String,
    /// Role of that profile, where it has one.
    #[serde(default)]
    pub role: Option<Role>,
    /// Labels of that profile.
    pub labels: BTreeMap<String, String>,
    /// Taints of that profile.
    #[serde(default)]
    pub taints: Vec<Taint>,
    /// Where the node keeps everything.
    pub state_dir: PathBuf,
    /// Digest of the cluster image that it has.
    pub image: String,
    /// Its machine-id.
    #[serde(default)]
    pub machine: String,
    /// How many nodes of its profile the cluster may have, where that is fixed.
    #[serde(default)]
    pub most: Option<u32>,
}

/// What a node gets when it is taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The cluster, with the node in it.
    pub cluster: ClusterSpec,
    /// Which of the cluster's nodes it is.
    pub node: Uuid,
    /// Certificate of its identity, PEM.
    pub certificate: String,
    /// Certificates of the cluster's authorities by name, PEM.
    pub authorities: BTreeMap<String, String>,
}

impl NodeSpec {
    /// The address by which it is advertised.
    pub fn address(&self) -> Option<IpAddr> {
        self.advertise_addresses.first().copied()
    }
}

impl ClusterSpec {
    /// The node with an identity.
    pub fn node(&self, id: Uuid) -> Option<&NodeSpec> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// How long certificates of services and nodes live.
    pub fn leaf_lifetime(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.leaf_seconds)
    }

    /// Addresses of the masters, but of those that leave.
    pub fn masters(&self) -> impl Iterator<Item = IpAddr> {
        self.staying(Role::Master).filter_map(NodeSpec::address)
    }

    /// Addresses of the workers, but of those that leave and of those whose join goes on.
    pub fn workers(&self) -> impl Iterator<Item = IpAddr> {
        let workers = self.staying(Role::Worker);
        let joined = workers.filter(|node| node.taken_in.is_none());
        joined.filter_map(NodeSpec::address)
    }

    fn staying(&self, role: Role) -> impl Iterator<Item = &NodeSpec> {
        let nodes = self.nodes.iter();
        nodes.filter(move |node| node.role == role && !node.leaving)
    }

    /// Whether the control plane is on more than one node.
    pub fn has_several_masters(&self) -> bool {
        self.masters().nth(1).is_some()
    }

    /// Where the controllers of the cluster listen.
    pub fn controllers(&self) -> Vec<std::net::SocketAddr> {
        let address = |master| std::net::SocketAddr::new(master, CONTROLLER_PORT);
        self.masters().map(address).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cluster.json` as version 6.0.0 wrote it, with all that it can hold. It must be
    /// readable for ever.
    const VERSION_1: &str = include_str!("../fixtures/cluster-1.json");

    fn node() -> NodeSpec {
        NodeSpec {
            id: Uuid::from_u128(11),
            hostname: "node-1".into(),
            advertise_addresses: vec!["192.168.7.9".parse().unwrap()],
            profile: "web".into(),
            role: Role::Master,
            pod_cidrs: vec!["10.244.0.0/24".into()],
            labels: BTreeMap::from([("tier".into(), "front".into())]),
            taints: vec![Taint {
                key: "custom".into(),
                value: "yes".into(),
                effect: "NoExecute".into(),
            }],
            dns_listen: vec!["192.168.7.9:53".parse().unwrap()],
            state_dir: "/var/lib/gravity".into(),
            leaving: true,
            machine: "6f0a".into(),
            taken_in: Some(1_764_400_000),
        }
    }

    fn cluster() -> ClusterSpec {
        ClusterSpec {
            version: 1,
            id: Uuid::from_u128(10),
            name: "shop".into(),
            image: ImageRef {
                name: "shop".into(),
                version: "1.2.3".into(),
                digest: "sha256:aa".into(),
                resources: "sha256:bb".into(),
            },
            flavor: Some("three".into()),
            service_user: ServiceUser {
                name: "planet".into(),
                uid: 1000,
                gid: 1001,
            },
            pod_cidrs: vec!["10.244.0.0/16".into()],
            service_cidrs: vec!["10.100.0.0/16".into()],
            pod_network: PodNetwork::Wireguard,
            vxlan_port: 8473,
            domain: "cluster.local".into(),
            dns_zones: vec![DnsZone {
                name: "example.com".into(),
                servers: vec!["10.0.0.53:53".parse().unwrap()],
            }],
            license: Some(License {
                holder: "Example Ltd".into(),
                max_nodes: Some(5),
                ends: 2_000_000_000,
            }),
            leaf_seconds: 86400,
            settings: ServiceSettings {
                environment: BTreeMap::from([("HTTP_PROXY".into(), "proxy:8001".into())]),
                feature_gates: BTreeMap::from([("AllAlpha".into(), false)]),
                node_ports: Some("31000-31999".into()),
                kubelet: serde_json::from_str(r#"{"maxPods": 50}"#).unwrap(),
            },
            nodes: vec![node()],
        }
    }

    #[test]
    fn a_cluster_of_version_1_is_read() {
        let read: ClusterSpec = serde_json::from_str(VERSION_1).unwrap();
        assert_eq!(read, cluster());
        // What it had before this is not needed to read it.
        let mut older: serde_json::Value = serde_json::from_str(VERSION_1).unwrap();
        for field in [
            "pod_network",
            "dns_zones",
            "license",
            "leaf_seconds",
            "settings",
        ] {
            older.as_object_mut().unwrap().remove(field).unwrap();
        }
        for field in ["taints", "dns_listen", "leaving", "machine", "taken_in"] {
            older["nodes"][0]
                .as_object_mut()
                .unwrap()
                .remove(field)
                .unwrap();
        }
        let read: ClusterSpec = serde_json::from_value(older).unwrap();
        assert_eq!(read.leaf_seconds, care::LEAF_SECONDS);
        assert!(!read.nodes[0].leaving);
    }
    #[test]
    fn workers_are_those_that_have_joined_and_stay() {
        let worker = |last: u8, leaving, taken_in| NodeSpec {
            advertise_addresses: vec![IpAddr::from([10, 0, 0, last])],
            role: Role::Worker,
            leaving,
            taken_in,
            ..node()
        };
        let master = NodeSpec {
            leaving: false,
            taken_in: None,
            ..node()
        };
        let cluster = ClusterSpec {
            nodes: vec![
                worker(1, true, None),
                worker(2, false, Some(1_764_400_000)),
                worker(3, false, None),
                master.clone(),
            ],
            ..cluster()
        };
        let workers: Vec<_> = cluster.workers().collect();
        assert_eq!(workers, [IpAddr::from([10, 0, 0, 3])]);
        let masters: Vec<_> = cluster.masters().collect();
        assert_eq!(masters, master.advertise_addresses);
    }
}
