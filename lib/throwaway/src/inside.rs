//! What happens in a node's namespaces.
//!
//! In: a node's name. Out: its process 1, which mounts the root and reaps; or
//! another process beside it. Runs in a process with one thread, see [`crate::helper`].

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, pivot_root, sethostname, setsid};

use crate::cgroup::{self, Hierarchy};
use crate::node::{Node, State};
use crate::{file, helper, process};

/// Line by which process 1 says that the node is ready.
const READY: &str = "ready";
/// Environment of everything in a node.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts a node's process 1 and returns its id once the node is mounted. The
/// caller must end then: it is in half of the namespaces.
///
/// # Errors
/// When a namespace or mount is refused, with process 1's own words.
pub(crate) fn start(name: &str) -> Result<u32> {
    let node = Node::open(name)?;
    let log = node.state().data.join("init.log");
    let log_file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    setsid().context("leaving the session")?;
    cgroup::enter_top(name)?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .context("making namespaces")?;
    // This program, also where another one lies in its place by now.
    let mut init = Command::new("/proc/self/exe")
        .args(helper::program()?.get_args())
        .args(["init", name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .spawn()
        .context("starting process 1")?;
    let mut line = String::new();
    if let Some(pipe) = init.stdout.take() {
        BufReader::new(pipe)
            .read_line(&mut line)
            .context("waiting for process 1")?;
    }
    if line.trim_end() != READY {
        let status = init.wait().context("waiting for process 1")?;
        bail!(
            "process 1 of the node ended with {status}: {}",
            file::read(&log)?.trim()
        );
    }
    Ok(init.id())
}

/// Is process 1 of a node: mounts everything, says so and reaps until SIGTERM.
///
/// # Errors
/// When something can't be mounted.
pub(crate) fn init(name: &str) -> Result<()> {
    let node = Node::open(name)?;
    let hierarchies = cgroup::hierarchies()?;
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM]);
    signals.thread_block().context("blocking signals")?;
    umask(Mode::empty());
    mount_all(node.state(), &hierarchies)?;
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    // Addresses are there at once: no other node has them.
    let duplicates = Path::new("/proc/sys/net/ipv6/conf/default/accept_dad");
    if duplicates.exists() {
        cgroup::put(duplicates, "0")?;
    }
    sethostname(name).context("setting the host name")?;
    cgroup::leave_top(&hierarchies)?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{READY}")
        .and_then(|()| stdout.flush())
        .context("saying ready")?;
    loop {
        if signals.wait().context("waiting for a signal")? == Signal::SIGTERM {
            return Ok(());
        }
        while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
    }
}

/// Mounts `kind` at `target` with what a mount of that kind needs.
fn mount_kind(kind: &str, target: &Path, flags: MsFlags, options: &str) -> Result<()> {
    file::make_directory(target)?;
    mount(Some(kind), target, Some(kind), flags, Some(options))
        .with_context(|| format!("mounting {kind} at {}", target.display()))
}

fn propagate(path: &Path, how: MsFlags) -> Result<()> {
    mount(
        None::<&str>,
        path,
        None::<&str>,
        how | MsFlags::MS_REC,
        None::<&str>,
    )
    .with_context(|| format!("changing the propagation of {}", path.display()))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("binding {} to {}", from.display(), to.display()))
}

fn mount_all(state: &State, hierarchies: &[Hierarchy]) -> Result<()> {
    propagate(Path::new("/"), MsFlags::MS_PRIVATE)?;
    let (root, disk) = (state.data.join("root"), state.data.join("disk"));
    // Without the background work on tables, which would fill the file; what is
    // removed in the node becomes free on the machine.
    let mut command = Command::new("mount");
    command
        .args(["-o", "loop,noinit_itable,discard"])
        .arg(state.data.join("disk.raw"))
        .arg(&disk);
    process::run(&mut command)?;
    let directories = ["upper", "work"].map(|name| disk.join(name));
    for directory in &directories {
        file::make_directory(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
            .with_context(|| directory.display().to_string())?;
    }
    let [upper, work] = directories;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        state.root.display(),
        upper.display(),
        work.display()
    );
    mount_kind("overlay", &root, MsFlags::empty(), &options)?;
    // All of /var/lib is on the disk itself, so that what is below comes and
    // goes like on a server, and can be an overlay's upper layer.
    let lib = disk.join("lib");
    process::run(
        Command::new("cp")
            .arg("-a")
            .arg(state.root.join("var/lib"))
            .arg(&lib),
    )?;
    bind(&lib, &root.join("var/lib"))?;
    let modules = Path::new("/lib/modules");
    if modules.is_dir() {
        let target = root.join("lib/modules");
        file::make_directory(&target)?;
        bind(modules, &target)?;
    }
    write_identity(state, &root)?;
    let nosuid = MsFlags::MS_NOSUID;
    let strict = nosuid | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_kind("proc", &root.join("proc"), strict, "")?;
    mount_kind("sysfs", &root.join("sys"), strict, "")?;
    // As Debian mounts it.
    mount_kind("tmpfs", &root.join("run"), strict, "mode=755")?;
    file::make_directory(&root.join("run/lock"))?;
    mount_kind("tmpfs", &root.join("dev"), nosuid, "mode=755")?;
    fill_dev(&root.join("dev"))?;
    mount_cgroups(&root, hierarchies)?;

    chdir(&root).context("entering the root")?;
    pivot_root(".", ".").context("changing the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("leaving the old root")?;
    chdir("/").context("entering the root")?;
    propagate(Path::new("/"), MsFlags::MS_SHARED)
}

/// Who the node is.
fn write_identity(state: &State, root: &Path) -> Result<()> {
    let State { name, address, .. } = state;
    let address = address.split('/').next().unwrap_or_default();
    let id = file::read(Path::new("/proc/sys/kernel/random/uuid"))?
        .trim()
        .replace('-', "");
    for (path, content) in [
        ("etc/hostname", format!("{name}\n")),
        (
            "etc/hosts",
            format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{address}\t{name}\n"),
        ),
        ("etc/machine-id", format!("{id}\n")),
        // There is no name server; whoever asks is answered at once.
        ("etc/resolv.conf", "nameserver 127.0.0.1\n".to_owned()),
    ] {
        let path = root.join(path);
        file::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn fill_dev(dev: &Path) -> Result<()> {
    for (name, major, minor, mode) in [
        ("null", 1, 3, 0o666),
        ("zero", 1, 5, 0o666),
        ("full", 1, 7, 0o666),
        ("random", 1, 8, 0o666),
        ("urandom", 1, 9, 0o666),
        ("kmsg", 1, 11, 0o644),
        ("tty", 5, 0, 0o666),
        ("fuse", 10, 229, 0o666),
        ("net/tun", 10, 200, 0o666),
    ] {
        let path = dev.join(name);
        if let Some(parent) = path.parent() {
            file::make_directory(parent)?;
            fs::set_permissions(parent, fs::Permissions::from_mode(0o755))
                .with_context(|| parent.display().to_string())?;
        }
        mknod(
            &path,
            SFlag::S_IFCHR,
            Mode::from_bits_truncate(mode),
            makedev(major, minor),
        )
        .with_context(|| format!("making {}", path.display()))?;
    }
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(name)).with_context(|| format!("making {name} in /dev"))?;
    }
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let pts = "newinstance,ptmxmode=0666,mode=0620,gid=5";
    mount_kind(
        "devpts",
        &dev.join("pts"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        pts,
    )?;
    mount_kind("tmpfs", &dev.join("shm"), strict, "mode=1777")?;
    mount_kind(
        "mqueue",
        &dev.join("mqueue"),
        strict | MsFlags::MS_NOEXEC,
        "",
    )
}

/// Mounts all hierarchies again, which now begin at the node's groups.
fn mount_cgroups(root: &Path, hierarchies: &[Hierarchy]) -> Result<()> {
    let inner = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let top = Path::new(cgroup::ROOT);
    let mounted_at_top = hierarchies.iter().any(|hierarchy| hierarchy.path == top);
    if !mounted_at_top {
        mount_kind("tmpfs", &inner(top), strict, "mode=755")?;
        // Where controllers are joined, such as cpu to cpu,cpuacct.
        for entry in fs::read_dir(top)
            .context("reading the machine's groups")?
            .flatten()
        {
            if let Ok(target) = fs::read_link(entry.path()) {
                symlink(target, inner(&entry.path())).context("linking a controller")?;
            }
        }
    }
    for hierarchy in hierarchies {
        let kind = if hierarchy.unified {
            "cgroup2"
        } else {
            "cgroup"
        };
        mount_kind(kind, &inner(&hierarchy.path), strict, &hierarchy.options)?;
    }
    Ok(())
}

/// Makes this process part of the node: children are whole members of it.
fn enter(node: &Node) -> Result<()> {
    let pid = node.pid()?;
    // Opened first: none of them is seen from within.
    let mut namespaces = Vec::new();
    for name in ["net", "ipc", "uts", "cgroup", "pid", "mnt"] {
        let path = PathBuf::from(format!("/proc/{pid}/ns/{name}"));
        namespaces.push(File::open(&path).with_context(|| format!("opening {}", path.display()))?);
    }
    cgroup::enter(node.name())?;
    for namespace in namespaces {
        setns(namespace, CloneFlags::empty()).context("entering a namespace")?;
    }
    chdir("/").context("entering /")
}

/// Runs a command in a node, with the standard streams and signals of this
/// process. Returns its exit code, 128 and the signal's number when one
/// ended it.
///
/// # Errors
/// When the node does not run or the command does not exist.
pub(crate) fn exec(name: &str, command: &[OsString]) -> Result<i32> {
    let node = Node::open(name)?;
    let Some((program, arguments)) = command.split_first() else {
        bail!("no command")
    };
    enter(&node)?;
    let forwarded = [Signal::SIGTERM, Signal::SIGHUP];
    let mut signals = SigSet::from_iter(forwarded);
    // These reach the child from the terminal as well as us, and are its business.
    for signal in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGQUIT] {
        signals.add(signal);
    }
    let mut child = Command::new(program);
    child
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8");
    if let Some(terminal) = std::env::var_os("TERM") {
        child.env("TERM", terminal);
    }
    let mut child = child
        .spawn()
        .with_context(|| format!("starting {} in node {name}", program.to_string_lossy()))?;
    // Not before: the child would have them blocked, too, and a shell there
    // would wait for its children for ever.
    signals.thread_block().context("blocking signals")?;
    loop {
        if let Some(status) = child.try_wait().context("waiting for the command")? {
            return Ok(status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or_default()));
        }
        let signal = signals.wait().context("waiting for a signal")?;
        if forwarded.contains(&signal) {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
        }
    }
}

/// Copies a file or directory of the machine into a node; `to` is its new
/// path, or a directory that it goes into.
///
/// # Errors
/// When it can't be read or written.
pub(crate) fn copy(name: &str, from: &Path, to: &Path) -> Result<()> {
    let node = Node::open(name)?;
    let base = from
        .file_name()
        .with_context(|| format!("{} has no name", from.display()))?;
    let target = |to: &Path| {
        if to.is_dir() {
            to.join(base)
        } else {
            to.to_owned()
        }
    };
    let metadata = fs::metadata(from).with_context(|| format!("reading {}", from.display()))?;
    if metadata.is_dir() {
        let mut tar = Command::new("tar")
            .args(["--create", "--directory"])
            .arg(from)
            .arg(".")
            .stdout(Stdio::piped())
            .spawn()
            .context("starting tar")?;
        enter(&node)?;
        let to = target(to);
        file::make_directory(&to)?;
        let pipe = tar.stdout.take().context("tar has no output")?;
        let read = Command::new("/usr/bin/tar")
            .args(["--extract", "--directory"])
            .arg(&to)
            .stdin(pipe)
            .status()
            .context("starting tar in the node")?;
        let written = tar.wait().context("waiting for tar")?;
        if !read.success() || !written.success() {
            bail!(
                "copying {}: tar ended with {written}, in the node with {read}",
                from.display()
            );
        }
        return Ok(());
    }
    let mut source = File::open(from).with_context(|| format!("opening {}", from.display()))?;
    enter(&node)?;
    let to = target(to);
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(metadata.permissions().mode())
        .open(&to)
        .with_context(|| format!("creating {} in the node", to.display()))?;
    std::io::copy(&mut source, &mut file)
        .with_context(|| format!("copying to {} in the node", to.display()))?;
    file.set_permissions(metadata.permissions())
        .with_context(|| format!("changing {} in the node", to.display()))
}
