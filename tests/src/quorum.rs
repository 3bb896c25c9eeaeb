//! Three masters and a worker: each master dies and comes back, each is cut off for a
//! while, one stands still for a while; then two are lost for good, and the third goes
//! on alone until a new one joins.
//!
//! In: the sample's cluster image. Out: a line of what happened when, and an
//! error at the first thing that is not as it should be; the nodes then stay to
//! be looked at. All the time the worker writes and pulls, as a user's pod would:
//! what was answered must be there at the end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::Console;

use crate::join::{self, WORKER, join};
use crate::load::{self, Load};
use crate::masters::{
    MASTER, SETTLE, begin_three, ready_within, said, wait_active, wait_api, wait_members,
};
use crate::node::{self, Node};
use crate::process;
use crate::scenario::{IMAGE, Setup, Timeline, check, run_visibly};

/// How long a master is dead or cut off, and how long one stands still.
const GONE: Duration = Duration::from_secs(30);
const FROZEN: Duration = Duration::from_secs(60);
/// How long nothing is answered without a quorum: longer than an election.
const SILENCE: Duration = Duration::from_secs(10);
/// How long the next write may take to be answered after a recovery.
const RESUME: Duration = Duration::from_secs(30);

/// Runs the scenario on the nodes `NAME-1` to `NAME-6`.
///
/// # Errors
/// At the first check that fails.
pub fn run(setup: &Setup, name: &str, console: &Console) -> Result<()> {
    node::require_root()?;
    let timeline = Timeline::new(console);
    let told = |what: &str| timeline.tell(what);
    let image = setup.image(console)?;
    let new = |number: u8| setup.create_with(&format!("{name}-{number}"), &image, console);
    let (one, two, three) = (new(1)?, new(2)?, new(3)?);
    let (mut installing, token) = begin_three(&one)?;
    for node in [&two, &three] {
        run_visibly(&mut join(&one, node, &token, MASTER)?)?;
    }
    let ended = installing.wait().context("waiting for the install")?;
    ensure!(ended.success(), "the install ended with {ended}");
    let all = [one.name(), two.name(), three.name()].map(|name| (name, false));
    wait_members(&one, &all)?;
    for node in [&one, &two, &three] {
        wait_api(node)?;
    }
    let worker = new(4)?;
    run_visibly(&mut join(&two, &worker, &token, WORKER)?)?;
    wait_active(&three)?;
    told("three masters vote, a worker has joined");
    let load = Both {
        writes: Load::writes(&worker, &three)?,
        pulls: Load::pulls(&worker)?,
    };
    load.wait_answers(RESUME)?;
    let masters = [&one, &two, &three];
    for (index, node) in masters.into_iter().enumerate() {
        let witness = masters[(index + 1) % masters.len()];
        told(&disturbed(node, witness, &load, ("was dead", GONE), die)?);
        told(&disturbed(
            node,
            witness,
            &load,
            ("was cut off", GONE),
            Node::cut,
        )?);
    }
    let frozen = ("stood still", FROZEN);
    told(&disturbed(&two, &three, &load, frozen, Node::freeze)?);
    let Both { writes, pulls } = load;

    let recover = [IMAGE, "etcd", "recover", "--confirm"];
    let refused = join::said(&mut three.command(&recover)?)?;
    ensure!(
        refused.contains("take writes"),
        "a recovery beside a quorum is refused with {refused}"
    );
    let lost = [one.name(), two.name()].map(ToOwned::to_owned);
    one.delete()?;
    two.delete()?;
    let dead = load::now();
    told("two masters are lost");
    writes.none_for(SILENCE)?;
    let status = said(&three, "status")?;
    ensure!(
        !three
            .command(&[IMAGE, "status"])?
            .output()?
            .status
            .success()
            && status.contains("no quorum")
            && lost.iter().all(|name| status.contains(name.as_str())),
        "the status does not say what is wrong: {status}"
    );
    told("no write is answered, and the status says why");

    let began = load::now();
    run_visibly(&mut three.command(&recover)?)?;
    let alone = writes.wait_answer(began, RESUME)?;
    told(&format!(
        "the third master goes on alone; writes are answered {alone:.0} s after the recovery \
         began, {:.0} s after the loss",
        load::now() - dead
    ));
    writes.all_there()?;
    wait_members(&three, &[(three.name(), false)])?;
    wait_active(&three)?;
    let seen = three.text(&["kubectl", "get", "nodes", "--output=name"])?;
    ensure!(
        lost.iter().all(|name| !seen.contains(name.as_str())),
        "the lost masters are still nodes: {seen}"
    );
    ensure!(
        ready_within(&worker, &three)?,
        "the worker is not ready with the third master alone"
    );
    wait_active(&worker)?;
    told("the worker reaches it");

    let five = new(5)?;
    run_visibly(&mut join(&three, &five, &token, MASTER)?)?;
    wait_members(&three, &[(three.name(), false), (five.name(), true)])?;
    told("a new master stands by");
    let six = new(6)?;
    run_visibly(&mut join(&three, &six, &token, MASTER)?)?;
    let all = [three.name(), five.name(), six.name()].map(|name| (name, false));
    wait_members(&three, &all)?;
    for node in [&three, &five, &six] {
        wait_api(node)?;
        wait_active(node)?;
    }
    told("three masters vote again");
    check(&three)?;
    let (answered, pulled) = (writes.end()?, pulls.end()?);
    told(&format!(
        "none of {answered} writes that were answered is lost; {pulled} pulls"
    ));
    for node in [three, worker, five, six] {
        node.delete()?;
    }
    Ok(())
}

/// What the worker does all the time.
struct Both<'a> {
    writes: Load<'a>,
    pulls: Load<'a>,
}

impl Both<'_> {
    fn wait_answers(&self, patience: Duration) -> Result<()> {
        for load in [&self.writes, &self.pulls] {
            load.wait_answer(load::now(), patience)?;
        }
        Ok(())
    }
}

/// Ends a machine, or starts it again with what is on its disk.
fn die(node: &Node, dead: bool) -> Result<()> {
    node.cut(dead)?;
    match dead {
        // Also what waits for this shell: how it ends says nothing.
        true => node
            .command(&["sh", "-c", "kill -9 -1"])?
            .output()
            .map(drop)
            .context("killing all of a node"),
        false => run_visibly(&mut node.command(&[IMAGE, "start"])?),
    }
}

/// Disturbs a master for a time. Demands that another one's status names it with
/// a reason, that writes and pulls go on, and that it is well by itself afterwards.
/// Returns what to tell.
fn disturbed(
    node: &Node,
    witness: &Node,
    load: &Both<'_>,
    (how, time): (&str, Duration),
    disturb: impl Fn(&Node, bool) -> Result<()>,
) -> Result<String> {
    let (from, began) = (load::now(), Instant::now());
    disturb(node, true)?;
    let mut last = String::new();
    let reason = format!("{} (", node.name());
    let named = process::wait_until(time.saturating_sub(began.elapsed()), || {
        last = said(witness, "status").unwrap_or_default();
        last.contains("degraded") && last.contains(&reason)
    });
    std::thread::sleep(time.saturating_sub(began.elapsed()));
    disturb(node, false)?;
    ensure!(named, "the status does not name {}: {last}", node.name());
    wait_active(node)?;
    wait_active(witness)?;
    load.wait_answers(SETTLE)?;
    let (writes, pulls) = (load.writes.pause(from)?, load.pulls.pause(from)?);
    load.writes.all_there()?;
    Ok(format!(
        "master {} {how} for {} s, and is well again; writes paused for {writes:.1} s, \
         pulls for {pulls:.1} s",
        node.name(),
        time.as_secs()
    ))
}
