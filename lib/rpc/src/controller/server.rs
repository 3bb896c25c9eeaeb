//! The cluster's side: offers a [`Controller`] over TLS.

use std::sync::Arc;

use event::{Event, Sink};
use rustls::ServerConfig;
use spec::Candidate;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Controller, MAX_MESSAGE, PROTOCOL, Refusal, member};
use crate::connections::{self, Caller, json, status};
use crate::images::{self, ADMITTED, Images};
use crate::peer::{self, Here};
use crate::proto::controller::controller_server::{self, ControllerServer};
use crate::proto::controller::{
    AddedRequest, AdmitReply, AdmitRequest, DescribeReply, DescribeRequest, Done, FetchingReply,
    FetchingRequest, FitsReply, FitsRequest, JoinReply, JoinRequest, KeysReply, KeysRequest,
    LeaveRequest, Progress, Proof, Refused, RegisterRequest, SignReply, SignRequest, progress,
};

/// Most certificates in one request; a node has about a dozen.
const MAX_REQUESTS: usize = 64;

/// Serves until `stop` comes back. Nodes can measure what lies between them and
/// this host, too, which is `here`, and get the cluster's image, of `images`.
///
/// # Errors
/// When the transport fails.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    controller: Arc<dyn Controller>,
    here: Here,
    images: Arc<dyn Images>,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), crate::Error> {
    let peer = peer::service(Some(controller.clone()), here);
    let service = ControllerServer::new(Service(controller))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    connections::server()
        .add_service(service)
        .add_service(peer)
        .add_service(images::service(images))
        .serve_with_incoming_shutdown(connections::incoming(listener, tls), stop)
        .await
        .map_err(crate::Error::Serve)
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
        let caller = Caller::of(request)?;
        let tokens = self.0.tokens().await.map_err(status)?;
        let none = Proof::default();
        let proof = proof.unwrap_or(&none);
        caller.prove(&tokens, &proof.token_id, &proof.hmac).await
    }
}

fn candidate(json: &[u8]) -> Result<Candidate, Status> {
    serde_json::from_slice(json)
        .map_err(|error| Status::failed_precondition(format!("read the node: {error}")))
}

fn node<T>(request: &Request<T>) -> Result<Uuid, Status> {
    let caller = Caller::of(request)?;
    caller
        .name
        .and_then(|name| member(&name))
        .ok_or_else(|| Status::unauthenticated("this is for nodes of the cluster only"))
}

fn operation(text: &str) -> Result<Uuid, Status> {
    let wrong = |_| Status::failed_precondition("the operation has no identity");
    text.parse().map_err(wrong)
}

type Followed = UnboundedReceiverStream<Result<Progress, Status>>;

/// Sends events to who asked, as long as it listens.
struct Told(mpsc::UnboundedSender<Result<Progress, Status>>);

impl Told {
    fn tell(&self, progress: progress::Progress) {
        // Who has gone has nobody to tell.
        let progress = Some(progress);
        drop(self.0.send(Ok(Progress { progress })));
    }
}

impl Sink for Told {
    fn emit(&self, event: Event) {
        if let Ok(json) = serde_json::to_vec(&event) {
            self.tell(progress::Progress::Event(json));
        }
    }
}

/// Begins something that takes its time; it goes on when nobody listens any more.
fn follow<F>(begin: impl FnOnce(Arc<dyn Sink>) -> F) -> Response<Followed>
where
    F: Future<Output = Result<(), Refusal>> + Send + 'static,
{
    let (send, receive) = mpsc::unbounded_channel();
    let told = Arc::new(Told(send));
    let running = begin(told.clone());
    tokio::spawn(async move {
        let (message, not_now) = match running.await {
            Ok(()) => return told.tell(progress::Progress::Done(Done {})),
            Err(Refusal::Refused(message)) => (message, false),
            Err(Refusal::NotNow(message)) => (message, true),
        };
        told.tell(progress::Progress::Refused(Refused { message, not_now }));
    });
    Response::new(UnboundedReceiverStream::new(receive))
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

    async fn fits(&self, request: Request<FitsRequest>) -> Result<Response<FitsReply>, Status> {
        let message = request.get_ref();
        let hmac = self
            .known(&request, message.protocol, message.proof.as_ref())
            .await?;
        let candidate = candidate(&message.candidate)?;
        self.0.fits(candidate).await.map_err(status)?;
        Ok(Response::new(FitsReply { hmac }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let message = request.get_ref();
        let hmac = self
            .known(&request, message.protocol, message.proof.as_ref())
            .await?;
        let candidate = candidate(&message.candidate)?;
        let membership = self
            .0
            .join(candidate, &message.certificate_request)
            .await
            .map_err(status)?;
        let membership = json(&membership)?;
        Ok(Response::new(JoinReply { hmac, membership }))
    }

    async fn admit(&self, request: Request<AdmitRequest>) -> Result<Response<AdmitReply>, Status> {
        let message = request.get_ref();
        let hmac = self
            .known(&request, message.protocol, message.proof.as_ref())
            .await?;
        let address = Caller::of(&request)?.remote.ip().to_canonical();
        let admitted = self.0.admit(&message.certificate_request, address).await;
        let admitted = admitted.map_err(status)?;
        Ok(Response::new(AdmitReply {
            hmac,
            certificate: admitted.certificate,
            authority: admitted.authority,
        }))
    }

    async fn fetching(
        &self,
        request: Request<FetchingRequest>,
    ) -> Result<Response<FetchingReply>, Status> {
        let caller = Caller::of(&request)?;
        if caller.name.as_deref() != Some(ADMITTED) {
            return Err(Status::unauthenticated(
                "this is for nodes that get the image only",
            ));
        }
        let others = self.0.fetching(caller.remote.ip().to_canonical());
        let addresses = others.iter().map(ToString::to_string).collect();
        Ok(Response::new(FetchingReply { addresses }))
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

    type RegisterStream = Followed;
    type AddedStream = Followed;
    type LeaveStream = Followed;

    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<Followed>, Status> {
        let (node, controller) = (node(&request)?, self.0.clone());
        let operation = operation(&request.get_ref().operation)?;
        Ok(follow(|sink| async move {
            controller.register(node, operation, sink).await
        }))
    }

    async fn added(&self, request: Request<AddedRequest>) -> Result<Response<Followed>, Status> {
        let (node, controller) = (node(&request)?, self.0.clone());
        let operation = operation(&request.get_ref().operation)?;
        Ok(follow(|sink| async move {
            controller.added(node, operation, sink).await
        }))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<Followed>, Status> {
        let (node, controller) = (node(&request)?, self.0.clone());
        let force = request.get_ref().force;
        Ok(follow(|sink| async move {
            controller.leave(node, force, sink).await
        }))
    }
}
