use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use host::facts::{Port, Protocol, Reach};
use pki::tls::Identity;
use pki::{Authority, JoinToken, Leaf};
use tokio::net::TcpListener;

use super::*;
use crate::controller::{Error, Refusal, Tokens};
use crate::images::ADMITTED;
use crate::images::tests::NoImage;

const HOUR: Duration = Duration::from_secs(3600);
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The other side opens the same ports.
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

struct One(JoinToken);

#[async_trait::async_trait]
impl Tokens for One {
    async fn tokens(&self) -> Result<Vec<JoinToken>, Refusal> {
        Ok(vec![self.0.clone()])
    }
}

fn here(hostname: &str, clock: fn() -> i64) -> Here {
    Here {
        who: Introduction {
            hostname: hostname.into(),
            ..Introduction::default()
        },
        mtus: BTreeMap::from([(LOCAL, 1500), (OTHER, 1500)]),
        clock,
        reserved: NOTHING,
    }
}

/// Of the other side, with its authority.
fn identity(authority: &Authority, name: &str) -> Identity {
    let leaf = Leaf {
        ip_addresses: vec![OTHER],
        server: true,
        ..Leaf::client(name, &[], HOUR)
    };
    let issued = authority.issue(&leaf).unwrap();
    Identity {
        certificate_pem: issued.certificate_pem + authority.certificate_pem(),
        key_pem: issued.key_pem,
    }
}

async fn start(other: Here) -> (SocketAddr, JoinToken) {
    let authority = Authority::generate("peer", HOUR).unwrap();
    let tls = pki::tls::server(&identity(&authority, "peer"), authority.certificate_pem()).unwrap();
    let print = pki::tls::fingerprint(authority.certificate_pem()).unwrap();
    let token = JoinToken::generate(print).unwrap();
    let listener = TcpListener::bind((OTHER, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tokens = Arc::new(One(token.clone()));
    tokio::spawn(serve(listener, tls, tokens, other, std::future::pending()));
    (address, token)
}

/// A number that nobody has at this moment, and no outgoing connection gets.
pub(super) fn free_number() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let number = 20_000 + (std::process::id() as u16 % 100) * 90 + next;
        let is_free = |address| {
            std::net::TcpListener::bind((address, number)).is_ok()
                && std::net::UdpSocket::bind((address, number)).is_ok()
        };
        if is_free(LOCAL) && is_free(OTHER) {
            return number;
        }
    }
}

fn free() -> Port {
    Port {
        protocol: Protocol::Tcp,
        number: free_number(),
    }
}

fn all(ports: &[Port]) -> Wanted<'_> {
    Wanted {
        ports,
        rate: Some(u64::MAX),
    }
}

#[tokio::test]
async fn both_sides_find_out_who_they_are_and_what_comes_through() {
    // The other clock is 400 ms ahead.
    let (address, token) = start(here("two", || now_us() + 400_000)).await;
    let port = free();
    let udp = Port {
        protocol: Protocol::Udp,
        number: port.number,
    };
    let seen = measure(
        address,
        Some(LOCAL),
        Known::Token(&token),
        &here("one", now_us),
        all(&[port, udp]),
    )
    .await;
    let seen = seen.unwrap();
    assert_eq!(seen.who.hostname, "two");
    let clock = seen.clock.unwrap();
    let error = i64::try_from(clock.round_trip_us).unwrap();
    assert!((clock.ahead_us - 400_000).abs() <= error, "{clock:?}");
    for way in [&seen.there, &seen.back] {
        assert_eq!(way.ports, [(port, Reach::Reached), (udp, Reach::Reached)]);
        assert!(way.packet.is_some_and(|packet| packet.arrived), "{way:?}");
    }
    // Once is enough: it is measured in both directions.
    assert!(seen.there.rates.is_some() && seen.back.rates.is_none());
    // Nothing stays open; the other side hears of the end a moment later.
    assert!(std::net::TcpListener::bind((LOCAL, port.number)).is_ok());
    let closed = async {
        while std::net::TcpListener::bind((OTHER, port.number)).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), closed)
        .await
        .unwrap();
}

#[tokio::test]
async fn who_does_not_know_the_token_measures_nothing() {
    let (address, token) = start(here("two", now_us)).await;
    let wrong = JoinToken {
        secret: "another".into(),
        ..token.clone()
    };
    let refused = measure(
        address,
        None,
        Known::Token(&wrong),
        &here("one", now_us),
        all(&[]),
    )
    .await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    let other = JoinToken {
        fingerprint: Some([0; 32]),
        ..token.clone()
    };
    let refused = measure(
        address,
        None,
        Known::Token(&other),
        &here("one", now_us),
        all(&[]),
    )
    .await;
    assert!(
        matches!(refused, Err(Error::WrongCluster { .. })),
        "{refused:?}"
    );

    // Whoever leaves out the greeting gets nothing either.
    let trust = pki::tls::Trust::Fingerprint(token.fingerprint.unwrap());
    let connection = crate::connections::Opened::first(&[address], None, &trust, None).await;
    let transport = connection.unwrap().transport;
    let mut client = crate::proto::peer::peer_client::PeerClient::new(transport);
    let secrets = Secrets::generate().unwrap();
    let request = crate::proto::peer::OpenRequest {
        question: secrets.question,
        answer: secrets.answer,
        ports: b"[]".to_vec(),
    };
    let refused = client.open(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn no_more_ports_are_opened_than_it_says() {
    let (address, token) = start(here("two", now_us)).await;
    let ports = vec![free(); MAX_PORTS + 1];
    let seen = measure(
        address,
        None,
        Known::Token(&token),
        &here("one", now_us),
        all(&ports),
    )
    .await;
    assert_eq!(seen.unwrap().there.ports.len(), MAX_PORTS);
}

#[tokio::test]
async fn ports_of_services_are_not_tried_in_a_cluster() {
    let (address, token) = start(here("two", now_us).in_cluster()).await;
    let port = Port {
        protocol: Protocol::Udp,
        number: 30_080,
    };
    let without_rates = Wanted {
        ports: &[port],
        rate: None,
    };
    let seen = measure(
        address,
        Some(LOCAL),
        Known::Token(&token),
        &here("one", now_us),
        without_rates,
    )
    .await;
    let seen = seen.unwrap();
    assert_eq!((seen.there.rates, seen.back.rates), (None, None));
    assert!(
        matches!(seen.there.ports[0].1, Reach::Unknown(_)),
        "{seen:?}"
    );
    assert_eq!(seen.back.ports, [(port, Reach::Reached)]);
}

/// A node of a cluster that gives its image and knows no tokens.
async fn start_worker(authority: &Authority, identity: &Identity) -> SocketAddr {
    let tls = pki::tls::server(identity, authority.certificate_pem()).unwrap();
    let listener = TcpListener::bind((OTHER, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let worker = Some(here("worker", now_us).in_cluster());
    let never = std::future::pending();
    tokio::spawn(crate::images::serve(
        listener,
        tls,
        Arc::new(NoImage),
        worker,
        never,
    ));
    address
}

#[tokio::test]
async fn workers_are_measured_with_by_who_was_admitted_and_by_nobody_else() {
    let authority = Authority::generate("rpc", HOUR).unwrap();
    let admitted = identity(&authority, ADMITTED);
    let address = start_worker(&authority, &identity(&authority, "images")).await;
    let pem = authority.certificate_pem();
    let known = Known::Certificate {
        authority: pem,
        identity: &admitted,
    };
    let port = free();
    let one = here("one", now_us);
    let seen = measure(address, Some(LOCAL), known, &one, all(&[port])).await;
    let seen = seen.unwrap();
    assert_eq!(seen.who.hostname, "worker");
    for way in [&seen.there, &seen.back] {
        assert_eq!(way.ports, [(port, Reach::Reached)]);
    }

    // Who has another certificate of the same authority, or of another one, or a token.
    let services = identity(&authority, "etcd");
    let foreign = Authority::generate("rpc", HOUR).unwrap();
    let foreigner = identity(&foreign, ADMITTED);
    for (authority, identity) in [
        (pem, &services),
        (pem, &foreigner),
        (foreign.certificate_pem(), &admitted),
    ] {
        let known = Known::Certificate {
            authority,
            identity,
        };
        let refused = measure(address, None, known, &one, all(&[port])).await;
        assert!(refused.is_err(), "{refused:?}");
    }
    let token = JoinToken::generate(pki::tls::fingerprint(pem).unwrap()).unwrap();
    let refused = measure(address, None, Known::Token(&token), &one, all(&[port])).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("knows no tokens"), "{refused}");
}
