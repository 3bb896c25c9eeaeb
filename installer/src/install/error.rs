//! Why an install can't be planned.

use std::net::IpAddr;
use std::path::PathBuf;

use spec::PodNetwork;

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
