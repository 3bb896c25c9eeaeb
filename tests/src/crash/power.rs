//! Power that is cut at random moments: of an install, of a cluster that writes, of
//! a node that joins.
//!
//! In: a cluster image, how often, a seed. Out: a line a cut, and their count. A cut
//! is what a machine sees of it: its disk takes no more writes, all its processes
//! end, and what was not on the disk is lost. Then the disk is checked, and the user
//! goes on by `gravity resume` or `gravity start`. Always holds after that: the
//! cluster is as one that was not disturbed, and no write that was answered is lost.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use console::{Console, render};

use super::{
    Choice, DISK_FILE, Disk, Hit, Reference, has, install_arguments, is_as, join_arguments,
    undisturbed,
};
use crate::faults::Subject;
use crate::join::WORKER;
use crate::load::{self, Load};
use crate::said::Said;
use crate::scenario::IMAGE;

/// How long the first answer to a write may take.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a cluster that writes runs before its power is cut, at most.
const RUN: Duration = Duration::from_secs(8);

/// How often, and when.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Cuts {
    /// Cut the power of nodes at random moments instead
    #[arg(long, conflicts_with_all = ["nodes", "shard", "from"])]
    power: bool,
    /// How often in an install, in a cluster that runs, and in a join
    #[arg(long, value_name = "N", default_value_t = 20, requires = "power")]
    cuts: u32,
    /// What the moments follow from; another one each time otherwise
    #[arg(long, value_name = "N", requires = "power")]
    seed: Option<u64>,
}

impl Cuts {
    /// Whether it is the power that is cut.
    #[must_use]
    pub fn wanted(self) -> bool {
        self.power
    }
}

/// Cuts the power of installs, of a cluster that runs and of joins, as chosen. Says
/// whether all ended well.
///
/// # Errors
/// When the nodes can't be made or undisturbed operations fail.
pub fn run(image: &Path, cuts: Cuts, choice: &Choice, console: &Console) -> Result<bool> {
    let seed = cuts.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    console.print(&format!("The seed is {seed}"));
    let mut power = Power {
        image,
        console,
        name: &choice.name,
        cuts: cuts.cuts,
        random: fastrand::Rng::with_seed(seed),
        struck: 0,
        bad: 0,
    };
    let kinds: [(&str, Kind); 3] = [
        ("install", |power| power.installs()),
        ("running", |power| power.running()),
        ("join", |power| power.joins()),
    ];
    for (name, kind) in kinds {
        if choice.names(name) {
            kind(&mut power).with_context(|| format!("power cuts: {name}"))?;
        }
    }
    let Power { struck, bad, .. } = power;
    console.print(&format!("{struck} power cuts, {bad} ended badly"));
    Ok(bad == 0)
}

type Kind = fn(&mut Power<'_>) -> Result<()>;

struct Power<'a> {
    image: &'a Path,
    console: &'a Console,
    /// First part of the nodes' names.
    name: &'a str,
    cuts: u32,
    random: fastrand::Rng,
    struck: u32,
    bad: u32,
}

impl Power<'_> {
    fn node(&self, number: u8) -> Result<Subject> {
        let name = format!("{}-{number}", self.name);
        Subject::new(&name, self.image, self.console)
    }

    /// A moment before `end`, counted from a beginning.
    fn moment(&mut self, end: Duration) -> Duration {
        end.mul_f64(self.random.f64())
    }

    /// Tells how a cut ended. Whether it ended well.
    fn tell(&mut self, what: &str, after: Duration, begin: Instant, ended: Result<String>) -> bool {
        self.struck += 1;
        let after = render::duration(after);
        let took = render::duration(begin.elapsed());
        let well = ended.is_ok();
        self.console.print(&match ended {
            Ok(how) => format!("ok {what}: power cut after {after}, {how} ({took})"),
            Err(error) => {
                self.bad += 1;
                format!("FAILED {what}: power cut after {after} ({took}): {error:#}")
            }
        });
        well
    }

    fn installs(&mut self) -> Result<()> {
        let mut subject = self.node(1)?;
        let begin = Instant::now();
        let reference = undisturbed(&subject)?;
        // With the `leave`: some find the install done.
        let end = begin.elapsed();
        for _ in 0..self.cuts {
            let (after, begin) = (self.moment(end), Instant::now());
            let ended = cut_install(&subject, &reference, after);
            if !self.tell("install", after, begin, ended) {
                Disk::let_go(&subject);
                drop(subject);
                subject = self.node(1)?;
            }
        }
        Ok(())
    }

    fn running(&mut self) -> Result<()> {
        let subject = self.node(1)?;
        let disk = Disk::mount(&subject, Hit::BrokenDisk)?;
        subject
            .shell(&install(&subject))?
            .expect(0, &["is active"])?;
        for _ in 0..self.cuts {
            let (after, begin) = (self.moment(RUN), Instant::now());
            let ended = cut_running(&subject, disk, after);
            if !self.tell("running", after, begin, ended) {
                // What is lost once is lost for those that follow.
                Disk::let_go(&subject);
                return Ok(());
            }
        }
        subject.leave()?.expect(0, &[])?;
        disk.unmount(&subject)
    }

    fn joins(&mut self) -> Result<()> {
        let master = self.node(1)?;
        master.shell(&install(&master))?.expect(0, &["is active"])?;
        let mut worker = self.node(2)?;
        let begin = Instant::now();
        worker.shell(&join(&master))?.expect(0, &[])?;
        let end = begin.elapsed();
        leave(&master, &worker)?;
        for _ in 0..self.cuts {
            let (after, begin) = (self.moment(end), Instant::now());
            let ended = cut_join(&master, &worker, after);
            if !self.tell("join", after, begin, ended) {
                Disk::let_go(&worker);
                let forget = ["remove", worker.node.name(), "--force", "--confirm"];
                drop(master.said(&[&[IMAGE], forget.as_slice()].concat()));
                drop(worker);
                worker = self.node(2)?;
            }
        }
        Ok(())
    }
}

fn install(subject: &Subject) -> String {
    format!("{IMAGE} {}", install_arguments(subject))
}

fn join(master: &Subject) -> String {
    format!("{IMAGE} {}", join_arguments(master, WORKER))
}

/// Cuts the power: the disk ends before the processes.
fn cut(subject: &Subject) -> Result<()> {
    let script = format!("chattr +i {DISK_FILE}; kill -9 -1");
    subject.shell(&script).map(drop)
}

/// Begins a command, cuts the power a while later, and switches the node on again.
fn cut_off(subject: &Subject, disk: Disk, command: &str, after: Duration) -> Result<()> {
    let mut begun = subject
        .node
        .command(&["sh", "-c", command])?
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("beginning a command")?;
    std::thread::sleep(after);
    cut(subject)?;
    begun.wait().context("waiting for a command")?;
    disk.mend(subject, false)
}

/// Does what a user does when the node is on again. Says what that was.
fn go_on(subject: &Subject, command: &str) -> Result<&'static str> {
    let resumed = subject.said(&[IMAGE, "resume"])?;
    if resumed.text.contains("no operation was found") {
        subject.shell(command)?.expect(0, &[])?;
        return Ok("begun anew");
    }
    let Said { text, .. } = resumed.expect(0, &[])?;
    if !text.contains("operation is complete") {
        return Ok("resumed");
    }
    subject.said(&[IMAGE, "start"])?.expect(0, &[])?;
    Ok("started")
}

fn cut_install(subject: &Subject, reference: &Reference, after: Duration) -> Result<String> {
    let disk = Disk::mount(subject, Hit::BrokenDisk)?;
    cut_off(subject, disk, &install(subject), after)?;
    let how = go_on(subject, &install(subject))?;
    subject.is_active()?;
    is_as(subject, &reference.cluster, str::eq).context(how)?;
    subject.leave()?.expect(0, &[])?;
    disk.unmount(subject)?;
    subject.is_untouched()?;
    Ok(how.to_owned())
}

fn cut_running(subject: &Subject, disk: Disk, after: Duration) -> Result<String> {
    let mut writes = Load::writes(&subject.node, &subject.node)?;
    writes.wait_answer(load::now(), ANSWER)?;
    std::thread::sleep(after);
    cut(subject)?;
    writes.ended()?;
    disk.mend(subject, false)?;
    let how = go_on(subject, "false")?;
    subject.is_active()?;
    let there = writes.all_there()?;
    Ok(format!("{how}, all {there} answered writes are there"))
}

fn cut_join(master: &Subject, worker: &Subject, after: Duration) -> Result<String> {
    let disk = Disk::mount(worker, Hit::BrokenDisk)?;
    cut_off(worker, disk, &join(master), after)?;
    let how = go_on(worker, &join(master))?;
    has(master, &[master.node.name(), worker.node.name()])?;
    leave(master, worker)?;
    disk.unmount(worker)?;
    worker.is_untouched()?;
    Ok(how.to_owned())
}

/// Has the other node leave.
fn leave(master: &Subject, worker: &Subject) -> Result<()> {
    worker
        .said(&[IMAGE, "leave", "--confirm"])?
        .expect(0, &[])?;
    has(master, &[master.node.name()])
}
