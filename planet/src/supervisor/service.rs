//! One service: started, watched, started again, stopped.
//!
//! In: a [`Service`] and, from an earlier supervisor, the process that runs
//! already. Out: its status on the board, its process in a control group of its
//! own, its identity in a state file. Always holds: at most one process of the
//! service; what an ended service left in its group is killed before the next
//! start, unless its children are to be kept.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::board::Board;
use super::{STATES, logs, pods, probe};
use crate::cgroup::{Group, Hierarchy};
use crate::client::State;
use crate::config::Service;
use crate::error::{Context, Error, Result};
use crate::files;
use crate::nftables::Table;
use crate::paths::PATH;
use crate::process::ProcessId;
use crate::sys::{self, Identity};

/// First wait before a service is started again; doubles each time.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A service that lived so long was well: the wait starts over.
const WELL: Duration = Duration::from_secs(60);
/// First and longest wait between two probes.
const PROBE_MIN: Duration = Duration::from_millis(20);
const PROBE_MAX: Duration = Duration::from_millis(250);
/// Why a probe fails is told after so long: before, it is only starting.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a service that is ready is probed again.
const LOOK: Duration = Duration::from_secs(10);
/// How often in a row that fails until it isn't ready any more.
const LOOKS: u32 = 3;
/// How often it is looked whether packet filter tables are still there.
const TABLES: Duration = Duration::from_secs(2);
/// How long a command after the start may take.
const AROUND_START: Duration = Duration::from_mins(2);
/// How long processes may take to go away once killed.
const KILL: Duration = Duration::from_secs(10);

/// What a running unit can be told.
#[derive(Debug)]
pub(super) enum Command {
    /// Stop and start again; answered when it is no longer ready.
    Restart(oneshot::Sender<()>),
    /// Stop and stay so; answered when it is written down.
    Hold(oneshot::Sender<()>),
    /// Start again where it was held.
    Release(oneshot::Sender<()>),
}

/// A service and what belongs to it.
pub(super) struct Unit {
    service: Service,
    /// Those that have to be stopped before it.
    dependents: Vec<String>,
    group: Group,
    pods: Group,
    board: Board,
}

/// What the next supervisor has to know.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    /// The process, while one runs.
    process: Option<ProcessId>,
    /// How often it was started again.
    restarts: u32,
    /// When it was started, in seconds since 1970.
    since: u64,
    /// Whether it has become ready.
    ready: bool,
    /// Whether a oneshot service is done.
    done: bool,
    /// Whether it is to stay stopped.
    #[serde(default)]
    held: bool,
}

/// A process of the service.
struct Running {
    process: ProcessId,
    pidfd: AsyncFd<OwnedFd>,
    since: Instant,
    /// Whether it was ready already when it was taken over.
    ready: bool,
}

/// Why a running service is no longer watched.
enum Event {
    Ended(Result<(), String>),
    Restart,
    Hold(oneshot::Sender<()>),
    Stop,
}

/// Why a unit without a process waits no longer.
enum Waited {
    /// It may start.
    Start,
    Hold,
    Stop,
}

impl Unit {
    pub(super) fn new(
        service: Service,
        dependents: Vec<String>,
        hierarchies: &[Hierarchy],
        board: Board,
    ) -> Self {
        let group = Group::service(hierarchies, &service.name);
        Self {
            service,
            dependents,
            group,
            pods: Group::pods(hierarchies),
            board,
        }
    }

    /// Keeps the service running until it is told to stop.
    pub(super) async fn keep(
        self,
        mut commands: mpsc::Receiver<Command>,
        mut stopping: watch::Receiver<bool>,
    ) {
        let mut saved: Saved = files::read_json(&self.state_file()).unwrap_or_default();
        let mut backoff = BACKOFF_MIN;
        let mut adopted = self.adopt(&saved);
        let mut waits = !saved.done && adopted.is_none();
        loop {
            if saved.held {
                if let Some(running) = adopted.take() {
                    self.terminate(running, false).await;
                }
                saved.process = None;
                self.save(&saved);
                self.set(State::Stopped, None, saved.restarts, None);
                if !self.wait_release(&mut commands, &mut stopping).await {
                    break;
                }
                saved.held = false;
                self.save(&saved);
                backoff = BACKOFF_MIN;
                waits = true;
                self.set(State::Starting, None, saved.restarts, None);
            }
            if std::mem::take(&mut waits) {
                match self.wait_required(&mut commands, &mut stopping).await {
                    Waited::Start => {}
                    Waited::Hold => {
                        saved.held = true;
                        continue;
                    }
                    Waited::Stop => {
                        return self
                            .board
                            .change(&self.service.name, |status| status.state = State::Stopped);
                    }
                }
            }
            let running = match adopted.take() {
                Some(running) => Ok(running),
                None if saved.done => {
                    self.set(State::Ready, None, saved.restarts, None);
                    match self.wait_command(&mut commands, &mut stopping).await {
                        Waited::Start => saved.done = false,
                        Waited::Hold => saved.held = true,
                        Waited::Stop => break,
                    }
                    continue;
                }
                None => self.start(&mut saved).await,
            };
            let failure = match running {
                Err(error) => {
                    saved.process = None;
                    error.to_string()
                }
                Ok(running) => {
                    let event = self
                        .watch(&running, &mut saved, &mut commands, &mut stopping)
                        .await;
                    let uptime = running.since.elapsed();
                    if uptime > WELL {
                        backoff = BACKOFF_MIN;
                    }
                    match event {
                        Event::Stop => {
                            self.wait_to_stop().await;
                            self.terminate(running, true).await;
                            break;
                        }
                        Event::Restart => {
                            self.terminate(running, false).await;
                            saved.restarts += 1;
                            continue;
                        }
                        Event::Hold(accepted) => {
                            saved.held = true;
                            self.save(&saved);
                            let _ = accepted.send(());
                            adopted = Some(running);
                            continue;
                        }
                        Event::Ended(Ok(())) if self.service.oneshot => {
                            saved = Saved {
                                process: None,
                                done: true,
                                ..saved
                            };
                            self.save(&saved);
                            continue;
                        }
                        Event::Ended(how) => self.describe(how),
                    }
                }
            };
            saved.restarts += 1;
            self.set(State::Failed, None, saved.restarts, Some(failure));
            let wait = jitter(backoff);
            backoff = (backoff * 2).min(BACKOFF_MAX);
            let waited = tokio::select! {
                () = sleep(wait) => Waited::Start,
                waited = self.told(&mut commands) => waited,
                _ = stopping.wait_for(|stop| *stop) => Waited::Stop,
            };
            match waited {
                Waited::Start => {}
                Waited::Hold => {
                    saved.held = true;
                    self.end_group(false).await;
                }
                Waited::Stop => {
                    self.wait_to_stop().await;
                    self.end_group(true).await;
                    break;
                }
            }
        }
        saved.process = None;
        self.save(&saved);
        self.set(State::Stopped, None, saved.restarts, None);
    }

    /// Waits until the planet, which stops, needs this service no longer.
    async fn wait_to_stop(&self) {
        self.board.wait(&self.dependents, State::Stopped).await;
        if self.service.keep_children {
            self.end_pods().await;
        }
    }

    /// Waits for the services that this one requires.
    async fn wait_required(
        &self,
        commands: &mut mpsc::Receiver<Command>,
        stopping: &mut watch::Receiver<bool>,
    ) -> Waited {
        loop {
            tokio::select! {
                () = self.board.wait(&self.service.requires, State::Ready) => return Waited::Start,
                _ = stopping.wait_for(|stop| *stop) => return Waited::Stop,
                // Starting is what it is about to do.
                waited = self.told(commands) => if matches!(waited, Waited::Hold) {
                    return waited;
                }
            }
        }
    }

    /// Waits to be started again.
    async fn wait_command(
        &self,
        commands: &mut mpsc::Receiver<Command>,
        stopping: &mut watch::Receiver<bool>,
    ) -> Waited {
        tokio::select! {
            waited = self.told(commands) => waited,
            _ = stopping.wait_for(|stop| *stop) => Waited::Stop,
        }
    }

    /// The next command that matters to a unit that has no process and isn't
    /// held.
    async fn told(&self, commands: &mut mpsc::Receiver<Command>) -> Waited {
        loop {
            match commands.recv().await {
                Some(Command::Restart(accepted)) => {
                    self.board.change(&self.service.name, |status| {
                        status.state = State::Starting;
                    });
                    let _ = accepted.send(());
                    return Waited::Start;
                }
                Some(Command::Hold(accepted)) => {
                    let _ = accepted.send(());
                    return Waited::Hold;
                }
                Some(Command::Release(accepted)) => drop(accepted.send(())),
                // The sender lives as long as the supervisor.
                None => std::future::pending().await,
            }
        }
    }

    /// Waits until a held service may start. False when it is to stop.
    async fn wait_release(
        &self,
        commands: &mut mpsc::Receiver<Command>,
        stopping: &mut watch::Receiver<bool>,
    ) -> bool {
        loop {
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return false,
                Some(command) = commands.recv() => match command {
                    Command::Release(accepted) => {
                        let _ = accepted.send(());
                        return true;
                    }
                    Command::Hold(accepted) => drop(accepted.send(())),
                    // Dropped, which refuses it.
                    Command::Restart(_) => {}
                }
            }
        }
    }

    /// Takes over the process of an earlier supervisor.
    fn adopt(&self, saved: &Saved) -> Option<Running> {
        let process = saved.process?;
        let pidfd = sys::watch(process.open()?).ok()?;
        tracing::info!(service = self.service.name, pid = process.pid, "taken over");
        Some(Running {
            process,
            pidfd,
            since: Instant::now(),
            ready: saved.ready,
        })
    }

    async fn start(&self, saved: &mut Saved) -> Result<Running> {
        let service = &self.service;
        self.set(State::Starting, None, saved.restarts, None);
        self.end_group(false).await;
        self.group.create()?;
        if let Some(weight) = service.cpu_weight {
            self.group.set_cpu_weight(weight)?;
        }
        for directory in &service.directories {
            make_directory(directory, service.uid, service.gid)?;
        }
        self.run_each(&service.pre_start)
            .await
            .map_err(|failure| Error::Start(self.describe(Err(failure))))?;
        let process = self.spawn()?;
        *saved = Saved {
            process: Some(process),
            restarts: saved.restarts,
            since: super::board::now(),
            ..Saved::default()
        };
        self.save(saved);
        let pidfd = process
            .open()
            .ok_or_else(|| Error::Start(self.describe(Err("ended at once".into()))))?;
        let pidfd = sys::watch(pidfd).on("watch a process")?;
        self.set(State::Starting, Some(process.pid), saved.restarts, None);
        Ok(Running {
            process,
            pidfd,
            since: Instant::now(),
            ready: false,
        })
    }

    fn spawn(&self) -> Result<ProcessId> {
        let service = &self.service;
        let log = logs::open(&service.name)?;
        let [program, arguments @ ..] = service.command() else {
            return Err(Error::Start(self.describe(Err("it has no command".into()))));
        };
        let mut command = std::process::Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", if service.uid == 0 { "/root" } else { "/" })
            .envs(&service.env)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().at("open", logs::path(&service.name))?)
            .stderr(log);
        let capabilities = service
            .capabilities
            .iter()
            .filter_map(|name| sys::capability(name))
            .collect();
        let identity = Identity {
            cgroups: self.group.open()?,
            uid: service.uid,
            gid: service.gid,
            capabilities,
        };
        sys::become_on_exec(&mut command, identity);
        let child = command.spawn().at("execute", program)?;
        // It is reaped by `ended`, through its id: until then the id is its own.
        let pid = child.id().cast_signed();
        ProcessId::of(pid).ok_or_else(|| {
            let how = reap(pid).unwrap_or_else(|| Err("ended at once".into()));
            Error::Start(self.describe(how))
        })
    }

    /// Watches a process until something has to be done about it.
    async fn watch(
        &self,
        running: &Running,
        saved: &mut Saved,
        commands: &mut mpsc::Receiver<Command>,
        stopping: &mut watch::Receiver<bool>,
    ) -> Event {
        let pid = Some(running.process.pid);
        let restarts = saved.restarts;
        let oneshot = self.service.oneshot;
        if running.ready {
            self.set(State::Ready, pid, restarts, None);
        } else {
            self.set(State::Starting, pid, restarts, None);
        }
        let probed = async {
            if oneshot {
                return std::future::pending().await;
            }
            if !running.ready {
                self.become_ready().await;
                self.set(State::Ready, pid, restarts, None);
                saved.ready = true;
                self.save(saved);
            }
            self.look(pid, restarts).await
        };
        tokio::select! {
            how = ended(running) => Event::Ended(how),
            table = self.lost_table() => {
                let reason = format!("others have deleted its packet filter table {table}");
                self.set(State::Starting, pid, restarts, Some(reason));
                Event::Restart
            }
            _ = stopping.wait_for(|stop| *stop) => Event::Stop,
            event = told_running(commands) => {
                self.set(State::Starting, pid, restarts, None);
                match event {
                    Command::Hold(accepted) => Event::Hold(accepted),
                    Command::Restart(accepted) | Command::Release(accepted) => {
                        let _ = accepted.send(());
                        Event::Restart
                    }
                }
            }
            never = probed => match never {},
        }
    }

    /// Probes until the service is ready and its commands have run.
    async fn become_ready(&self) {
        let started = Instant::now();
        let mut wait = PROBE_MIN;
        loop {
            let failure = match self.answers_twice().await {
                Ok(()) => match self.run_each(&self.service.post_start).await {
                    Ok(()) => return,
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            if started.elapsed() > PATIENCE {
                self.board.change(&self.service.name, |status| {
                    status.last_error = Some(failure)
                });
            }
            sleep(wait).await;
            wait = (wait * 2).min(PROBE_MAX);
        }
    }

    /// Probes two times. A member of etcd that stands by says that it votes until it has
    /// read in the others' log that it doesn't: its first good answer comes after that,
    /// and may still say what was before.
    async fn answers_twice(&self) -> Result<(), String> {
        probe::attempt(&self.service.readiness).await?;
        probe::attempt(&self.service.readiness).await
    }

    /// Tells whether a service that was ready still is. It is not restarted: what
    /// it waits for is seldom in it.
    async fn look(&self, pid: Option<i32>, restarts: u32) -> Infallible {
        let mut failed = 0;
        loop {
            sleep(LOOK).await;
            match probe::attempt(&self.service.readiness).await {
                Ok(()) => {
                    if failed >= LOOKS {
                        self.set(State::Ready, pid, restarts, None);
                    }
                    failed = 0;
                }
                Err(reason) => {
                    failed += 1;
                    if failed == LOOKS {
                        self.set(State::Unhealthy, pid, restarts, Some(reason));
                    }
                }
            }
        }
    }

    /// Comes back when a table that the service had made is gone.
    async fn lost_table(&self) -> &str {
        let tables = self.service.tables.iter();
        let tables: Vec<_> = tables
            .filter_map(|text| Some((text.as_str(), Table::parse(text)?)))
            .collect();
        if tables.is_empty() {
            return std::future::pending().await;
        }
        lost(&tables, TABLES, Table::exists).await
    }

    /// Runs commands that belong to its start, as root.
    async fn run_each(&self, commands: &[Vec<String>]) -> Result<(), String> {
        for command in commands {
            let log = logs::open(&self.service.name).map_err(|error| error.to_string())?;
            timeout(AROUND_START, probe::run(command, log.into()))
                .await
                .unwrap_or_else(|_| {
                    Err(format!(
                        "{} takes longer than {AROUND_START:?}",
                        command.join(" ")
                    ))
                })?;
        }
        Ok(())
    }

    /// Ends a process: SIGTERM, and SIGKILL for all that is left in time.
    async fn terminate(&self, running: Running, all: bool) {
        let patience = Duration::from_secs(self.service.stop_timeout_seconds);
        drop(sys::pidfd_signal(
            running.pidfd.get_ref().as_fd(),
            Signal::SIGTERM,
        ));
        if timeout(patience, ended(&running)).await.is_err() {
            tracing::warn!(service = self.service.name, "killed after {patience:?}");
            drop(sys::pidfd_signal(
                running.pidfd.get_ref().as_fd(),
                Signal::SIGKILL,
            ));
            drop(timeout(KILL, ended(&running)).await);
        }
        self.end_group(all).await;
    }

    /// Kills what is left in the group; children that are to be kept only when
    /// `all` ends.
    async fn end_group(&self, all: bool) {
        let until = Instant::now() + KILL;
        if self.service.keep_children && !all {
            for pid in self.group.processes() {
                if self.is_main(pid) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            while self
                .group
                .processes()
                .into_iter()
                .any(|pid| self.is_main(pid))
            {
                if Instant::now() > until {
                    break;
                }
                sleep(Duration::from_millis(10)).await;
            }
            return;
        }
        while !self.group.kill() {
            if Instant::now() > until {
                let left = self.group.processes();
                self.board.warn(format!(
                    "{}: processes {left:?} do not end",
                    self.service.name
                ));
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether a process is one of the service's program itself.
    fn is_main(&self, pid: i32) -> bool {
        let name = |path: &Path| path.file_name().map(ToOwned::to_owned);
        let executable = fs::read_link(format!("/proc/{pid}/exe")).ok();
        let program = fs::canonicalize(&self.service.command[0]).ok();
        executable.is_some_and(|path| name(&path) == program.as_deref().and_then(name))
    }

    /// Ends pods before what holds them: has every container end in the time of its
    /// pod, and kills what is left.
    async fn end_pods(&self) {
        let programs = pods::Programs::new();
        let containers = pods::containers(Path::new(pods::BUNDLES), &self.pods.processes());
        let ends = containers
            .into_iter()
            .map(|container| container.end(programs.clone()));
        for ended in ends.collect::<JoinSet<_>>().join_all().await {
            if let Err(error) = ended {
                self.board.warn(error);
            }
        }
        let until = Instant::now() + KILL;
        while !self.pods.kill() && Instant::now() < until {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// How it ended, with what it said last.
    fn describe(&self, how: Result<(), String>) -> String {
        let how = how.err().unwrap_or_else(|| "ended with exit code 0".into());
        match logs::last_line(&logs::path(&self.service.name)) {
            Some(line) => format!("{how}; last words: {line}"),
            None => how,
        }
    }

    fn set(&self, state: State, pid: Option<i32>, restarts: u32, error: Option<String>) {
        self.board.change(&self.service.name, |status| {
            status.state = state;
            status.pid = pid;
            status.restarts = restarts;
            // Why it ended the last time stays until it is well again.
            if error.is_some() || matches!(state, State::Ready | State::Stopped) {
                status.last_error = error;
            }
        });
    }

    fn state_file(&self) -> PathBuf {
        Path::new(STATES).join(format!("{}.json", self.service.name))
    }

    fn save(&self, saved: &Saved) {
        if let Err(error) = files::write_json(&self.state_file(), saved) {
            self.board.warn(error.to_string());
        }
    }
}

/// Makes a directory of a user. A link in its place, which that user may have made, is
/// not followed: what it leads to would be given away.
fn make_directory(path: &Path, uid: u32, gid: u32) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .at("create", path)?;
    let directory = fs::File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(path)
        .at("open", path)?;
    fchown(&directory, Some(uid), Some(gid)).at("change the owner of", path)
}

/// The next command that matters to a service that runs.
async fn told_running(commands: &mut mpsc::Receiver<Command>) -> Command {
    loop {
        match commands.recv().await {
            Some(Command::Release(accepted)) => drop(accepted.send(())),
            Some(command) => return command,
            // The sender lives as long as the supervisor.
            None => std::future::pending().await,
        }
    }
}

/// Waits until a process has ended, and reaps it if it is ours.
async fn ended(running: &Running) -> Result<(), String> {
    // An error means that the runtime ends, and with it the wait.
    drop(running.pidfd.readable().await);
    reap(running.process.pid).unwrap_or_else(|| Err("ended; how is not known".into()))
}

/// Reaps a child; `None` when it is not ours.
fn reap(pid: i32) -> Option<Result<(), String>> {
    match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, 0)) => Some(Ok(())),
        Ok(WaitStatus::Exited(_, code)) => Some(Err(format!("exit code {code}"))),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(Err(format!("ended by {signal}"))),
        _ => None,
    }
}

/// Waits until one of `tables`, looked at so often, was there and is not any more. That
/// it can't be looked at, or isn't made yet, is no loss.
async fn lost<'a>(
    tables: &[(&'a str, Table<'a>)],
    every: Duration,
    exists: impl Fn(Table<'a>) -> io::Result<bool>,
) -> &'a str {
    let mut seen = BTreeSet::new();
    loop {
        for (text, table) in tables {
            match exists(*table) {
                Ok(true) => {
                    seen.insert(*text);
                }
                Ok(false) if seen.contains(text) => return text,
                Ok(false) | Err(_) => {}
            }
        }
        sleep(every).await;
    }
}

/// Up to a quarter more or less, so that services do not start all at once.
fn jitter(wait: Duration) -> Duration {
    // The standard library's random keys are random enough.
    let random = RandomState::new().build_hasher().finish() % 512;
    wait.mul_f64(0.75 + f64::from(u32::try_from(random).unwrap_or_default()) / 1024.0)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn only_a_table_that_was_there_can_be_lost() {
        let table = |text: &'static str| (text, Table::parse(text).unwrap());
        let tables = [table("ip never"), table("ip6 hidden"), table("ip later")];
        let looks = Cell::new(0);
        let exists = |asked: Table<'_>| {
            looks.set(looks.get() + 1);
            match looks.get() {
                // Made after the first look, and there for two more.
                _ if asked != tables[2].1 => match asked == tables[0].1 {
                    true => Ok(false),
                    false => Err(io::Error::other("may not look")),
                },
                4..=9 => Ok(true),
                _ => Ok(false),
            }
        };
        assert_eq!(lost(&tables, Duration::ZERO, exists).await, "ip later");
        assert_eq!(looks.get(), 12);
    }

    #[test]
    fn a_directory_is_never_given_away_through_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (own, link) = (
            directory.path().join("log/audit"),
            directory.path().join("link"),
        );
        let (uid, gid) = (
            nix::unistd::getuid().as_raw(),
            nix::unistd::getgid().as_raw(),
        );
        make_directory(&own, uid, gid).unwrap();
        // It may be there already.
        make_directory(&own, uid, gid).unwrap();
        std::os::unix::fs::symlink(&own, &link).unwrap();
        assert!(make_directory(&link, uid, gid).is_err());
    }

    #[test]
    fn jitter_stays_within_a_quarter() {
        let wait = Duration::from_secs(1);
        for _ in 0..100 {
            let jittered = jitter(wait);
            assert!(jittered >= wait.mul_f64(0.75) && jittered <= wait.mul_f64(1.25));
        }
    }
}
