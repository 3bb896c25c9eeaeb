//! Power that real machines lose at random moments: one that installs, one whose
//! cluster takes writes, one that joins.
//!
//! In: the sample, how often, a seed. Out: a line a cut, and their count. A cut kills
//! QEMU in the middle of what it does and boots the machine anew
//! ([`super::Machine::cut_power`] says what is lost). Always holds after that, and after
//! `gravity resume` where an operation was cut off: the status says that all is well,
//! the page is served, and no write is lost that was answered.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use console::Console;

use super::member::{FLAVOR, Member, options};
use super::{Disk, Kept, Options, SAID};
use crate::scenario::{Setup, Timeline};

/// Numbers of writes that were answered, each synced, in the machine.
const ANSWERED: &str = "/root/answered";
/// What an operation says of each of its records.
const RECORD: &str = " completed: ";
/// How many of them a cut may wait for: about as many as there are.
const RECORDS: u32 = 24;
/// How long a cut may wait after that.
const AFTER: Duration = Duration::from_secs(5);
/// How long a cluster that writes runs before a cut, at most.
const RUN: Duration = Duration::from_secs(20);
/// How long machines live beside the cuts, and for one cut of each kind.
const LIMIT: Duration = Duration::from_secs(3600);
const LIMIT_OF_CUT: Duration = Duration::from_secs(3600);

/// In what power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A machine that installs
    Install,
    /// A cluster that takes writes
    Running,
    /// A machine that joins
    Join,
}

/// How often, and when.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Cuts {
    /// How often power is cut in an install, in a cluster that runs, in a join
    #[arg(long, value_name = "N", default_value_t = 1)]
    cuts: u32,
    /// Cut power only there
    #[arg(long, value_name = "KIND")]
    only: Option<Kind>,
    /// What the moments of the cuts follow from; another one each time otherwise
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl Cuts {
    fn has(self, kind: Kind) -> bool {
        self.only.is_none_or(|only| only == kind)
    }
}

/// Runs the chosen kinds, with as many cuts of each. Says whether all ended well.
///
/// # Errors
/// When a machine does not boot, or what is not disturbed fails.
pub fn run(setup: &Setup, kept: &Kept, cuts: Cuts, console: &Console) -> Result<bool> {
    let seed = cuts.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    console.print(&format!("The seed is {seed}"));
    let options = Options {
        limit: LIMIT + LIMIT_OF_CUT * cuts.cuts,
        ..options(setup, kept, console)?
    };
    let disk = Disk::make(console)?;
    let boot = |number| {
        let mut member = Member::boot(number, &disk, &options, console)?;
        // Where each install and join begins.
        member.freeze()?;
        anyhow::Ok(member)
    };
    let mut power = Power {
        first: boot(1)?,
        state: State::Bare,
        random: fastrand::Rng::with_seed(seed),
        timeline: Timeline::new(console),
        console,
        kept,
        struck: 0,
        well: 0,
    };
    let each = || 0..cuts.cuts;
    if cuts.has(Kind::Install) {
        each().try_for_each(|_| power.install())?;
    }
    if cuts.has(Kind::Running) {
        each().try_for_each(|_| power.running())?;
    }
    if cuts.has(Kind::Join) {
        let mut second = boot(2)?;
        each().try_for_each(|_| power.join(&mut second))?;
        second.end();
    }
    let Power { struck, well, .. } = power;
    power.first.end();
    console.print(&format!("{well} of {struck} power cuts ended well"));
    Ok(well == struck)
}

/// What the first machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// As it was frozen.
    Bare,
    /// A cluster in which all is well.
    Cluster,
    /// Anything: a cut may have ended badly.
    Unknown,
}

struct Power<'a> {
    first: Member,
    state: State,
    random: fastrand::Rng,
    timeline: Timeline<'a>,
    console: &'a Console,
    kept: &'a Kept,
    struck: u32,
    well: u32,
}

impl Power<'_> {
    /// Tells how a cut ended, and keeps what the machines are like after a bad end.
    fn tell(&mut self, kind: &str, ended: Result<String>, second: Option<&mut Member>) {
        self.struck += 1;
        if ended.is_err() {
            self.first.keep();
            if let Some(second) = second {
                second.keep();
            }
        }
        match self.kept.tell(ended) {
            Ok(how) => {
                self.well += 1;
                self.timeline.tell(&format!("ok {kind}: {how}"));
            }
            Err(error) => self.timeline.tell(&format!("FAILED {kind}: {error:#}")),
        }
    }

    fn arguments(&self) -> String {
        format!("{} {FLAVOR}", self.first.install())
    }

    fn become_bare(&mut self) -> Result<()> {
        if self.state != State::Bare {
            self.first.restore()?;
            self.state = State::Bare;
        }
        Ok(())
    }

    fn become_cluster(&mut self) -> Result<()> {
        if self.state != State::Cluster {
            self.become_bare()?;
            self.state = State::Unknown;
            let install = self.arguments();
            self.first.run(&install, self.console)?;
            self.wait_alone()?;
            self.state = State::Cluster;
        }
        Ok(())
    }

    /// Waits until all is well with the first machine alone.
    fn wait_alone(&mut self) -> Result<()> {
        let addresses = [self.first.address()];
        self.first.wait_well(1, &addresses)
    }

    /// Does what may end badly.
    fn strike(&mut self, cut: impl FnOnce(&mut Self) -> Result<String>) -> Result<String> {
        self.state = State::Unknown;
        let ended = cut(self);
        if ended.is_ok() {
            self.state = State::Cluster;
        }
        ended
    }

    fn install(&mut self) -> Result<()> {
        self.become_bare()?;
        let arguments = self.arguments();
        let ended = self.strike(|power| {
            let how = cut_off(
                &mut power.first,
                &arguments,
                &mut power.random,
                power.console,
            )?;
            power.wait_alone()?;
            Ok(how)
        });
        self.tell("install", ended, None);
        Ok(())
    }

    fn running(&mut self) -> Result<()> {
        self.become_cluster()?;
        let after = RUN.mul_f64(self.random.f64());
        let ended = self.strike(|power| {
            begin_writes(&mut power.first)?;
            thread::sleep(after);
            power.first.cut_power()?;
            power.wait_alone()?;
            let there = all_there(&mut power.first)?;
            Ok(format!("all {there} writes that were answered are there"))
        });
        self.tell("running", ended, None);
        Ok(())
    }

    fn join(&mut self, second: &mut Member) -> Result<()> {
        self.become_cluster()?;
        let join = second.join(&self.first);
        let addresses = [self.first.address(), second.address()];
        let ended = self.strike(|power| {
            let how = cut_off(second, &join, &mut power.random, power.console)?;
            power.first.wait_well(2, &addresses)?;
            second.leave(power.console)?;
            power.wait_alone()?;
            Ok(how)
        });
        let well = ended.is_ok();
        self.tell("join", ended, Some(second));
        if !well {
            // Both begin anew.
            second.restore()?;
        }
        Ok(())
    }
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
    member.begin(arguments, (records, RECORD))?;
    thread::sleep(after);
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        cuts: Cuts,
    }

    #[test]
    fn parts_run_alone_or_all_of_them() {
        let kinds = [Kind::Install, Kind::Running, Kind::Join];
        let chosen = |words: &[&str]| {
            let line = Line::try_parse_from([&["power"], words].concat()).unwrap();
            kinds.map(|kind| line.cuts.has(kind))
        };
        assert_eq!(chosen(&[]), [true; 3]);
        assert_eq!(chosen(&["--only", "running"]), [false, true, false]);
        assert_eq!(chosen(&["--only=join", "--cuts=20"]), [false, false, true]);
    }
}
