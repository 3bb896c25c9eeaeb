//! Virtual machines with Debian, systemd and cgroup v2, by QEMU.
//!
//! In: a file that the machine sees as its second disk. Out: a booted
//! [`Machine`] that runs commands as root, which come over a serial port.
//! Always holds: a machine can't reach anything but itself and those on its
//! link, ends at its deadline whatever happens to this program, and leaves no
//! file behind but what is [`Kept`] of one whose scenario failed. KVM
//! is used where a kernel boots under it, which is tried once a machine.

mod channel;
pub mod checks;
pub mod cluster;
pub mod install;
mod kept;
pub mod masters;
mod member;
pub mod power;
pub mod troubles;
pub mod vagrant;
pub mod wireguard;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use console::{Console, render};
use event::Sink;
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use self::channel::Channel;
pub use self::kept::Kept;
use crate::scenario::IMAGE;
use crate::{file, process, rootfs};

/// Releases of Debian whose kernel is new enough for a node.
pub const SUITES: [&str; 2] = [rootfs::SUITE, "trixie"];
/// Part of the hash: raise it when the way of making the disk changes.
const FORMAT: u32 = 1;
/// What the machine's Debian has beyond the minimum.
const PACKAGES: &[&str] = &[
    "apparmor",
    "ca-certificates",
    "curl",
    "dbus",
    "iproute2",
    "iptables",
    "kmod",
    "linux-image-cloud-amd64",
    "nftables",
    "passwd",
    "procps",
    "systemd",
    "systemd-sysv",
    "udev",
    "usr-is-merged",
    "util-linux",
];
/// Files of the machine's own, and their modes.
const FILES: &[(&str, u32, &str)] = &[
    (
        "usr/local/sbin/channel",
        0o755,
        include_str!("../vm/channel.sh"),
    ),
    (
        "etc/systemd/system/channel.service",
        0o644,
        include_str!("../vm/channel.service"),
    ),
    (
        "etc/systemd/network/ethernet.network",
        0o644,
        include_str!("../vm/ethernet.network"),
    ),
    ("etc/hostname", 0o644, "machine\n"),
    (
        "etc/hosts",
        0o644,
        "127.0.0.1\tlocalhost\n127.0.1.1\tmachine\n",
    ),
    ("etc/fstab", 0o644, ""),
];
/// Units that start at boot, and from where.
const ENABLED: &[(&str, &str)] = &[
    (
        "multi-user.target.wants/channel.service",
        "/etc/systemd/system/channel.service",
    ),
    (
        "multi-user.target.wants/systemd-networkd.service",
        SYSTEMD_NETWORKD,
    ),
    (
        "network-online.target.wants/systemd-networkd-wait-online.service",
        WAIT_ONLINE,
    ),
];
const SYSTEMD_NETWORKD: &str = "/lib/systemd/system/systemd-networkd.service";
const WAIT_ONLINE: &str = "/lib/systemd/system/systemd-networkd-wait-online.service";
/// Size of the disk; what is not written takes no room.
const DISK: &str = "20G";
/// Its file.
const DISK_FILE: &str = "disk.qcow2";
/// The file of what has changed on it since it was frozen.
const TOP_FILE: &str = "top.qcow2";
/// How long a boot may take under KVM, where it takes seconds.
const BOOT_KVM: Duration = Duration::from_secs(60);
/// How long a boot may take under emulation, with cores that are busy with others that
/// boot.
const BOOT_TCG: Duration = Duration::from_secs(600);
/// The machine's address; QEMU's user network gives always this one.
pub const ADDRESS: &str = "10.0.2.15";
/// The second disk, in the machine.
pub const SECOND_DISK: &str = "/dev/disk/by-id/virtio-second";
/// A disk that is plugged in while it runs, in the machine.
pub const PLUGGED_DISK: &str = "/dev/disk/by-id/virtio-plugged";
/// A disk that does few writes a second, in the machine.
pub const SLOW_DISK: &str = "/dev/disk/by-id/virtio-slow";
/// What an operation that goes on by itself says, in the machine.
pub(crate) const SAID: &str = "/root/operation.log";
/// What a slow disk does in a second: operations and bytes.
const SLOW: &str = "throttling.iops-total=40,throttling.bps-total=4000000";

/// What a disk has.
struct Content<'a> {
    /// Its release of Debian.
    suite: &'a str,
    packages: Vec<&'static str>,
    files: Vec<(&'static str, u32, &'static str)>,
    enabled: Vec<(&'static str, &'static str)>,
    /// Shell commands that run in it when the rest is there.
    setup: &'static str,
}

impl<'a> Content<'a> {
    /// Of machines that take commands over their second serial port.
    fn machine(suite: &'a str) -> Self {
        Self {
            suite,
            packages: PACKAGES.to_vec(),
            files: FILES.to_vec(),
            enabled: ENABLED.to_vec(),
            setup: "",
        }
    }
}

/// What machines boot from.
#[derive(Debug, Clone)]
pub struct Disk {
    directory: PathBuf,
}

impl Disk {
    /// The disk, kernel and initrd; made, which takes two minutes, when the
    /// cache does not have them.
    ///
    /// # Errors
    /// When mmdebstrap or mkfs.ext4 fails.
    pub fn make(sink: &dyn Sink) -> Result<Self> {
        Self::of_release(rootfs::SUITE, sink)
    }

    /// The same with another release of Debian.
    ///
    /// # Errors
    /// See [`Disk::make`].
    pub fn of_release(suite: &str, sink: &dyn Sink) -> Result<Self> {
        Self::of(&Content::machine(suite), sink)
    }

    fn of(content: &Content<'_>, sink: &dyn Sink) -> Result<Self> {
        crate::node::require_root()?;
        let Content {
            suite,
            packages,
            files,
            enabled,
            setup,
        } = content;
        let inputs = format!("{FORMAT} {suite} {packages:?} {files:?} {enabled:?} {DISK}{setup}");
        let all = file::cache()?.join("vm");
        let directory = all.join(&oci::Digest::of(inputs.as_bytes()).hex()[..16]);
        let made = Self { directory };
        if made.directory.is_dir() {
            return Ok(made);
        }
        file::make_directory(&all)?;
        let _lock = file::lock(&all.join("lock"))?;
        if made.directory.is_dir() {
            return Ok(made);
        }
        sink.step("Making the disk of test machines, about 2m");
        let temporary = all.join(".tmp");
        file::remove_directory(&temporary)?;
        file::make_directory(&temporary)?;
        let root = temporary.join("root");
        rootfs::debootstrap(suite, &root, "directory", packages)?;
        populate(&root, files, enabled)?;
        if !setup.is_empty() {
            let mut command = Command::new("chroot");
            process::run(command.arg(&root).args(["sh", "-ec", setup]))?;
        }
        for name in ["vmlinuz", "initrd.img"] {
            // Links to the files with the version in /boot.
            fs::copy(root.join(name), temporary.join(name))
                .with_context(|| format!("copying {name} of the machine"))?;
        }
        let mut command = Command::new("mkfs.ext4");
        command.args(["-q", "-F", "-L", "root", "-d"]).arg(&root);
        process::run(command.arg(temporary.join("disk.raw")).arg(DISK))?;
        file::remove_directory(&root)?;
        fs::rename(&temporary, &made.directory)
            .with_context(|| format!("renaming {}", temporary.display()))?;
        Ok(made)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn populate(root: &Path, files: &[(&str, u32, &str)], enabled: &[(&str, &str)]) -> Result<()> {
    for (path, mode, content) in files {
        let path = root.join(path);
        file::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode))
            .with_context(|| path.display().to_string())?;
    }
    for (link, target) in enabled {
        let link = root.join("etc/systemd/system").join(link);
        file::make_directory(link.parent().unwrap_or(root))?;
        if link.symlink_metadata().is_err() {
            symlink(target, &link).with_context(|| link.display().to_string())?;
        }
    }
    // Made at the first boot, so that machines differ.
    file::write(&root.join("etc/machine-id"), "")
}

/// The processor that is emulated: without what costs more there than it gains, as large
/// page tables and instructions that software has others for. A boot that reads a
/// program of 150 MB and starts some takes 85 s of processor time, 113 s with them.
const EMULATED: &str = "max,-la57,-erms,-avx,-avx2";

/// How the machine's processors are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accelerator {
    Kvm,
    Emulation,
}

impl Accelerator {
    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Emulation => ["-accel", "tcg,thread=multi", "-cpu", EMULATED],
        }
    }

    /// What the kernel is told.
    const fn kernel(self) -> &'static str {
        match self {
            Self::Kvm => "",
            // Nobody else is on a processor that is emulated.
            Self::Emulation => "mitigations=off",
        }
    }
}

/// What the machines of one program share: an Ethernet of their own.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Which of them it is, from 1 on: the last part of its [`Link::mac`].
    pub number: u8,
}

impl Link {
    /// Address of the machine's interface.
    pub fn mac(self) -> String {
        format!("52:54:00:4c:00:{:02x}", self.number)
    }

    /// Where frames go: by multicast on the loopback interface, to a port that is
    /// this program's.
    pub(crate) fn group() -> SocketAddrV4 {
        let port = u16::try_from(std::process::id() % 30_000).unwrap_or(0);
        SocketAddrV4::new(Ipv4Addr::new(239, 255, 76, 1), 20_000 + port)
    }

    /// QEMU's arguments. The device has a port, to be unplugged from.
    fn arguments(self) -> [String; 6] {
        let group = Self::group();
        [
            "-netdev".into(),
            format!("socket,id=link,mcast={group},localaddr=127.0.0.1"),
            "-device".into(),
            "pcie-root-port,id=link-port,chassis=1,slot=1".into(),
            "-device".into(),
            format!(
                "virtio-net-pci,id=link-device,netdev=link,mac={},bus=link-port",
                self.mac()
            ),
        ]
    }
}

/// How a machine is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Processors.
    pub processors: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// What the machine finds as [`SECOND_DISK`], to read only. Its size is
    /// rounded up there.
    pub second_disk: Option<PathBuf>,
    /// Whether it has a [`SLOW_DISK`], empty, of 4 GiB.
    pub slow_disk: bool,
    /// Its place on the link between machines.
    pub link: Option<Link>,
    /// More words of the kernel's command line.
    pub kernel: &'static str,
    /// What is kept of it if its scenario fails.
    pub kept: Option<Kept>,
    /// After this time the machine ends, whatever it does.
    pub limit: Duration,
}

impl Options {
    /// For a node of the cluster image `image`.
    #[must_use]
    pub fn of_node(image: PathBuf, limit: Duration) -> Self {
        Self {
            processors: 2,
            memory: 4096,
            second_disk: Some(image),
            slow_disk: false,
            link: None,
            kernel: "",
            kept: None,
            limit,
        }
    }
}

/// How QEMU is started for a machine.
#[derive(Debug)]
struct Start {
    disk: Disk,
    options: Options,
    accelerator: Accelerator,
    directory: PathBuf,
    /// When the machine has to have ended.
    end: Instant,
    /// The file of the disk that is written to.
    top: &'static str,
}

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    channel: Channel,
    start: Start,
    kept: Option<Kept>,
}

impl Machine {
    /// Boots a machine and waits until it takes commands.
    ///
    /// # Errors
    /// When QEMU is missing or the machine does not come up, with the end of
    /// its console.
    pub fn boot(disk: &Disk, options: &Options, sink: &dyn Sink) -> Result<Self> {
        let memory = known_accelerator_file()?;
        if Path::new("/dev/kvm").exists() && fs::read(&memory).unwrap_or_default() != b"tcg" {
            sink.step("Booting a machine under KVM");
            match Self::try_boot(disk, options, Accelerator::Kvm, BOOT_KVM) {
                Ok(machine) => return Ok(machine),
                Err(error) => sink.info(&format!("KVM does not do here: {error:#}")),
            }
            file::write(&memory, "tcg")?;
        }
        sink.step("Booting a machine under emulation");
        Self::try_boot(disk, options, Accelerator::Emulation, BOOT_TCG)
    }

    fn try_boot(
        disk: &Disk,
        options: &Options,
        accelerator: Accelerator,
        patience: Duration,
    ) -> Result<Self> {
        let started = Instant::now();
        let mut directory = Directory::make(disk)?;
        let start = Start {
            disk: disk.clone(),
            options: options.clone(),
            accelerator,
            directory: directory.0.clone(),
            end: started + options.limit,
            top: DISK_FILE,
        };
        overlay(&disk.file("disk.raw"), "raw", &start.file(DISK_FILE))?;
        if options.slow_disk {
            let mut slow = Command::new("qemu-img");
            slow.args(["create", "-q", "-f", "qcow2"]);
            process::run(slow.arg(start.file("slow.qcow2")).arg("4G"))?;
        }
        let (child, channel) = start.run()?;
        directory.keep();
        let mut machine = Self {
            child,
            channel,
            start,
            // Emulation may do where KVM does not: that is no failure.
            kept: match accelerator {
                Accelerator::Kvm => None,
                Accelerator::Emulation => options.kept.clone(),
            },
        };
        machine.wait_up(patience.saturating_sub(started.elapsed()))?;
        machine.kept.clone_from(&options.kept);
        Ok(machine)
    }

    /// Ends a machine with which all was well. One that is dropped without that is
    /// looked at before, where its options say so.
    pub fn end(mut self) {
        self.kept = None;
    }

    /// Keeps what it is like, where its options say where.
    fn keep(&mut self) {
        if let Some(kept) = self.kept.clone() {
            kept.keep(self);
        }
    }

    /// Waits until it has booted.
    fn wait_up(&mut self, patience: Duration) -> Result<()> {
        let Err(error) = self.channel.wait_ready(patience) else {
            // Not until all links are: one that is new has nobody to get an address of.
            let online = format!("until ip -4 address | grep -q {ADDRESS}/; do sleep 0.2; done");
            self.must(&online, patience)?;
            // Its hardware tells it whole seconds, and no time server the rest.
            return self.tell_time(patience);
        };
        let console = fs::read(self.start.file("console")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<_> = console.lines().rev().take(5).collect();
        let lines: Vec<_> = lines.into_iter().rev().map(render::sanitize).collect();
        Err(error.context(format!(
            "the machine did not come up in {patience:?}; its console ends:\n{}\n{}",
            lines.join("\n"),
            self.start.log().trim()
        )))
    }

    /// Sets its clock, which no time server does and which drifts where it is slow.
    fn tell_time(&mut self, patience: Duration) -> Result<()> {
        let now = Timestamp::now().as_microsecond();
        let set = format!("date --set=@{}.{:06}", now / 1_000_000, now % 1_000_000);
        self.must(&set, patience).map(drop)
    }

    /// Runs a shell command, which is ended after `timeout`. Its output goes to `show`
    /// as it comes. Returns its exit code and the end of its output.
    ///
    /// # Errors
    /// When it does not end in time, or the machine ends.
    pub fn run(
        &mut self,
        command: &str,
        timeout: Duration,
        show: &mut dyn FnMut(&str),
    ) -> Result<(i32, String)> {
        self.channel.run(command, timeout, show)
    }

    /// [`Machine::run`] of a command that must succeed; returns its output.
    ///
    /// # Errors
    /// When it does not, with what it said.
    pub fn must(&mut self, command: &str, timeout: Duration) -> Result<String> {
        let (code, output) = self.run(command, timeout, &mut |_| {})?;
        ensure!(
            code == 0,
            "`{command}` ended with {code} in the machine: {output}"
        );
        Ok(output)
    }

    /// Runs the image with `arguments` and shows what it says, after `name`.
    ///
    /// # Errors
    /// When it does not succeed, after the ends of the node's logs.
    pub(crate) fn gravity(
        &mut self,
        name: &str,
        arguments: &str,
        timeout: Duration,
        console: &Console,
    ) -> Result<()> {
        console.step(&format!("{name}: ./gravity {arguments}"));
        let mut show = |text: &str| {
            for line in text.lines().filter(|line| !line.is_empty()) {
                console.print(&format!("{name}: {}", render::sanitize(line)));
            }
        };
        // The port looks like a terminal to programs.
        let command = format!("TERM=dumb {IMAGE} {arguments}");
        let (code, _) = self.run(&command, timeout, &mut show)?;
        if code != 0 {
            // The machine does not stay to be looked at.
            let logs = "tail -n 20 /var/lib/gravity/log/*.log";
            let _ = self.run(logs, timeout, &mut show);
        }
        ensure!(code == 0, "./gravity {arguments} ended with {code}");
        Ok(())
    }

    /// Begins to run the image with `arguments`, which goes on by itself, and waits
    /// until `lines` lines of what it says have `pattern`, or it has ended, or for
    /// `most`, about, where that is given.
    ///
    /// # Errors
    /// When neither comes in `timeout`.
    pub(crate) fn begin(
        &mut self,
        arguments: &str,
        (lines, pattern): (u32, &str),
        most: Option<Duration>,
        timeout: Duration,
    ) -> Result<()> {
        self.must(
            &format!(
                ": > {SAID}; seconds=0
                 setsid sh -c '{IMAGE} {arguments}; echo ended with $?' >{SAID} 2>&1 </dev/null &
                 until [ $(grep -c '{pattern}' {SAID}) -ge {lines} ] || grep -q ^ended {SAID} ||
                     [ $seconds -ge {} ]
                 do sleep 1; seconds=$((seconds + 1)); done",
                most.unwrap_or(timeout).as_secs()
            ),
            timeout,
        )
        .map(drop)
    }

    /// Waits until what was begun has ended.
    ///
    /// # Errors
    /// When it does not in `timeout`, or has failed.
    pub(crate) fn finish(&mut self, timeout: Duration) -> Result<()> {
        let wait = format!("until grep -q ^ended {SAID}; do sleep 1; done; tail -n 20 {SAID}");
        let said = self.must(&wait, timeout)?;
        ensure!(said.trim_end().ends_with("ended with 0"), "it says {said}");
        Ok(())
    }

    /// Restarts it in order, and waits until it takes commands again.
    ///
    /// # Errors
    /// When it does not come up in `timeout`.
    pub fn reboot(&mut self, timeout: Duration) -> Result<()> {
        // Later, so that the answer comes before what answers has ended.
        let reboot = "(sleep 2; exec systemctl reboot) >/dev/null 2>&1 &";
        self.must(reboot, timeout)?;
        self.wait_up(timeout)
    }

    /// Takes the power away and gives it back, and waits until it takes commands
    /// again. QEMU is killed: what the machine had not flushed to its disk is lost, but
    /// for what it wrote to clusters that the disk's file has already.
    ///
    /// # Errors
    /// When QEMU can't be killed or started, or it does not come up in `timeout`.
    pub fn cut_power(&mut self, timeout: Duration) -> Result<()> {
        self.kill()?;
        self.boot_again(timeout)
    }

    /// Keeps its disk as it is now, for [`Machine::restore`]; once.
    ///
    /// # Errors
    /// When QEMU does not do it.
    pub fn freeze(&mut self, timeout: Duration) -> Result<()> {
        ensure!(self.start.top == DISK_FILE, "its disk is frozen already");
        self.must("sync", timeout)?;
        let freeze = serde_json::json!({"execute": "blockdev-snapshot-sync", "arguments": {
            "device": "virtio0", "format": "qcow2",
            "snapshot-file": self.start.file(TOP_FILE)}});
        self.order(&[&freeze.to_string()])?;
        self.start.top = TOP_FILE;
        Ok(())
    }

    /// Ends it, and boots it with its disk as it was kept.
    ///
    /// # Errors
    /// When nothing was, or QEMU can't be ended or started, or it does not come up in
    /// `timeout`.
    pub fn restore(&mut self, timeout: Duration) -> Result<()> {
        ensure!(self.start.top == TOP_FILE, "its disk is not frozen");
        self.kill()?;
        overlay(
            &self.start.file(DISK_FILE),
            "qcow2",
            &self.start.file(TOP_FILE),
        )?;
        self.boot_again(timeout)
    }

    /// Ends QEMU without a word to it.
    fn kill(&mut self) -> Result<()> {
        let pid = file::read(&self.start.file("pid"))?;
        let pid = pid.trim().parse().context("QEMU's process id")?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("killing QEMU")?;
        stop(&mut self.child);
        Ok(())
    }

    fn boot_again(&mut self, timeout: Duration) -> Result<()> {
        (self.child, self.channel) = self.start.run()?;
        self.wait_up(timeout)
    }

    /// Takes away the device by which it is on the link between machines.
    ///
    /// # Errors
    /// When it has none, or goes on having it.
    pub fn unplug_link(&mut self, timeout: Duration) -> Result<()> {
        let link = self.start.options.link.context("it is on no link")?;
        self.order(&["{\"execute\":\"device_del\",\"arguments\":{\"id\":\"link-device\"}}"])?;
        let gone = format!(
            "while ip -o link | grep -q {}; do sleep 1; done",
            link.mac()
        );
        self.must(&gone, timeout).map(drop)
    }

    /// Gives the device back, a while after it was taken.
    ///
    /// # Errors
    /// When QEMU does not do it, or the machine does not find it.
    pub fn plug_link(&mut self, timeout: Duration) -> Result<()> {
        let link = self.start.options.link.context("it is on no link")?;
        let plug = serde_json::json!({"execute": "device_add", "arguments": {
            "driver": "virtio-net-pci", "id": "link-device", "netdev": "link",
            "mac": link.mac(), "bus": "link-port"}});
        self.order(&[&plug.to_string()])?;
        let found = format!(
            "until ip -o link | grep -q {}; do sleep 1; done",
            link.mac()
        );
        self.must(&found, timeout).map(drop)
    }

    /// Plugs in another disk, empty, of 1 GiB: [`PLUGGED_DISK`].
    ///
    /// # Errors
    /// When QEMU does not do it, or the machine does not find it.
    pub fn plug_disk(&mut self, timeout: Duration) -> Result<()> {
        let file = self.start.file("plugged.raw");
        let made = File::create(&file).with_context(|| file.display().to_string())?;
        made.set_len(1 << 30).context("making a disk")?;
        let add = serde_json::json!({"execute": "blockdev-add", "arguments": {
            "driver": "file", "node-name": "plugged", "filename": file}});
        let plug = serde_json::json!({"execute": "device_add", "arguments": {
            "driver": "virtio-blk-pci", "drive": "plugged", "serial": "plugged",
            "bus": "plug"}});
        self.order(&[&add.to_string(), &plug.to_string()])?;
        let found = format!("timeout 120 sh -c 'until [ -b {PLUGGED_DISK} ]; do sleep 1; done'");
        self.must(&found, timeout).map(drop)
    }

    /// Gives QEMU orders, and demands that it follows them.
    fn order(&self, orders: &[&str]) -> Result<()> {
        let monitor = self.start.file("monitor");
        let mut monitor = UnixStream::connect(monitor).context("connecting to QEMU's monitor")?;
        monitor
            .set_read_timeout(Some(BOOT_KVM))
            .context("setting a time limit")?;
        let answers = monitor.try_clone().context("opening the monitor twice")?;
        let mut answers = BufReader::new(answers).lines();
        for order in [&["{\"execute\":\"qmp_capabilities\"}"], orders].concat() {
            writeln!(monitor, "{order}").context("giving QEMU an order")?;
            // It greets, and tells of events, between its answers.
            loop {
                let answer = answers.next().context("QEMU does not answer")?;
                let answer = answer.context("reading QEMU's answer")?;
                ensure!(!answer.contains("\"error\""), "QEMU, {order}: {answer}");
                if answer.starts_with("{\"return\"") {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.keep();
        stop(&mut self.child);
        let _ = fs::remove_dir_all(&self.start.directory);
    }
}

/// Makes a disk that is as another one until something is written.
fn overlay(base: &Path, format: &str, made: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]);
    process::run(command.arg(base).arg(made)).map(drop)
}

/// A machine's files, which are removed unless a machine takes them.
struct Directory(PathBuf, bool);

impl Directory {
    fn make(disk: &Disk) -> Result<Self> {
        let all = disk
            .directory
            .parent()
            .context("the disk has no directory")?;
        sweep(all);
        // Machines of one program boot side by side.
        let names = (0..).map(|number| all.join(format!("run-{}-{number}", std::process::id())));
        for path in names {
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path, false)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| path.display().to_string()),
            }
        }
        bail!("no name is free");
    }

    fn keep(&mut self) {
        self.1 = true;
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.1 {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Removes the files of machines whose program was killed.
fn sweep(all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some(pid) = name
            .strip_prefix("run-")
            .and_then(|rest| rest.split('-').next())
        else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Runs QEMU until its time is over or standard input ends, which it does when
/// this program ends in whatever way, also with all of its process group.
const WATCH: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
(trap '' HUP INT TERM; cat <&3 >/dev/null; kill $child) 2>/dev/null &
wait $child
"#;

impl Start {
    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What QEMU has said.
    fn log(&self) -> String {
        fs::read_to_string(self.file("qemu.log")).unwrap_or_default()
    }

    /// Starts QEMU, and connects to the port for commands.
    fn run(&self) -> Result<(Child, Channel)> {
        let log = self.file("qemu.log");
        let log = File::create(&log).with_context(|| log.display().to_string())?;
        let mut child = self
            .qemu()
            .stdin(Stdio::piped())
            .stdout(log.try_clone().context("opening the log twice")?)
            .stderr(log)
            .spawn()
            .context("starting QEMU")?;
        let socket = self.file("channel");
        let mut channel = None;
        process::wait_until(Duration::from_secs(20), || {
            channel = Channel::open(&socket).ok();
            channel.is_some() || !matches!(child.try_wait(), Ok(None))
        });
        let Some(channel) = channel else {
            stop(&mut child);
            bail!("QEMU did not start: {}", self.log().trim());
        };
        Ok((child, channel))
    }

    /// QEMU, watched.
    fn qemu(&self) -> Command {
        let Self { disk, options, .. } = self;
        let left = self.end.saturating_duration_since(Instant::now());
        let mut command = Command::new("sh");
        command.args(["-c", WATCH, "sh", "timeout", "--kill-after=5"]);
        command.arg(left.as_secs().max(1).to_string());
        command.args([
            "qemu-system-x86_64",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ]);
        command
            .args(["-machine", "q35"])
            .args(self.accelerator.arguments());
        command.args([
            "-smp",
            &options.processors.to_string(),
            "-m",
            &options.memory.to_string(),
        ]);
        command.arg("-kernel").arg(disk.file("vmlinuz"));
        command.arg("-initrd").arg(disk.file("initrd.img"));
        command.arg("-append").arg(format!(
            "root=LABEL=root rw console=ttyS0 panic=-1 systemd.show_status=0 {} {}",
            self.accelerator.kernel(),
            options.kernel
        ));
        self.add_disks(&mut command);
        // What is plugged in later has its place here.
        command.args(["-device", "pcie-root-port,id=plug"]);
        self.add_networks(&mut command);
        self.add_ports(&mut command);
        command
    }

    fn add_disks(&self, command: &mut Command) {
        let Self { options, .. } = self;
        // What the machine flushes is in this host's memory then, which outlives QEMU.
        command.arg("-drive").arg(format!(
            "file={},format=qcow2,if=virtio,cache=unsafe,discard=unmap",
            self.file(self.top).display()
        ));
        if let Some(second) = &options.second_disk {
            command.arg("-drive").arg(format!(
                "file={},format=raw,if=none,id=second,readonly=on",
                second.display()
            ));
            command.args(["-device", "virtio-blk-pci,drive=second,serial=second"]);
        }
        if options.slow_disk {
            command.arg("-drive").arg(format!(
                "file={},format=qcow2,if=none,id=slow,cache=unsafe,{SLOW}",
                self.file("slow.qcow2").display()
            ));
            command.args(["-device", "virtio-blk-pci,drive=slow,serial=slow"]);
        }
    }

    fn add_networks(&self, command: &mut Command) {
        // Hardware addresses are a machine's own.
        let link = self.options.link;
        let number = link.map_or(0, |link| link.number);
        let network = format!("virtio-net-pci,netdev=net,mac=52:54:00:4e:00:{number:02x}");
        command.args(["-device", "virtio-rng-pci", "-device", &network]);
        // It reaches nothing, and only QEMU's DHCP server answers.
        command.args(["-netdev", "user,id=net,restrict=on"]);
        command.args(link.map(Link::arguments).into_iter().flatten());
    }

    fn add_ports(&self, command: &mut Command) {
        // The console goes on where the boot before has ended.
        command.arg("-chardev").arg(format!(
            "file,id=console,path={},append=on",
            self.file("console").display()
        ));
        command.arg("-chardev").arg(format!(
            "socket,id=channel,path={},server=on,wait=off",
            self.file("channel").display()
        ));
        command.args(["-serial", "chardev:console", "-serial", "chardev:channel"]);
        command.arg("-qmp").arg(format!(
            "unix:{},server=on,wait=off",
            self.file("monitor").display()
        ));
        command.arg("-pidfile").arg(self.file("pid"));
    }
}

/// Ends QEMU, see [`WATCH`].
fn stop(child: &mut Child) {
    drop(child.stdin.take());
    let _ = child.wait();
}

/// Where it is written down that KVM does not do on this machine and kernel.
fn known_accelerator_file() -> Result<PathBuf> {
    let version = fs::read_to_string("/proc/version").unwrap_or_default();
    let all = file::cache()?.join("vm");
    Ok(all.join(format!(
        "accelerator-{}",
        &oci::Digest::of(version.as_bytes()).hex()[..16]
    )))
}
