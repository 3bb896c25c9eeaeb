//! What lies between this node and others, before they are of one cluster.
//!
//! In: addresses and a token. Out: facts for the checks, or answers to others
//! that measure. Ports are open only while somebody measures.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use console::ExitCode;
use event::Sink;
use host::facts::{HostFacts, Peer, Port};
use installer::install::choose_address;
use pki::tls::Identity;
use pki::{Authority, JoinToken, Leaf};
use rpc::controller::{Refusal, Tokens};
use rpc::peer::{self, Here, Known, Wanted};
use serde::Serialize;
use tokio::net::TcpListener;

use super::{Session, copy_of_this};

/// How long others are answered: long enough to go to all nodes.
const LISTEN: Duration = Duration::from_secs(60 * 60);
/// Certificates live somewhat longer.
const LIFE: Duration = Duration::from_secs(2 * 60 * 60);

/// What `check --listen --output json` prints.
#[derive(Debug, Serialize)]
struct Listening {
    address: SocketAddr,
    token: String,
}

/// The one token that is known here.
struct OneToken(JoinToken);

#[async_trait::async_trait]
impl Tokens for OneToken {
    async fn tokens(&self) -> Result<Vec<JoinToken>, Refusal> {
        Ok(vec![self.0.clone()])
    }
}

/// The way from this node to others.
pub(crate) struct Way<'a> {
    /// By what they know each other.
    pub(crate) known: Known<'a>,
    /// Address by which they reach this node; unspecified where it isn't chosen yet.
    pub(crate) from: IpAddr,
    pub(crate) facts: &'a HostFacts,
    /// Rates are measured until both are so high, in bytes a second.
    pub(crate) rate: Option<u64>,
}

impl Way<'_> {
    /// Measures it to `peers`, one after the other, so that none disturbs another.
    pub(crate) async fn measure(
        &self,
        session: &Session,
        peers: &[SocketAddr],
        ports: &[Port],
    ) -> Vec<Peer> {
        let here = Here::of(self.facts);
        let rate = self.rate;
        let wanted = Wanted { ports, rate };
        let from = (!self.from.is_unspecified()).then_some(self.from);
        let mut found = Vec::new();
        for address in peers {
            session
                .console
                .step(&format!("Measuring the way to {address}"));
            let seen = peer::measure(*address, from, self.known, &here, wanted).await;
            let seen = seen.map_err(|error| format!("{:#}", anyhow::Error::from(error)));
            found.push(Peer {
                address: *address,
                seen,
            });
        }
        found
    }
}

/// Answers nodes that measure, until it is told to end.
pub(crate) async fn listen(
    session: &Session,
    address: Option<IpAddr>,
    token: Option<JoinToken>,
) -> Result<ExitCode> {
    let facts = preflight::host_facts();
    let address = SocketAddr::new(choose_address(address, &facts)?, spec::CONTROLLER_PORT);
    let (identity, authority) = identity(address.ip(), &facts.hostname)?;
    let tls = pki::tls::server(&identity, &authority)?;
    let token = match token {
        Some(token) => token,
        None => JoinToken::generate(pki::tls::fingerprint(&authority)?)?,
    };
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => bail!(
            "{address} is in use: where this node is of a cluster, its controller answers already, \
             to who has a token of `gravity token create`"
        ),
        Err(error) => return Err(error).with_context(|| format!("listen at {address}")),
    };
    tell(session, address, &token)?;
    let stop = async {
        tokio::select! {
            // What can't be waited for ends it, too.
            _ = tokio::signal::ctrl_c() => {}
            () = tokio::time::sleep(LISTEN) => {}
        }
    };
    let known = Arc::new(OneToken(token));
    peer::serve(listener, tls, known, Here::of(&facts), stop)
        .await
        .context("answer other nodes")?;
    Ok(ExitCode::Ok)
}

/// An identity of this node, and the authority that others know it by.
fn identity(address: IpAddr, hostname: &str) -> Result<(Identity, String)> {
    let authority = Authority::generate("gravity check", LIFE)?;
    let leaf = Leaf {
        ip_addresses: vec![address],
        server: true,
        client: false,
        ..Leaf::client(hostname, &[], LIFE)
    };
    let issued = authority.issue(&leaf)?;
    let identity = Identity {
        certificate_pem: issued.certificate_pem + authority.certificate_pem(),
        key_pem: issued.key_pem,
    };
    Ok((identity, authority.certificate_pem().to_owned()))
}

fn tell(session: &Session, address: SocketAddr, token: &JoinToken) -> Result<()> {
    let token = token.text();
    if session.console.is_json() {
        session.console.print_json(&Listening { address, token })?;
        return Ok(());
    }
    let minutes = LISTEN.as_secs() / 60;
    session.console.print(&format!(
        "For {minutes} minutes other nodes can measure the way to this one; on each of them run\n\
         \x20 {} check --peer {} --token {token}\n\
         Ctrl+C ends it.",
        copy_of_this(),
        address.ip()
    ));
    Ok(())
}
