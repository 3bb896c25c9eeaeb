//! The manifest as types.
//!
//! Values are in range and names refer to something: only [`crate::parse`]
//! makes a [`Manifest`]. Serialised, it has the fields of the YAML.

use std::collections::BTreeMap;
use std::str::FromStr;

use semver::Version;
use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use crate::decode::{Parsed, Source};
use crate::{Bytes, HookName, Mode, PortRange, Rate, ValueError};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Words of which a field takes one.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            /// The word in the manifest.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl Parsed for $name {
            fn rules() -> Vec<(&'static str, Json)> {
                vec![("type", json!("string")), ("enum", json!([$($text),*]))]
            }
        }

        impl FromStr for $name {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(ValueError::new(
                        format!("\"{text}\" is not {}", $what),
                        format!("use one of {}", [$($text),*].join(", ")),
                    )),
                }
            }
        }
    };
}

/// An Image Manifest.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// `cluster.gravitational.io/v2`.
    pub api_version: String,
    /// What the image is.
    pub kind: Kind,
    /// Name and version.
    pub metadata: Metadata,
    /// Base image to use; the newest where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_image: Option<BaseImage>,
    /// HTML that is shown at install and upgrade.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release_notes: Option<String>,
    /// Logo of the installer: a URI, or a data URL once resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logo: Option<String>,
    /// Services that are shown to the user.
    #[serde(skip_serializing_if = "is_default")]
    pub endpoints: Vec<Endpoint>,
    /// Overrides by provider.
    #[serde(skip_serializing_if = "is_default")]
    pub providers: Providers,
    /// What the installer asks and shows.
    #[serde(skip_serializing_if = "is_default")]
    pub installer: Installer,
    /// Kinds of nodes.
    #[serde(skip_serializing_if = "is_default")]
    pub node_profiles: Vec<NodeProfile>,
    /// Whether a license is needed.
    #[serde(skip_serializing_if = "is_default")]
    pub license: License,
    /// Options of the services of a node.
    #[serde(skip_serializing_if = "is_default")]
    pub system_options: SystemOptions,
    /// System extensions that are not wanted.
    #[serde(skip_serializing_if = "is_default")]
    pub extensions: Extensions,
    /// Web options, a JSON object as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub web_config: Option<String>,
    /// Other packages that come with the image.
    #[serde(skip_serializing_if = "is_default")]
    pub dependencies: Dependencies,
    /// Ingress controllers.
    #[serde(skip_serializing_if = "is_default")]
    pub ingress: Ingress,
    /// Providers of persistent volumes.
    #[serde(skip_serializing_if = "is_default")]
    pub storage: Storage,
    /// Kubernetes Jobs, as YAML text or a URI, by the event they run at.
    #[serde(skip_serializing_if = "is_default", serialize_with = "jobs")]
    pub hooks: BTreeMap<HookName, String>,
    #[serde(skip)]
    pub(crate) source: Source,
}

impl Manifest {
    /// Text of the license agreement that the user must accept.
    pub fn eula(&self) -> Option<&str> {
        self.installer
            .eula
            .as_ref()
            .map(|eula| eula.source.as_str())
    }

    /// The endpoint at which the user goes on after an install.
    pub fn setup_endpoint(&self) -> Option<&Endpoint> {
        let name = self.installer.setup_endpoints.first()?;
        self.endpoints
            .iter()
            .find(|endpoint| endpoint.name == *name)
    }

    /// The flavors that the user may choose from; empty where there are none.
    pub fn flavors(&self) -> &[Flavor] {
        self.installer
            .flavors
            .as_ref()
            .map(|flavors| &flavors.items[..])
            .unwrap_or_default()
    }

    /// Name of the flavor to take unless another is chosen.
    pub fn default_flavor(&self) -> Option<&str> {
        self.installer.flavors.as_ref()?.default.as_deref()
    }

    /// The question to which flavors are the answers.
    pub fn flavor_prompt(&self) -> Option<&str> {
        self.installer.flavors.as_ref()?.prompt.as_deref()
    }

    /// The profile of that name.
    pub fn profile(&self, name: &str) -> Option<&NodeProfile> {
        self.node_profiles
            .iter()
            .find(|profile| profile.name == name)
    }

    /// The manifest as JSON, which [`crate::parse`] reads back as the same.
    ///
    /// # Errors
    /// Only when memory is exhausted: all keys are text.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let json = serde_json::to_string_pretty(self)?;
        // YAML doesn't allow these raw, JSON does.
        let escape = |c: char| {
            matches!(
                c,
                '\u{7f}'
                    ..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
            )
        };
        if !json.contains(escape) {
            return Ok(json);
        }
        let mut text = String::with_capacity(json.len());
        for c in json.chars() {
            match escape(c) {
                true => text.push_str(&format!("\\u{:04x}", u32::from(c))),
                false => text.push(c),
            }
        }
        Ok(text)
    }
}

fn jobs<S: Serializer>(
    hooks: &BTreeMap<HookName, String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(
        hooks
            .iter()
            .map(|(hook, job)| (hook, BTreeMap::from([("job", job)]))),
    )
}

words! {
    /// What an image is.
    Kind: "a kind of manifest" {
        /// A cluster.
        Cluster = "Cluster",
        /// The former name of a cluster.
        Bundle = "Bundle",
    }
}

/// Name and version of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Letters, digits, `-` and `_`.
    pub name: String,
    /// Semantic version.
    pub resource_version: Version,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Free labels.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: BTreeMap<String, String>,
    /// Namespace of the application's own resources; `default` where there is
    /// none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Always `gravitational.io` where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// When the image was made, as RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_timestamp: Option<String>,
    /// Not shown in lists of images.
    #[serde(skip_serializing_if = "is_default")]
    pub hidden: bool,
}

/// A base image: `gravity`, `gravity:latest`, `gravity:stable` or
/// `gravity:6.0.0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseImage {
    /// Always `gravity`.
    pub name: String,
    /// Its version; the newest where there is none.
    pub version: Option<Version>,
    /// Whether the newest must not be a pre-release.
    pub stable: bool,
}

impl FromStr for BaseImage {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = |what: &str| {
            let message = format!("\"{text}\" {what}");
            ValueError::new(
                message,
                "write \"gravity:VERSION\", such as \"gravity:6.0.0\", \"gravity:latest\" or \"gravity:stable\"; `tele ls --all` lists them",
            )
        };
        let local = text.strip_prefix("gravitational.io/").unwrap_or(text);
        let (name, version) = local.split_once(':').unwrap_or((local, "latest"));
        if name != "gravity" {
            return Err(error("is not a base image"));
        }
        let exact = match version {
            "latest" | "stable" => None,
            version => Some(Version::parse(version).map_err(|_| error("has no semantic version"))?),
        };
        Ok(Self {
            name: name.into(),
            version: exact,
            stable: version == "stable",
        })
    }
}

impl Parsed for BaseImage {
    fn rules() -> Vec<(&'static str, Json)> {
        let pattern =
            r"^(gravitational\.io/)?gravity(:(latest|stable|[0-9]+\.[0-9]+\.[0-9]+([-+].*)?))?$";
        vec![
            ("type", json!("string")),
            ("pattern", json!(pattern)),
            ("examples", json!(["gravity:6.0.0"])),
        ]
    }
}

impl std::fmt::Display for BaseImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}:{version}", self.name),
            None if self.stable => write!(f, "{}:stable", self.name),
            None => write!(f, "{}:latest", self.name),
        }
    }
}

impl Serialize for BaseImage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A Kubernetes service that is shown to the user.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Name for people.
    pub name: String,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Labels by which the service is found.
    #[serde(skip_serializing_if = "is_default")]
    pub selector: BTreeMap<String, String>,
    /// Name of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// Namespace of the service; any where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Such as `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Port of the service; its first where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Not shown.
    #[serde(skip_serializing_if = "is_default")]
    pub hidden: bool,
}

/// Overrides by provider.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Providers {
    /// Provider to take unless another is chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// Amazon Web Services.
    #[serde(skip_serializing_if = "is_default")]
    pub aws: Aws,
    /// Microsoft Azure.
    #[serde(skip_serializing_if = "is_default")]
    pub azure: Provider,
    /// Any other machines.
    #[serde(skip_serializing_if = "is_default")]
    pub generic: Generic,
}

/// Amazon Web Services.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Aws {
    /// Network of the provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<ProviderNetwork>,
    /// Regions that may be used.
    #[serde(skip_serializing_if = "is_default")]
    pub regions: Vec<String>,
    /// Rights of the machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iam_policy: Option<IamPolicy>,
    /// Scripts that provision machines.
    #[serde(skip_serializing_if = "is_default")]
    pub terraform: Terraform,
    /// Whether it must not be used.
    #[serde(skip_serializing_if = "is_default")]
    pub disabled: bool,
}

/// Rights of machines at Amazon Web Services.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct IamPolicy {
    /// Version of the policy language, such as `2012-10-17`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Actions that are allowed.
    #[serde(skip_serializing_if = "is_default")]
    pub actions: Vec<String>,
}

/// Type of network, as text: providers have their own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ProviderNetwork {
    /// Such as `aws-vpc`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// Scripts that provision machines.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Terraform {
    /// Text or URI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// Text or URI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_script: Option<String>,
}

/// A provider without options.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Provider {
    /// Whether it must not be used.
    #[serde(skip_serializing_if = "is_default")]
    pub disabled: bool,
}

/// Machines of no particular provider.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Generic {
    /// The network between pods.
    #[serde(skip_serializing_if = "is_default")]
    pub network: Network,
    /// Whether it must not be used.
    #[serde(skip_serializing_if = "is_default")]
    pub disabled: bool,
}

/// The network between pods.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Network {
    /// How packets travel between nodes; `vxlan` where there is none.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<NetworkType>,
}

words! {
    /// How packets of pods travel between nodes.
    NetworkType: "a type of network" {
        /// VXLAN by flannel.
        Vxlan = "vxlan",
        /// Encrypted by WireGuard.
        Wireguard = "wireguard",
        /// Routed by Calico.
        Calico = "calico",
    }
}

/// What the installer asks and shows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Installer {
    /// The license agreement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eula: Option<Eula>,
    /// Sizes of the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flavors: Option<Flavors>,
    /// Endpoints of further pages of the installer, by name; at most one.
    #[serde(skip_serializing_if = "is_default")]
    pub setup_endpoints: Vec<String>,
}

/// The license agreement.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Eula {
    /// Text or URI.
    pub source: String,
}

/// Sizes of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Flavors {
    /// The question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Text or URI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Name of one of the items.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// The sizes, at least one.
    pub items: Vec<Flavor>,
}

/// One size.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Flavor {
    /// Unique name.
    pub name: String,
    /// Label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// How many nodes of which profile at least.
    pub nodes: Vec<FlavorNode>,
}

/// Nodes of one profile in a flavor.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct FlavorNode {
    /// Name of a profile of the manifest.
    pub profile: String,
    /// Least number of such nodes.
    pub count: u32,
}

/// A kind of node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeProfile {
    /// Unique name.
    pub name: String,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Kubernetes labels of the nodes.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: BTreeMap<String, String>,
    /// Kubernetes taints of the nodes.
    #[serde(skip_serializing_if = "is_default")]
    pub taints: Vec<Taint>,
    /// Whether the nodes are masters; decided at install where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_role: Option<ServiceRole>,
    /// Whether nodes may be added later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expand_policy: Option<ExpandPolicy>,
    /// Machines by provider.
    #[serde(skip_serializing_if = "is_default")]
    pub providers: ProfileProviders,
    /// What a machine must have.
    #[serde(skip_serializing_if = "is_default")]
    pub requirements: Requirements,
    /// Options of the services of these nodes, in place of the cluster's.
    #[serde(skip_serializing_if = "is_default")]
    pub system_options: SystemOptions,
}

impl NodeProfile {
    /// Whether its nodes are masters, where the profile says so: by
    /// `serviceRole`, else by the labels that manifests used before.
    pub fn role(&self) -> Option<ServiceRole> {
        let label = |key: &str| self.labels.get(key).map(String::as_str);
        let old = match label("gravitational.io/k8s-role") {
            Some("master") => Some(ServiceRole::Master),
            Some("node") => Some(ServiceRole::Node),
            _ if label("node-role.kubernetes.io/node") == Some("true") => Some(ServiceRole::Node),
            _ if label("node-role.kubernetes.io/master") == Some("true") => {
                Some(ServiceRole::Master)
            }
            _ => None,
        };
        self.service_role.or(old)
    }
}

/// Machines of a profile, by provider.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ProfileProviders {
    /// Amazon Web Services.
    #[serde(skip_serializing_if = "is_default")]
    pub aws: ProfileAws,
}

/// Machines of a profile at Amazon Web Services.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileAws {
    /// Types of machine that may be used.
    #[serde(skip_serializing_if = "is_default")]
    pub instance_types: Vec<String>,
}

/// A Kubernetes taint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value.
    #[serde(skip_serializing_if = "is_default")]
    pub value: String,
    /// What it does.
    pub effect: TaintEffect,
}

words! {
    /// What a taint does to pods that don't tolerate it.
    TaintEffect: "the effect of a taint" {
        /// They are not scheduled.
        NoSchedule = "NoSchedule",
        /// They are scheduled elsewhere if that is possible.
        PreferNoSchedule = "PreferNoSchedule",
        /// They are evicted too.
        NoExecute = "NoExecute",
    }
}

words! {
    /// What Kubernetes services a node runs.
    ServiceRole: "a role" {
        /// Control plane and workloads.
        Master = "master",
        /// Workloads.
        Node = "node",
    }
}

words! {
    /// Whether nodes may be added later.
    ExpandPolicy: "a policy of expansion" {
        /// They may not.
        Fixed = "fixed",
        /// Only on machines of the same type.
        FixedInstance = "fixed-instance",
    }
}

/// What a machine must have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Requirements {
    /// Processors.
    #[serde(skip_serializing_if = "is_default")]
    pub cpu: Cpu,
    /// Memory.
    #[serde(skip_serializing_if = "is_default")]
    pub ram: Ram,
    /// Distributions, any of which will do; all where empty.
    #[serde(skip_serializing_if = "is_default")]
    pub os: Vec<Os>,
    /// Scripts that must succeed.
    #[serde(skip_serializing_if = "is_default")]
    pub custom_checks: Vec<CustomCheck>,
    /// Directories.
    #[serde(skip_serializing_if = "is_default")]
    pub volumes: Vec<Volume>,
    /// Devices that containers get.
    #[serde(skip_serializing_if = "is_default")]
    pub devices: Vec<Device>,
    /// Ports and speed.
    #[serde(skip_serializing_if = "is_default")]
    pub network: Ports,
}

/// Processors.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Cpu {
    /// At least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// At most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

/// Memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Ram {
    /// At least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<Bytes>,
    /// At most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Bytes>,
}

/// A distribution.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Os {
    /// `ID` of /etc/os-release.
    pub name: String,
    /// Versions, compared by component: `7` is also 7.9. All where empty.
    #[serde(skip_serializing_if = "is_default")]
    pub versions: Vec<String>,
}

/// A script that must succeed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct CustomCheck {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Text or URI.
    pub script: String,
}

/// A directory or file of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Absolute path on the host; may be a shell pattern.
    pub path: String,
    /// Name by which `--mount` overrides the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Absolute path in the planet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_path: Option<String>,
    /// Free space at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Bytes>,
    /// Types of filesystem, any of which will do; all where empty.
    #[serde(skip_serializing_if = "is_default")]
    pub filesystems: Vec<String>,
    /// Speed at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_transfer_rate: Option<Rate>,
    /// Make the directory where there is none. True unless said otherwise or
    /// `skip_if_missing`.
    pub create_if_missing: bool,
    /// Leave it out where there is none.
    #[serde(skip_serializing_if = "is_default")]
    pub skip_if_missing: bool,
    /// Owner; the service user where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group; the service group where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Permissions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Mount what is mounted below it too.
    #[serde(skip_serializing_if = "is_default")]
    pub recursive: bool,
    /// Not shown to the user.
    #[serde(skip_serializing_if = "is_default")]
    pub hidden: bool,
    /// SELinux type of the directory; `none` leaves it as it is.
    #[serde(rename = "seLinuxLabel", skip_serializing_if = "Option::is_none")]
    pub selinux_label: Option<String>,
}

impl Volume {
    /// Whether the path is a shell pattern.
    pub fn is_pattern(&self) -> bool {
        self.path.contains(['*', '?', '['])
    }
}

/// Devices of the host that containers get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Path or shell pattern.
    pub path: String,
    /// Of `r`, `w` and `m`; `rw` where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// `0666` where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<Mode>,
    /// Owner.
    #[serde(skip_serializing_if = "is_default")]
    pub uid: u32,
    /// Group.
    #[serde(skip_serializing_if = "is_default")]
    pub gid: u32,
}

/// What the network must offer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ports {
    /// Speed between nodes at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_transfer_rate: Option<Rate>,
    /// Ports that must be free.
    #[serde(skip_serializing_if = "is_default")]
    pub ports: Vec<Port>,
}

/// Ports of one protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Transport.
    pub protocol: Protocol,
    /// The ports.
    pub ranges: Vec<PortRange>,
}

words! {
    /// A transport protocol.
    Protocol: "a protocol" {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

/// Whether a license is needed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct License {
    /// The user is asked for one.
    #[serde(skip_serializing_if = "is_default")]
    pub enabled: bool,
    /// What it looks like; `certificate` where nothing is said.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<LicenseKind>,
}

words! {
    /// What a license looks like.
    LicenseKind: "a type of license" {
        /// An X.509 certificate.
        Certificate = "certificate",
    }
}

/// Other packages that come with the image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Dependencies {
    /// Packages.
    #[serde(skip_serializing_if = "is_default")]
    pub packages: Vec<Locator>,
    /// Applications.
    #[serde(skip_serializing_if = "is_default")]
    pub apps: Vec<Locator>,
}

/// The name of a package: `repository/name:version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locator {
    /// Such as `gravitational.io`.
    pub repository: String,
    /// Name in the repository.
    pub name: String,
    /// Version.
    pub version: Version,
}

impl FromStr for Locator {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let parts = || {
            let (repository, rest) = text.split_once('/')?;
            let (name, version) = rest.split_once(':')?;
            let version = Version::parse(version).ok()?;
            let good = !repository.is_empty() && !name.is_empty() && !name.contains('/');
            good.then(|| Self {
                repository: repository.into(),
                name: name.into(),
                version,
            })
        };
        parts().ok_or_else(|| {
            ValueError::new(
                format!("\"{text}\" is not the name of a package"),
                "write REPOSITORY/NAME:VERSION, such as gravitational.io/app:1.0.0",
            )
        })
    }
}

impl Parsed for Locator {
    fn rules() -> Vec<(&'static str, Json)> {
        let pattern = r"^[^/]+/[^/:]+:[0-9]+\.[0-9]+\.[0-9]+([-+].*)?$";
        vec![("type", json!("string")), ("pattern", json!(pattern))]
    }
}

impl std::fmt::Display for Locator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}:{}", self.repository, self.name, self.version)
    }
}

impl Serialize for Locator {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Ingress controllers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Ingress {
    /// The NGINX controller.
    #[serde(skip_serializing_if = "is_default")]
    pub nginx: Enabled,
}

/// Providers of persistent volumes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Storage {
    /// OpenEBS.
    #[serde(skip_serializing_if = "is_default")]
    pub openebs: Enabled,
}

/// Something that is only there when asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Enabled {
    /// Asked for.
    #[serde(skip_serializing_if = "is_default")]
    pub enabled: bool,
}

/// Options of the services of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SystemOptions {
    /// Image of the planet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_image: Option<String>,
    /// The container runtime.
    #[serde(skip_serializing_if = "is_default")]
    pub docker: Docker,
    /// etcd.
    #[serde(skip_serializing_if = "is_default")]
    pub etcd: Etcd,
    /// The kubelet.
    #[serde(skip_serializing_if = "is_default")]
    pub kubelet: Kubelet,
    /// Whether pods may be privileged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_privileged: Option<bool>,
    /// Arguments of the planet.
    #[serde(skip_serializing_if = "is_default")]
    pub args: Vec<String>,
    /// The base image by its former name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// Packages in place of the base image's.
    #[serde(skip_serializing_if = "is_default")]
    pub dependencies: SystemDependencies,
}

/// The base image by its former name, `kubernetes`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Runtime {
    /// `kubernetes` where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Version; `0.0.0+latest`, as none, means the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// `gravitational.io` where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
}

/// Packages in place of the base image's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SystemDependencies {
    /// The planet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_package: Option<Locator>,
}

/// The container runtime.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Docker {
    /// How layers are stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_driver: Option<StorageDriver>,
    /// Space for layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Bytes>,
    /// Arguments of its daemon.
    #[serde(skip_serializing_if = "is_default")]
    pub args: Vec<String>,
}

words! {
    /// How image layers are stored.
    StorageDriver: "a storage driver" {
        /// The kernel's overlay filesystem.
        Overlay = "overlay",
        /// The same.
        Overlay2 = "overlay2",
    }
}

/// etcd.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Etcd {
    /// Arguments of its daemon.
    #[serde(skip_serializing_if = "is_default")]
    pub args: Vec<String>,
}

/// The kubelet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kubelet {
    /// Arguments of its daemon.
    #[serde(skip_serializing_if = "is_default")]
    pub args: Vec<String>,
    /// How a pod reaches itself through its service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hairpin_mode: Option<HairpinMode>,
}

words! {
    /// How a pod reaches itself through its service.
    HairpinMode: "a hairpin mode" {
        /// The bridge is promiscuous.
        PromiscuousBridge = "promiscuous-bridge",
        /// The ports of the bridge reflect.
        HairpinVeth = "hairpin-veth",
    }
}

/// System extensions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Extensions {
    /// Collected logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs: Option<Extension>,
    /// Metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitoring: Option<Extension>,
    /// Application catalog (Helm).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catalog: Option<Extension>,
    /// Encrypted packages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// Kubernetes in the Control Panel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Extension>,
    /// Configuration in the Control Panel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Extension>,
    /// Connection to a hub of clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_center: Option<Extension>,
}

/// Encrypted packages.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Encryption {
    /// The key.
    pub encryption_key: String,
    /// Certificate of the authority that licenses.
    pub ca_cert: String,
}

/// A system extension.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Extension {
    /// Not installed, not shown.
    pub disabled: bool,
}
