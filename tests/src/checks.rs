//! What `gravity check` finds on a node that something is wrong with.
//!
//! In: this build's `gravity`. Out: an error where a trouble that was made is not
//! found by exactly its check, or one is found that nobody made; the node then
//! stays to be looked at.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use console::Console;
use event::Sink;
use serde::Deserialize;

use crate::file;
use crate::node::{self, Node};
use crate::registry::{component, tele};
use crate::scenario::Setup;

/// The program on the node.
pub(crate) const GRAVITY: &str = "/root/gravity";
/// The manifest that a node is checked against.
pub(crate) const MANIFEST: &str = "/root/app.yaml";
/// Before requirements of a profile.
const HEAD: &str = "\
metadata: {name: a, resourceVersion: 1.0.0}
nodeProfiles:
- name: node
  requirements: ";
/// Disks of test machines are what they are.
const OF_DISKS: &[&str] = &["disk-rate", "disk-latency"];

/// Makes a node of namespaces one without troubles that can be had here.
pub(crate) const GOOD: &str = "
    echo 'nameserver 10.99.0.254' > /etc/resolv.conf
    sysctl -qw net.ipv4.ip_forward=1
    mkdir -p /var/lib/test/state /var/lib/test/real /var/lib/test/mounted /var/lib/test/small";

/// A trouble.
struct Trouble {
    what: &'static str,
    /// How it is made and unmade, in a shell of the node.
    make: &'static str,
    unmake: &'static str,
    /// Requirements of the profile.
    requires: &'static str,
    /// More flags of `gravity check`.
    flags: &'static [&'static str],
    /// The checks that find it.
    found: &'static [&'static str],
}

const PLAIN: Trouble = Trouble {
    what: "",
    make: "",
    unmake: "",
    requires: "{}",
    flags: &["--quick"],
    found: &[],
};

const TROUBLES: &[Trouble] = &[
    Trouble {
        what: "a port that a program holds",
        make: "/root/gravity check --listen > /dev/null 2>&1 & sleep 1",
        unmake: "pkill -INT -f '^/root/gravity check --listen'",
        found: &["ports"],
        ..PLAIN
    },
    Trouble {
        what: "a directory that others may not enter",
        make: "chmod 744 /var/lib/test/state",
        unmake: "chmod 755 /var/lib/test/state",
        flags: &["--quick", "--state-dir=/var/lib/test/state/gravity"],
        found: &["permissions"],
        ..PLAIN
    },
    Trouble {
        what: "a directory in which others may put another state directory",
        make: "chmod 777 /var/lib/test/state",
        unmake: "chmod 755 /var/lib/test/state",
        flags: &["--quick", "--state-dir=/var/lib/test/state/gravity"],
        found: &["permissions"],
        ..PLAIN
    },
    Trouble {
        what: "a state directory on a noexec mount",
        make: "mount --bind /var/lib/test/real /var/lib/test/mounted; mount -o remount,bind,noexec /var/lib/test/mounted",
        unmake: "umount /var/lib/test/mounted",
        flags: &["--quick", "--state-dir=/var/lib/test/mounted/gravity"],
        found: &["mount-options"],
        ..PLAIN
    },
    Trouble {
        what: "a state directory behind a symbolic link",
        make: "ln -s /var/lib/test/real /var/lib/test/link",
        unmake: "rm /var/lib/test/link",
        flags: &["--quick", "--state-dir=/var/lib/test/link/gravity"],
        found: &["symlink"],
        ..PLAIN
    },
    Trouble {
        what: "a volume on another filesystem",
        requires: "{volumes: [{path: /var/lib/test/real, filesystems: [xfs]}]}",
        found: &["volume"],
        ..PLAIN
    },
    Trouble {
        what: "a volume that is not there",
        requires: "{volumes: [{path: /var/lib/test/none, createIfMissing: false}]}",
        found: &["volume"],
        ..PLAIN
    },
    Trouble {
        what: "too little space for a volume",
        requires: "{volumes: [{path: /var/lib/test/real, capacity: 900TB}]}",
        found: &["space"],
        ..PLAIN
    },
    Trouble {
        what: "too few inodes, on a filesystem in memory",
        make: "mount -t tmpfs -o size=8g,nr_inodes=1000 tmpfs /var/lib/test/small",
        unmake: "umount /var/lib/test/small",
        flags: &["--quick", "--state-dir=/var/lib/test/small/gravity"],
        found: &["inodes", "overlay"],
        ..PLAIN
    },
    Trouble {
        what: "forwarding that is turned off",
        make: "sysctl -qw net.ipv4.ip_forward=0",
        unmake: "sysctl -qw net.ipv4.ip_forward=1",
        found: &["sysctls"],
        ..PLAIN
    },
    Trouble {
        what: "a strict reverse path filter",
        make: "sysctl -qw net.ipv4.conf.all.rp_filter=1",
        unmake: "sysctl -qw net.ipv4.conf.all.rp_filter=0",
        found: &["sysctls"],
        ..PLAIN
    },
    Trouble {
        what: "no default route",
        make: "ip route save table main > /tmp/routes; ip route del default",
        unmake: "ip route flush table main; ip route restore < /tmp/routes",
        found: &["default-route"],
        ..PLAIN
    },
    Trouble {
        what: "a name server that pods don't reach",
        make: "cp /etc/resolv.conf /tmp/names; echo 'nameserver 127.0.0.1' > /etc/resolv.conf",
        unmake: "cat /tmp/names > /etc/resolv.conf",
        found: &["dns"],
        ..PLAIN
    },
    Trouble {
        what: "a name of 64 characters",
        make: "hostname > /tmp/name; hostname $(printf 'a%.0s' $(seq 64))",
        unmake: "hostname $(cat /tmp/name)",
        found: &["hostname"],
        ..PLAIN
    },
    Trouble {
        what: "no localhost",
        make: "cp /etc/hosts /tmp/hosts; sed /localhost/d /tmp/hosts > /etc/hosts",
        unmake: "cat /tmp/hosts > /etc/hosts",
        found: &["localhost"],
        ..PLAIN
    },
    Trouble {
        what: "a machine-id of zeros",
        make: "cp /etc/machine-id /tmp/id; printf '0%.0s' $(seq 32) > /etc/machine-id",
        unmake: "cat /tmp/id > /etc/machine-id",
        found: &["machine-id"],
        ..PLAIN
    },
    Trouble {
        what: "a proxy that would take what pods say",
        make: "echo 'HTTP_PROXY=http://10.99.0.254:3128' > /root/environment",
        unmake: "rm /root/environment",
        found: &["proxy"],
        ..PLAIN
    },
    Trouble {
        what: "a directory for temporary files that is not there",
        make: "echo TMPDIR=/none > /root/environment",
        unmake: "rm /root/environment",
        found: &["temp-dir"],
        ..PLAIN
    },
    Trouble {
        what: "no program that makes users",
        make: "mv /usr/sbin/useradd /root/useradd",
        unmake: "mv /root/useradd /usr/sbin/useradd",
        found: &["programs"],
        ..PLAIN
    },
    Trouble {
        what: "a kubectl of its own",
        make: "cp /bin/true /usr/local/bin/kubectl",
        unmake: "rm /usr/local/bin/kubectl",
        found: &["links"],
        ..PLAIN
    },
    Trouble {
        what: "a person with the service user's id",
        make: "useradd --uid=1000 --shell=/bin/bash person",
        unmake: "userdel person",
        found: &["service-user"],
        ..PLAIN
    },
    Trouble {
        what: "an address that the node has not",
        flags: &["--quick", "--advertise-addr=10.99.7.7"],
        found: &["address"],
        ..PLAIN
    },
    Trouble {
        what: "another Kubernetes",
        make: "cp /bin/sleep /root/kubelet; /root/kubelet 1000 > /dev/null 2>&1 &",
        unmake: "pkill -x kubelet",
        found: &["conflicts"],
        ..PLAIN
    },
    Trouble {
        what: "chains of another cluster's packet filter",
        make: "nft add table ip nat; nft add chain ip nat KUBE-SERVICES",
        unmake: "nft delete table ip nat",
        found: &["leftovers"],
        ..PLAIN
    },
    Trouble {
        what: "a device that is not there",
        requires: "{devices: [{path: '/dev/none*'}]}",
        found: &["device"],
        ..PLAIN
    },
    Trouble {
        what: "more processors than there are",
        requires: "{cpu: {min: 1000}}",
        found: &["cpu"],
        ..PLAIN
    },
    Trouble {
        what: "more memory than there is",
        requires: "{ram: {min: 100TB}}",
        found: &["ram"],
        ..PLAIN
    },
    Trouble {
        what: "another distribution",
        requires: "{os: [{name: rhel, versions: ['7.2']}]}",
        found: &["os"],
        ..PLAIN
    },
    Trouble {
        what: "a network of pods that is the node's own",
        make: "ip link add test9 type veth peer name test9p
               ip addr add 10.244.7.1/24 dev test9; ip link set test9 up",
        unmake: "ip link del test9",
        flags: &["--quick", "--advertise-addr=ADDRESS"],
        found: &["networks"],
        ..PLAIN
    },
    Trouble {
        what: "a firewall that forwards nothing",
        make: "nft add table ip t
               nft add chain ip t c '{ type filter hook forward priority 0; policy drop; }'",
        unmake: "nft delete table ip t",
        flags: &[],
        found: &["forwarding"],
        ..PLAIN
    },
    Trouble {
        what: "a custom check that fails",
        requires: "{customChecks: [{script: 'echo no >&2; exit 3'}]}",
        flags: &[],
        found: &["custom-check"],
        ..PLAIN
    },
    Trouble {
        what: "a custom check that hangs",
        requires: "{customChecks: [{script: 'sleep 1000'}]}",
        flags: &["--timeout=1"],
        found: &["custom-check"],
        ..PLAIN
    },
    Trouble {
        what: "a custom check that writes 100 MB and fails",
        requires: "{customChecks: [{script: 'head -c 100000000 /dev/zero; exit 1'}]}",
        flags: &[],
        found: &["custom-check"],
        ..PLAIN
    },
    Trouble {
        what: "a name server that knows every name",
        make: "cp /etc/resolv.conf /tmp/names
               printf '. {\\n bind 10.99.0.250\\n template IN A {\\n \
               answer \"{{ .Name }} 60 IN A 10.0.0.9\"\\n }\\n}\\n' > /tmp/Corefile
               ip addr add 10.99.0.250/32 dev eth0
               /root/coredns -conf /tmp/Corefile > /dev/null 2>&1 &
               printf 'search example.org\\nnameserver 10.99.0.250\\n' > /etc/resolv.conf; sleep 1",
        unmake: "pkill coredns; ip addr del 10.99.0.250/32 dev eth0
                 cat /tmp/names > /etc/resolv.conf",
        flags: &["--advertise-addr=ADDRESS"],
        found: &["wildcard-dns"],
        ..PLAIN
    },
];

/// What is read of `gravity check --output json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Report {
    pub(crate) findings: Vec<Finding>,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Finding {
    pub(crate) id: String,
    pub(crate) severity: String,
    pub(crate) title: String,
    pub(crate) measured: String,
}

impl Report {
    /// What `gravity check` says on a node with more flags.
    pub(crate) fn of(node: &Node, flags: &[&str]) -> Result<Self> {
        // Some troubles are of the environment.
        let script = "[ ! -e /root/environment ] || export $(cat /root/environment); exec \"$@\"";
        let words = ["sh", "-c", script, "sh", GRAVITY, "check", "--output=json"];
        let mut command = node.command(&[&words[..], flags, &[MANIFEST]].concat())?;
        let output = command.output().context("running gravity check")?;
        Self::parse(&output.stdout).with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            format!("reading the report; it said {said}")
        })
    }

    /// Reads what `gravity check --output=json` printed.
    pub(crate) fn parse(output: &[u8]) -> Result<Self> {
        // Events come before it.
        let mut lines = output.trim_ascii_end().rsplit(|byte| *byte == b'\n');
        Ok(serde_json::from_slice(lines.next().unwrap_or_default())?)
    }

    /// What is not as it should be, but for disks: those of test machines are
    /// what they are.
    pub(crate) fn troubles(self) -> Vec<Finding> {
        let mut troubles = self.all_troubles();
        troubles.retain(|finding| !OF_DISKS.contains(&finding.id.as_str()));
        troubles
    }

    /// What is not as it should be.
    pub(crate) fn all_troubles(self) -> Vec<Finding> {
        let mut troubles = self.findings;
        troubles.retain(|finding| finding.severity != "info");
        troubles
    }
}

/// Demands that troubles that are not usual are of exactly these checks.
pub(crate) fn demand(
    found: Vec<Finding>,
    usual: &[Finding],
    expected: &[&str],
    console: &Console,
) -> Result<()> {
    let is_usual = |finding: &Finding| {
        let mut usual = usual.iter();
        usual.any(|usual| usual.id == finding.id && usual.title == finding.title)
    };
    let mut more = found;
    more.retain(|finding| !is_usual(finding));
    for finding in &more {
        let Finding {
            id,
            severity,
            title,
            measured,
        } = finding;
        console.info(&format!("  {severity} {id}: {title}: {measured}"));
    }
    let ids: BTreeSet<_> = more.iter().map(|finding| finding.id.as_str()).collect();
    ensure!(
        ids == BTreeSet::from_iter(expected.iter().copied()),
        "{expected:?} should have found it, {ids:?} did"
    );
    Ok(())
}

/// Runs all of it on the new node `name`.
///
/// # Errors
/// At the first thing that is not as it should be.
pub fn run(setup: &Setup, name: &str, console: &Console) -> Result<()> {
    node::require_root()?;
    let setup = Setup {
        default_route: true,
        ..setup.clone()
    };
    let node = setup.create(name, console)?;
    node.copy(&tele()?.with_file_name("gravity"), GRAVITY)?;
    node.copy(&component("coredns")?, "/root/coredns")?;
    node.run(&["sh", "-ec", GOOD])?;
    let requires = |text: &str| {
        let manifest = file::cache()?.join("checks.yaml");
        file::write(&manifest, format!("{HEAD}{text}\n"))?;
        node.copy(&manifest, MANIFEST)
    };
    requires("{}")?;
    let usual = Report::of(&node, &[])?.troubles();
    let ids: BTreeSet<_> = usual.iter().map(|finding| finding.id.as_str()).collect();
    console.info(&format!("Without any trouble made, {ids:?} are found here"));
    for trouble in TROUBLES {
        console.step(trouble.what);
        requires(trouble.requires)?;
        let flags = trouble.flags.iter();
        let flags: Vec<_> = flags
            .map(|flag| flag.replace("ADDRESS", node.address()))
            .collect();
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        node.run(&["sh", "-ec", trouble.make])?;
        let found = Report::of(&node, &flags);
        node.run(&["sh", "-ec", trouble.unmake])?;
        demand(found?.troubles(), &usual, trouble.found, console)
            .with_context(|| trouble.what.to_owned())?;
    }
    requires("{}")?;
    let left = Report::of(&node, &["--quick"])?.troubles();
    ensure!(
        left.iter().all(|finding| usual.contains(finding)),
        "troubles are left: {left:?}"
    );
    node.delete()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{hosts, peers, vm};

    /// Where troubles that a check finds are made, by its id.
    fn made() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
        let here = TROUBLES.iter().flat_map(|trouble| trouble.found);
        let peers = peers::TROUBLES.iter().map(|(_, _, _, found)| found);
        let vm = vm::checks::TROUBLES.iter().flat_map(|trouble| trouble.4);
        let hosts = hosts::FOUND.iter().map(|id| (*id, "`hosts`"));
        let here = here.map(|id| (*id, "`checks`"));
        let both = &[peers::SAME, peers::NOBODY];
        let peers = peers.chain(both).map(|id| (*id, "`peers`"));
        let vm = vm.map(|id| (*id, "`vm checks`"));
        let mut made = BTreeMap::<_, BTreeSet<_>>::new();
        for (id, scenario) in here.chain(hosts).chain(peers).chain(vm) {
            made.entry(id).or_default().insert(scenario);
        }
        made
    }

    #[test]
    fn the_documentation_says_where_each_trouble_is_made() {
        let text = include_str!("../../docs/preflight.md");
        let (_, table) = text.split_once("## All checks").unwrap();
        let rows = table.lines().filter(|line| line.starts_with("| `"));
        let made = made();
        let mut known = BTreeSet::new();
        for row in rows {
            let cells: Vec<_> = row.split(" | ").collect();
            let id = cells[0].trim_start_matches("| `").trim_end_matches('`');
            let last = cells.last().unwrap().trim_end_matches(" |");
            let expected = made.get(id).map_or("stored facts".to_owned(), |scenarios| {
                Vec::from_iter(scenarios.iter().copied()).join(", ")
            });
            assert_eq!(last, expected, "{id}");
            known.insert(id);
        }
        let unknown: Vec<_> = made.keys().filter(|id| !known.contains(*id)).collect();
        assert!(unknown.is_empty(), "{unknown:?} are not checks");
    }
}
