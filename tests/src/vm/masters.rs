//! Three machines that are masters, one of which never comes back.
//!
//! In: the sample, whose flavor of three nodes has three masters. Out: how long each
//! step took. Always holds: the other two go on, serve the page and take writes, and
//! all is well when the lost one was removed.

use anyhow::Result;
use console::Console;

use super::member::{Member, options};
use super::{Disk, Kept, Options};
use crate::masters::MASTER;
use crate::scenario::{Setup, Timeline};

/// Memory of each, in MiB.
const MEMORY: u32 = 3072;
/// What the install says when others may join.
const WAITS: &str = "gravity join";

/// What is written when one is gone.
const WRITTEN: &str = "configmap written-by-two";

/// Runs all of it.
///
/// # Errors
/// At the first thing that is not as it should be.
pub fn run(setup: &Setup, kept: &Kept, console: &Console) -> Result<()> {
    let options = Options {
        memory: MEMORY,
        ..options(setup, kept, console)?
    };
    let timeline = Timeline::new(console);
    let done = |what: &str| timeline.tell(what);
    let disk = Disk::make(console)?;
    let [mut first, mut second, mut third] = Member::boot_first(&disk, &options, console)?;
    let addresses = [first.address(), second.address(), third.address()];
    done("three machines are up");

    let install = format!("{} --flavor=three --accept-eula", first.install());
    first.begin(&install, (1, WAITS), None)?;
    done("the first waits for others");
    for member in [&mut second, &mut third] {
        let join = member.join_as(MASTER, &mut first)?;
        member.run(&join, console)?;
        done("another one has joined");
    }
    first.finish()?;
    first.wait_well(3, &addresses)?;
    done("three masters are a cluster");

    let lost = first.name();
    first.end();
    second.wait_told("not ready")?;
    done("the first has no power any more, and the status says so");
    // A write that fails may have been done.
    second.must(&format!(
        "until kubectl create {WRITTEN} || kubectl get {WRITTEN}; do sleep 2; done"
    ))?;
    done("a write is answered");
    second.run(&format!("remove {lost} --force --confirm"), console)?;
    second.wait_well(2, &addresses[1..])?;
    second.must(&format!("kubectl get {WRITTEN}"))?;
    done("it is removed, and all is well");

    for member in [&mut third, &mut second] {
        member.leave(console)?;
    }
    done("no node is left");
    third.end();
    second.end();
    Ok(())
}
