//! The agent's side: offers an executor on a socket.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use event::{Event, Sink};
use operation::{Executor, Phase, PhaseError};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{UnboundedReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::proto::agent_server::{Agent, AgentServer};
use crate::proto::phase_reply::Reply;
use crate::proto::{Done, Failure, PhaseReply, PhaseRequest, ShutdownReply, ShutdownRequest};
use crate::{Error, MAX_MESSAGE, PROTOCOL};

/// Makes the executor of an operation by its identity.
pub type OpenOperation =
    dyn Fn(&str) -> Result<Arc<dyn Executor>, PhaseError> + Send + Sync + 'static;

/// Serves until a shutdown is asked for, until `stop` comes back, or until
/// nothing has run and nobody has asked for anything for `idle`. Only processes
/// of the same user are heard. Phases that run go on when their session
/// ends: a coordinator that comes back joins them.
///
/// # Errors
/// When the socket can't be made or the transport fails.
pub async fn serve(
    socket: &Path,
    idle: Duration,
    stop: impl Future<Output = ()> + Send + 'static,
    open: Arc<OpenOperation>,
) -> Result<(), Error> {
    let listen = |source| Error::Listen {
        socket: socket.to_owned(),
        source,
    };
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(listen(error)),
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(listen)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(listen)?;
    let activity = Arc::new(Activity::default());
    let stopped = activity.clone();
    let stop = tokio::spawn(async move {
        stop.await;
        stopped.stop();
    });
    let service = AgentServer::new(Service {
        open,
        activity: activity.clone(),
    })
    .max_decoding_message_size(MAX_MESSAGE)
    .max_encoding_message_size(MAX_MESSAGE);
    let served = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listener).filter(is_ours),
            activity.ended(idle),
        )
        .await
        .map_err(Error::Serve);
    stop.abort();
    drop(std::fs::remove_file(socket));
    served
}

/// Whether a peer may give orders. The socket's mode says so, too, but only
/// some time after the socket was made.
fn is_ours(connection: &std::io::Result<UnixStream>) -> bool {
    let own = std::fs::metadata("/proc/self").map(|metadata| metadata.uid());
    match (connection, own) {
        (Ok(stream), Ok(own)) => stream.peer_cred().is_ok_and(|peer| peer.uid() == own),
        (Err(_), _) => true,
        (Ok(_), Err(_)) => false,
    }
}

/// Counts what runs, so that the agent knows when it may end.
#[derive(Debug, Default)]
struct Activity {
    running: AtomicUsize,
    changed: Notify,
    stop: std::sync::atomic::AtomicBool,
}

impl Activity {
    fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }

    fn begin(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_one();
        Running(self.clone())
    }

    async fn ended(self: Arc<Self>, idle: Duration) {
        loop {
            let quiet = tokio::time::timeout(idle, self.changed.notified())
                .await
                .is_err();
            let nothing_runs = self.running.load(Ordering::SeqCst) == 0;
            if nothing_runs && (quiet || self.stop.load(Ordering::SeqCst)) {
                return;
            }
        }
    }
}

/// Held while a phase runs.
struct Running(Arc<Activity>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_one();
    }
}

struct Service {
    open: Arc<OpenOperation>,
    activity: Arc<Activity>,
}

/// Sends events to the session, as long as there is one.
struct SessionSink(mpsc::UnboundedSender<Result<PhaseReply, Status>>);

impl Sink for SessionSink {
    fn emit(&self, event: Event) {
        if let Ok(json) = serde_json::to_vec(&event) {
            // A session that has ended has nobody to tell.
            drop(self.0.send(Ok(PhaseReply {
                reply: Some(Reply::Event(json)),
            })));
        }
    }
}

impl Service {
    fn run(&self, request: PhaseRequest, undo: bool) -> Result<Response<Replies>, Status> {
        if request.protocol != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "the agent speaks protocol {PROTOCOL}, the coordinator {}: use the same version of gravity",
                request.protocol
            )));
        }
        let phase: Phase = serde_json::from_slice(&request.phase)
            .map_err(|error| Status::invalid_argument(format!("read phase: {error}")))?;
        let executor = (self.open)(&request.operation)
            .map_err(|error| Status::failed_precondition(error.message))?;
        let again = request.again;
        let (send, receive) = mpsc::unbounded_channel();
        let running = self.activity.begin();
        tokio::spawn(async move {
            let sink: Arc<dyn Sink> = Arc::new(SessionSink(send.clone()));
            let result = match (undo, again) {
                (true, _) => executor.undo(&phase, sink).await,
                (false, true) => executor.execute_again(&phase, sink).await,
                (false, false) => executor.execute(&phase, sink).await,
            };
            let reply = match result {
                Ok(()) => Reply::Done(Done {}),
                Err(error) => Reply::Failure(Failure {
                    message: error.message,
                    transient: error.transient,
                }),
            };
            drop(send.send(Ok(PhaseReply { reply: Some(reply) })));
            drop(running);
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            receive,
        ))))
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<PhaseReply, Status>> + Send>>;

#[tonic::async_trait]
impl Agent for Service {
    type ExecuteStream = Replies;
    type UndoStream = Replies;

    async fn execute(&self, request: Request<PhaseRequest>) -> Result<Response<Replies>, Status> {
        self.run(request.into_inner(), false)
    }

    async fn undo(&self, request: Request<PhaseRequest>) -> Result<Response<Replies>, Status> {
        self.run(request.into_inner(), true)
    }

    async fn shutdown(
        &self,
        _: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownReply>, Status> {
        self.activity.stop();
        Ok(Response::new(ShutdownReply {}))
    }
}
