//! A flavor of three masters, and a worker: a master dies while the worker writes, is
//! removed, and a new one takes its place.
//!
//! In: the sample's cluster image. Out: a line of what happened when, and an
//! error at the first thing that is not as it should be; the nodes then stay to
//! be looked at.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use console::Console;
use serde::Deserialize;

use crate::join::{WORKER, join, nodes};
use crate::load::{self, Load};
use crate::node::{self, Node};
use crate::process;
use crate::scenario::{IMAGE, Setup, Timeline, check, run_visibly};

/// Profile of the sample whose first three nodes are masters.
pub(crate) const MASTER: &str = "node";
/// How long the cluster may take to be what it should.
pub(crate) const SETTLE: Duration = Duration::from_secs(120);

/// A member of etcd, as `etcdctl` tells.
#[derive(Debug, Deserialize)]
struct Member {
    #[serde(default)]
    name: String,
    #[serde(rename = "isLearner", default)]
    is_learner: bool,
}

#[derive(Debug, Deserialize)]
struct Members {
    members: Vec<Member>,
}

/// Runs the scenario on the nodes `NAME-1` to `NAME-5`.
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
    told("the first node waits for others");

    run_visibly(&mut join(&one, &two, &token, MASTER)?)?;
    wait_members(&one, &[(one.name(), false), (two.name(), true)])?;
    // Settings that an administrator has for etcdctl are not ours.
    let own = "ETCDCTL_ENDPOINTS=https://127.0.0.1:1";
    let standby = two
        .text(&["env", own, IMAGE, "status"])
        .context("a master that stands by is not well")?;
    ensure!(
        standby.contains("stands by"),
        "it does not say so: {standby}"
    );
    told("a second master stands by");

    run_visibly(&mut join(&one, &three, &token, MASTER)?)?;
    let ended = installing.wait().context("waiting for the install")?;
    ensure!(ended.success(), "the install ended with {ended}");
    // The second one's control plane begins to work when the third one votes.
    wait_active(&one)?;
    check(&one)?;
    told("the install is done");
    let all = [one.name(), two.name(), three.name()].map(|name| (name, false));
    wait_members(&one, &all)?;
    for node in [&one, &two, &three] {
        wait_api(node)?;
    }
    told("three masters vote");

    let worker = new(4)?;
    run_visibly(&mut join(&two, &worker, &token, WORKER)?)?;
    for node in [&one, &two, &three] {
        wait_active(node)?;
    }
    told("a worker has joined, by the second master");

    let writes = Load::writes(&worker, &two)?;
    let begun = load::now();
    std::thread::sleep(Duration::from_secs(5));
    let dead = one.name().to_owned();
    one.delete()?;
    told("the first master is dead");
    let degraded = process::wait_until(SETTLE, || {
        let lost = format!("node {dead} is not ready in Kubernetes");
        said(&two, "status").is_ok_and(|text| text.contains(&lost))
    });
    ensure!(degraded, "the status does not name the dead master");
    told("the status says so");
    writes.wait_answer(begun, SETTLE)?;
    let gap = writes.pause(begun)?;
    writes.end()?;
    told(&format!(
        "writes paused for {gap:.1} s, and none that was answered is lost"
    ));
    ensure!(
        ready_within(&worker, &two)?,
        "the worker is not ready without the first master"
    );
    report(&two, &[&three, &worker], &dead)?;
    told("a report holds logs of all nodes but the dead one, and names that");

    run_visibly(&mut two.command(&[IMAGE, "remove", &dead, "--force", "--confirm"])?)?;
    wait_members(&two, &[(two.name(), false), (three.name(), false)])?;
    wait_active(&two)?;
    told("the dead master is removed");

    let five = new(5)?;
    run_visibly(&mut join(&two, &five, &token, MASTER)?)?;
    let all = [two.name(), three.name(), five.name()].map(|name| (name, false));
    wait_members(&two, &all)?;
    wait_active(&five)?;
    told("a new master votes in its place");

    run_visibly(&mut three.command(&[IMAGE, "leave", "--confirm"])?)?;
    wait_members(&two, &[(two.name(), false), (five.name(), false)])?;
    wait_active(&five)?;
    told("a master has left by itself");
    check(&two)?;
    for node in [two, three, worker, five] {
        node.delete()?;
    }
    Ok(())
}

/// A report on `node` has what `others` have logged, and says that `dead` is missing.
fn report(node: &Node, others: &[&Node], dead: &str) -> Result<()> {
    let script = format!(
        "cd /root && {IMAGE} report --file=r.tar.gz && tar tzf r.tar.gz && \
         tar xzOf r.tar.gz report.json && rm r.tar.gz"
    );
    let text = node.text(&["sh", "-c", &script])?;
    let logs = others
        .iter()
        .map(|other| format!("nodes/{}/planet/kubelet.log\n", other.name()));
    for words in logs.chain([format!("\"nodes/{dead}: ")]) {
        ensure!(text.contains(&words), "no {words} in the report: {text}");
    }
    Ok(())
}

/// Begins the install of the sample's flavor of three masters.
pub(crate) fn begin_three(node: &Node) -> Result<(Child, String)> {
    let (install, token, shown) = begin_install(node, &["--flavor=three"])?;
    ensure!(
        shown.contains("2 nodes: ./gravity join") && shown.contains("--role=node"),
        "that is not how others join: {shown}"
    );
    Ok((install, token))
}

/// Begins an install that waits for others. Returns it with the token that it
/// shows, and what it has said until then.
pub(crate) fn begin_install(node: &Node, words: &[&str]) -> Result<(Child, String, String)> {
    let address = format!("--advertise-addr={}", node.address());
    let usual = [IMAGE, "install", "--accept-eula", &address];
    let mut install = node
        .command(&[&usual[..], words].concat())?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the install")?;
    let mut lines = BufReader::new(install.stdout.take().context("no output")?).lines();
    let mut shown = String::new();
    let token = loop {
        let line = lines.next().context("the install ended early")?;
        let line = line.context("reading what the install says")?;
        shown = format!("{shown}{line}\n");
        if let Some((_, rest)) = line.split_once("--token=") {
            break rest.split(' ').next().unwrap_or_default().to_owned();
        }
    };
    // Somebody must go on reading.
    std::thread::spawn(move || lines.for_each(drop));
    let log = node.text(&["sh", "-c", "cat /var/lib/gravity/operations/*/*.log"])?;
    ensure!(!log.contains(&token), "the token is in a log");
    Ok((install, token, shown))
}

/// What a command says, however it ends.
pub(crate) fn said(node: &Node, command: &str) -> Result<String> {
    let output = node.command(&[IMAGE, command])?.output();
    let output = output.with_context(|| format!("running {command}"))?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// Waits until the members of etcd are these, each with whether it is a learner.
pub(crate) fn wait_members(node: &Node, wanted: &[(&str, bool)]) -> Result<()> {
    let mut last = String::new();
    let there = process::wait_until(SETTLE, || {
        last = members(node).unwrap_or_else(|error| format!("{error:#}"));
        serde_json::from_str::<Members>(&last).is_ok_and(|found| {
            let found: BTreeSet<_> = found
                .members
                .iter()
                .map(|member| (member.name.as_str(), member.is_learner))
                .collect();
            found == wanted.iter().copied().collect()
        })
    });
    ensure!(there, "the members of etcd are {last}, not {wanted:?}");
    Ok(())
}

fn members(node: &Node) -> Result<String> {
    let script = "cd $(dirname $KUBECONFIG); etcdctl --endpoints=https://127.0.0.1:2379 \
         --cacert=etcd-ca.crt --cert=etcd-client.crt --key=etcd-client.key \
         member list --write-out=json";
    node.text(&[IMAGE, "exec", "sh", "-c", script])
}

/// Waits until a master's own API server answers.
pub(crate) fn wait_api(node: &Node) -> Result<()> {
    let url = format!("https://{}:6443/readyz", node.address());
    let ready = process::wait_until(SETTLE, || {
        node.text(&["curl", "-sSk", "--fail", "-m", "5", &url])
            .is_ok_and(|text| text == "ok")
    });
    ensure!(ready, "{url} is not ready");
    Ok(())
}

pub(crate) fn wait_active(node: &Node) -> Result<()> {
    let mut last = String::new();
    let active = process::wait_until(SETTLE, || {
        let status = node.text(&[IMAGE, "status"]);
        last = status
            .as_ref()
            .map_or_else(|error| format!("{error:#}"), Clone::clone);
        status.is_ok()
    });
    ensure!(active, "{} is not active: {last}", node.name());
    Ok(())
}

pub(crate) fn ready_within(node: &Node, master: &Node) -> Result<bool> {
    Ok(process::wait_until(SETTLE, || {
        nodes(master).is_ok_and(|ready| ready.iter().any(|name| name == node.name()))
    }))
}
