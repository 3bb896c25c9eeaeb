//! The controller of a cluster: takes nodes in, signs for them, lets them go.
//!
//! In: what nodes ask, over [`rpc::controller`]; the keys of the authorities.
//! Out: a changed description of the cluster in Kubernetes, signed
//! certificates. All state is in Kubernetes, so any number of controllers may
//! run. A node gets exactly the certificates that its place in the cluster
//! asks for, whatever it says in its requests.

mod description;
mod removal;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use cluster::hooks::HookError;
use cluster::{Client, StoredToken};
use event::Sink;
use host::causes::causes;
use host::facts::{HostFacts, Interest};
use manifest::HookName;
use pki::{Authority, JoinToken, Leaf};
use rpc::controller::{Admission, Controller, Refusal, Tokens};
use rpc::images::ADMITTED;
use rpc::peer::Here;
use spec::{Candidate, ClusterSpec, Membership, NodeSpec, RPC_AUTHORITY, Role};
use uuid::Uuid;

use self::description::{
    gone, has_joined, has_room, hear, identity, is_in_the_way, leaves, parse, role, take_in,
    unreadable,
};
use crate::addons;
use crate::etcd::{self, Etcd};
use crate::history;
use crate::hooks::NodeHooks;
use crate::images::{self, Kept};
use crate::install::node_labels;
use crate::secrets::{self, CONTROLLER_CERTIFICATE};

pub use removal::{Removal, RemovalError};

/// How long pods may take to leave a node; their own limit is 30 s by default.
const DRAIN: Duration = Duration::from_secs(300);
/// How often a change that somebody else was faster with is made again.
const TRIES: usize = 10;
/// How long a node that was admitted to the image may take to get it.
const ADMISSION: Duration = Duration::from_secs(12 * 60 * 60);
/// How long a node counts as one that gets the image: it asks again sooner.
const FETCHES: Duration = Duration::from_secs(10);
/// Most nodes of which others are told.
const MAX_FETCHING: usize = 1000;
/// How long a token that has expired is kept: a clock that runs ahead by a time zone, as
/// where the hardware's shows local time, is set by then, and the token is good again.
const EXPIRED: Duration = Duration::from_secs(24 * 60 * 60);
/// How often the members of etcd are compared with the masters.
const RECONCILE: Duration = Duration::from_secs(5);
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
    let (listener, tls) = images::listen(listen, secrets, CONTROLLER_CERTIFICATE).await?;
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
    host::bounded::string(path, MAX_FILE).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// The description of a cluster that `client` reaches.
///
/// # Errors
/// When it can't be read.
pub async fn description(client: &Client) -> Result<ClusterSpec, Refusal> {
    parse(&client.description().await.map_err(not_now)?.text)
}

async fn is_ready(client: &Client, hostname: &str) -> Result<bool, Refusal> {
    let nodes = client.nodes().await.map_err(not_now)?;
    let mut nodes = nodes.iter();
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
        if text == read.text || client.replace(read, text).await.map_err(not_now)? {
            return Ok((cluster, made));
        }
    }
    Err(Refusal::NotNow(
        "others change the cluster all the time; try again".into(),
    ))
}

fn not_now(error: cluster::Error) -> Refusal {
    Refusal::NotNow(causes(&error))
}

fn of_etcd(error: etcd::Error) -> Refusal {
    Refusal::NotNow(causes(&error))
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

/// Whether a node has yet to say that it works. Nothing is done for one that has: it asks
/// again where an answer was lost, and any member could have hooks run without end.
fn still_joins(node: &NodeSpec) -> bool {
    node.taken_in.is_some()
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
        let refused = |error: &(dyn std::error::Error + 'static)| Refusal::Refused(causes(error));
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
                .map_err(|error| Refusal::Refused(causes(&error)))?;
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
        if !still_joins(&node) {
            return Ok(());
        }
        self.hook(HookName::PreNodeAdd, &node, operation, sink.clone())
            .await?;
        // Meanwhile somebody may have removed it, and another one have its name.
        let (cluster, node) = {
            let _one = self.joining.lock().await;
            change(&self.client, |cluster| hear(cluster, id, SystemTime::now())).await?
        };
        self.client
            .ensure_node(
                &node.hostname,
                &node_labels(&node),
                &agent::taints(&node.taints),
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
        if !still_joins(&node) {
            return Ok(());
        }
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

#[cfg(test)]
mod tests;
