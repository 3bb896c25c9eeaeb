//! The state of a node, to be compared before and after.
//!
//! In: a node. Out: a [`Snapshot`], text by section and key, and the
//! differences of two that [`ALLOWED`] does not name. Always holds: an
//! untouched node gives the same snapshot twice.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::node::Node;
use throwaway::cgroup;

/// What a node was like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, BTreeMap<String, String>>);

/// A difference that may stay after `gravity leave`.
#[derive(Debug, Clone, Copy)]
pub struct Allowed {
    /// Section of the snapshot.
    pub section: &'static str,
    /// The key, or its beginning when it ends with `*`.
    pub key: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// The documented list.
pub const ALLOWED: &[Allowed] = &[
    Allowed {
        section: "modules",
        key: "*",
        reason: "a loaded kernel module may be used by others and does no harm",
    },
    Allowed {
        section: "files",
        key: "/run/xtables.lock",
        reason: "iptables makes this lock file, empty, and never removes it",
    },
    Allowed {
        section: "files",
        key: "/var/log/lastlog",
        reason: "useradd writes to it",
    },
    Allowed {
        section: "files",
        key: "/var/log/faillog",
        reason: "useradd writes to it",
    },
    Allowed {
        section: "files",
        key: "/etc/passwd-",
        reason: "useradd and userdel keep the former state",
    },
    Allowed {
        section: "files",
        key: "/etc/shadow-",
        reason: "see /etc/passwd-",
    },
    Allowed {
        section: "files",
        key: "/etc/group-",
        reason: "see /etc/passwd-",
    },
    Allowed {
        section: "files",
        key: "/etc/gshadow-",
        reason: "see /etc/passwd-",
    },
    Allowed {
        section: "files",
        key: "/etc/subuid-",
        reason: "see /etc/passwd-",
    },
    Allowed {
        section: "files",
        key: "/etc/subgid-",
        reason: "see /etc/passwd-",
    },
    Allowed {
        section: "files",
        key: "/etc/.pwd.lock",
        reason: "lock file of useradd",
    },
];

/// Kernel parameters that change by themselves.
const VOLATILE_SYSCTLS: &[&str] = &["net.netfilter.nf_conntrack_count"];

impl Snapshot {
    /// Looks at everything in a node.
    ///
    /// # Errors
    /// When the node does not run or can't be read.
    pub fn take(node: &Node) -> Result<Self> {
        let pid = node.pid()?;
        let root = format!("/proc/{pid}/root");
        let mut all = BTreeMap::new();
        let mut add = |section: &str, entries: BTreeMap<String, String>| {
            all.insert(section.to_owned(), entries);
        };
        add("files", files(Path::new(&root))?);
        add(
            "users",
            lines(&fs::read_to_string(format!("{root}/etc/passwd"))?),
        );
        add(
            "groups",
            lines(&fs::read_to_string(format!("{root}/etc/group"))?),
        );
        add(
            "mounts",
            mounts(&fs::read_to_string(format!("/proc/{pid}/mountinfo"))?),
        );
        add(
            "interfaces",
            interfaces(&node.text(&["ip", "-json", "address"])?)?,
        );
        add(
            "routes",
            lines(&node.text(&["ip", "route", "show", "table", "all"])?),
        );
        add("rules", lines(&node.text(&["ip", "rule"])?));
        add(
            "nftables",
            nftables(&node.text(&["nft", "list", "ruleset"])?),
        );
        let mut iptables = BTreeMap::new();
        for program in [
            "iptables-save",
            "iptables-legacy-save",
            "ip6tables-legacy-save",
        ] {
            let rules = node.text(&[
                "sh",
                "-c",
                &format!("if command -v {program} >&2; then {program}; fi"),
            ])?;
            iptables.extend(rules_of(program, &rules));
        }
        add("iptables", iptables);
        let sysctls = node.text(&["sysctl", "--all", "--pattern", "^net[.]"])?;
        add("sysctls", sysctls_of(&sysctls));
        add(
            "processes",
            processes(&node.text(&["ps", "-e", "-o", "args="])?),
        );
        add(
            "modules",
            modules(&fs::read_to_string("/proc/modules").unwrap_or_default()),
        );
        let mut groups = BTreeMap::new();
        for hierarchy in cgroup::hierarchies()? {
            let top = hierarchy.group(node.name());
            for group in cgroup::list(&hierarchy, node.name())? {
                let inner = group.strip_prefix(&top).unwrap_or(&group);
                groups.insert(
                    hierarchy.path.join(inner).display().to_string(),
                    String::new(),
                );
            }
        }
        add("cgroups", groups);
        Ok(Self(all))
    }

    /// Fails when a node is not as it was, but for what is [`ALLOWED`]. `what` was done
    /// to it meanwhile.
    pub(crate) fn is_still(&self, node: &Node, what: &str) -> Result<()> {
        let mut found = self.differences(&Self::take(node)?, ALLOWED);
        if !found.is_empty() {
            // Processes that were killed take a moment to end.
            thread::sleep(Duration::from_millis(500));
            found = self.differences(&Self::take(node)?, ALLOWED);
        }
        ensure!(
            found.is_empty(),
            "{what} left {} differences on {}:\n{}",
            found.len(),
            node.name(),
            found.join("\n")
        );
        Ok(())
    }

    /// What is different in `later`, a line each, without what `allowed` names.
    #[must_use]
    pub fn differences(&self, later: &Self, allowed: &[Allowed]) -> Vec<String> {
        let none = BTreeMap::new();
        let mut found = Vec::new();
        let mut sections: Vec<_> = self.0.keys().chain(later.0.keys()).collect();
        sections.sort();
        sections.dedup();
        for section in sections {
            let before = self.0.get(section).unwrap_or(&none);
            let after = later.0.get(section).unwrap_or(&none);
            let mut keys: Vec<_> = before.keys().chain(after.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                if allowed.iter().any(|allowed| allowed.covers(section, key)) {
                    continue;
                }
                match (before.get(key), after.get(key)) {
                    (Some(old), Some(new)) if old != new => {
                        found.push(format!("{section}: changed {key}: {old} -> {new}"));
                    }
                    (Some(_), None) => found.push(format!("{section}: gone {key}")),
                    (None, Some(new)) => found.push(format!("{section}: new {key} {new}")),
                    _ => {}
                }
            }
        }
        found
    }
}

impl Allowed {
    fn covers(&self, section: &str, key: &str) -> bool {
        self.section == section
            && match self.key.strip_suffix('*') {
                Some(beginning) => key.starts_with(beginning),
                None => self.key == key,
            }
    }
}

/// All files below `root` but those that the kernel makes up.
fn files(root: &Path) -> Result<BTreeMap<String, String>> {
    let skipped = ["proc", "sys", "dev"].map(|name| root.join(name));
    let walk = walkdir::WalkDir::new(root.join("."))
        .into_iter()
        .filter_entry(|entry| {
            !skipped.contains(&root.join(entry.path().strip_prefix(root).unwrap_or(entry.path())))
        });
    let mut found = BTreeMap::new();
    for entry in walk {
        let entry = match entry {
            Ok(entry) => entry,
            // Removed while we look.
            Err(error)
                if error
                    .io_error()
                    .is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound) =>
            {
                continue;
            }
            Err(error) => return Err(error).context("reading the node's files"),
        };
        let path = entry.path();
        let metadata = entry
            .metadata()
            .with_context(|| path.display().to_string())?;
        let kind = entry.file_type();
        let content = if kind.is_file() {
            let hash = File::open(path)
                .and_then(|mut file| oci::digest::copy(&mut file, &mut std::io::sink()));
            let (hash, _) = hash.with_context(|| format!("reading {}", path.display()))?;
            format!("file of {} bytes {}", metadata.len(), &hash.hex()[..16])
        } else if kind.is_symlink() {
            let target = fs::read_link(path).with_context(|| path.display().to_string())?;
            format!("link to {}", target.display())
        } else if kind.is_dir() {
            "directory".to_owned()
        } else if kind.is_socket() {
            "socket".to_owned()
        } else {
            format!("device {:x}", metadata.rdev())
        };
        let name = Path::new("/").join(path.strip_prefix(root).unwrap_or(path));
        let name = name.display().to_string();
        found.insert(
            name,
            format!(
                "{content}, {:o} {}:{}",
                metadata.mode() & 0o7777,
                metadata.uid(),
                metadata.gid()
            ),
        );
    }
    Ok(found)
}

/// Lines, counted.
fn lines(text: &str) -> BTreeMap<String, String> {
    counted(
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(str::to_owned),
    )
}

fn counted(keys: impl Iterator<Item = String>) -> BTreeMap<String, String> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for key in keys {
        *counts.entry(key).or_default() += 1;
    }
    counts
        .into_iter()
        .map(|(key, count)| {
            (
                key,
                if count == 1 {
                    String::new()
                } else {
                    format!("x{count}")
                },
            )
        })
        .collect()
}

/// Mount points with their kinds, without numbers that are given by chance.
fn mounts(mountinfo: &str) -> BTreeMap<String, String> {
    counted(mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<_> = left.split(' ').collect();
        let (root, point, options) = (left.get(3)?, left.get(4)?, left.get(5)?);
        let kind = right.split(' ').next()?;
        Some(format!("{point} {kind} {root} {options}"))
    }))
}

fn interfaces(json: &str) -> Result<BTreeMap<String, String>> {
    let all: Vec<serde_json::Value> = serde_json::from_str(json).context("reading addresses")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(all
        .iter()
        .map(|link| {
            let mut addresses: Vec<_> = link["addr_info"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|one| format!("{}/{}", text(&one["local"]), one["prefixlen"]))
                .collect();
            addresses.sort();
            (
                text(&link["ifname"]),
                format!("mtu {} {}", link["mtu"], addresses.join(" ")),
            )
        })
        .collect())
}

/// Tables, chains and rules, each with where it is, without counters.
fn nftables(ruleset: &str) -> BTreeMap<String, String> {
    let mut context: Vec<String> = Vec::new();
    counted(ruleset.lines().filter_map(|line| {
        let line = without_counters(line.trim());
        if line == "}" {
            context.pop();
            return None;
        }
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let opening = line.strip_suffix(" {");
        let text = opening.unwrap_or(&line);
        let mut key = context.join(" ");
        if !key.is_empty() {
            key.push_str(": ");
        }
        key.push_str(text);
        if opening.is_some() {
            context.push(text.to_owned());
        }
        Some(key)
    }))
}

/// `counter packets 1 bytes 2` counts, and differs without meaning.
fn without_counters(line: &str) -> String {
    let mut kept = Vec::new();
    let mut words = line.split(' ');
    while let Some(word) = words.next() {
        kept.push(word);
        if matches!(word, "packets" | "bytes") {
            words.next();
            kept.push("-");
        }
    }
    kept.join(" ")
}

/// Rules of iptables-save with their tables, without counters.
fn rules_of(program: &str, text: &str) -> BTreeMap<String, String> {
    let mut table = "";
    let lines = text
        .lines()
        .filter(|line| !line.starts_with('#') && *line != "COMMIT");
    counted(lines.filter_map(|line| {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
            return None;
        }
        let rule = line.split(" [").next().unwrap_or(line);
        Some(format!("{program} {table}: {rule}"))
    }))
}

fn sysctls_of(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once(" = "))
        .filter(|(name, _)| !VOLATILE_SYSCTLS.contains(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Commands that run, without the one that looked.
fn processes(text: &str) -> BTreeMap<String, String> {
    counted(
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && *line != "ps -e -o args=")
            .map(str::to_owned),
    )
}

fn modules(text: &str) -> BTreeMap<String, String> {
    counted(
        text.lines()
            .filter_map(|line| line.split(' ').next())
            .map(str::to_owned),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(section: &str, entries: &[(&str, &str)]) -> Snapshot {
        let entries = entries
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect();
        Snapshot(BTreeMap::from([(section.to_owned(), entries)]))
    }

    #[test]
    fn what_came_went_and_changed_is_named() {
        let before = snapshot("files", &[("/a", "1"), ("/b", "1"), ("/same", "1")]);
        let after = snapshot("files", &[("/b", "2"), ("/c", "1"), ("/same", "1")]);
        assert_eq!(
            before.differences(&after, ALLOWED),
            [
                "files: gone /a",
                "files: changed /b: 1 -> 2",
                "files: new /c 1"
            ]
        );
    }

    #[test]
    fn only_what_the_list_names_is_allowed() {
        let before = snapshot("files", &[]);
        let after = snapshot("files", &[("/etc/passwd-", "1"), ("/etc/passwd-x", "1")]);
        assert_eq!(
            before.differences(&after, ALLOWED),
            ["files: new /etc/passwd-x 1"]
        );
        let before = snapshot("modules", &[]);
        assert!(
            before
                .differences(&snapshot("modules", &[("overlay", "")]), ALLOWED)
                .is_empty()
        );
        let after = snapshot("users", &[("/etc/passwd-", "")]);
        assert_eq!(snapshot("users", &[]).differences(&after, ALLOWED).len(), 1);
    }

    #[test]
    fn rules_are_known_by_table_and_chain_and_counters_do_not_count() {
        let text = "table ip nat {\n\tchain POSTROUTING {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\t\tcounter packets 7 bytes 420 jump KUBE\n\t}\n}\n";
        let keys: Vec<_> = nftables(text).into_keys().collect();
        assert_eq!(
            keys,
            [
                "table ip nat",
                "table ip nat chain POSTROUTING: counter packets - bytes - jump KUBE",
                "table ip nat chain POSTROUTING: type nat hook postrouting priority srcnat; policy accept;",
                "table ip nat: chain POSTROUTING",
            ]
        );
        let saved = "# Generated\n*nat\n:PREROUTING ACCEPT [3:4]\n-A PREROUTING -j X\nCOMMIT\n";
        let keys: Vec<_> = rules_of("iptables-save", saved).into_keys().collect();
        assert_eq!(
            keys,
            [
                "iptables-save nat: -A PREROUTING -j X",
                "iptables-save nat: :PREROUTING ACCEPT"
            ]
        );
    }
}
