//! A thousand agents, and a thousand nodes that join, by the code that real ones run.
//!
//! In: how many. Out: rows of times and memory. The agents serve phases that do
//! nothing, each at a socket of its own; one coordinator runs a plan with them. The
//! nodes are sessions with the controller of a real cluster, from another node's
//! network: they join as `gravity join` does, but nothing runs on them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use console::Console;
use event::{Discard, Sink};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use operation::{Engine, Executor, Journal, Phase, PhaseError, Plan};
use pki::JoinToken;
use pki::tls::{Identity, Trust};
use procfs::process::Process;
use rpc::controller::Session;
use serde::{Deserialize, Serialize};
use spec::Candidate;
use uuid::Uuid;

use super::cluster::create;
use super::{Bench, Row, Target};
use crate::join::WORKER;
use crate::scenario::{IMAGE, Setup, install_with, run_visibly};
use crate::{file, process};

/// Phases of each agent.
const PHASES: usize = 10;
/// Nodes that join at a time.
const AT_A_TIME: usize = 32;
/// By which nodes join.
const TOKEN: &str = "correct-horse-battery-staple";
/// Each node has 256 addresses of it.
const PODS: &str = "--pod-network-cidr=172.16.0.0/12";
/// Where the program is in a node.
const PROGRAM: &str = "/root/testnode";
/// Certificates that a worker has made.
const CERTIFICATES: [&str; 8] = [
    "kubelet",
    "registry",
    "registry-client",
    "images",
    "kubelet.kubeconfig",
    "kube-proxy.kubeconfig",
    "coredns.kubeconfig",
    spec::NODE_IDENTITY,
];

/// A process that stands for many.
#[derive(Debug, Subcommand)]
pub enum Simulate {
    /// Agents that listen until standard input ends
    Agents {
        /// How many.
        count: usize,
        /// Where their sockets are.
        directory: PathBuf,
    },
    /// A coordinator that has them run a plan
    Coordinator {
        /// How many.
        count: usize,
        /// Where their sockets are.
        directory: PathBuf,
    },
    /// Nodes that join a cluster
    Nodes {
        /// How many.
        count: u16,
        /// Address of a master.
        master: IpAddr,
    },
}

/// Does it, and prints JSON.
///
/// # Errors
/// At the first thing that fails.
pub fn simulate(what: &Simulate, console: &Console) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("starting a runtime")?;
    let text = match what {
        Simulate::Agents { count, directory } => {
            return runtime.block_on(agents(*count, directory, console));
        }
        Simulate::Coordinator { count, directory } => {
            serde_json::to_string(&runtime.block_on(coordinate(*count, directory))?)
        }
        Simulate::Nodes { count, master } => {
            serde_json::to_string(&runtime.block_on(join_all(*count, *master))?)
        }
    };
    console.print(&text.context("writing what was measured")?);
    Ok(())
}

/// The rows.
pub(super) fn rows(bench: &Bench<'_>, setup: &Setup, count: u16) -> Vec<Row> {
    let row = |what: &str, unit, most: Option<f64>| {
        let what = format!("{count} {what}");
        Row::new(&what, "-", unit, most.map(Target::Most))
    };
    let mut engine = [
        row("agents: connect", "s", None),
        row("agents: a plan of 10 phases each", "s", Some(1.0)),
        row("agents: a phase", "ms", Some(1.0)),
        row("agents: the coordinator's most memory", "MB", None),
        row("agents: most memory of all", "MB", None),
    ];
    let mut cluster = [
        row("nodes: connect at one moment", "s", None),
        row("nodes: a join, controller and Kubernetes", "ms", None),
        row("nodes: the controller's most memory", "MB", None),
        row("nodes: gravity status", "s", None),
        row("nodes: gravity remove", "s", None),
    ];
    if let Err(error) = measure_engine(bench, usize::from(count), &mut engine) {
        engine[0].note(&format!("{error:#}"));
    }
    if let Err(error) = measure_cluster(bench, setup, count, &mut cluster) {
        cluster[0].note(&format!("{error:#}"));
    }
    engine.into_iter().chain(cluster).collect()
}

fn add<const N: usize>(rows: &mut [Row; N], values: [f64; N]) {
    for (row, value) in rows.iter_mut().zip(values) {
        row.ours.push(value);
    }
}

/// What a coordinator measures.
#[derive(Debug, Serialize, Deserialize)]
struct Coordinated {
    connect: f64,
    plan: f64,
    run: f64,
    phases: usize,
    peak: u64,
}

fn measure_engine(bench: &Bench<'_>, count: usize, rows: &mut [Row; 5]) -> Result<()> {
    let directory = bench.path("agents");
    file::make_directory(&directory)?;
    for round in bench.rounds() {
        let step = format!("A plan with {count} agents, round {round}");
        bench.console.step(&step);
        let own = std::env::current_exe().context("finding this program")?;
        let simulate = |what: &str| {
            let mut command = Command::new(&own);
            command.args(["simulate", what, &count.to_string()]);
            command.arg(&directory).stdout(Stdio::piped());
            command
        };
        let mut agents = Agents(simulate("agents").stdin(Stdio::piped()).spawn()?);
        let mut ready = String::new();
        let output = agents.0.stdout.take().context("agents without output")?;
        BufReader::new(output).read_line(&mut ready)?;
        let told = process::text(&mut simulate("coordinator"))?;
        let told: Coordinated = serde_json::from_str(&told)?;
        let pid = i32::try_from(agents.0.id())?;
        add(
            rows,
            [
                told.connect,
                told.plan,
                told.run * 1e3 / told.phases as f64,
                told.peak as f64 / 1e6,
                peak(pid)? as f64 / 1e6,
            ],
        );
    }
    Ok(())
}

/// The process of the agents; they end with this.
struct Agents(Child);

impl Drop for Agents {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Most memory that a process has had, in bytes.
fn peak(pid: i32) -> Result<u64> {
    let status = Process::new(pid).and_then(|process| process.status());
    let peak = status.context("looking at a process")?.vmhwm;
    Ok(peak.context("its memory is not known")? * 1024)
}

fn socket(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("{number}.sock"))
}

/// Does nothing.
struct Nothing;

#[async_trait::async_trait]
impl Executor for Nothing {
    async fn execute(&self, _: &Phase, _: Arc<dyn Sink>) -> Result<(), PhaseError> {
        Ok(())
    }

    async fn execute_again(&self, _: &Phase, _: Arc<dyn Sink>) -> Result<(), PhaseError> {
        Ok(())
    }

    async fn undo(&self, _: &Phase, _: Arc<dyn Sink>) -> Result<(), PhaseError> {
        Ok(())
    }
}

async fn agents(count: usize, directory: &Path, console: &Console) -> Result<()> {
    let idle = Duration::from_secs(3600);
    for number in 0..count {
        let socket = socket(directory, number);
        let serving = socket.clone();
        tokio::spawn(async move {
            let open = |_: &str| Ok(Arc::new(Nothing) as Arc<dyn Executor>);
            rpc::serve(&serving, idle, std::future::pending(), Arc::new(open)).await
        });
        while !socket.exists() {
            tokio::task::yield_now().await;
        }
    }
    console.print("ready");
    let wait = || std::io::stdin().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(wait).await??;
    // What listens does so for an hour.
    std::process::exit(0);
}

/// Has each phase run by the agent of its node.
struct All(Vec<rpc::Connection>);

impl All {
    fn of(&self, phase: &Phase) -> Result<&rpc::Connection, PhaseError> {
        let number = phase
            .node
            .as_ref()
            .and_then(|node| node.parse::<usize>().ok());
        let agent = number.and_then(|number| self.0.get(number));
        agent.ok_or_else(|| PhaseError::lasting("there is no such agent"))
    }
}

#[async_trait::async_trait]
impl Executor for All {
    async fn execute(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        self.of(phase)?.execute(phase, sink).await
    }

    async fn execute_again(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        self.of(phase)?.execute_again(phase, sink).await
    }

    async fn undo(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        self.of(phase)?.undo(phase, sink).await
    }
}

/// A first phase that all wait for, then on each node one phase after the other.
fn plan(count: usize) -> Plan {
    let leaf = |id: String, node: usize| Phase {
        node: Some(node.to_string()),
        payload: serde_json::json!({ "phase": "nothing", "path": "/var/lib/gravity" }),
        ..Phase::new(id, "Do nothing")
    };
    let node = |node: usize| {
        let id = format!("/nodes/{node}");
        Phase {
            phases: (0..PHASES)
                .map(|number| leaf(format!("{id}/{number}"), node))
                .collect(),
            ..Phase::new(id, "A node")
        }
    };
    let nodes = Phase {
        limit_parallel: Some(count),
        requires: vec!["/first".into()],
        phases: (0..count).map(node).collect(),
        ..Phase::new("/nodes", "All nodes")
    };
    Plan {
        version: operation::PLAN_VERSION,
        operation_id: Uuid::new_v4().to_string(),
        kind: "simulated".into(),
        created_by_version: env!("CARGO_PKG_VERSION").into(),
        phases: vec![leaf("/first".into(), 0), nodes],
    }
}

async fn coordinate(count: usize, directory: &Path) -> Result<Coordinated> {
    let started = Instant::now();
    let connecting = (0..count).map(|number| {
        let socket = socket(directory, number);
        async move { rpc::Connection::open(&socket, "simulated").await }
    });
    let all = All(try_join_all(connecting).await?);
    let connect = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let path = directory.join("plan.json");
    let made = plan(count);
    made.validate()?;
    file::write(&path, serde_json::to_vec_pretty(&made)?)?;
    let plan: Plan = serde_json::from_slice(&std::fs::read(&path)?)?;
    ensure!(plan == made, "the plan is another one when it is read");
    let planned = started.elapsed().as_secs_f64();

    let journal = directory.join(format!("journal-{}", plan.operation_id));
    let mut journal = Journal::open(&journal)?;
    let started = Instant::now();
    let sink = Arc::new(Discard);
    Engine::default()
        .run(&plan, &mut journal, &all, sink)
        .await?;
    let run = started.elapsed().as_secs_f64();
    let phases = plan.leaves().len();
    ensure!(
        journal.records().len() == 2 * phases,
        "phases are missing in the journal"
    );
    Ok(Coordinated {
        connect,
        plan: planned,
        run,
        phases,
        peak: peak(i32::try_from(std::process::id())?)?,
    })
}

/// What nodes measure.
#[derive(Debug, Serialize, Deserialize)]
struct Joined {
    connect: f64,
    join: f64,
}

fn measure_cluster(
    bench: &Bench<'_>,
    setup: &Setup,
    count: u16,
    rows: &mut [Row; 5],
) -> Result<()> {
    let console = bench.console;
    let image = without_node_hooks(bench, setup)?;
    let master = create("bench-agents-1", "10.99.0.44")?;
    let token = format!("--token={TOKEN}");
    install_with(
        &master,
        &image,
        &[&token, PODS, "--skip-disk-test"],
        console,
    )?;
    let nodes = create("bench-agents-2", "10.99.0.45")?;
    nodes.copy(&std::env::current_exe()?, PROGRAM)?;
    console.step(&format!("{count} nodes join"));
    let count = count.to_string();
    let mut command = nodes.command(&[PROGRAM, "simulate", "nodes", &count, master.address()])?;
    let told: Joined = serde_json::from_str(&process::text(&mut command)?)?;
    let known = master.text(&["kubectl", "get", "nodes", "--output=name"])?;
    let wanted = count.parse::<usize>()? + 1;
    let known = known.lines().count();
    ensure!(
        known == wanted,
        "Kubernetes has {known} nodes, not {wanted}"
    );
    let controller = master.text(&["pgrep", "-f", "gravity controller"])?;
    let controller = controller
        .lines()
        .next()
        .context("there is no controller")?;
    let status = format!("/proc/{controller}/status");
    let peak = master.text(&["awk", "/VmHWM/ {print $2}", &status])?;
    let timed = |words: &[&str]| -> Result<f64> {
        let started = Instant::now();
        // Most nodes are not ready, and it says so.
        let output = master.command(words)?.output().context("running gravity")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            said.contains("sim-0100"),
            "it does not name the nodes: {said}"
        );
        Ok(started.elapsed().as_secs_f64())
    };
    let status = timed(&[IMAGE, "status"])?;
    let started = Instant::now();
    let remove = [IMAGE, "remove", "sim-0001", "--force", "--confirm"];
    run_visibly(&mut master.command(&remove)?)?;
    add(
        rows,
        [
            told.connect,
            told.join * 1e3 / count.parse::<f64>()?,
            peak.trim().parse::<f64>()? * 1024.0 / 1e6,
            status,
            started.elapsed().as_secs_f64(),
        ],
    );
    Ok(())
}

/// The sample without the hooks that would run for each node: they are its last.
fn without_node_hooks(bench: &Bench<'_>, setup: &Setup) -> Result<PathBuf> {
    let sample = bench.path("without-hooks");
    process::run(Command::new("cp").arg("-r").arg(&setup.sample).arg(&sample))?;
    let path = sample.join("app.yaml");
    let text = file::read(&path)?;
    let (others, _) = text
        .split_once("  preNodeAdd:")
        .context("the sample has no such hook")?;
    file::write(&path, others)?;
    let setup = Setup {
        sample,
        image: None,
        ..setup.clone()
    };
    setup.image(bench.console)
}

/// Has many nodes connect at one moment, and then join a cluster.
async fn join_all(count: u16, master: IpAddr) -> Result<Joined> {
    let master = SocketAddr::new(master, spec::CONTROLLER_PORT);
    let token = JoinToken::parse(TOKEN).context("the token is none")?;
    let started = Instant::now();
    let describing = (0..count).map(|_| async {
        let mut session = Session::open(&[master], &Trust::Proof, None).await?;
        session.describe(&token).await
    });
    let cluster = try_join_all(describing).await?.pop();
    let image = cluster.context("there are no nodes")?.image.digest;
    let connect = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let joining = (1..=count).map(|number| join(number, master, &token, &image));
    let mut joined = futures::stream::iter(joining).buffer_unordered(AT_A_TIME);
    while joined.try_next().await?.is_some() {}
    Ok(Joined {
        connect,
        join: started.elapsed().as_secs_f64(),
    })
}

/// What `gravity join` has the controller do.
async fn join(number: u16, master: SocketAddr, token: &JoinToken, image: &str) -> Result<()> {
    let [high, low] = number.to_be_bytes();
    let candidate = Candidate {
        hostname: format!("sim-{number:04}"),
        // Nobody answers there.
        advertise_addresses: vec![IpAddr::from([10, 98, high, low])],
        profile: WORKER.into(),
        role: Some(spec::Role::Worker),
        labels: BTreeMap::from([("role".into(), WORKER.into())]),
        taints: Vec::new(),
        state_dir: "/var/lib/gravity".into(),
        image: image.into(),
        machine: String::new(),
        most: None,
    };
    let request = pki::request()?;
    let mut session = Session::open(&[master], &Trust::Proof, None).await?;
    let membership = session
        .join(token, &candidate, &request.request_pem)
        .await?;
    let authority = membership
        .authorities
        .get(spec::RPC_AUTHORITY)
        .context("no authority")?;
    let identity = Identity {
        certificate_pem: membership.certificate,
        key_pem: request.key_pem,
    };
    let trust = Trust::Authority(authority.clone());
    let mut session = Session::open(&[master], &trust, Some(&identity)).await?;
    let request = |name: &str| Ok((name.to_owned(), pki::request()?.request_pem));
    let requests = CERTIFICATES.into_iter().map(request);
    let signed = session.sign(requests.collect::<Result<_>>()?).await?;
    ensure!(
        signed.len() == CERTIFICATES.len(),
        "certificates are missing"
    );
    let operation = Uuid::new_v4().to_string();
    session.register(&operation, &Discard).await?;
    session.added(&operation, &Discard).await?;
    Ok(())
}
