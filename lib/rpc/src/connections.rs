//! Connections between nodes over TLS.
//!
//! In: a listener, or an address. Out: streams whose other end is known by its
//! certificate, or proves soon that it knows a token. Connections, handshakes and
//! times are bounded: who has shown nothing gets no more than its address's part.

mod door;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use pki::JoinToken;
use pki::tls::{self, CHANNEL_LABEL, Channel, Identity, SECRET, Trust};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use self::door::{Door, Guest};
use crate::controller::{Error, Refusal, member};
use crate::images::ADMITTED;

/// Connections at a time; more wait. A node that gets the image holds one as long.
const MAX_CONNECTIONS: usize = 1024;
/// How long who is connected may take to show who it is.
const PROOF: Duration = Duration::from_secs(30);
/// How long a connection with its handshake may take, on either side.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a call may take: a node that leaves waits for its pods.
const CALL: Duration = Duration::from_secs(360);
/// How often a silent peer is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Wait before a wrong proof is answered and before accepting is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// What may be under way to us, on one stream and in all: parts of an image are
/// large, and not every way is short.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Who makes a proof: who connects.
const NODE: &str = "node";
/// Who makes a proof: who is connected to.
pub(crate) const CONTROLLER: &str = "controller";

/// A server with the limits of all of them.
pub(crate) fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .timeout(CALL)
        .concurrency_limit_per_connection(4)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
}

/// Accepts connections until the stream is dropped.
pub(crate) fn incoming(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
) -> ReceiverStream<io::Result<Connection>> {
    accepted(listener, tls, PROOF)
}

/// Ends connections whose other end has not shown within `proof` who it is.
fn accepted(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    proof: Duration,
) -> ReceiverStream<io::Result<Connection>> {
    let (send, receive) = mpsc::channel(1);
    let acceptor = Acceptor {
        tls: TlsAcceptor::from(tls),
        permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        proof,
        ready: send.clone(),
    };
    tokio::spawn(async move {
        tokio::select! {
            () = send.closed() => {}
            () = acceptor.run(listener) => {}
        }
    });
    ReceiverStream::new(receive)
}

#[derive(Clone)]
struct Acceptor {
    tls: TlsAcceptor,
    permits: Arc<Semaphore>,
    proof: Duration,
    ready: mpsc::Sender<io::Result<Connection>>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        let door = Arc::new(Door::default());
        loop {
            let (socket, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "can't accept");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let Some(guest) = door.enter(address.ip().to_canonical()) else {
                tracing::debug!(%address, "refused one of too many connections");
                continue;
            };
            let acceptor = self.clone();
            tokio::spawn(async move {
                match timeout(HANDSHAKE, acceptor.open(socket, guest)).await {
                    Ok(Ok(connection)) => {
                        // Nobody receives while the server ends.
                        let _ = acceptor.ready.send(Ok(connection)).await;
                    }
                    // Probes of a service's readiness do so.
                    Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        tracing::debug!(%address, "gone before the handshake");
                    }
                    Ok(Err(error)) => tracing::warn!(%address, %error, "refused a connection"),
                    Err(_) => tracing::warn!(%address, "a handshake took too long"),
                }
            });
        }
    }

    /// Waits for the turn of this connection, and opens it.
    async fn open(&self, socket: TcpStream, mut guest: Guest) -> io::Result<Connection> {
        guest.turn().await;
        let permit = self.permits.clone().acquire_owned().await;
        let permit = permit.map_err(io::Error::other)?;
        let stream = self.tls.accept(socket).await?;
        Connection::new(stream, guest, sleep(self.proof), permit)
    }
}

/// Who is at the other end.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    channel: Channel,
    /// The common name in its certificate.
    pub(crate) name: Option<String>,
    /// Its end.
    pub(crate) remote: SocketAddr,
    /// Our end.
    pub(crate) local: SocketAddr,
    has_proven: Arc<AtomicBool>,
    /// What proofs of its address take permits of.
    proofs: Arc<Semaphore>,
    /// It counts as one while nobody knows who it is.
    guest: Arc<Mutex<Option<Guest>>>,
}

impl Caller {
    /// Whoever sent a request.
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| Status::internal("the connection is not known"))
    }

    /// Demands the proof of one of the tokens; returns ours of the same.
    pub(crate) async fn prove(
        &self,
        tokens: &[JoinToken],
        id: &str,
        hmac: &[u8],
    ) -> Result<Vec<u8>, Status> {
        // It is never closed.
        let permit = self.proofs.clone().acquire_owned().await.ok();
        let fits = |token: &&JoinToken| {
            id == token.id && tls::is_proof(hmac, &token.secret, &self.channel, NODE)
        };
        match tokens.iter().find(fits) {
            Some(token) => {
                self.has_proven.store(true, Ordering::Relaxed);
                self.welcome();
                Ok(tls::proof(&token.secret, &self.channel, CONTROLLER))
            }
            None => {
                tracing::warn!(address = %self.remote, "refused a token");
                // Whoever ends the call or the connection before has no more guesses for
                // it: the permit stays taken, and the guest counts.
                let held = (permit, self.guest.clone());
                let pause = tokio::spawn(async move {
                    sleep(PAUSE).await;
                    drop(held);
                });
                drop(pause.await);
                Err(Status::unauthenticated(
                    "the token is wrong or has expired: `gravity token create` on a master makes another",
                ))
            }
        }
    }

    fn guest(&self) -> MutexGuard<'_, Option<Guest>> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is no guest any more.
    fn welcome(&self) {
        *self.guest() = None;
    }

    /// Whether its certificate is one of a node of the cluster, or of one that may
    /// become one.
    pub(crate) fn is_of_cluster(&self) -> bool {
        let name = self.name.as_deref().unwrap_or_default();
        name == ADMITTED || member(name).is_some()
    }

    /// Whether it has proven on this connection that it knows a token.
    pub(crate) fn has_proven(&self) -> bool {
        self.has_proven.load(Ordering::Relaxed)
    }
}

/// What somebody else opened.
pub(crate) struct Connection {
    stream: server::TlsStream<TcpStream>,
    caller: Caller,
    /// Until when it must have shown who it is; none where it has.
    end: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(
        stream: server::TlsStream<TcpStream>,
        guest: Guest,
        end: Sleep,
        permit: OwnedSemaphorePermit,
    ) -> io::Result<Self> {
        let (socket, tls) = stream.get_ref();
        let certificate = tls.peer_certificates().and_then(<[_]>::first);
        let caller = Caller {
            channel: tls
                .export_keying_material([0; SECRET], CHANNEL_LABEL, None)
                .map_err(io::Error::other)?,
            name: certificate.and_then(|certificate| tls::common_name(certificate)),
            remote: socket.peer_addr()?,
            local: socket.local_addr()?,
            has_proven: Arc::default(),
            proofs: guest.proofs(),
            guest: Arc::new(Mutex::new(Some(guest))),
        };
        // A certificate of ours: the handshake takes no others.
        if certificate.is_some() {
            caller.welcome();
        }
        Ok(Self {
            stream,
            caller,
            end: Some(Box::pin(end)),
            _permit: permit,
        })
    }

    /// Ready with an error when it has taken too long to show who it is.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if self.caller.guest().is_none() {
            self.end = None;
        }
        let Some(end) = &mut self.end else {
            return Poll::Pending;
        };
        ready!(end.as_mut().poll(context));
        let address = self.caller.remote;
        tracing::warn!(%address, "ended a connection of nobody we know");
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_end(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_end(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// What we opened.
#[derive(Debug)]
pub(crate) struct Opened {
    /// What calls go through: this one connection.
    pub(crate) transport: tonic::transport::Channel,
    channel: Channel,
    /// Our end.
    pub(crate) local: SocketAddr,
    /// The other end.
    pub(crate) remote: SocketAddr,
}

impl Opened {
    /// Connects to the first of `addresses` that answers; `from` chooses our end.
    pub(crate) async fn first(
        addresses: &[SocketAddr],
        from: Option<IpAddr>,
        trust: &Trust,
        identity: Option<&Identity>,
    ) -> Result<Self, Error> {
        let config = tls::client(trust, identity)?;
        let mut last = Error::NoAddress;
        for address in addresses {
            match connect(*address, from, config.clone()).await {
                Ok(stream) => return Self::new(stream).await,
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn new(stream: client::TlsStream<TcpStream>) -> Result<Self, Error> {
        let broken = |error: &dyn std::error::Error| Error::Broken(error.to_string());
        let (socket, tls) = stream.get_ref();
        let local = socket.local_addr().map_err(|error| broken(&error))?;
        let remote = socket.peer_addr().map_err(|error| broken(&error))?;
        let channel = tls
            .export_keying_material([0; SECRET], CHANNEL_LABEL, None)
            .map_err(|error| broken(&error))?;
        // A session is one connection: proofs are bound to it.
        let once = Arc::new(Mutex::new(Some(stream)));
        let transport = Endpoint::from_static("http://controller")
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_with_connector(tower::service_fn(move |_| {
                let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
                let lost = || io::Error::new(io::ErrorKind::ConnectionReset, "connection lost");
                std::future::ready(stream.map(TokioIo::new).ok_or_else(lost))
            }))
            .await
            .map_err(|error| broken(&error))?;
        Ok(Self {
            transport,
            channel,
            local,
            remote,
        })
    }

    /// Our proof that we know a token.
    pub(crate) fn proof(&self, token: &JoinToken) -> Vec<u8> {
        tls::proof(&token.secret, &self.channel, NODE)
    }

    /// Demands the other side's proof of it.
    pub(crate) fn demand(&self, token: &JoinToken, hmac: &[u8]) -> Result<(), Error> {
        match tls::is_proof(hmac, &token.secret, &self.channel, CONTROLLER) {
            true => Ok(()),
            false => Err(Error::Unproven),
        }
    }
}

async fn connect(
    address: SocketAddr,
    from: Option<IpAddr>,
    config: Arc<ClientConfig>,
) -> Result<client::TlsStream<TcpStream>, Error> {
    let failed = |source| Error::Connect { address, source };
    let late = |_| failed(io::ErrorKind::TimedOut.into());
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = socket.map_err(failed)?;
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0)).map_err(failed)?;
    }
    let socket = timeout(HANDSHAKE, socket.connect(address))
        .await
        .map_err(late)?
        .map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    let name = ServerName::from(address.ip());
    timeout(HANDSHAKE, TlsConnector::from(config).connect(name, socket))
        .await
        .map_err(late)?
        .map_err(|source| match source.kind() {
            // rustls' own errors.
            io::ErrorKind::InvalidData => Error::WrongCluster { address, source },
            _ => failed(source),
        })
}

/// What a call was answered in time.
pub(crate) async fn answer<T>(
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Error> {
    let answered = timeout(limit, call)
        .await
        .map_err(|_| Error::Broken(format!("no answer within {} s", limit.as_secs())))?;
    match answered {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err(failed(status)),
    }
}

/// What a status says: a refusal, or that the session broke.
pub(crate) fn failed(status: Status) -> Error {
    match status.code() {
        tonic::Code::FailedPrecondition | tonic::Code::Unauthenticated => {
            Refusal::Refused(status.message().to_owned()).into()
        }
        tonic::Code::ResourceExhausted => Refusal::NotNow(status.message().to_owned()).into(),
        _ => Error::Broken(status.message().to_owned()),
    }
}

/// The status of a refusal.
pub(crate) fn status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Refused(message) => Status::failed_precondition(message),
        Refusal::NotNow(message) => Status::resource_exhausted(message),
    }
}

/// Reads a part of an answer.
pub(crate) fn read<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(|error| Error::Broken(format!("the answer: {error}")))
}

/// Writes a part of an answer.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Status> {
    serde_json::to_vec(value).map_err(|error| Status::internal(error.to_string()))
}

#[cfg(test)]
mod tests;
