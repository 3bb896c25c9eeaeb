//! Sessions between nodes and the controller of their cluster.
//!
//! In: a [`Controller`], which [`serve`] offers over TLS at a port of a master.
//! Out: a [`Session`] of a node with one. Who is no member proves on each
//! connection that it knows a token, and is shown the same; members are known
//! by their certificates. Connections, messages and times are bounded.

mod client;
mod server;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use event::Sink;
use pki::JoinToken;
use spec::{Candidate, ClusterSpec, Membership};
use uuid::Uuid;

pub use client::Session;
pub use server::serve;

/// Version of this protocol. Both sides must speak the same.
pub const PROTOCOL: u32 = 1;

/// Largest message in bytes.
const MAX_MESSAGE: usize = 4 << 20;

/// By what nodes that have the cluster's image give it to one that joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// Certificate of the one that joins, PEM.
    pub certificate: String,
    /// Certificate of the authority that the others are known by, PEM.
    pub authority: String,
}

/// Prefix of the common name in a node's certificate; its id follows.
const MEMBER: &str = "node:";

/// Common name in the certificate of a node's identity.
pub fn member_name(node: Uuid) -> String {
    format!("{MEMBER}{node}")
}

pub(crate) fn member(common_name: &str) -> Option<Uuid> {
    common_name.strip_prefix(MEMBER)?.parse().ok()
}

/// Why the controller does not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As things are it never will.
    #[error("{0}")]
    Refused(String),
    /// Asking again may help.
    #[error("{0}")]
    NotNow(String),
}

/// Who knows tokens.
#[async_trait::async_trait]
pub trait Tokens: Send + Sync + 'static {
    /// The tokens that are valid now.
    ///
    /// # Errors
    /// When they can't be had.
    async fn tokens(&self) -> Result<Vec<JoinToken>, Refusal>;
}

/// What nodes can ask of a cluster.
#[async_trait::async_trait]
pub trait Controller: Tokens {
    /// What the cluster is.
    ///
    /// # Errors
    /// When it can't be had.
    async fn describe(&self) -> Result<ClusterSpec, Refusal>;

    /// Whether a node would be taken in.
    ///
    /// # Errors
    /// When it doesn't fit the cluster.
    async fn fits(&self, candidate: Candidate) -> Result<(), Refusal>;

    /// Takes a node in. `request` asks for the certificate of its identity.
    ///
    /// # Errors
    /// When it doesn't fit the cluster.
    async fn join(&self, candidate: Candidate, request: &str) -> Result<Membership, Refusal>;

    /// Lets the node at `address` have the cluster's image. `request` asks for
    /// the certificate by which it gets it, and gives it to others from there.
    ///
    /// # Errors
    /// When it can't be signed.
    async fn admit(&self, request: &str, address: IpAddr) -> Result<Admission, Refusal>;

    /// Who else gets the image just now. Who asks, at `address`, is one of them
    /// for some seconds.
    fn fetching(&self, address: IpAddr) -> Vec<IpAddr>;

    /// Signs certificates of a member, by their names.
    ///
    /// # Errors
    /// When the node is not to have one of them.
    async fn sign(
        &self,
        node: Uuid,
        requests: BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, Refusal>;

    /// The keys that all masters share, by names of files.
    ///
    /// # Errors
    /// When the member is no master.
    async fn keys(&self, node: Uuid) -> Result<BTreeMap<String, String>, Refusal>;

    /// Makes the member's object in Kubernetes, and a master a member of etcd, in the
    /// operation by which it joins.
    ///
    /// # Errors
    /// When a hook fails, or Kubernetes or etcd refuses it.
    async fn register(
        &self,
        node: Uuid,
        operation: Uuid,
        sink: Arc<dyn Sink>,
    ) -> Result<(), Refusal>;

    /// Does what is due once the member works.
    ///
    /// # Errors
    /// When a hook fails.
    async fn added(&self, node: Uuid, operation: Uuid, sink: Arc<dyn Sink>) -> Result<(), Refusal>;

    /// Moves pods off the member and forgets it.
    ///
    /// # Errors
    /// When a hook fails or pods can't be moved and it isn't forced.
    async fn leave(&self, node: Uuid, force: bool, sink: Arc<dyn Sink>) -> Result<(), Refusal>;
}

/// Why a session could not be had, or what it was answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody answers there.
    #[error("connect to the cluster at {address}")]
    Connect {
        /// Where.
        address: std::net::SocketAddr,
        /// What happened.
        source: std::io::Error,
    },
    /// It is another cluster, or somebody in between.
    #[error(
        "{address} is not the cluster that the token is of; check the address and the whole token"
    )]
    WrongCluster {
        /// Where.
        address: std::net::SocketAddr,
        /// What TLS said.
        source: std::io::Error,
    },
    /// No address at all was given.
    #[error("there is no address of the cluster")]
    NoAddress,
    /// A key or certificate is damaged.
    #[error("prepare the session with the cluster")]
    Tls(#[from] pki::Error),
    /// The session broke.
    #[error("the session with the cluster broke: {0}")]
    Broken(String),
    /// The controller knows the token no better than we know the controller.
    #[error("who answers does not know the token: it is not our cluster")]
    Unproven,
    /// The controller says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

#[cfg(test)]
mod tests;
