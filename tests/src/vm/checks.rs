//! What `gravity check` finds in a machine of its own: troubles of the kernel
//! and of disks, which nodes in namespaces can't have, and what it mends.
//!
//! In: this build's `gravity`. Out: an error where a trouble is not found by
//! exactly its checks, where what was mended does not last over a reboot, or
//! where something of it stays after `gravity leave`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use console::Console;
use event::Sink;

use super::{Disk, Kept, Machine, Options, SECOND_DISK, SLOW_DISK};
use crate::checks::{Report, demand};
use crate::registry::tele;
use crate::snapshot;

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// How long one command may take, under emulation with busy cores.
const PATIENCE: Duration = Duration::from_secs(300);
/// The program in the machine.
const GRAVITY: &str = "/root/gravity";
/// What it is checked against, in the machine.
const MANIFEST: &str = "/root/app.yaml";

/// A trouble: what it is, how it is made and unmade, flags of `gravity check`,
/// the checks that find it.
pub(crate) const TROUBLES: &[(&str, &str, &str, &str, &[&str])] = &[
    (
        "a kernel module that is not there",
        "mv /lib/modules/$(uname -r)/kernel/net/netfilter/nft_numgen.ko* /root; depmod",
        "mv /root/nft_numgen.ko* /lib/modules/$(uname -r)/kernel/net/netfilter; depmod",
        "--quick",
        &["kernel-modules"],
    ),
    (
        "swap",
        "dd if=/dev/zero of=/root/swap bs=1M count=64 status=none; chmod 600 /root/swap
         mkswap -q /root/swap; swapon /root/swap",
        "swapoff /root/swap; rm /root/swap",
        "--quick",
        &["swap"],
    ),
    (
        "a slow disk",
        "mkfs.ext4 -q -E nodiscard DISK; mkdir -p /srv/slow; mount DISK /srv/slow",
        "umount /srv/slow; rmdir /srv/slow",
        "--state-dir=/srv/slow/gravity",
        &["disk-latency", "disk-rate"],
    ),
];

/// What was mended: parameters at their wanted values.
const MENDED: &str = "
    test $(sysctl -n net.ipv4.ip_forward) = 1
    test $(sysctl -n net.ipv4.conf.all.rp_filter) != 1
    test $(sysctl -n net.bridge.bridge-nf-call-iptables) = 1
    grep -q '^br_netfilter ' /proc/modules";

/// What a machine is like: entries of the filesystem with mode and owner, files of
/// /etc by content and others by size, parameters. Serial ports are slow,
/// so what comes from packages is left out.
const SNAPSHOT: &str = "
    find / -xdev \\( -path /tmp -o -path /var/log -o -path /var/tmp -o -path /var/lib/dpkg \\
        -o -path /var/lib/systemd -o -path /root -o -path /boot -o -path /usr/share \\
        -o -path /usr/bin -o -path /usr/sbin -o -path /usr/lib \\) \\
        -prune -o -type f -printf 'file %p %m %U:%G %s\\n' -o -printf 'entry %p %m %U:%G %l\\n'
    find /etc -xdev -type f -exec sha256sum {} + | sed 's/^\\([^ ]*\\) *\\(.*\\)/content \\2 \\1/'
    sysctl -a 2>/dev/null | grep -E '^(net.ipv4.(ip_forward|conf.all)|net.bridge|fs.inotify|\
vm.(overcommit_memory|panic_on_oom)|kernel.(panic|keys))' | sed 's/^\\([^ ]*\\) = /sysctl \\1 /'";

/// What stays after `gravity leave` beside what may on any node
/// ([`snapshot::ALLOWED`]), and why: br_netfilter stays loaded, with its parameters, as
/// others may use it by then.
const ALLOWED: &[&str] = &["sysctl net.bridge"];

/// Runs all of it.
///
/// # Errors
/// At the first thing that is not as it should be.
pub fn run(kept: &Kept, console: &Console) -> Result<()> {
    let gravity = tele()?.with_file_name("gravity");
    let size = fs::metadata(&gravity)
        .with_context(|| gravity.display().to_string())?
        .len();
    let options = Options {
        memory: 2048,
        slow_disk: true,
        kept: Some(kept.clone()),
        ..Options::of_node(gravity, LIMIT)
    };
    let mut machine = Machine::boot(&Disk::make(console)?, &options, console)?;
    machine.must(
        &format!(
            "head -c {size} {SECOND_DISK} > {GRAVITY}; chmod 755 {GRAVITY}
             printf 'metadata: {{name: a, resourceVersion: 1.0.0}}\\n' > {MANIFEST}
             printf 'nodeProfiles: [{{name: node}}]\\n' >> {MANIFEST}"
        ),
        PATIENCE,
    )?;
    let usual = troubles(&mut machine, "--quick")?;
    let ids: BTreeSet<_> = usual.iter().map(|finding| finding.id.as_str()).collect();
    console.info(&format!("A fresh machine has {ids:?}"));
    for (what, make, unmake, flags, found) in TROUBLES {
        console.step(what);
        let script = |text: &str| format!("set -e; {}", text.replace("DISK", SLOW_DISK));
        machine.must(&script(make), PATIENCE)?;
        let troubles = troubles(&mut machine, flags)?;
        machine.must(&script(unmake), PATIENCE)?;
        demand(troubles, &usual, found, console).with_context(|| (*what).to_owned())?;
    }
    mend(&mut machine, console)?;
    machine.end();
    Ok(())
}

/// What one `gravity check` with `flags` finds.
fn troubles(machine: &mut Machine, flags: &str) -> Result<Vec<crate::checks::Finding>> {
    let command = format!("{GRAVITY} check --output=json {flags} {MANIFEST} 2>/root/said");
    let (_, output) = machine.run(&command, PATIENCE, &mut |_| {})?;
    let report = Report::parse(output.as_bytes());
    let report = report.with_context(|| format!("{command} printed {output}"))?;
    // What the disks of test machines do is judged on the slow one alone.
    let slow = flags.contains("slow");
    Ok(match slow {
        true => report.all_troubles(),
        false => report.troubles(),
    })
}

/// `--autofix`, a reboot, and `leave`.
fn mend(machine: &mut Machine, console: &Console) -> Result<()> {
    console.step("Mending parameters and modules of the kernel");
    machine.must(
        "sysctl -qw net.ipv4.ip_forward=0; sysctl -qw net.ipv4.conf.all.rp_filter=1
         printf 'net.ipv4.conf.all.rp_filter=1\\n' > /etc/sysctl.d/10-strict.conf",
        PATIENCE,
    )?;
    let before = snapshot(machine)?;
    let found = troubles(machine, "--quick")?;
    ensure!(
        found.iter().any(|finding| finding.id == "sysctls"),
        "nothing has to be mended: {found:?}"
    );
    let fix = format!("{GRAVITY} check --quick --autofix {MANIFEST}");
    let (_, said) = machine.run(&fix, PATIENCE, &mut |_| {})?;
    let mended = format!("set -e; {MENDED}");
    machine.must(&mended, PATIENCE).with_context(|| said)?;
    let found = troubles(machine, "--quick")?;
    ensure!(
        !found.iter().any(|finding| finding.id == "sysctls"),
        "it is not mended: {found:?}"
    );
    console.step("Rebooting");
    machine.reboot(PATIENCE)?;
    machine
        .must(&mended, PATIENCE)
        .context("after a reboot nothing is mended")?;
    console.step("./gravity leave");
    machine.must(&format!("{GRAVITY} leave --force --confirm"), PATIENCE)?;
    is_as_before(machine, &before)?;
    console.info("After `leave` the machine is as it was");
    Ok(())
}

/// Fails when the machine is not as before.
pub(super) fn is_as_before(machine: &mut Machine, before: &BTreeMap<String, String>) -> Result<()> {
    let left = differences(before, &snapshot(machine)?);
    ensure!(left.is_empty(), "`leave` left\n{}", left.join("\n"));
    Ok(())
}

/// What the machine is like, by kind and name.
pub(super) fn snapshot(machine: &mut Machine) -> Result<BTreeMap<String, String>> {
    let lines = machine.must(SNAPSHOT, PATIENCE)?;
    let entry = |line: &str| {
        let (kind, rest) = line.split_once(' ')?;
        let (name, value) = rest.split_once(' ')?;
        Some((format!("{kind} {name}"), value.to_owned()))
    };
    Ok(lines.lines().filter_map(entry).collect())
}

/// What differs and may not.
fn differences(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let differ = names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name) && !may_differ(name));
    differ
        .map(|name| format!("{name}: {:?} and {:?}", before.get(name), after.get(name)))
        .collect()
}

/// Whether it is on a list of what may.
fn may_differ(name: &str) -> bool {
    let path = name.split_once(' ').map_or("", |(_, path)| path);
    let listed = snapshot::ALLOWED.iter();
    ALLOWED.iter().any(|prefix| name.starts_with(prefix))
        || listed
            .filter(|allowed| allowed.section == "files")
            .any(|allowed| allowed.key == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_told_but_for_what_may() {
        let state = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            BTreeMap::from_iter(pairs.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())))
        };
        let before = state(&[("file /a", "1"), ("sysctl net.bridge.x", "1")]);
        assert!(differences(&before, &before).is_empty());
        let after = state(&[
            ("file /a", "2"),
            ("file /b", "1"),
            ("file /etc/passwd-", "1"),
            ("content /etc/passwd-", "1"),
        ]);
        assert_eq!(differences(&before, &after).len(), 2);
    }
}
