//! A TCP listener that spreads connections over the backends that answer.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::board::Board;
use crate::config::Balancer;
use crate::files;

/// Connections at a time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 4096;
/// How long a backend may take to accept.
const CONNECT: Duration = Duration::from_secs(1);
/// A backend is asked for a sign of life after so many silent seconds, and has
/// as many again.
const SILENCE: u32 = 4;
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

async fn serve(listener: TcpListener, balancer: Balancer) {
    let balancer = Arc::new(balancer);
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
        let (balancer, next) = (balancer.clone(), next.clone());
        connections.spawn(async move {
            // Few connections are made, and each lives long: what is read anew for
            // each needs nobody to tell when it changes.
            forward(client, &balancer.backends(), &next).await;
            drop(permit);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(mut client: TcpStream, backends: &[SocketAddr], next: &AtomicUsize) {
    let first = next.fetch_add(1, Ordering::Relaxed);
    for index in 0..backends.len() {
        let address = backends[first.wrapping_add(index) % backends.len()];
        let Ok(Ok(mut backend)) = timeout(CONNECT, TcpStream::connect(address)).await else {
            continue;
        };
        // Small messages go at once, as they came.
        drop(client.set_nodelay(true));
        drop(backend.set_nodelay(true));
        // Without it the connection is as good until then.
        let _ = notice_death(&backend);
        // A broken connection is seen by both ends.
        drop(copy_bidirectional(&mut client, &mut backend).await);
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
}
