//! The crash matrix over two nodes: a `join`, a `leave` or a `remove` is hit at its
//! steps, on the node that runs it or on the other one.
//!
//! In: a cluster image and a shard. Out: a line a trial, and their count. A trial is a
//! row, which strikes one operation at each of its steps and goes on with it, or does it
//! again, after each; or a join that is struck at one step and rolled back; or a node
//! that ends at a step and never comes back. The other node takes turns: a worker, a
//! second master, which stands by, or a third one, by which all come to vote. Always
//! holds after a trial: the cluster is whole without the other node, and that is as it
//! was before it joined.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::node::Node;
use anyhow::{Context, Result, ensure};
use console::Console;

use super::{
    Choice, Disk, Hit, LIMIT, has, install_arguments, is_leave_step, is_left, join_arguments,
    kill_program, run_chosen,
};
use crate::faults::{RESUMABLE, STATE, Subject, fill_disk, free_disk};
use crate::join::WORKER;
use crate::masters::MASTER;
use crate::said::Said;
use crate::scenario::IMAGE;

/// How long a link is cut, a node or a process stands still, a master's disk is full:
/// longer than a message waits, shorter than until a node counts as lost.
const PAUSE: Duration = Duration::from_secs(20);
/// What a removal says of a node that is out already.
const REMOVED: &str = "has no node";
/// What happens to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strike {
    Kill(Hit),
    /// The command that removes a node, which holds no lock.
    Removal,
    /// The process with which nodes of the cluster speak.
    Controller,
    Cut,
    Freeze,
    /// Our own processes that take part, and nothing else of the node.
    Stop,
    /// The disk has no room for a while.
    Fill,
}

impl Strike {
    /// Whether all is as before after a [`PAUSE`].
    const fn is_pause(self) -> bool {
        !matches!(self, Self::Kill(_) | Self::Removal | Self::Controller)
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(hit) => hit.fmt(f),
            Self::Removal => f.write_str("kill the command"),
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
        let commands: &[Strike] = match self {
            Self::Remove => &[Strike::Removal],
            _ => &[],
        };
        let room: &[Strike] = match self {
            Self::Join => &[Strike::Fill],
            _ => &[],
        };
        [
            on(Party::Worker, &own),
            on(Party::Worker, still),
            on(Party::Master, commands),
            on(
                Party::Master,
                &[
                    Strike::Kill(Supervisor),
                    Strike::Controller,
                    Strike::Freeze,
                    Strike::Stop,
                ],
            ),
            on(Party::Master, room),
        ]
        .concat()
    }
}

/// What of an operation's line is a step of it, if anything: records of the journal of a
/// join, and what the others tell, without what they tell of a hook's pods. Names that
/// are made up each time, and numbers of seconds, are left out.
fn step(operation: Operation, line: &str) -> Option<String> {
    let is_step = match operation {
        Operation::Join => line.contains(" in progress: ") || line.contains(" completed: "),
        Operation::Leave | Operation::Remove => is_leave_step(line),
    };
    let (_, what) = line.split_once(" UTC ").filter(|_| is_step)?;
    let text = what.split('"').step_by(2).flat_map(str::chars);
    Some(text.filter(|c| !c.is_ascii_digit()).collect())
}

/// Steps that were met, in their order, and those at which something was hit.
#[derive(Debug, Default)]
struct Steps {
    met: Vec<String>,
    hit: BTreeSet<String>,
}

impl Steps {
    /// As which one it was met, counted from 1.
    fn number(&mut self, step: &str) -> usize {
        let known = self.met.iter().position(|of| of == step);
        let index = known.unwrap_or_else(|| {
            self.met.push(step.to_owned());
            self.met.len() - 1
        });
        index + 1
    }
}

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// A strike at each step.
    Row(Operation, Party, Strike),
    /// A join that is hit at a step on its own node, and rolled back.
    Rollback(Hit, usize),
    /// The node ends at a step, and the master removes it.
    Lost(Operation, usize),
}

/// What the other node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum As {
    Worker,
    SecondMaster,
    ThirdMaster,
}

impl As {
    const ALL: [Self; 3] = [Self::Worker, Self::SecondMaster, Self::ThirdMaster];

    const fn profile(self) -> &'static str {
        match self {
            Self::Worker => WORKER,
            Self::SecondMaster | Self::ThirdMaster => MASTER,
        }
    }
}

impl fmt::Display for As {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "a worker",
            Self::SecondMaster => "a second master",
            Self::ThirdMaster => "a third master",
        })
    }
}

/// What is tried, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trial {
    what: What,
    node: As,
}

impl Trial {
    /// What it is called among those of its kind.
    fn kind(self) -> String {
        match self.what {
            What::Row(operation, party, strike) => format!("{operation}: {strike} {party}"),
            What::Rollback(hit, _) => format!("join, rolled back: {hit}"),
            What::Lost(operation, _) => format!("{operation}: lose the node"),
        }
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.node;
        match self.what {
            What::Row(operation, party, strike) => {
                write!(f, "{operation} of {node}: {strike} {party} at each step")
            }
            What::Rollback(hit, step) => {
                write!(f, "join of {node}, rolled back: {hit} at step {step}")
            }
            What::Lost(operation, step) => {
                write!(f, "{operation} of {node}: lose the node at step {step}")
            }
        }
    }
}

/// All that is tried with joins and `leave`s of so many steps. A worker and a second
/// master take turns, but where something is killed: that is done with both. What only
/// takes a while is not tried with a third master.
fn trials(joins: usize, leaves: usize) -> Vec<Trial> {
    const IN_TURN: [As; 2] = [As::Worker, As::SecondMaster];
    // Where its disk is full, a hook may wait for its pod for as long as it has.
    const ENDING: [Hit; 2] = [Hit::Operation, Hit::Both];
    let with = |node: As, what: What| Trial { what, node };
    let rows = Operation::ALL.into_iter().flat_map(|operation| {
        let strikes = operation.strikes().into_iter().enumerate();
        strikes.map(move |(turn, (party, strike))| (turn, What::Row(operation, party, strike)))
    });
    let rows: Vec<_> = rows.collect();
    let is_pause = |what: &What| matches!(what, What::Row(_, _, strike) if strike.is_pause());
    let few = rows.iter().flat_map(|(turn, what)| {
        let first = turn % IN_TURN.len();
        let nodes = [first, 1 - first].map(|index| with(IN_TURN[index], *what));
        nodes.into_iter().take(if is_pause(what) { 1 } else { 2 })
    });
    // Every second step is the end of a phase: what takes turns must not fall into step.
    let in_turn = |step: usize| IN_TURN[(step / 2) % IN_TURN.len()];
    let rollbacks = (1..=joins).map(|step| {
        let hit = ENDING[step / 4 % ENDING.len()];
        with(in_turn(step), What::Rollback(hit, step))
    });
    let steps = [(Operation::Join, joins), (Operation::Leave, leaves)];
    let lost = steps
        .into_iter()
        .flat_map(|(operation, steps)| (1..=steps).map(move |step| (operation, step)));
    let lost: Vec<_> = lost.collect();
    let lost_few = lost
        .iter()
        .map(|(operation, step)| with(in_turn(step + 1), What::Lost(*operation, *step)));
    let third = rows
        .iter()
        .filter(|(_, what)| !is_pause(what))
        .map(|(_, what)| *what)
        .chain(
            lost.iter()
                .map(|(operation, step)| What::Lost(*operation, *step)),
        )
        .map(|what| with(As::ThirdMaster, what));
    few.chain(rollbacks).chain(lost_few).chain(third).collect()
}

/// The nodes, the master with a cluster.
struct Pair<'a> {
    master: Subject,
    /// The other one.
    worker: Subject,
    /// As what it joins.
    node: As,
    /// The second master, while the other node is the third one.
    second: Option<Subject>,
    /// First part of their names.
    name: &'a str,
    /// Of the worker; one that is lost is followed by the next.
    number: u8,
    image: &'a Path,
    console: &'a Console,
}

/// Does the chosen trials. Says whether all ended well.
///
/// # Errors
/// When the nodes can't be made or undisturbed operations fail.
pub fn run(image: &Path, choice: &Choice, console: &Console) -> Result<bool> {
    let new = || Pair::new(&choice.name, image, console);
    let mut first = new()?;
    let (joins, leaves) = first.undisturbed().context("undisturbed operations")?;
    let mut nodes = Some(first);
    let all = trials(joins, leaves);
    run_chosen(&all, choice, console, Trial::kind, |trial| {
        let mut pair = match nodes.take() {
            Some(pair) => pair,
            None => new().context("new nodes after a bad end")?,
        };
        let result = pair.will_be(trial.node).and_then(|()| match trial.what {
            What::Row(operation, party, strike) => {
                pair.strike_all(operation, party, strike, choice.at)
            }
            What::Rollback(hit, step) => pair.roll_back(hit, step),
            What::Lost(operation, step) => pair.lose_at(operation, step),
        });
        if result.is_ok() {
            nodes = Some(pair);
        }
        Ok(result)
    })
}

impl<'a> Pair<'a> {
    fn new(name: &'a str, image: &'a Path, console: &'a Console) -> Result<Self> {
        let pair = Self {
            master: Subject::new(&format!("{name}-1"), image, console)?,
            worker: worker(name, 2, image, console)?,
            node: As::Worker,
            second: None,
            name,
            number: 2,
            image,
            console,
        };
        let install = install_arguments(&pair.master);
        gravity(&pair.master.node, &install)?.expect(0, &["is active"])?;
        Ok(pair)
    }

    /// How many steps a join and a `leave` have: the most that there are.
    fn undisturbed(&mut self) -> Result<(usize, usize)> {
        let mut most = (0, 0);
        for node in As::ALL {
            self.will_be(node)?;
            let joins = self.steps(Operation::Join)?;
            let leaves = self.steps(Operation::Leave)?;
            self.is_alone()?;
            most = (joins.max(most.0), leaves.max(most.1));
        }
        self.will_be(As::Worker)?;
        Ok(most)
    }

    /// Has the other node join as this from now on.
    fn will_be(&mut self, node: As) -> Result<()> {
        self.node = node;
        match (node, self.second.take()) {
            (As::ThirdMaster, None) => {
                let second =
                    Subject::new(&format!("{}-second", self.name), self.image, self.console)?;
                let join = join_arguments(&self.master, MASTER);
                gravity(&second.node, &join)?.expect(0, &["is part of cluster"])?;
                self.second = Some(second);
            }
            (As::ThirdMaster, second) => self.second = second,
            (As::Worker | As::SecondMaster, Some(second)) => {
                gravity(&second.node, "leave --confirm")?.expect(0, &[])?;
            }
            (As::Worker | As::SecondMaster, None) => return Ok(()),
        }
        self.is_alone()
    }

    /// Names of the nodes without the other one.
    fn names(&self) -> Vec<&str> {
        let second = self.second.iter().map(|second| second.node.name());
        [self.master.node.name()]
            .into_iter()
            .chain(second)
            .collect()
    }

    fn steps(&self, operation: Operation) -> Result<usize> {
        let mut steps = BTreeSet::new();
        let counted = |line: &str| {
            steps.extend(step(operation, line));
            Ok(())
        };
        self.operate(operation, counted)?.expect(0, &[])?;
        Ok(steps.len())
    }

    /// Runs an operation, and does `then` with each of its lines.
    fn operate(&self, operation: Operation, then: impl FnMut(&str) -> Result<()>) -> Result<Said> {
        let (worker, master): (&Node, &Node) = (&self.worker.node, &self.master.node);
        let (node, command) = match operation {
            Operation::Join => (worker, join_arguments(&self.master, self.node.profile())),
            Operation::Leave => (worker, "leave --confirm".into()),
            Operation::Remove => (
                master,
                format!("remove {} --force --confirm", worker.name()),
            ),
        };
        gravity_with(node, &command, then)
    }

    /// The same, and strikes at one step, counted from 1.
    fn operate_until(
        &self,
        operation: Operation,
        at: usize,
        strike: impl Fn() -> Result<()>,
    ) -> Result<Said> {
        let mut met = BTreeSet::new();
        let said = self.operate(operation, |line| {
            let is_new = step(operation, line).is_some_and(|step| met.insert(step));
            if is_new && met.len() == at {
                strike()?;
            }
            Ok(())
        })?;
        ensure!(met.len() >= at, "there was no such step: {}", said.text);
        Ok(said)
    }

    fn join(&self) -> Result<()> {
        self.operate(Operation::Join, |_| Ok(()))?
            .expect(0, &["is part of cluster"])
            .map(drop)
    }

    /// Whether there was something to strike.
    fn strike(&self, party: Party, strike: Strike) -> Result<bool> {
        let subject = match party {
            Party::Master => &self.master,
            Party::Worker => &self.worker,
        };
        let run = |script: &str| subject.shell(script).map(|said| said.text.contains("HIT"));
        let pause = |change: &dyn Fn(bool) -> Result<()>| {
            change(true)?;
            std::thread::sleep(PAUSE);
            change(false).map(|()| true)
        };
        match strike {
            Strike::Kill(hit) => run(&hit.script()),
            Strike::Removal => run(&kill_program(&format!("{IMAGE} remove "))),
            Strike::Controller => run(&kill_program("/opt/gravity/bin/gravity controller")),
            Strike::Cut => pause(&|cut| subject.node.cut(cut)),
            Strike::Freeze => pause(&|frozen| subject.node.freeze(frozen)),
            Strike::Stop => pause(&|stopped| run(&stop(stopped)).map(drop)),
            Strike::Fill => {
                pause(&|full| run(&if full { fill_disk() } else { free_disk() }).map(drop))
            }
        }
    }

    /// Strikes at each step, or at one, of an operation, and of another one as long as
    /// more steps are hit: what is hit is not there for those that come until it runs
    /// again. Returns how many were hit.
    fn strike_all(
        &mut self,
        operation: Operation,
        party: Party,
        strike: Strike,
        at: Option<usize>,
    ) -> Result<usize> {
        let mut steps = Steps::default();
        let mut before = 0;
        loop {
            self.strike_each(operation, party, strike, at, &mut steps)?;
            let hits = steps.hit.len();
            if hits == before || at.is_some() || strike.is_pause() {
                ensure!(hits > 0, "nothing was hit");
                return Ok(hits);
            }
            before = hits;
        }
    }

    /// Strikes at each step that was not hit, or at one.
    fn strike_each(
        &mut self,
        operation: Operation,
        party: Party,
        strike: Strike,
        at: Option<usize>,
        steps: &mut Steps,
    ) -> Result<()> {
        let disk = match strike {
            Strike::Kill(hit) => Disk::mount(&self.worker, hit)?,
            _ => Disk::Own,
        };
        if operation != Operation::Join {
            self.join()?;
        }
        let before = self.hooks()?;
        let mut goes_on = false;
        loop {
            let before = steps.hit.len();
            let strikes = |line: &str| {
                let Some(step) = step(operation, line) else {
                    return Ok(());
                };
                let number = steps.number(&step);
                // The end of a phase is the beginning of the next one for what takes time.
                let is_twice = strike.is_pause() && line.contains(" completed: ");
                let is_chosen = at.is_none_or(|at| number == at);
                if is_chosen
                    && !is_twice
                    && !steps.hit.contains(&step)
                    && self.strike(party, strike)?
                {
                    steps.hit.insert(step);
                }
                Ok(())
            };
            let said = match operation {
                Operation::Join if goes_on => gravity_with(&self.worker.node, "resume", strikes)?,
                _ => self.operate(operation, strikes)?,
            };
            disk.mend(&self.worker, true)?;
            let is_done = said.code == 0
                || match operation {
                    Operation::Join => false,
                    Operation::Leave => is_left(&self.worker)?,
                    // Kubernetes forgets a node before its cluster does.
                    Operation::Remove => said.text.contains(REMOVED),
                };
            if is_done {
                break;
            }
            ensure!(
                steps.hit.len() > before
                    && (operation != Operation::Join || said.code == RESUMABLE),
                "exit code {}: {}",
                said.code,
                said.text
            );
            goes_on = true;
        }
        if operation == Operation::Join {
            self.has_joined(&before)?;
        }
        self.end(operation)?;
        disk.unmount(&self.worker)?;
        self.is_alone()
    }

    /// Both nodes are well, and the hooks of a join have run once more than `before`.
    fn has_joined(&self, before: &Hooks) -> Result<()> {
        let mut names = self.names();
        // The other one's name is that of the master with a number, not "second".
        names.insert(1, self.worker.node.name());
        has(&self.master, &names)?;
        let mut hooks = before.clone();
        for hook in ["preNodeAdd", "postNodeAdd"] {
            *hooks.entry(hook.into()).or_default() += 1;
        }
        let found = self.hooks()?;
        ensure!(found == hooks, "hooks ran {found:?}, not {hooks:?}");
        Ok(())
    }

    /// Has the other node out of the cluster and as it was, after an operation.
    fn end(&self, operation: Operation) -> Result<()> {
        if is_left(&self.worker)? {
            return Ok(());
        }
        match operation {
            Operation::Join | Operation::Leave => self.operate(Operation::Leave, |_| Ok(()))?,
            // The cluster knows it no more.
            Operation::Remove => self.worker.leave()?,
        }
        .expect(0, &[])
        .map(drop)
    }

    /// Hits a join at a step and rolls it back, or leaves where it came to its end.
    fn roll_back(&mut self, hit: Hit, at: usize) -> Result<usize> {
        let said = self.operate_until(Operation::Join, at, || {
            self.strike(Party::Worker, Strike::Kill(hit)).map(drop)
        })?;
        if said.code == 0 {
            self.end(Operation::Join)?;
        } else {
            gravity(&self.worker.node, "rollback --confirm")?.expect(0, &[])?;
        }
        self.is_alone().map(|()| 1)
    }

    /// Ends the node for ever at a step of an operation. A new one takes its place.
    fn lose_at(&mut self, operation: Operation, at: usize) -> Result<usize> {
        if operation != Operation::Join {
            self.join()?;
        }
        let end = || self.worker.shell("kill -9 -1").map(drop);
        self.operate_until(operation, at, end)?;
        self.lose()?;
        self.is_alone().map(|()| 1)
    }

    /// The master removes a node that has ended, and a new one takes its place.
    fn lose(&mut self) -> Result<()> {
        let name = self.worker.node.name().to_owned();
        // Of the cluster is who the status names.
        let known = gravity(&self.master.node, "status")?.text;
        if known.contains(&name) {
            let remove = format!("remove {name} --force --confirm");
            let said = gravity(&self.master.node, &remove)?;
            // The removal that the node had asked for may have come to its end.
            if !said.text.contains(REMOVED) {
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
        has(&self.master, &self.names())?;
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

fn worker(name: &str, number: u8, image: &Path, console: &Console) -> Result<Subject> {
    Subject::new(&format!("{name}-{number}"), image, console)
}

fn gravity(node: &Node, command: &str) -> Result<Said> {
    gravity_with(node, command, |_| Ok(()))
}

/// Runs a command of `gravity` and does `then` with each of its lines.
fn gravity_with(
    node: &Node,
    command: &str,
    mut then: impl FnMut(&str) -> Result<()>,
) -> Result<Said> {
    let script = format!("exec 2>&1 timeout --kill-after=5 {LIMIT} {IMAGE} {command}");
    let mut child = node
        .command(&["sh", "-c", &script])?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a command")?;
    let output = child.stdout.take().context("no output")?;
    let mut text = String::new();
    for line in BufReader::new(output).lines() {
        let line = line.context("reading what it says")?;
        then(&line)?;
        text.push_str(&line);
        text.push('\n');
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
    fn every_strike_has_a_row_and_every_step_ways_to_end() {
        let all = trials(28, 10);
        let count = |what: &dyn Fn(&Trial) -> bool| all.iter().filter(|trial| what(trial)).count();
        for operation in Operation::ALL {
            for (party, strike) in operation.strikes() {
                let what = What::Row(operation, party, strike);
                let expected = if strike.is_pause() { 1 } else { As::ALL.len() };
                let rows = count(&|trial| trial.what == what);
                assert_eq!(rows, expected, "{operation}: {strike} {party}");
            }
        }
        let lost = |operation: Operation, step: usize| {
            count(&|trial| trial.what == What::Lost(operation, step))
        };
        for step in 1..=28 {
            assert_eq!(lost(Operation::Join, step), 2, "{step}");
            let rollback =
                |trial: &Trial| matches!(trial.what, What::Rollback(_, at) if at == step);
            assert_eq!(count(&rollback), 1, "{step}");
        }
        assert!((1..=10).all(|step| lost(Operation::Leave, step) == 2));
    }

    #[test]
    fn what_a_hooks_pod_does_is_no_step_and_names_are_left_out() {
        let leave = |line: &str| step(Operation::Leave, line);
        assert_eq!(
            leave("Mon Nov 23 12:51:43 UTC  Running the preNodeRemove hook").as_deref(),
            Some(" Running the preNodeRemove hook")
        );
        assert_eq!(
            leave("Mon Nov 23 12:51:44 UTC  Created Job \"x-2\" in namespace \"default\"")
                .as_deref(),
            Some(" Created Job  in namespace ")
        );
        let ended = |seconds| {
            leave(&format!(
                "Mon Nov 23 12:51:44 UTC  Job \"x-2\" in namespace \"default\" has completed, \
                 {seconds} seconds elapsed"
            ))
        };
        assert!(ended(4).is_some() && ended(4) == ended(15));
        for line in [
            "removed link /usr/local/bin/helm",
            "Mon Nov 23 12:51:44 UTC  Created Pod \"x-2-y\" in namespace \"default\"",
            "Mon Nov 23 12:51:45 UTC  [x/check] nj-2 is about to go",
        ] {
            assert_eq!(leave(line), None, "{line}");
        }
        let join = |line| step(Operation::Join, line);
        assert!(join("Mon Nov 23 12:52:37 UTC  /image completed: Keep the image").is_some());
        assert!(join("Mon Nov 23 12:52:37 UTC  Running the preNodeAdd hook").is_none());
    }
}
