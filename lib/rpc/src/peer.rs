//! What two nodes find out about the way between them.
//!
//! In: what both know each other by, ports. Out: [`host::facts::Seen`]. One side
//! serves ([`serve`], or any node of a cluster), the other one
//! [`measure`]s: names, clocks, ports both ways, the largest packet, the rate.
//! Ports are open only meanwhile, and only to who has shown that it knows the
//! token, or that a controller has admitted it to its cluster.

mod client;
mod ports;
mod server;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::SystemTime;

use host::facts::{HostFacts, Introduction};

pub use client::{Known, Wanted, measure};
pub use ports::{Opened, State};
pub use server::serve;
pub(crate) use server::service;

/// Version of this protocol. Both sides must speak the same.
pub const PROTOCOL: u32 = 1;

/// Most ports that are tried in one direction.
pub const MAX_PORTS: usize = 256;

/// Largest message in bytes: the ports with what was found.
const MAX_MESSAGE: usize = 1 << 20;
/// Bytes of a question and of an answer.
const SECRET: usize = 16;

/// What a node says of itself.
#[derive(Debug, Clone)]
pub struct Here {
    who: Introduction,
    /// Largest packets, by the address of the interface.
    mtus: BTreeMap<IpAddr, u32>,
    clock: fn() -> i64,
    reserved: Reserved,
}

/// Ports that are opened for nobody.
#[derive(Debug, Clone)]
struct Reserved {
    /// TCP ports of the cluster's own services: one that restarts must find its port free.
    own: &'static [u16],
    /// Ports that can't be tried.
    taken: RangeInclusive<u16>,
}

/// No ports at all.
const NOTHING: Reserved = Reserved {
    own: &[],
    taken: RangeInclusive::new(1, 0),
};
/// Where Kubernetes gives ports to services (its own default): packets to them go
/// to pods, whoever listens.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

impl Here {
    /// A host as its facts have it.
    pub fn of(facts: &HostFacts) -> Self {
        let mtu = |name: &str| Some(facts.network.interface(name)?.mtu);
        let addresses = facts.addresses.iter();
        let mtus = addresses
            .filter_map(|address| Some((address.address, mtu(&address.interface)?)))
            .collect();
        Self {
            who: Introduction::of(facts),
            mtus,
            clock: now_us,
            reserved: NOTHING,
        }
    }

    /// The same host, as a node of a cluster.
    #[must_use]
    pub fn in_cluster(self) -> Self {
        Self {
            reserved: Reserved {
                own: &spec::SERVICE_PORTS,
                taken: NODE_PORTS,
            },
            ..self
        }
    }

    fn mtu(&self, address: IpAddr) -> u32 {
        self.mtus.get(&address).copied().unwrap_or_default()
    }
}

/// Microseconds since 1970.
fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since
        .ok()
        .and_then(|since| i64::try_from(since.as_micros()).ok())
        .unwrap_or_default()
}

/// What is said at opened ports.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Secrets {
    question: Vec<u8>,
    answer: Vec<u8>,
}

impl Secrets {
    fn generate() -> Result<Self, pki::Error> {
        Ok(Self {
            question: pki::token(SECRET / 2)?.into_bytes(),
            answer: pki::token(SECRET / 2)?.into_bytes(),
        })
    }

    /// Those of the other side, where they are as long as they have to be.
    fn of(question: Vec<u8>, answer: Vec<u8>) -> Option<Self> {
        (question.len() == SECRET && answer.len() == SECRET).then_some(Self { question, answer })
    }
}

#[cfg(test)]
mod tests;
