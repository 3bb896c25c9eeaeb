//! From a cluster of one node to a second one that is Ready in it: ours and kubeadm's.
//!
//! In: the cluster image and its programs. Out: a row. The image, and kubeadm's
//! programs, are on the second node before; the hooks of an image that has some are
//! part of our time.

use anyhow::{Result, ensure};
use event::Sink;

use super::cluster::{ADMIN, Times, create, prepare, watch};
use super::kubeadm::Kubeadm;
use super::{Bench, Row, Target};
use crate::join::{WORKER, join};
use crate::node::Node;
use crate::process;
use crate::scenario::IMAGE;

/// By which our nodes know each other.
const TOKEN: &str = "correct-horse-battery-staple";

pub(super) fn row(bench: &Bench<'_>) -> Row {
    let mut row = Row::new(
        "join, to node Ready",
        "kubeadm join, to node Ready",
        "s",
        Some(Target::Ratio(0.7)),
    );
    if let Err(error) = measure(bench, &mut row) {
        row.note(&format!("{error:#}"));
    }
    row
}

fn measure(bench: &Bench<'_>, row: &mut Row) -> Result<()> {
    bench.console.step("Making two clusters to join");
    let (first, mut install) = prepare(bench, "bench-first", &[&format!("--token={TOKEN}")])?;
    process::run(&mut install)?;
    let kubeadm = Kubeadm::prepare(bench)?;
    let (peer, _, _) = kubeadm.init(bench)?;
    for round in bench.rounds() {
        bench
            .console
            .step(&format!("Joining, round {round} of {}", bench.options.runs));
        row.ours.push(ours(bench, &first)?.ready);
        row.peer.push(kubeadm.join(bench, &peer)?.ready);
    }
    Ok(())
}

fn ours(bench: &Bench<'_>, first: &Node) -> Result<Times> {
    let node = create("bench-join", "10.99.0.41")?;
    node.copy(&bench.file, IMAGE)?;
    let times = watch(
        bench,
        first,
        &node,
        join(first, &node, TOKEN, WORKER)?,
        ADMIN,
    )?;
    ensure!(times.end.is_some(), "the join did not end well in time");
    node.run(&[IMAGE, "leave", "--confirm"])?;
    Ok(times)
}
