//! What the planet runs, as data.
//!
//! In: a [`PlanetConfig`] that the installer made from the cluster and node
//! spec. Out: the container and supervisor read it and nothing else. It holds
//! no secrets, only paths of files that do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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

/// One bind mount from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Path on the host.
    pub source: PathBuf,
    /// Path inside.
    pub target: PathBuf,
    /// Whether it can't be written from inside.
    #[serde(default)]
    pub read_only: bool,
    /// Whether mounts below `source` come along, and mounts made below
    /// `target` are seen by all containers (shared propagation).
    #[serde(default)]
    pub recursive: bool,
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
}

/// One program that the supervisor keeps running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Name, unique, such as `kube-apiserver`.
    pub name: String,
    /// Program and arguments. The program is an absolute path inside.
    pub command: Vec<String>,
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
    /// Directories that are made before the start, owned by the service.
    #[serde(default)]
    pub directories: Vec<PathBuf>,
    /// CPU weight (cgroup v2 `cpu.weight`, 1 to 10000, 100 is the default);
    /// on cgroup v1 it becomes `cpu.shares`.
    #[serde(default)]
    pub cpu_weight: Option<u32>,
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
