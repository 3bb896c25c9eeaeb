//! The documentation's sample on the five nodes of its flavor `small`.
//!
//! In: its image, with requirements that nodes of this machine meet. Out: three
//! workers and two db nodes, four of which have joined at one moment; masters,
//! labels, volumes, devices and hooks are as the sample has them. An error at the
//! first thing that is not; the nodes then stay to be looked at.

use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use console::Console;

use super::Tele;
use crate::join::join;
use crate::masters::{begin_install, wait_active, wait_members};
use crate::node::Node;
use crate::scenario::{IMAGE, Setup, Timeline};
use crate::snapshot::Snapshot;

/// What the sample asks for, and what is asked for instead.
const LOWERED: &[(&str, &str)] = &[
    ("min: 8\n", "min: 1\n"),
    ("min: 4\n", "min: 1\n"),
    ("\"32GB\"", "\"512MB\""),
    ("\"4GB\"", "\"512MB\""),
    ("name: centos\n", "name: debian\n"),
    ("[\"7\"]", "[\"12\"]"),
    ("\"512GB\"", "\"1GB\""),
    ("\"50MB/s\"", "\"1MB/s\""),
    ("/dev/nvidia*", "/dev/fuse*"),
];
/// The nodes' profiles; the first one installs.
const PROFILES: [&str; 5] = ["worker", "db", "worker", "db", "worker"];

/// The sample's manifest, with less to ask for.
pub(super) fn lowered(manifest: &str) -> Result<String> {
    LOWERED
        .iter()
        .try_fold(manifest.to_owned(), |text, (asked, instead)| {
            ensure!(text.contains(asked), "the sample has no {asked:?} any more");
            Ok(text.replace(asked, instead))
        })
}

/// Installs it on the new nodes `NAME-1` to `NAME-5`.
pub(super) fn run(setup: &Setup, tele: &Tele, name: &str, console: &Console) -> Result<()> {
    let timeline = Timeline::new(console);
    tele.license("five.pem", &["--image", "MyCluster", "--max-nodes", "5"])?;
    let image = tele.work.join("lowered-image");
    let mut nodes = Vec::new();
    let mut before = Vec::new();
    for (number, profile) in (1..).zip(PROFILES) {
        let node = setup.create_with(&format!("{name}-{number}"), &image, console)?;
        if profile == "db" {
            node.text(&["mkdir", "-p", "/path/to/dir-001"])?;
        }
        before.push(Snapshot::take(&node)?);
        nodes.push(node);
    }
    let (first, others) = nodes.split_first().context("there are no nodes")?;
    node_has(first, &tele.work.join("five.pem"))?;
    let words = [
        "--flavor=small",
        "--role=worker",
        "--license=/root/five.pem",
        "--skip-disk-test",
    ];
    let (mut installing, token, shown) = begin_install(first, &words)?;
    ensure!(
        shown.contains("2 nodes: ./gravity join ") && shown.contains("--role=db"),
        "it doesn't say who is missing: {shown}"
    );
    let status = crate::masters::said(first, "status")?;
    ensure!(
        status.contains("installing") && status.contains("phases are complete"),
        "the status of an install that waits is {status}"
    );
    timeline.tell("the first worker waits for two workers and two db nodes");

    let mut joins = Vec::new();
    for (node, profile) in others.iter().zip(&PROFILES[1..]) {
        let mut command = join(first, node, &token, profile)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.with_context(|| format!("joining {}", node.name()))?;
        joins.push((node, child));
    }
    for (node, mut child) in joins {
        let ended = child.wait().context("waiting for a join")?;
        ensure!(
            ended.success(),
            "the join of {} ended with {ended}",
            node.name()
        );
    }
    timeline.tell("all four have joined at one moment");
    let ended = installing.wait().context("waiting for the install")?;
    ensure!(ended.success(), "the install ended with {ended}");
    wait_active(first)?;
    timeline.tell("the cluster is active");

    roles(first, &nodes)?;
    timeline.tell("nodes are labelled by their profiles, and three are masters");
    for (node, _) in nodes
        .iter()
        .zip(PROFILES)
        .filter(|(_, profile)| *profile == "db")
    {
        volumes(node)?;
        let log = node.text(&[
            "sh",
            "-c",
            "cat /var/lib/gravity/operations/*/operation.log",
        ])?;
        ensure!(
            log.contains("checks.sh looked at"),
            "what the vendor's check says is not in the log of {}",
            node.name()
        );
    }
    timeline.tell("db nodes have their volumes and devices, and ran the vendor's check");
    let jobs = first.text(&[
        "kubectl",
        "get",
        "jobs",
        "-n",
        "default",
        "-o",
        "jsonpath={range .items[*]}{.metadata.name}={.status.succeeded} {end}",
    ])?;
    for hook in ["db-seed-", "post-install-"] {
        let mut ran = jobs.split_whitespace();
        ensure!(
            ran.any(|job| job.starts_with(hook) && job.ends_with("=1")),
            "the hooks' jobs are {jobs}"
        );
    }
    let history = first.text(&[IMAGE, "status", "history"])?;
    for node in &nodes {
        let ready = format!("node {} is ready", node.name());
        ensure!(history.contains(&ready), "nothing of `{ready}`: {history}");
    }
    timeline.tell("both hooks ran, and the history tells of all nodes");

    // The last node that has become one of the cluster, and no master.
    let (last, clean) = (&nodes[4], &before[4]);
    last.text(&[IMAGE, "leave", "--force", "--confirm"])?;
    clean.is_still(last, "`leave`")?;
    timeline.tell("a node has left as it came");
    nodes.into_iter().try_for_each(Node::delete)
}

fn node_has(node: &Node, file: &std::path::Path) -> Result<()> {
    let name = file.file_name().context("the file has no name")?;
    node.copy(file, &format!("/root/{}", name.to_string_lossy()))
}

/// The labels of the profiles; of nodes whose profiles don't say it the first
/// three become masters.
fn roles(first: &Node, nodes: &[Node]) -> Result<()> {
    let found = first.text(&[
        "kubectl",
        "get",
        "nodes",
        "-o",
        "jsonpath={range .items[*]}{.metadata.name}={.metadata.labels.role}{'\\n'}{end}",
    ])?;
    let found: BTreeMap<_, _> = found
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let wanted: BTreeMap<_, _> = nodes.iter().map(Node::name).zip(PROFILES).collect();
    ensure!(found == wanted, "nodes are {found:?}");
    let status = first.text(&[IMAGE, "status", "--output", "json"])?;
    let status: serde_json::Value = serde_json::from_str(&status).context("no JSON")?;
    let masters: Vec<_> = status["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|node| node["role"] == "master")
        .filter_map(|node| node["hostname"].as_str())
        .map(|name| (name, false))
        .collect();
    ensure!(masters.len() == 3, "masters are {masters:?}");
    wait_members(first, &masters)
}

/// What the profile `db` has of volumes and devices.
fn volumes(node: &Node) -> Result<()> {
    let data = node.text(&["stat", "-c", "%u:%g %a", "/var/lib/data"])?;
    ensure!(data.trim() == "114:114 755", "/var/lib/data is {data}");
    for path in [
        "/path/inside/container/dir-001",
        "/var/lib/data",
        "/dev/fuse",
    ] {
        node.text(&[IMAGE, "exec", "test", "-e", path])
            .with_context(|| format!("{} has no {path} inside", node.name()))?;
    }
    // It is missing on the host, and may be.
    let skipped = node.text(&[IMAGE, "exec", "test", "-e", "/path/to/container"]);
    ensure!(skipped.is_err(), "a volume is mounted that isn't there");
    Ok(())
}
