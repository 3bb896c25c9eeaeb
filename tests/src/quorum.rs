//! Three masters and a worker: one is cut off for a while, one stands still for a
//! while, two are lost for good, and the third goes on alone until a new one joins.
//!
//! In: the sample's cluster image. Out: a line of what happened when, and an
//! error at the first thing that is not as it should be; the nodes then stay to
//! be looked at. All the time the third master writes: what was answered must be
//! there at the end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::Console;

use crate::join::{self, WORKER, join};
use crate::masters::{
    MASTER, SETTLE, begin_three, ready_within, said, wait_active, wait_api, wait_members,
};
use crate::node::{self, Node};
use crate::process;
use crate::scenario::{IMAGE, Setup, Timeline, check, run_visibly};
use crate::writes::{self, Writes};

/// How long one master is cut off, and another one stands still.
const CUT: Duration = Duration::from_secs(30);
const FROZEN: Duration = Duration::from_secs(60);
/// How long writes may pause when one of three masters is gone, in seconds.
const PAUSE: f64 = 15.0;
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
    let new = |number: u8| {
        let node = setup.create(&format!("{name}-{number}"), console)?;
        node.copy(&image, IMAGE)?;
        Ok::<_, anyhow::Error>(node)
    };
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
    let writes = Writes::begin(&three)?;
    writes.wait_answer(writes::now(), RESUME)?;

    let pause = disturbed(&one, &three, &writes, CUT, Node::cut)?;
    told(&format!(
        "a master was cut off for {} s, and is well again; writes paused for {pause:.1} s",
        CUT.as_secs()
    ));
    let pause = disturbed(&two, &three, &writes, FROZEN, Node::freeze)?;
    told(&format!(
        "a master stood still for {} s, and is well again; writes paused for {pause:.1} s",
        FROZEN.as_secs()
    ));

    let recover = [IMAGE, "etcd", "recover", "--confirm"];
    let refused = join::said(&mut three.command(&recover)?)?;
    ensure!(
        refused.contains("take writes"),
        "a recovery beside a quorum is refused with {refused}"
    );
    let lost = [one.name(), two.name()].map(ToOwned::to_owned);
    one.delete()?;
    two.delete()?;
    let dead = writes::now();
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

    let began = writes::now();
    run_visibly(&mut three.command(&recover)?)?;
    let alone = writes.wait_answer(began, RESUME)?;
    told(&format!(
        "the third master goes on alone; writes are answered {alone:.0} s after the recovery \
         began, {:.0} s after the loss",
        writes::now() - dead
    ));
    writes::all_there(&three)?;
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
    let answered = writes.end()?;
    told(&format!(
        "none of {answered} writes that were answered is lost"
    ));
    for node in [three, worker, five, six] {
        node.delete()?;
    }
    Ok(())
}

/// Disturbs a master for a time. Demands that another one's status names it with
/// a reason, that writes go on, and that it is well by itself afterwards. Returns
/// the longest pause of the writes in seconds.
fn disturbed(
    node: &Node,
    witness: &Node,
    writes: &Writes<'_>,
    time: Duration,
    disturb: impl Fn(&Node, bool) -> Result<()>,
) -> Result<f64> {
    let (from, began) = (writes::now(), Instant::now());
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
    writes.wait_answer(from, SETTLE)?;
    let pause = writes.longest_pause(from, writes::now())?;
    ensure!(pause < PAUSE, "writes paused for {pause:.1} s");
    writes::all_there(witness)?;
    Ok(pause)
}
