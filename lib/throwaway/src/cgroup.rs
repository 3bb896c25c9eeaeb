//! The control groups that are a node's own.
//!
//! In: the node's name. Out: in every hierarchy of the machine a group
//! `gravity-test/NAME`, which is the root of what the node sees. Works with
//! cgroup v1, v2 and both beside each other. Always holds: a removed node
//! leaves no group behind, also none that kubelet made.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{file, process};

/// Parent of all nodes' groups.
const PARENT: &str = "gravity-test";
/// Group of a node's first processes in cgroup v2, where processes may only be
/// in leaves. systemd calls it so.
const LEAF: &str = "init.scope";
/// Where hierarchies are mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted, on the machine and in the node.
    pub path: PathBuf,
    /// Whether it is cgroup v2.
    pub unified: bool,
    /// Options with which it is mounted again; empty for cgroup v2.
    pub options: String,
}

/// All hierarchies of the machine.
///
/// # Errors
/// When there are none or the mounts can't be read.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let found = parse(&file::read(Path::new("/proc/self/mountinfo"))?);
    if found.is_empty() {
        bail!("no control groups are mounted below {ROOT}");
    }
    Ok(found)
}

fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let Some(path) = left.split(' ').nth(4).map(PathBuf::from) else {
            continue;
        };
        let mut right = right.split(' ');
        let (kind, options) = (right.next(), right.nth(1).unwrap_or_default());
        let unified = kind == Some("cgroup2");
        if !(unified || kind == Some("cgroup")) || !path.starts_with(ROOT) {
            continue;
        }
        let options = if unified {
            String::new()
        } else {
            v1_options(options)
        };
        let hierarchy = Hierarchy {
            path,
            unified,
            options,
        };
        // A mount on top of another hides it.
        found.retain(|other| other.path != hierarchy.path);
        found.push(hierarchy);
    }
    found
}

/// What of a v1 mount's options names the hierarchy.
fn v1_options(options: &str) -> String {
    let general = |option: &str| {
        [
            "rw",
            "ro",
            "xattr",
            "noprefix",
            "clone_children",
            "cpuset_v2_mode",
        ]
        .contains(&option)
            || option.starts_with("release_agent=")
    };
    let mut kept: Vec<_> = options
        .split(',')
        .filter(|option| !general(option))
        .collect();
    if kept.iter().all(|option| option.starts_with("name=")) {
        kept.insert(0, "none");
    }
    kept.join(",")
}

impl Hierarchy {
    /// Group of the node `name`.
    #[must_use]
    pub fn group(&self, name: &str) -> PathBuf {
        self.path.join(PARENT).join(name)
    }
}

/// Makes the groups of a node.
///
/// # Errors
/// When the machine does not allow it.
pub(crate) fn create(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.group(name);
        let parent = hierarchy.path.join(PARENT);
        for (outer, inner) in [(&hierarchy.path, &parent), (&parent, &group)] {
            file::make_directory(inner)?;
            if hierarchy.unified {
                delegate(outer)?;
            } else {
                inherit_cpuset(outer, inner)?;
            }
        }
        if hierarchy.unified {
            file::make_directory(&group.join(LEAF))?;
        }
    }
    Ok(())
}

/// Lets the children of a v2 group use all controllers.
fn delegate(group: &Path) -> Result<()> {
    for controller in file::read(&group.join("cgroup.controllers"))?.split_whitespace() {
        // Some can't be had, such as cpu with real-time processes: the node
        // then lacks them like any machine would.
        let _ = put(
            &group.join("cgroup.subtree_control"),
            &format!("+{controller}"),
        );
    }
    Ok(())
}

/// A new v1 cpuset has no processors, and takes no process then.
fn inherit_cpuset(outer: &Path, inner: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let target = inner.join(name);
        if target.exists() && file::read(&target)?.trim().is_empty() {
            put(&target, file::read(&outer.join(name))?.trim())?;
        }
    }
    Ok(())
}

/// Files of the kernel are written in one call and never replaced.
pub(crate) fn put(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    std::io::Write::write_all(&mut file, text.as_bytes())
        .with_context(|| format!("writing {text:?} to {}", path.display()))
}

/// Moves this process to the top groups of a node: what it makes a cgroup
/// namespace of.
///
/// # Errors
/// When a group does not exist or does not take it.
pub(crate) fn enter_top(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        put(&hierarchy.group(name).join("cgroup.procs"), "0")?;
    }
    Ok(())
}

/// Moves this process to where a node's ordinary processes are.
///
/// # Errors
/// See [`enter_top`].
pub(crate) fn enter(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.group(name);
        let group = if hierarchy.unified {
            group.join(LEAF)
        } else {
            group
        };
        put(&group.join("cgroup.procs"), "0")?;
    }
    Ok(())
}

/// Stops all processes of a node where they are, or lets them go on.
///
/// # Errors
/// When the machine has no freezer.
pub(crate) fn freeze(name: &str, frozen: bool) -> Result<()> {
    let files = [
        ("cgroup.freeze", ["0", "1"]),
        ("freezer.state", ["THAWED", "FROZEN"]),
    ];
    for hierarchy in hierarchies()? {
        for (file, values) in &files {
            let path = hierarchy.group(name).join(file);
            if path.exists() {
                return put(&path, values[usize::from(frozen)]);
            }
        }
    }
    bail!("this machine can't freeze the group of {name}")
}

/// In the node, whose hierarchies are mounted: makes the root groups of v2
/// free of processes.
pub(crate) fn leave_top(hierarchies: &[Hierarchy]) -> Result<()> {
    for hierarchy in hierarchies.iter().filter(|hierarchy| hierarchy.unified) {
        put(&hierarchy.path.join(LEAF).join("cgroup.procs"), "0")?;
    }
    Ok(())
}

/// All groups of a node, relative to its own, the inner ones first.
///
/// # Errors
/// When they can't be read.
pub fn list(hierarchy: &Hierarchy, name: &str) -> Result<Vec<PathBuf>> {
    let top = hierarchy.group(name);
    if !top.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(&top).contents_first(true) {
        match entry {
            Ok(entry) if entry.file_type().is_dir() => found.push(entry.into_path()),
            // Groups come and go while we look.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(found)
}

/// Removes the groups of a node whose processes are gone.
///
/// # Errors
/// When one can't be removed within ten seconds.
pub(crate) fn remove(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let top = hierarchy.group(name);
        // A killed process stays in its group for a moment.
        let gone = process::wait_until(Duration::from_secs(10), || {
            for group in list(&hierarchy, name).unwrap_or_default() {
                let _ = fs::remove_dir(group);
            }
            !top.exists()
        });
        if !gone {
            bail!(
                "{} is still used, by the processes {:?}",
                top.display(),
                fs::read_to_string(top.join("cgroup.procs")).unwrap_or_default()
            );
        }
        // The parent belongs to the other nodes too.
        let _ = fs::remove_dir(hierarchy.path.join(PARENT));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let text = "\
25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw,size=1k
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:4 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
";
        let found = parse(text);
        let short: Vec<_> = found
            .iter()
            .map(|one| {
                (
                    one.path.to_str().unwrap(),
                    one.unified,
                    one.options.as_str(),
                )
            })
            .collect();
        assert_eq!(
            short,
            [
                ("/sys/fs/cgroup/cpu,cpuacct", false, "cpu,cpuacct"),
                ("/sys/fs/cgroup/systemd", false, "none,name=systemd"),
                ("/sys/fs/cgroup/unified", true, ""),
            ]
        );
    }

    #[test]
    fn a_machine_with_v2_alone_has_one_hierarchy() {
        let found = parse("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].group("a"),
            Path::new("/sys/fs/cgroup/gravity-test/a")
        );
    }
}
