//! Runs operations in a process of their own, and follows them.
//!
//! The one that a person starts ([`start`]) only shows what the other
//! ([`operate`]) tells: a lost terminal ends the former, not the latter.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use console::{ExitCode, FileSink, Tee};
use event::{Event, Sink};
use host::background::Background;
use host::lock::Lock;
use installer::attach::{Abort, Broadcast, Follower, Line, Outcome};
use installer::coordinator::{self, Action, Operation};
use installer::install::{NODES_PHASE, TOKEN_PHASE};
use jiff::SignedDuration;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use operation::{Plan, RunError};
use spec::layout::Layout;
use spec::phase::{Nodes, PhaseSpec};
use tokio::signal::unix::{SignalKind, signal};

use super::{Session, copy_of_this, join, report, status, token};

/// How long the second Ctrl+C may come after the first.
const TWICE: Duration = Duration::from_secs(10);
/// How old what a report of a failure holds may be.
const RECENT: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the token is good that is made for the nodes of a flavor.
pub(super) const TOKEN_LIFE: SignedDuration = SignedDuration::from_hours(24);
/// Between two looks whether the process listens.
const PAUSE: Duration = Duration::from_millis(5);
/// How often the size of the processes' log is looked at.
const LOG_LOOKS: Duration = Duration::from_secs(30);

/// The operation stopped half-way.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0}\nThe operation stopped; mend the cause, then go on with `gravity resume` \
     or take everything back with `gravity rollback`"
)]
pub(crate) struct Interrupted(String);

/// Starts the process that does something with an operation, and follows it.
pub(crate) async fn start(
    session: &Session,
    operation: &Operation,
    action: &Action,
) -> Result<ExitCode> {
    let layout = &session.layout;
    // Says who runs one.
    drop(Lock::acquire(&layout.operation_lock())?);
    let background = background(layout, operation, action)?;
    let log = background.log.clone();
    let mut process = tokio::task::spawn_blocking(move || background.start())
        .await
        .context("start the operation's process")?
        .with_context(|| format!("start the operation's process; see {}", log.display()))?;
    if let Some(error) = process.refused() {
        session.console.warning(&format!(
            "The operation may end with this login, as it is no service of its own: {error}"
        ));
    }
    let follower = loop {
        match Follower::open(&layout.operation_socket()).await {
            Ok(follower) if follower.pid() == process.pid() => break follower,
            _ => {}
        }
        if let Some(status) = process.ended().context("wait for the operation")? {
            // Another one was faster.
            drop(Lock::acquire(&layout.operation_lock())?);
            bail!(
                "the operation's process ended at once ({status}); see {}",
                log.display()
            );
        }
        tokio::time::sleep(PAUSE).await;
    };
    follow(session, follower).await
}

/// The process that runs an operation. What it is given can be seen by all users;
/// secrets are in the operation's files.
fn background(layout: &Layout, operation: &Operation, action: &Action) -> Result<Background> {
    Ok(Background {
        name: "gravity-operation",
        description: "Gravity: an operation on this node",
        arguments: vec![
            "agent".into(),
            "operate".into(),
            "--state-dir".into(),
            layout.state_dir().into(),
            "--operation".into(),
            operation.plan.operation_id.clone().into(),
            "--action".into(),
            serde_json::to_string(action)?.into(),
        ],
        log: operation.agent_log(),
    })
}

/// Follows an operation that runs to its end.
pub(crate) async fn follow(session: &Session, mut follower: Follower) -> Result<ExitCode> {
    match listen(session, &mut follower).await? {
        Some(Outcome::Done) => {
            if session.layout.cluster().exists() {
                show_cluster(session).await?;
            }
            Ok(ExitCode::Ok)
        }
        Some(Outcome::Failed { error }) => Err(Interrupted(error).into()),
        Some(Outcome::Refused { error }) => bail!(error),
        Some(Outcome::Aborted) => bail!("the operation was aborted and everything taken back"),
        None => Err(Interrupted(format!(
            "the operation's process (pid {}) ended unexpectedly",
            follower.pid()
        ))
        .into()),
    }
}

/// Shows what is told until the end. Two interrupts abort the operation.
async fn listen(session: &Session, follower: &mut Follower) -> Result<Option<Outcome>> {
    let console = &session.console;
    let mut interrupts = signal(SignalKind::interrupt()).context("listen for Ctrl+C")?;
    let mut last: Option<Instant> = None;
    loop {
        tokio::select! {
            line = follower.next() => match line.context("follow the operation")? {
                Some(Line::Event { event }) => {
                    let waits = waits_for_nodes(&event);
                    console.emit(event);
                    if waits && let Err(error) = show_joins(session).await {
                        console.warning(&format!(
                            "{error:#}; `gravity token create` on this node shows how others join"
                        ));
                    }
                }
                Some(Line::End { outcome }) => return Ok(Some(outcome)),
                Some(Line::Begin { .. }) => {}
                None => return Ok(None),
            },
            _ = interrupts.recv() => {
                if follower.abort() == Abort::GoOn {
                    console.warning(
                        "What is being taken back goes on, also without this terminal \
                         (`gravity resume` shows it again)",
                    );
                } else if last.is_some_and(|last| last.elapsed() < TWICE) {
                    let pid = i32::try_from(follower.pid()).context("find the process")?;
                    // It may have ended meanwhile.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
                    last = None;
                } else {
                    let what = match follower.abort() {
                        Abort::End => "end this phase",
                        _ => "abort the operation and take everything back",
                    };
                    console.warning(&format!(
                        "Press Ctrl+C again within {} s to {what}; otherwise it goes on, also \
                         without this terminal (`gravity resume` shows it again)",
                        TWICE.as_secs()
                    ));
                    last = Some(Instant::now());
                }
            }
        }
    }
}

fn waits_for_nodes(event: &Event) -> bool {
    matches!(event, Event::Phase { id, state, .. } if id == NODES_PHASE && state == "in_progress")
}

/// Shows the commands by which the missing nodes join. The token is for this
/// terminal: logs don't get it.
async fn show_joins(session: &Session) -> Result<()> {
    let plan = Operation::last(&session.layout)?.plan;
    let leaves = plan.leaves();
    let own = leaves.iter().any(|phase| phase.id == TOKEN_PHASE);
    let phase = leaves.into_iter().find(|phase| phase.id == NODES_PHASE);
    let phase = phase.context("the plan waits for no nodes")?;
    let nodes: Nodes = serde_json::from_value(phase.payload.clone())?;
    let client = session.administrator().await?;
    let cluster = installer::controller::description(&client).await?;
    let missing = nodes.missing(cluster.nodes.iter().map(|node| node.profile.as_str()));
    if missing.is_empty() {
        return Ok(());
    }
    let masters = token::masters(&cluster);
    // One of the user's own choice is not shown again.
    let token = match own {
        true => "TOKEN".to_owned(),
        // Whoever looks at the same install again gets the same one.
        false => match token::valid(&client, TOKEN_LIFE / 2).await? {
            Some(token) => token.text,
            None => token::make(session, &client, TOKEN_LIFE, None).await?.text,
        },
    };
    let program = copy_of_this();
    let descriptions = descriptions(&plan);
    let mut text =
        String::from("On the other nodes, in the directory of a copy of this file, run as root:");
    for (profile, count) in missing {
        let s = if count == 1 { "" } else { "s" };
        let _ = write!(
            text,
            "\n  {count} node{s}: {program} join {masters} --token={token} --role={profile}"
        );
        if let Some(description) = descriptions.get(profile) {
            // A shell that gets the whole line takes this for a comment.
            let _ = write!(text, "  # {description}");
        }
    }
    session.console.print(&text);
    Ok(())
}

/// What the vendor says of each profile, on a line; the manifest is in the plan until the
/// install is complete.
fn descriptions(plan: &Plan) -> BTreeMap<String, String> {
    let leaves = plan.leaves().into_iter().rev();
    let mut payloads =
        leaves.filter_map(|phase| serde_json::from_value(phase.payload.clone()).ok());
    let manifest = payloads.find_map(|payload| match payload {
        PhaseSpec::Complete(complete) => manifest::parse(&complete.manifest, "app.yaml").ok(),
        _ => None,
    });
    let profiles = manifest.map(|manifest| manifest.node_profiles);
    let described = profiles.into_iter().flatten().filter_map(|profile| {
        let text = profile.description?;
        let words: Vec<_> = text.split_whitespace().collect();
        (!words.is_empty()).then(|| (profile.name, words.join(" ")))
    });
    described.collect()
}

async fn show_cluster(session: &Session) -> Result<()> {
    let cluster = session.cluster()?;
    if session.layout.node_certificate().exists() {
        let text = format!("This node is part of cluster {}", cluster.name);
        session.console.info(&text);
        return Ok(());
    }
    let client = session.administrator().await?;
    let mut lines = vec![format!("Cluster {} is active", cluster.name)];
    // The install is complete, whatever its endpoints are.
    match status::endpoints(session, &client).await {
        Ok(endpoints) => lines.extend(status::endpoints_text(&endpoints)),
        Err(error) => session.console.warning(&format!("{error:#}")),
    }
    match status::setup_endpoint(session, &client).await {
        Ok(endpoint) => lines.extend(endpoint.iter().flat_map(status::setup_text)),
        Err(error) => session.console.warning(&format!("{error:#}")),
    }
    for line in lines {
        session.console.info(&line);
    }
    Ok(())
}

/// Is the process that runs an operation.
pub(crate) async fn operate(session: &Session, id: &str, action: &str) -> Result<ExitCode> {
    let layout = &session.layout;
    let action: Action = serde_json::from_str(action).context("read the action")?;
    let lock = Lock::acquire(&layout.operation_lock())?;
    let operation = Operation::open(layout, id)?;
    let broadcast = Broadcast::listen(&layout.operation_socket(), Abort::of(&action))
        .context("listen at the operation's socket")?;
    let log = FileSink::open(&operation.log()).context("open the operation's log")?;
    tokio::spawn(keep_small(operation.agent_log()));
    let sinks: Vec<Arc<dyn Sink>> = vec![broadcast.clone(), Arc::new(log)];
    let sink: Arc<dyn Sink> = Arc::new(Tee::new(sinks));
    let outcome = act(layout, &operation, &action, &lock, sink).await;
    let code = match &outcome {
        Outcome::Done => ExitCode::Ok,
        Outcome::Failed { .. } => ExitCode::Resumable,
        Outcome::Refused { .. } | Outcome::Aborted => ExitCode::Failed,
    };
    broadcast.end(outcome).await;
    Ok(code)
}

/// Keeps a log that our processes write to within limits, for ever.
async fn keep_small(log: PathBuf) {
    loop {
        tokio::time::sleep(LOG_LOOKS).await;
        let log = log.clone();
        // What can't be done now is tried again.
        drop(tokio::task::spawn_blocking(move || host::limited::keep(&log)).await);
    }
}

async fn act(
    layout: &Layout,
    operation: &Operation,
    action: &Action,
    lock: &Lock,
    sink: Arc<dyn Sink>,
) -> Outcome {
    let failed = |error: anyhow::Error| Outcome::Failed {
        error: console::render::error(error.as_ref()),
    };
    // From here on it is heeded, or not, but ends nothing by itself.
    let mut aborts = match signal(SignalKind::interrupt()) {
        Ok(aborts) => aborts,
        Err(error) => return failed(error.into()),
    };
    if *action == Action::RollBackAll {
        return match roll_back(layout, operation, lock, sink.clone()).await {
            Ok(()) => Outcome::Done,
            Err(error) => {
                report_failure(layout, operation, &*sink).await;
                failed(error)
            }
        };
    }
    let acted = tokio::select! {
        acted = coordinator::act(layout, operation, action, lock, sink.clone()) => acted,
        _ = aborts.recv() => {
            let aborted = async {
                agent::leave::stop_agent(layout)?;
                match Abort::of(action) {
                    Abort::TakeBack => {
                        sink.step("Aborting: taking everything back");
                        roll_back(layout, operation, lock, sink).await?;
                        Ok(Outcome::Aborted)
                    }
                    Abort::End | Abort::GoOn => bail!("the phase was ended"),
                }
            };
            return aborted.await.unwrap_or_else(failed);
        }
    };
    match acted {
        Ok(()) => Outcome::Done,
        Err(coordinator::Error::Phase(
            error @ (RunError::NoPhase(_) | RunError::Requires { .. } | RunError::Follows { .. }),
        )) => Outcome::Refused {
            error: error.to_string(),
        },
        Err(error) => {
            report_failure(layout, operation, &*sink).await;
            failed(error.into())
        }
    }
}

/// Collects what tells why an operation has failed, while it is fresh.
async fn report_failure(layout: &Layout, operation: &Operation, sink: &dyn Sink) {
    let path = operation.directory.join("report.tar.gz");
    let (layout, file) = (layout.clone(), path.clone());
    let written =
        tokio::task::spawn_blocking(move || report::write(&layout, &file, RECENT, []).map(drop));
    match written.await {
        Ok(Ok(())) => sink.info(&format!("A report of the failure is in {}", path.display())),
        Ok(Err(error)) => sink.warning(&format!("There is no report of the failure: {error:#}")),
        Err(error) => sink.warning(&format!("There is no report of the failure: {error}")),
    }
}

/// Operations that bring a node into a cluster: taken back, nothing of ours is
/// left on it.
pub(crate) const FIRST: &[&str] = &["install", "join"];

/// Takes an operation back.
async fn roll_back(
    layout: &Layout,
    operation: &Operation,
    lock: &Lock,
    sink: Arc<dyn Sink>,
) -> Result<()> {
    let all = Action::RollBackAll;
    join::give_up(layout, operation, &*sink).await;
    let phases = coordinator::act(layout, operation, &all, lock, sink.clone()).await;
    if !FIRST.contains(&operation.plan.kind.as_str()) {
        return Ok(phases?);
    }
    if let Err(error) = phases {
        // What the phases could not take back is in the journal of changes.
        sink.warning(&console::render::error(&error));
    }
    let layout = layout.clone();
    let told = sink.clone();
    let left = tokio::task::spawn_blocking(move || agent::leave::leave(&layout, false, &*told));
    let report = left.await.context("leave")??;
    for line in report.to_string().lines() {
        sink.info(line);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_of_an_install_tells_what_its_profiles_are_for() {
        let manifest = "metadata: {name: a, resourceVersion: 1.0.0}\n\
                        nodeProfiles:\n\
                        - {name: db, description: \"Keeps\\n  data \"}\n\
                        - {name: web}\n";
        let complete = PhaseSpec::Complete(spec::phase::Complete {
            operation: "one".into(),
            cluster: spec::sample::cluster(),
            manifest: manifest.into(),
        });
        let plan = |phases| Plan::new("install", "one", phases);
        let phase = operation::Phase {
            payload: serde_json::to_value(complete).unwrap(),
            ..operation::Phase::new("/complete", "Write it down")
        };
        let told = descriptions(&plan(vec![phase]));
        assert_eq!(told, BTreeMap::from([("db".into(), "Keeps data".into())]));
        assert!(descriptions(&plan(Vec::new())).is_empty());
    }

    #[test]
    fn the_process_of_an_operation_is_told_its_id_and_no_secrets() {
        let layout = Layout::new("/state");
        let plan: operation::Plan = serde_json::from_value(serde_json::json!({
            "version": operation::PLAN_VERSION,
            "operation_id": "one",
            "kind": "install",
            "created_by_version": "1",
            "phases": [],
        }))
        .unwrap();
        let operation = Operation {
            directory: "/state/operations/one".into(),
            plan,
        };
        let background = background(&layout, &operation, &Action::Run).unwrap();
        assert_eq!(background.log, operation.agent_log());
        assert_eq!(
            background.arguments,
            [
                "agent",
                "operate",
                "--state-dir",
                "/state",
                "--operation",
                "one",
                "--action",
                "{\"action\":\"run\"}",
            ]
        );
    }
}
