//! Requirements times host facts gives a report.
//!
//! In: what image, profile and operation need ([`Requirements`]) and what the
//! host is like. Out: a [`Report`] with a finding for everything that was
//! looked at. [`evaluate`] is pure; [`check`] asks the filesystem for room
//! first. What could not be measured is a warning, never a failure. A check is
//! one file in `checks` and one line in its registry.

mod checks;
mod cidr;
mod report;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use host::facts::{HostFacts, Space};

pub use checks::ports::{Wanted as NeededPorts, wanted as needed_ports};
pub use report::{Finding, Report, Severity};

/// What a node must offer for an operation.
#[derive(Debug, Clone)]
pub struct Requirements {
    /// What the node's profile says; the default where there is no profile.
    pub profile: manifest::Requirements,
    /// Where the node will keep everything.
    pub state_dir: PathBuf,
    /// Room that the image needs below `state_dir`, in bytes.
    pub state_bytes: u64,
    /// Address by which other nodes reach this one.
    pub advertise_address: IpAddr,
    /// Addresses of pods, CIDR notation.
    pub pod_cidrs: Vec<String>,
    /// Addresses of services, CIDR notation.
    pub service_cidrs: Vec<String>,
    /// UDP port of the overlay network.
    pub vxlan_port: u16,
}

/// A path of the host, as it is now.
#[derive(Debug, Clone)]
pub struct Place {
    /// Whether there is anything.
    pub exists: bool,
    /// Number of the device that holds it or would.
    pub device: Option<u64>,
    /// Room there, or why it is unknown.
    pub space: Result<Space, String>,
}

/// Paths that the requirements name.
pub type Places = BTreeMap<PathBuf, Place>;

/// Compares; measures only the room on filesystems. Changes nothing.
pub fn check(requirements: &Requirements, facts: &HostFacts) -> Report {
    evaluate(requirements, facts, &measure(requirements))
}

/// Compares what is needed with what there is.
pub fn evaluate(requirements: &Requirements, facts: &HostFacts, places: &Places) -> Report {
    let input = Input {
        requirements,
        facts,
        places,
    };
    Report {
        findings: checks::ALL.iter().flat_map(|check| check(&input)).collect(),
    }
}

/// Looks at the paths that the requirements name.
pub fn measure(requirements: &Requirements) -> Places {
    let volumes = requirements
        .profile
        .volumes
        .iter()
        .map(|volume| PathBuf::from(&volume.path));
    let paths = volumes.chain([requirements.state_dir.clone()]);
    paths.map(|path| (path.clone(), place(&path))).collect()
}

fn place(path: &Path) -> Place {
    let space = host::facts::space(path).map_err(|error| error.to_string());
    let device = space
        .as_ref()
        .ok()
        .and_then(|space| Some(space.measured_at.metadata().ok()?.dev()));
    Place {
        exists: path.exists(),
        device,
        space,
    }
}

/// What a check gets.
#[derive(Debug)]
struct Input<'a> {
    requirements: &'a Requirements,
    facts: &'a HostFacts,
    places: &'a Places,
}

#[cfg(test)]
mod testing {
    //! A host on which everything is fine, and a node that needs nothing.

    use host::facts::{Address, Cgroup, Os};

    use super::*;

    pub(crate) fn facts() -> HostFacts {
        HostFacts {
            hostname: "node-1".into(),
            cpus: 4,
            ram_bytes: 8_000_000_000,
            os: Os {
                id: "debian".into(),
                version_id: "12".into(),
                pretty_name: "Debian 12".into(),
            },
            kernel_release: "6.1.0-18-amd64".into(),
            architecture: "x86_64".into(),
            addresses: vec![
                Address {
                    interface: "lo".into(),
                    address: [127, 0, 0, 1].into(),
                    prefix: 8,
                },
                Address {
                    interface: "eth0".into(),
                    address: [192, 168, 1, 5].into(),
                    prefix: 24,
                },
            ],
            default_route: false,
            routes: Vec::new(),
            listening: Vec::new(),
            cgroup: Cgroup::V2,
            uid: 0,
            can_lower_oom_score: true,
            systemd: true,
        }
    }

    pub(crate) fn requirements() -> Requirements {
        Requirements {
            profile: manifest::Requirements::default(),
            state_dir: "/var/lib/gravity".into(),
            state_bytes: 1_000_000_000,
            advertise_address: [192, 168, 1, 5].into(),
            pod_cidrs: vec!["10.244.0.0/16".into()],
            service_cidrs: vec!["10.100.0.0/16".into()],
            vxlan_port: 8472,
        }
    }

    pub(crate) fn room(available_bytes: u64, device: u64) -> Place {
        let space = Space {
            available_bytes,
            total_bytes: available_bytes,
            inodes_available: 0,
            inodes_total: 0,
            filesystem: "ext4".into(),
            measured_at: "/var".into(),
        };
        Place {
            exists: true,
            device: Some(device),
            space: Ok(space),
        }
    }

    pub(crate) fn report(requirements: &Requirements, facts: &HostFacts) -> Report {
        let mut places = Places::new();
        places.insert(requirements.state_dir.clone(), room(10_000_000_000, 1));
        evaluate(requirements, facts, &places)
    }

    /// Ids of failures and warnings.
    pub(crate) fn troubles(report: &Report) -> Vec<(Severity, &str)> {
        let trouble = report
            .findings
            .iter()
            .filter(|finding| finding.severity != Severity::Info);
        trouble
            .map(|finding| (finding.severity, finding.id))
            .collect()
    }

    #[test]
    fn a_good_host_has_no_troubles() {
        let report = report(&requirements(), &facts());
        assert_eq!(troubles(&report), []);
        assert!(report.passed() >= 8, "{report:?}");
    }

    #[test]
    fn this_host_can_be_checked() {
        let report = check(&requirements(), &HostFacts::collect());
        assert!(!report.findings.is_empty());
        let json = serde_json::to_value(&report).unwrap();
        assert!(json["findings"][0]["id"].is_string());
    }
}
