//! The side that is measured with.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use host::facts::Port;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::ports::{Opened, Ports, Route, probe};
use super::{Here, MAX_MESSAGE, MAX_PORTS, PROTOCOL, Secrets};
use crate::connections::{self, Caller, json, status};
use crate::controller::Tokens;
use crate::proto::peer::peer_server::{self, PeerServer};
use crate::proto::peer::{
    ClockReply, ClockRequest, GreetReply, GreetRequest, OpenReply, OpenRequest, ProbeReply,
    ProbeRequest,
};

/// Longest time that ports are open.
const OPEN: Duration = Duration::from_secs(120);

/// Serves other nodes until `stop` comes back.
///
/// # Errors
/// When the transport fails.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    tokens: Arc<dyn Tokens>,
    here: Here,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), crate::Error> {
    connections::server()
        .add_service(service(Some(tokens), here))
        .serve_with_incoming_shutdown(connections::incoming(listener, tls), stop)
        .await
        .map_err(crate::Error::Serve)
}

/// The service alone. Without `tokens` it is for those of the cluster only.
pub(crate) fn service(tokens: Option<Arc<dyn Tokens>>, here: Here) -> PeerServer<Service> {
    PeerServer::new(Service { tokens, here })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// Answers other nodes.
pub(crate) struct Service {
    tokens: Option<Arc<dyn Tokens>>,
    here: Here,
}

/// Who has shown that it knows a token, or is of the cluster.
fn known<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = Caller::of(request)?;
    match caller.has_proven() || caller.is_of_cluster() {
        true => Ok(caller),
        false => Err(Status::unauthenticated("a session begins with a token")),
    }
}

fn secrets(question: Vec<u8>, answer: Vec<u8>) -> Result<Secrets, Status> {
    let wrong = || Status::failed_precondition("question or answer has a wrong length");
    Secrets::of(question, answer).ok_or_else(wrong)
}

fn limited<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<Vec<T>, Status> {
    let ports: Vec<T> = serde_json::from_slice(json)
        .map_err(|error| Status::failed_precondition(format!("read the ports: {error}")))?;
    match ports.len() <= MAX_PORTS {
        true => Ok(ports),
        false => Err(Status::failed_precondition(format!(
            "{} ports at once, where {MAX_PORTS} are the most",
            ports.len()
        ))),
    }
}

#[tonic::async_trait]
impl peer_server::Peer for Service {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<OpenReply, Status>> + Send>>;

    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<GreetReply>, Status> {
        let message = request.get_ref();
        if message.protocol != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "this node measures by protocol {PROTOCOL}, yours by {}: use the same gravity on both",
                message.protocol
            )));
        }
        let caller = Caller::of(&request)?;
        let hmac = match &self.tokens {
            _ if caller.is_of_cluster() => Vec::new(),
            Some(tokens) => {
                let tokens = tokens.tokens().await.map_err(status)?;
                let (id, hmac) = (&message.token_id, &message.hmac);
                caller.prove(&tokens, id, hmac).await?
            }
            None => {
                return Err(Status::unauthenticated(
                    "this node is a worker, which knows no tokens: name a master of its cluster",
                ));
            }
        };
        let who = json(&self.here.who)?;
        Ok(Response::new(GreetReply { hmac, who }))
    }

    async fn clock(&self, request: Request<ClockRequest>) -> Result<Response<ClockReply>, Status> {
        known(&request)?;
        let time_us = (self.here.clock)();
        Ok(Response::new(ClockReply { time_us }))
    }

    async fn open(
        &self,
        request: Request<OpenRequest>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let caller = known(&request)?;
        let message = request.into_inner();
        let secrets = secrets(message.question, message.answer)?;
        let ports: Vec<Port> = limited(&message.ports)?;
        let (at, reserved) = (caller.local.ip(), &self.here.reserved);
        let open = Ports::open(at, &ports, &secrets, reserved).await;
        let reply = OpenReply {
            opened: json(&open.opened)?,
        };
        let (send, receive) = mpsc::channel(1);
        tokio::spawn(async move {
            // As long as somebody reads.
            if send.send(Ok(reply)).await.is_ok() {
                let _ = timeout(OPEN, send.closed()).await;
            }
            open.close().await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn probe(&self, request: Request<ProbeRequest>) -> Result<Response<ProbeReply>, Status> {
        let caller = known(&request)?;
        let message = request.into_inner();
        let secrets = secrets(message.question, message.answer)?;
        let opened: Vec<Opened> = limited(&message.opened)?;
        let from = caller.local.ip();
        // Nobody but who asks is tried.
        let route = Route {
            from,
            to: caller.remote.ip(),
            mtu: self.here.mtu(from),
        };
        let enough = message.rates.then_some(u64::MAX);
        let way = probe(route, &opened, &secrets, enough).await;
        Ok(Response::new(ProbeReply { way: json(&way)? }))
    }
}
