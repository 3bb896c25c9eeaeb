//! A TCP listener that spreads connections over the backends that answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::board::Board;
use crate::config::Balancer;

/// Connections at a time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 4096;
/// How long a backend may take to accept.
const CONNECT: Duration = Duration::from_secs(1);
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
    serve(listener, balancer.backends).await;
}

async fn serve(listener: TcpListener, backends: Vec<SocketAddr>) {
    let backends: Arc<[SocketAddr]> = backends.into();
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
        let (backends, next) = (backends.clone(), next.clone());
        connections.spawn(async move {
            forward(client, &backends, &next).await;
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
        // A broken connection is seen by both ends.
        drop(copy_bidirectional(&mut client, &mut backend).await);
        return;
    }
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
        tokio::spawn(serve(front, backends));
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
    }
}
