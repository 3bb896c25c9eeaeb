//! What gravity's own processes cost on a node where nothing happens.
//!
//! In: the cluster image, how long to look. Out: rows of their memory and time,
//! all together and of the supervisor alone; Kubernetes' are not counted.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use event::Sink;
use procfs::process::{Process, all_processes};

use super::{Bench, Row, Target, cluster};
use crate::process;
use crate::scenario::check;

/// The node.
const NODE: &str = "bench-idle";
/// From the end of the install to the first look: Jobs and pods are over or ready.
const SETTLE: Duration = Duration::from_secs(60);
/// Between two looks at the memory.
const STEP: Duration = Duration::from_secs(10);

/// One process: bytes of memory that are its own, shared ones in parts, and
/// seconds of processors since it began.
struct Cost {
    command: String,
    bytes: u64,
    seconds: f64,
}

/// The rows.
pub(super) fn rows(bench: &Bench<'_>, minutes: u16) -> Vec<Row> {
    let row = |what: &str, unit, target| {
        let what = format!("{what}, idle for {minutes} minutes");
        Row::new(&what, "-", unit, target)
    };
    let most = |most| Some(Target::Most(most));
    let mut rows = [
        row("gravity's processes, most memory", "MB", most(25.0)),
        row("gravity's processes, processor", "%", most(0.5)),
        row("the supervisor, most memory", "MB", None),
        row("the supervisor, processor", "%", None),
    ];
    if let Err(error) = measure(bench, minutes, &mut rows) {
        rows[0].note(&format!("{error:#}"));
    }
    rows.into()
}

fn measure(bench: &Bench<'_>, minutes: u16, rows: &mut [Row; 4]) -> Result<()> {
    bench.console.step("Installing, and waiting");
    let (node, mut install) = cluster::prepare(bench, NODE, &[])?;
    process::run(&mut install)?;
    check(&node)?;
    thread::sleep(SETTLE);
    bench
        .console
        .step(&format!("Looking on for {minutes} minutes"));
    let began = Instant::now();
    let first = look()?;
    let until = began + Duration::from_secs(60 * u64::from(minutes));
    let (mut last, mut all_bytes, mut one_bytes) = (BTreeMap::new(), 0, 0);
    while Instant::now() < until {
        thread::sleep(STEP);
        last = look()?;
        all_bytes = all_bytes.max(last.values().map(|cost| cost.bytes).sum());
        let supervisors = last.values().filter(|cost| is_supervisor(cost));
        one_bytes = one_bytes.max(supervisors.map(|cost| cost.bytes).sum());
    }
    let passed = began.elapsed().as_secs_f64();
    ensure!(
        first.keys().eq(last.keys()),
        "processes have come or gone meanwhile: {:?} and {:?}",
        first.keys(),
        last.keys()
    );
    let percent = |of: &dyn Fn(&Cost) -> bool| {
        let last = last.iter().filter(|(_, cost)| of(cost));
        let spent = last.map(|(id, cost)| cost.seconds - first[id].seconds);
        spent.sum::<f64>() / passed * 100.0
    };
    for (id, cost) in &last {
        let seconds = cost.seconds - first[id].seconds;
        let megabytes = cost.bytes as f64 / 1e6;
        let command = &cost.command;
        bench
            .console
            .info(&format!("{megabytes:6.1} MB {seconds:6.2} s  {command}"));
    }
    let values = [
        all_bytes as f64 / 1e6,
        percent(&|_| true),
        one_bytes as f64 / 1e6,
        percent(&is_supervisor),
    ];
    for (row, value) in rows.iter_mut().zip(values) {
        row.ours.push(value);
    }
    Ok(())
}

fn is_supervisor(cost: &Cost) -> bool {
    cost.command.contains("planet supervise")
}

/// Gravity's processes of the node, by id and start.
fn look() -> Result<BTreeMap<(i32, u64), Cost>> {
    let ticks = procfs::ticks_per_second() as f64;
    let cost = |process: Process| {
        let command = process.cmdline().ok()?;
        let program = command.first()?;
        let ours = ["/gravity", "/planet-init"];
        let is_ours = ours.iter().any(|name| program.ends_with(name));
        let groups = process.cgroups().ok()?;
        let of_node = groups
            .into_iter()
            .any(|group| group.pathname.contains(NODE));
        if !is_ours || !of_node {
            return None;
        }
        let stat = process.stat().ok()?;
        let rollup = process.smaps_rollup().ok()?;
        let maps = rollup.memory_map_rollup.0.first()?;
        let cost = Cost {
            command: command.join(" "),
            bytes: *maps.extension.map.get("Pss")?,
            seconds: (stat.utime + stat.stime) as f64 / ticks,
        };
        Some(((stat.pid, stat.starttime), cost))
    };
    let processes = all_processes().context("listing processes")?;
    let found: BTreeMap<_, _> = processes.flatten().filter_map(cost).collect();
    ensure!(!found.is_empty(), "no process of gravity runs");
    Ok(found)
}
