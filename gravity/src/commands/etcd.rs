//! `gravity etcd`: snapshots of the cluster's state, and back to one.

use std::path::{Path, PathBuf};

use agent::etcd::Etcd;
use agent::snapshots::{self, Kind, Snapshot};
use anyhow::{Context, Result, anyhow, bail, ensure};
use console::{ExitCode, render};
use event::Sink;
use installer::coordinator::{Action, Operation};
use installer::recover;
use operation::{PhaseError, State};
use serde::Serialize;
use spec::phase::EtcdRestore;

use super::{Session, operation as process, require_root, status};
use crate::cli;

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
    status::cluster(session)?;
    session.administrator().await?;
    match command {
        cli::Etcd::Snapshot { file } => snapshot(session, file.as_deref()),
        cli::Etcd::Snapshots => show(session),
        cli::Etcd::Recover { snapshot, confirm } => recover(session, snapshot, *confirm).await,
    }
}

fn told(error: PhaseError) -> anyhow::Error {
    anyhow!(error.message)
}

fn snapshot(session: &Session, file: Option<&Path>) -> Result<ExitCode> {
    let layout = &session.layout;
    let etcd = Etcd::on_host(layout).map_err(told)?;
    let (path, content) = match file {
        None => {
            let (kept, content) =
                snapshots::take(&etcd, &layout.etcd_snapshots(), Kind::Manual).map_err(told)?;
            (kept.path, content)
        }
        Some(path) => {
            ensure!(!path.exists(), "{} exists already", path.display());
            (path.to_owned(), etcd.save(path).map_err(told)?)
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
    let (snapshot, _) = taken
        .map_err(told)
        .with_context(|| format!("take a snapshot of etcd before {what}"))?;
    Ok(snapshot)
}

fn show(session: &Session) -> Result<ExitCode> {
    let all = snapshots::list(&session.layout.etcd_snapshots()).map_err(told)?;
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

async fn recover(session: &Session, name: &Path, confirm: bool) -> Result<ExitCode> {
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
    let snapshot = find(session, name)?;
    let etcd = Etcd::on_host(layout).map_err(told)?;
    let content = etcd.inspect(&snapshot).map_err(told)?;
    // An etcd that doesn't answer is why it is recovered.
    if let Ok(members) = etcd.members()
        && members > 1
    {
        return Err(recover::Error::SeveralMembers(members).into());
    }
    let cluster = status::cluster(session)?;
    let node = cluster.nodes.first().context("the cluster has no node")?;
    let planet = super::planet::config(layout)?;
    let plan = recover::plan(&cluster, &node.hostname, &planet)?;
    let question = format!(
        "The cluster's objects will be as they were in {} ({} keys); what was changed since is \
         lost. Go on?",
        snapshot.display(),
        content.keys
    );
    if !confirm && !session.console.confirm(&question)? {
        bail!("nothing was changed");
    }
    let operation = {
        let _lock = host::lock::Lock::acquire(&layout.operation_lock())?;
        match before(session, "the recovery") {
            Ok(taken) => session
                .console
                .info(&format!("What the cluster is now is in {}", taken.name)),
            Err(error) => session.console.warning(&format!("{error:#}")),
        }
        create(session, plan, &snapshot)?
    };
    process::start(session, &operation, &Action::Run).await
}

/// Writes the operation with its snapshot: nobody else removes or changes that
/// any more.
fn create(session: &Session, plan: operation::Plan, snapshot: &Path) -> Result<Operation> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
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
