//! Control groups: v1, v2 or both side by side, as the machine has them.
//!
//! In: the hierarchies that are mounted. Out: a [`Group`], one directory in
//! each hierarchy, that processes are put into, killed in and that is removed
//! as a whole. Always holds: on v2, processes are in leaves only.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::devices::Found;
use crate::error::{Context, Error, Result};
use crate::sys;

/// v1 controllers that each service has a group in; the others are for pods.
const SERVICE_CONTROLLERS: &[&str] = &["cpu", "cpuacct", "memory", "pids", "name=systemd"];
/// v2 controllers that Kubernetes can't do without.
const NEEDED: &[&str] = &["cpu", "memory", "pids"];
/// Leaf of the v2 hierarchy that PID 1 and the supervisor are in.
const INIT: &str = "init";
/// Group of the daemon, in the one that a service manager gave it.
const LEAF: &str = "daemon";
/// Groups of pods, made by kubelet.
const PODS: &str = "kubepods";
/// How long killed processes may take to go away.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// v1: its controllers, or `name=...`. Empty on v2.
    pub(crate) controllers: Vec<String>,
    /// Where it is mounted.
    pub(crate) mount: PathBuf,
    /// Group of this process, without the leading slash.
    own: PathBuf,
    /// v2 with the controllers that matter. With v1 beside it, v1 has them, and
    /// what is left to v2 is of no use.
    controls: bool,
}

impl Hierarchy {
    /// Whether it is the unified hierarchy, v2.
    pub(crate) fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }
}

/// Finds the hierarchies that are mounted and that this process is in.
pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let cannot = |error: procfs::ProcError| Error::Cgroup(error.to_string());
    let me = procfs::process::Process::myself().map_err(cannot)?;
    let groups = me.cgroups().map_err(cannot)?;
    let mounts = me.mountinfo().map_err(cannot)?;
    let mut found = Vec::new();
    for group in groups {
        let controllers: Vec<_> = group
            .controllers
            .into_iter()
            .filter(|name| !name.is_empty())
            .collect();
        let mount = mounts.iter().find(|mount| match controllers.is_empty() {
            true => mount.fs_type == "cgroup2",
            false => {
                mount.fs_type == "cgroup"
                    && controllers
                        .iter()
                        .all(|controller| has_option(mount, controller))
            }
        });
        let Some(mount) = mount else { continue };
        found.push(Hierarchy {
            controllers,
            mount: mount.mount_point.clone(),
            own: PathBuf::from(group.pathname.trim_start_matches('/')),
            controls: false,
        });
    }
    if found.is_empty() {
        return Err(Error::Cgroup(
            "no hierarchy is mounted below /sys/fs/cgroup; mount them first".into(),
        ));
    }
    let alone = !found.iter().any(|hierarchy: &Hierarchy| {
        hierarchy
            .controllers
            .iter()
            .any(|controller| NEEDED.contains(&controller.as_str()))
    });
    for hierarchy in &mut found {
        hierarchy.controls = alone && hierarchy.is_v2();
    }
    Ok(found)
}

/// Whether a mount has a v1 controller; `name=systemd` is split at `=`.
fn has_option(mount: &procfs::process::MountInfo, controller: &str) -> bool {
    match controller.split_once('=') {
        Some((key, value)) => mount
            .super_options
            .get(key)
            .is_some_and(|has| has.as_deref() == Some(value)),
        None => mount.super_options.contains_key(controller),
    }
}

/// The same-named group in several hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    directories: Vec<(Hierarchy, PathBuf)>,
}

impl Group {
    /// The container's group. Where a service manager delegated a part of the
    /// tree to us, it is in that part; otherwise at the top.
    pub(crate) fn container(name: &str) -> Result<Self> {
        let managed = host::facts::has_systemd();
        let mut directories = Vec::new();
        for hierarchy in hierarchies()? {
            let base = match managed {
                true => hierarchy.mount.join(delegated(&hierarchy.own)),
                false => hierarchy.mount.clone(),
            };
            directories.push((hierarchy, base.join(name)));
        }
        Ok(Self { directories })
    }

    /// A service's group, inside the container.
    pub(crate) fn service(hierarchies: &[Hierarchy], name: &str) -> Self {
        let has_group = |hierarchy: &&Hierarchy| {
            hierarchy.is_v2()
                || hierarchy
                    .controllers
                    .iter()
                    .any(|controller| SERVICE_CONTROLLERS.contains(&controller.as_str()))
        };
        let directories = hierarchies
            .iter()
            .filter(has_group)
            .map(|hierarchy| {
                (
                    hierarchy.clone(),
                    hierarchy.mount.join("services").join(name),
                )
            })
            .collect();
        Self { directories }
    }

    /// Groups of all pods, inside the container.
    pub(crate) fn pods(hierarchies: &[Hierarchy]) -> Self {
        let directories = hierarchies
            .iter()
            .map(|hierarchy| (hierarchy.clone(), hierarchy.mount.join(PODS)))
            .collect();
        Self { directories }
    }

    /// Makes the group, empty and with all controllers.
    pub(crate) fn create(&self) -> Result<()> {
        for (hierarchy, directory) in &self.directories {
            let parent = directory.parent().unwrap_or(directory);
            if hierarchy.controls {
                fs::create_dir_all(parent).at("create cgroup", parent)?;
                delegate(hierarchy, parent)?;
            }
            fs::create_dir_all(directory).at("create cgroup", directory)?;
            if hierarchy
                .controllers
                .iter()
                .any(|controller| controller == "cpuset")
            {
                // A new cpuset has no processors and accepts no process.
                inherit(directory, "cpuset.cpus")?;
                inherit(directory, "cpuset.mems")?;
            }
        }
        Ok(())
    }

    /// Moves this process into the group.
    pub(crate) fn join(&self) -> Result<()> {
        for (_, directory) in &self.directories {
            put(&directory.join("cgroup.procs"), "0")?;
        }
        Ok(())
    }

    /// Opens the files that a process joins the group by.
    pub(crate) fn open(&self) -> Result<Vec<File>> {
        self.directories
            .iter()
            .map(|(_, directory)| {
                let path = directory.join("cgroup.procs");
                File::options().write(true).open(&path).at("open", &path)
            })
            .collect()
    }

    /// Gives the group a share of the processor, in v2 units of 1 to 10000.
    pub(crate) fn set_cpu_weight(&self, weight: u32) -> Result<()> {
        for (hierarchy, directory) in &self.directories {
            if hierarchy.controls {
                put(
                    &directory.join("cpu.weight"),
                    &weight.clamp(1, 10_000).to_string(),
                )?;
            } else if hierarchy
                .controllers
                .iter()
                .any(|controller| controller == "cpu")
            {
                put(&directory.join("cpu.shares"), &shares(weight).to_string())?;
            }
        }
        Ok(())
    }

    /// Opens what keeps all in the group from devices, where the host has it.
    pub(crate) fn device_control(&self) -> Result<DeviceControl> {
        let mut control = DeviceControl::default();
        for (hierarchy, directory) in &self.directories {
            let mut controllers = hierarchy.controllers.iter();
            if hierarchy.is_v2() {
                control.v2 = Some(File::open(directory).at("open", directory)?);
            } else if controllers.any(|controller| controller == "devices") {
                let path = directory.join("devices.deny");
                control.v1 = Some(File::options().write(true).open(&path).at("open", &path)?);
            }
        }
        Ok(control)
    }

    /// Ids of all processes in the group and the groups below it.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mut all: Vec<_> = self
            .directories
            .iter()
            .flat_map(|(_, directory)| processes_below(directory))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Sends a signal to all processes.
    pub(crate) fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            // One that has ended meanwhile needs no signal.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Whether no process is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.processes().is_empty()
    }

    /// Kills all processes, once. True when none was left.
    pub(crate) fn kill(&self) -> bool {
        if self.is_empty() {
            return true;
        }
        for (hierarchy, directory) in &self.directories {
            if hierarchy.is_v2() {
                // Since Linux 5.14; it also gets those that fork meanwhile.
                drop(put(&directory.join("cgroup.kill"), "1"));
            }
        }
        self.signal(Signal::SIGKILL);
        false
    }

    /// Kills all processes, waits for them and removes the group.
    pub(crate) fn destroy(&self) -> Result<()> {
        let until = Instant::now() + KILL_TIMEOUT;
        while !self.kill() {
            if Instant::now() > until {
                let left = self.processes();
                return Err(Error::Cgroup(format!(
                    "processes {left:?} do not end {} s after SIGKILL",
                    KILL_TIMEOUT.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        for (_, directory) in &self.directories {
            loop {
                match remove(directory) {
                    Ok(()) => break,
                    // The last processes are gone but not yet counted off.
                    Err(error)
                        if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until =>
                    {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    result => return result.at("remove cgroup", directory),
                }
            }
        }
        Ok(())
    }
}

/// What keeps all in a group from devices.
#[derive(Debug, Default)]
pub(crate) struct DeviceControl {
    v2: Option<File>,
    v1: Option<File>,
}

impl DeviceControl {
    /// Keeps all in the group, this process too, from what the devices are not
    /// permitted for. Before there are groups below it.
    ///
    /// v2 has a program for it, which holds beside v1, too. v1 alone can't deny
    /// making nodes: groups of containers allow that for all devices, and none
    /// may allow what the group above it denies.
    pub(crate) fn restrict(self, devices: &[Found]) -> Result<()> {
        let rules: Vec<_> = devices
            .iter()
            .map(|device| (device, device.denied()))
            .filter(|(_, denied)| !denied.is_empty())
            .collect();
        if rules.is_empty() {
            return Ok(());
        }
        let mut refused = io::Error::other("there is no devices controller");
        if let Some(group) = self.v2 {
            match sys::restrict_devices(&group, &rules) {
                Ok(()) => return Ok(()),
                Err(error) => refused = error,
            }
        }
        let Some(mut deny) = self.v1 else {
            return Err(refused).on("restrict devices to their permissions");
        };
        for (device, denied) in rules {
            let denied = denied.replace('m', "");
            if !denied.is_empty() {
                // The file takes one rule a write.
                let rule = format!("{} {denied}", device.name());
                deny.write_all(rule.as_bytes())
                    .at("restrict device", &device.path)?;
            }
        }
        Ok(())
    }
}

/// Moves this process to a leaf of the container's v2 group, from inside, and
/// enables the controllers for the groups beside it.
pub(crate) fn enter_leaf() -> Result<()> {
    for hierarchy in hierarchies()?.iter().filter(|hierarchy| hierarchy.is_v2()) {
        let leaf = hierarchy.mount.join(INIT);
        fs::create_dir_all(&leaf).at("create cgroup", &leaf)?;
        put(&leaf.join("cgroup.procs"), "0")?;
        if hierarchy.controls {
            enable(&hierarchy.mount)?;
            let services = hierarchy.mount.join("services");
            fs::create_dir_all(&services).at("create cgroup", &services)?;
            enable(&services)?;
        }
    }
    Ok(())
}

/// The group that a service manager gave us, from the one that this process is in: it
/// may have gone to a leaf of that one.
fn delegated(own: &Path) -> &Path {
    match own.parent() {
        Some(parent) if own.ends_with(LEAF) => parent,
        _ => own,
    }
}

/// Makes `parent` pass its v2 controllers to the groups below it. Only a group
/// without processes can: ours go to a leaf.
fn delegate(hierarchy: &Hierarchy, parent: &Path) -> Result<()> {
    let own = hierarchy.mount.join(&hierarchy.own);
    if parent == own && parent != hierarchy.mount {
        let leaf = own.join(LEAF);
        fs::create_dir_all(&leaf).at("create cgroup", &leaf)?;
        for pid in processes_in(&own) {
            drop(put(&leaf.join("cgroup.procs"), &pid.to_string()));
        }
    }
    enable(parent)
}

/// Enables what controllers there are for the groups below.
fn enable(directory: &Path) -> Result<()> {
    let path = directory.join("cgroup.controllers");
    let available = fs::read_to_string(&path).at("read", &path)?;
    let switch = directory.join("cgroup.subtree_control");
    for controller in available.split_whitespace() {
        let enabled = put(&switch, &format!("+{controller}"));
        if NEEDED.contains(&controller) {
            enabled?;
        }
    }
    let enabled = fs::read_to_string(&switch).at("read", &switch)?;
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|needed| !enabled.split_whitespace().any(|has| has == **needed))
        .copied()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Cgroup(format!(
        "{} passes on {:?}, without {}: delegate them to the service (Delegate=yes)",
        directory.display(),
        enabled.trim(),
        missing.join(", ")
    )))
}

fn inherit(directory: &Path, file: &str) -> Result<()> {
    let path = directory.join(file);
    if !fs::read_to_string(&path)
        .at("read", &path)?
        .trim()
        .is_empty()
    {
        return Ok(());
    }
    let parent = directory.parent().unwrap_or(directory).join(file);
    let value = fs::read_to_string(&parent).at("read", &parent)?;
    put(&path, value.trim())
}

fn put(path: &Path, value: &str) -> Result<()> {
    let mut file = File::options().write(true).open(path).at("open", path)?;
    file.write_all(value.as_bytes()).at("write", path)
}

/// v1 shares for a v2 weight: 100 is the default of the one, 1024 of the other.
fn shares(weight: u32) -> u64 {
    (u64::from(weight) * 1024 / 100).clamp(2, 262_144)
}

fn processes_in(directory: &Path) -> Vec<i32> {
    fs::read_to_string(directory.join("cgroup.procs"))
        .map(|text| {
            text.lines()
                .filter_map(|line| line.parse().ok())
                .filter(|pid| *pid > 0)
                .collect()
        })
        .unwrap_or_default()
}

fn processes_below(directory: &Path) -> Vec<i32> {
    let mut all = processes_in(directory);
    for child in children(directory).unwrap_or_default() {
        all.extend(processes_below(&child));
    }
    all
}

fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut children = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}

/// Removes a group and those below it. Their files are the kernel's and go
/// with them.
fn remove(directory: &Path) -> io::Result<()> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match children(directory) {
        Err(error) if gone(&error) => return Ok(()),
        children => {
            for child in children? {
                remove(&child)?;
            }
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if !gone(&error) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_weight_is_default_share() {
        assert_eq!(shares(100), 1024);
        assert_eq!(shares(1), 10);
        assert_eq!(shares(10_000), 102_400);
        assert_eq!(shares(0), 2);
    }

    #[test]
    fn a_daemon_that_has_moved_knows_the_group_that_it_was_given() {
        let given = Path::new("system.slice/gravity.service");
        assert_eq!(delegated(given), given);
        assert_eq!(delegated(&given.join("daemon")), given);
        assert_eq!(delegated(Path::new("")), Path::new(""));
    }

    #[test]
    fn named_hierarchies_are_told_from_controllers() {
        let line = "30 25 0:26 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd";
        let mount = procfs::process::MountInfo::from_line(line).unwrap();
        assert!(has_option(&mount, "name=systemd"));
        assert!(!has_option(&mount, "name=other"));
        assert!(!has_option(&mount, "cpu"));
    }

    #[test]
    fn a_tree_is_removed_from_the_leaves() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("gravity");
        fs::create_dir_all(root.join("kubepods/burstable/pod1")).unwrap();
        remove(&root).unwrap();
        assert!(!root.exists());
        remove(&root).unwrap();
    }
}
