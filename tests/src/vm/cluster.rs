//! A cluster of two machines under systemd: installed, joined, cut into two by network
//! devices that go away, rebooted in order and by the loss of power, removed.
//!
//! In: the sample. Out: how long each step took. Always holds: after each of them
//! the status says that all is well, and each machine serves the page.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use console::Console;

use super::member::{FLAVOR, Member, on_both, options};
use super::{Disk, Kept};
use crate::scenario::{Setup, Timeline};

/// What a person sees of the service.
const LOOK: &str = "systemctl status gravity --no-pager --lines=5; systemd-cgls --no-pager \
                    /system.slice/gravity.service | head -40; \
                    journalctl -u gravity --no-pager --lines=8";

/// How long network devices are away.
const AWAY: Duration = Duration::from_secs(60);

/// Runs all of it.
///
/// # Errors
/// At the first thing that is not as it should be.
pub fn run(setup: &Setup, kept: &Kept, console: &Console) -> Result<()> {
    let options = options(setup, kept, console)?;
    let timeline = Timeline::new(console);
    let done = |what: &str| timeline.tell(what);
    let disk = Disk::make(console)?;
    let [mut first, mut second] = Member::boot_first(&disk, &options, console)?;
    let addresses = [first.address(), second.address()];
    done("two machines are up");

    let install = format!("{} {FLAVOR}", first.install());
    first.run(&install, console)?;
    first.wait_well(1, &addresses[..1])?;
    done("the first is a cluster");

    let join = second.join(&mut first)?;
    second.run(&join, console)?;
    first.wait_well(2, &addresses)?;
    done("the second has joined");

    console.print(&first.must(LOOK)?);
    lose_links([&mut first, &mut second])?;
    first.wait_well(2, &addresses)?;
    done("well again after the network devices of both were away for a minute");

    first.must("kubectl create configmap written --from-literal=before=reboot")?;
    on_both(|| first.reboot(), || second.reboot())?;
    done("both have been rebooted");
    first.wait_well(2, &addresses)?;
    first.must("kubectl get configmap written && kubectl create configmap after-reboot")?;
    done("the cluster is back by itself, with what was written before");

    on_both(|| first.cut_power(), || second.cut_power())?;
    done("both have lost power and have it again");
    first.wait_well(2, &addresses)?;
    first.must("kubectl get configmap written after-reboot")?;
    done("the cluster is back, with what was written before");

    for (member, left) in [(&mut second, 1), (&mut first, 0)] {
        member.leave(console)?;
        done(&format!("{left} nodes are left"));
    }
    first.end();
    second.end();
    Ok(())
}

/// Takes away the devices by which they reach each other for a minute. flannel's
/// interface is made on that device and goes with it, so a node does not reach pods of
/// the other one until both are there again.
fn lose_links(mut members: [&mut Member; 2]) -> Result<()> {
    let pod = members[0].must(
        "kubectl get pods -l app=web --field-selector=status.phase=Running \
             -o jsonpath='{.items[0].spec.nodeName} {.items[0].status.podIP}'",
    )?;
    let (node, address) = pod.trim().split_once(' ').context("no pod runs")?;
    let other = usize::from(node == members[0].name());
    let fetch = format!("curl -s -m 5 -o /dev/null http://{address}:8080/");
    let reach = format!("until {fetch}; do sleep 1; done");
    members[other].must(&reach)?;

    let [first, second] = &mut members;
    on_both(|| first.unplug_link(), || second.unplug_link())?;
    let reached = members[other].must(&format!("{fetch} && echo reached; true"))?;
    ensure!(
        reached.trim().is_empty(),
        "a pod was reached without a link"
    );
    thread::sleep(AWAY);

    let [first, second] = &mut members;
    on_both(|| first.plug_link(), || second.plug_link())?;
    members[other].must(&reach).map(drop)
}
