//! A cluster of two machines under systemd: installed, joined, rebooted in order
//! and by the loss of power, removed.
//!
//! In: the sample. Out: how long each step took. Always holds: after each of them
//! the status says that all is well, and each machine serves the page.

use anyhow::Result;
use console::Console;

use super::Disk;
use super::member::{FLAVOR, Member, on_both, options};
use crate::scenario::{Setup, Timeline};

/// What a person sees of the service.
const LOOK: &str = "systemctl status gravity --no-pager --lines=5; systemd-cgls --no-pager \
                    /system.slice/gravity.service | head -40; \
                    journalctl -u gravity --no-pager --lines=8";

/// Runs all of it.
///
/// # Errors
/// At the first thing that is not as it should be.
pub fn run(setup: &Setup, console: &Console) -> Result<()> {
    let options = options(setup, console)?;
    let timeline = Timeline::new(console);
    let done = |what: &str| timeline.tell(what);
    let disk = Disk::make(console)?;
    let (mut first, mut second) = Member::boot_two(&disk, &options, console)?;
    let addresses = [first.address(), second.address()];
    done("two machines are up");

    let install = format!("{} {FLAVOR}", first.install());
    first.run(&install, console)?;
    first.wait_well(1, &addresses[..1])?;
    done("the first is a cluster");

    second.run(&second.join(&first), console)?;
    first.wait_well(2, &addresses)?;
    done("the second has joined");

    console.print(&first.must(LOOK)?);
    on_both(|| first.reboot(), || second.reboot())?;
    done("both have been rebooted");
    first.wait_well(2, &addresses)?;
    done("the cluster is back by itself");

    first.must("kubectl create configmap written --from-literal=before=power-cut")?;
    on_both(|| first.cut_power(), || second.cut_power())?;
    done("both have lost power and have it again");
    first.wait_well(2, &addresses)?;
    first.must("kubectl get configmap written")?;
    done("the cluster is back, with what was written before");

    for (member, left) in [(&mut second, 1), (&mut first, 0)] {
        member.leave(console)?;
        done(&format!("{left} nodes are left"));
    }
    Ok(())
}
