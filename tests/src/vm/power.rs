//! Power that real machines lose at random moments: one that installs, one whose
//! cluster takes writes, one that joins.
//!
//! In: the sample, how often, a seed. Out: a line for each cut, and how many ended well.
//! A cut kills QEMU in the middle of what it does and boots the machine anew
//! ([`super::Machine::cut_power`] says what is lost). An operation that was cut off is
//! gone on with by `gravity resume`, which may be cut off again. Always holds at its end:
//! the status says that all is well, the page is served, and no write is lost that was
//! answered.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use console::Console;

use super::member::{FLAVOR, Member, options};
use super::{Disk, Kept, Options, SAID};
use crate::scenario::{Setup, Timeline};

/// Numbers of writes that were answered, each synced, in the machine.
const ANSWERED: &str = "/root/answered";
/// Ends what makes them.
const END_WRITES: &str = "pkill -f '[w]rite-'";
/// What an operation says of each of its records.
const RECORD: &str = " completed: ";
/// How many of them a cut waits for: fewer than this.
const RECORDS: u32 = 4;
/// How long a cut waits for them at the most: a planet that starts without KVM takes
/// about as long.
const WAIT: Duration = Duration::from_secs(90);
/// How long a cut may wait after that: about as long as a step takes there.
const AFTER: Duration = Duration::from_secs(15);
/// How long a cluster that writes runs before a cut, at most.
const RUN: Duration = Duration::from_secs(20);
/// One of so many cuts of a cluster finds all well with it; the others come while it
/// starts.
const WELL_BEFORE: u32 = 4;
/// One of so many cuts of a join takes the power of the cluster's machine, too.
const BOTH: u32 = 4;
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
    // Operations until all cuts are done: each is cut off several times.
    let mut left = cuts.cuts;
    while cuts.has(Kind::Install) && left > 0 {
        left -= power.install(left)?;
    }
    let mut left = cuts.cuts;
    while cuts.has(Kind::Running) && left > 0 {
        left -= power.running(left)?;
    }
    if cuts.has(Kind::Join) {
        let mut second = boot(2)?;
        let mut left = cuts.cuts;
        while left > 0 {
            left -= power.join(&mut second, left)?;
        }
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
    /// Tells how `cuts` ended, and keeps what the machines are like after a bad end.
    fn tell(&mut self, kind: &str, cuts: u32, ended: Result<String>, second: Option<&mut Member>) {
        self.struck += cuts;
        if ended.is_err() {
            self.first.keep();
            if let Some(second) = second {
                second.keep();
            }
        }
        match self.kept.tell(ended) {
            Ok(how) => {
                self.well += cuts;
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

    /// An install that is cut off, `most` times at the most. Returns how often.
    fn install(&mut self, most: u32) -> Result<u32> {
        self.become_bare()?;
        let arguments = self.arguments();
        let mut cuts = 0;
        let ended = self.strike(|power| {
            power.cut_off(None, &arguments, most, &mut cuts)?;
            power.wait_alone()?;
            Ok(format!("cut off {cuts} times"))
        });
        let cuts = cuts.max(1);
        self.tell("install", cuts, ended, None);
        Ok(cuts)
    }

    /// A cluster that takes writes and loses power, `most` times at the most: once it
    /// answers again, or when all is well with it again. Returns how often.
    fn running(&mut self, most: u32) -> Result<u32> {
        self.become_cluster()?;
        let mut cuts = 0;
        let ended = self.strike(|power| {
            while cuts < most {
                begin_writes(&mut power.first)?;
                thread::sleep(RUN.mul_f64(power.random.f64()));
                cuts += 1;
                power.first.cut_power()?;
                let there = all_there(&mut power.first)?;
                let told = format!("cut {cuts}: all {there} writes that were answered are there");
                power.timeline.tell(&told);
                if power.random.u32(..WELL_BEFORE) == 0 {
                    power.wait_alone()?;
                }
            }
            power.wait_alone()?;
            Ok(format!("cut off {cuts} times"))
        });
        let cuts = cuts.max(1);
        self.tell("running", cuts, ended, None);
        Ok(cuts)
    }

    /// A join that is cut off, `most` times at the most, with what is in the cluster. Returns
    /// how often.
    fn join(&mut self, second: &mut Member, most: u32) -> Result<u32> {
        self.become_cluster()?;
        let join = second.join(&mut self.first)?;
        let addresses = [self.first.address(), second.address()];
        let mut cuts = 0;
        begin_writes(&mut self.first)?;
        self.first.must(END_WRITES)?;
        let ended = self.strike(|power| {
            power.cut_off(Some(&mut *second), &join, most, &mut cuts)?;
            all_there(&mut power.first)?;
            power.first.wait_well(2, &addresses)?;
            // Not by force: the cluster is to go on without it.
            second.run("leave --confirm", power.console)?;
            power.wait_alone()?;
            Ok(format!("cut off {cuts} times"))
        });
        let well = ended.is_ok();
        let cuts = cuts.max(1);
        self.tell("join", cuts, ended, Some(second));
        if !well {
            // Both begin anew.
            second.restore()?;
        }
        Ok(cuts)
    }

    /// Does an operation of a machine, the first one if not another is given, cuts the
    /// power at random moments of it, `most` times at the most, and goes on with it after
    /// each as a user does. Counts the `cuts`.
    fn cut_off(
        &mut self,
        mut other: Option<&mut Member>,
        arguments: &str,
        most: u32,
        cuts: &mut u32,
    ) -> Result<()> {
        let mut command = arguments;
        loop {
            let member = match &mut other {
                Some(other) => &mut **other,
                None => &mut self.first,
            };
            let is_last = *cuts >= most;
            let (records, most) = if is_last {
                (u32::MAX, None)
            } else {
                let most = WAIT.mul_f64(self.random.f64());
                (self.random.u32(..RECORDS), Some(most))
            };
            // It may end before.
            member.begin(command, (records, RECORD), most)?;
            if !is_last {
                thread::sleep(AFTER.mul_f64(self.random.f64()));
            }
            let said = member.must(&format!("tail -n 40 {SAID}"))?;
            command = "resume";
            if said.contains("no operation was found") {
                // Nothing of it was on the disk yet.
                command = arguments;
            } else if said.contains("ended with") {
                ensure!(said.trim_end().ends_with("ended with 0"), "it says {said}");
                return Ok(());
            } else {
                member.cut_power()?;
                *cuts += 1;
                let last = said.lines().last().unwrap_or_default();
                self.timeline.tell(&format!("cut {cuts} after {last:?}"));
                if other.is_some() && self.random.u32(..BOTH) == 0 {
                    self.first.cut_power()?;
                    all_there(&mut self.first)?;
                    self.timeline.tell("and of the cluster that it joins");
                }
            }
        }
    }
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

/// Waits until the API server answers. Fails when a write that was answered is lost.
/// Returns how many were.
fn all_there(member: &mut Member) -> Result<usize> {
    let answered = member.must(&format!("cat {ANSWERED}"))?;
    let names =
        member.must("until kubectl get configmaps --output=name 2>/dev/null; do sleep 1; done")?;
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
