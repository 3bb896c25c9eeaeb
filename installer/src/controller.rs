//! The controller of a cluster: takes nodes in, signs for them, lets them go.
//!
//! In: what nodes ask, over [`rpc::controller`]; the keys of the authorities.
//! Out: a changed description of the cluster in Kubernetes, signed
//! certificates. All state is in Kubernetes, so any number of controllers may
//! run. A node gets exactly the certificates that its place in the cluster
//! asks for, whatever it says in its requests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cluster::Client;
use ipnet::Ipv4Net;
use pki::tls::Identity;
use pki::{Authority, JoinToken, Leaf};
use rpc::controller::{Controller, Refusal, member_name};
use spec::phase::Certificate;
use spec::{Candidate, ClusterSpec, Membership, NodeSpec, Role};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::install::{NODE_PREFIX, node_labels};
use crate::secrets::{CONTROLLER_CERTIFICATE, RPC_AUTHORITY, WORKER_AUTHORITIES, of_worker};

/// How long pods may take to leave a node; their own limit is 30 s by default.
const DRAIN: Duration = Duration::from_secs(300);
/// How often a change that somebody else was faster with is made again.
const TRIES: usize = 10;
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
/// authorities, the controller's certificate and a kubeconfig.
///
/// # Errors
/// When it can't begin or go on.
pub async fn run(
    listen: SocketAddr,
    secrets: &Path,
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
    let site = Site {
        client: Client::connect(&secrets.join("admin.kubeconfig")).await?,
        secrets: secrets.to_owned(),
    };
    Ok(rpc::controller::serve(listener, tls, Arc::new(site), stop).await?)
}

fn read(path: &Path) -> Result<String, Error> {
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

/// Moves pods off a node, deletes it from Kubernetes and the description. With
/// `force` pods that don't go are left behind. A node that is gone is fine.
///
/// # Errors
/// When pods are left, it is the last master, or Kubernetes refuses.
pub async fn remove(client: &Client, hostname: &str, force: bool) -> Result<(), Refusal> {
    let cluster = description(client).await?;
    let node = cluster.nodes.iter().find(|node| node.hostname == hostname);
    if node.is_some_and(|node| node.role == Role::Master) {
        return Err(Refusal::Refused(format!(
            "{hostname} is the cluster's only master; `gravity leave --force` there ends the cluster"
        )));
    }
    if let Err(error) = client.drain(hostname, DRAIN).await {
        match force {
            true => tracing::warn!(%hostname, %error, "went on without its pods"),
            false => return Err(not_now(error)),
        }
    }
    client.delete_node(hostname).await.map_err(not_now)?;
    change(client, |cluster| {
        cluster.nodes.retain(|node| node.hostname != hostname);
        Ok(())
    })
    .await
    .map(drop)
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
        let text = serde_json::to_string_pretty(&cluster).map_err(unreadable)?;
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

fn parse(description: &str) -> Result<ClusterSpec, Refusal> {
    serde_json::from_str(description).map_err(unreadable)
}

fn unreadable(error: serde_json::Error) -> Refusal {
    Refusal::Refused(format!("read the cluster's description: {error}"))
}

fn not_now(error: cluster::Error) -> Refusal {
    let mut text = error.to_string();
    if let Some(cause) = std::error::Error::source(&error) {
        text = format!("{text}: {cause}");
    }
    Refusal::NotNow(text)
}

struct Site {
    client: Client,
    secrets: PathBuf,
}

impl Site {
    fn authority(&self, name: &str) -> Result<Authority, Refusal> {
        Authority::load(&self.secrets, name).map_err(|error| Refusal::Refused(error.to_string()))
    }

    async fn node(&self, id: Uuid) -> Result<NodeSpec, Refusal> {
        member(&self.describe().await?, id).cloned()
    }
}

fn member(cluster: &ClusterSpec, id: Uuid) -> Result<&NodeSpec, Refusal> {
    let gone = || Refusal::Refused("this node is no member of the cluster any more".into());
    cluster.node(id).ok_or_else(gone)
}

/// What a node is known to controllers by.
fn identity(node: Uuid, life: Duration) -> Leaf {
    Leaf::client(&member_name(node), &[], life)
}

#[async_trait::async_trait]
impl Controller for Site {
    async fn tokens(&self) -> Result<Vec<JoinToken>, Refusal> {
        let now = std::time::SystemTime::now();
        let stored = self.client.join_tokens().await.map_err(not_now)?;
        let valid = stored
            .iter()
            .filter(|token| std::time::SystemTime::from(token.expires) > now);
        Ok(valid
            .filter_map(|token| JoinToken::parse(&token.text))
            .collect())
    }

    async fn describe(&self) -> Result<ClusterSpec, Refusal> {
        description(&self.client).await
    }

    async fn join(&self, candidate: Candidate, request: &str) -> Result<Membership, Refusal> {
        let cluster = self.describe().await?;
        let mut registered = BTreeSet::new();
        for node in &cluster.nodes {
            let name = &node.hostname;
            if (*name == candidate.hostname || shares_address(node, &candidate))
                && self.client.has_node(name).await.map_err(not_now)?
            {
                registered.insert(name.clone());
            }
        }
        let (cluster, node) = change(&self.client, |cluster| {
            take_in(cluster, &candidate, &registered)
        })
        .await?;
        tracing::info!(hostname = candidate.hostname, %node, "took a node in");
        let identity = identity(node, cluster.leaf_lifetime());
        let signed = self.authority(RPC_AUTHORITY)?.sign(request, &identity);
        let certificate = signed.map_err(|error| Refusal::Refused(error.to_string()))?;
        let mut authorities = BTreeMap::new();
        for name in WORKER_AUTHORITIES {
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

    async fn sign(
        &self,
        id: Uuid,
        requests: BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, Refusal> {
        let cluster = self.describe().await?;
        let node = member(&cluster, id)?;
        let leaves = leaves(node, cluster.leaf_lifetime());
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

    async fn register(&self, id: Uuid) -> Result<(), Refusal> {
        let node = self.node(id).await?;
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
            .map_err(not_now)
    }

    async fn leave(&self, id: Uuid, force: bool) -> Result<(), Refusal> {
        match self.node(id).await {
            Ok(node) => remove(&self.client, &node.hostname, force).await,
            // It asks again after an answer that was lost.
            Err(Refusal::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn shares_address(node: &NodeSpec, candidate: &Candidate) -> bool {
    let wanted = &candidate.advertise_addresses;
    node.advertise_addresses
        .iter()
        .any(|address| wanted.contains(address))
}

/// Adds a node to the description; one of the same name that never reached
/// Kubernetes is a lost try, and replaced. `registered` are the names, of those
/// that it could be in conflict with, which Kubernetes has.
fn take_in(
    cluster: &mut ClusterSpec,
    candidate: &Candidate,
    registered: &BTreeSet<String>,
) -> Result<Uuid, Refusal> {
    let hostname = &candidate.hostname;
    if candidate.image != cluster.image.digest {
        return Err(Refusal::Refused(format!(
            "the cluster was installed from another image: {} {} ({})",
            cluster.image.name, cluster.image.version, cluster.image.digest
        )));
    }
    if !is_dns_name(hostname) {
        return Err(Refusal::Refused(format!(
            "\"{hostname}\" can't be a node's name: use lower-case letters, digits, - and ."
        )));
    }
    for node in &cluster.nodes {
        if !registered.contains(&node.hostname) && node.role == Role::Worker {
            continue;
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
    let is_lost = |node: &NodeSpec| {
        node.role == Role::Worker && (node.hostname == *hostname || shares_address(node, candidate))
    };
    cluster.nodes.retain(|node| !is_lost(node));
    let id = Uuid::new_v4();
    let pod_cidr = free_pod_cidr(cluster)?;
    cluster.nodes.push(NodeSpec {
        id,
        hostname: hostname.clone(),
        advertise_addresses: candidate.advertise_addresses.clone(),
        profile: candidate.profile.clone(),
        role: Role::Worker,
        pod_cidrs: vec![pod_cidr],
        labels: candidate.labels.clone(),
        taints: candidate.taints.clone(),
        dns_listen: Vec::new(),
        state_dir: candidate.state_dir.clone(),
    });
    Ok(id)
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

/// Every certificate that a worker has, by the name it asks for it: its
/// authority and what it says.
fn leaves(node: &NodeSpec, life: Duration) -> BTreeMap<String, (String, Leaf)> {
    let requested = of_worker(node);
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
