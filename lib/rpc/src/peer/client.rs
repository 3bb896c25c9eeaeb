//! The side that measures.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use host::facts::{Introduction, Offset, Port, Seen, Way};
use pki::JoinToken;
use pki::tls::{Identity, Trust};

use super::ports::{Opened, Ports, Route, probe};
use super::{Here, MAX_MESSAGE, MAX_PORTS, PROTOCOL, Secrets};
use crate::connections::{self, answer, read};
use crate::controller::Error;
use crate::proto::peer::peer_client::PeerClient;
use crate::proto::peer::{ClockRequest, GreetRequest, OpenRequest, ProbeRequest};

/// How long an answer may take: all ports may be silent, and rates take seconds.
const ANSWER: Duration = Duration::from_secs(60);
/// How often the clock is asked; the shortest round trip counts.
const ROUNDS: usize = 8;

/// By what both sides know each other.
#[derive(Debug, Clone, Copy)]
pub enum Known<'a> {
    /// A token.
    Token(&'a JoinToken),
    /// Certificates of a cluster's `authority`, PEM.
    Certificate {
        /// Certificate of the authority, PEM.
        authority: &'a str,
        /// That of this node.
        identity: &'a Identity,
    },
}

/// What is to be tried.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Ports, in both directions; more than [`MAX_PORTS`] are not tried.
    pub ports: &'a [Port],
    /// Rates are measured until both are so high, in bytes a second; not at all
    /// where nothing is said.
    pub rate: Option<u64>,
}

/// Measures what lies between this host, `here`, and the one at `address`. `from`
/// is the address of this host that the other one reaches it by.
///
/// # Errors
/// When the other side doesn't answer or isn't `known`.
pub async fn measure(
    address: SocketAddr,
    from: Option<IpAddr>,
    known: Known<'_>,
    here: &Here,
    wanted: Wanted<'_>,
) -> Result<Seen, Error> {
    let (trust, identity) = match known {
        Known::Token(token) => {
            let trust = token.fingerprint.map_or(Trust::Proof, Trust::Fingerprint);
            (trust, None)
        }
        Known::Certificate {
            authority,
            identity,
        } => (Trust::Authority(authority.to_owned()), Some(identity)),
    };
    let connection = connections::Opened::first(&[address], from, &trust, identity).await?;
    let client = PeerClient::new(connection.transport.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let mut session = Session { connection, client };
    let who = session.greet(known).await?;
    let clock = session.clock(here).await?;
    let ports = &wanted.ports[..wanted.ports.len().min(MAX_PORTS)];
    let there = session.there(here, ports, wanted.rate).await?;
    let rates = wanted.rate.is_some() && there.rates.is_none();
    let back = session.back(here, ports, rates).await?;
    Ok(Seen {
        who,
        clock: Ok(clock),
        there,
        back,
    })
}

struct Session {
    connection: connections::Opened,
    client: PeerClient<tonic::transport::Channel>,
}

impl Session {
    async fn greet(&mut self, known: Known<'_>) -> Result<Introduction, Error> {
        let token = match known {
            Known::Token(token) => Some(token),
            Known::Certificate { .. } => None,
        };
        let proof = |token: &JoinToken| (token.id.clone(), self.connection.proof(token));
        let (token_id, hmac) = token.map(proof).unwrap_or_default();
        let request = GreetRequest {
            protocol: PROTOCOL,
            token_id,
            hmac,
        };
        let reply = answer(ANSWER, self.client.greet(request)).await?;
        if let Some(token) = token {
            self.connection.demand(token, &reply.hmac)?;
        }
        read(&reply.who)
    }

    async fn clock(&mut self, here: &Here) -> Result<Offset, Error> {
        let mut best: Option<Offset> = None;
        for _ in 0..ROUNDS {
            let (begin, before) = (Instant::now(), (here.clock)());
            let reply = answer(ANSWER, self.client.clock(ClockRequest {})).await?;
            let round_trip = begin.elapsed();
            let round_trip_us = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
            let half = i64::try_from(round_trip_us / 2).unwrap_or(i64::MAX);
            let ahead_us = reply.time_us.saturating_sub(before).saturating_sub(half);
            if best.is_none_or(|best| round_trip_us < best.round_trip_us) {
                best = Some(Offset {
                    ahead_us,
                    round_trip_us,
                });
            }
        }
        best.ok_or_else(|| Error::Broken("its clock was not asked".into()))
    }

    /// Tries ports that the other side opens.
    async fn there(
        &mut self,
        here: &Here,
        ports: &[Port],
        rate: Option<u64>,
    ) -> Result<Way, Error> {
        let secrets = Secrets::generate()?;
        let request = OpenRequest {
            question: secrets.question.clone(),
            answer: secrets.answer.clone(),
            ports: json(&ports)?,
        };
        let mut replies = answer(ANSWER, self.client.open(request)).await?;
        let reply = tokio::time::timeout(ANSWER, replies.message()).await;
        let reply = reply.map_err(|_| Error::Broken("it opens no ports".into()))?;
        let reply = reply
            .map_err(|status| Error::Broken(status.message().to_owned()))?
            .ok_or_else(|| Error::Broken("it opens no ports".into()))?;
        let opened: Vec<Opened> = read(&reply.opened)?;
        if opened.len() > ports.len() {
            return Err(Error::Broken("it opens other ports".into()));
        }
        let from = self.connection.local.ip();
        let route = Route {
            from,
            to: self.connection.remote.ip(),
            mtu: here.mtu(from),
        };
        // They stay open until `replies` is dropped.
        Ok(probe(route, &opened, &secrets, rate).await)
    }

    /// Opens ports and has the other side try them.
    async fn back(&mut self, here: &Here, ports: &[Port], rates: bool) -> Result<Way, Error> {
        let secrets = Secrets::generate()?;
        let local = self.connection.local.ip();
        let open = Ports::open(local, ports, &secrets, &here.reserved).await;
        let request = ProbeRequest {
            question: secrets.question,
            answer: secrets.answer,
            opened: json(&open.opened)?,
            rates,
        };
        let reply = answer(ANSWER, self.client.probe(request)).await;
        open.close().await;
        read(&reply?.way)
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::Broken(error.to_string()))
}
