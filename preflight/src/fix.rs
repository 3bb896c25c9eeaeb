//! What `--autofix` mends: modules and parameters of the kernel, and firewalld, now
//! and at every boot.
//!
//! In: fixes that a report names, and the journal of host changes, so that
//! `leave` reverts them. Out: what was done.

use std::fmt;
use std::path::Path;

use host::changes::{ChangeError, Daemon, Journal};
use host::facts::Firewalld;
use serde::{Deserialize, Serialize};

/// Modules that are loaded at boot. The installer has a list of its own.
const MODULES: &str = "/etc/modules-load.d/gravity-preflight.conf";
/// Parameters that are set at boot, after those of all other files, whose order is that
/// of their names: distributions have theirs in 50-redhat.conf, 99-sysctl.conf and such.
const SYSCTLS: &str = "/etc/sysctl.d/99-zz-gravity.conf";

/// One thing to mend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fix {
    /// Load a kernel module.
    Module {
        /// Its name.
        name: String,
    },
    /// Set a kernel parameter.
    Sysctl {
        /// Its name.
        name: String,
        /// The value.
        value: String,
    },
    /// Have firewalld let pods and ports through.
    Firewalld {
        /// Networks of pods, CIDR notation.
        networks: Vec<String>,
        /// Ports as firewalld writes them: `6443/tcp`, `100-200/udp`.
        ports: Vec<String>,
    },
}

impl Fix {
    /// Whether what was measured of the network may be another after it.
    pub fn changes_network(&self) -> bool {
        matches!(self, Self::Firewalld { .. })
    }
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Module { name } => write!(f, "load kernel module {name}"),
            Self::Sysctl { name, value } => write!(f, "set kernel parameter {name} to {value}"),
            Self::Firewalld { networks, ports } => write!(
                f,
                "have firewalld let pods ({}) and ports ({}) through",
                networks.join(", "),
                ports.join(", ")
            ),
        }
    }
}

/// A fix, and whether it was done.
pub type Mended = (Fix, Result<(), ChangeError>);

/// The line of a fix in a list for the boot, where it has one there.
type Line = fn(&Fix) -> Option<String>;

/// Mends, modules first as some have parameters. Out: for each fix whether it
/// was done.
///
/// # Errors
/// When a list for the next boot can't be written; the rest was done all the same.
pub fn mend(fixes: &[Fix], journal: &mut Journal) -> Result<Vec<Mended>, ChangeError> {
    let lists = [
        (Path::new(MODULES), module_line as Line),
        (Path::new(SYSCTLS), sysctl_line as Line),
    ];
    mend_by(fixes, lists, journal, apply)
}

fn mend_by(
    fixes: &[Fix],
    lists: [(&Path, Line); 2],
    journal: &mut Journal,
    apply: impl Fn(&Fix, &mut Journal) -> Result<(), ChangeError>,
) -> Result<Vec<Mended>, ChangeError> {
    let mut done = Vec::new();
    let mut listed = Ok(());
    for (list, line_of) in lists {
        let mut lines = Vec::new();
        for fix in fixes {
            let Some(line) = line_of(fix) else { continue };
            let result = apply(fix, journal);
            if result.is_ok() {
                lines.push(line);
            }
            done.push((fix.clone(), result));
        }
        // At once: where the rest is cut off, the next check finds nothing wrong with
        // these, until a boot has undone them.
        listed = listed.and(add(lines, list, journal));
    }
    // Last, as it takes longest.
    for fix in fixes.iter().filter(|fix| fix.changes_network()) {
        done.push((fix.clone(), apply(fix, journal)));
    }
    listed.map(|()| done)
}

/// Adds lines to a list for the boot.
fn add(lines: Vec<String>, list: &Path, journal: &mut Journal) -> Result<(), ChangeError> {
    let text = std::fs::read_to_string(list).unwrap_or_default();
    match merged(&text, lines.into_iter()) {
        Some(text) => journal.write_file(list, text.as_bytes(), 0o644),
        None => Ok(()),
    }
}

fn apply(fix: &Fix, journal: &mut Journal) -> Result<(), ChangeError> {
    match fix {
        Fix::Module { name } => journal.load_module(name),
        Fix::Sysctl { name, value } => journal.set_sysctl(name, value),
        Fix::Firewalld { networks, ports } => {
            journal.within(Some(SCOPE));
            let done = configure(&firewalld(networks, ports), journal);
            if done.is_err() {
                // With files that it refuses it would not start at the next boot.
                journal.undo_scope(SCOPE);
            }
            journal.within(None);
            done
        }
    }
}

/// Whose changes are taken back where firewalld refuses its files.
const SCOPE: &str = "firewalld";

fn configure(files: &Firewalld, journal: &mut Journal) -> Result<(), ChangeError> {
    let files = [
        (Firewalld::ZONE, &files.zone),
        (Firewalld::POLICY, &files.policy),
    ];
    for (path, text) in files {
        let path = Path::new(path);
        if let Some(directory) = path.parent() {
            journal.create_dir(directory, 0o755)?;
        }
        journal.write_configuration(Daemon::Firewalld, path, text.as_bytes())?;
    }
    journal.reload(Daemon::Firewalld)
}

/// What firewalld is to have of ours: a zone for packets that come from pods, and a
/// policy that opens ports whatever zone a packet came in by.
pub(crate) fn firewalld(networks: &[String], ports: &[String]) -> Firewalld {
    let head = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n";
    let lines = |names: &[String], line: fn(&str) -> String| -> String {
        names.iter().map(|name| line(name)).collect()
    };
    let sources = lines(networks, |network| {
        format!("  <source address=\"{network}\"/>\n")
    });
    let opened = lines(ports, |port| {
        let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        format!("  <port port=\"{number}\" protocol=\"{protocol}\"/>\n")
    });
    Firewalld {
        zone: format!(
            "{head}<zone target=\"ACCEPT\">\n  <short>Gravity</short>\n  \
             <description>Pods of Kubernetes; gravity leave removes it.</description>\n\
             {sources}  <forward/>\n</zone>\n"
        ),
        policy: format!(
            "{head}<policy target=\"CONTINUE\">\n  <short>Gravity</short>\n  \
             <description>Ports of Kubernetes; gravity leave removes it.</description>\n  \
             <ingress-zone name=\"ANY\"/>\n  <egress-zone name=\"HOST\"/>\n\
             {opened}</policy>\n"
        ),
    }
}

fn module_line(fix: &Fix) -> Option<String> {
    match fix {
        Fix::Module { name } => Some(name.clone()),
        Fix::Sysctl { .. } | Fix::Firewalld { .. } => None,
    }
}

fn sysctl_line(fix: &Fix) -> Option<String> {
    match fix {
        Fix::Module { .. } | Fix::Firewalld { .. } => None,
        Fix::Sysctl { name, value } => Some(format!("{name} = {value}")),
    }
}

/// A file with lines added that it hasn't; `None` where there is nothing to add.
fn merged(text: &str, lines: impl Iterator<Item = String>) -> Option<String> {
    let mut all: Vec<_> = text.lines().map(str::to_owned).collect();
    let before = all.len();
    for line in lines {
        if !all.contains(&line) {
            all.push(line);
        }
    }
    (all.len() > before).then(|| all.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_for_the_boot_grow_without_doubles() {
        let lines = |text| merged(text, ["a".to_owned(), "b".to_owned()].into_iter());
        assert_eq!(lines("").unwrap(), "a\nb\n");
        assert_eq!(lines("b\nc").unwrap(), "b\nc\na\n");
        assert_eq!(lines("a\nb\n"), None);
        let fix = Fix::Sysctl {
            name: "x.y".into(),
            value: "1".into(),
        };
        assert_eq!(sysctl_line(&fix).unwrap(), "x.y = 1");
        assert_eq!(module_line(&fix), None);
        assert_eq!(fix.to_string(), "set kernel parameter x.y to 1");
    }

    #[test]
    fn what_is_set_at_boot_is_set_last() {
        let name = Path::new(SYSCTLS).file_name().unwrap();
        for other in ["50-redhat.conf", "60-oracle.conf", "99-sysctl.conf"] {
            assert!(name > other, "{other}");
        }
    }

    #[test]
    fn what_the_host_refuses_is_told_and_the_rest_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&directory.path().join("changes")).unwrap();
        let fixes = [
            Fix::Sysctl {
                name: "no.such.thing".into(),
                value: "1".into(),
            },
            Fix::Module {
                name: "no-such-module".into(),
            },
        ];
        let done = mend(&fixes, &mut journal).unwrap();
        assert!(done.len() == 2 && done.iter().all(|(_, result)| result.is_err()));
    }

    #[test]
    fn what_is_set_now_is_set_at_boot_whatever_becomes_of_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut journal = Journal::open(&path("changes")).unwrap();
        let fixes = [
            Fix::Firewalld {
                networks: Vec::new(),
                ports: Vec::new(),
            },
            Fix::Sysctl {
                name: "x.y".into(),
                value: "1".into(),
            },
            Fix::Module { name: "m".into() },
        ];
        let (modules, none, sysctls) = (path("modules"), path("none/modules"), path("sysctls"));
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let last = |fix: &Fix, _: &mut Journal| {
            if fix.changes_network() {
                assert_eq!(read(&sysctls), "x.y = 1\n");
            }
            Ok::<(), ChangeError>(())
        };
        // The first list can't be written.
        let second = (sysctls.as_path(), sysctl_line as Line);
        let lists = [(none.as_path(), module_line as Line), second];
        assert!(mend_by(&fixes, lists, &mut journal, last).is_err());
        assert_eq!(read(&sysctls), "x.y = 1\n");
        let lists = [(modules.as_path(), module_line as Line), second];
        let done = mend_by(&fixes, lists, &mut journal, last).unwrap();
        assert!(done.len() == 3 && done.iter().all(|(_, result)| result.is_ok()));
        assert_eq!(read(&modules), "m\n");
    }
}
