//! Whether this host forwards packets between pods.
//!
//! In: the network of pods, and the host's `ip`. Out: whether TCP and UDP come
//! through between two network namespaces with addresses of pods, as a firewall
//! would let them. The namespaces are of threads: they end with this process,
//! whatever ends it, and their links with them. Forwarding is turned on for
//! these links only.

use std::io::{Error, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use host::causes::causes;
use host::command::{Cmd, CommandError, installed};
use host::facts::HostFacts;
use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use crate::Requirements;

/// How long packets may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long `ip` may take.
const SETUP: Duration = Duration::from_secs(5);
/// Port of both protocols in the second namespace.
const PORT: u16 = 8080;
/// Links on the host's side.
const LINKS: [&str; 2] = ["gravity-check0", "gravity-check1"];

/// What comes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarding {
    /// TCP does.
    pub tcp: bool,
    /// UDP does.
    pub udp: bool,
}

/// A host's and a pod's address on one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    host: Ipv4Addr,
    pod: Ipv4Addr,
}

/// Tries it.
pub(crate) fn measure(requirements: &Requirements, host: &HostFacts) -> Result<Forwarding, String> {
    if requirements.joined {
        return Err("the network of pods is in use".into());
    }
    if host.uid != 0 {
        return Err("only root can try".into());
    }
    if !installed("ip") {
        return Err("`ip` is not installed".into());
    }
    let pairs = requirements.pod_cidrs.first().and_then(|cidr| pairs(cidr));
    let pairs = pairs.ok_or("no network of pods with room for it")?;
    between(pairs)
}

/// The first two networks of four addresses.
fn pairs(cidr: &str) -> Option<[Pair; 2]> {
    let network: Ipv4Net = cidr.parse().ok()?;
    let base = network.network().to_bits();
    let pair = |offset: u32| {
        let [host, pod] = [1, 2].map(|n| Ipv4Addr::from_bits(base.wrapping_add(offset + n)));
        network.contains(&pod).then_some(Pair { host, pod })
    };
    Some([pair(0)?, pair(4)?])
}

fn between([one, other]: [Pair; 2]) -> Result<Forwarding, String> {
    std::thread::scope(|scope| {
        let (to_host, from_pods) = channel();
        let (to_server, configured) = channel();
        let ready = to_host.clone();
        let server = scope.spawn(move || serve(other, &ready, &configured));
        let server_space = told(&from_pods)?;
        let (to_client, wait) = channel();
        let client = scope.spawn(move || ask(one, other.pod, &to_host, &wait));
        let client_space = told(&from_pods)?;
        let linked =
            link(LINKS[0], one, &client_space).and_then(|()| link(LINKS[1], other, &server_space));
        let result = match linked {
            Ok(()) => {
                // The server has its link first; a thread that has ended says why.
                let _ = to_server.send(());
                told(&from_pods).and_then(|_| {
                    let _ = to_client.send(());
                    client
                        .join()
                        .unwrap_or_else(|_| Err("the client's thread ended".into()))
                })
            }
            Err(error) => Err(causes(&error)),
        };
        // Those that still wait give up.
        drop((to_server, to_client));
        // They would go with the namespaces, but some time after them.
        for name in LINKS {
            let _ = ip(&format!("link delete {name}"));
        }
        let served = server
            .join()
            .unwrap_or_else(|_| Err("the server's thread ended".into()));
        served.and(result)
    })
}

/// What a thread says when it is ready.
fn told(from: &Receiver<Result<String, String>>) -> Result<String, String> {
    from.recv_timeout(SETUP)
        .map_err(|_| "the namespace was not ready in time".to_owned())?
}

/// Enters a namespace of its own and says where it is.
fn enter(ready: &Sender<Result<String, String>>) -> Result<(), String> {
    let result = unshare(CloneFlags::CLONE_NEWNET)
        .map(|()| {
            format!(
                "/proc/{}/task/{}/ns/net",
                std::process::id(),
                nix::unistd::gettid()
            )
        })
        .map_err(|error| format!("make a network namespace: {error}"));
    let _ = ready.send(result.clone());
    result.map(drop)
}

/// Gives a namespace a link to the host.
fn link(name: &str, pair: Pair, space: &str) -> Result<(), CommandError> {
    ip(&format!(
        "link add {name} type veth peer name eth0 netns {space}"
    ))?;
    ip(&format!("address add {}/30 dev {name}", pair.host))?;
    ip(&format!("link set {name} up"))?;
    let forwarding = format!("net/ipv4/conf/{name}/forwarding");
    host::sysctl::set(&forwarding, "1").map_err(|error| CommandError::Start {
        what: "forward packets of the link".into(),
        program: "sysctl".into(),
        source: Error::other(error),
    })
}

/// Configures the namespace of the calling thread, which programs that it
/// starts are in.
fn configure(pair: Pair) -> Result<(), CommandError> {
    ip("link set lo up")?;
    ip(&format!("address add {}/30 dev eth0", pair.pod))?;
    ip("link set eth0 up")?;
    ip(&format!("route add default via {}", pair.host))
}

fn ip(arguments: &str) -> Result<(), CommandError> {
    Cmd::new("ip")
        .args(arguments.split(' '))
        .timeout(SETUP)
        .run()
        .map(drop)
}

/// Answers one TCP connection and one packet, or gives up.
fn serve(
    pair: Pair,
    ready: &Sender<Result<String, String>>,
    go: &Receiver<()>,
) -> Result<(), String> {
    enter(ready)?;
    if go.recv().is_err() {
        return Ok(());
    }
    let listen = || -> Result<(TcpListener, UdpSocket), String> {
        configure(pair).map_err(|error| causes(&error))?;
        let at = SocketAddr::new(IpAddr::V4(pair.pod), PORT);
        let text = |error: Error| format!("listen in the namespace: {error}");
        let tcp = TcpListener::bind(at).map_err(text)?;
        tcp.set_nonblocking(true).map_err(text)?;
        let udp = UdpSocket::bind(at).map_err(text)?;
        udp.set_nonblocking(true).map_err(text)?;
        Ok((tcp, udp))
    };
    let sockets = listen();
    let _ = ready.send(
        sockets
            .as_ref()
            .map(|_| String::new())
            .map_err(Clone::clone),
    );
    let (tcp, udp) = sockets?;
    let end = Instant::now() + SETUP;
    let mut open = Vec::new();
    let (mut tcp_done, mut udp_done) = (false, false);
    // The client ends the wait for what doesn't come; until then it sleeps.
    while Instant::now() < end
        && !(tcp_done && udp_done)
        && go.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected)
    {
        if let Ok((mut stream, _)) = tcp.accept() {
            tcp_done = stream.write_all(b"pong").is_ok();
            open.push(stream);
        }
        let mut packet = [0; 16];
        if let Ok((length, from)) = udp.recv_from(&mut packet) {
            udp_done = udp.send_to(&packet[..length], from).is_ok();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Asks the server in the other namespace.
fn ask(
    pair: Pair,
    server: Ipv4Addr,
    ready: &Sender<Result<String, String>>,
    go: &Receiver<()>,
) -> Result<Forwarding, String> {
    enter(ready)?;
    if go.recv().is_err() {
        return Err("the links were not made".into());
    }
    configure(pair).map_err(|error| causes(&error))?;
    let server = SocketAddr::new(IpAddr::V4(server), PORT);
    Ok(Forwarding {
        udp: udp(server).is_ok(),
        tcp: tcp(server).is_ok(),
    })
}

fn tcp(server: SocketAddr) -> Result<(), Error> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut [0; 4])
}

/// A packet may get lost while links come up: three are sent.
fn udp(server: SocketAddr) -> Result<(), Error> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE / 3))?;
    let mut last = Ok(());
    for _ in 0..3 {
        socket.send(b"ping")?;
        last = socket.recv(&mut [0; 16]).map(drop);
        if last.is_ok() {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{facts, requirements};

    #[test]
    fn addresses_are_of_the_network_of_pods() {
        let [one, other] = pairs("10.244.0.0/16").unwrap();
        assert_eq!(one.pod, Ipv4Addr::new(10, 244, 0, 2));
        assert_eq!(other.host, Ipv4Addr::new(10, 244, 0, 5));
        for small in ["10.244.0.0/30", "fd00::/64", ""] {
            assert_eq!(pairs(small), None, "{small}");
        }
    }

    #[test]
    fn it_is_not_tried_where_it_would_disturb_or_cannot_be() {
        let mut requirements = requirements();
        let mut user = facts();
        user.uid = 1000;
        assert!(measure(&requirements, &user).is_err());
        requirements.joined = true;
        assert!(
            measure(&requirements, &facts())
                .unwrap_err()
                .contains("in use")
        );
    }
}
