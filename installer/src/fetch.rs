//! Gets the cluster image from the nodes that have it.
//!
//! In: [`Source`]s, and what the image must be. Out: a [`Partial`] to which all
//! has come. Every source gives several pieces at a time, and a piece that one
//! did not give another does. Every piece is compared with its digest before it
//! counts; who gives wrong bytes is named and asked no more.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event::{Progress, Sink};
use futures::future::join_all;
use image::file::format::{FOOTER, MAX_INDEX};
use image::{Partial, Piece};
use pki::tls::{Identity, Trust};
use rpc::images::{MAX_RANGE, Range, Session};
use tokio::sync::Notify;

/// Pieces that one source gives at a time.
const AT_A_TIME: usize = 3;
/// After so many failures in a row a source is asked no more.
const FAILURES: u32 = 3;
/// Wait after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a blob that several sources gave together may be wrong.
const TRIES: u32 = 10;

/// Why a source did not give what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It never will.
    #[error("{0}")]
    Refused(String),
    /// Asking again may help.
    #[error("{0}")]
    Lost(String),
}

/// Who has the image.
#[async_trait::async_trait]
pub trait Source: Send + Sync {
    /// Names it in messages.
    fn name(&self) -> String;

    /// Makes sure that it is there.
    ///
    /// # Errors
    /// When it is not.
    async fn connect(&self) -> Result<(), Failure>;

    /// The end of the image's file.
    ///
    /// # Errors
    /// When it is not to be had.
    async fn end(&self) -> Result<Vec<u8>, Failure>;

    /// Exactly the bytes of a range, or any others: they are compared.
    ///
    /// # Errors
    /// When they are not to be had.
    async fn read(&self, range: &Range) -> Result<Vec<u8>, Failure>;
}

/// Why the image can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody gives it, or not any more.
    #[error(
        "no node of the cluster gives its image{}; copy the image's file to this node and join with it",
        .0.iter().map(|why| format!("; {why}")).collect::<String>()
    )]
    Nobody(Vec<String>),
    /// What has come can't be read or written.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// A thread that writes ended early.
    #[error("write the cluster image")]
    Ended(#[source] tokio::task::JoinError),
    /// Whoever gives it, it is wrong.
    #[error("blob {0} of the cluster image is wrong again and again")]
    Wrong(String),
}

/// A node that has the image.
#[derive(Debug)]
pub struct Remote {
    address: SocketAddr,
    trust: Trust,
    identity: Identity,
    session: tokio::sync::Mutex<Option<Session>>,
}

impl Remote {
    /// The node at `address`, which knows us by `identity`.
    pub fn new(address: SocketAddr, trust: Trust, identity: Identity) -> Self {
        Self {
            address,
            trust,
            identity,
            session: tokio::sync::Mutex::new(None),
        }
    }

    async fn session(&self) -> Result<Session, Failure> {
        let mut session = self.session.lock().await;
        if session.is_none() {
            let opened = Session::open(self.address, &self.trust, &self.identity).await;
            *session = Some(opened.map_err(failure)?);
        }
        session
            .clone()
            .ok_or_else(|| Failure::Lost("no session".into()))
    }

    /// A session that broke is opened again.
    async fn ended<T>(&self, result: Result<T, rpc::controller::Error>) -> Result<T, Failure> {
        let result = result.map_err(failure);
        if matches!(result, Err(Failure::Lost(_))) {
            *self.session.lock().await = None;
        }
        result
    }
}

fn failure(error: rpc::controller::Error) -> Failure {
    use rpc::controller::{Error, Refusal};
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    let text = format!("{error}{}", cause.unwrap_or_default());
    match error {
        Error::Refused(Refusal::Refused(_)) | Error::WrongCluster { .. } => Failure::Refused(text),
        _ => Failure::Lost(text),
    }
}

#[async_trait::async_trait]
impl Source for Remote {
    fn name(&self) -> String {
        self.address.to_string()
    }

    async fn connect(&self) -> Result<(), Failure> {
        self.session().await.map(drop)
    }

    async fn end(&self) -> Result<Vec<u8>, Failure> {
        let mut session = self.session().await?;
        let max = usize::try_from(MAX_INDEX).unwrap_or(usize::MAX);
        let end = session.end(max.saturating_add(FOOTER)).await;
        self.ended(end).await
    }

    async fn read(&self, range: &Range) -> Result<Vec<u8>, Failure> {
        let mut session = self.session().await?;
        let read = session.read(range).await;
        self.ended(read).await
    }
}

/// The end of the image `root`, of the first source that has it.
///
/// # Errors
/// [`Error::Nobody`].
pub async fn end(
    sources: &[Arc<dyn Source>],
    root: &str,
    sink: &dyn Sink,
) -> Result<Vec<u8>, Error> {
    let mut reasons = Vec::new();
    for source in sources {
        let why = match source.end().await {
            Ok(end) => match Partial::nameless(&end, root) {
                Ok(_) => return Ok(end),
                Err(error) => {
                    let told = format!("{} gives another image: {error}", source.name());
                    sink.warning(&told);
                    error.to_string()
                }
            },
            Err(failure) => failure.to_string(),
        };
        reasons.push(format!("{}: {why}", source.name()));
    }
    Err(Error::Nobody(reasons))
}

/// Gets all `pieces`.
///
/// # Errors
/// When nobody gives one of them, or it can't be written.
pub async fn fetch(
    partial: &Arc<Partial>,
    mut pieces: Vec<Piece>,
    sources: &[Arc<dyn Source>],
    progress: &Progress,
    sink: &dyn Sink,
) -> Result<(), Error> {
    progress.expect(pieces.iter().map(|piece| piece.length).sum());
    // What one source gives as a whole begins first.
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.length));
    let state = State {
        waiting: pieces.into_iter().map(Job::new).collect(),
        running: 0,
        out: vec![None; sources.len()],
        failed: None,
    };
    let fetch = Fetch {
        partial,
        image: partial.image().index_digest(),
        sources,
        progress,
        sink,
        state: Mutex::new(state),
        changed: Notify::new(),
    };
    let all = join_all((0..sources.len()).map(|source| fetch.serve(source)));
    tokio::select! {
        _ = all => {}
        // Whoever doesn't answer isn't waited for.
        () = fetch.done() => {}
    }
    progress.finish();
    let state = fetch.state.into_inner();
    let state = state.unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = state.failed {
        return Err(error);
    }
    match state.waiting.is_empty() {
        true => Ok(()),
        false => Err(Error::Nobody(state.out.into_iter().flatten().collect())),
    }
}

/// A piece, and who has given what of it.
#[derive(Debug)]
struct Job {
    piece: Piece,
    /// Where it began.
    from: u64,
    givers: BTreeSet<usize>,
    tries: u32,
}

impl Job {
    fn new(piece: Piece) -> Self {
        Self {
            from: piece.offset,
            piece,
            givers: BTreeSet::new(),
            tries: 0,
        }
    }
}

struct State {
    waiting: VecDeque<Job>,
    running: usize,
    /// Why a source is asked no more.
    out: Vec<Option<String>>,
    /// What ends all.
    failed: Option<Error>,
}

impl State {
    fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.running == 0
    }
}

/// How a job ended that isn't done.
enum Undone {
    /// The source gave bytes that are wrong.
    Wrong(String),
    /// It gave none.
    Failed(Failure),
    /// It is wrong, by the fault of one of several. It begins anew.
    Mixed,
    /// No source is to blame.
    Ours(Error),
}

struct Fetch<'a> {
    partial: &'a Arc<Partial>,
    image: String,
    sources: &'a [Arc<dyn Source>],
    progress: &'a Progress,
    sink: &'a dyn Sink,
    state: Mutex<State>,
    changed: Notify,
}

impl Fetch<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes back when all is there.
    async fn done(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.state().is_done() {
                return;
            }
            changed.await;
        }
    }

    /// Has one source give several pieces at a time, once it answers.
    async fn serve(&self, source: usize) {
        let Some(from) = self.sources.get(source) else {
            return;
        };
        for failures in 1.. {
            match from.connect().await {
                Ok(()) => break,
                Err(failure) if failures == FAILURES || matches!(failure, Failure::Refused(_)) => {
                    self.leave_out(&mut self.state(), source, &failure.to_string());
                    return;
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        join_all([source; AT_A_TIME].map(|source| self.work(source))).await;
    }

    fn leave_out(&self, state: &mut State, source: usize, why: &str) {
        if let Some(slot @ None) = state.out.get_mut(source) {
            let name = self.sources.get(source).map(|source| source.name());
            let told = format!("{}: {why}", name.unwrap_or_default());
            self.sink.warning(&format!("{told}; it is asked no more"));
            *slot = Some(told);
        }
    }

    /// Has one source give pieces until all are there.
    async fn work(&self, source: usize) {
        let mut failures = 0;
        while let Some(mut job) = self.next(source).await {
            match self.get(source, &mut job).await {
                Ok(()) => {
                    failures = 0;
                    self.state().running -= 1;
                    self.changed.notify_waiters();
                }
                Err(undone) => {
                    let lost = matches!(undone, Undone::Failed(Failure::Lost(_)));
                    failures += u32::from(lost);
                    self.put_back(source, job, undone, failures);
                    if lost && failures < FAILURES {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    /// Leaves a job to others, or ends all. `failures` in a row the source has.
    fn put_back(&self, source: usize, job: Job, undone: Undone, failures: u32) {
        let mut state = self.state();
        state.running -= 1;
        match undone {
            Undone::Wrong(why) | Undone::Failed(Failure::Refused(why)) => {
                self.leave_out(&mut state, source, &why);
            }
            Undone::Failed(Failure::Lost(why)) if failures >= FAILURES => {
                self.leave_out(&mut state, source, &why);
            }
            Undone::Failed(Failure::Lost(_)) => {}
            Undone::Mixed if job.tries >= TRIES => {
                state.failed = Some(Error::Wrong(job.piece.digest.clone()));
            }
            Undone::Mixed => {}
            Undone::Ours(error) => state.failed = Some(error),
        }
        state.waiting.push_front(job);
        drop(state);
        self.changed.notify_waiters();
    }

    /// The next job for a source; none where it is asked no more or all is done.
    async fn next(&self, source: usize) -> Option<Job> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = self.state();
                if state.failed.is_some() || state.out.get(source).is_none_or(Option::is_some) {
                    return None;
                }
                if let Some(job) = state.waiting.pop_front() {
                    state.running += 1;
                    return Some(job);
                }
                // What others do may come back.
                if state.is_done() {
                    return None;
                }
            }
            changed.await;
        }
    }

    async fn get(&self, source: usize, job: &mut Job) -> Result<(), Undone> {
        let from = self.sources.get(source);
        while let (Some(from), 1..) = (from, job.piece.length) {
            let piece = &job.piece;
            let length = usize::try_from(piece.length).unwrap_or(MAX_RANGE);
            let range = Range {
                image: self.image.clone(),
                digest: piece.digest.clone(),
                offset: piece.offset,
                length: length.min(MAX_RANGE),
            };
            let bytes = from.read(&range).await.map_err(Undone::Failed)?;
            if bytes.len() != range.length {
                let told = format!("gave {} bytes of {}", bytes.len(), range.length);
                return Err(Undone::Failed(Failure::Lost(told)));
            }
            job.givers.insert(source);
            let hash = piece.hash.clone();
            self.blocking(move |partial| {
                partial.put(&range.digest, range.offset, &bytes, hash.as_deref())
            })
            .await?;
            let given = length.min(MAX_RANGE) as u64;
            job.piece.offset += given;
            job.piece.length -= given;
            self.progress.add(given);
        }
        if job.piece.hash.is_some() {
            return Ok(());
        }
        let digest = job.piece.digest.clone();
        if self
            .blocking(move |partial| partial.is_whole(&digest))
            .await?
        {
            return Ok(());
        }
        self.begin_anew(source, job)
    }

    /// A raw blob is wrong: whose fault it is can be told where one gave all.
    fn begin_anew(&self, source: usize, job: &mut Job) -> Result<(), Undone> {
        let alone = job.from == 0 && job.givers.iter().eq([&source]);
        self.progress.take_back(job.piece.offset - job.from);
        // What had come before it began is to come, too.
        self.progress.expect(job.from);
        let digest = job.piece.digest.clone();
        let length = job.piece.offset;
        let tries = job.tries + 1;
        *job = Job {
            tries,
            ..Job::new(Piece {
                digest: digest.clone(),
                offset: 0,
                length,
                hash: None,
            })
        };
        match alone {
            true => Err(Undone::Wrong(format!("gave wrong bytes of blob {digest}"))),
            false => Err(Undone::Mixed),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Partial) -> Result<T, image::Error> + Send + 'static,
    ) -> Result<T, Undone> {
        let partial = self.partial.clone();
        let done = tokio::task::spawn_blocking(move || work(&partial)).await;
        match done {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error @ image::Error::WrongDigest { .. })) => {
                Err(Undone::Wrong(format!("gave wrong bytes: {error}")))
            }
            Ok(Err(error)) => Err(Undone::Ours(error.into())),
            Err(error) => Err(Undone::Ours(Error::Ended(error))),
        }
    }
}

#[cfg(test)]
mod tests;
