//! What a node does for itself while it runs: certificates, etcd.
//!
//! In: the installer's knowledge of the node. Out: the configuration of its
//! `care` service, a file of the planet. It holds no secrets.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ServiceUser;
use crate::layout::Layout;
use crate::phase::{Certificate, Kubeconfig};

/// The configuration inside the planet.
pub const CONFIG: &str = "/etc/planet/care.json";
/// Where the planet sees those directories of the state directory that care
/// writes to, below it as they are on the host.
pub const STATE: &str = "/var/lib/planet/care";
/// Directories of the state directory that are seen there.
pub const DIRECTORIES: &[&str] = &["secrets", "planet/run", "etcd-snapshots"];

/// Shortest life of leaf certificates, in seconds; only tests want it.
pub const LEAF_SECONDS_MIN: u64 = 60;
/// Life of leaf certificates where nothing else is said, in seconds: a year.
pub const LEAF_SECONDS: u64 = 365 * 24 * 60 * 60;

/// Longest time between two looks, in seconds.
const CHECK_MAX: u64 = 5 * 60;
/// A certificate is looked at so often in its life at least.
const CHECKS_IN_A_LIFE: u64 = 12;

/// How a node cares for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Care {
    /// [`crate::VERSION`] of the writer.
    pub version: u32,
    /// The node's name in Kubernetes.
    pub node: String,
    /// Who reads the services' secrets.
    pub user: ServiceUser,
    /// How long certificates live, in seconds.
    pub leaf_seconds: u64,
    /// The node's certificates.
    pub certificates: Vec<Certificate>,
    /// The node's kubeconfigs.
    pub kubeconfigs: Vec<Kubeconfig>,
    /// Common name in the certificate of a node that joined towards controllers.
    pub identity: String,
    /// Controllers that sign for it; none on a master, which has the keys of the
    /// authorities.
    pub controllers: Vec<SocketAddr>,
    /// Whether it has a member of etcd.
    pub etcd: bool,
}

impl Care {
    /// How long certificates live.
    pub fn leaf_lifetime(&self) -> Duration {
        Duration::from_secs(self.leaf_seconds)
    }

    /// Time between two looks.
    pub fn period(&self) -> Duration {
        Duration::from_secs((self.leaf_seconds / CHECKS_IN_A_LIFE).clamp(1, CHECK_MAX))
    }

    /// The layout of the node as its planet sees it; it has [`DIRECTORIES`] only.
    pub fn layout() -> Layout {
        Layout::new(PathBuf::from(STATE))
    }
}

/// Serde default of the life of certificates.
pub(crate) fn leaf_seconds() -> u64 {
    LEAF_SECONDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_lives_are_looked_at_often_and_long_ones_every_few_minutes() {
        let care = |leaf_seconds| Care {
            version: crate::VERSION,
            node: String::new(),
            user: ServiceUser {
                name: "planet".into(),
                uid: 1000,
                gid: 1000,
            },
            leaf_seconds,
            certificates: Vec::new(),
            kubeconfigs: Vec::new(),
            identity: String::new(),
            controllers: Vec::new(),
            etcd: true,
        };
        let period = |seconds| care(seconds).period().as_secs();
        assert_eq!(period(LEAF_SECONDS), 300);
        assert_eq!(period(240), 20);
        assert_eq!(period(0), 1);
    }
}
