//! Power that real machines lose at random moments: one that installs, one whose
//! cluster takes writes, one that joins.
//!
//! In: the sample, how often, a seed. Out: a line a cut. A cut ends QEMU's processors
//! in the middle of what they do, and boots the machine anew; what it had not synced
//! is lost. Always holds after that, and after `gravity resume` where an operation was
//! cut off: the status says that all is well, the page is served, and no write is lost
//! that was answered.

use std::time::Duration;

use anyhow::{Result, ensure};
use console::Console;

use super::Disk;
use super::member::{FLAVOR, Member, options};
use crate::scenario::{IMAGE, Setup, Timeline};

/// What an operation says, in the machine.
const SAID: &str = "/root/operation.log";
/// Numbers of writes that were answered, each synced, in the machine.
const ANSWERED: &str = "/root/answered";
/// How many of an operation's records a cut may wait for: about as many as it has.
const RECORDS: u32 = 24;
/// How long a cut may wait after that.
const AFTER: Duration = Duration::from_secs(5);
/// How long a cluster that writes runs before a cut, at most.
const RUN: Duration = Duration::from_secs(20);

/// Runs all of it, with as many cuts of each kind.
///
/// # Errors
/// At the first cut that ends badly.
pub fn run(setup: &Setup, cuts: u32, seed: Option<u64>, console: &Console) -> Result<()> {
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    console.print(&format!("The seed is {seed}"));
    let mut random = fastrand::Rng::with_seed(seed);
    let options = options(setup, console)?;
    let timeline = Timeline::new(console);
    let disk = Disk::make(console)?;
    let (mut first, mut second) = Member::boot_two(&disk, &options, console)?;
    let addresses = [first.address(), second.address()];
    timeline.tell("two machines are up");

    let install = format!("{} {FLAVOR}", first.install());
    for cut in 1..=cuts {
        let how = cut_off(&mut first, &install, &mut random, console)?;
        first.wait_well(1, &addresses[..1])?;
        timeline.tell(&format!("install: {how}"));
        if cut < cuts {
            first.leave(console)?;
        }
    }
    for _ in 0..cuts {
        let after = RUN.mul_f64(random.f64());
        begin_writes(&mut first)?;
        std::thread::sleep(after);
        first.cut_power()?;
        first.wait_well(1, &addresses[..1])?;
        let there = all_there(&mut first)?;
        timeline.tell(&format!(
            "running: {there} writes had been answered, all are there"
        ));
    }
    let join = second.join(&first);
    for _ in 0..cuts {
        let how = cut_off(&mut second, &join, &mut random, console)?;
        first.wait_well(2, &addresses)?;
        timeline.tell(&format!("join: {how}"));
        second.leave(console)?;
        first.wait_well(1, &addresses[..1])?;
    }
    first.leave(console)
}

/// Begins an operation, cuts the power at a random moment of it, and does what a user
/// does then. Says what that was.
fn cut_off(
    member: &mut Member,
    arguments: &str,
    random: &mut fastrand::Rng,
    console: &Console,
) -> Result<String> {
    let (records, after) = (random.u32(..RECORDS), AFTER.mul_f64(random.f64()));
    // One that ends before is done, or has failed, which shows later.
    member.must(&format!(
        "setsid sh -c '{IMAGE} {arguments}; echo ended' >{SAID} 2>&1 </dev/null &
         until [ $(grep -c ' completed: ' {SAID}) -ge {records} ] || grep -q ^ended {SAID}; do
             sleep 0.2
         done
         sleep {}",
        after.as_secs_f64()
    ))?;
    let last = member.must(&format!("tail -n 1 {SAID}"))?;
    console.print(last.trim_end());
    member.cut_power()?;
    let (code, said) = member.said("resume")?;
    let how = if said.contains("no operation was found") {
        member.run(arguments, console)?;
        "begun anew"
    } else {
        ensure!(code == 0, "exit code {code}: {said}");
        match said.contains("operation is complete") {
            true => "it was done",
            false => "resumed",
        }
    };
    Ok(format!("cut after {records} records, {how}"))
}

/// Begins to make one object after the other, and waits for the first answer.
fn begin_writes(member: &mut Member) -> Result<()> {
    let script = format!(
        "n=$(wc -l < {ANSWERED}); while true; do n=$((n+1)); \
         kubectl create configmap write-$n && echo $n >> {ANSWERED} && sync {ANSWERED}; done"
    );
    member
        .must(&format!(
            "touch {ANSWERED}; before=$(wc -l < {ANSWERED})
             setsid sh -c '{script}' >/dev/null 2>&1 </dev/null &
             until [ $(wc -l < {ANSWERED}) -gt $before ]; do sleep 0.2; done"
        ))
        .map(drop)
}

/// Fails when a write that was answered is lost. Returns how many were.
fn all_there(member: &mut Member) -> Result<usize> {
    let answered = member.must(&format!("cat {ANSWERED}"))?;
    let names = member.must("kubectl get configmaps --output=name")?;
    let there: Vec<_> = names
        .lines()
        .filter_map(|line| line.trim().strip_prefix("configmap/write-"))
        .collect();
    let answered: Vec<_> = answered.lines().map(str::trim).collect();
    let lost: Vec<_> = answered
        .iter()
        .filter(|number| !there.contains(number))
        .collect();
    ensure!(
        lost.is_empty(),
        "writes that were answered are lost: {lost:?}"
    );
    ensure!(!answered.is_empty(), "nothing was written");
    Ok(answered.len())
}
