//! The cluster's side: offers a [`Controller`] over TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pki::JoinToken;
use pki::tls::{self, CHANNEL_LABEL, Channel, SECRET};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{CONTROLLER, Controller, MAX_MESSAGE, NODE, PROTOCOL, Refusal, member};
use crate::proto::controller::controller_server::{self, ControllerServer};
use crate::proto::controller::{
    DescribeReply, DescribeRequest, JoinReply, JoinRequest, KeysReply, KeysRequest, LeaveReply,
    LeaveRequest, Proof, RegisterReply, RegisterRequest, SignReply, SignRequest,
};

/// Connections at a time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 256;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a call may take: a node that leaves waits for its pods.
const CALL: Duration = Duration::from_secs(360);
/// How often a silent peer is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Wait before a wrong proof is answered and before accepting is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// Most certificates in one request; a node has about a dozen.
const MAX_REQUESTS: usize = 64;

/// Serves until `stop` comes back.
///
/// # Errors
/// When the transport fails.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    controller: Arc<dyn Controller>,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), crate::Error> {
    let (send, receive) = mpsc::channel(1);
    let accepting = tokio::spawn(accept(listener, TlsAcceptor::from(tls), send));
    let service = ControllerServer::new(Service(controller))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let served = tonic::transport::Server::builder()
        .timeout(CALL)
        .concurrency_limit_per_connection(4)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(receive), stop)
        .await
        .map_err(crate::Error::Serve);
    accepting.abort();
    served
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let (socket, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "can't accept");
                sleep(PAUSE).await;
                continue;
            }
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE, acceptor.accept(socket)).await {
                Ok(Ok(stream)) => {
                    if let Some(connection) = Connection::new(stream, permit) {
                        // Nobody receives while the server ends.
                        let _ = ready.send(Ok(connection)).await;
                    }
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

/// Who is at the other end.
#[derive(Debug, Clone)]
struct Peer {
    channel: Channel,
    member: Option<Uuid>,
    address: String,
}

struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: TlsStream<TcpStream>, permit: OwnedSemaphorePermit) -> Option<Self> {
        let (socket, tls) = stream.get_ref();
        let certificate = tls.peer_certificates().and_then(<[_]>::first);
        let peer = Peer {
            channel: tls
                .export_keying_material([0; SECRET], CHANNEL_LABEL, None)
                .ok()?,
            member: certificate.and_then(|certificate| member(&tls::common_name(certificate)?)),
            address: socket.peer_addr().ok()?.to_string(),
        };
        Some(Self {
            stream,
            peer,
            _permit: permit,
        })
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

struct Service(Arc<dyn Controller>);

impl Service {
    /// Demands the proof of a valid token; returns ours of the same.
    async fn known<T>(
        &self,
        request: &Request<T>,
        protocol: u32,
        proof: Option<&Proof>,
    ) -> Result<Vec<u8>, Status> {
        if protocol != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "the cluster speaks protocol {PROTOCOL}, this node {protocol}: use the gravity of the cluster's image"
            )));
        }
        let peer = peer(request)?;
        let tokens = self.0.tokens().await.map_err(status)?;
        let fits = |token: &&JoinToken| {
            proof.is_some_and(|proof| {
                proof.token_id == token.id
                    && tls::is_proof(&proof.hmac, &token.secret, &peer.channel, NODE)
            })
        };
        match tokens.iter().find(fits) {
            Some(token) => Ok(tls::proof(&token.secret, &peer.channel, CONTROLLER)),
            None => {
                tracing::warn!(address = peer.address, "refused a token");
                sleep(PAUSE).await;
                Err(Status::unauthenticated(
                    "the token is wrong or has expired: `gravity token create` on a master makes another",
                ))
            }
        }
    }
}

fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = request.extensions().get::<Peer>().cloned();
    peer.ok_or_else(|| Status::internal("the connection is not known"))
}

fn node<T>(request: &Request<T>) -> Result<Uuid, Status> {
    peer(request)?
        .member
        .ok_or_else(|| Status::unauthenticated("this is for nodes of the cluster only"))
}

fn status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Refused(message) => Status::failed_precondition(message),
        Refusal::NotNow(message) => Status::resource_exhausted(message),
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Status> {
    serde_json::to_vec(value).map_err(|error| Status::internal(error.to_string()))
}

#[tonic::async_trait]
impl controller_server::Controller for Service {
    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeReply>, Status> {
        let message = request.get_ref();
        let hmac = self
            .known(&request, message.protocol, message.proof.as_ref())
            .await?;
        let cluster = json(&self.0.describe().await.map_err(status)?)?;
        Ok(Response::new(DescribeReply { hmac, cluster }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let message = request.get_ref();
        let hmac = self
            .known(&request, message.protocol, message.proof.as_ref())
            .await?;
        let candidate = serde_json::from_slice(&message.candidate)
            .map_err(|error| Status::failed_precondition(format!("read the node: {error}")))?;
        let membership = self
            .0
            .join(candidate, &message.certificate_request)
            .await
            .map_err(status)?;
        let membership = json(&membership)?;
        Ok(Response::new(JoinReply { hmac, membership }))
    }

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignReply>, Status> {
        let node = node(&request)?;
        let requests = request.into_inner().requests;
        if requests.len() > MAX_REQUESTS {
            return Err(Status::failed_precondition(format!(
                "{} certificates at once, where {MAX_REQUESTS} are the most",
                requests.len()
            )));
        }
        let signed = self.0.sign(node, requests.into_iter().collect()).await;
        let certificates = signed.map_err(status)?.into_iter().collect();
        Ok(Response::new(SignReply { certificates }))
    }

    async fn keys(&self, request: Request<KeysRequest>) -> Result<Response<KeysReply>, Status> {
        let files = self.0.keys(node(&request)?).await.map_err(status)?;
        let files = files.into_iter().collect();
        Ok(Response::new(KeysReply { files }))
    }

    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterReply>, Status> {
        self.0.register(node(&request)?).await.map_err(status)?;
        Ok(Response::new(RegisterReply {}))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        let (node, force) = (node(&request)?, request.get_ref().force);
        self.0.leave(node, force).await.map_err(status)?;
        Ok(Response::new(LeaveReply {}))
    }
}
