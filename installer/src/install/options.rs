//! What a user chooses for an install, and what is taken where nothing was chosen.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use spec::{DnsZone, ServiceSettings};

/// Addresses of pods.
pub const DEFAULT_POD_CIDR: &str = "10.244.0.0/16";
/// Addresses of services.
pub const DEFAULT_SERVICE_CIDR: &str = "10.100.0.0/16";
/// The kernel's own port for VXLAN.
pub const DEFAULT_VXLAN_PORT: u16 = 8472;
/// User and group id of the service user (page, "Service User").
pub const DEFAULT_SERVICE_ID: u32 = 1000;
/// Name of the service user where it is created.
pub const SERVICE_USER: &str = "planet";

/// What the user chose.
#[derive(Debug, Clone)]
pub struct Options {
    /// `--advertise-addr`
    pub advertise_address: Option<IpAddr>,
    /// `--cluster`
    pub cluster: Option<String>,
    /// `--flavor`
    pub flavor: Option<String>,
    /// `--role`
    pub role: Option<String>,
    /// `--pod-network-cidr`
    pub pod_cidr: String,
    /// `--service-cidr`
    pub service_cidr: String,
    /// `--vxlan-port`
    pub vxlan_port: Option<u16>,
    /// `--service-uid`
    pub service_uid: u32,
    /// `--service-gid`
    pub service_gid: Option<u32>,
    /// `--mount`: paths of volumes by their names
    pub mounts: BTreeMap<String, PathBuf>,
    /// `--dns-zone`
    pub dns_zones: Vec<DnsZone>,
    /// `--dns-listen-addr`
    pub dns_listen: Vec<IpAddr>,
    /// `--dns-port`
    pub dns_port: u16,
    /// Whether there are resources of Kubernetes in `--config`, as [`CONFIG_FILE`] of the operation
    pub config: bool,
    /// Whether there is a token of the user's own, as [`TOKEN_FILE`] of the operation
    pub token: bool,
    /// Whether there are values for hooks, whose Secret is [`VALUES_FILE`] of the
    /// operation
    pub values: bool,
    /// What the license allows that the image demands, whose Secret is
    /// [`LICENSE_FILE`] of the operation
    pub license: Option<spec::License>,
    /// What resources of Gravity of `--config` say of the services
    pub services: ServiceSettings,
    /// `--leaf-seconds`
    pub leaf_seconds: u64,
    /// `--state-dir`
    pub state_dir: PathBuf,
}

impl Options {
    /// What is taken where the user says nothing.
    pub fn of_defaults(state_dir: &std::path::Path) -> Self {
        Self {
            advertise_address: None,
            cluster: None,
            flavor: None,
            role: None,
            pod_cidr: DEFAULT_POD_CIDR.into(),
            service_cidr: DEFAULT_SERVICE_CIDR.into(),
            vxlan_port: None,
            service_uid: DEFAULT_SERVICE_ID,
            service_gid: None,
            mounts: BTreeMap::new(),
            dns_zones: Vec::new(),
            dns_listen: Vec::new(),
            dns_port: spec::DNS_PORT,
            config: false,
            token: false,
            values: false,
            license: None,
            services: ServiceSettings::default(),
            leaf_seconds: spec::care::LEAF_SECONDS,
            state_dir: state_dir.to_owned(),
        }
    }
}
