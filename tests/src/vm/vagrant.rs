//! The `vagrant/` of this repository, as a person uses it: a machine of libvirt's
//! in which the sample is installed. What it does to three machines is done to
//! nodes in namespaces: three emulated machines take too long.
//!
//! In: Debian's vagrant, vagrant-libvirt and libvirt, the sample's image. Out: how
//! long `vagrant up` took, and an error at the first thing that is not as it should
//! be. Always holds: libvirt and its networks are in namespaces of their own, which
//! end with this program however it ends; boxes, disks and keys are in a directory
//! that does not stay.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::{Console, render};
use event::Sink;

use super::{Content, Directory, Disk, ENABLED, PACKAGES};
use crate::node::Node;
use crate::rootfs::SUITE;
use crate::scenario::{IMAGE, Setup, check, check_status, path_with, run_visibly};
use crate::{file, process, sample};

/// How long the whole of it may take, under emulation.
const LIMIT: Duration = Duration::from_secs(35 * 60);
/// The script that provisions, in a node.
const PROVISION: &str = "/root/provision.sh";
/// By which nodes know each other.
const TOKEN: &str = "GRAVITY_TOKEN=correct-horse-battery-staple";
/// Name of the box.
const BOX: &str = "sample-box";
/// What Vagrant needs of the box's Debian.
const BOX_PACKAGES: &[&str] = &["openssh-server", "rsync", "sudo"];
/// Files of the box, and their modes.
const BOX_FILES: &[(&str, u32, &str)] = &[
    (
        "etc/systemd/network/ethernet.network",
        0o644,
        include_str!("../../vm/ethernet.network"),
    ),
    (
        "etc/sudoers.d/vagrant",
        0o440,
        "vagrant ALL=(ALL) NOPASSWD: ALL\n",
    ),
    ("etc/hostname", 0o644, "box\n"),
    ("etc/hosts", 0o644, "127.0.0.1\tlocalhost\n127.0.1.1\tbox\n"),
    ("etc/fstab", 0o644, ""),
];
/// Files beside the disk in the box, as texts.
const BOX_TEXTS: &[(&str, &str)] = &[
    (
        "metadata.json",
        include_str!("../../vm/vagrant/metadata.json"),
    ),
    ("Vagrantfile", include_str!("../../vm/vagrant/Vagrantfile")),
];
/// What libvirt finds of the machine that is its own.
const HOST_FILES: &[(&str, &str)] = &[
    (
        "etc/libvirt/libvirtd.conf",
        include_str!("../../vm/vagrant/libvirtd.conf"),
    ),
    (
        "etc/libvirt/qemu.conf",
        include_str!("../../vm/vagrant/qemu.conf"),
    ),
];
/// Directories that are its own.
const HOST_DIRECTORIES: &[&str] = &[
    "etc/libvirt",
    "var/lib/libvirt",
    "var/log/libvirt",
    "var/cache/libvirt",
];
const NAMESPACES: &str = include_str!("../../vm/vagrant/namespaces.sh");
/// Stands for VirtualBox when its settings are validated.
const VBOXMANAGE: &str = include_str!("../../vm/vagrant/VBoxManage");

/// Validates the Vagrantfile, has Vagrant make a machine with the sample in it,
/// fetches the sample's page there, provisions again, and destroys the machine.
///
/// # Errors
/// At the first check that fails, or after 35 minutes.
pub fn run(setup: &Setup, console: &Console) -> Result<()> {
    for program in ["vagrant", "libvirtd"] {
        ensure!(
            Path::new("/usr/bin").join(program).exists()
                || Path::new("/usr/sbin").join(program).exists(),
            "{program} is missing; `make vm-vagrant` installs it"
        );
    }
    let image = setup.image(console)?;
    provision_three(setup, &image, console)?;
    let image = fs::canonicalize(&image).with_context(|| image.display().to_string())?;
    let disk = Disk::of(&content(), console)?;
    let directory = Directory::make(&disk)?;
    let started = Instant::now();
    let host = Host::start(&directory.0, &image, started + LIMIT)?;

    console.step("vagrant validate");
    validate(&directory.0)?;

    console.step("Making the box");
    let package = make_box(&disk, &directory.0)?;
    run_visibly(host.vagrant(&["box", "add", "--name", BOX]).arg(&package))?;

    console.step("vagrant up");
    let up = Instant::now();
    run_visibly(&mut host.vagrant(&["up"]))?;
    console.info(&format!(
        "It is up after {}",
        render::duration(up.elapsed())
    ));
    let url = host.check()?;
    console.info(&format!("{url} serves the page"));

    console.step("vagrant provision");
    run_visibly(&mut host.vagrant(&["provision"]))?;
    host.check()?;

    console.step("vagrant destroy -f");
    run_visibly(&mut host.vagrant(&["destroy", "-f"]))?;
    let left = process::text(host.enter().args(["virsh", "list", "--all", "--name"]))?;
    ensure!(left.trim().is_empty(), "machines are left: {left}");
    ensure!(
        !host.directory.join("state/token").exists(),
        "the machines' token is left"
    );
    console.info(&format!(
        "All is well, {}",
        render::duration(started.elapsed())
    ));
    Ok(())
}

/// Directory of the Vagrantfile.
fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../vagrant")
}

/// Has Vagrant use the repository's Vagrantfile, and write below `directory` alone.
fn environment(vagrant: &mut Command, directory: &Path) {
    vagrant
        .env("VAGRANT_CWD", project())
        .env("VAGRANT_HOME", directory.join("home"))
        .env("VAGRANT_DOTFILE_PATH", directory.join("state"))
        .env("VAGRANT_CHECKPOINT_DISABLE", "1")
        .env("VAGRANT_DEFAULT_PROVIDER", "libvirt");
}

/// Fails unless Vagrant and both of its providers know all settings of the
/// Vagrantfile, for one node and for three, and it refuses other numbers.
/// `directory` is for what Vagrant writes.
///
/// # Errors
/// With what Vagrant says.
pub fn validate(directory: &Path) -> Result<()> {
    let programs = directory.join("bin");
    file::make_directory(&programs)?;
    let stand_in = programs.join("VBoxManage");
    file::write(&stand_in, VBOXMANAGE)?;
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755))
        .with_context(|| stand_in.display().to_string())?;
    let path = path_with(&programs)?;
    let validate = |provider: &str, nodes: &str| {
        let mut command = Command::new("vagrant");
        command.args(["--no-tty", "validate"]);
        environment(&mut command, directory);
        command
            .env("PATH", &path)
            .env("VAGRANT_DEFAULT_PROVIDER", provider)
            .env("NODES", nodes);
        process::run(&mut command)
    };
    for provider in ["libvirt", "virtualbox"] {
        for nodes in ["1", "3"] {
            validate(provider, nodes).with_context(|| format!("{nodes} nodes of {provider}"))?;
        }
    }
    ensure!(
        validate("libvirt", "2").is_err(),
        "the Vagrantfile takes two nodes"
    );
    Ok(())
}

/// Does to three nodes what Vagrant does to three machines, twice.
fn provision_three(setup: &Setup, image: &Path, console: &Console) -> Result<()> {
    let nodes = ["1", "2", "3"]
        .into_iter()
        .map(|number| {
            let node = setup.create_with(&format!("vagrant-{number}"), image, console)?;
            node.copy(&project().join("provision.sh"), PROVISION)?;
            Ok((number, node))
        })
        .collect::<Result<Vec<_>>>()?;
    let first = nodes[0].1.address();
    let provision = |(number, node): &(&str, Node)| {
        console.step(&format!("Provisioning node {number} of 3"));
        let own = node.address();
        let flags = ["--accept-eula --flavor=three", "--role=node"];
        let fixed = [
            "env", TOKEN, "bash", PROVISION, IMAGE, number, "3", own, first,
        ];
        run_visibly(&mut node.command(&[&fixed[..], &flags].concat())?)
    };
    for _ in 0..2 {
        nodes.iter().try_for_each(provision)?;
        for (_, node) in &nodes {
            check(node)?;
        }
    }
    nodes.into_iter().try_for_each(|(_, node)| node.delete())
}

fn content() -> Content<'static> {
    // All but what takes commands over a serial port.
    let enabled = ENABLED
        .iter()
        .filter(|(link, _)| !link.contains("channel"))
        .copied()
        .collect();
    Content {
        suite: SUITE,
        packages: [PACKAGES, BOX_PACKAGES].concat(),
        files: BOX_FILES.to_vec(),
        enabled,
        setup: include_str!("../../vm/vagrant/setup.sh"),
    }
}

/// Packs what Vagrant calls a box, in `directory`.
fn make_box(disk: &Disk, directory: &Path) -> Result<PathBuf> {
    let parts = directory.join("box");
    file::make_directory(&parts)?;
    for (name, text) in BOX_TEXTS {
        file::write(&parts.join(name), text)?;
    }
    for name in ["vmlinuz", "initrd.img"] {
        fs::copy(disk.file(name), parts.join(name)).with_context(|| format!("copying {name}"))?;
    }
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", "qcow2"]);
    process::run(
        command
            .arg(disk.file("disk.raw"))
            .arg(parts.join("box.img")),
    )?;
    let package = directory.join("package.box");
    let mut command = Command::new("tar");
    command.arg("-cf").arg(&package).arg("-C").arg(&parts);
    command.args(BOX_TEXTS.iter().map(|(name, _)| name));
    process::run(command.args(["box.img", "vmlinuz", "initrd.img"]))?;
    file::remove_directory(&parts)?;
    Ok(package)
}

/// Namespaces in which libvirtd runs.
struct Host {
    child: Child,
    /// All ends when it is closed.
    input: Option<ChildStdin>,
    /// Process 1 of the namespaces, as this program sees it.
    init: u32,
    directory: PathBuf,
    image: PathBuf,
    deadline: Instant,
}

impl Host {
    fn start(directory: &Path, image: &Path, deadline: Instant) -> Result<Self> {
        for place in HOST_DIRECTORIES {
            file::make_directory(&directory.join(place))?;
        }
        for (name, text) in HOST_FILES {
            file::write(&directory.join(name), text)?;
        }
        let script = directory.join("namespaces.sh");
        file::write(&script, NAMESPACES)?;
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--ipc", "--uts", "--fork"]);
        command.args(["--kill-child=KILL", "sh"]);
        let mut child = command
            .arg(&script)
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting unshare")?;
        let mut host = Self {
            input: child.stdin.take(),
            init: 0,
            child,
            directory: directory.to_owned(),
            image: image.to_owned(),
            deadline,
        };
        let output = host.child.stdout.take().context("unshare has no output")?;
        let mut line = String::new();
        BufReader::new(output)
            .read_line(&mut line)
            .context("reading what libvirt's namespaces say")?;
        ensure!(line == "ready\n", "libvirtd did not start, see above");
        let id = host.child.id();
        let children = file::read(&PathBuf::from(format!("/proc/{id}/task/{id}/children")))?;
        host.init = children
            .trim()
            .parse()
            .with_context(|| format!("process 1 of the namespaces: {children:?}"))?;
        let answers = process::wait_until(Duration::from_secs(30), || {
            process::run(host.enter().args(["virsh", "version"])).is_ok()
        });
        ensure!(answers, "libvirtd does not answer");
        Ok(host)
    }

    /// A command in the namespaces, which ends when the time is over.
    fn enter(&self) -> Command {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init));
        command.args(["--net", "--mount", "--pid", "--ipc", "--uts", "--"]);
        command.args(["timeout", "--kill-after=10"]);
        command.arg(left.as_secs().max(1).to_string());
        command
    }

    /// Vagrant with the repository's Vagrantfile, and all that it writes in the
    /// directory of this run.
    fn vagrant(&self, arguments: &[&str]) -> Command {
        let mut command = self.enter();
        command
            .args(["vagrant", "--no-tty"])
            .args(arguments)
            .stdin(Stdio::null());
        environment(&mut command, &self.directory);
        command
            .env("DRIVER", "qemu")
            .env("BOX", BOX)
            .env("IMAGE", &self.image)
            // Disks of test machines are what they are.
            .env("INSTALL_FLAGS", "--accept-eula --ignore=disk-latency");
        command
    }

    /// Fails unless the cluster is well and its endpoint serves the page, to the
    /// machine itself and to the host. Returns the endpoint's URL.
    fn check(&self) -> Result<String> {
        let ssh = |command: &str| process::text(&mut self.vagrant(&["ssh", "-c", command]));
        let url = check_status(&ssh("sudo gravity status --output json")?)?;
        let inside = ssh(&format!("curl -sS --fail -m 20 {url}"))?;
        let fetch = ["curl", "-sS", "--fail", "-m", "20", &url];
        let outside = process::text(self.enter().args(fetch))?;
        for page in [inside, outside] {
            ensure!(
                page == sample::PAGE,
                "{url} does not serve the page: {page}"
            );
        }
        Ok(url)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
