//! The container: namespaces, root filesystem, control groups.
//!
//! In: the file of a [`PlanetConfig`]. Out: a container whose PID 1 keeps the
//! supervisor running, until SIGTERM; nothing of it is left then but the
//! writable layer. Always holds: one container at a time (a lock); a container
//! that ends without being told to is started again; mounts made inside are
//! never seen by the host; when this process dies and is started again, it
//! takes over the container that runs.
//!
//! It forks, so it belongs into a process with one thread.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pivot_root};
use serde::{Deserialize, Serialize};

use crate::cgroup::{self, Group};
use crate::config::{Mount, PlanetConfig};
use crate::devices::{self, Found};
use crate::error::{Context, Error, Result};
use crate::paths::PATH;
use crate::process::ProcessId;
use crate::sys::{self, Fork, SingleThread};
use crate::{address, files, names};

/// Where the configuration lies inside.
pub const CONFIG: &str = "/run/planet/config.json";
/// Directory inside that the host sees, when one is mounted there.
pub const HOST_RUN: &str = "/run/planet/host";
/// Name of the supervisor's socket in it.
const SOCKET_NAME: &str = "planet.sock";
/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Name of the control group.
const GROUP: &str = "gravity";
/// PID 1 inside.
const INIT: &str = "/usr/local/bin/planet-init";
/// Command of the supervisor inside.
const SUPERVISOR: &[&str] = &["/opt/gravity/bin/gravity", "planet", "supervise"];
/// Where the host's root hangs until all is mounted.
const OLD_ROOT: &str = "/run/host";
/// First wait before a container that ended is started again; doubles each time.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// How often a container that does not stop is told again, in ms.
const REMIND: u16 = 1000;
/// Longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A container that lived so long was well: the wait starts over.
const WELL: Duration = Duration::from_secs(120);

/// Keeps the container of the configuration file running until it is told to
/// end, by SIGTERM.
///
/// # Errors
/// When the configuration or the machine does not allow it, or when a container
/// runs already.
pub fn run(path: &Path) -> Result<()> {
    let config = load(path)?;
    let state = State::of(&config);
    fs::create_dir_all(&state.directory).at("create", &state.directory)?;
    let _lock = state.lock()?;
    // Before others learn of this process: it is ready to be told to end.
    let mut keeper = Keeper {
        config: &config,
        state: &state,
        signals: block_signals()?,
        stopping: false,
    };
    if let Some(own) = ProcessId::of(std::process::id().cast_signed()) {
        files::write_json(&state.daemon_file(), &Recorded::now(own)?)?;
    }
    let mut backoff = BACKOFF_MIN;
    // One that never ran is the caller's to know.
    let mut process = keeper.start_or_take_over()?;
    loop {
        let started = Instant::now();
        let ended = keeper.wait(process);
        let cleaned = clean(&config, &state);
        match ended {
            Err(error) if !keeper.stopping => {
                tracing::warn!(%error, ?cleaned, "starting the planet again");
            }
            ended => return ended.and(cleaned),
        }
        if started.elapsed() > WELL {
            backoff = BACKOFF_MIN;
        }
        process = loop {
            if keeper.is_stopped_within(backoff)? {
                return Ok(());
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
            match keeper.start_or_take_over() {
                Ok(process) => break process,
                Err(error) => tracing::warn!(%error, "the planet can't be started"),
            }
        };
    }
}

/// Host process id of the running container's PID 1.
///
/// # Errors
/// When none runs.
pub fn running(config: &Path) -> Result<i32> {
    let config = load(config)?;
    let state = State::of(&config);
    let process = state.running().ok_or_else(|| {
        Error::NotRunning(format!("no process as in {}", state.pid_file().display()))
    })?;
    Ok(process.pid)
}

/// Whether a process keeps the container of the configuration file running, or is about
/// to start it.
pub fn has_daemon(config: &Path) -> bool {
    load(config).is_ok_and(|config| State::of(&config).daemon().is_some())
}

/// Stops the container of the configuration file, where one runs, in order, by
/// its daemon where there is one; kills it when it takes longer than `timeout`.
/// Its daemon, or this process where the daemon is gone, cleans up. Comes back when all of it is gone.
///
/// # Errors
/// When the configuration can't be read or something can't be removed.
pub fn stop(path: &Path, timeout: Duration) -> Result<()> {
    let config = load(path)?;
    let state = State::of(&config);
    // The daemon holds the lock until it has cleaned up. One that has just begun
    // holds it before its container runs: it is looked for again and again.
    let until = Instant::now() + timeout * 3;
    let _lock = loop {
        end(&state, timeout)?;
        match state.lock() {
            Err(Error::Running(_)) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(lock) if state.running().is_some() && Instant::now() < until => drop(lock),
            other => break other?,
        }
    };
    clean(&config, &state)
}

/// Ends the container that runs, in order or by force.
fn end(state: &State, timeout: Duration) -> Result<()> {
    // Told itself, it starts no other one.
    let daemon = state.daemon();
    if let Some(daemon) = &daemon {
        drop(sys::pidfd_signal(daemon.as_fd(), Signal::SIGTERM));
    }
    let Some(container) = state.running().and_then(ProcessId::open) else {
        return Ok(());
    };
    for (signal, patience) in [(Signal::SIGTERM, timeout), (Signal::SIGKILL, timeout)] {
        if daemon.is_none() || signal == Signal::SIGKILL {
            // It may have ended meanwhile.
            drop(sys::pidfd_signal(container.as_fd(), signal));
        }
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let mut ended = [PollFd::new(container.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ended, patience).on("wait for the planet")? > 0 {
            break;
        }
    }
    Ok(())
}

/// Reads and checks a configuration.
///
/// # Errors
/// When it can't be read, is of another version, or contradicts itself.
pub fn load(path: &Path) -> Result<PlanetConfig> {
    let config: PlanetConfig = files::read_json(path)?;
    config.check().map_err(|reason| Error::Config {
        path: path.to_owned(),
        reason,
    })?;
    Ok(config)
}

/// What is written down beside the writable layer.
struct State {
    directory: PathBuf,
}

impl State {
    fn of(config: &PlanetConfig) -> Self {
        let parent = config.overlay.parent().unwrap_or(&config.overlay);
        Self {
            directory: parent.to_owned(),
        }
    }

    fn pid_file(&self) -> PathBuf {
        self.directory.join("planet.pid")
    }

    fn daemon_file(&self) -> PathBuf {
        self.directory.join("daemon.pid")
    }

    fn lock(&self) -> Result<Flock<File>> {
        let path = self.directory.join("planet.lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .at("open", &path)?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, _)| Error::Running(path))
    }

    fn running(&self) -> Option<ProcessId> {
        let process = Recorded::read(&self.pid_file())?;
        process.open().map(|_| process)
    }

    /// The process that keeps the container running, where one does.
    fn daemon(&self) -> Option<OwnedFd> {
        Recorded::read(&self.daemon_file())?.open()
    }
}

/// A process that is written down on disk, where it outlives the boot that it is of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Recorded {
    /// Id of the boot, which another one never has.
    boot: String,
    #[serde(flatten)]
    process: ProcessId,
}

impl Recorded {
    fn now(process: ProcessId) -> Result<Self> {
        let boot = fs::read_to_string(BOOT_ID).at("read", Path::new(BOOT_ID))?;
        Ok(Self { boot, process })
    }

    /// The process in the file, if it is of this boot.
    fn read(path: &Path) -> Option<ProcessId> {
        let read: Self = files::read_json(path).ok()?;
        (Self::now(read.process).ok()? == read).then_some(read.process)
    }
}

fn block_signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        set.add(signal);
    }
    set.thread_block().on("block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).on("open signals")
}

fn start(config: &PlanetConfig, state: &State) -> Result<ProcessId> {
    let group = Group::container(GROUP)?;
    // With the last container ended all its processes did: who is in here has
    // nothing to do with it.
    let strangers = group.processes();
    if !strangers.is_empty() {
        return Err(Error::Cgroup(format!(
            "the group {GROUP} has processes {strangers:?} that are not of this planet; end them first"
        )));
    }
    group.destroy()?;
    group.create()?;
    let devices = devices::find(&config.devices)?;

    let (mut error, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)
        .map(|(reader, writer)| (File::from(reader), File::from(writer)))
        .on("make a pipe")?;
    // The namespace of children: this process stays in the host's, and so will
    // its next child.
    let own = File::open("/proc/self/ns/pid").at("open", "/proc/self/ns/pid")?;
    unshare(CloneFlags::CLONE_NEWPID).on("make a PID namespace")?;
    let forked = SingleThread::check().and_then(|single| sys::fork(&single));
    if !matches!(forked, Ok(Fork::Child)) {
        setns(own, CloneFlags::CLONE_NEWPID).on("leave the PID namespace")?;
    }
    let pid = match forked.on("fork")? {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            drop(error);
            let reason = become_container(config, &group, &devices);
            let mut writer = writer;
            drop(write!(writer, "{reason}"));
            std::process::exit(1);
        }
    };
    drop(writer);
    // It ends with the exec, or after the reason why there was none.
    let mut reason = String::new();
    error
        .read_to_string(&mut reason)
        .on("read from the container")?;
    if !reason.is_empty() {
        let _ = waitpid(pid, None);
        drop(group.destroy());
        return Err(Error::Start(reason));
    }
    let process =
        ProcessId::of(pid.as_raw()).ok_or_else(|| Error::Start(format!("{INIT} ended at once")))?;
    let recorded =
        Recorded::now(process).and_then(|recorded| files::write_json(&state.pid_file(), &recorded));
    if let Err(error) = recorded {
        // Nobody would find it.
        let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
        let _ = waitpid(pid, None);
        drop(group.destroy());
        return Err(error);
    }
    Ok(process)
}

/// What keeps one container running.
struct Keeper<'a> {
    config: &'a PlanetConfig,
    state: &'a State,
    signals: SignalFd,
    /// Whether this process was told to end.
    stopping: bool,
}

impl Keeper<'_> {
    fn start_or_take_over(&self) -> Result<ProcessId> {
        match self.state.running() {
            Some(process) => {
                tracing::info!(pid = process.pid, "taking over the planet that runs");
                Ok(process)
            }
            None => start(self.config, self.state),
        }
    }

    /// Waits until the container ends, and passes SIGTERM on.
    fn wait(&mut self, process: ProcessId) -> Result<()> {
        let Some(pidfd) = process.open() else {
            return Err(Error::Ended("at once".into()));
        };
        loop {
            let mut ready = [
                PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            // It may have been started a moment ago and not listen yet.
            let patience = match self.stopping {
                true => PollTimeout::from(REMIND),
                false => PollTimeout::NONE,
            };
            let found = match poll(&mut ready, patience) {
                Err(nix::errno::Errno::EINTR) => continue,
                result => result.on("wait for the planet")?,
            };
            let [ended, signalled] = ready.map(|fd| fd.any().unwrap_or_default());
            if found == 0 || signalled && self.is_told() {
                // If it ended meanwhile, the other descriptor says so.
                drop(sys::pidfd_signal(pidfd.as_fd(), Signal::SIGTERM));
            }
            if ended {
                break;
            }
        }
        let pid = Pid::from_raw(process.pid);
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, 0)) => Ok(()),
            Ok(WaitStatus::Exited(_, code)) => Err(Error::Ended(format!("exit code {code}"))),
            Ok(WaitStatus::Signaled(_, signal, _)) => Err(Error::Ended(signal.to_string())),
            // Taken over from another process: nobody tells us how it ended, but a
            // supervisor that stops in order takes its socket away.
            _ if !socket(self.config).is_some_and(|socket| socket.exists()) => Ok(()),
            _ => Err(Error::Ended("how is not known".into())),
        }
    }

    /// Whether this process is told to end while it waits so long.
    fn is_stopped_within(&mut self, patience: Duration) -> Result<bool> {
        let until = Instant::now() + patience;
        while !self.stopping {
            let left = until.saturating_duration_since(Instant::now());
            let mut ready = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut ready, left) {
                Ok(0) => return Ok(false),
                Ok(_) => self.is_told(),
                Err(nix::errno::Errno::EINTR) => false,
                Err(error) => return Err(error).on("wait before the next start"),
            };
        }
        Ok(true)
    }

    /// Takes one signal; whether it asks for the end.
    fn is_told(&mut self) -> bool {
        let told = matches!(self.signals.read_signal(),
            Ok(Some(signal)) if signal.ssi_signo != Signal::SIGCHLD as u32);
        self.stopping |= told;
        told
    }
}

/// The supervisor's socket on the host, where the configuration has its
/// directory mounted.
pub fn socket(config: &PlanetConfig) -> Option<PathBuf> {
    let mount = config
        .mounts
        .iter()
        .find(|mount| mount.target == Path::new(HOST_RUN))?;
    Some(mount.source.join(SOCKET_NAME))
}

/// Removes what outlives the container's processes.
fn clean(config: &PlanetConfig, state: &State) -> Result<()> {
    // The supervisor does it at an orderly end.
    for cidr in config.addresses() {
        address::remove(cidr).on("remove an address from lo")?;
    }
    let pid_file = state.pid_file();
    drop(fs::remove_file(pid_file));
    Group::container(GROUP)?.destroy()
}

/// In the new process: everything up to the program. Comes back only with the
/// reason why it failed.
fn become_container(config: &PlanetConfig, group: &Group, devices: &[Found]) -> Error {
    match prepare(config, group, devices).and_then(|()| execute()) {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

fn prepare(config: &PlanetConfig, group: &Group, devices: &[Found]) -> Result<()> {
    group.join()?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .on("make namespaces")?;
    // First of all: nothing from here on reaches the host. What the host mounts
    // still reaches the mounts that ask for it.
    propagation("/", MsFlags::MS_SLAVE | MsFlags::MS_REC)?;
    nix::unistd::sethostname(&config.hostname).on("set the host name")?;
    let hierarchies = cgroup::hierarchies()?;
    let mounts = expand(&config.mounts)?;
    let sources = open_sources(&mounts)?;
    let resolv_conf = names::of_host();
    let device_control = group.device_control()?;
    let all_devices = open_path(Path::new("/dev"))?;
    change_root(config)?;

    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    file_system("proc", "/proc", plain, "")?;
    file_system("sysfs", "/sys", plain, "")?;
    mount_cgroups(&hierarchies)?;
    mount_devices(&all_devices)?;
    // What CNI plugins and their library keep there is of pods, and none of those outlives
    // the container. On disk it would stay after a loss of power, in part as empty files:
    // addresses that nothing frees, results that nothing can read.
    file_system("tmpfs", "/var/lib/cni", plain, "mode=755")?;
    for (source, target) in sources.iter().zip(&mounts) {
        bind(source, target)?;
    }
    devices::make(devices)?;
    device_control.restrict(devices)?;
    umount2(OLD_ROOT, MntFlags::MNT_DETACH).at("unmount", OLD_ROOT)?;
    fs::remove_dir(OLD_ROOT).at("remove", OLD_ROOT)?;
    // Peers of nobody outside: pods see what is mounted for them.
    propagation("/", MsFlags::MS_SHARED | MsFlags::MS_REC)?;
    cgroup::enter_leaf()?;

    for file in &config.files {
        files::write(
            &file.path,
            file.content.as_bytes(),
            file.mode,
            file.uid,
            file.gid,
        )?;
    }
    names::write(&resolv_conf, config)?;
    files::write_json(Path::new(CONFIG), config)
}

/// Makes the overlay the root; the old one is at [`OLD_ROOT`] afterwards.
fn change_root(config: &PlanetConfig) -> Result<()> {
    let [upper, work, root] = ["upper", "work", "root"].map(|name| config.overlay.join(name));
    for directory in [&upper, &work, &root] {
        fs::create_dir_all(directory).at("create", directory)?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        config.rootfs.display(),
        upper.display(),
        work.display()
    );
    mount(
        Some("overlay"),
        &root,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .at("mount the root filesystem at", &root)?;
    let run = root.join("run");
    if !fs::symlink_metadata(&run).is_ok_and(|metadata| metadata.is_dir()) {
        return Err(Error::Start(format!(
            "{} has no directory /run",
            config.rootfs.display()
        )));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), &run, Some("tmpfs"), flags, Some("mode=755")).at("mount", &run)?;
    let old = root.join(OLD_ROOT.trim_start_matches('/'));
    fs::create_dir(&old).at("create", &old)?;
    pivot_root(&root, &old).at("change the root to", &root)?;
    std::env::set_current_dir("/").at("change to", "/")
}

/// Mounts each hierarchy where the host has it; the cgroup namespace makes the
/// container's group the top.
fn mount_cgroups(hierarchies: &[cgroup::Hierarchy]) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let top = Path::new("/sys/fs/cgroup");
    if let [unified] = hierarchies
        && unified.is_v2()
    {
        return file_system("cgroup2", "/sys/fs/cgroup", flags, "");
    }
    file_system("tmpfs", "/sys/fs/cgroup", flags, "mode=755")?;
    for hierarchy in hierarchies {
        if hierarchy.is_v2() {
            file_system("cgroup2", top.join("unified"), flags, "")?;
            continue;
        }
        let options = hierarchy.controllers.join(",");
        match options.strip_prefix("name=") {
            Some(name) => file_system("cgroup", top.join(name), flags, &format!("none,{options}"))?,
            None => file_system("cgroup", top.join(&options), flags, &options)?,
        }
        if hierarchy.controllers.len() > 1 {
            for controller in &hierarchy.controllers {
                let link = top.join(controller);
                std::os::unix::fs::symlink(&options, &link).at("link", &link)?;
            }
        }
    }
    Ok(())
}

/// The host's devices, with terminals and shared memory of our own.
fn mount_devices(devices: &OwnedFd) -> Result<()> {
    bind_from(devices, Path::new("/dev"), true)?;
    propagation("/dev", MsFlags::MS_PRIVATE | MsFlags::MS_REC)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let own = [
        (
            "devpts",
            "/dev/pts",
            flags,
            "newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        (
            "tmpfs",
            "/dev/shm",
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            "mode=1777",
        ),
        ("mqueue", "/dev/mqueue", flags | MsFlags::MS_NODEV, ""),
    ];
    for (kind, target, flags, options) in own {
        // Not made when missing: the directory is the host's.
        if Path::new(target).is_dir() {
            file_system(kind, target, flags, options)?;
        }
    }
    Ok(())
}

fn file_system(kind: &str, target: impl AsRef<Path>, flags: MsFlags, options: &str) -> Result<()> {
    let target = target.as_ref();
    fs::create_dir_all(target).at("create", target)?;
    mount(Some(kind), target, Some(kind), flags, Some(options)).at("mount", target)
}

fn propagation(target: impl AsRef<Path>, flags: MsFlags) -> Result<()> {
    let target = target.as_ref();
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .at("change the propagation of", target)
}

/// What the mounts stand for, now.
fn expand(mounts: &[Mount]) -> Result<Vec<Mount>> {
    let expanded = mounts.iter().map(Mount::expand);
    let expanded: Vec<_> = expanded.collect::<Result<_, _>>().map_err(Error::Start)?;
    Ok(expanded.into_iter().flatten().collect())
}

/// Opens the sources while the host's paths mean what the host means by them.
fn open_sources(mounts: &[Mount]) -> Result<Vec<OwnedFd>> {
    mounts
        .iter()
        .map(|mount| open_path(&mount.source))
        .collect()
}

fn open_path(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty()).at("open", path)
}

fn bind(source: &OwnedFd, mount: &Mount) -> Result<()> {
    let target = &mount.target;
    let metadata = File::from(source.try_clone().at("open", target)?).metadata();
    if metadata.at("look at", &mount.source)?.is_dir() {
        fs::create_dir_all(target).at("create", target)?;
    } else if !target.exists() {
        let parent = target.parent().unwrap_or(target);
        fs::create_dir_all(parent).at("create", parent)?;
        File::create(target).at("create", target)?;
    }
    bind_from(source, target, mount.recursive)?;
    if !mount.recursive {
        propagation(target, MsFlags::MS_PRIVATE)?;
    }
    if mount.read_only {
        let flags =
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept_flags(target)?;
        nix::mount::mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
            .at("make read-only", target)?;
    }
    Ok(())
}

fn bind_from(source: &OwnedFd, target: &Path, recursive: bool) -> Result<()> {
    let path = format!("/proc/self/fd/{}", source.as_raw_fd());
    let deep = if recursive {
        MsFlags::MS_REC
    } else {
        MsFlags::empty()
    };
    mount(
        Some(path.as_str()),
        target,
        None::<&str>,
        MsFlags::MS_BIND | deep,
        None::<&str>,
    )
    .at("mount", target)
}

/// Flags of a mount that a remount would drop if they were not said again.
fn kept_flags(target: &Path) -> Result<MsFlags> {
    let has = statvfs(target).at("look at", target)?.flags();
    let pairs = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    Ok(pairs
        .into_iter()
        .filter(|(flag, _)| has.contains(*flag))
        .fold(MsFlags::empty(), |flags, (_, flag)| flags | flag))
}

fn execute() -> Result<std::convert::Infallible> {
    let null = File::open("/dev/null").at("open", "/dev/null")?;
    nix::unistd::dup2_stdin(&null).on("close the standard input")?;
    sys::close_on_exec().on("close descriptors")?;
    SigSet::empty().thread_set_mask().on("unblock signals")?;
    let word = |text: &str| {
        CString::new(text)
            .map_err(|_| Error::Start("a NUL byte in the supervisor's command".into()))
    };
    let program = word(INIT)?;
    let mut arguments = vec![program.clone()];
    for &text in SUPERVISOR {
        arguments.push(word(text)?);
    }
    let environment = [
        word(&format!("PATH={PATH}"))?,
        word("HOME=/root")?,
        word("container=planet")?,
    ];
    nix::unistd::execve(&program, &arguments, &environment).at("execute", INIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_another_boot_is_not_taken_for_one_that_runs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("planet.pid");
        let me = ProcessId::of(std::process::id().cast_signed()).unwrap();
        let mut recorded = Recorded::now(me).unwrap();
        let write = |recorded: &Recorded| {
            let json = serde_json::to_vec(recorded).unwrap();
            host::atomic::write(&path, &json, 0o600).unwrap();
        };
        write(&recorded);
        assert_eq!(Recorded::read(&path), Some(me));
        recorded.boot = "a-boot-before".into();
        write(&recorded);
        assert_eq!(Recorded::read(&path), None);
        assert_eq!(Recorded::read(&directory.path().join("none")), None);
    }
}
