//! What happens to real machines, under a cluster that runs on one whose kernel has
//! no IPv6 and has AppArmor: the clock jumps, the network is gone, the host's firewall is
//! loaded anew, memory and disk run short, a disk is plugged in.
//!
//! In: the sample. Out: how long each took. Always holds: after each of them the
//! status says that all is well, the page is served and a write is answered.

use anyhow::{Result, ensure};
use console::Console;
use event::Sink;

use super::member::{FLAVOR, Member, options};
use super::{Disk, Kept, Options, PLUGGED_DISK};
use crate::scenario::{IMAGE, Setup, Timeline};

/// What happens, by which commands, what the status must say of it meanwhile, if
/// anything, and by which commands it is over.
const TROUBLES: &[(&str, &str, Option<&str>, &str)] = &[
    (
        "the clock jumps an hour ahead",
        "date --set='+1 hour'",
        None,
        "true",
    ),
    (
        "the clock jumps an hour back",
        "date --set='-1 hour'",
        None,
        "true",
    ),
    (
        "the network is gone for a minute",
        "link=$(ip -o -4 address | grep 10.98.0.1/ | awk '{print $2}')
         ip link set $link down; sleep 60; ip link set $link up
         until ip -4 address show $link | grep -q 10.98.0.1/; do sleep 1; done",
        None,
        "true",
    ),
    // Debian's configuration of it begins by removing all rules of the host.
    (
        "the host's nftables are loaded anew",
        "grep -q '^flush ruleset' /etc/nftables.conf && systemctl restart nftables &&
         timeout 60 sh -c 'until curl -sf -m 5 http://10.98.0.1:30080; do sleep 1; done'",
        None,
        "true",
    ),
    // Kubelet does not count what others than the planet take (docs/systemd.md), so
    // the status has nothing to say of it.
    (
        "memory runs short for a minute",
        "mkdir -p /run/hog && mount -t tmpfs -o size=100% hog /run/hog
         free=$(awk '/MemAvailable/ {print int($2 / 1024)}' /proc/meminfo)
         head -c $((free - 150))M /dev/zero > /run/hog/file; sleep 60",
        None,
        "umount /run/hog",
    ),
    (
        "a program takes memory until the kernel ends it",
        "! systemd-run --wait --quiet --property=OOMScoreAdjust=1000 tail /dev/zero",
        None,
        "true",
    ),
    // Kubelet wants a GiB to be free.
    (
        "the disk fills up",
        "fallocate -l $(( $(stat -f -c '%a * %S' /) - (500 << 20) )) /filler",
        Some("too little room on its disk (DiskPressure)"),
        "rm /filler",
    ),
];

/// AppArmor's profiles.
const PROFILES: &str = "sort /sys/kernel/security/apparmor/profiles";

/// Runs all of it.
///
/// # Errors
/// At the first thing that is not as it should be.
pub fn run(setup: &Setup, kept: &Kept, console: &Console) -> Result<()> {
    let options = Options {
        kernel: "ipv6.disable=1",
        ..options(setup, kept, console)?
    };
    let timeline = Timeline::new(console);
    let disk = Disk::make(console)?;
    let mut machine = Member::boot(1, &disk, &options, console)?;
    let addresses = [machine.address()];
    let host = machine
        .must("ls /proc/sys/net/ipv6 2>/dev/null; cat /sys/module/apparmor/parameters/enabled")?;
    ensure!(host.trim() == "Y", "IPv6 or no AppArmor: {host}");
    let profiles = machine.must(PROFILES)?;
    ensure!(profiles.contains(" (enforce)"), "it has {profiles:?}");
    let install = format!("{} {FLAVOR}", machine.install());
    machine.run(&install, console)?;
    machine.wait_well(1, &addresses)?;
    timeline.tell("the cluster is there");
    for (number, (what, begin, told, end)) in TROUBLES.iter().enumerate() {
        console.step(&format!("Now {what}"));
        machine.must(begin)?;
        if let Some(told) = told {
            machine.wait_told(told)?;
            timeline.tell(told);
        }
        machine.must(end)?;
        machine.wait_well(1, &addresses)?;
        machine.must(&format!("kubectl create configmap written-{number}"))?;
        timeline.tell(&format!("well again after {what}"));
    }
    machine.plug_disk()?;
    let plugged = format!("{IMAGE} exec -- dd if={PLUGGED_DISK} of=/dev/null bs=1M count=1");
    machine.must(&plugged)?;
    timeline.tell("the planet reads a disk that was plugged in");
    machine.leave(console)?;
    let after = machine.must(PROFILES)?;
    ensure!(
        after == profiles,
        "AppArmor had {profiles}, and has {after}"
    );
    machine.end();
    Ok(())
}
