//! A cluster on a host as administrators leave them: with firewalld, NetworkManager
//! and a strict umask, without IPv6, a machine-id, or programs in /tmp.
//!
//! In: this build's `gravity` and the sample. Out: an error where firewalld is not
//! found or mended, where the cluster doesn't work beside all of it, from another
//! node too, where NetworkManager takes interfaces of pods, or where the node is
//! not as it was after `gravity leave`; the nodes then stay to be looked at.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use console::{Console, render};
use event::Sink;

use crate::checks::{GOOD, GRAVITY, MANIFEST, Report, demand};
use crate::node::{self, Node, Options};
use crate::peers::Listener;
use crate::registry::tele;
use crate::scenario::{IMAGE, Setup, Timeline, check, run_visibly};
use crate::snapshot::{ALLOWED, Allowed, Snapshot};
use crate::{process, rootfs, sample};

/// What the host has beyond other nodes.
const PACKAGES: &[&str] = &["dbus", "firewalld", "network-manager"];
/// What firewalld, as it comes, is found by.
pub(crate) const FOUND: &[&str] = &["firewall", "forwarding", "peer-ports"];

/// firewalld with its defaults: all but SSH and DHCP is rejected.
const FIREWALLD: &str = "
    mkdir -p /run/dbus
    dbus-daemon --system --fork --nopidfile
    firewalld > /dev/null 2>&1
    until firewall-cmd --state > /dev/null 2>&1; do sleep 0.2; done";

/// Where /sys can be written, NetworkManager would wait for udev, which is not here.
/// A rule of udev has it leave all of veth alone; here only those of `gravity check`,
/// so that those of pods show what the file of the install does.
const NETWORK_MANAGER: &str = "
    printf '[keyfile]\\nunmanaged-devices=interface-name:gravity-check*\\n' \
        > /etc/NetworkManager/conf.d/10-check.conf
    unshare -m sh -c 'mount -o remount,bind,ro /sys; exec NetworkManager' > /dev/null 2>&1
    until nmcli general status > /dev/null 2>&1; do sleep 0.2; done";

/// An interface that is nobody's, and NetworkManager's therefore.
const LAN: &str = "
    ip link add lan9 type veth peer name lan9p
    ip link set lan9 up; ip link set lan9p up
    until nmcli -t -f DEVICE,STATE device | grep -q '^lan9:con'; do sleep 0.2; done";

/// No IPv6, no programs in /tmp, no machine-id.
const BARE: &str = "
    sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
    mount -t tmpfs -o noexec,nosuid,nodev tmpfs /tmp
    rm /etc/machine-id";

/// What daemons of the host write while they run.
const WRITTEN: &[Allowed] = &[
    Allowed {
        section: "files",
        key: "/var/lib/NetworkManager/*",
        reason: "NetworkManager keeps times and states of its own connections",
    },
    Allowed {
        section: "files",
        key: "/run/NetworkManager/*",
        reason: "see /var/lib/NetworkManager",
    },
    Allowed {
        section: "processes",
        key: "/usr/lib/NetworkManager/nm-dispatcher*",
        reason: "NetworkManager starts it for a while",
    },
];

/// How long deleted tables of packet filters may be away. The machine is busy.
const MENDED: Duration = Duration::from_secs(30);

/// Runs all of it on the new nodes `NAME-1` and `NAME-2`.
///
/// # Errors
/// At the first thing that is not as it should be.
pub fn run(setup: &Setup, name: &str, console: &Console) -> Result<()> {
    node::require_root()?;
    let image = setup.image(console)?;
    let gravity = tele()?.with_file_name("gravity");
    // With it firewalld is told of the application's ports.
    let manifest = setup.sample.join("app.yaml");
    let first = format!("{name}-1");
    node::delete(&first)?;
    let options = Options {
        root: rootfs::node_root_with(rootfs::SUITE, PACKAGES, console)?,
        default_route: true,
        ..node::usual(console)?
    };
    let timeline = Timeline::new(console);
    let first = Node::create(&first, &options)?;
    let second = setup.create(&format!("{name}-2"), console)?;
    for node in [&first, &second] {
        node.copy(&gravity, GRAVITY)?;
        node.copy(&manifest, MANIFEST)?;
    }
    first.run(&["sh", "-ec", GOOD])?;

    let mut listener = Listener::start(&second)?;
    let flags = [
        format!("--advertise-addr={}", first.address()),
        format!("--peer={}", second.address()),
        format!("--token={}", listener.token),
    ];
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let mut usual = Report::of(&first, &flags)?.troubles();
    // Its unit is enabled already.
    usual.retain(|finding| finding.id != "firewall");
    timeline.tell("two nodes are checked");
    first.run(&["sh", "-ec", FIREWALLD])?;
    first.run(&["sh", "-ec", NETWORK_MANAGER])?;
    first.run(&["sh", "-ec", BARE])?;
    first.copy(&image, IMAGE)?;
    let before = Snapshot::take(&first)?;
    timeline.tell("firewalld and NetworkManager run on the first");
    let mut bare = FOUND.to_vec();
    bare.push("machine-id");
    let found = Report::of(&first, &flags)?.troubles();
    demand(found, &usual, &bare, console).context("firewalld as it comes")?;
    let mended = [&flags[..], &["--autofix"]].concat();
    let left = Report::of(&first, &mended)?.troubles();
    demand(left, &usual, &["machine-id"], console).context("firewalld, mended")?;
    listener.end(&second)?;
    timeline.tell("firewalld was found, and mended");

    let address = format!("--advertise-addr={}", first.address());
    let install = format!("umask 077; exec {IMAGE} install {address} --flavor=one --accept-eula");
    run_visibly(&mut first.command(&["sh", "-c", &install])?)?;
    let url = check(&first)?;
    let page = second.text(&["curl", "-sS", "--fail", "-m", "20", &url])?;
    ensure!(
        page == sample::PAGE,
        "{url} serves the other node no page: {page}"
    );
    timeline.tell("the cluster is there, seen from both");
    mends_packet_filters(&first, &second, &url)?;
    timeline.tell("tables of the packet filter were deleted, and are there again");
    first.run(&["sh", "-ec", LAN])?;
    let devices = devices(&first)?;
    first.run(&["ip", "link", "delete", "lan9"])?;
    console.info(&format!("NetworkManager says {devices}"));
    leaves_alone(&devices)?;

    run_visibly(&mut first.command(&[IMAGE, "leave", "--force", "--confirm"])?)?;
    let allowed = [ALLOWED, WRITTEN].concat();
    let mut left = Vec::new();
    process::wait_until(Duration::from_secs(20), || {
        left = match Snapshot::take(&first) {
            Ok(after) => before.differences(&after, &allowed),
            Err(error) => vec![render::sanitize(&format!("{error:#}"))],
        };
        left.is_empty()
    });
    ensure!(
        left.is_empty(),
        "`leave` left {} differences:\n{}",
        left.len(),
        left.join("\n")
    );
    let zones = first.text(&["firewall-cmd", "--get-zones"])?;
    ensure!(
        zones.contains("public") && !zones.contains("gravity"),
        "firewalld still has its zone: {zones}"
    );
    timeline.tell("the node is as it was");
    second.delete()?;
    first.delete()
}

/// Deletes the cluster's tables, as `nft flush ruleset` does with all there are; firewalld
/// would not make its own anew. They come back, and the page with them.
fn mends_packet_filters(first: &Node, second: &Node, url: &str) -> Result<()> {
    let tables = ["kube-proxy", "flannel-ipv4"];
    for table in tables {
        first.run(&["nft", "delete", "table", "ip", table])?;
    }
    let mended = process::wait_until(MENDED, || {
        let listed = first.text(&["nft", "list", "tables"]).unwrap_or_default();
        let curl = ["curl", "-sS", "--fail", "-m", "2", url];
        tables.iter().all(|table| listed.contains(table)) && second.text(&curl).is_ok()
    });
    ensure!(
        mended,
        "{MENDED:?} after tables of packet filters were deleted there is no page"
    );
    Ok(())
}

/// What NetworkManager says of interfaces, `NAME:STATE` each.
fn devices(node: &Node) -> Result<String> {
    let said = node.text(&["nmcli", "-t", "-f", "DEVICE,STATE", "device"])?;
    Ok(render::sanitize(
        &said.lines().collect::<Vec<_>>().join(", "),
    ))
}

/// Fails unless NetworkManager leaves alone what is ours, all of which is there, and
/// has the rest.
fn leaves_alone(devices: &str) -> Result<()> {
    let states = || devices.split(", ").filter_map(|line| line.split_once(':'));
    for ours in ["cni0", "flannel.1", "veth"] {
        let mut own = states()
            .filter(|(name, _)| name.starts_with(ours))
            .peekable();
        ensure!(own.peek().is_some(), "there is no {ours}: {devices}");
        ensure!(
            own.all(|(_, state)| state == "unmanaged"),
            "NetworkManager has taken {ours}: {devices}"
        );
    }
    ensure!(
        states().any(|(name, state)| name == "lan9" && state.starts_with("con")),
        "NetworkManager manages nothing, so this shows nothing: {devices}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_of_pods_have_to_be_there_and_left_alone() {
        let good = "eth0:connected (externally), lan9:connecting (x), cni0:unmanaged, \
                    flannel.1:unmanaged, veth01:unmanaged, veth02:unmanaged";
        leaves_alone(good).unwrap();
        for (from, to) in [
            ("veth02:unmanaged", "veth02:connecting (x)"),
            ("cni0:unmanaged", "lo:unmanaged"),
            ("lan9:connecting (x)", "lan9:unmanaged"),
        ] {
            assert!(leaves_alone(&good.replace(from, to)).is_err(), "{to}");
        }
    }
}
