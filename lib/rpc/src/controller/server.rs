//! The cluster's side: offers a [`Controller`] over TLS.

use std::sync::Arc;

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Controller, MAX_MESSAGE, PROTOCOL, member};
use crate::connections::{self, Caller, json, status};
use crate::peer::{self, Here};
use crate::proto::controller::controller_server::{self, ControllerServer};
use crate::proto::controller::{
    DescribeReply, DescribeRequest, JoinReply, JoinRequest, KeysReply, KeysRequest, LeaveReply,
    LeaveRequest, Proof, RegisterReply, RegisterRequest, SignReply, SignRequest,
};

/// Most certificates in one request; a node has about a dozen.
const MAX_REQUESTS: usize = 64;

/// Serves until `stop` comes back. Nodes can measure what lies between them and
/// this host, too, which is `here`.
///
/// # Errors
/// When the transport fails.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    controller: Arc<dyn Controller>,
    here: Here,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), crate::Error> {
    let peer = peer::service(controller.clone(), here);
    let service = ControllerServer::new(Service(controller))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    connections::server()
        .add_service(service)
        .add_service(peer)
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

fn node<T>(request: &Request<T>) -> Result<Uuid, Status> {
    let caller = Caller::of(request)?;
    caller
        .name
        .and_then(|name| member(&name))
        .ok_or_else(|| Status::unauthenticated("this is for nodes of the cluster only"))
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
