//! Requirements times facts gives a report.
//!
//! In: what image, profile and operation need ([`Requirements`]) and what the
//! host is like ([`Facts`]), which can be stored and judged elsewhere. Out: a
//! [`Report`] with a finding for everything that was looked at. [`evaluate`] is
//! pure; [`Facts::collect`] looks and measures, and leaves nothing behind. What
//! could not be measured is a warning, never a failure. A check is one file in
//! `checks` and one line in its registry.

mod checks;
mod fix;
mod measure;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use host::facts::{HostFacts, Interest, Peer, Place, Seen};
use serde::{Deserialize, Serialize};
use spec::PodNetwork;

pub use checks::peer_ports::{Other, needed as ports_between};
pub use checks::ports::{Remote, Wanted as NeededPorts, wanted as needed_ports};
pub use fix::{Fix, Mended, mend};
pub use measure::{Effort, Measured};
pub use report::{Finding, IgnoreError, Report, Severity};

/// What a node must offer for an operation.
#[derive(Debug, Clone)]
pub struct Requirements {
    /// What the node's profile says; the default where there is no profile.
    pub profile: manifest::Requirements,
    /// Where the node will keep everything.
    pub state_dir: PathBuf,
    /// Room that the image needs below `state_dir`, in bytes.
    pub state_bytes: u64,
    /// Files that the image makes below `state_dir`.
    pub state_inodes: u64,
    /// Address by which other nodes reach this one; unspecified where it isn't
    /// chosen yet.
    pub advertise_address: IpAddr,
    /// Addresses of pods, CIDR notation.
    pub pod_cidrs: Vec<String>,
    /// Addresses of services, CIDR notation.
    pub service_cidrs: Vec<String>,
    /// How packets of pods travel between nodes.
    pub pod_network: PodNetwork,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// User id of the service user.
    pub service_uid: u32,
    /// The node is part of a cluster: what is held and running is its own.
    pub joined: bool,
    /// Kernel parameters that the operation sets by itself.
    pub sets: BTreeSet<String>,
}

/// Paths that the requirements name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Places {
    /// Paths, as they are now.
    pub paths: BTreeMap<PathBuf, Place>,
    /// Paths that each pattern means now, or why it means none.
    pub patterns: BTreeMap<String, Result<Vec<PathBuf>, String>>,
    /// Where this program would make temporary files.
    pub temp_dir: PathBuf,
}

/// Why nothing is known of a path: facts were collected for another profile.
const UNSEEN: &str = "it was not looked at";

/// All that the checks judge.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// The host.
    pub host: HostFacts,
    /// Paths that the requirements name.
    pub places: Places,
    /// What took time.
    pub measured: Measured,
}

impl Facts {
    /// Looks at paths and measures. `host` is what [`host_facts`] found; `peers`
    /// speaks with other nodes, and runs beside what is measured here.
    pub fn collect(
        requirements: &Requirements,
        host: HostFacts,
        effort: &Effort,
        peers: impl FnOnce() -> Vec<Peer> + Send,
    ) -> Self {
        let places = Places::look(requirements);
        let measured = Measured::collect(requirements, &host, &places, effort, peers);
        Self {
            host,
            places,
            measured,
        }
    }
}

/// What the host is like, as far as any check wants to know.
pub fn host_facts() -> HostFacts {
    let mut interest = Interest::default();
    for check in checks::ALL {
        interest.sysctls.extend(check.reads.sysctls);
        interest.modules.extend(check.reads.modules);
        interest.kernel_options.extend(check.reads.kernel_options);
        interest.programs.extend(check.reads.programs);
    }
    HostFacts::collect(&interest)
}

/// Compares what is needed with what there is.
pub fn evaluate(requirements: &Requirements, facts: &Facts) -> Report {
    let input = Input {
        requirements,
        facts: &facts.host,
        places: &facts.places,
        measured: &facts.measured,
    };
    let run = |check: &&Check| (check.run)(&input);
    Report {
        findings: checks::ALL.iter().flat_map(run).collect(),
    }
}

/// All checks, in the order in which a person reads them.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    checks::ALL.iter().copied()
}

impl Places {
    fn look(requirements: &Requirements) -> Self {
        let mut places = Self::default();
        let profile = &requirements.profile;
        let volumes = profile.volumes.iter().map(|volume| &volume.path);
        let devices = profile.devices.iter().map(|device| &device.path);
        for path in volumes.chain(devices) {
            if path.contains(['*', '?', '[']) {
                let found = host::facts::matches(path);
                places.patterns.insert(path.clone(), found);
            } else {
                places.see(Path::new(path));
            }
        }
        let matched: Vec<_> = places
            .patterns
            .values()
            .flatten()
            .flatten()
            .cloned()
            .collect();
        for path in &matched {
            places.see(path);
        }
        places.see(&requirements.state_dir);
        places.temp_dir = std::env::temp_dir();
        places.see(&places.temp_dir.clone());
        for path in checks::links::paths() {
            places.see(&path);
        }
        places
    }

    fn see(&mut self, path: &Path) {
        self.paths.insert(path.to_owned(), Place::look(path));
    }

    /// Paths that a path or pattern of the manifest means; `None` where that
    /// could not be found out. A path means itself, whether it exists or not.
    fn meant<'a>(&'a self, path: &'a str) -> Option<Vec<&'a Path>> {
        match self.patterns.get(path) {
            Some(found) => {
                let found = found.as_ref().ok()?;
                Some(found.iter().map(PathBuf::as_path).collect())
            }
            None => Some(vec![Path::new(path)]),
        }
    }
}

/// A check: what it is for people, what it wants to know, what it says.
#[derive(Debug)]
pub struct Check {
    /// Stable id.
    pub id: &'static str,
    /// What it looks at.
    pub about: &'static str,
    /// What it wants, and who says so.
    pub limit: &'static str,
    /// What to do where it fails.
    pub remedy: &'static str,
    /// How bad what it finds may be. What could not be measured is a warning
    /// all the same.
    pub severities: &'static [Severity],
    /// It can't be ignored: the operation would surely fail.
    pub strict: bool,
    /// `--autofix` mends it.
    pub fixable: bool,
    reads: Reads,
    run: fn(&Input<'_>) -> Vec<Finding>,
}

impl Check {
    /// What most checks are, for the rest of a definition.
    const PLAIN: Self = Self {
        id: "",
        about: "",
        limit: "",
        remedy: "",
        severities: &[Severity::Failure],
        strict: false,
        fixable: false,
        reads: Reads::NOTHING,
        run: |_| Vec::new(),
    };

    /// [`Self::severities`] in words.
    pub fn severity(&self) -> String {
        let words: Vec<_> = self.severities.iter().map(Severity::to_string).collect();
        words.join(" or ")
    }

    /// As it should be, until [`Finding::fails`] or [`Finding::warns`].
    fn finding(
        &self,
        title: impl Into<String>,
        measured: impl Into<String>,
        wanted: impl Into<String>,
    ) -> Finding {
        Finding {
            id: self.id.into(),
            severity: Severity::Info,
            title: title.into(),
            measured: measured.into(),
            wanted: wanted.into(),
            remedy: String::new(),
            fixes: Vec::new(),
            output: String::new(),
            ignored: false,
        }
    }

    /// It could not be found out: a warning.
    fn unknown(&self, title: impl Into<String>, why: &str, wanted: impl Into<String>) -> Finding {
        let measured = match why {
            "" => "could not be measured".to_owned(),
            why => format!("could not be measured ({why})"),
        };
        self.finding(title, measured, wanted).warns(self.remedy)
    }
}

/// Names that a check wants to know about.
#[derive(Debug)]
struct Reads {
    sysctls: &'static [&'static str],
    modules: &'static [&'static str],
    kernel_options: &'static [&'static str],
    programs: &'static [&'static str],
}

impl Reads {
    const NOTHING: Self = Self {
        sysctls: &[],
        modules: &[],
        kernel_options: &[],
        programs: &[],
    };
}

/// What a check gets.
#[derive(Debug)]
struct Input<'a> {
    requirements: &'a Requirements,
    facts: &'a HostFacts,
    places: &'a Places,
    measured: &'a Measured,
}

impl Input<'_> {
    /// The other nodes that answered.
    fn peers(&self) -> impl Iterator<Item = (SocketAddr, &Seen)> {
        let peers = self.measured.peers.iter();
        peers.filter_map(|peer| Some((peer.address, peer.seen.as_ref().ok()?)))
    }

    /// The state directory, where it was looked at.
    fn state_dir(&self) -> Option<&Place> {
        self.places.paths.get(&self.requirements.state_dir)
    }
}

#[cfg(test)]
mod testing;
