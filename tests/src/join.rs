//! Two nodes: the second joins, works, leaves, and joins again to be removed. Two
//! more that have only the program get the image from both, and from each other.
//!
//! In: the sample's cluster image. Out: an error at the first thing that is not
//! as it should be; the nodes then stay to be looked at.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::{Console, render};
use event::Sink;
use serde::Deserialize;

use crate::crash::kill_program;
use crate::node::{self, Node};
use crate::scenario::{IMAGE, Setup, check, install_with, run_visibly};
use crate::snapshot::Snapshot;
use crate::{file, process, sample};

/// How long pods may take to be where they should.
const PODS: Duration = Duration::from_secs(60);
/// How long it may take until a service is seen to hang, and to work again.
const SERVICE: Duration = Duration::from_secs(120);
/// Replicas of the sample's web server: enough for both nodes to get some.
const REPLICAS: usize = 4;

/// How much of the image has come when one that gives it is killed, in bytes.
const PART: u64 = 16 << 20;

/// Profile of the sample that is of workers.
pub(crate) const WORKER: &str = "worker";

/// A token that was chosen at the install.
const OWN: &str = "correct-horse-battery-staple";

/// What is read of `gravity token create --output json`.
#[derive(Debug, Deserialize)]
struct Token {
    name: String,
    token: String,
}

/// A pod: its node and address.
#[derive(Debug)]
struct Pod {
    node: String,
    address: String,
}

/// Runs the scenario on the nodes `NAME-1` and `NAME-2`.
///
/// # Errors
/// At the first check that fails.
pub fn run(setup: &Setup, name: &str, console: &Console) -> Result<()> {
    node::require_root()?;
    let image = setup.image(console)?;
    let first = setup.create(&format!("{name}-1"), console)?;
    let second = setup.create(&format!("{name}-2"), console)?;
    second.copy(&image, IMAGE)?;
    let before = Snapshot::take(&second)?;
    install_with(&first, &image, &[&format!("--token={OWN}")], console)?;

    console.step("Joining with wrong tokens");
    let brief = token(&first, "1s")?;
    let token = token(&first, "1h")?;
    refusals(&first, &second, &token)?;
    expired(&first, &second, &brief)?;
    before.is_still(&second, "a refused join")?;

    console.step("./gravity join");
    let started = Instant::now();
    run_visibly(&mut join(&first, &second, &token.token, WORKER)?)?;
    console.info(&format!(
        "Joined in {}",
        render::duration(started.elapsed())
    ));
    check(&first)?;
    ensure!(
        nodes(&first)? == [first.name(), second.name()],
        "not both nodes are ready"
    );
    // They fail where anything is not well.
    let seen = [&first, &second].map(|node| node.text(&[IMAGE, "status"]));
    let [master, worker] = seen;
    ensure!(
        master?.contains(&format!("* {} / ", second.name())),
        "the master's status does not show the new node"
    );
    worker.context("the status of the new node")?;
    hooks_ran(&first, &[("preNodeAdd", 1), ("postNodeAdd", 1)])?;
    across(&first, &second)?;
    console.info("Pods of both nodes reach each other, by address and by service");
    sick_service(&first, &second)?;
    console.info("The master's status tells of a worker's service that hangs");
    refuse_again(&first, &second, &token.token)?;
    without_image(
        setup,
        [&format!("{name}-3"), &format!("{name}-4")],
        &first,
        &second,
        &token,
        console,
    )?;

    console.step("./gravity leave");
    run_visibly(&mut second.command(&[IMAGE, "leave", "--confirm"])?)?;
    before.is_still(&second, "`leave`")?;
    ensure!(nodes(&first)? == [first.name()], "the node has not left");
    hooks_ran(&first, &[("preNodeRemove", 3), ("postNodeRemove", 3)])?;
    running_on(&first, &[first.name()])?;
    check(&first)?;

    console.step("Joining again with our own token, then ./gravity remove on the master");
    twice(&first, &second, OWN)?;
    let snapshots = "cd /var/lib/gravity/etcd-snapshots && ls *-before-operation.db | tail -n 1";
    let last = first.text(&["sh", "-c", snapshots])?;
    run_visibly(&mut first.command(&[IMAGE, "remove", second.name(), "--force", "--confirm"])?)?;
    ensure!(nodes(&first)? == [first.name()], "the node was not removed");
    ensure!(
        first.text(&["sh", "-c", snapshots])? > last,
        "no snapshot of etcd was taken before a node left or was removed: {last}"
    );
    hooks_ran(&first, &[("preNodeRemove", 4), ("postNodeRemove", 4)])?;
    stays_removed(&first, &second)?;
    let refused = second.command(&[IMAGE, "leave", "--confirm"])?.output();
    let refused = refused.context("running leave")?;
    run_visibly(&mut first.command(&[IMAGE, "token", "remove", &token.name])?)?;
    ensure!(
        refused.status.success(),
        "a node that the cluster has forgotten can't leave: {}",
        String::from_utf8_lossy(&refused.stderr)
    );
    let ended = said(&mut join(&first, &second, &token.token, WORKER)?)?;
    ensure!(
        ended.contains("token is wrong or has expired"),
        "an ended token is not refused: {ended}"
    );
    second.delete()?;
    first.delete()
}

/// Two nodes that have the program alone get the image from a master and a worker,
/// one of which dies meanwhile, and from each other; one runs a pod; both leave.
fn without_image(
    setup: &Setup,
    [name, other]: [&str; 2],
    master: &Node,
    worker: &Node,
    token: &Token,
    console: &Console,
) -> Result<()> {
    console.step("./gravity join on a node that has no image");
    let node = setup.create(name, console)?;
    let program = file::cache()?.join("program");
    let installed = master.run(&["cat", "/var/lib/gravity/bin/gravity"])?;
    file::write(&program, installed.stdout)?;
    node.copy(&program, IMAGE)?;
    node.run(&["chmod", "0755", IMAGE])?;
    let before = Snapshot::take(&node)?;

    let changed = "cp -p /root/gravity /root/other && echo >> /root/other";
    node.run(&["sh", "-c", changed])?;
    let given = format!("--token={}", token.token);
    let words = ["/root/other", "join", master.address(), &given];
    let text = said(&mut node.command(&words)?)?;
    ensure!(
        text.contains("not the one of the cluster's image"),
        "{text}"
    );
    node.run(&["rm", "/root/other"])?;
    node.run(&["hostname", worker.name()])?;
    let text = said(&mut join(master, &node, &token.token, WORKER)?)?;
    node.run(&["hostname", node.name()])?;
    ensure!(
        text.contains("has a node") && !text.contains("Checking the node"),
        "{text}"
    );
    before.is_still(&node, "a refused join")?;
    let closed = "nft add table ip t
         nft add chain ip t c '{ type filter hook output priority 0; }'
         nft add rule ip t c udp dport 8472 drop";
    worker.run(&["sh", "-ec", closed])?;
    let text = said(&mut join(master, &node, &token.token, WORKER)?);
    worker.run(&["nft", "delete", "table", "ip", "t"])?;
    let text = text?;
    let from = format!("ports of this node, from {}", worker.address());
    ensure!(
        text.contains(&from) && text.contains("refused by 8472/udp"),
        "what a worker's firewall drops is not found: {text}"
    );
    before.is_still(&node, "a join that a worker's firewall is in the way of")?;

    let other = setup.create(other, console)?;
    other.copy(&program, IMAGE)?;
    other.run(&["chmod", "0755", IMAGE])?;
    let slow = "tc qdisc add dev eth0 root tbf rate 100mbit burst 128kb latency 50ms";
    for giver in [master, worker] {
        giver.run(&["sh", "-c", slow])?;
    }
    let started = Instant::now();
    let begin = |node: &Node| {
        let mut command = join(master, node, &token.token, WORKER)?;
        command.stdout(Stdio::piped()).spawn().context("joining")
    };
    let joining = [begin(&node)?, begin(&other)?];
    let come = "du -k /var/lib/gravity/image/cluster 2>/dev/null | cut -f1";
    let part = process::wait_until(PODS, || {
        let come = node.text(&["sh", "-c", come]).unwrap_or_default();
        come.trim().parse().unwrap_or(0) * 1024 > PART
    });
    worker.run(&["pkill", "-KILL", "-f", "gravity images"])?;
    let mut shared = Vec::new();
    for (joining, neighbour) in joining.into_iter().zip([&other, &node]) {
        let joined = joining.wait_with_output().context("waiting for a join")?;
        let text = String::from_utf8_lossy(&joined.stdout).into_owned();
        ensure!(part && joined.status.success(), "a join ended with {text}");
        let from = format!(" from {}:", neighbour.address());
        shared.extend(
            text.lines()
                .find(|line| line.contains(&from))
                .map(ToOwned::to_owned),
        );
    }
    for giver in [master, worker] {
        giver.run(&["tc", "qdisc", "del", "dev", "eth0", "root"])?;
    }
    console.info(&format!(
        "Two nodes joined in {}, with the image from two others and from each other: {}",
        render::duration(started.elapsed()),
        shared.join(", ")
    ));
    ensure!(shared.len() == 2, "they gave each other nothing");
    run_visibly(&mut other.command(&[IMAGE, "leave", "--confirm"])?)?;
    other.delete()?;
    ensure!(
        nodes(master)?.contains(&node.name().to_owned()),
        "it is not ready"
    );
    let image = "-o=jsonpath={.spec.template.spec.containers[0].image}";
    let image = master.text(&["kubectl", "get", "deployment", "web", image])?;
    let image = format!("--image={}", image.trim());
    let place = serde_json::json!({ "spec": { "nodeName": node.name() } });
    let place = format!("--overrides={place}");
    master.run(&["kubectl", "run", "placed", &image, &place])?;
    let ready = ["--for=condition=Ready", "pod/placed", "--timeout=60s"];
    master.run(&[&["kubectl", "wait"][..], &ready].concat())?;
    master.run(&["kubectl", "delete", "pod", "placed", "--now"])?;
    run_visibly(&mut node.command(&[IMAGE, "leave", "--confirm"])?)?;
    before.is_still(&node, "`leave`")?;
    node.delete()
}

/// Freezes a service of the worker and thaws it again: the master tells.
fn sick_service(master: &Node, worker: &Node) -> Result<()> {
    let told = format!("on {} service coredns is", worker.name());
    let wait_for = |sick: bool| {
        let mut last = String::new();
        let seen = process::wait_until(SERVICE, || {
            let Ok(mut command) = master.command(&[IMAGE, "status"]) else {
                return false;
            };
            let Ok(output) = command.output() else {
                return false;
            };
            last = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success() != sick && last.contains(&told) == sick
        });
        ensure!(seen, "sick: {sick}, but the status is {last}");
        Ok(())
    };
    wait_for(false)?;
    worker.run(&["pkill", "-STOP", "coredns"])?;
    let seen = wait_for(true);
    worker.run(&["pkill", "-CONT", "coredns"])?;
    seen?;
    wait_for(false)
}

/// Demands that each of these hooks has run so often, and well.
fn hooks_ran(master: &Node, hooks: &[(&str, usize)]) -> Result<()> {
    for (hook, count) in hooks {
        let label = format!("--selector=gravitational.io/hook={hook}");
        let succeeded = "--output=jsonpath={.items[*].status.succeeded}";
        let text = master.text(&["kubectl", "get", "jobs", &label, succeeded])?;
        let ran = text.split_whitespace().filter(|times| *times == "1");
        ensure!(
            ran.count() == *count,
            "{hook} should have run {count} times and succeeded: {text}"
        );
    }
    Ok(())
}

fn token(master: &Node, ttl: &str) -> Result<Token> {
    let ttl = format!("--ttl={ttl}");
    let text = master.text(&[IMAGE, "token", "create", &ttl, "--output=json"])?;
    serde_json::from_str(&text).with_context(|| format!("reading the token from {text}"))
}

/// The command by which a node joins with a profile.
pub(crate) fn join(
    master: &Node,
    node: &Node,
    token: &str,
    profile: &str,
) -> Result<std::process::Command> {
    let token = format!("--token={token}");
    let role = format!("--role={profile}");
    node.command(&[IMAGE, "join", master.address(), &token, &role])
}

/// What a command that must fail says.
pub(crate) fn said(command: &mut std::process::Command) -> Result<String> {
    let output = command.output().context("running a command")?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(!output.status.success(), "it should have failed: {text}");
    Ok(text)
}

/// A machine that was removed while it ran makes itself no node again when its kubelet
/// starts anew, as it does with the machine.
fn stays_removed(first: &Node, second: &Node) -> Result<()> {
    const LOG: &str = "/var/lib/gravity/log/kubelet.log";
    let before = second.text(&["sh", "-c", &format!("wc -l <{LOG}")])?;
    let since: usize = before.trim().parse().context("lines of kubelet's log")?;
    let kill = kill_program("/usr/local/bin/kubelet");
    second.run(&["sh", "-c", &kill])?;
    // What kubelet writes where it may not make its node and finds none: the policy's
    // own words it keeps to itself.
    let refused = process::wait_until(Duration::from_secs(60), || {
        let log = second.text(&["tail", &format!("--lines=+{}", since + 1), LOG]);
        log.is_ok_and(|log| log.contains("error getting existing node"))
    });
    ensure!(refused, "the removed node's kubelet was not refused");
    let all = first.text(&["kubectl", "get", "nodes", "--output=name"])?;
    ensure!(
        all.trim() == format!("node/{}", first.name()),
        "the removed node is one again: {all}"
    );
    Ok(())
}

/// Tokens that are not the cluster's, and addresses where it is not.
fn refusals(first: &Node, second: &Node, good: &Token) -> Result<()> {
    let (rest, fingerprint) = good.token.rsplit_once('.').context("no fingerprint")?;
    let flip = |hex: &str| -> String {
        let last = if hex.ends_with('0') { "1" } else { "0" };
        format!("{}{last}", &hex[..hex.len() - 1])
    };
    let other_secret = format!("{}.{fingerprint}", flip(rest));
    let other_cluster = format!("{rest}.{}", flip(fingerprint));
    for (token, word) in [
        (other_secret.as_str(), "token is wrong"),
        (&other_cluster, "is not the cluster that the token is of"),
        ("the-secret-of-a-stranger", "token is wrong"),
        ("short", "printable characters"),
    ] {
        let text = said(&mut join(first, second, token, WORKER)?)?;
        ensure!(text.contains(word), "no \"{word}\" in: {text}");
    }
    // Nobody listens there.
    let nowhere = format!("{}:1", first.address());
    let token = format!("--token={}", good.token);
    let text = said(&mut second.command(&[IMAGE, "join", &nowhere, &token])?)?;
    ensure!(text.contains("connect to the cluster"), "{text}");
    Ok(())
}

/// A token whose time is over is refused, and still listed.
fn expired(first: &Node, second: &Node, token: &Token) -> Result<()> {
    let text = said(&mut join(first, second, &token.token, WORKER)?)?;
    ensure!(text.contains("token is wrong or has expired"), "{text}");
    let list = first.text(&[IMAGE, "token", "list"])?;
    let listed = format!("{}  expired", token.name);
    ensure!(list.contains(&listed), "no `{listed}` in {list}");
    Ok(())
}

/// Joins, and tries to once more meanwhile.
fn twice(first: &Node, second: &Node, token: &str) -> Result<()> {
    let mut joining = join(first, second, token, WORKER)?;
    let joining = joining.stdout(Stdio::piped()).spawn().context("joining")?;
    let begun = process::wait_until(PODS, || {
        let plan = second.text(&[IMAGE, "plan", "--output=json"]);
        plan.is_ok_and(|plan| plan.contains("in_progress"))
    });
    let again = join(first, second, token, WORKER)?.output();
    let again = again.context("joining once more")?;
    let joined = joining.wait_with_output().context("waiting for a join")?;
    let [text, refused] = [&joined.stdout, &again.stderr].map(|said| String::from_utf8_lossy(said));
    ensure!(begun && joined.status.success(), "a join ended with {text}");
    ensure!(
        again.status.code() == Some(4) && refused.contains("another operation (pid "),
        "a second join ended with {:?}: {refused}",
        again.status.code()
    );
    Ok(())
}

/// A node that is one of a cluster does not become another one.
fn refuse_again(first: &Node, second: &Node, token: &str) -> Result<()> {
    let text = said(&mut join(first, second, token, WORKER)?)?;
    ensure!(text.contains("is part of a cluster"), "{text}");
    let text = said(&mut second.command(&[IMAGE, "token", "list"])?)?;
    ensure!(text.contains("run this on a master"), "{text}");
    Ok(())
}

/// Names of the nodes that Kubernetes says are ready.
pub(crate) fn nodes(master: &Node) -> Result<Vec<String>> {
    let jsonpath = "jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=='Ready')].status}{'\\n'}{end}";
    let text = master.text(&["kubectl", "get", "nodes", "-o", jsonpath])?;
    let ready = text.lines().filter_map(|line| line.strip_suffix("=True"));
    Ok(ready.map(ToOwned::to_owned).collect())
}

fn pods(master: &Node) -> Result<Vec<Pod>> {
    let jsonpath = "jsonpath={range .items[*]}{.spec.nodeName}={.status.podIP}{'\\n'}{end}";
    let text = master.text(&[
        "kubectl",
        "get",
        "pods",
        "--field-selector=status.phase=Running",
        "-l",
        "app=web",
        "-o",
        jsonpath,
    ])?;
    let pod = |line: &str| {
        let (node, address) = line.split_once('=')?;
        Some(Pod {
            node: node.into(),
            address: address.into(),
        })
    };
    Ok(text.lines().filter_map(pod).collect())
}

/// Waits until all replicas run, on each of `names` at least one.
fn running_on(master: &Node, names: &[&str]) -> Result<Vec<Pod>> {
    let mut last = Vec::new();
    let there = process::wait_until(PODS, || {
        last = pods(master).unwrap_or_default();
        last.len() == REPLICAS
            && names
                .iter()
                .all(|name| last.iter().any(|pod| pod.node == *name))
    });
    ensure!(there, "pods are not where they should be: {last:?}");
    Ok(last)
}

/// Every node reaches every pod, and the service by its port on both.
fn across(first: &Node, second: &Node) -> Result<()> {
    let replicas = format!("--replicas={REPLICAS}");
    first.run(&["kubectl", "scale", "deployment", "web", &replicas])?;
    let pods = running_on(first, &[first.name(), second.name()])?;
    let urls = pods
        .iter()
        .map(|pod| format!("http://{}:8080", pod.address))
        .chain([first, second].map(|node| format!("http://{}:30080", node.address())));
    for url in urls {
        for node in [first, second] {
            let mut last = String::new();
            let served = process::wait_until(PODS, || {
                last = node
                    .text(&["curl", "-sS", "--fail", "-m", "5", &url])
                    .unwrap_or_else(|error| format!("{error:#}"));
                last == sample::PAGE
            });
            ensure!(served, "{url} from {}: {last}", node.name());
        }
    }
    Ok(())
}
