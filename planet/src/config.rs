//! What the planet runs, as data.
//!
//! In: a [`PlanetConfig`] that the installer made from the cluster and node
//! spec. Out: the container and supervisor read it and nothing else. It holds
//! no secrets, only paths of files that do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::nftables::Table;

/// Version of this schema. A base image declares which ones it fits.
pub const SCHEMA_VERSION: u32 = 1;

/// The container around Kubernetes on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanetConfig {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// Host name inside.
    pub hostname: String,
    /// Unpacked root filesystem on the host, read-only. It becomes the lower
    /// layer of the container's root.
    pub rootfs: PathBuf,
    /// Directory on the host for the writable layer, on a filesystem that can
    /// be an overlay's upper layer.
    pub overlay: PathBuf,
    /// Directories and files of the host that are seen inside, in mount order.
    pub mounts: Vec<Mount>,
    /// Devices with an owner, a mode and permissions of their own. All others
    /// are inside as they are on the host.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Files that are written into the container before the services start.
    pub files: Vec<File>,
    /// Addresses that exist on `lo` while the planet runs, in CIDR notation.
    pub link_local_addresses: Vec<String>,
    /// Port forwards that the supervisor itself serves.
    pub balancers: Vec<Balancer>,
    /// Kernel parameters, by dotted name, that the services need.
    pub sysctls: BTreeMap<String, String>,
    /// Services, in any order: `requires` orders them.
    pub services: Vec<Service>,
}

impl PlanetConfig {
    /// Checks what would otherwise fail halfway, or for ever.
    ///
    /// # Errors
    /// A text that names the first contradiction.
    pub fn check(&self) -> Result<(), String> {
        if self.version != SCHEMA_VERSION {
            return Err(format!(
                "version {} where this program knows {SCHEMA_VERSION}",
                self.version
            ));
        }
        for path in [&self.rootfs, &self.overlay] {
            let bytes = path.as_os_str().as_encoded_bytes();
            // They would need escapes in the options of an overlay.
            if !path.is_absolute() || bytes.iter().any(|byte| b",:\\".contains(byte)) {
                return Err(format!(
                    "{} must be absolute, without comma, colon and backslash",
                    path.display()
                ));
            }
        }
        for mount in &self.mounts {
            if !mount.source.is_absolute() || !mount.target.is_absolute() {
                return Err(format!(
                    "mount at {}: paths must be absolute",
                    mount.target.display()
                ));
            }
            if mount.target.parent().is_none() {
                return Err("a mount at / would hide the container".into());
            }
            if mount.pattern {
                crate::paths::check(&mount.source.to_string_lossy())?;
                crate::paths::check_target(&mount.source, &mount.target)?;
            }
        }
        for device in &self.devices {
            crate::paths::check(&device.path)?;
        }
        for address in &self.link_local_addresses {
            address.parse::<ipnet::IpNet>().map_err(|_| {
                format!("{address:?} is not an address in CIDR notation, like 169.254.20.10/32")
            })?;
        }
        self.services.iter().try_for_each(Service::check)?;
        self.check_order()
    }

    /// The addresses of `lo`, those that are well-formed.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = ipnet::IpNet> {
        self.link_local_addresses
            .iter()
            .filter_map(|address| address.parse().ok())
    }

    /// Names of services that have to be stopped before `service` is: those that require
    /// it, and the one that keeps the pods, which need names, routes and the API as long
    /// as they run.
    pub(crate) fn outlived_by(&self, service: &Service) -> Vec<String> {
        let stops_first = |other: &&Service| {
            other.requires.contains(&service.name)
                || other.keep_children && !self.is_based_on(service, &other.name)
        };
        let before = self.services.iter().filter(stops_first);
        before.map(|other| other.name.clone()).collect()
    }

    /// Whether `service` is the one called `name`, or requires it, be it by others.
    fn is_based_on(&self, service: &Service, name: &str) -> bool {
        service.name == name
            || self
                .services
                .iter()
                .filter(|other| service.requires.contains(&other.name))
                .any(|other| self.is_based_on(other, name))
    }

    /// Every required service exists and none waits for itself.
    fn check_order(&self) -> Result<(), String> {
        let mut waiting = BTreeMap::new();
        for service in &self.services {
            if waiting
                .insert(service.name.as_str(), service.requires.as_slice())
                .is_some()
            {
                return Err(format!("service {} is there twice", service.name));
            }
        }
        for service in &self.services {
            if let Some(missing) = service
                .requires
                .iter()
                .find(|name| !waiting.contains_key(name.as_str()))
            {
                return Err(format!(
                    "service {} requires {missing}, which does not exist",
                    service.name
                ));
            }
        }
        while !waiting.is_empty() {
            let before = waiting.len();
            let free: Vec<_> = waiting
                .iter()
                .filter(|(_, requires)| {
                    !requires
                        .iter()
                        .any(|name| waiting.contains_key(name.as_str()))
                })
                .map(|(name, _)| *name)
                .collect();
            waiting.retain(|name, _| !free.contains(name));
            if waiting.len() == before {
                let names: Vec<_> = waiting.into_keys().collect();
                return Err(format!(
                    "services wait for each other: {}",
                    names.join(", ")
                ));
            }
        }
        Ok(())
    }
}

/// One bind mount from the host. Mounts made below `target` inside are seen by
/// pods, never by the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Path on the host, or a shell pattern.
    pub source: PathBuf,
    /// Path inside. Where `source` is a pattern: the directory of all matches,
    /// or a path with the same patterns, which become what they matched.
    pub target: PathBuf,
    /// Whether it can't be written from inside.
    #[serde(default)]
    pub read_only: bool,
    /// Whether mounts below `source` come along, those too that the host makes
    /// later.
    #[serde(default)]
    pub recursive: bool,
    /// Whether `source` is a shell pattern: all that match it at the start are
    /// mounted, be it none.
    #[serde(default)]
    pub pattern: bool,
    /// Whether a missing `source` is left out; otherwise nothing starts.
    #[serde(default)]
    pub optional: bool,
}

impl Mount {
    /// The mounts that it stands for on this host, as it is now.
    pub(crate) fn expand(&self) -> Result<Vec<Self>, String> {
        if self.pattern {
            let one = |source: PathBuf| Self {
                target: crate::paths::target_of(&self.source, &source, &self.target),
                source,
                pattern: false,
                ..self.clone()
            };
            let found = crate::paths::matches(&self.source.to_string_lossy())?;
            return Ok(found.into_iter().map(one).collect());
        }
        // What can't be looked at is left to the mount, which says why.
        let missing = matches!(self.source.try_exists(), Ok(false));
        Ok(match self.optional && missing {
            true => Vec::new(),
            false => vec![self.clone()],
        })
    }
}

/// Devices of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path or shell pattern: all devices that match it at the start; links and
    /// directories are left out.
    pub path: String,
    /// Of `r` (read), `w` (write) and `m` (make nodes): what the container may.
    pub permissions: String,
    /// Permission bits inside.
    pub mode: u32,
    /// Owner inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
}

/// A file inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Absolute path inside.
    pub path: PathBuf,
    /// Whole content.
    pub content: String,
    /// Permission bits, such as `0o644`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A TCP listener that spreads connections over the backends that answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balancer {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where connections go.
    pub backends: Vec<SocketAddr>,
    /// File inside with a JSON list of IP addresses. Where it exists they take
    /// the place of `backends`, at the same port.
    #[serde(default)]
    pub backends_file: Option<PathBuf>,
    /// Whether backends speak TLS. One that doesn't any more is left, though its
    /// kernel still accepts connections, as long as others do.
    #[serde(default)]
    pub tls: bool,
}

/// One program that the supervisor keeps running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Name, unique, such as `kube-apiserver`.
    pub name: String,
    /// Program and arguments. The program is an absolute path inside.
    pub command: Vec<String>,
    /// Taken instead of `command` when the service is started while a file
    /// exists.
    #[serde(default)]
    pub alternative: Option<Alternative>,
    /// Environment in addition to `PATH` and `HOME`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// User id it runs as.
    pub uid: u32,
    /// Group id it runs as.
    pub gid: u32,
    /// Ambient capabilities of a service that is not root, such as
    /// `CAP_NET_BIND_SERVICE`.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Services that must be ready before this one starts.
    #[serde(default)]
    pub requires: Vec<String>,
    /// How the supervisor finds out that it is ready.
    pub readiness: Probe,
    /// Directories that are made before the start, the service's alone. One that
    /// is there keeps its mode.
    #[serde(default)]
    pub directories: Vec<PathBuf>,
    /// CPU weight (cgroup v2 `cpu.weight`, 1 to 10000, 100 is the default);
    /// on cgroup v1 it becomes `cpu.shares`.
    #[serde(default)]
    pub cpu_weight: Option<u32>,
    /// Commands that run before each start, one after the other. They must be
    /// idempotent; one that fails keeps the service from starting for now.
    #[serde(default)]
    pub pre_start: Vec<Vec<String>>,
    /// Commands that run once, each time the service has become ready, before
    /// services that require it start. They must be idempotent.
    #[serde(default)]
    pub post_start: Vec<Vec<String>>,
    /// A program that ends with success when its work is done, and is not
    /// started again then.
    #[serde(default)]
    pub oneshot: bool,
    /// How long it may take to stop before its cgroup is killed, in seconds.
    pub stop_timeout_seconds: u64,
    /// Whether processes that it started outlive its restart, as containerd's
    /// shims do, and with them the pods. They end when the planet stops.
    #[serde(default)]
    pub keep_children: bool,
    /// Packet filter tables that it makes when it starts, such as
    /// `ip kube-proxy`. When others delete one, the service is started again.
    #[serde(default)]
    pub tables: Vec<String>,
}

/// Another command of a [`Service`], of the same program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alternative {
    /// The file, inside.
    pub when: PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
}

impl Service {
    /// Program and arguments for a start now.
    pub(crate) fn command(&self) -> &[String] {
        match &self.alternative {
            Some(alternative) if alternative.when.exists() => &alternative.command,
            _ => &self.command,
        }
    }

    fn check(&self) -> Result<(), String> {
        let name = &self.name;
        // It becomes part of paths: of the log, the state, the cgroup.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            return Err(format!(
                "service name {name:?}: letters, digits, - and _ only, at most 64"
            ));
        }
        if !self
            .command
            .first()
            .is_some_and(|program| program.starts_with('/'))
        {
            return Err(format!(
                "service {name}: the program must be an absolute path"
            ));
        }
        if let Some(alternative) = &self.alternative
            && alternative.command.first() != self.command.first()
        {
            return Err(format!(
                "service {name}: the alternative must be of the same program"
            ));
        }
        let mut commands = self.pre_start.iter().chain(&self.post_start);
        if commands.any(Vec::is_empty) {
            return Err(format!(
                "service {name}: an empty command in pre_start or post_start"
            ));
        }
        if let Some(unknown) = self
            .capabilities
            .iter()
            .find(|name| crate::sys::capability(name).is_none())
        {
            return Err(format!("service {name}: unknown capability {unknown}"));
        }
        if let Some(unknown) = self
            .tables
            .iter()
            .find(|table| Table::parse(table).is_none())
        {
            return Err(format!(
                "service {name}: {unknown:?} is no packet filter table, like `ip kube-proxy`"
            ));
        }
        match &self.readiness {
            Probe::Exec { command } if command.is_empty() => {
                Err(format!("service {name}: an empty command as readiness"))
            }
            Probe::Http { url } => crate::supervisor::probe::Url::parse(url)
                .map(drop)
                .map_err(|reason| format!("service {name}: readiness {url:?}: {reason}")),
            _ => Ok(()),
        }
    }
}

/// How readiness is found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Probe {
    /// Ready once started; a oneshot service once it has ended with success.
    Started,
    /// Ready when a TCP connection is accepted.
    Tcp {
        /// Address to connect to.
        address: SocketAddr,
    },
    /// Ready when `GET` answers 200. TLS is not verified: the probe carries no
    /// secret, and who listens there is known by the service's process.
    Http {
        /// `http://` or `https://` with an IP address.
        url: String,
    },
    /// Ready when the socket exists and accepts a connection.
    Unix {
        /// Path inside.
        path: PathBuf,
    },
    /// Ready when the command ends with success.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
    },
    /// Ready when the file exists.
    File {
        /// Path inside.
        path: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(services: &[(&str, &[&str])]) -> PlanetConfig {
        let service = |(name, requires): &(&str, &[&str])| Service {
            name: (*name).to_owned(),
            command: vec!["/bin/true".into()],
            alternative: None,
            env: BTreeMap::new(),
            uid: 0,
            gid: 0,
            capabilities: Vec::new(),
            requires: requires.iter().map(|name| (*name).to_owned()).collect(),
            readiness: Probe::Started,
            directories: Vec::new(),
            cpu_weight: None,
            pre_start: Vec::new(),
            post_start: Vec::new(),
            oneshot: false,
            stop_timeout_seconds: 1,
            keep_children: false,
            tables: Vec::new(),
        };
        PlanetConfig {
            version: SCHEMA_VERSION,
            hostname: "node".into(),
            rootfs: "/rootfs".into(),
            overlay: "/overlay".into(),
            mounts: Vec::new(),
            devices: Vec::new(),
            files: Vec::new(),
            link_local_addresses: vec!["169.254.20.10/32".into()],
            balancers: Vec::new(),
            sysctls: BTreeMap::new(),
            services: services.iter().map(service).collect(),
        }
    }

    #[test]
    fn services_that_never_start_are_refused() {
        assert_eq!(config(&[("b", &["a"]), ("a", &[])]).check(), Ok(()));
        let reason = |services| config(services).check().unwrap_err();
        assert!(reason(&[("a", &["b"]), ("b", &["a"])]).contains("wait for each other: a, b"));
        assert!(reason(&[("a", &["c"])]).contains("requires c, which does not exist"));
        assert!(reason(&[("a", &[]), ("a", &[])]).contains("twice"));
        assert!(reason(&[("../a", &[])]).contains("letters"));
    }

    #[test]
    fn what_pods_need_stops_after_them() {
        let mut config = config(&[
            ("runtime", &[]),
            ("kubelet", &["runtime", "api"]),
            ("api", &["store"]),
            ("store", &[]),
            ("log", &["kubelet"]),
        ]);
        config.services[0].keep_children = true;
        let before = |index: usize| config.outlived_by(&config.services[index]);
        assert_eq!(before(0), ["kubelet"]);
        assert_eq!(before(1), ["log"]);
        assert_eq!(before(2), ["runtime", "kubelet"]);
        assert_eq!(before(3), ["runtime", "api"]);
        assert_eq!(before(4), [""; 0]);
    }

    #[test]
    fn mounts_become_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for name in ["dir-b", "dir-a"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        let mount = |source: &str, pattern, optional| {
            let mount = Mount {
                source: root.join(source),
                target: Path::new("/in").join(source),
                pattern,
                optional,
                ..Mount::default()
            };
            let targets = mount.expand().unwrap().into_iter();
            targets.map(|one| one.target).collect::<Vec<_>>()
        };
        assert_eq!(
            mount("dir-?", true, false),
            [Path::new("/in/dir-a"), Path::new("/in/dir-b")]
        );
        assert!(mount("none-?", true, false).is_empty());
        assert_eq!(mount("dir-a", false, true), [Path::new("/in/dir-a")]);
        assert!(mount("gone", false, true).is_empty());
        // Its mount fails, and says so.
        assert_eq!(mount("gone", false, false), [Path::new("/in/gone")]);
    }

    #[test]
    fn unusable_values_are_named() {
        let reason = |change: &dyn Fn(&mut PlanetConfig)| {
            let mut config = config(&[("a", &[])]);
            change(&mut config);
            config.check().unwrap_err()
        };
        assert!(reason(&|config| config.version = 2).contains("version 2"));
        assert!(reason(&|config| config.rootfs = "/a,b".into()).contains("/a,b"));
        assert!(reason(&|config| config.link_local_addresses = vec!["x".into()]).contains("CIDR"));
        let mount = |source: &str, target: &str| Mount {
            source: source.into(),
            target: target.into(),
            pattern: true,
            ..Mount::default()
        };
        assert!(reason(&|config| config.mounts = vec![mount("/a/?", "/b/*")]).contains("/b/*"));
        assert!(reason(&|config| config.mounts = vec![mount("/a/**", "/b")]).contains("/a/**"));
        assert!(reason(&|config| config.mounts = vec![mount("/a", "/")]).contains("hide"));
        assert!(
            reason(&|config| config.services[0].capabilities = vec!["CAP_X".into()])
                .contains("CAP_X")
        );
        assert!(
            reason(&|config| config.services[0].tables = vec!["kube-proxy".into()])
                .contains("no packet filter table")
        );
        let url = |config: &mut PlanetConfig| {
            config.services[0].readiness = Probe::Http {
                url: "http://name/".into(),
            };
        };
        assert!(reason(&url).contains("IP address"));
    }
}
