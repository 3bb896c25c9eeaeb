//! What takes time to find out.
//!
//! In: requirements, what the host is like, and how much trouble to go to. Out:
//! [`Measured`]; what wasn't asked for is `None`. Nothing stays behind.

pub(crate) mod disk;
pub(crate) mod dns;
pub(crate) mod forwarding;
pub(crate) mod script;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use host::facts::{HostFacts, Peer};
use serde::{Deserialize, Serialize};

use crate::{Places, Requirements};

/// How much trouble to go to.
#[derive(Debug, Clone)]
pub struct Effort {
    /// Measure disks, seconds each.
    pub disks: bool,
    /// Run the manifest's scripts.
    pub scripts: bool,
    /// Try forwarding and name servers.
    pub network: bool,
    /// How long one script may run.
    pub script_timeout: Duration,
    /// Where scripts run: the directory in which the user is.
    pub directory: PathBuf,
}

/// What took time; `None` where it was not measured. An error says why it could
/// not be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// What the disk below the state directory does with etcd's writes.
    pub latency: Option<Result<disk::Latency, String>>,
    /// How fast is written below paths, in bytes a second.
    pub rates: Option<BTreeMap<PathBuf, Result<u64, String>>>,
    /// How the manifest's scripts ended, in its order.
    pub scripts: Option<Vec<script::Script>>,
    /// Search domains in which every name exists.
    pub wildcards: Option<Result<Vec<String>, String>>,
    /// Whether packets between pods are forwarded.
    pub forwarding: Option<Result<forwarding::Forwarding, String>>,
    /// Other nodes, as far as whoever collected could speak with them.
    pub peers: Vec<Peer>,
}

impl Measured {
    pub(crate) fn collect(
        requirements: &Requirements,
        host: &HostFacts,
        places: &Places,
        effort: &Effort,
        peers: impl FnOnce() -> Vec<Peer> + Send,
    ) -> Self {
        let mut measured = Self::default();
        std::thread::scope(|scope| {
            // Waits for others most of the time, as disks do.
            let peers = scope.spawn(peers);
            let network = effort.network.then(|| {
                scope.spawn(|| {
                    let wildcards = dns::wildcards(host);
                    (wildcards, forwarding::measure(requirements, host))
                })
            });
            if effort.disks {
                measured.latency = Some(disk::latency(&existing(&requirements.state_dir, places)));
                measured.rates = Some(rates(requirements, places));
            }
            let network = network.and_then(|thread| thread.join().ok());
            if let Some((wildcards, forwarding)) = network {
                measured.wildcards = Some(wildcards);
                measured.forwarding = Some(forwarding);
            }
            measured.peers = peers
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        // Alone, as they may do anything.
        if effort.scripts {
            let checks = &requirements.profile.custom_checks;
            measured.scripts = Some(script::run(checks, effort));
        }
        measured
    }
}

/// Writes where the profile wants a rate, and below the state directory.
fn rates(requirements: &Requirements, places: &Places) -> BTreeMap<PathBuf, Result<u64, String>> {
    let mut wanted = BTreeMap::from([(requirements.state_dir.clone(), disk::USUAL_RATE)]);
    for volume in &requirements.profile.volumes {
        let Some(rate) = volume.min_transfer_rate else {
            continue;
        };
        for path in places.meant(&volume.path).unwrap_or_default() {
            let there = places
                .paths
                .get(path)
                .is_some_and(host::facts::Place::exists);
            if there || !volume.skip_if_missing {
                let most = wanted.entry(path.to_owned()).or_default();
                *most = rate.0.max(*most);
            }
        }
    }
    wanted
        .into_iter()
        .map(|(path, rate)| {
            let measured = disk::rate(&existing(&path, places), rate);
            (path, measured)
        })
        .collect()
}

/// The nearest directory that exists.
fn existing(path: &Path, places: &Places) -> PathBuf {
    let space = places
        .paths
        .get(path)
        .and_then(|place| place.space.as_ref());
    let at = space.map_or(path, |space| &space.measured_at);
    match at.is_dir() {
        true => at.to_owned(),
        false => at.parent().unwrap_or(at).to_owned(),
    }
}
