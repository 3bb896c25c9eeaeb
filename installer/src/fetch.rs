//! Gets the cluster image from the nodes that have it, or get it, too.
//!
//! In: [`Source`]s, also some that appear meanwhile, and what the image must be.
//! Out: a [`Partial`] to which all has come. Every source gives several pieces at
//! a time, first those that fewest others have, so that nodes which get it
//! together soon have different ones to give. A piece that one source did not
//! give another does. Every piece is compared with its digest before it counts
//! and before it is passed on; who gives wrong bytes is named and asked no more.

mod neighbours;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event::{Progress, Sink};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use host::causes::causes;
use image::file::format::{FOOTER, MAX_INDEX};
use image::{Partial, Piece};
use pki::tls::{Identity, Trust};
use rpc::controller::Refusal;
use rpc::images::{Have, Range, Session};
use tokio::sync::{Notify, mpsc};

pub use neighbours::Neighbours;

/// Pieces that one source gives at a time.
const AT_A_TIME: usize = 3;
/// After so many failures in a row a source is asked no more.
const FAILURES: u32 = 3;
/// Wait after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// How often one that gets the image, too, is asked what it has.
const POLL: Duration = Duration::from_millis(500);
/// How long nothing may come where nobody has the whole image any more.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who has the image.
#[async_trait::async_trait]
pub trait Source: Send + Sync {
    /// Names it in messages.
    fn name(&self) -> String;

    /// Makes sure that it is there.
    ///
    /// # Errors
    /// When it is not.
    async fn connect(&self) -> Result<(), Refusal>;

    /// The end of the image's file.
    ///
    /// # Errors
    /// When it is not to be had.
    async fn end(&self) -> Result<Vec<u8>, Refusal>;

    /// What it has of the image whose index has this digest.
    ///
    /// # Errors
    /// When it is not to be told.
    async fn have(&self, image: &str) -> Result<Have, Refusal>;

    /// Exactly the bytes of a range, or any others: they are compared.
    ///
    /// # Errors
    /// When they are not to be had.
    async fn read(&self, range: &Range) -> Result<Vec<u8>, Refusal>;
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

    async fn session(&self) -> Result<Session, Refusal> {
        let mut session = self.session.lock().await;
        if session.is_none() {
            let opened = Session::open(self.address, &self.trust, &self.identity).await;
            *session = Some(opened.map_err(refusal)?);
        }
        session
            .clone()
            .ok_or_else(|| Refusal::NotNow("no session".into()))
    }

    /// A session that broke is opened again.
    async fn ended<T>(&self, result: Result<T, rpc::controller::Error>) -> Result<T, Refusal> {
        let result = result.map_err(refusal);
        if matches!(result, Err(Refusal::NotNow(_))) {
            *self.session.lock().await = None;
        }
        result
    }
}

fn refusal(error: rpc::controller::Error) -> Refusal {
    use rpc::controller::Error;
    let text = causes(&error);
    match error {
        Error::Refused(Refusal::Refused(_)) | Error::WrongCluster { .. } => Refusal::Refused(text),
        _ => Refusal::NotNow(text),
    }
}

#[async_trait::async_trait]
impl Source for Remote {
    fn name(&self) -> String {
        self.address.to_string()
    }

    async fn connect(&self) -> Result<(), Refusal> {
        self.session().await.map(drop)
    }

    async fn end(&self) -> Result<Vec<u8>, Refusal> {
        let mut session = self.session().await?;
        let max = usize::try_from(MAX_INDEX).unwrap_or(usize::MAX);
        let end = session.end(max.saturating_add(FOOTER)).await;
        self.ended(end).await
    }

    async fn have(&self, image: &str) -> Result<Have, Refusal> {
        let mut session = self.session().await?;
        let have = session.have(image).await;
        self.ended(have).await
    }

    async fn read(&self, range: &Range) -> Result<Vec<u8>, Refusal> {
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

/// Gets all `pieces`, from `sources`, which have the image, and from `more`, which
/// get it, too, and come and go. Returns how many bytes each has given, by name.
///
/// # Errors
/// When nobody gives one of them, or it can't be written.
pub async fn fetch(
    partial: &Arc<Partial>,
    mut pieces: Vec<Piece>,
    sources: &[Arc<dyn Source>],
    mut more: mpsc::Receiver<Arc<dyn Source>>,
    progress: &Progress,
    sink: &dyn Sink,
) -> Result<Vec<(String, u64)>, Error> {
    progress.expect(pieces.iter().map(|piece| piece.length).sum());
    // Of two that are as rare every node begins with another.
    fastrand::shuffle(&mut pieces);
    let state = State {
        waiting: pieces,
        running: 0,
        sources: Vec::new(),
        last: Instant::now(),
        failed: None,
    };
    let fetch = Fetch {
        partial,
        image: partial.image().index_digest(),
        progress,
        sink,
        state: Mutex::new(state),
        changed: Notify::new(),
    };
    let mut serving = FuturesUnordered::new();
    for source in sources {
        serving.push(fetch.serve(fetch.meet(source, false)));
    }
    let mut more_may_come = true;
    while !serving.is_empty() {
        tokio::select! {
            _ = serving.next() => {}
            // Whoever doesn't answer isn't waited for.
            () = fetch.done() => break,
            source = more.recv(), if more_may_come => match source {
                Some(source) => serving.push(fetch.serve(fetch.meet(&source, true))),
                None => more_may_come = false,
            },
        }
    }
    drop(serving);
    progress.finish();
    let state = fetch.state.into_inner();
    let state = state.unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = state.failed {
        return Err(error);
    }
    let known = state.sources.into_iter();
    match state.waiting.is_empty() {
        true => Ok(known.map(|known| (known.name, known.given)).collect()),
        false => Err(Error::Nobody(known.filter_map(|known| known.out).collect())),
    }
}

/// What is known of a source.
struct Known {
    source: Arc<dyn Source>,
    name: String,
    have: Have,
    /// Whether it gets the image itself: it may go at any time.
    passing: bool,
    /// Bytes.
    given: u64,
    /// Why it is asked no more.
    out: Option<String>,
}

struct State {
    waiting: Vec<Piece>,
    running: usize,
    sources: Vec<Known>,
    /// When a piece came last.
    last: Instant,
    /// What ends all.
    failed: Option<Error>,
}

impl State {
    fn is_done(&self) -> bool {
        self.failed.is_some() || self.waiting.is_empty() && self.running == 0
    }

    fn is_out(&self, source: usize) -> bool {
        self.sources
            .get(source)
            .is_none_or(|known| known.out.is_some())
    }

    /// Whether nobody has the whole image, and nothing has come for long.
    fn is_hopeless(&self, now: Instant) -> bool {
        let whole = |known: &Known| known.out.is_none() && !known.passing;
        !self.sources.iter().any(whole) && now.duration_since(self.last) > PATIENCE
    }

    /// Takes the piece that fewest others have, of those that the source has.
    fn take(&mut self, source: usize) -> Option<Piece> {
        let have = &self.sources.get(source)?.have;
        let others = self.sources.iter().enumerate().filter(|(number, known)| {
            *number != source && known.out.is_none() && known.have != Have::All
        });
        let others: Vec<_> = others.map(|(_, known)| &known.have).collect();
        let copies = |piece: &Piece| others.iter().filter(|have| have.has(piece.number)).count();
        let waiting = self.waiting.iter().enumerate();
        let rarest = waiting
            .filter(|(_, piece)| have.has(piece.number))
            .min_by_key(|(_, piece)| copies(piece));
        let place = rarest?.0;
        self.running += 1;
        Some(self.waiting.swap_remove(place))
    }
}

/// How a piece ended that has not come.
enum Undone {
    /// The source gave bytes that are wrong.
    Wrong(String),
    /// It gave none.
    Failed(Refusal),
    /// No source is to blame.
    Ours(Error),
}

struct Fetch<'a> {
    partial: &'a Arc<Partial>,
    image: String,
    progress: &'a Progress,
    sink: &'a dyn Sink,
    state: Mutex<State>,
    changed: Notify,
}

impl Fetch<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a source down, which has nothing until it tells.
    fn meet(&self, source: &Arc<dyn Source>, passing: bool) -> usize {
        let mut state = self.state();
        state.sources.push(Known {
            source: source.clone(),
            name: source.name(),
            have: Have::Pieces(Vec::new()),
            passing,
            given: 0,
            out: None,
        });
        state.sources.len() - 1
    }

    /// Comes back when all is there, or nothing more can come.
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
    async fn serve(&self, number: usize) {
        let source = self
            .state()
            .sources
            .get(number)
            .map(|known| known.source.clone());
        let Some(source) = source else {
            return;
        };
        for failures in 1.. {
            match source.connect().await {
                Ok(()) => break,
                Err(failure) if failures == FAILURES || matches!(failure, Refusal::Refused(_)) => {
                    self.leave_out(&mut self.state(), number, failure);
                    return;
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        let working = join_all([&source; AT_A_TIME].map(|source| self.work(number, &**source)));
        tokio::select! {
            _ = working => {}
            () = self.learn(number, &*source) => {}
        }
    }

    /// Learns what a source has, until it has all or is asked no more; never comes
    /// back, as pieces may be under way.
    async fn learn(&self, number: usize, source: &dyn Source) {
        let mut failures = 0;
        loop {
            let told = source.have(&self.image).await;
            {
                let mut state = self.state();
                match told {
                    Ok(have) => {
                        failures = 0;
                        let is_all = have == Have::All;
                        if let Some(known) = state.sources.get_mut(number) {
                            known.have = have;
                        }
                        self.changed.notify_waiters();
                        if is_all {
                            break;
                        }
                        if state.is_hopeless(Instant::now()) {
                            let why = "it has not got what is missing, and nobody else has";
                            self.leave_out(&mut state, number, Refusal::NotNow(why.into()));
                        }
                    }
                    Err(failure) => {
                        failures += 1;
                        if failures == FAILURES || matches!(failure, Refusal::Refused(_)) {
                            self.leave_out(&mut state, number, failure);
                        }
                    }
                }
                if state.is_out(number) {
                    self.changed.notify_waiters();
                    break;
                }
            }
            tokio::time::sleep(POLL).await;
        }
        std::future::pending().await
    }

    fn leave_out(&self, state: &mut State, number: usize, why: Refusal) {
        if let Some(known @ Known { out: None, .. }) = state.sources.get_mut(number) {
            let told = format!("{}: {why}", known.name);
            // One that has got all goes on to other things.
            if !known.passing || matches!(why, Refusal::Refused(_)) {
                self.sink.warning(&format!("{told}; it is asked no more"));
            }
            known.out = Some(told);
        }
    }

    /// Has one source give pieces until all are there.
    async fn work(&self, number: usize, source: &dyn Source) {
        let mut failures = 0;
        while let Some(piece) = self.next(number).await {
            match self.get(source, &piece).await {
                Ok(()) => {
                    failures = 0;
                    self.came(number, &piece);
                }
                Err(undone) => {
                    failures += 1;
                    let again =
                        failures < FAILURES && matches!(undone, Undone::Failed(Refusal::NotNow(_)));
                    self.put_back(number, piece, undone, again);
                    if again {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    fn came(&self, number: usize, piece: &Piece) {
        let mut state = self.state();
        state.running -= 1;
        state.last = Instant::now();
        if let Some(known) = state.sources.get_mut(number) {
            known.given += piece.length;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Leaves a piece to others, or ends all. The source is asked `again`, or no more.
    fn put_back(&self, number: usize, piece: Piece, undone: Undone, again: bool) {
        let mut state = self.state();
        state.running -= 1;
        match undone {
            Undone::Wrong(why) => self.leave_out(&mut state, number, Refusal::Refused(why)),
            Undone::Failed(failure) if !again => self.leave_out(&mut state, number, failure),
            Undone::Failed(_) => {}
            Undone::Ours(error) => state.failed = Some(error),
        }
        state.waiting.push(piece);
        drop(state);
        self.changed.notify_waiters();
    }

    /// The next piece for a source; none where it is asked no more or all is done.
    async fn next(&self, number: usize) -> Option<Piece> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = self.state();
                // What others do may come back.
                if state.is_done() || state.is_out(number) {
                    return None;
                }
                if let Some(piece) = state.take(number) {
                    return Some(piece);
                }
            }
            changed.await;
        }
    }

    async fn get(&self, source: &dyn Source, piece: &Piece) -> Result<(), Undone> {
        let range = Range {
            image: self.image.clone(),
            digest: piece.digest.clone(),
            offset: piece.offset,
            length: usize::try_from(piece.length).unwrap_or(usize::MAX),
        };
        let bytes = source.read(&range).await.map_err(Undone::Failed)?;
        let (partial, put) = (self.partial.clone(), piece.clone());
        let done = tokio::task::spawn_blocking(move || partial.put(&put, &bytes)).await;
        match done {
            Ok(Ok(())) => {
                self.progress.add(piece.length);
                Ok(())
            }
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
