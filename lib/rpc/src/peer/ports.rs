//! Ports that are opened for a peer, and a peer's ports that are tried.
//!
//! In: addresses, ports, two secrets that both sides know of each other by TLS.
//! Out: [`Opened`] and [`Way`]. Who doesn't say the question gets nothing; who
//! doesn't know the answer is somebody else. What is sent in answer to UDP is
//! never larger than what came. Times and bytes are bounded.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use host::facts::{Packet, Port, Protocol, Rates, Reach, Way};
use rustix::net::sockopt;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Reserved, Secrets};

/// How long a port may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a datagram is sent: one may get lost.
const DATAGRAMS: u32 = 3;
/// Ports that are tried at a time.
const AT_A_TIME: usize = 64;
/// How long each of [`RATES`] takes.
const RATE: Duration = Duration::from_millis(400);
/// How often a rate is measured at most: the best counts, as others use the
/// network, too.
const RATES: usize = 3;
/// Longest connection of a peer.
const CONNECTION: Duration = Duration::from_secs(10);
/// Bytes that are written at a time.
const CHUNK: usize = 256 << 10;
/// Largest datagram.
const DATAGRAM: usize = 65_536;
/// Bytes of headers before a datagram: IPv4 and UDP, IPv6 and UDP.
const HEADERS: (u32, u32) = (28, 48);

/// What the one who connects wants of an opened TCP port.
const GREET: u8 = b'g';
const TAKE: u8 = b't';
const SEND: u8 = b's';

/// A port after it was tried to open it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Which.
    pub port: Port,
    /// Whether it is open now.
    pub state: State,
}

/// How opening went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It answers.
    Open,
    /// Some program has it already.
    Held,
    /// It can't be opened, and why.
    Failed(String),
}

/// Ports that answer until they are closed.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) opened: Vec<Opened>,
    tasks: JoinSet<()>,
}

impl Ports {
    /// Opens what can be opened at an address, but what is `reserved`.
    pub(super) async fn open(
        address: IpAddr,
        ports: &[Port],
        secrets: &Secrets,
        reserved: &Reserved,
    ) -> Self {
        let mut tasks = JoinSet::new();
        let mut opened = Vec::new();
        for port in ports {
            let at = SocketAddr::new(address, port.number);
            if let Some(state) = reserved.state(*port, at).await {
                opened.push(Opened { port: *port, state });
                continue;
            }
            let secrets = secrets.clone();
            let bound = match port.protocol {
                Protocol::Tcp => TcpListener::bind(at)
                    .await
                    .map(|listener| drop(tasks.spawn(answer_streams(listener, secrets)))),
                Protocol::Udp => UdpSocket::bind(at)
                    .await
                    .map(|socket| drop(tasks.spawn(answer_datagrams(socket, secrets)))),
            };
            let state = match bound {
                Ok(()) => State::Open,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    match port.protocol == Protocol::Udp || listens(at).await {
                        true => State::Held,
                        false => State::Failed("a connection has it".into()),
                    }
                }
                Err(error) => State::Failed(error.to_string()),
            };
            opened.push(Opened { port: *port, state });
        }
        Self { opened, tasks }
    }

    /// Closes them; whoever wants them can have them then.
    pub(super) async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

impl Reserved {
    /// What is said of a port that isn't opened; nothing of others.
    async fn state(&self, port: Port, at: SocketAddr) -> Option<State> {
        if self.taken.contains(&port.number) {
            let reason = "services of the cluster have these ports";
            return Some(State::Failed(reason.into()));
        }
        let is_own = match port.protocol {
            Protocol::Tcp => self.own.contains(&port.number),
            // Its TCP twin tells whether it runs.
            Protocol::Udp => port.number == spec::DNS_SERVICE_PORT && !self.own.is_empty(),
        };
        if !is_own {
            return None;
        }
        Some(match listens(at).await {
            true => State::Held,
            false => State::Failed("the cluster's service there doesn't run".into()),
        })
    }
}

/// Whether somebody listens here, or the port is our end of a connection.
async fn listens(at: SocketAddr) -> bool {
    matches!(timeout(PATIENCE, TcpStream::connect(at)).await, Ok(Ok(_)))
}

async fn answer_streams(listener: TcpListener, secrets: Secrets) {
    let mut answering = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of files: the peer tries again or gives up.
            tokio::time::sleep(RATE).await;
            continue;
        };
        while answering.try_join_next().is_some() {}
        if answering.len() < AT_A_TIME {
            let secrets = secrets.clone();
            answering.spawn(async move {
                // A peer that breaks off notices so itself.
                let _ = timeout(CONNECTION, answer_stream(stream, &secrets)).await;
            });
        }
    }
}

async fn answer_stream(mut stream: TcpStream, secrets: &Secrets) -> io::Result<()> {
    let mut question = vec![0; secrets.question.len()];
    stream.read_exact(&mut question).await?;
    if question != secrets.question {
        return Ok(());
    }
    let wish = stream.read_u8().await?;
    stream.write_all(&secrets.answer).await?;
    match wish {
        TAKE => {
            let rate = drain(&mut stream).await?;
            stream.write_u64(rate).await
        }
        SEND => fill(&mut stream).await,
        _ => Ok(()),
    }
}

/// Writes for [`RATE`], and ends the writing half.
async fn fill(stream: &mut TcpStream) -> io::Result<()> {
    let chunk = vec![0; CHUNK];
    let end = Instant::now() + RATE;
    while Instant::now() < end {
        stream.write_all(&chunk).await?;
    }
    stream.shutdown().await
}

/// Reads to the end. Returns bytes a second, from the first byte on.
async fn drain(stream: &mut TcpStream) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let mut bytes = stream.read(&mut chunk).await? as u64;
    let begin = Instant::now();
    loop {
        match stream.read(&mut chunk).await? {
            0 => break,
            read => bytes += read as u64,
        }
    }
    let seconds = begin.elapsed().max(Duration::from_millis(1)).as_secs_f64();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "bytes of less than a second"
    )]
    Ok((bytes as f64 / seconds) as u64)
}

async fn answer_datagrams(socket: UdpSocket, secrets: Secrets) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            tokio::time::sleep(RATE).await;
            continue;
        };
        if buffer[..length].starts_with(&secrets.question) {
            // A lost answer is as good as none.
            let _ = socket.send_to(&secrets.answer, from).await;
        }
    }
}

/// From where to where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    /// Largest packet of the interface that `from` belongs to; 0 where unknown.
    pub(super) mtu: u32,
}

/// Tries ports that the other side has opened; rates until they are `enough`.
pub(super) async fn probe(
    route: Route,
    opened: &[Opened],
    secrets: &Secrets,
    enough: Option<u64>,
) -> Way {
    let permits = Arc::new(Semaphore::new(AT_A_TIME));
    let mut probes = JoinSet::new();
    for (index, target) in opened.iter().cloned().enumerate() {
        let (permits, secrets) = (permits.clone(), secrets.clone());
        probes.spawn(async move {
            let _permit = permits.acquire_owned().await;
            (index, target.port, reach(route, &target, &secrets).await)
        });
    }
    let mut found = probes.join_all().await;
    found.sort_by_key(|(index, ..)| *index);
    let answers = |protocol| {
        let mut both = found.iter().zip(opened);
        both.find(|((_, port, reach), opened)| {
            port.protocol == protocol && opened.state == State::Open && *reach == Reach::Reached
        })
        .map(|((_, port, _), _)| *port)
    };
    let packet = match answers(Protocol::Udp) {
        Some(port) if route.mtu > 0 => packet(route, port, secrets).await.ok(),
        _ => None,
    };
    let rates = match (answers(Protocol::Tcp), enough) {
        (Some(port), Some(enough)) => best(route, port, secrets, enough).await.ok(),
        _ => None,
    };
    Way {
        ports: found
            .into_iter()
            .map(|(_, port, reach)| (port, reach))
            .collect(),
        packet,
        rates,
    }
}

async fn reach(route: Route, target: &Opened, secrets: &Secrets) -> Reach {
    let port = target.port;
    if let State::Failed(reason) = &target.state {
        return Reach::Unknown(reason.clone());
    }
    let tried = match (port.protocol, &target.state) {
        (Protocol::Udp, State::Held) => {
            return Reach::Unknown("a program there has it, which doesn't answer us".into());
        }
        (Protocol::Tcp, State::Held) => {
            let connected = timeout(PATIENCE, connect(route, port)).await;
            connected.map(|connected| connected.map(|_| Reach::Reached))
        }
        (Protocol::Tcp, _) => match timeout(PATIENCE, connect(route, port)).await {
            Ok(Ok(stream)) => return greeted(stream, secrets).await,
            other => other.map(|connected| connected.map(|_| Reach::Reached)),
        },
        (Protocol::Udp, _) => {
            let bytes = &secrets.question;
            Ok(send_datagrams(route, port, bytes, secrets).await)
        }
    };
    match tried {
        Ok(Ok(reach)) => reach,
        Ok(Err(error)) => match error.kind() {
            // Firewalls refuse in each of these ways, the last one that of the sender.
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::PermissionDenied => Reach::Refused,
            io::ErrorKind::TimedOut => Reach::Silent,
            _ => Reach::Unknown(error.to_string()),
        },
        Err(_) => Reach::Silent,
    }
}

async fn connect(route: Route, port: Port) -> io::Result<TcpStream> {
    let socket = match route.from {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.bind(SocketAddr::new(route.from, 0))?;
    let stream = socket
        .connect(SocketAddr::new(route.to, port.number))
        .await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Has the other side say who it is.
async fn begin(mut stream: TcpStream, secrets: &Secrets, wish: u8) -> io::Result<TcpStream> {
    stream.write_all(&secrets.question).await?;
    stream.write_u8(wish).await?;
    let mut answer = vec![0; secrets.answer.len()];
    stream.read_exact(&mut answer).await?;
    match answer == secrets.answer {
        true => Ok(stream),
        false => Err(io::Error::other("somebody else answers there")),
    }
}

/// What a connection that came about says: whatever is wrong with it, nothing on
/// the way is.
async fn greeted(stream: TcpStream, secrets: &Secrets) -> Reach {
    match timeout(PATIENCE, begin(stream, secrets, GREET)).await {
        Ok(Ok(_)) => Reach::Reached,
        _ => Reach::Unknown("another program answers there".into()),
    }
}

/// A socket that is connected to a UDP port, so that refusals come back.
async fn datagrams(route: Route, port: Port) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::new(route.from, 0)).await?;
    socket
        .connect(SocketAddr::new(route.to, port.number))
        .await?;
    Ok(socket)
}

async fn send_datagrams(
    route: Route,
    port: Port,
    bytes: &[u8],
    secrets: &Secrets,
) -> io::Result<Reach> {
    let socket = datagrams(route, port).await?;
    exchange(&socket, bytes, secrets).await
}

/// Sends until the answer comes.
async fn exchange(socket: &UdpSocket, bytes: &[u8], secrets: &Secrets) -> io::Result<Reach> {
    let mut buffer = vec![0; DATAGRAM];
    for _ in 0..DATAGRAMS {
        socket.send(bytes).await?;
        // Nothing, or something of somebody else, is no answer.
        if let Ok(length) = timeout(PATIENCE / DATAGRAMS, socket.recv(&mut buffer)).await
            && buffer[..length?] == secrets.answer
        {
            return Ok(Reach::Reached);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Sends a packet of the interface's size that nobody may break.
async fn packet(route: Route, port: Port, secrets: &Secrets) -> io::Result<Packet> {
    let socket = datagrams(route, port).await?;
    let headers = match route.to {
        IpAddr::V4(_) => {
            let never = sockopt::Ipv4PathMtuDiscovery::PROBE;
            sockopt::set_ip_mtu_discover(socket.as_fd(), never)?;
            HEADERS.0
        }
        IpAddr::V6(_) => {
            let never = sockopt::Ipv6PathMtuDiscovery::PROBE;
            sockopt::set_ipv6_mtu_discover(socket.as_fd(), never)?;
            HEADERS.1
        }
    };
    // A datagram's length has 16 bits; loopback's packets are as large.
    let size = route.mtu.min(DATAGRAM as u32 - HEADERS.1);
    let mut bytes = secrets.question.clone();
    let length = usize::try_from(size.saturating_sub(headers)).unwrap_or_default();
    bytes.resize(length.max(bytes.len()), 0);
    let arrived = exchange(&socket, &bytes, secrets).await.is_ok();
    Ok(Packet { size, arrived })
}

async fn best(route: Route, port: Port, secrets: &Secrets, enough: u64) -> io::Result<Rates> {
    let mut best = Rates { there: 0, back: 0 };
    for _ in 0..RATES {
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let there = timeout(CONNECTION, rate_there(route, port, secrets)).await;
        best.there = best.there.max(there.map_err(late)??);
        let back = timeout(CONNECTION, rate_back(route, port, secrets)).await;
        best.back = best.back.max(back.map_err(late)??);
        if best.there.min(best.back) >= enough {
            break;
        }
    }
    Ok(best)
}

async fn rate_there(route: Route, port: Port, secrets: &Secrets) -> io::Result<u64> {
    let mut stream = begin(connect(route, port).await?, secrets, TAKE).await?;
    fill(&mut stream).await?;
    stream.read_u64().await
}

async fn rate_back(route: Route, port: Port, secrets: &Secrets) -> io::Result<u64> {
    let mut stream = begin(connect(route, port).await?, secrets, SEND).await?;
    drain(&mut stream).await
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::NOTHING;
    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const ROUTE: Route = Route {
        from: HERE,
        to: HERE,
        mtu: 1500,
    };

    fn port(protocol: Protocol, number: u16) -> Port {
        Port { protocol, number }
    }

    fn free(protocol: Protocol) -> Port {
        port(protocol, super::super::tests::free_number())
    }

    #[tokio::test]
    async fn what_was_opened_is_reached_with_packet_and_rates() {
        let secrets = Secrets::generate().unwrap();
        let ports = [free(Protocol::Tcp), free(Protocol::Udp)];
        let open = Ports::open(HERE, &ports, &secrets, &NOTHING).await;
        assert!(open.opened.iter().all(|port| port.state == State::Open));
        let way = probe(ROUTE, &open.opened, &secrets, Some(u64::MAX)).await;
        let reached: Vec<_> = ports.iter().map(|port| (*port, Reach::Reached)).collect();
        assert_eq!(way.ports, reached);
        let arrived = Packet {
            size: 1500,
            arrived: true,
        };
        assert_eq!(way.packet, Some(arrived));
        let rates = way.rates.unwrap();
        assert!(rates.there > 0 && rates.back > 0, "{rates:?}");
    }

    #[tokio::test]
    async fn closed_held_and_strangers_ports_are_told_apart() {
        let secrets = Secrets::generate().unwrap();
        let (closed, datagram) = (free(Protocol::Tcp), free(Protocol::Udp));
        // Closed by who said that it is open: so it looks when packets are refused.
        let opened = |port| Opened {
            port,
            state: State::Open,
        };
        let way = probe(
            ROUTE,
            &[opened(closed), opened(datagram)],
            &secrets,
            Some(u64::MAX),
        )
        .await;
        assert_eq!(
            way.ports,
            [(closed, Reach::Refused), (datagram, Reach::Refused)]
        );
        assert_eq!((way.packet, way.rates), (None, None));

        // Somebody has them already, and nobody answers at one.
        let listener = std::net::TcpListener::bind(SocketAddr::new(HERE, 0)).unwrap();
        let held = port(Protocol::Tcp, listener.local_addr().unwrap().port());
        let silent = std::net::UdpSocket::bind(SocketAddr::new(HERE, 0)).unwrap();
        let mute = port(Protocol::Udp, silent.local_addr().unwrap().port());
        let open = Ports::open(HERE, &[held, mute], &secrets, &NOTHING).await;
        assert!(open.opened.iter().all(|port| port.state == State::Held));
        let way = probe(ROUTE, &open.opened, &secrets, Some(u64::MAX)).await;
        assert_eq!(way.ports[0].1, Reach::Reached);
        assert!(matches!(way.ports[1].1, Reach::Unknown(_)), "{way:?}");
        let way = probe(ROUTE, &[opened(mute)], &secrets, None).await;
        assert_eq!(way.ports[0].1, Reach::Silent);
    }

    #[tokio::test]
    async fn ports_of_the_clusters_own_services_are_left_to_them() {
        let secrets = Secrets::generate().unwrap();
        let own = free(Protocol::Tcp);
        let reserved = Reserved {
            own: vec![own.number].leak(),
            ..NOTHING
        };
        let down = Ports::open(HERE, &[own], &secrets, &reserved).await;
        let way = probe(ROUTE, &down.opened, &secrets, None).await;
        assert!(matches!(way.ports[0].1, Reach::Unknown(_)), "{way:?}");
        // The service starts meanwhile.
        let _service = std::net::TcpListener::bind((HERE, own.number)).unwrap();
        let up = Ports::open(HERE, &[own], &secrets, &reserved).await;
        assert_eq!(up.opened[0].state, State::Held);
        let way = probe(ROUTE, &up.opened, &secrets, None).await;
        assert_eq!(way.ports, [(own, Reach::Reached)]);
    }

    #[tokio::test]
    async fn who_does_not_know_the_secrets_gets_nothing_and_is_not_believed() {
        let (ours, others) = (Secrets::generate().unwrap(), Secrets::generate().unwrap());
        let ports = [free(Protocol::Tcp), free(Protocol::Udp)];
        let open = Ports::open(HERE, &ports, &ours, &NOTHING).await;
        let way = probe(ROUTE, &open.opened, &others, Some(u64::MAX)).await;
        // The way is open, whoever it is.
        assert!(matches!(way.ports[0].1, Reach::Unknown(_)), "{way:?}");
        assert_eq!(way.ports[1].1, Reach::Silent);
        assert_eq!(way.rates, None);
        // It knows the question, and hears another answer.
        let mixed = Secrets {
            question: ours.question.clone(),
            ..others
        };
        let way = probe(ROUTE, &open.opened, &mixed, Some(u64::MAX)).await;
        assert!(way.ports.iter().all(|(_, reach)| *reach != Reach::Reached));
    }
}
