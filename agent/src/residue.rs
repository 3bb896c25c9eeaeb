//! What Kubernetes leaves in the host's network: interfaces of pods and the
//! tables of packet filters, each by a name that only the planet uses.
//!
//! In: the planet's root filesystem, whose programs are used: a bare host may
//! have none. Out: they are gone; what was removed, and what can't be.

use std::path::Path;

use host::causes::causes;
use host::changes::{Left, Report};
use host::command::{Cmd, CommandError};

/// The bridge of pods and the overlay network's devices; the pods' own ends go
/// with their namespaces.
const INTERFACES: &[&str] = &["cni0", "flannel.1", "flannel-wg", "flannel-wg-v6"];

/// Tables of kube-proxy, flannel and the portmap plugin.
const TABLES: &[(&str, &str)] = &[
    ("ip", "kube-proxy"),
    ("ip6", "kube-proxy"),
    ("ip", "flannel-ipv4"),
    ("ip6", "flannel-ipv6"),
    ("inet", "cni_hostport"),
];

/// Removes what is there.
pub(crate) fn remove(rootfs: &Path) -> Report {
    let run = |program: &str, arguments: &[&str]| {
        let command = Cmd::new("chroot").arg(rootfs).arg(program);
        let ended = command.args(arguments).run();
        ended.map(|output| output.stdout)
    };
    let leader = format!("{}/32", spec::LEADER_ADDRESS);
    // Most often the planet has taken its address with it.
    drop(run("ip", &["address", "del", &leader, "dev", "lo"]));
    let is_there = |interface: &str| Path::new("/sys/class/net").join(interface).exists();
    remove_with(run, is_there)
}

/// [`remove`] with these ways to run programs and to look for an interface.
fn remove_with(
    run: impl Fn(&str, &[&str]) -> Result<String, CommandError>,
    is_there: impl Fn(&str) -> bool,
) -> Report {
    let mut report = Report::default();
    for interface in INTERFACES.iter().filter(|name| is_there(name)) {
        let removed = run("ip", &["link", "delete", interface]);
        note(&mut report, format!("interface {interface}"), removed);
    }
    let listed = match run("nft", &["list", "tables"]) {
        Ok(listed) => listed,
        Err(error) => {
            note(&mut report, "packet filter tables".into(), Err(error));
            return report;
        }
    };
    for (family, table) in TABLES {
        let what = format!("table {family} {table}");
        if listed.lines().any(|line| line == what) {
            let removed = run("nft", &["delete", "table", family, table]);
            note(&mut report, what, removed);
        }
    }
    report
}

fn note(report: &mut Report, what: String, removed: Result<String, CommandError>) {
    match removed {
        Ok(_) => report.removed.push(what),
        Err(error) => report.left.push(Left {
            what,
            why: causes(&error),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_removed_and_told_and_what_fails_is_left() {
        let run = |program: &str, arguments: &[&str]| match (program, arguments) {
            ("nft", ["list", "tables"]) => {
                Ok("table ip kube-proxy\ntable ip mine\ntable inet cni_hostport\n".into())
            }
            ("nft", ["delete", "table", "inet", ..]) => {
                let refused = Cmd::new("sh").args(["-c", "echo busy >&2; exit 1"]).run();
                refused.map(|output| output.stdout)
            }
            _ => Ok(String::new()),
        };
        let report = remove_with(run, |name| name == "cni0");
        assert_eq!(report.removed, ["interface cni0", "table ip kube-proxy"]);
        let [left] = report.left.as_slice() else {
            panic!("{report}")
        };
        assert_eq!(left.what, "table inet cni_hostport");
        assert!(left.why.contains("busy"), "{}", left.why);
        let text = report.to_string();
        assert!(text.starts_with("removed interface cni0\n"), "{text}");
    }
}
