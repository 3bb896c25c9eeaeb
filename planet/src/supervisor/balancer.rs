//! A TCP listener that spreads connections over the backends that answer.
//!
//! In: a [`Balancer`]. Out: each connection goes to a backend that accepts it. One
//! that stands still is noticed though its kernel goes on to accept and to
//! acknowledge: its connections end, and new ones go to others. So do those of
//! one that is a backend no longer: a master that leaves has no etcd any more,
//! and its API server would keep waiting whoever is connected.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::board::Board;
use super::probe;
use crate::config::Balancer;
use crate::files;

/// Connections at a time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 4096;
/// How long a backend may take to accept.
const CONNECT: Duration = Duration::from_secs(1);
/// A backend is asked for a sign of life after so many silent seconds, and has
/// as many again.
const SILENCE: u32 = 4;
/// How often it is looked whether backends still speak TLS, and how long one may
/// take. It is silent when it fails twice in a row.
const LOOK: Duration = Duration::from_secs(2);
const HANDSHAKE: Duration = Duration::from_secs(3);
const FAILURES: u32 = 2;
/// Wait before listening or accepting is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Listens for ever.
pub(super) async fn run(balancer: Balancer, board: Board) {
    let listener = loop {
        match TcpListener::bind(balancer.listen).await {
            Ok(listener) => break listener,
            Err(error) => board.warn(format!("listen at {}: {error}", balancer.listen)),
        }
        sleep(RETRY).await;
    };
    serve(listener, balancer).await;
}

impl Balancer {
    /// Where a connection may go now.
    fn backends(&self) -> Vec<SocketAddr> {
        let named = self.backends_file.as_deref().and_then(read_addresses);
        match named {
            Some(named) => {
                let port = self.backends.first().map_or(0, SocketAddr::port);
                let at = |address| SocketAddr::new(address, port);
                named.into_iter().map(at).collect()
            }
            None => self.backends.clone(),
        }
    }
}

/// The addresses in a file. `None` where it isn't there, is damaged or empty.
fn read_addresses(path: &Path) -> Option<Vec<IpAddr>> {
    let addresses: Vec<IpAddr> = files::read_json(path).ok()?;
    (!addresses.is_empty()).then_some(addresses)
}

/// Backends that are silent while others are not.
type Silent = BTreeSet<SocketAddr>;

/// What is known of the backends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    silent: Silent,
    /// All that there are; none before the first look.
    listed: BTreeSet<SocketAddr>,
}

/// Looks for ever which backends there are and which of them are silent.
async fn look(balancer: Arc<Balancer>, known: watch::Sender<Known>) {
    let mut failures = BTreeMap::new();
    loop {
        sleep(LOOK).await;
        let backends = balancer.backends();
        if backends.len() < 2 {
            failures.clear();
        } else {
            let mut looks = JoinSet::new();
            for backend in &backends {
                let backend = *backend;
                looks.spawn(async move {
                    let spoke = timeout(HANDSHAKE, probe::handshake(backend)).await;
                    (backend, matches!(spoke, Ok(Ok(_))))
                });
            }
            failures.retain(|backend, _| backends.contains(backend));
            for (backend, spoke) in looks.join_all().await {
                let count = failures.entry(backend).or_default();
                *count = if spoke { 0 } else { *count + 1 };
            }
        }
        let found = Known {
            silent: silent_ones(&failures),
            listed: backends.into_iter().collect(),
        };
        known.send_if_modified(|known| {
            let changed = *known != found;
            if known.silent != found.silent {
                let silent = &found.silent;
                tracing::info!(?silent, "backends that do not speak any more");
            }
            *known = found;
            changed
        });
    }
}

/// Where all are silent, none is worse than another.
fn silent_ones(failures: &BTreeMap<SocketAddr, u32>) -> Silent {
    let silent = failures.iter().filter(|(_, count)| **count >= FAILURES);
    let silent: Silent = silent.map(|(backend, _)| *backend).collect();
    match silent.len() == failures.len() {
        true => Silent::new(),
        false => silent,
    }
}

async fn serve(listener: TcpListener, balancer: Balancer) {
    let balancer = Arc::new(balancer);
    let (told, known) = watch::channel(Known::default());
    let mut helpers = JoinSet::new();
    if balancer.tls {
        helpers.spawn(look(balancer.clone(), told));
    }
    let next = Arc::new(AtomicUsize::new(0));
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let Ok((client, _)) = listener.accept().await else {
            sleep(RETRY).await;
            continue;
        };
        let (balancer, next, known) = (balancer.clone(), next.clone(), known.clone());
        connections.spawn(async move {
            // Few connections are made, and each lives long: what is read anew for
            // each needs nobody to tell when it changes.
            forward(client, balancer.backends(), &next, known).await;
            drop(permit);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(
    mut client: TcpStream,
    mut backends: Vec<SocketAddr>,
    next: &AtomicUsize,
    mut known: watch::Receiver<Known>,
) {
    if backends.is_empty() {
        return;
    }
    let first = next.fetch_add(1, Ordering::Relaxed) % backends.len();
    backends.rotate_left(first);
    let silent = known.borrow_and_update().silent.clone();
    backends.sort_by_key(|backend| silent.contains(backend));
    for address in backends {
        let Ok(Ok(mut backend)) = timeout(CONNECT, TcpStream::connect(address)).await else {
            continue;
        };
        // Small messages go at once, as they came.
        drop(client.set_nodelay(true));
        drop(backend.set_nodelay(true));
        // Without it the connection is as good until then.
        let _ = notice_death(&backend);
        let end = async {
            // One that has just become a backend may be listed a moment later.
            let mut was_listed = false;
            let ends = known.wait_for(|now| {
                let fell = now.silent.contains(&address) && !silent.contains(&address);
                let is_listed = now.listed.contains(&address);
                was_listed |= is_listed;
                fell || (was_listed && !is_listed)
            });
            if ends.await.is_err() {
                // Nobody looks.
                std::future::pending::<()>().await;
            }
        };
        // A broken connection is seen by both ends.
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut backend) => {}
            () = end => {}
        }
        return;
    }
}

/// Ends a connection with a machine that has gone without a word.
fn notice_death(backend: &TcpStream) -> nix::Result<()> {
    setsockopt(backend, sockopt::KeepAlive, &true)?;
    setsockopt(backend, sockopt::TcpKeepIdle, &SILENCE)?;
    setsockopt(backend, sockopt::TcpKeepInterval, &1)?;
    setsockopt(backend, sockopt::TcpKeepCount, &SILENCE)?;
    setsockopt(backend, sockopt::TcpUserTimeout, &(SILENCE * 2 * 1000))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_dead_backend_is_passed_over() {
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backends = vec![dead.local_addr().unwrap(), live.local_addr().unwrap()];
        let address = front.local_addr().unwrap();
        drop(dead);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("backends.json");
        let balancer = Balancer {
            listen: address,
            backends,
            backends_file: Some(file.clone()),
            tls: false,
        };
        tokio::spawn(serve(front, balancer));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = live.accept().await.unwrap();
                stream.write_all(b"hello").await.unwrap();
            }
        });
        for _ in 0..4 {
            let mut text = String::new();
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "hello");
        }

        // Nobody is at that address and port: the file counts from now on.
        std::fs::File::create(&file)
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"[\"127.0.0.9\"]"))
            .unwrap();
        let mut text = String::new();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let read = stream.read_to_string(&mut text).await;
        assert!(read.is_err() || text.is_empty(), "{text}");
    }

    #[test]
    fn who_fails_twice_is_silent_unless_all_are() {
        let [a, b] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let silent = |of_a, of_b| silent_ones(&BTreeMap::from([(a, of_a), (b, of_b)]));
        assert_eq!(silent(0, 1), Silent::new());
        assert_eq!(silent(0, 2), Silent::from([b]));
        assert_eq!(silent(9, 2), Silent::new());
    }

    #[tokio::test]
    async fn connections_with_a_backend_that_falls_silent_or_is_one_no_longer_end() {
        let one = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let two = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backends = [&one, &two].map(|one| one.local_addr().unwrap());
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = front.local_addr().unwrap();
        let (told, known) = watch::channel(Known::default());
        let connect = || async {
            let stream = TcpStream::connect(address).await.unwrap();
            let (client, _) = front.accept().await.unwrap();
            let known = known.clone();
            let next = AtomicUsize::new(0);
            tokio::spawn(async move {
                forward(client, backends.to_vec(), &next, known).await;
            });
            stream
        };
        let mut first = connect().await;
        let _open = one.accept().await.unwrap();
        told.send_replace(Known {
            silent: Silent::from([backends[0]]),
            listed: backends.into(),
        });
        let ended = timeout(Duration::from_secs(5), first.read(&mut [0])).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
        let mut second = connect().await;
        let other = timeout(Duration::from_secs(5), two.accept()).await;
        assert!(matches!(other, Ok(Ok(_))), "new ones go elsewhere");

        let still = timeout(Duration::from_millis(100), second.read(&mut [0])).await;
        assert!(still.is_err(), "{still:?}");
        told.send_replace(Known {
            silent: Silent::new(),
            listed: [backends[0]].into(),
        });
        let ended = timeout(Duration::from_secs(5), second.read(&mut [0])).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    }
}
