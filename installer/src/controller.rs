//! The controller of a cluster: takes nodes in, signs for them, lets them go.
//!
//! In: what nodes ask, over [`rpc::controller`]; the keys of the authorities.
//! Out: a changed description of the cluster in Kubernetes, signed
//! certificates. All state is in Kubernetes, so any number of controllers may
//! run. A node gets exactly the certificates that its place in the cluster
//! asks for, whatever it says in its requests.

mod removal;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use cluster::hooks::HookError;
use cluster::{Client, StoredToken};
use event::Sink;
use host::facts::{HostFacts, Interest};
use ipnet::Ipv4Net;
use manifest::HookName;
use pki::tls::Identity;
use pki::{Authority, JoinToken, Leaf};
use rpc::controller::{Admission, Controller, Refusal, Tokens, member_name};
use rpc::images::ADMITTED;
use rpc::peer::Here;
use spec::phase::Certificate;
use spec::{Candidate, ClusterSpec, Membership, NodeSpec, Role};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::addons;
use crate::etcd::{self, Etcd};
use crate::history;
use crate::hooks::NodeHooks;
use crate::images::Kept;
use crate::install::{NODE_PREFIX, node_labels};
use crate::secrets::{self, CONTROLLER_CERTIFICATE, RPC_AUTHORITY};

pub use removal::{Removal, RemovalError};

/// How long pods may take to leave a node; their own limit is 30 s by default.
const DRAIN: Duration = Duration::from_secs(300);
/// Largest description in bytes: a ConfigMap of Kubernetes has at most 1 MiB.
const MAX_DESCRIPTION: usize = 1_000_000;
/// How often a change that somebody else was faster with is made again.
const TRIES: usize = 10;
/// How long a node that was admitted to the image may take to get it.
const ADMISSION: Duration = Duration::from_secs(12 * 60 * 60);
/// How long a node counts as one that gets the image: it asks again sooner.
const FETCHES: Duration = Duration::from_secs(10);
/// Most nodes of which others are told.
const MAX_FETCHING: usize = 1000;
/// How long after it was last heard of a node that joins is waited for, before
/// another machine may take its name and address.
const LOST: Duration = Duration::from_secs(30 * 60);
/// How long a token that has expired is kept: a clock that runs ahead by a time zone, as
/// where the hardware's shows local time, is set by then, and the token is good again.
const EXPIRED: Duration = Duration::from_secs(24 * 60 * 60);
/// How often the members of etcd are compared with the masters.
const RECONCILE: Duration = Duration::from_secs(5);
/// Most masters: three vote in etcd, and it lets two more stand by.
const MAX_MASTERS: usize = 5;
/// Most labels and taints of a node, and the longest text in them: a key of
/// Kubernetes has at most 317 bytes.
const MAX_LABELS: usize = 128;
const MAX_TEXT: usize = 320;
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Why the controller can't run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A certificate or key can't be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A certificate or key is damaged.
    #[error("prepare TLS")]
    Tls(#[from] pki::Error),
    /// The hooks are damaged.
    #[error("read the hooks in {}", path.display())]
    Hooks {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The port is taken.
    #[error("listen at {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Kubernetes can't be spoken to.
    #[error("connect to Kubernetes")]
    Kubernetes(#[from] cluster::Error),
    /// The transport failed.
    #[error(transparent)]
    Serve(#[from] rpc::Error),
}

/// Runs a controller at `listen` until `stop` comes back. `secrets` holds the
/// authorities, the controller's certificate and a kubeconfig, `hooks` is a file
/// with [`NodeHooks`].
///
/// # Errors
/// When it can't begin or go on.
pub async fn run(
    listen: SocketAddr,
    secrets: &Path,
    hooks: &Path,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let text = |name: &str| read(&secrets.join(name));
    let authority = text(&format!("{RPC_AUTHORITY}.crt"))?;
    let identity = Identity {
        // Who has the authority's fingerprint alone needs it sent along.
        certificate_pem: text(&format!("{CONTROLLER_CERTIFICATE}.crt"))? + &authority,
        key_pem: text(&format!("{CONTROLLER_CERTIFICATE}.key"))?,
    };
    let tls = pki::tls::server(&identity, &authority)?;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|source| Error::Listen {
            address: listen,
            source,
        })?;
    let site = Arc::new(Site {
        client: Client::connect(&secrets.join("admin.kubeconfig")).await?,
        etcd: Etcd::inside(),
        secrets: secrets.to_owned(),
        hooks: node_hooks(hooks)?,
        joining: tokio::sync::Mutex::default(),
        fetching: Mutex::default(),
        listed: tokio::sync::Mutex::default(),
    });
    let kept = Arc::new(Kept::inside());
    let here = Here::of(&HostFacts::collect(&Interest::default())).in_cluster();
    tokio::select! {
        served = rpc::controller::serve(listener, tls, site.clone(), here, kept, stop) => Ok(served?),
        () = site.keep_members() => Ok(()),
        () = history::keep(&site.client) => Ok(()),
    }
}

fn node_hooks(path: &Path) -> Result<NodeHooks, Error> {
    let json = std::fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&json).map_err(|source| Error::Hooks {
        path: path.to_owned(),
        source,
    })
}

pub(crate) fn read(path: &Path) -> Result<String, Error> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
        .map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(text)
}

/// The description of a cluster that `client` reaches.
///
/// # Errors
/// When it can't be read.
pub async fn description(client: &Client) -> Result<ClusterSpec, Refusal> {
    parse(&client.description().await.map_err(not_now)?.text)
}

fn is_other_master(other: &NodeSpec, master: &NodeSpec) -> bool {
    other.id != master.id && other.role == Role::Master && !other.leaving
}

/// Whether a master may leave; `started` are the masters whose etcd runs or has
/// run.
fn let_go(
    cluster: &ClusterSpec,
    master: &NodeSpec,
    started: &BTreeSet<String>,
) -> Result<(), Refusal> {
    let mut others = cluster
        .nodes
        .iter()
        .filter(|other| is_other_master(other, master))
        .peekable();
    if others.peek().is_none() {
        return Err(Refusal::Refused(format!(
            "{} is the cluster's only master; `gravity leave --force` there ends the cluster",
            master.hostname
        )));
    }
    // One that was cut off goes on.
    let mut leaving = cluster.nodes.iter().filter(|other| other.leaving);
    if let (false, Some(leaving)) = (master.leaving, leaving.find(|other| other.id != master.id)) {
        return Err(is_leaving(&leaving.hostname));
    }
    // It was told of all members when it was taken in, and has no vote to inherit.
    match others.find(|other| !started.contains(&other.hostname)) {
        Some(joining) => Err(is_joining(&joining.hostname)),
        None => Ok(()),
    }
}

fn gone() -> Refusal {
    Refusal::Refused("this node is no member of the cluster any more".into())
}

fn is_joining(hostname: &str) -> Refusal {
    Refusal::NotNow(format!(
        "master {hostname} is joining just now: try again when it has, or take it out with `gravity remove {hostname}`"
    ))
}

fn is_leaving(hostname: &str) -> Refusal {
    Refusal::NotNow(format!(
        "master {hostname} is leaving just now; `gravity remove {hostname}` goes on with one that was cut off"
    ))
}

async fn is_ready(client: &Client, hostname: &str) -> Result<bool, Refusal> {
    let status = client.status().await.map_err(not_now)?;
    let mut nodes = status.nodes.iter();
    Ok(nodes.any(|node| node.name == hostname && node.ready))
}

/// Changes the description; again where somebody else was faster.
async fn change<T>(
    client: &Client,
    mut make: impl FnMut(&mut ClusterSpec) -> Result<T, Refusal>,
) -> Result<(ClusterSpec, T), Refusal> {
    for _ in 0..TRIES {
        let read = client.description().await.map_err(not_now)?;
        let mut cluster = parse(&read.text)?;
        let made = make(&mut cluster)?;
        let text = serde_json::to_string(&cluster).map_err(unreadable)?;
        has_room(&text, cluster.nodes.len())?;
        if text == read.text
            || client
                .replace_description(read, text)
                .await
                .map_err(not_now)?
        {
            return Ok((cluster, made));
        }
    }
    Err(Refusal::NotNow(
        "others change the cluster all the time; try again".into(),
    ))
}

/// Whether Kubernetes takes a description of so many nodes.
fn has_room(description: &str, nodes: usize) -> Result<(), Refusal> {
    match description.len() <= MAX_DESCRIPTION {
        true => Ok(()),
        false => Err(Refusal::Refused(format!(
            "the cluster's description has no room for {nodes} nodes: it would have {} bytes, and {MAX_DESCRIPTION} are the most",
            description.len()
        ))),
    }
}

fn parse(description: &str) -> Result<ClusterSpec, Refusal> {
    serde_json::from_str(description).map_err(unreadable)
}

fn unreadable(error: serde_json::Error) -> Refusal {
    Refusal::Refused(format!("read the cluster's description: {error}"))
}

fn not_now(error: cluster::Error) -> Refusal {
    Refusal::NotNow(with_cause(&error))
}

fn of_etcd(error: etcd::Error) -> Refusal {
    Refusal::NotNow(with_cause(&error))
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

struct Site {
    client: Client,
    etcd: Etcd,
    secrets: PathBuf,
    hooks: NodeHooks,
    /// Held while one is taken in.
    joining: tokio::sync::Mutex<()>,
    /// When each node that gets the image has last asked for others.
    fetching: Mutex<BTreeMap<IpAddr, Instant>>,
    /// Locked while Kubernetes is asked for tokens: whoever tries one, it is asked
    /// once at a time.
    listed: tokio::sync::Mutex<Option<Listed>>,
}

/// What there is when a node asks to be taken in.
struct Seen {
    /// The nodes, of those that it could be in conflict with, which Kubernetes has.
    registered: BTreeSet<String>,
    /// Masters whose etcd runs.
    voting: BTreeSet<String>,
}

/// The tokens that were good when Kubernetes was last asked.
struct Listed {
    began: Instant,
    tokens: Vec<JoinToken>,
}

impl Site {
    fn authority(&self, name: &str) -> Result<Authority, Refusal> {
        Authority::load(&self.secrets, name).map_err(|error| Refusal::Refused(error.to_string()))
    }

    /// The cluster and one node of it.
    async fn node(&self, id: Uuid) -> Result<(ClusterSpec, NodeSpec), Refusal> {
        let cluster = self.describe().await?;
        let node = cluster.node(id).cloned().ok_or_else(gone)?;
        Ok((cluster, node))
    }

    /// Looks at what the description doesn't tell.
    async fn seen(&self, cluster: &ClusterSpec, candidate: &Candidate) -> Result<Seen, Refusal> {
        let mut registered = BTreeSet::new();
        for node in cluster
            .nodes
            .iter()
            .filter(|node| is_in_the_way(node, candidate))
        {
            let name = &node.hostname;
            if self.client.has_node(name).await.map_err(not_now)? {
                registered.insert(name.clone());
            }
        }
        let voting = match role(cluster, candidate) {
            Role::Master => self.etcd.started(cluster).await.map_err(of_etcd)?,
            Role::Worker => BTreeSet::new(),
        };
        Ok(Seen { registered, voting })
    }

    async fn hook(
        &self,
        name: HookName,
        node: &NodeSpec,
        operation: Uuid,
        sink: Arc<dyn Sink>,
    ) -> Result<(), Refusal> {
        let ran = self.hooks.run(&self.client, name, node, operation, sink);
        // A hook that has failed does so again: somebody has to look first.
        ran.await.map_err(|error| match error {
            HookError::Cluster { source, .. } => not_now(source),
            other => Refusal::Refused(other.to_string()),
        })
    }

    /// Makes etcd's members and the endpoints of DNS what the description says, for
    /// ever.
    async fn keep_members(&self) {
        let mut strangers = BTreeSet::new();
        let mut served = Vec::new();
        loop {
            tokio::time::sleep(RECONCILE).await;
            let kept = async {
                let cluster = self.describe().await?;
                let masters: Vec<_> = cluster.masters().collect();
                if masters.len() > 1 {
                    let kept = self.etcd.reconcile(&cluster, &mut strangers);
                    kept.await.map_err(of_etcd)?;
                }
                if masters != served {
                    let dns = addons::dns(&cluster);
                    self.client.apply(&dns).await.map_err(not_now)?;
                    served = masters;
                }
                Ok::<_, Refusal>(())
            };
            if let Err(error) = kept.await {
                tracing::warn!(%error, "what depends on the masters stays as it is");
            }
        }
    }
}

/// Those that are good now, and the names of those that can be deleted.
fn valid(stored: &[StoredToken], now: SystemTime) -> (Vec<JoinToken>, Vec<&str>) {
    let expires = |token: &StoredToken| SystemTime::from(token.expires);
    let good = stored.iter().filter(|token| expires(token) > now);
    let tokens = good.filter_map(|token| JoinToken::parse(&token.text));
    let is_over = |token: &&StoredToken| expires(token) + EXPIRED <= now;
    let over = stored.iter().filter(is_over);
    let names = over.map(|token| token.name.as_str());
    (tokens.collect(), names.collect())
}

/// What a node is known to controllers by.
fn identity(node: Uuid, life: Duration) -> Leaf {
    Leaf::client(&member_name(node), &[], life)
}

#[async_trait::async_trait]
impl Tokens for Site {
    async fn tokens(&self) -> Result<Vec<JoinToken>, Refusal> {
        let asked = Instant::now();
        let mut listed = self.listed.lock().await;
        if let Some(listed) = &*listed
            && listed.began >= asked
        {
            return Ok(listed.tokens.clone());
        }
        let began = Instant::now();
        let stored = self.client.join_tokens().await.map_err(not_now)?;
        let (tokens, over) = valid(&stored, SystemTime::now());
        *listed = Some(Listed {
            began,
            tokens: tokens.clone(),
        });
        drop(listed);
        for name in over {
            if let Err(error) = self.client.remove_join_token(name).await {
                tracing::warn!(name, %error, "an expired token stays");
            }
        }
        Ok(tokens)
    }
}

#[async_trait::async_trait]
impl Controller for Site {
    async fn describe(&self) -> Result<ClusterSpec, Refusal> {
        description(&self.client).await
    }

    async fn fits(&self, candidate: Candidate) -> Result<(), Refusal> {
        let mut cluster = self.describe().await?;
        let seen = self.seen(&cluster, &candidate).await?;
        let (registered, voting) = (&seen.registered, &seen.voting);
        let now = SystemTime::now();
        take_in(&mut cluster, &candidate, registered, voting, now).map(drop)
    }

    async fn join(&self, candidate: Candidate, request: &str) -> Result<Membership, Refusal> {
        let seen = self.seen(&self.describe().await?, &candidate).await?;
        let now = SystemTime::now();
        let taken_in = {
            // Of many that join at one moment none is to be slower than all others.
            let _one = self.joining.lock().await;
            change(&self.client, |cluster| {
                take_in(cluster, &candidate, &seen.registered, &seen.voting, now)
            })
            .await
        };
        let (cluster, node) = taken_in?;
        tracing::info!(hostname = candidate.hostname, %node, "took a node in");
        let identity = identity(node, cluster.leaf_lifetime());
        let signed = self.authority(RPC_AUTHORITY)?.sign(request, &identity);
        let certificate = signed.map_err(|error| Refusal::Refused(error.to_string()))?;
        let role = cluster.node(node).map_or(Role::Worker, |node| node.role);
        let mut authorities = BTreeMap::new();
        for name in secrets::authorities(role) {
            let pem = read(&self.secrets.join(format!("{name}.crt")))
                .map_err(|error| Refusal::Refused(error.to_string()))?;
            authorities.insert((*name).to_owned(), pem);
        }
        Ok(Membership {
            cluster,
            node,
            certificate,
            authorities,
        })
    }

    async fn admit(&self, request: &str, address: IpAddr) -> Result<Admission, Refusal> {
        let refused = |error: &dyn std::error::Error| Refusal::Refused(with_cause(error));
        let leaf = Leaf {
            server: true,
            ip_addresses: vec![address],
            ..Leaf::client(ADMITTED, &[], ADMISSION)
        };
        let authority = self.authority(RPC_AUTHORITY)?;
        let certificate = authority.sign(request, &leaf);
        let path = self.secrets.join(format!("{RPC_AUTHORITY}.crt"));
        Ok(Admission {
            certificate: certificate.map_err(|error| refused(&error))?,
            authority: read(&path).map_err(|error| refused(&error))?,
        })
    }

    fn fetching(&self, address: IpAddr) -> Vec<IpAddr> {
        let fetching = self.fetching.lock();
        let mut fetching = fetching.unwrap_or_else(PoisonError::into_inner);
        others(&mut fetching, address, Instant::now())
    }

    async fn sign(
        &self,
        id: Uuid,
        requests: BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, Refusal> {
        let (cluster, node) = self.node(id).await?;
        let leaves = leaves(&cluster, &node);
        let mut signed = BTreeMap::new();
        for (name, request) in requests {
            let (authority, leaf) = leaves.get(&name).ok_or_else(|| {
                Refusal::Refused(format!("node {} is not to have `{name}`", node.hostname))
            })?;
            let certificate = self
                .authority(authority)?
                .sign(&request, leaf)
                .map_err(|error| Refusal::Refused(error.to_string()))?;
            signed.insert(name, certificate);
        }
        Ok(signed)
    }

    async fn keys(&self, id: Uuid) -> Result<BTreeMap<String, String>, Refusal> {
        let (cluster, node) = self.node(id).await?;
        if node.role != Role::Master {
            return Err(Refusal::Refused(format!(
                "node {} is no master",
                node.hostname
            )));
        }
        // It needs them before its etcd runs, and never again.
        let started = self.etcd.started(&cluster).await.map_err(of_etcd)?;
        if started.contains(&node.hostname) {
            return Err(Refusal::Refused(format!(
                "master {} has its keys",
                node.hostname
            )));
        }
        let mut keys = BTreeMap::new();
        for name in secrets::cluster_keys() {
            let text = read(&self.secrets.join(&name))
                .map_err(|error| Refusal::Refused(with_cause(&error)))?;
            keys.insert(name, text);
        }
        tracing::info!(hostname = node.hostname, "gave a master the cluster's keys");
        Ok(keys)
    }

    async fn register(
        &self,
        id: Uuid,
        operation: Uuid,
        sink: Arc<dyn Sink>,
    ) -> Result<(), Refusal> {
        let (_, node) = self.node(id).await?;
        self.hook(HookName::PreNodeAdd, &node, operation, sink.clone())
            .await?;
        // Meanwhile somebody may have removed it, and another one have its name.
        let (cluster, node) = {
            let _one = self.joining.lock().await;
            change(&self.client, |cluster| hear(cluster, id, SystemTime::now())).await?
        };
        let taints: Vec<_> = node
            .taints
            .iter()
            .map(|taint| cluster::taint(&taint.key, &taint.value, &taint.effect))
            .collect();
        self.client
            .ensure_node(
                &node.hostname,
                &node_labels(&node),
                &taints,
                &node.pod_cidrs,
            )
            .await
            .map_err(not_now)?;
        match node.role {
            Role::Master => {
                let what = format!("the join of {}", node.hostname);
                self.etcd.snapshot(&what, &*sink).await;
                self.etcd.add(&cluster, &node).await.map_err(of_etcd)
            }
            Role::Worker => Ok(()),
        }
    }

    async fn added(&self, id: Uuid, operation: Uuid, sink: Arc<dyn Sink>) -> Result<(), Refusal> {
        let (_, node) = self.node(id).await?;
        self.hook(HookName::PostNodeAdd, &node, operation, sink)
            .await?;
        // Of many that end their joins at one moment none is to be slower than all others.
        let _one = self.joining.lock().await;
        change(&self.client, |cluster| {
            has_joined(cluster, id);
            Ok(())
        })
        .await
        .map(drop)
    }

    async fn leave(&self, id: Uuid, force: bool, sink: Arc<dyn Sink>) -> Result<(), Refusal> {
        let cluster = self.describe().await?;
        match cluster.node(id) {
            Some(node) => {
                let removal = Removal {
                    client: &self.client,
                    etcd: &self.etcd,
                    hooks: &self.hooks,
                    force,
                };
                Ok(removal.run(&node.hostname, sink).await?)
            }
            // It asks again after an answer that was lost.
            None => Ok(()),
        }
    }
}

/// The others of those that get the image, once `address` counts as one.
fn others(fetching: &mut BTreeMap<IpAddr, Instant>, address: IpAddr, now: Instant) -> Vec<IpAddr> {
    fetching.retain(|_, asked| now.duration_since(*asked) < FETCHES);
    if fetching.len() < MAX_FETCHING {
        fetching.insert(address, now);
    }
    let others = fetching.keys().filter(|other| **other != address);
    others.copied().collect()
}

/// Whether there can't be both.
fn is_in_the_way(node: &NodeSpec, candidate: &Candidate) -> bool {
    node.hostname == candidate.hostname || shares_address(node, candidate)
}

fn shares_address(node: &NodeSpec, candidate: &Candidate) -> bool {
    let wanted = &candidate.advertise_addresses;
    node.advertise_addresses
        .iter()
        .any(|address| wanted.contains(address))
}

/// What the node will be: as its profile says, else one of the first masters.
fn role(cluster: &ClusterSpec, candidate: &Candidate) -> Role {
    let others = cluster
        .nodes
        .iter()
        .filter(|node| node.role == Role::Master && node.hostname != candidate.hostname);
    candidate
        .role
        .unwrap_or(match others.count() < spec::MASTERS {
            true => Role::Master,
            false => Role::Worker,
        })
}

/// Whether that is so long ago.
fn is_over(heard: i64, now: SystemTime, limit: Duration) -> bool {
    let since = seconds(now).unwrap_or_default().saturating_sub(heard);
    since.unsigned_abs() > limit.as_secs()
}

/// A node that goes on with its join, if it still is one. From here on it is not
/// lost for some time, whoever would like to have its name.
fn hear(cluster: &mut ClusterSpec, id: Uuid, now: SystemTime) -> Result<NodeSpec, Refusal> {
    let mut nodes = cluster.nodes.iter_mut();
    let node = nodes.find(|node| node.id == id).ok_or_else(gone)?;
    if node
        .taken_in
        .is_some_and(|heard| is_over(heard, now, LOST / 2))
    {
        node.taken_in = seconds(now);
    }
    Ok(node.clone())
}

/// Adds a node to the description; one of the same name that never reached
/// Kubernetes is a lost try, and replaced: by the same machine at once, by another
/// when nothing was heard of it for long. `registered` are the names, of those
/// that it could be in conflict with, which Kubernetes has; `voting` are those of
/// masters whose etcd runs.
fn take_in(
    cluster: &mut ClusterSpec,
    candidate: &Candidate,
    registered: &BTreeSet<String>,
    voting: &BTreeSet<String>,
    now: SystemTime,
) -> Result<Uuid, Refusal> {
    let hostname = &candidate.hostname;
    if candidate.image != cluster.image.digest {
        return Err(Refusal::Refused(format!(
            "the cluster was installed from another image: {} {} ({})",
            cluster.image.name, cluster.image.version, cluster.image.digest
        )));
    }
    check_candidate(cluster, candidate)?;
    if !is_dns_name(hostname) {
        return Err(Refusal::Refused(format!(
            "\"{hostname}\" can't be a node's name: use lower-case letters, digits, - and ."
        )));
    }
    let first = cluster.nodes.first().map(|node| node.id);
    let joins = |node: &NodeSpec| {
        Some(node.id) != first && !node.leaving && !registered.contains(&node.hostname)
    };
    // It may have been registered since somebody looked, but was heard of then.
    let is_lost = |node: &NodeSpec| {
        let is_same = node.hostname == *hostname
            && node.advertise_addresses == candidate.advertise_addresses
            && node.machine == candidate.machine;
        is_in_the_way(node, candidate)
            && joins(node)
            && (is_same || is_over(node.taken_in.unwrap_or_default(), now, LOST))
    };
    for node in &cluster.nodes {
        if is_lost(node) {
            continue;
        }
        if is_in_the_way(node, candidate) && joins(node) {
            let (name, address) = (&node.hostname, &node.advertise_addresses);
            return Err(Refusal::Refused(format!(
                "node {name} ({}) is joining just now and has the same name or address; give this one its own, or take that out with `gravity remove {name}` on a master",
                address
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            )));
        }
        if node.hostname == *hostname {
            return Err(Refusal::Refused(format!(
                "the cluster has a node {hostname}; rename this one, or remove that with `gravity remove {hostname}` on a master"
            )));
        }
        if shares_address(node, candidate) {
            return Err(Refusal::Refused(format!(
                "node {} of the cluster has the same address",
                node.hostname
            )));
        }
    }
    cluster.nodes.retain(|node| !is_lost(node));
    allowed(cluster, now)?;
    expands(cluster, candidate)?;
    let role = role(cluster, candidate);
    if role == Role::Master {
        let masters: Vec<_> = cluster
            .nodes
            .iter()
            .filter(|node| node.role == Role::Master)
            .map(|node| &node.hostname)
            .collect();
        if masters.len() >= MAX_MASTERS {
            return Err(Refusal::Refused(format!(
                "the cluster has {MAX_MASTERS} masters, which is the most; join with a profile of workers"
            )));
        }
        // A member of etcd is told of all others when it first starts.
        if let Some(joining) = masters.iter().find(|name| !voting.contains(**name)) {
            return Err(is_joining(joining));
        }
        if let Some(leaving) = cluster.nodes.iter().find(|node| node.leaving) {
            return Err(is_leaving(&leaving.hostname));
        }
    }
    let id = Uuid::new_v4();
    let pod_cidr = free_pod_cidr(cluster)?;
    cluster.nodes.push(NodeSpec {
        id,
        hostname: hostname.clone(),
        advertise_addresses: candidate.advertise_addresses.clone(),
        profile: candidate.profile.clone(),
        role,
        pod_cidrs: vec![pod_cidr],
        labels: candidate.labels.clone(),
        taints: candidate.taints.clone(),
        dns_listen: Vec::new(),
        state_dir: candidate.state_dir.clone(),
        leaving: false,
        machine: candidate.machine.clone(),
        taken_in: seconds(now),
    });
    Ok(id)
}

/// Whether the profile of the candidate may have one more node.
fn expands(cluster: &ClusterSpec, candidate: &Candidate) -> Result<(), Refusal> {
    let profile = &candidate.profile;
    let nodes = cluster.nodes.iter();
    let there = nodes.filter(|node| node.profile == *profile).count() as u64;
    match candidate.most {
        Some(most) if there >= u64::from(most) => Err(Refusal::Refused(format!(
            "nodes of profile {profile} can't be added after the install: its expandPolicy is fixed, the flavor has {most} of them, and the cluster {there}"
        ))),
        _ => Ok(()),
    }
}

/// The node works: from now on it is missed when it is away.
fn has_joined(cluster: &mut ClusterSpec, id: Uuid) {
    let mut nodes = cluster.nodes.iter_mut();
    if let Some(node) = nodes.find(|node| node.id == id) {
        node.taken_in = None;
    }
}

fn seconds(time: SystemTime) -> Option<i64> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

/// Whether the license allows one more node.
fn allowed(cluster: &ClusterSpec, now: SystemTime) -> Result<(), Refusal> {
    let Some(license) = &cluster.license else {
        return Ok(());
    };
    if license.is_over(now) {
        return Err(Refusal::Refused(format!(
            "the license of {} is over: the cluster takes no more nodes",
            license.holder
        )));
    }
    match license.max_nodes {
        Some(most) if cluster.nodes.len() as u64 >= u64::from(most) => {
            Err(Refusal::Refused(format!(
                "the license of {} allows {most} node(s), and the cluster has {}",
                license.holder,
                cluster.nodes.len()
            )))
        }
        _ => Ok(()),
    }
}

/// What the candidate says of itself becomes part of certificates and of a
/// description of limited size.
fn check_candidate(cluster: &ClusterSpec, candidate: &Candidate) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(Refusal::Refused(reason));
    let [address] = candidate.advertise_addresses[..] else {
        return refuse("a node has exactly one address".into());
    };
    let networks = cluster.pod_cidrs.iter().chain(&cluster.service_cidrs);
    let inside = networks
        .filter_map(|cidr| cidr.parse::<ipnet::IpNet>().ok())
        .any(|network| network.contains(&address));
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if inside
        || local
        || address.is_loopback()
        || address.is_multicast()
        || address.is_unspecified()
    {
        return refuse(format!("{address} can't be a node's address"));
    }
    let name = candidate.hostname.as_str();
    let reserved = ["localhost", "kubernetes", spec::LEADER_NAME];
    if reserved.contains(&name) || name.starts_with("kubernetes.") {
        return refuse(format!("\"{name}\" is a name of the cluster's own"));
    }
    let entries = candidate.labels.len() + candidate.taints.len();
    let texts = candidate
        .labels
        .iter()
        .flat_map(|(key, value)| [key, value]);
    let taints = candidate.taints.iter();
    let taints = taints.flat_map(|taint| [&taint.key, &taint.value, &taint.effect]);
    let longest = texts
        .chain(taints)
        .chain([&candidate.profile])
        .map(String::len)
        .max();
    if entries > MAX_LABELS || longest.is_some_and(|longest| longest > MAX_TEXT) {
        return refuse("the profile has too many or too long labels and taints".into());
    }
    Ok(())
}

/// RFC 1123, as Kubernetes has it for names of nodes.
fn is_dns_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label = |label: &str| {
        !label.is_empty()
            && label.chars().all(good)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn free_pod_cidr(cluster: &ClusterSpec) -> Result<String, Refusal> {
    let text = cluster.pod_cidrs.first().map_or("", String::as_str);
    let full = || {
        Refusal::Refused(format!(
            "the pod network {text} has no part left for another node"
        ))
    };
    let network: Ipv4Net = text.parse().map_err(|_| full())?;
    let taken: BTreeSet<_> = cluster
        .nodes
        .iter()
        .flat_map(|node| &node.pod_cidrs)
        .collect();
    let parts = network.subnets(NODE_PREFIX).map_err(|_| full())?;
    parts
        .map(|part| part.to_string())
        .find(|part| !taken.contains(part))
        .ok_or_else(full)
}

/// Every certificate that a node has, by the name it asks for it: its authority
/// and what it says.
fn leaves(cluster: &ClusterSpec, node: &NodeSpec) -> BTreeMap<String, (String, Leaf)> {
    let requested = secrets::requested(cluster, node);
    let life = cluster.leaf_lifetime();
    let certificates = requested.certificates.iter().map(|certificate| {
        let Certificate {
            name, authority, ..
        } = certificate.clone();
        (name, (authority, Leaf::planned(certificate, life)))
    });
    let kubeconfigs = requested.kubeconfigs.iter().map(|kubeconfig| {
        let name = kubeconfig.certificate();
        let (user, groups) = (&kubeconfig.common_name, &kubeconfig.organizations);
        let leaf = Leaf::client(user, groups, life);
        (name, ("kubernetes-ca".into(), leaf))
    });
    let identity = (
        spec::NODE_IDENTITY.to_owned(),
        (RPC_AUTHORITY.to_owned(), identity(node.id, life)),
    );
    certificates.chain(kubeconfigs).chain([identity]).collect()
}

#[cfg(test)]
mod tests;
