//! The side that has the image.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Have, Images, MAX_MESSAGE, MAX_RANGE, PIECE, PROTOCOL, Range};
use crate::connections::{self, Caller, status};
use crate::controller::Refusal;
use crate::peer::{self, Here};
use crate::proto::images::images_server::{self, ImagesServer};
use crate::proto::images::{EndRequest, HaveReply, HaveRequest, Piece, ReadRequest};

/// Answers that are given at a time; more wait for their turn.
const ANSWERS: usize = 32;
/// An end is held as a whole, so it counts as several.
const END: u32 = 8;
/// Longest time that one answer may take: who reads slower gives way to others.
const TIME: Duration = Duration::from_secs(60);

type Pieces = ReceiverStream<Result<Piece, Status>>;

/// Serves other nodes until `stop` comes back. Where this host is a node, `here`, they
/// can measure what lies between them and it, too.
///
/// # Errors
/// When the transport fails.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    images: Arc<dyn Images>,
    here: Option<Here>,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), crate::Error> {
    connections::server()
        .add_service(service(images))
        .add_optional_service(here.map(|here| peer::service(None, here)))
        .serve_with_incoming_shutdown(connections::incoming(listener, tls), stop)
        .await
        .map_err(crate::Error::Serve)
}

/// The service alone.
pub(crate) fn service(images: Arc<dyn Images>) -> ImagesServer<Service> {
    let answers = Arc::new(Semaphore::new(ANSWERS));
    ImagesServer::new(Service { images, answers })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// Answers other nodes.
pub(crate) struct Service {
    images: Arc<dyn Images>,
    answers: Arc<Semaphore>,
}

/// Demands the certificate of a node, or of one that may become one.
fn known<T>(request: &Request<T>) -> Result<(), Status> {
    match Caller::of(request)?.is_of_cluster() {
        true => Ok(()),
        false => Err(Status::unauthenticated(
            "the image is for nodes of the cluster and those that join it",
        )),
    }
}

impl Service {
    async fn turn(&self, weight: u32) -> Result<OwnedSemaphorePermit, Status> {
        let turn = self.answers.clone().acquire_many_owned(weight).await;
        turn.map_err(|_| Status::unavailable("this node stops"))
    }
}

/// Asks for something that may block.
async fn ask<T: Send + 'static>(
    images: &Arc<dyn Images>,
    what: impl FnOnce(&dyn Images) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Status> {
    let images = images.clone();
    let asked = tokio::task::spawn_blocking(move || what(&*images)).await;
    asked
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(status)
}

/// Sends what `answering` makes, with its turn, for a bounded time.
fn send<F>(
    turn: OwnedSemaphorePermit,
    answering: impl FnOnce(mpsc::Sender<Result<Piece, Status>>) -> F,
) -> Response<Pieces>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    // What waits here has been read, and the reader is slow.
    let (send, receive) = mpsc::channel(1);
    let answering = answering(send.clone());
    tokio::spawn(async move {
        let late = |_| Err(Status::deadline_exceeded("the answer took too long"));
        if let Err(status) = timeout(TIME, answering).await.unwrap_or_else(late) {
            // Who doesn't read isn't waited for.
            drop(send.try_send(Err(status)));
        }
        drop(turn);
    });
    Response::new(ReceiverStream::new(receive))
}

/// Whether somebody still listens.
async fn tell(to: &mpsc::Sender<Result<Piece, Status>>, data: Vec<u8>) -> bool {
    to.send(Ok(Piece { data })).await.is_ok()
}

#[tonic::async_trait]
impl images_server::Images for Service {
    type EndStream = Pieces;
    type ReadStream = Pieces;

    async fn end(&self, request: Request<EndRequest>) -> Result<Response<Pieces>, Status> {
        known(&request)?;
        let theirs = request.get_ref().protocol;
        if theirs != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "the cluster gives its image by protocol {PROTOCOL}, this node asks by {theirs}: use the gravity of the cluster's image"
            )));
        }
        let turn = self.turn(END).await?;
        let end = ask(&self.images, |images| images.end()).await?;
        Ok(send(turn, |to| async move {
            for piece in end.chunks(PIECE) {
                if !tell(&to, piece.to_vec()).await {
                    break;
                }
            }
            Ok(())
        }))
    }

    async fn have(&self, request: Request<HaveRequest>) -> Result<Response<HaveReply>, Status> {
        known(&request)?;
        let image = request.into_inner().image;
        let have = ask(&self.images, move |images| images.have(&image)).await?;
        Ok(Response::new(match have {
            Have::All => HaveReply {
                all: true,
                pieces: Vec::new(),
            },
            Have::Pieces(pieces) => HaveReply { all: false, pieces },
        }))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Pieces>, Status> {
        known(&request)?;
        let ReadRequest {
            image,
            digest,
            offset,
            length,
        } = request.into_inner();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_RANGE {
            return Err(Status::failed_precondition(format!(
                "{length} bytes at once, where {MAX_RANGE} are the most"
            )));
        }
        let turn = self.turn(1).await?;
        let images = self.images.clone();
        Ok(send(turn, |to| async move {
            for at in (0..length).step_by(PIECE) {
                let range = Range {
                    image: image.clone(),
                    digest: digest.clone(),
                    offset: offset
                        .checked_add(at as u64)
                        .ok_or_else(|| Status::failed_precondition("there is no such range"))?,
                    length: (length - at).min(PIECE),
                };
                let data = ask(&images, move |images| images.read(&range)).await?;
                if !tell(&to, data).await {
                    break;
                }
            }
            Ok(())
        }))
    }
}
