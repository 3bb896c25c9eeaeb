//! The crash matrix over two nodes: a `join`, a `leave` or a `remove` is hit at
//! one of its steps, on the node that runs it or on the other one.
//!
//! In: a cluster image and a shard. Out: a line a blow, and their count. What
//! follows a blow takes turns: it is gone on with or done again, rolled back, or
//! the node never comes back. So does what the other node is: a worker, or a master
//! that stands by. Always holds after that: the master's cluster is whole with
//! itself alone, and the other node is as it was before it joined.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::node::Node;
use anyhow::{Context, Result, ensure};
use console::{Console, render};

use super::{Choice, Disk, Hit, Tally, has, install_arguments, join_arguments, kill_program};
use crate::faults::{IMAGE, RESUMABLE, STATE, Said, Setup, fill_disk, free_disk};
use crate::join::{WORKER, nodes};
use crate::masters::MASTER;

/// How long a link is cut, a node or a process stands still, a master's disk is full:
/// longer than a message waits, shorter than until a node counts as lost.
const PAUSE: Duration = Duration::from_secs(20);
/// Longest time of one command, in seconds.
const LIMIT: &str = "420";

/// What happens to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strike {
    Kill(Hit),
    /// The process with which nodes of the cluster speak.
    Controller,
    Cut,
    Freeze,
    /// Our own processes that take part, and nothing else of the node.
    Stop,
    /// The disk has no room for a while.
    Fill,
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(hit) => hit.fmt(f),
            Self::Controller => f.write_str("kill the controller"),
            Self::Cut => f.write_str("cut the link"),
            Self::Freeze => f.write_str("freeze the node"),
            Self::Stop => f.write_str("stop the processes"),
            Self::Fill => f.write_str("fill the disk for a while"),
        }
    }
}

/// Stops operation, agent and controller of a node where they are, or lets them go on,
/// in words of the shell.
fn stop(stopped: bool) -> String {
    let signal = if stopped { "STOP" } else { "CONT" };
    format!(
        "kill -{signal} $(cat {STATE}/operation.lock {STATE}/agent.lock 2>/dev/null; \
         pgrep -f '^/opt/gravity/bin/gravity controller') 2>/dev/null; true"
    )
}

/// Who is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Party {
    Master,
    Worker,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Master => "on the master",
            Self::Worker => "on the other node",
        })
    }
}

/// What is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Join,
    /// By the node that leaves.
    Leave,
    /// By the master.
    Remove,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Join => "join",
            Self::Leave => "leave",
            Self::Remove => "remove",
        })
    }
}

impl Operation {
    const ALL: [Self; 3] = [Self::Join, Self::Leave, Self::Remove];

    fn strikes(self) -> Vec<(Party, Strike)> {
        use Hit::{Agent, Both, FullDisk, Operation, Planet, Supervisor};
        let on = |party: Party, strikes: &[Strike]| -> Vec<_> {
            strikes.iter().map(|strike| (party, *strike)).collect()
        };
        let kills = |hits: &[Hit]| hits.iter().map(|hit| Strike::Kill(*hit)).collect();
        let own: Vec<Strike> = match self {
            Self::Join => kills(&[Operation, Agent, Both, Supervisor, Planet, FullDisk]),
            Self::Leave => kills(&[Operation, Supervisor, Planet, FullDisk]),
            Self::Remove => kills(&[Supervisor, Planet]),
        };
        // Nothing of a removal runs on the node that goes.
        let still: &[Strike] = match self {
            Self::Remove => &[Strike::Cut, Strike::Freeze],
            _ => &[Strike::Cut, Strike::Freeze, Strike::Stop],
        };
        let masters = kills(match self {
            Self::Remove => &[Operation, Supervisor],
            _ => &[Supervisor],
        });
        let room: &[Strike] = match self {
            Self::Join => &[Strike::Fill],
            _ => &[],
        };
        [
            on(Party::Worker, &own),
            on(Party::Worker, still),
            on(Party::Master, &masters),
            on(
                Party::Master,
                &[Strike::Controller, Strike::Freeze, Strike::Stop],
            ),
            on(Party::Master, room),
        ]
        .concat()
    }

    /// What may follow.
    fn ends(self) -> &'static [End] {
        match self {
            Self::Join => &[End::GoOn, End::Rollback, End::Lost],
            Self::Leave => &[End::GoOn, End::Lost],
            Self::Remove => &[End::GoOn],
        }
    }
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It is gone on with, or done again.
    GoOn,
    Rollback,
    /// The node ends, and the master removes it.
    Lost,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GoOn => "go on",
            Self::Rollback => "roll back",
            Self::Lost => "lose the node",
        })
    }
}

/// Steps of an operation among its lines: records of the journal of a join, and
/// what the others tell, without what they tell of a hook's pods.
fn is_step(operation: Operation, line: &str) -> bool {
    let has = |words: &[&str]| words.iter().any(|word| line.contains(word));
    match operation {
        Operation::Join => has(&[" in progress: ", " completed: "]),
        Operation::Leave | Operation::Remove => {
            !has(&["Created ", "Container \"", "Pod \"", "Job \"", " ["])
        }
    }
}

/// What is hit, where, by what, at which of its steps, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blow {
    operation: Operation,
    party: Party,
    strike: Strike,
    step: usize,
    /// Profile of the other node.
    profile: &'static str,
    end: End,
}

impl Blow {
    /// What it is called among those of its kind.
    fn kind(&self) -> String {
        format!("{}: {} {}", self.operation, self.strike, self.party)
    }
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            party,
            strike,
            step,
            profile,
            end,
        } = self;
        let what = if *profile == MASTER {
            "master"
        } else {
            "worker"
        };
        write!(
            f,
            "{operation} of a {what}: {strike} {party} at step {step}, {end}"
        )
    }
}

/// All blows to operations with so many steps. Each strike meets, step after step,
/// each end with a worker and then each with a master.
fn blows(steps: [usize; 3]) -> Vec<Blow> {
    let each = Operation::ALL.into_iter().zip(steps);
    each.flat_map(|(operation, steps)| {
        let ends = operation.ends();
        let profiles = [WORKER, MASTER];
        (1..=steps).flat_map(move |step| {
            let strikes = operation.strikes().into_iter().enumerate();
            strikes.map(move |(turn, (party, strike))| Blow {
                operation,
                party,
                strike,
                step,
                profile: profiles[((step - 1) / ends.len() + turn) % profiles.len()],
                end: ends[(step - 1 + turn) % ends.len()],
            })
        })
    })
    .collect()
}

/// The nodes, the master with a cluster.
struct Pair<'a> {
    master: Setup,
    /// The other one.
    worker: Setup,
    /// As what it joins.
    profile: &'static str,
    /// First part of their names.
    name: &'a str,
    /// Of the worker; one that is lost is followed by the next.
    number: u8,
    image: &'a Path,
    console: &'a Console,
}

/// Runs the cells of chosen blows. Says whether all ended well.
///
/// # Errors
/// When the nodes can't be made or undisturbed operations fail.
pub fn run(image: &Path, choice: &Choice, console: &Console) -> Result<bool> {
    let mut pair = Pair::new(&choice.name, image, console)?;
    let steps = pair.undisturbed().context("undisturbed operations")?;
    let all = blows(steps);
    let chosen = all
        .iter()
        .enumerate()
        .filter(|(index, blow)| choice.holds(*index, *blow));
    let mut tally = Tally::default();
    for (index, blow) in chosen {
        let started = Instant::now();
        let result = pair.receive(*blow);
        let took = render::duration(started.elapsed());
        tally.add(blow.kind(), 1, usize::from(result.is_err()));
        match result {
            Ok(true) => console.print(&format!("ok {index} {blow}: it ended by itself ({took})")),
            Ok(false) => console.print(&format!("ok {index} {blow} ({took})")),
            Err(error) => {
                console.print(&format!("FAILED {index} {blow} ({took}): {error:#}"));
                drop(pair);
                pair =
                    Pair::new(&choice.name, image, console).context("new nodes after a bad end")?;
            }
        }
    }
    Ok(tally.show(all.len(), console))
}

impl<'a> Pair<'a> {
    fn new(name: &'a str, image: &'a Path, console: &'a Console) -> Result<Self> {
        let pair = Self {
            master: Setup::new(&format!("{name}-1"), image, console)?,
            worker: worker(name, 2, image, console)?,
            profile: WORKER,
            name,
            number: 2,
            image,
            console,
        };
        let install = install_arguments(&pair.master);
        gravity(&pair.master.node, &install)?.expect(0, &["is active"])?;
        Ok(pair)
    }

    /// How many steps the operations have: joins those of the longer one, of a worker
    /// or of a master.
    fn undisturbed(&mut self) -> Result<[usize; 3]> {
        let join = self.steps(Operation::Join)?;
        let leave = self.steps(Operation::Leave)?;
        self.is_alone()?;
        self.profile = MASTER;
        let join = join.max(self.steps(Operation::Join)?);
        let remove = self.steps(Operation::Remove)?;
        self.worker.leave()?.expect(0, &[])?;
        self.is_alone()?;
        Ok([join, leave, remove])
    }

    fn steps(&self, operation: Operation) -> Result<usize> {
        let said = self.operate(operation, 0, || Ok(()))?.expect(0, &[])?;
        let steps = said.text.lines().filter(|line| is_step(operation, line));
        Ok(steps.count())
    }

    /// Runs an operation, and does `then` at one of its steps, counted from 1.
    fn operate(
        &self,
        operation: Operation,
        step: usize,
        then: impl FnOnce() -> Result<()>,
    ) -> Result<Said> {
        let worker = &self.worker.node;
        let master = &self.master.node;
        let (node, command) = match operation {
            Operation::Join => (worker, join_arguments(&self.master, self.profile)),
            Operation::Leave => (worker, "leave --confirm".into()),
            Operation::Remove => (
                master,
                format!("remove {} --force --confirm", worker.name()),
            ),
        };
        let is_step = |line: &str| is_step(operation, line);
        gravity_until(node, &command, is_step, step, then)
    }

    fn join(&self) -> Result<()> {
        self.operate(Operation::Join, 0, || Ok(()))?
            .expect(0, &["is part of cluster"])
            .map(drop)
    }

    fn strike(&self, party: Party, strike: Strike) -> Result<()> {
        let setup = match party {
            Party::Master => &self.master,
            Party::Worker => &self.worker,
        };
        let run = |script: &str| setup.shell(script).map(drop);
        let pause = |change: &dyn Fn(bool) -> Result<()>| {
            change(true)?;
            std::thread::sleep(PAUSE);
            change(false)
        };
        match strike {
            Strike::Kill(hit) => run(&hit.script()),
            Strike::Controller => run(&kill_program("/opt/gravity/bin/gravity controller")),
            Strike::Cut => pause(&|cut| setup.node.cut(cut)),
            Strike::Freeze => pause(&|frozen| setup.node.freeze(frozen)),
            Strike::Stop => pause(&|stopped| run(&stop(stopped))),
            Strike::Fill => pause(&|full| run(&if full { fill_disk() } else { free_disk() })),
        }
    }

    /// Does one cell. Whether the operation came to its end by itself.
    fn receive(&mut self, blow: Blow) -> Result<bool> {
        self.profile = blow.profile;
        let disk = match blow.strike {
            Strike::Kill(hit) => Disk::mount(&self.worker, hit)?,
            _ => Disk::Own,
        };
        if blow.operation != Operation::Join {
            self.join()?;
        }
        let before = self.hooks()?;
        let said = self.operate(blow.operation, blow.step, || {
            self.strike(blow.party, blow.strike)
        })?;
        let is_done = said.code == 0;
        match blow.end {
            End::Lost => {
                self.lose()?;
                return self.is_alone().map(|()| is_done);
            }
            End::Rollback if !is_done => {
                gravity(&self.worker.node, "rollback --confirm")?.expect(0, &[])?;
            }
            End::GoOn | End::Rollback => {
                disk.mend(&self.worker, true)?;
                self.go_on(blow.operation, &said, &before)?;
            }
        }
        disk.unmount(&self.worker)?;
        self.is_alone().map(|()| is_done)
    }

    /// Brings an operation to its end, and has the node out of the cluster.
    fn go_on(&self, operation: Operation, said: &Said, before: &Hooks) -> Result<()> {
        match operation {
            Operation::Join => {
                ensure!(
                    matches!(said.code, 0 | RESUMABLE),
                    "exit code {}: {}",
                    said.code,
                    said.text
                );
                if said.code != 0 {
                    let said = gravity(&self.worker.node, "resume")?;
                    said.expect(0, &["is part of cluster"])?;
                }
                let both = [self.master.node.name(), self.worker.node.name()];
                has(&self.master, &both)?;
                let mut hooks = before.clone();
                for hook in ["preNodeAdd", "postNodeAdd"] {
                    *hooks.entry(hook.into()).or_default() += 1;
                }
                let found = self.hooks()?;
                ensure!(found == hooks, "hooks ran {found:?}, not {hooks:?}");
            }
            Operation::Leave => {}
            // What was cut off is done again; who is out is out.
            Operation::Remove if said.code != 0 => {
                let again = self.operate(Operation::Remove, 0, || Ok(()))?;
                let gone = nodes(&self.master.node)? == [self.master.node.name()];
                ensure!(gone, "exit code {}: {}", again.code, again.text);
            }
            Operation::Remove => {}
        }
        let left = format!("ls -A {STATE} 2>/dev/null | grep -q .");
        if self.worker.shell(&left)?.code != 0 {
            return Ok(());
        }
        match operation {
            Operation::Join | Operation::Leave => self.operate(Operation::Leave, 0, || Ok(()))?,
            // The cluster knows it no more.
            Operation::Remove => self.worker.leave()?,
        }
        .expect(0, &[])
        .map(drop)
    }

    /// The node ends for ever, and a new one takes its place.
    fn lose(&mut self) -> Result<()> {
        let name = self.worker.node.name().to_owned();
        self.worker.shell("kill -9 -1")?;
        // Of the cluster is who the status names.
        let known = gravity(&self.master.node, "status")?.text;
        if known.contains(&name) {
            let remove = format!("remove {name} --force --confirm");
            let said = gravity(&self.master.node, &remove)?;
            // The removal that the node had asked for may have come to its end.
            if !said.text.contains("has no node") {
                said.expect(0, &[])?;
            }
        }
        // Some of them, as the former one ends after the next has begun.
        self.number = 2 + (self.number - 1) % 8;
        self.worker = worker(self.name, self.number, self.image, self.console)?;
        Ok(())
    }

    /// The cluster is whole without the other node, which is as it was.
    fn is_alone(&self) -> Result<()> {
        has(&self.master, &[self.master.node.name()])?;
        self.worker.is_untouched()
    }

    /// How often each hook has run, and well.
    fn hooks(&self) -> Result<Hooks> {
        let jobs = "kubectl get jobs --all-namespaces --output='jsonpath={range .items[*]}\
                    {.metadata.labels.gravitational\\.io/hook}={.status.succeeded}{\"\\n\"}{end}'";
        let jobs = self.master.shell(jobs)?.expect(0, &[])?.text;
        let mut hooks = Hooks::new();
        for line in jobs.lines() {
            if let Some((hook, "1")) = line.split_once('=') {
                *hooks.entry(hook.to_owned()).or_default() += 1;
            }
        }
        Ok(hooks)
    }
}

type Hooks = BTreeMap<String, usize>;

fn worker(name: &str, number: u8, image: &Path, console: &Console) -> Result<Setup> {
    Setup::new(&format!("{name}-{number}"), image, console)
}

fn gravity(node: &Node, command: &str) -> Result<Said> {
    gravity_until(node, command, |_| false, 0, || Ok(()))
}

/// Runs a command of `gravity` and does `then` at one of its steps, counted from
/// 1.
fn gravity_until(
    node: &Node,
    command: &str,
    is_step: impl Fn(&str) -> bool,
    at: usize,
    then: impl FnOnce() -> Result<()>,
) -> Result<Said> {
    let script = format!("exec 2>&1 timeout --kill-after=5 {LIMIT} {IMAGE} {command}");
    let mut child = node
        .command(&["sh", "-c", &script])?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a command")?;
    let output = child.stdout.take().context("no output")?;
    let mut then = Some(then);
    let mut text = String::new();
    let mut steps = 0;
    for line in BufReader::new(output).lines() {
        let line = line.context("reading what it says")?;
        text.push_str(&line);
        text.push('\n');
        if is_step(&line) {
            steps += 1;
            if steps == at
                && let Some(then) = then.take()
            {
                then()?;
            }
        }
    }
    let code = child.wait().context("waiting for a command")?.code();
    Ok(Said {
        code: code.unwrap_or(-1),
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_strike_meets_every_end_with_a_worker_and_with_a_master() {
        let all = blows([6, 4, 2]);
        assert_eq!(all.len(), 6 * 14 + 4 * 11 + 2 * 9);
        for operation in Operation::ALL {
            for (party, strike) in operation.strikes() {
                let mut met: Vec<_> = all
                    .iter()
                    .filter(|blow| {
                        (blow.operation, blow.party, blow.strike) == (operation, party, strike)
                    })
                    .map(|blow| (blow.profile, blow.end.to_string()))
                    .collect();
                met.sort();
                met.dedup();
                let expected = 2 * operation.ends().len();
                assert_eq!(met.len(), expected, "{operation}: {strike} {party}");
            }
        }
    }

    #[test]
    fn what_a_hooks_pod_does_is_no_step() {
        let leave = |line| is_step(Operation::Leave, line);
        assert!(leave(
            "Mon Nov 23 12:51:43 UTC  Running the preNodeRemove hook"
        ));
        assert!(leave("removed link /usr/local/bin/helm"));
        assert!(!leave(
            "Mon Nov 23 12:51:44 UTC  Created Job \"x\" in namespace \"default\""
        ));
        assert!(!leave(
            "Mon Nov 23 12:51:45 UTC  [x/check] nj-2 is about to go"
        ));
        let join = |line| is_step(Operation::Join, line);
        assert!(join(
            "Mon Nov 23 12:52:37 UTC  /image completed: Keep the image"
        ));
        assert!(!join(
            "Mon Nov 23 12:52:37 UTC  Running the preNodeAdd hook"
        ));
    }
}
