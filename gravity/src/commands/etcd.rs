//! `gravity etcd`: snapshots of the cluster's state, back to one, and on without
//! masters that are lost.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::etcd::Etcd;
use agent::snapshots::{self, Kind, Snapshot};
use anyhow::{Context, Result, bail, ensure};
use console::{ExitCode, render};
use event::Sink;
use installer::coordinator::{Action, Operation};
use installer::etcd;
use installer::hooks::NodeHooks;
use installer::recover::{self, Recovery};
use operation::State;
use serde::Serialize;
use spec::ClusterSpec;
use spec::layout::Layout;
use spec::phase::EtcdRestore;
use tokio::net::TcpStream;

use super::{Session, process, require_root};
use crate::cli;

/// How long etcd of this node may take to say whom it knows.
const QUESTION: Duration = Duration::from_secs(3);
/// How long another master may take to accept a connection.
const REACH: Duration = Duration::from_secs(2);

/// A snapshot that was taken.
#[derive(Debug, Serialize)]
struct Taken {
    path: PathBuf,
    revision: u64,
    keys: u64,
    size: u64,
}

pub(crate) async fn run(session: &Session, command: &cli::Etcd) -> Result<ExitCode> {
    require_root()?;
    if !matches!(command, cli::Etcd::Prepare { .. }) {
        session.cluster()?;
        session.administrator().await?;
    }
    match command {
        cli::Etcd::Snapshot { file } => snapshot(session, file.as_deref()),
        cli::Etcd::Snapshots => show(session),
        cli::Etcd::Prepare { data } => prepare(data),
        cli::Etcd::Recover { snapshot, confirm } => {
            recover(session, snapshot.as_deref(), *confirm).await
        }
    }
}

fn prepare(data: &Path) -> Result<ExitCode> {
    super::log_to_stderr();
    agent::etcd::forget_first_start(data).context("remove what a first start left")?;
    Ok(ExitCode::Ok)
}

fn snapshot(session: &Session, file: Option<&Path>) -> Result<ExitCode> {
    let layout = &session.layout;
    let etcd = Etcd::on_host(layout)?;
    let (path, content) = match file {
        None => {
            let (kept, content) = snapshots::take(&etcd, &layout.etcd_snapshots(), Kind::Manual)?;
            (kept.path, content)
        }
        Some(path) => {
            ensure!(!path.exists(), "{} exists already", path.display());
            (path.to_owned(), etcd.save(path)?)
        }
    };
    let taken = Taken {
        size: path.metadata().map_or(0, |metadata| metadata.len()),
        revision: content.revision,
        keys: content.keys,
        path,
    };
    match session.console.is_json() {
        true => session.console.print_json(&taken)?,
        false => session.console.info(&format!(
            "{}: {} keys, revision {}, {}",
            taken.path.display(),
            taken.keys,
            taken.revision,
            render::bytes(taken.size)
        )),
    }
    Ok(ExitCode::Ok)
}

/// Takes a snapshot before something that changes the cluster.
pub(crate) fn before(session: &Session, what: &str) -> Result<Snapshot> {
    let taken = Etcd::on_host(&session.layout).and_then(|etcd| {
        let directory = session.layout.etcd_snapshots();
        snapshots::take(&etcd, &directory, Kind::BeforeOperation)
    });
    let (snapshot, _) = taken.with_context(|| format!("take a snapshot of etcd before {what}"))?;
    Ok(snapshot)
}

fn show(session: &Session) -> Result<ExitCode> {
    let all = snapshots::list(&session.layout.etcd_snapshots())?;
    if session.console.is_json() {
        session.console.print_json(&all)?;
        return Ok(ExitCode::Ok);
    }
    let rows: Vec<_> = all
        .into_iter()
        .map(|snapshot| {
            vec![
                snapshot.name,
                render::timestamp(snapshot.time),
                render::bytes(snapshot.size),
            ]
        })
        .collect();
    match rows.is_empty() {
        true => session.console.info("There are no snapshots yet"),
        false => session.console.table(&["Name", "Taken at", "Size"], &rows),
    }
    Ok(ExitCode::Ok)
}

/// The file of a snapshot that is kept, or any other.
fn find(session: &Session, name: &Path) -> Result<PathBuf> {
    let kept = session.layout.etcd_snapshots().join(name);
    let paths = [kept, name.to_owned()];
    let found = paths.into_iter().find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "there is no snapshot {}; `gravity etcd snapshots` lists them",
            name.display()
        )
    })
}

async fn recover(session: &Session, name: Option<&Path>, confirm: bool) -> Result<ExitCode> {
    let layout = &session.layout;
    // The one that was cut off knows what it has done.
    if let Ok(last) = Operation::last(layout)
        && !matches!(
            last.state()?.overall(),
            State::Completed | State::RolledBack | State::Unstarted
        )
    {
        bail!(
            "an operation of this node ({}) has not ended; go on with `gravity resume`, or take it \
             back with `gravity rollback`",
            last.plan.kind
        );
    }
    let snapshot = name.map(|name| find(session, name)).transpose()?;
    let etcd = Etcd::on_host(layout)?;
    let content = match &snapshot {
        Some(path) => Some(etcd.inspect(path)?),
        None => None,
    };
    // An etcd that doesn't answer is why it is recovered.
    if let Ok(members) = etcd.members()
        && members > 1
    {
        return Err(recover::Error::Quorum(members).into());
    }
    let cluster = session.cluster()?;
    let node = session.own_node(&cluster)?;
    let others = other_masters(layout, &cluster, &node.advertise_addresses);
    if others.is_empty() && snapshot.is_none() {
        return Err(recover::Error::NoSnapshot.into());
    }
    none_answers(&cluster, &others).await?;
    let planet = super::planet::config(layout)?;
    let hooks = NodeHooks::of(&cluster, &session.manifest()?.hooks);
    let plan = recover::plan(&Recovery {
        cluster: &cluster,
        node,
        planet: &planet,
        own_data: snapshot.is_none(),
        without_others: (!others.is_empty()).then_some(&hooks),
    })?;
    let state = match (&snapshot, &content) {
        (Some(path), Some(content)) => format!(
            "The cluster's objects will be as they were in {} ({} keys); what was changed since is \
             lost.",
            path.display(),
            content.keys
        ),
        _ => "The cluster's objects will be what this node's own etcd holds.".into(),
    };
    let alone = match others.is_empty() {
        true => String::new(),
        false => format!(
            " This node becomes the only master, without {}: do it only where they are lost for \
             good. If they still run and this node is just cut off from them, there will be two \
             clusters; one that comes back later must be taken off by `gravity leave --force` \
             before anything else.",
            named(&cluster, &others)
        ),
    };
    session.go_on(confirm, &format!("{state}{alone} Go on?"))?;
    let operation = {
        let _lock = host::lock::Lock::acquire(&layout.operation_lock())?;
        match before(session, "the recovery") {
            Ok(taken) => session
                .console
                .info(&format!("What the cluster is now is in {}", taken.name)),
            Err(error) => session.console.warning(&format!("{error:#}")),
        }
        create(session, plan, snapshot.as_deref())?
    };
    process::start(session, &operation, &Action::Run).await
}

/// Refuses to go on with a recovery that was taken back, or that would make a second
/// cluster: masters that it took for lost may have come back since it was cut off.
pub(crate) async fn may_go_on(session: &Session, operation: &Operation) -> Result<()> {
    let state = operation.state()?;
    ensure!(
        state.overall() != State::RolledBack,
        "the recovery was taken back; `gravity etcd recover` begins another one"
    );
    let is_done = |phase| state.phase(phase).state == State::Completed;
    let forgets = operation.plan.phase(recover::FORGET).is_some();
    if !forgets || is_done(recover::REPLACE) {
        return Ok(());
    }
    let cluster = session.cluster()?;
    let node = session.own_node(&cluster)?;
    let others = other_masters(&session.layout, &cluster, &node.advertise_addresses);
    none_answers(&cluster, &others)
        .await
        .context("the recovery does not go on; `gravity rollback` takes back what it has done")
}

/// Refuses a recovery beside masters that answer.
async fn none_answers(
    cluster: &ClusterSpec,
    others: &BTreeSet<IpAddr>,
) -> Result<(), recover::Error> {
    let answering = answering(others).await;
    match answering.is_empty() {
        true => Ok(()),
        false => Err(recover::Error::OthersAnswer(named(cluster, &answering))),
    }
}

/// Addresses of the other masters, from all that this node knows by itself.
pub(crate) fn other_masters(
    layout: &Layout,
    cluster: &ClusterSpec,
    own: &[IpAddr],
) -> BTreeSet<IpAddr> {
    let known = std::fs::read(layout.masters()).ok();
    let known: Option<BTreeSet<IpAddr>> = known.and_then(|json| serde_json::from_slice(&json).ok());
    let members = Etcd::on_host(layout).and_then(|etcd| etcd.within(QUESTION).addresses());
    let mut all: BTreeSet<_> = known.into_iter().flatten().collect();
    all.extend(members.into_iter().flatten());
    if all.is_empty() {
        // From the day when this node was installed or joined.
        all.extend(cluster.masters());
    }
    all.retain(|address| !own.contains(address));
    all
}

/// Those at which something of a master listens.
pub(crate) async fn answering(masters: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let mut asked = tokio::task::JoinSet::new();
    for address in masters {
        for port in [etcd::PEER_PORT, spec::CONTROLLER_PORT, spec::API_PORT] {
            let address = SocketAddr::new(*address, port);
            asked.spawn(async move {
                let connected = tokio::time::timeout(REACH, TcpStream::connect(address)).await;
                matches!(connected, Ok(Ok(_))).then_some(address.ip())
            });
        }
    }
    asked.join_all().await.into_iter().flatten().collect()
}

/// Masters by what the user calls them.
pub(crate) fn named(cluster: &ClusterSpec, masters: &BTreeSet<IpAddr>) -> String {
    let name = |address: &IpAddr| {
        let mut nodes = cluster.nodes.iter();
        let node = nodes.find(|node| node.advertise_addresses.contains(address));
        match node {
            Some(node) => format!("{} ({address})", node.hostname),
            None => address.to_string(),
        }
    };
    masters.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Writes the operation with its snapshot: nobody else removes or changes that
/// any more. Without one, the operation makes it.
fn create(session: &Session, plan: operation::Plan, snapshot: Option<&Path>) -> Result<Operation> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let Some(snapshot) = snapshot else {
        return Ok(Operation::create(&session.layout, plan)?);
    };
    let directory = session.layout.operations().join(&plan.operation_id);
    let copy = directory.join(EtcdRestore::SNAPSHOT);
    let copied = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .and_then(|()| std::fs::copy(snapshot, &copy))
        .and_then(|_| std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)));
    // The plan last: without one it is no operation.
    let created = copied
        .with_context(|| format!("copy {} to {}", snapshot.display(), copy.display()))
        .and_then(|()| Ok(Operation::create(&session.layout, plan)?));
    created.inspect_err(|_| {
        let _ = std::fs::remove_dir_all(&directory);
    })
}
