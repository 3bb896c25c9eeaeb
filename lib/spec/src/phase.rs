//! Payloads of phases: what an agent is told to do, complete and typed.
//!
//! In: the installer's plan. Out: an agent executes them with nothing else to
//! go by than the cluster image. Payloads hold no secrets and no shell.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{RegistryImage, ServiceUser, Taint};

/// What one leaf phase of a plan does on its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PhaseSpec {
    /// Creates the service user and the state directory's layout.
    Bootstrap(Bootstrap),
    /// Creates the volumes of the node's profile.
    Volumes(Volumes),
    /// Puts the `gravity` program and its links on the node.
    Program(Program),
    /// Unpacks the planet's root filesystem.
    Rootfs(Rootfs),
    /// Copies container images into the node's blob store and declares them to
    /// the node's registry.
    Images(Images),
    /// Unpacks the cluster resources for hooks.
    Resources(Resources),
    /// Keeps what nodes that join get of the cluster image.
    Keep(Keep),
    /// Makes certificates, keys and kubeconfigs.
    Secrets(Secrets),
    /// Makes keys and has the cluster's controller sign their certificates.
    JoinSecrets(JoinSecrets),
    /// Has the cluster's controller make the Kubernetes node object, and a
    /// master a member of etcd.
    Register(Joining),
    /// Tells the cluster's controller that the node works.
    Added(Joining),
    /// Starts the planet and waits for some of its services.
    Planet(Planet),
    /// Makes the Kubernetes node object as planned.
    Node(Node),
    /// Applies Kubernetes objects.
    Apply(Apply),
    /// Applies what `--config` names.
    Config(Config),
    /// Waits until services and the node are ready.
    Health(Health),
    /// Waits until so many nodes have joined and are ready.
    Nodes(Nodes),
    /// Runs a hook as a Job.
    Hook(Hook),
    /// Stores what is known of the cluster on the node.
    Complete(Complete),
    /// The same on a node that joined.
    CompleteJoin(CompleteJoin),
    /// Stops etcd and makes a snapshot of all that its data hold.
    EtcdCollect(EtcdSnapshot),
    /// Makes data of etcd from a snapshot, beside those that it has.
    EtcdRestore(EtcdRestore),
    /// Stops etcd and what uses it, and exchanges its data with those.
    EtcdReplace(EtcdReplace),
    /// Starts etcd and what uses it, and waits until the node is ready.
    EtcdStart(EtcdStart),
    /// Takes all masters but one, which are lost, out of the cluster.
    ForgetMasters(ForgetMasters),
    /// Removes the data that etcd had before.
    EtcdClean(EtcdSnapshot),
}

impl PhaseSpec {
    /// Whether it starts what ends with the machine: an operation that goes on
    /// after a boot asks for it again, also where it is complete.
    pub fn ends_with_the_machine(&self) -> bool {
        matches!(self, Self::Planet(_))
    }
}

/// See [`PhaseSpec::Bootstrap`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// The user to find or create.
    pub user: ServiceUser,
}

/// See [`PhaseSpec::Volumes`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volumes {
    /// Volumes of the profile.
    pub volumes: Vec<Volume>,
    /// Who owns directories that are made and for which no owner is given.
    pub user: ServiceUser,
}

/// A directory or file of the host that the application asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Path on the host, or a shell pattern.
    pub path: PathBuf,
    /// Whether `path` is a shell pattern. Nothing is made for one.
    pub pattern: bool,
    /// Path inside the planet, where it is mounted.
    pub target: Option<PathBuf>,
    /// Owner. Where none is given, what exists keeps its own.
    pub uid: Option<u32>,
    /// Group. Where none is given, what exists keeps its own.
    pub gid: Option<u32>,
    /// Permission bits. Where none are given, what exists keeps its own and
    /// what is made gets 0755.
    pub mode: Option<u32>,
    /// Whether a missing directory is made.
    pub create: bool,
    /// Whether a missing one is left out.
    pub skip_if_missing: bool,
    /// Whether what is mounted below comes along.
    pub recursive: bool,
}

/// See [`PhaseSpec::Program`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The cluster image file on the node.
    pub image: PathBuf,
    /// Links made in `/usr/local/bin`: names of commands.
    pub links: Vec<String>,
}

/// See [`PhaseSpec::Rootfs`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// The cluster image file on the node.
    pub image: PathBuf,
    /// Its layers, lowest first.
    pub layers: Vec<Layer>,
    /// Directory that is made of them.
    pub target: PathBuf,
}

/// A layer of a root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Digest of the blob.
    pub digest: String,
    /// OCI media type, which tells how it is compressed.
    pub media_type: String,
}

/// See [`PhaseSpec::Images`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Images {
    /// The cluster image file on the node.
    pub image: PathBuf,
    /// What the registry serves.
    pub images: Vec<RegistryImage>,
}

/// See [`PhaseSpec::Resources`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// The cluster image file on the node.
    pub image: PathBuf,
    /// Digest of the tar of resources.
    pub digest: String,
    /// Id that `runAsUser: -1` becomes.
    pub service_uid: u32,
    /// Id that `runAsGroup: -1` becomes.
    pub service_gid: u32,
}

/// See [`PhaseSpec::Keep`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// The cluster image file on the node.
    pub image: PathBuf,
}

/// See [`PhaseSpec::Secrets`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// Who reads the services' secrets.
    pub user: ServiceUser,
    /// Certificate authorities by name, with their common names.
    pub authorities: BTreeMap<String, String>,
    /// Certificates to issue.
    pub certificates: Vec<Certificate>,
    /// Kubeconfigs to write.
    pub kubeconfigs: Vec<Kubeconfig>,
    /// How long certificates live, in seconds.
    #[serde(default = "crate::care::leaf_seconds")]
    pub leaf_seconds: u64,
}

/// See [`PhaseSpec::JoinSecrets`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinSecrets {
    /// Who reads the services' secrets.
    pub user: ServiceUser,
    /// Where the controllers listen.
    pub controllers: Vec<SocketAddr>,
    /// Certificates of the authorities by name, PEM.
    pub authorities: BTreeMap<String, String>,
    /// Certificates to ask for.
    pub certificates: Vec<Certificate>,
    /// Kubeconfigs to write, with certificates to ask for.
    pub kubeconfigs: Vec<Kubeconfig>,
    /// Files with keys of the cluster's own to fetch; masters have them.
    #[serde(default)]
    pub cluster_keys: Vec<String>,
}

/// See [`PhaseSpec::Register`] and [`PhaseSpec::Added`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    /// Where the controllers listen.
    pub controllers: Vec<SocketAddr>,
    /// Identity of the operation.
    pub operation: String,
}

/// See [`PhaseSpec::EtcdCollect`] and [`PhaseSpec::EtcdClean`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdSnapshot {
    /// The operation, whose directory has the snapshot as
    /// [`EtcdRestore::SNAPSHOT`].
    pub operation: String,
}

/// See [`PhaseSpec::EtcdRestore`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdRestore {
    /// The operation, whose directory holds the snapshot.
    pub operation: String,
    /// Who runs etcd.
    pub user: ServiceUser,
    /// Name of the member.
    pub member: String,
    /// URL at which other members reach it.
    pub peer_url: String,
    /// Token of the etcd cluster.
    pub token: String,
}

impl EtcdRestore {
    /// Name of the snapshot in the operation's directory.
    pub const SNAPSHOT: &str = "snapshot.db";
}

/// See [`PhaseSpec::EtcdReplace`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdReplace {
    /// Whether etcd had no quorum: taken back, nothing works as before, and
    /// nobody waits for it.
    #[serde(default)]
    pub without_quorum: bool,
}

/// See [`PhaseSpec::EtcdStart`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdStart {
    /// Name of the node in Kubernetes.
    pub node: String,
}

/// See [`PhaseSpec::ForgetMasters`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetMasters {
    /// Name of the master that stays.
    pub node: String,
    /// Runs for each master that is gone; one that fails is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// File name without `.crt` and `.key`.
    pub name: String,
    /// Name of the authority that signs it.
    pub authority: String,
    /// Common name: the user in Kubernetes.
    pub common_name: String,
    /// Organizations: the groups in Kubernetes.
    pub organizations: Vec<String>,
    /// DNS names it is valid for.
    pub dns_names: Vec<String>,
    /// Addresses it is valid for.
    pub ip_addresses: Vec<IpAddr>,
    /// Whether it identifies a server.
    pub server: bool,
    /// Whether it identifies a client.
    pub client: bool,
    /// Whether root alone may read the key; otherwise the service user.
    pub root_only: bool,
}

/// A kubeconfig that carries its client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubeconfig {
    /// File name without `.kubeconfig`.
    pub name: String,
    /// User in Kubernetes.
    pub common_name: String,
    /// Groups in Kubernetes.
    pub organizations: Vec<String>,
    /// URL of the API.
    pub server: String,
    /// Whether root alone may read it; otherwise the service user.
    pub root_only: bool,
}

impl Kubeconfig {
    /// By which name its client certificate is asked for.
    pub fn certificate(&self) -> String {
        format!("{}.kubeconfig", self.name)
    }
}

/// See [`PhaseSpec::Planet`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planet {
    /// A `planet::config::PlanetConfig`.
    pub config: serde_json::Value,
    /// Services that are waited for.
    pub wait_for: Vec<String>,
    /// On a master that joined: where the controllers listen that take it out of
    /// the cluster before its part of the cluster's data is undone.
    #[serde(default)]
    pub member_of: Vec<SocketAddr>,
}

/// See [`PhaseSpec::Node`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Name in Kubernetes.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    #[serde(default)]
    pub taints: Vec<Taint>,
    /// Its part of the pod network.
    pub pod_cidrs: Vec<String>,
}

/// See [`PhaseSpec::Apply`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apply {
    /// Kubernetes objects.
    pub objects: Vec<serde_json::Value>,
}

/// See [`PhaseSpec::Config`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Identity of the operation.
    pub operation: String,
    /// Name of a file in the operation's directory: YAML documents, which may
    /// hold secrets.
    pub file: String,
}

/// See [`PhaseSpec::Health`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Name of the node in Kubernetes.
    pub node: String,
    /// Name of the kubeconfig with which the API is asked.
    #[serde(default = "admin")]
    pub kubeconfig: String,
    /// Services that are waited for; all there are when empty.
    #[serde(default)]
    pub services: Vec<String>,
}

fn admin() -> String {
    "admin".into()
}

/// See [`PhaseSpec::Nodes`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nodes {
    /// How many of each profile, the first node among them.
    pub wanted: BTreeMap<String, u32>,
}

impl Nodes {
    /// How many of each profile are missing, where `there` are the profiles of
    /// those that have joined.
    pub fn missing<'a>(&self, there: impl Iterator<Item = &'a str> + Clone) -> BTreeMap<&str, u32> {
        let missing = self.wanted.iter().map(|(profile, wanted)| {
            let there = there.clone().filter(|one| one == profile).count();
            let there = u32::try_from(there).unwrap_or(u32::MAX);
            (profile.as_str(), wanted.saturating_sub(there))
        });
        missing.filter(|(_, missing)| *missing > 0).collect()
    }
}

/// See [`PhaseSpec::Hook`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Name of the hook, such as `postInstall`.
    pub hook: String,
    /// Identity of the operation that runs it.
    pub operation: String,
    /// The Job, YAML.
    pub job: String,
    /// Environment of every container.
    pub env: BTreeMap<String, String>,
    /// Directory in the planet that the resources are in.
    pub resources: PathBuf,
    /// Id that `runAsUser: -1` becomes.
    pub service_uid: u32,
    /// Node that its pods keep away from, as it is about to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avoid: Option<String>,
}

impl Hook {
    /// The same hook, for a node that comes or goes.
    #[must_use]
    pub fn about(mut self, node: &crate::NodeSpec) -> Self {
        let address = node.address();
        let address = address
            .map(|address| address.to_string())
            .unwrap_or_default();
        let name = node.hostname.clone();
        self.env.insert("GRAVITY_NODE_NAME".into(), name);
        self.env.insert("GRAVITY_NODE_ADDRESS".into(), address);
        self
    }
}

/// See [`PhaseSpec::Complete`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {
    /// Identity of the operation that ends.
    pub operation: String,
    /// What is known of the cluster.
    pub cluster: crate::ClusterSpec,
    /// The resolved manifest, YAML or JSON.
    pub manifest: String,
}

/// See [`PhaseSpec::CompleteJoin`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompleteJoin {
    /// What is known of the cluster.
    pub cluster: crate::ClusterSpec,
    /// The resolved manifest, YAML or JSON.
    pub manifest: String,
}
