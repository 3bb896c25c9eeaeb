//! The control socket.
//!
//! In: requests, a line each. Out: answers. Only root can connect.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::board::Board;
use super::service::Command;
use crate::client::{Answer, Request};
use crate::error::{Context, Result};

/// Connections at a time; more wait.
const MAX_CONNECTIONS: usize = 64;
/// Longest request, in bytes.
const MAX_REQUEST: u64 = 4096;
/// How long a request may take to arrive.
const REQUEST: Duration = Duration::from_secs(10);

/// Listens at a path; a socket that was left behind is replaced.
pub(super) fn listen(path: &Path) -> Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).at("remove", path);
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).at("listen at", path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).at("change the mode of", path)?;
    Ok(listener)
}

type Commands = Arc<Vec<(String, mpsc::Sender<Command>)>>;

/// Answers for ever.
pub(super) async fn serve(listener: UnixListener, board: Board, commands: Commands) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (board, commands) = (board.clone(), commands.clone());
        connections.spawn(async move {
            // Who hangs up early wants no answer.
            drop(answer(stream, &board, &commands).await);
            drop(permit);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(mut stream: UnixStream, board: &Board, commands: &Commands) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST));
    let mut line = String::new();
    if timeout(REQUEST, reader.read_line(&mut line)).await.is_err() {
        return Ok(());
    }
    let request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => return send(&mut writer, &Answer::Error(format!("request: {error}"))).await,
    };
    let answer = match request {
        Request::Status => Answer::Status(board.subscribe().borrow().clone()),
        Request::Watch => {
            let mut status = board.subscribe();
            loop {
                let current = status.borrow_and_update().clone();
                send(&mut writer, &Answer::Status(current)).await?;
                tokio::select! {
                    changed = status.changed() => if changed.is_err() { return Ok(()) },
                    // Nothing more is expected: it hung up.
                    _ = reader.read_u8() => return Ok(()),
                }
            }
        }
        Request::Restart { service } => tell(commands, &service, Command::Restart).await,
        Request::Hold { service } => tell(commands, &service, Command::Hold).await,
        Request::Release { service } => tell(commands, &service, Command::Release).await,
    };
    send(&mut writer, &answer).await
}

async fn tell(
    commands: &Commands,
    service: &str,
    command: impl FnOnce(oneshot::Sender<()>) -> Command,
) -> Answer {
    let Some((_, sender)) = commands.iter().find(|(name, _)| name == service) else {
        return Answer::Error(format!("there is no service {service:?}"));
    };
    let (accepted, acceptance) = oneshot::channel();
    if sender.try_send(command(accepted)).is_err() || acceptance.await.is_err() {
        return Answer::Error(format!(
            "{service} is held, or being stopped or restarted already"
        ));
    }
    Answer::Accepted
}

async fn send(writer: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
