//! The coordinator's side: an executor whose phases run on an agent.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use event::{Event, Sink};
use hyper_util::rt::TokioIo;
use operation::{Executor, Phase, PhaseError};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::proto::agent_client::AgentClient;
use crate::proto::phase_reply::Reply;
use crate::proto::{PhaseReply, PhaseRequest, ShutdownRequest};
use crate::{Error, MAX_MESSAGE, PROTOCOL};

/// A session with an agent, for one operation.
#[derive(Debug, Clone)]
pub struct Connection {
    client: AgentClient<Channel>,
    operation: String,
}

impl Connection {
    /// Connects to the agent that listens on `socket`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn open(socket: &Path, operation: &str) -> Result<Self, Error> {
        let path: PathBuf = socket.to_owned();
        // The URI is not used: the connector knows the socket.
        let channel = Endpoint::from_static("http://agent.local")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .map_err(|source| Error::Connect {
                socket: socket.to_owned(),
                source,
            })?;
        let client = AgentClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Ok(Self {
            client,
            operation: operation.to_owned(),
        })
    }

    /// Asks the agent to end once nothing runs.
    pub async fn shutdown(mut self) {
        // An agent that is gone already is what was asked for.
        drop(self.client.shutdown(ShutdownRequest {}).await);
    }

    fn request(&self, phase: &Phase, again: bool) -> Result<PhaseRequest, PhaseError> {
        let phase = serde_json::to_vec(phase)
            .map_err(|error| PhaseError::lasting(format!("write phase: {error}")))?;
        Ok(PhaseRequest {
            protocol: PROTOCOL,
            operation: self.operation.clone(),
            phase,
            again,
        })
    }
}

async fn follow(
    mut replies: tonic::Streaming<PhaseReply>,
    sink: &dyn Sink,
) -> Result<(), PhaseError> {
    while let Some(reply) = replies.message().await.map_err(broken)? {
        match reply.reply {
            Some(Reply::Event(json)) => {
                sink.emit(serde_json::from_slice(&json).unwrap_or(Event::Unknown));
            }
            Some(Reply::Done(_)) => return Ok(()),
            Some(Reply::Failure(failure)) => {
                return Err(PhaseError {
                    message: failure.message,
                    transient: failure.transient,
                });
            }
            None => {}
        }
    }
    Err(PhaseError::transient(
        "the agent ended before the phase did",
    ))
}

fn broken(status: tonic::Status) -> PhaseError {
    let message = format!("the session with the agent broke: {}", status.message());
    match status.code() {
        tonic::Code::InvalidArgument | tonic::Code::FailedPrecondition => {
            PhaseError::lasting(message)
        }
        _ => PhaseError::transient(message),
    }
}

#[async_trait::async_trait]
impl Executor for Connection {
    async fn execute(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        let request = self.request(phase, false)?;
        let replies = self.client.clone().execute(request).await.map_err(broken)?;
        follow(replies.into_inner(), &*sink).await
    }

    async fn execute_again(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        let request = self.request(phase, true)?;
        let replies = self.client.clone().execute(request).await.map_err(broken)?;
        follow(replies.into_inner(), &*sink).await
    }

    async fn undo(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        let request = self.request(phase, false)?;
        let replies = self.client.clone().undo(request).await.map_err(broken)?;
        follow(replies.into_inner(), &*sink).await
    }
}
