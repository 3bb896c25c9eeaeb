//! Nodes: namespaces over a Debian root that look like small servers.
//!
//! In: a name and an address. Out: a [`Node`] on which commands run as root, in
//! mount, PID, UTS, IPC, network and cgroup namespaces of its own. What is
//! known of a node lies in [`STATE`], what it writes in [`Options::data`], in
//! `NAME/disk.raw`, an ext4 filesystem of its own: nodes don't depend on how full
//! the machine's disk is, and can be the upper layer of an overlay. Nodes reach
//! each other over the bridge [`BRIDGE`], which is in a network namespace of its
//! own, and nothing else: there is no way to the machine or beyond. Always holds:
//! `delete` leaves no process, mount, group, file or interface behind, also after
//! a crash in the middle of `create`.
//!
//! The work inside namespaces needs a process with one thread, see
//! [`crate::helper`].

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::process::ProcessId;
use crate::{cgroup, file, helper, process};

/// Where the states of all nodes are.
pub const STATE: &str = "/run/gravity-test";
/// Network namespace of the bridge.
const NETWORK: &str = "gravtest";
/// What nodes are connected by.
pub const BRIDGE: &str = "gravtest0";
/// First three bytes of addresses on the bridge.
const SUBNET: [u8; 3] = [10, 99, 0];
/// The bridge's own number in it.
const GATEWAY: u8 = 254;
/// Size in bytes of a node's disk; what is not written takes no room.
const DISK: u64 = 40 << 30;
/// How long a node's processes may take to die.
const KILL: Duration = Duration::from_secs(30);
/// Kernel parameters that nodes change for the whole machine, as they are not
/// part of any namespace: kubelet sets most of them.
const MACHINE_SYSCTLS: &[&str] = &[
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/max_map_count",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// How a node is to be.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Address on the bridge with prefix length, such as `10.99.0.7/24`; the
    /// first free one otherwise.
    pub address: Option<String>,
    /// Whether it has a default route, which leads to the bridge and ends there.
    pub default_route: bool,
    /// Directory of its root filesystem, which is not written to: nodes share it.
    pub root: PathBuf,
    /// Directory in which it gets one of its name, for its disk.
    pub data: PathBuf,
}

/// What is known of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) name: String,
    /// With prefix length.
    pub(crate) address: String,
    pub(crate) default_route: bool,
    /// Root filesystem, shared by all nodes.
    pub(crate) root: PathBuf,
    /// What is the node's alone.
    pub(crate) data: PathBuf,
    /// Process 1 of the node, once it runs.
    pub(crate) init: Option<ProcessId>,
}

/// A node that exists.
#[derive(Debug, Clone)]
pub struct Node {
    state: State,
}

impl Node {
    /// Makes a node and waits until it runs.
    ///
    /// # Errors
    /// When it exists, when the name or address can't be used, or when
    /// something that it needs is missing; nothing is left of it then.
    pub fn create(name: &str, options: &Options) -> Result<Self> {
        check_name(name)?;
        require_root()?;
        let _lock = lock()?;
        if state_path(name).exists() {
            bail!("node {name} exists already");
        }
        let address = match &options.address {
            Some(address) => checked(address)?,
            None => free_address()?,
        };
        let state = State {
            name: name.to_owned(),
            address,
            default_route: options.default_route,
            root: options.root.clone(),
            data: options.data.join(name),
            init: None,
        };
        let mut node = Self { state };
        if let Err(error) = node.build() {
            return Err(match remove(name) {
                Ok(()) => error,
                Err(left) => error.context(format!("and it could not be removed: {left:#}")),
            });
        }
        Ok(node)
    }

    fn build(&mut self) -> Result<()> {
        remember_sysctls()?;
        self.save()?;
        let State { name, data, .. } = &self.state;
        let text = data.to_str().context("the cache's path is not text")?;
        if text.contains([',', ':', '\\']) {
            bail!("{text}: comma, colon and backslash can't be in an overlay's path");
        }
        for directory in ["disk", "root"] {
            file::make_directory(&data.join(directory))?;
        }
        let disk = data.join("disk.raw");
        fs::File::create(&disk)
            .and_then(|file| file.set_len(DISK))
            .with_context(|| format!("creating {}", disk.display()))?;
        process::run(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-m", "0"])
                .arg(&disk),
        )?;
        cgroup::create(name)?;
        let pid = process::text(helper::program()?.args(["start", name]))?;
        let pid = pid
            .trim()
            .parse()
            .with_context(|| format!("process id {pid:?}"))?;
        self.state.init = Some(ProcessId::of(pid)?);
        self.save()?;
        self.connect(pid)
    }

    /// Links the node to the bridge.
    fn connect(&self, pid: i32) -> Result<()> {
        make_network()?;
        let link = link(pid);
        ip(
            NETWORK,
            &format!(
                "link add {link} type veth peer name eth0 netns {pid}\n\
                 link set {link} master {BRIDGE} up\n"
            ),
        )?;
        let State {
            address,
            default_route,
            ..
        } = &self.state;
        let mut batch = format!("link set lo up\naddr add {address} dev eth0\nlink set eth0 up\n");
        if *default_route {
            let [a, b, c] = SUBNET;
            batch += &format!("route add default via {a}.{b}.{c}.{GATEWAY}\n");
        }
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{pid}/ns/net"));
        process::run_with_input(command.args(["ip", "-batch", "-"]), &batch).map(drop)
    }

    /// The node of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(name: &str) -> Result<Self> {
        check_name(name)?;
        let path = state_path(name);
        if !path.exists() {
            bail!("there is no node {name}");
        }
        let state = serde_json::from_str(&file::read(&path)?)
            .with_context(|| format!("reading {}", path.display()))?;
        Ok(Self { state })
    }

    /// All nodes by name.
    ///
    /// # Errors
    /// When their states can't be read.
    pub fn list() -> Result<Vec<Self>> {
        let Ok(entries) = fs::read_dir(STATE) else {
            return Ok(Vec::new());
        };
        let mut names: Vec<_> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                name.strip_suffix(".json").map(str::to_owned)
            })
            .filter(|name| check_name(name).is_ok())
            .collect();
        names.sort();
        names.iter().map(|name| Self::open(name)).collect()
    }

    fn save(&self) -> Result<()> {
        file::write(
            &state_path(&self.state.name),
            serde_json::to_vec_pretty(&self.state)?,
        )
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Its name and host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Its address on the bridge, without prefix length.
    #[must_use]
    pub fn address(&self) -> &str {
        self.state.address.split('/').next().unwrap_or_default()
    }

    /// Whether its process 1 runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state.init.is_some_and(ProcessId::is_running)
    }

    /// Process id on the machine of its process 1.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<i32> {
        match self.state.init {
            Some(init) if init.is_running() => Ok(init.pid),
            _ => bail!("node {} does not run; delete it", self.state.name),
        }
    }

    /// A command in the node, as root in `/`, with little environment.
    ///
    /// # Errors
    /// When the helper can't be found.
    pub fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = helper::program()?;
        command.args(["exec", &self.state.name, "--"]).args(words);
        Ok(command)
    }

    /// Runs a command in the node that must succeed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        process::run(&mut self.command(words)?)
    }

    /// Standard output of a command in the node that must succeed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn text(&self, words: &[&str]) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.run(words)?.stdout).into_owned())
    }

    /// Copies a file or directory of the machine to the path `to` in the node.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let mut command = helper::program()?;
        command.args(["copy", &self.state.name]).arg(from).arg(to);
        process::run(&mut command).map(drop)
    }

    /// Cuts the node off from all others, or links it to them again.
    ///
    /// # Errors
    /// When it does not run.
    pub fn cut(&self, cut: bool) -> Result<()> {
        let how = if cut { "down" } else { "up" };
        ip(NETWORK, &format!("link set {} {how}\n", link(self.pid()?)))
    }

    /// Stops all processes of the node where they are, or lets them go on. Its
    /// kernel answers for them meanwhile.
    ///
    /// # Errors
    /// When the machine has no freezer.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        cgroup::freeze(&self.state.name, frozen)
    }

    /// Kills everything in the node and removes all of it.
    ///
    /// # Errors
    /// When something can't be removed; it can be tried again.
    pub fn delete(self) -> Result<()> {
        delete(&self.state.name).map(drop)
    }
}

/// Removes the node of that name, or what is left of it. Says whether there
/// was one.
///
/// # Errors
/// When something can't be removed; it can be tried again.
pub fn delete(name: &str) -> Result<bool> {
    check_name(name)?;
    require_root()?;
    let _lock = lock()?;
    let existed = state_path(name).exists();
    remove(name)?;
    Ok(existed)
}

fn remove(name: &str) -> Result<()> {
    let mut data = None;
    if let Ok(node) = Node::open(name) {
        // What stands still does not end; a machine without a freezer has none.
        let _ = cgroup::freeze(name, false);
        if let Some(init) = node.state.init {
            init.kill(KILL)?;
        }
        data = Some(node.state.data);
    }
    cgroup::remove(name)?;
    // Mounts live as long as the last process that sees them.
    if let Some(data) = &data {
        file::remove_directory(data)?;
    }
    let path = state_path(name);
    if path.exists() {
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    if Node::list()?.is_empty() {
        remove_network()?;
        restore_sysctls()?;
        if let Some(parent) = data.as_deref().and_then(Path::parent) {
            let _ = fs::remove_dir(parent);
        }
    }
    Ok(())
}

/// A node that is deleted when it goes out of scope.
#[derive(Debug)]
pub struct Throwaway(Option<Node>);

impl Throwaway {
    /// See [`Node::create`]. What a former run left of that name goes first.
    ///
    /// # Errors
    /// See [`Node::create`].
    pub fn create(name: &str, options: &Options) -> Result<Self> {
        delete(name)?;
        Ok(Self(Some(Node::create(name, options)?)))
    }
}

impl std::ops::Deref for Throwaway {
    type Target = Node;

    #[expect(clippy::expect_used, reason = "it is there until the drop")]
    fn deref(&self) -> &Node {
        self.0.as_ref().expect("not dropped")
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(Node::delete) {
            console::Console::new(console::Format::Plain)
                .error_text(&format!("removing the node: {error:#}"));
        }
    }
}

/// Fails when this is not root.
///
/// # Errors
/// Then, with what to do.
pub fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("nodes are made of namespaces and need root; run this as root");
    }
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 40 || !name.bytes().all(good) || name.starts_with('-') {
        bail!("{name:?} can't be a node's name: up to 40 of a-z, 0-9 and - are allowed");
    }
    Ok(())
}

fn state_path(name: &str) -> PathBuf {
    Path::new(STATE).join(format!("{name}.json"))
}

fn lock() -> Result<impl Drop> {
    file::make_directory(Path::new(STATE))?;
    file::lock(&Path::new(STATE).join("lock"))
}

/// An address with prefix length, as it was given.
fn checked(address: &str) -> Result<String> {
    let parsed = address
        .split_once('/')
        .and_then(|(ip, prefix)| Some((ip.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?)));
    match parsed {
        Some((_, prefix)) if (1..=32).contains(&prefix) => Ok(address.to_owned()),
        _ => bail!("{address:?} is no address with prefix length, such as 10.99.0.7/24"),
    }
}

fn free_address() -> Result<String> {
    let used: Vec<_> = Node::list()?
        .iter()
        .map(|node| node.address().to_owned())
        .collect();
    let [a, b, c] = SUBNET;
    (1..GATEWAY)
        .map(|last| format!("{a}.{b}.{c}.{last}"))
        .find(|address| !used.contains(address))
        .map(|address| format!("{address}/24"))
        .context("all addresses of the bridge are used")
}

/// Runs lines of `ip -batch` in a named network namespace.
fn ip(namespace: &str, batch: &str) -> Result<()> {
    let mut command = Command::new("ip");
    process::run_with_input(command.args(["-n", namespace, "-batch", "-"]), batch).map(drop)
}

/// The bridge's end of a node's link.
fn link(pid: i32) -> String {
    format!("v{pid}")
}

fn network_path() -> PathBuf {
    Path::new("/run/netns").join(NETWORK)
}

fn make_network() -> Result<()> {
    if network_path().exists() {
        return Ok(());
    }
    process::run(Command::new("ip").args(["netns", "add", NETWORK]))?;
    let [a, b, c] = SUBNET;
    ip(
        NETWORK,
        &format!(
            "link set lo up\n\
             link add {BRIDGE} type bridge\n\
             addr add {a}.{b}.{c}.{GATEWAY}/24 dev {BRIDGE}\n\
             link set {BRIDGE} up\n"
        ),
    )
}

fn remove_network() -> Result<()> {
    if network_path().exists() {
        process::run(Command::new("ip").args(["netns", "delete", NETWORK]))?;
    }
    Ok(())
}

fn sysctls_path() -> PathBuf {
    Path::new(STATE).join("machine-sysctls")
}

/// Writes down what the machine's kernel parameters are without nodes.
fn remember_sysctls() -> Result<()> {
    if sysctls_path().exists() {
        return Ok(());
    }
    let mut values = BTreeMap::new();
    for name in MACHINE_SYSCTLS {
        if let Ok(value) = fs::read_to_string(Path::new("/proc/sys").join(name)) {
            values.insert(*name, value.trim().to_owned());
        }
    }
    file::write(&sysctls_path(), serde_json::to_vec(&values)?)
}

/// Gives the machine back its kernel parameters.
fn restore_sysctls() -> Result<()> {
    let path = sysctls_path();
    if !path.exists() {
        return Ok(());
    }
    let values: BTreeMap<String, String> = serde_json::from_str(&file::read(&path)?)?;
    for (name, value) in values {
        let parameter = Path::new("/proc/sys").join(name);
        if file::read(&parameter)?.trim() != value {
            cgroup::put(&parameter, &value)?;
        }
    }
    fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for bad in ["", "..", "a/b", "-a", "A", "a b", &"a".repeat(41)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        check_name("demo-1").unwrap();
    }

    #[test]
    fn an_address_has_a_prefix_length() {
        assert!(checked("10.99.0.7").is_err());
        assert!(checked("10.99.0.700/24").is_err());
        assert!(checked("10.99.0.7/33").is_err());
        checked("10.99.0.7/24").unwrap();
    }
}
