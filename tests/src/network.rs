//! A vendor's own network of pods: the `networkInstall` hook.
//!
//! In: `tests/network`. Out: an error at the first thing that is not as it should
//! be; the nodes then stay to be looked at.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use console::Console;
use event::Sink;

use crate::join::WORKER;
use crate::node::{self, Node};
use crate::said::Said;
use crate::scenario::{IMAGE, Setup};
use crate::snapshot::Snapshot;
use crate::{process, sample};

/// No command may take longer, in seconds.
const LIMIT: &str = "420";
/// How long a change may take to be seen.
const PATIENCE: Duration = Duration::from_secs(120);
/// A token that is chosen at the install; and disks are what they are.
const KNOWN: &str = "--token=correct-horse-battery-staple --ignore=disk-latency";

/// Runs all of it on the new nodes `NAME-1` and `NAME-2`.
///
/// # Errors
/// At the first check that fails.
pub fn run(name: &str, console: &Console) -> Result<()> {
    node::require_root()?;
    let setup = Setup::new("tests/network");
    let image = setup.image(console)?;
    let [first, second] = [1, 2].map(|number| setup.create(&format!("{name}-{number}"), console));
    let (first, second) = (first?, second?);
    let mut before = Vec::new();
    for node in [&first, &second] {
        node.copy(&image, IMAGE)?;
        before.push(Snapshot::take(node)?);
    }

    console.step("A hook that fails, and ./gravity resume");
    fails_at_first(&first)?;
    works(&first, &[&first])?;
    without_overlay(&first)?;

    console.step("./gravity join");
    joins(&first, &second)?;
    works(&first, &[&first, &second])?;
    without_overlay(&second)?;

    console.step("./gravity stop and start");
    gravity(&first, "stop --confirm")?.expect(0, &[])?;
    gravity(&first, "start")?.expect(0, &[])?;
    worker_starts(&second)?;
    works(&first, &[&first, &second])?;

    for (node, before) in [(&second, &before[1]), (&first, &before[0])] {
        console.step(&format!("./gravity leave on {}", node.name()));
        gravity(node, "leave --confirm")?.expect(0, &[])?;
        before.is_still(node, "`leave`")?;
    }
    console.info("After `leave` both nodes are as they were");
    second.delete()?;
    first.delete()
}

/// The install stops at the hook, before anything else needs a network, and goes on
/// from there.
fn fails_at_first(node: &Node) -> Result<()> {
    let address = node.address();
    let install = format!("install --advertise-addr={address} {KNOWN}");
    gravity(node, &format!("{install} --vxlan-port=8473"))?
        .expect(2, &["their network is the vendor's own"])?;
    gravity(node, &format!("{install} --set fail=once"))?.expect(
        7,
        &[
            "hook networkInstall failed",
            "pods get 10.244.0.0/16, services 10.100.0.0/16",
            "the network is not to be had",
        ],
    )?;
    let report = "tar tzf /var/lib/gravity/operations/*/report.tar.gz";
    said(node, &["sh", "-c", report])?.expect(
        0,
        &[
            "/operation.log",
            "/agent-journal",
            "log/kubelet.log",
            "services.json",
            "certificates.json",
            "kubernetes/pods.yaml",
            "report.json",
        ],
    )?;
    let ready = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
    let nodes = said(node, &["kubectl", "get", "nodes", "-o", ready])?.expect(0, &[])?;
    ensure!(
        nodes.text.trim() == "False",
        "the node has a network: {}",
        nodes.text
    );
    gravity(node, "resume")?.expect(0, &["is ready"])?;
    // What the hook said whose pod has a network.
    let log = "cat /var/lib/gravity/operations/*/operation.log";
    let page = sample::PAGE.lines().last().unwrap_or_default();
    said(node, &["sh", "-c", log])?.expect(0, &["inet 10.244.", page])?;
    Ok(())
}

/// A worker joins; until it has, the master tells of it and is well.
fn joins(master: &Node, worker: &Node) -> Result<()> {
    let join = format!(
        "join {} {KNOWN} --role={WORKER} --advertise-addr={}",
        master.address(),
        worker.address()
    );
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| gravity(worker, &join));
        let mut told = false;
        while !told && !joining.is_finished() {
            let said = gravity(master, "status").and_then(|said| said.expect(0, &["Joining:"]));
            told = said.is_ok();
        }
        let joined = joining.join();
        joined
            .map_err(|_| anyhow!("the join's thread panicked"))??
            .expect(0, &["is ready"])?;
        ensure!(told, "the status does not tell of a node that joins");
        Ok(())
    })
}

/// A worker stops and starts with rights of its own, and says what no longer fits.
fn worker_starts(worker: &Node) -> Result<()> {
    let address = format!("{}/24", worker.address());
    let lost = [worker.address(), "give it back"];
    gravity(worker, "stop --confirm")?.expect(0, &["Stopped"])?;
    worker.run(&["ip", "addr", "del", &address, "dev", "eth0"])?;
    gravity(worker, "start")?.expect(1, &lost)?;
    gravity(worker, "status")?.expect(6, &lost)?;
    worker.run(&["ip", "addr", "add", &address, "dev", "eth0"])?;
    worker.run(&["hostname", "other"])?;
    gravity(worker, "start")?.expect(0, &["rename it back", "is ready"])?;
    worker.run(&["hostname", worker.name()])?;
    Ok(())
}

/// None of the programs and files of the built-in network is there.
fn without_overlay(node: &Node) -> Result<()> {
    let look = format!(
        "{IMAGE} exec -- ls /etc/cni/net.d; ip -brief link; ps -e -o args= | grep [f]lanneld; true"
    );
    let seen = said(node, &["sh", "-c", &look])?.expect(0, &["10-vendor.conflist", "vendor0"])?;
    for name in ["planet.conflist", "flannel", "cni0"] {
        ensure!(!seen.text.contains(name), "{name} is there: {}", seen.text);
    }
    Ok(())
}

/// The status is good, and pods of all nodes are reached by pods of all nodes, by
/// address and by service.
fn works(master: &Node, nodes: &[&Node]) -> Result<()> {
    let well = || -> Result<()> {
        gravity(master, "status")?.expect(0, &["active"])?;
        let list = "jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.spec.nodeName}{\"\\n\"}{end}";
        let list = ["kubectl", "get", "pods", "-l", "app=web", "-o", list];
        let list = said(master, &list)?.expect(0, &[])?.text;
        let pods: Vec<Vec<&str>> = list.lines().map(|line| line.split(' ').collect()).collect();
        for node in nodes {
            ensure!(
                list.contains(node.name()),
                "no pod on {}: {list}",
                node.name()
            );
        }
        let service = ["web.default.svc.cluster.local"];
        for pod in &pods {
            let addresses = pods.iter().filter_map(|pod| pod.get(1));
            let urls = addresses.map(|address| format!("{address}:8080"));
            for url in urls.chain(service.map(String::from)) {
                let url = format!("http://{url}");
                let ask = [
                    "kubectl", "exec", pod[0], "--", "timeout", "5", "wget", "-q", "-O-", &url,
                ];
                let page = said(master, &ask)?.expect(0, &[])?.text;
                ensure!(page == sample::PAGE, "{pod:?} gets {page:?} of {url}");
            }
        }
        Ok(())
    };
    let mut last = Ok(());
    process::wait_until(PATIENCE, || {
        last = well();
        last.is_ok()
    });
    last.context("the network does not work")
}

fn said(node: &Node, words: &[&str]) -> Result<Said> {
    Said::within(node, LIMIT, words)
}

fn gravity(node: &Node, line: &str) -> Result<Said> {
    Said::of_line(node, LIMIT, &format!("{IMAGE} {line}"))
}
