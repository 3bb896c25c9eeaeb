//! What an operation tells, to any number of terminals.
//!
//! The operation runs in a process of its own, which a lost terminal doesn't
//! end. In: its events, through [`Broadcast`]. Out: the same to everyone who
//! attaches with [`Follower`], from the beginning, and how it ended. A follower
//! that is slow or goes away disturbs nobody; nothing is written to a disk,
//! which may be full.

use std::collections::{HashMap, VecDeque};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use event::{Event, Sink};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::coordinator::Action;

/// Lines that are kept for those who come later; older ones are forgotten.
const KEPT: usize = 20_000;
/// Longest line in bytes.
const MAX_LINE: u64 = 1 << 20;
/// Progress of a task is told at most this often.
const PROGRESS: Duration = Duration::from_millis(100);
/// How long the last followers may take to read the end.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is told, a line of JSON each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum Line {
    /// The first one.
    Begin {
        /// Process that runs the operation.
        pid: u32,
        /// What it does when it is told to abort, by SIGINT.
        abort: Abort,
    },
    /// Something happened.
    Event {
        /// What.
        event: Event,
    },
    /// The last one.
    End {
        /// How it ended.
        outcome: Outcome,
    },
}

/// What an operation's process does when it is told to abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Abort {
    /// Ends what runs, and takes everything back.
    TakeBack,
    /// Ends the one phase that it was asked for; the others stay as they are.
    End,
    /// Goes on: it is taking things back.
    GoOn,
}

impl Abort {
    /// Of a process that does this.
    pub fn of(action: &Action) -> Self {
        match action {
            Action::Run => Self::TakeBack,
            Action::Execute { .. } | Action::RollBack { .. } => Self::End,
            Action::RollBackAll => Self::GoOn,
        }
    }
}

/// How an operation's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// All that was asked for is done.
    Done,
    /// Something failed.
    Failed {
        /// Why.
        error: String,
    },
    /// It could not be begun, and nothing was changed.
    Refused {
        /// Why.
        error: String,
    },
    /// Somebody aborted it, and everything was taken back.
    Aborted,
}

#[derive(Debug, Default)]
struct History {
    lines: VecDeque<Arc<str>>,
    /// How many lines were forgotten.
    forgotten: usize,
    progress: HashMap<String, Instant>,
    ended: bool,
}

impl History {
    fn push(&mut self, line: &Line) {
        if let Ok(json) = serde_json::to_string(line) {
            self.lines.push_back(format!("{json}\n").into());
        }
        while self.lines.len() > KEPT {
            self.lines.pop_front();
            self.forgotten += 1;
        }
    }

    /// Whether an event is told: progress not more often than anyone can read.
    fn admits(&mut self, event: &Event, now: Instant) -> bool {
        let Event::Progress {
            task, done, total, ..
        } = event
        else {
            return true;
        };
        let last = self.progress.get(task);
        let soon = last.is_some_and(|last| now.duration_since(*last) < PROGRESS);
        if soon && total.is_none_or(|total| *done < total) {
            return false;
        }
        self.progress.insert(task.clone(), now);
        true
    }
}

/// The telling side.
#[derive(Debug)]
pub struct Broadcast {
    socket: PathBuf,
    history: Mutex<History>,
    /// Number of lines so far.
    told: watch::Sender<usize>,
    /// Followers that are connected, and how many have read the end.
    followers: watch::Sender<(usize, usize)>,
}

impl Broadcast {
    /// Listens on `socket`, which root alone can open. What a former process
    /// left there is replaced: the caller holds the operation's lock.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn listen(socket: &Path, abort: Abort) -> Result<Arc<Self>, Error> {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(socket)?;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
        let mut history = History::default();
        history.push(&Line::Begin {
            pid: std::process::id(),
            abort,
        });
        let broadcast = Arc::new(Self {
            socket: socket.to_owned(),
            history: Mutex::new(history),
            told: watch::Sender::new(1),
            followers: watch::Sender::new((0, 0)),
        });
        let accepting = broadcast.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(accepting.clone().tell(stream));
            }
        });
        Ok(broadcast)
    }

    /// Tells how it ended, and waits a moment for those who listen: the one who
    /// started the operation does, unless it has gone away.
    pub async fn end(&self, outcome: Outcome) {
        self.push(&Line::End { outcome }, true);
        let mut followers = self.followers.subscribe();
        let read = followers.wait_for(|(open, read)| *open == 0 && *read > 0);
        // Who hasn't read by then has no terminal any more.
        drop(tokio::time::timeout(PATIENCE, read).await);
        drop(std::fs::remove_file(&self.socket));
    }

    fn push(&self, line: &Line, ended: bool) {
        let mut history = self.lock();
        history.push(line);
        history.ended |= ended;
        let count = history.forgotten + history.lines.len();
        drop(history);
        self.told.send_replace(count);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell(self: Arc<Self>, stream: UnixStream) {
        self.followers.send_modify(|(open, _)| *open += 1);
        let read = self.tell_all(stream).await.is_ok();
        self.followers.send_modify(|(open, ended)| {
            *open -= 1;
            *ended += usize::from(read);
        });
    }

    async fn tell_all(&self, mut stream: UnixStream) -> Result<(), Error> {
        let mut told = self.told.subscribe();
        let mut next = 0;
        loop {
            told.mark_unchanged();
            let (lines, ended) = {
                let history = self.lock();
                let skip = next.max(history.forgotten) - history.forgotten;
                let lines: Vec<_> = history.lines.iter().skip(skip).cloned().collect();
                next = history.forgotten + history.lines.len();
                (lines, history.ended)
            };
            for line in lines {
                stream.write_all(line.as_bytes()).await?;
            }
            if ended {
                return stream.shutdown().await;
            }
            told.changed().await.map_err(Error::other)?;
        }
    }
}

impl Sink for Broadcast {
    fn emit(&self, event: Event) {
        if self.lock().admits(&event, Instant::now()) {
            self.push(&Line::Event { event }, false);
        }
    }
}

/// The listening side.
#[derive(Debug)]
pub struct Follower {
    pid: u32,
    abort: Abort,
    reader: BufReader<UnixStream>,
    /// What has come of the next line.
    line: Vec<u8>,
}

impl Follower {
    /// Attaches to the operation that tells at `socket`.
    ///
    /// # Errors
    /// When none does.
    pub async fn open(socket: &Path) -> Result<Self, Error> {
        let mut follower = Self {
            pid: 0,
            abort: Abort::GoOn,
            reader: BufReader::new(UnixStream::connect(socket).await?),
            line: Vec::new(),
        };
        match follower.next().await? {
            Some(Line::Begin { pid, abort }) => Ok(Self {
                pid,
                abort,
                ..follower
            }),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }

    /// Process that runs the operation.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it does when it is told to abort.
    pub fn abort(&self) -> Abort {
        self.abort
    }

    /// The next line; nothing when the process has ended without an end. May
    /// be given up and called again.
    ///
    /// # Errors
    /// When the connection breaks or a line is none.
    pub async fn next(&mut self) -> Result<Option<Line>, Error> {
        let room = MAX_LINE.saturating_sub(self.line.len() as u64);
        let mut limited = (&mut self.reader).take(room);
        limited.read_until(b'\n', &mut self.line).await?;
        let line = std::mem::take(&mut self.line);
        match line.last() {
            Some(b'\n') => Ok(Some(serde_json::from_slice(&line)?)),
            Some(_) if line.len() as u64 == MAX_LINE => Err(ErrorKind::InvalidData.into()),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut follower: Follower) -> Vec<Line> {
        let mut lines = Vec::new();
        while let Some(line) = follower.next().await.unwrap() {
            lines.push(line);
        }
        lines
    }

    #[tokio::test]
    async fn everyone_hears_all_from_the_beginning_and_how_it_ended() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        assert!(Follower::open(&socket).await.is_err());
        // What a killed process left.
        drop(UnixListener::bind(&socket).unwrap());
        let broadcast = Broadcast::listen(&socket, Abort::End).unwrap();
        let first = Follower::open(&socket).await.unwrap();
        assert_eq!(first.pid(), std::process::id());
        assert_eq!(first.abort(), Abort::End);
        // One that goes away.
        drop(Follower::open(&socket).await.unwrap());
        broadcast.step("one");
        let second = Follower::open(&socket).await.unwrap();
        let (first, second) = (tokio::spawn(all(first)), tokio::spawn(all(second)));
        broadcast.step("two");
        let outcome = Outcome::Failed {
            error: "no space".into(),
        };
        broadcast.end(outcome.clone()).await;
        let first = first.await.unwrap();
        assert_eq!(first, second.await.unwrap());
        assert_eq!(first.len(), 3);
        assert_eq!(first[2], Line::End { outcome });
        assert!(!socket.exists());
    }

    #[tokio::test]
    async fn a_process_that_dies_tells_no_end() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let dying = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let begin = serde_json::to_string(&Line::Begin {
                pid: 7,
                abort: Abort::GoOn,
            })
            .unwrap();
            stream
                .write_all(format!("{begin}\n{{\"line\":\"ev").as_bytes())
                .await
                .unwrap();
        });
        let mut follower = Follower::open(&socket).await.unwrap();
        dying.await.unwrap();
        assert_eq!(follower.next().await.unwrap(), None);
    }

    #[test]
    fn only_an_operation_that_runs_as_a_whole_is_taken_back() {
        let phase = String::from("/config");
        let force = true;
        let one = Action::Execute { phase, force };
        assert_eq!(Abort::of(&Action::Run), Abort::TakeBack);
        assert_eq!(Abort::of(&one), Abort::End);
        assert_eq!(Abort::of(&Action::RollBackAll), Abort::GoOn);
    }

    #[test]
    fn what_is_kept_and_told_is_bounded() {
        let mut history = History::default();
        let line = Line::Event {
            event: Event::Info {
                message: "x".into(),
            },
        };
        for _ in 0..KEPT + 5 {
            history.push(&line);
        }
        assert_eq!((history.lines.len(), history.forgotten), (KEPT, 5));
        let now = Instant::now();
        let mut admits = |done| {
            let progress = Event::Progress {
                task: "copy".into(),
                done,
                total: Some(9),
                unit: event::Unit::Bytes,
            };
            history.admits(&progress, now)
        };
        assert_eq!([1, 2, 9].map(&mut admits), [true, false, true]);
    }
}
