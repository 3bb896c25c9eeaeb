//! What lies between this host and another one.
//!
//! In: measurements of both sides. Out: facts as data, like those of a host.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{HostFacts, Protocol};

/// Another host, as it is seen from this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Where it was asked.
    pub address: SocketAddr,
    /// What was found out, or why nothing was.
    pub seen: Result<Seen, String>,
}

/// What was found out together with a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Who it is.
    pub who: Introduction,
    /// How its clock differs from ours; an error says why that isn't known.
    pub clock: Result<Offset, String>,
    /// The way from this host to the peer.
    pub there: Way,
    /// The way from the peer to this host.
    pub back: Way,
}

/// Who a host is. Empty is what it doesn't know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Introduction {
    /// Its name.
    pub hostname: String,
    /// Its `/etc/machine-id`.
    pub machine_id: String,
    /// Hardware addresses of the interfaces that have an address.
    pub macs: Vec<String>,
}

impl Introduction {
    /// The introduction of a host.
    pub fn of(facts: &HostFacts) -> Self {
        let is_used = |name: &str| {
            let mut addresses = facts.addresses.iter();
            addresses.any(|address| address.interface == name && !address.address.is_loopback())
        };
        let interfaces = facts.network.interfaces.iter();
        Self {
            hostname: facts.hostname.clone(),
            machine_id: facts.machine_id.clone(),
            macs: interfaces
                .filter(|interface| is_used(&interface.name))
                .map(|interface| interface.mac.clone())
                .filter(|mac| mac.bytes().any(|byte| !b"0:".contains(&byte)))
                .collect(),
        }
    }
}

/// By how much a clock differs from ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offset {
    /// Its time less ours, in microseconds, half of the round trip taken off.
    pub ahead_us: i64,
    /// The shortest round trip, in microseconds; the half of it may be wrong.
    pub round_trip_us: u64,
}

/// What was found out about one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Way {
    /// Ports at its end, each as it was found.
    pub ports: Vec<(Port, Reach)>,
    /// Whether a packet of the interface's size arrived in one piece; `None` where
    /// there was no UDP port to send it to.
    pub packet: Option<Packet>,
    /// How fast bytes came through the first TCP port that was opened for it, in
    /// bytes a second, in this direction and in the other.
    pub rates: Option<Rates>,
}

/// A port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Port {
    /// Its transport.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
}

/// How a port was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Who should listen there answers.
    Reached,
    /// Nothing comes back: dropped on the way.
    Silent,
    /// Refused on the way, as somebody listens.
    Refused,
    /// It can't be said, and why.
    Unknown(String),
}

/// The largest packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Its size with all headers, in bytes: the MTU of the sender's interface.
    pub size: u32,
    /// Whether it arrived, unbroken.
    pub arrived: bool,
}

/// Bytes a second in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// From who connects.
    pub there: u64,
    /// To who connects.
    pub back: u64,
}
