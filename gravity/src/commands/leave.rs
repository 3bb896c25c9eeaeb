//! `gravity leave`: uninstalls the application with the cluster's last node,
//! then takes everything of ours off the node.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use console::ExitCode;
use event::Sink;
use installer::controller::{self, Removal};
use installer::coordinator::Operation;
use installer::hooks::NodeHooks;
use manifest::{HookName, Manifest};

use super::{Session, hook, require_root};
use crate::cli::Leave;

/// How long Kubernetes may take to answer: it does so again this long after its planet
/// was killed.
const PATIENCE: Duration = Duration::from_secs(40);

/// How often the cluster is asked to let the node go, where controllers end meanwhile.
const TRIES: usize = 5;

/// What is run before the node is cleaned up, in order.
const HOOKS: [HookName; 2] = [HookName::PreUninstall, HookName::Uninstall];

pub(crate) async fn run(session: &Session, arguments: &Leave) -> Result<ExitCode> {
    require_root()?;
    // Nothing is written to a directory that is not ours.
    if !session.layout.host_changes().exists() {
        bail!(
            "there is no cluster in {}",
            session.layout.state_dir().display()
        );
    }
    let place = Place::of(session).await;
    if let (Place::Unknown(why), false) = (&place, arguments.force) {
        bail!(
            "it can't be told whether the cluster has other nodes: {why}; nothing was changed. \
             `gravity start` starts a cluster that is stopped; `gravity leave --force` leaves \
             without asking it"
        );
    }
    let began = session.layout.cluster().exists() || Operation::last(&session.layout).is_ok();
    let question = match place {
        _ if !began => "What has come of a cluster's image will be removed. Go on?",
        Place::Among | Place::Unknown(_) => {
            "All of the cluster's data on this node will be lost. Go on?"
        }
        Place::Last => {
            "This is the cluster's last node: leaving it ends the cluster, and all of its data \
             on this node will be lost. Go on?"
        }
    };
    session.go_on(arguments.confirm, question)?;
    let lock = host::lock::Lock::acquire(&session.layout.operation_lock())?;
    match place {
        Place::Last => end_application(session, arguments.force).await?,
        Place::Among if !arguments.force => {
            session.console.step("Moving pods to other nodes");
            leave_cluster(session).await.context(
                "leave the cluster; nothing was changed on this node. `gravity leave --force` \
                 cleans it up without the cluster, `gravity remove` on a master then forgets it",
            )?;
        }
        Place::Among => {}
        Place::Unknown(why) => session.console.warning(&format!(
            "The application is not uninstalled, as the cluster can't be asked: {why}"
        )),
    }
    if session.layout.cluster().exists() {
        // Whatever ends us from here on: hooks are not run again, and nobody is asked.
        let marked = host::atomic::write(&session.layout.leaving(), b"", 0o600);
        if let Err(error) = marked {
            // The room comes back with what is removed.
            let told = format!("can't write down that this node leaves: {error}");
            session.console.warning(&told);
        }
    }
    let report = agent::leave::leave(&session.layout, arguments.purge, &*session.console)
        .context("leave")?;
    drop(lock);
    match session.console.is_json() {
        true => session.console.print_json(&report)?,
        false => session.console.print(&report.to_string()),
    }
    Ok(ExitCode::Ok)
}

/// What a node is to its cluster.
#[derive(Debug)]
enum Place {
    /// The cluster goes on without it.
    Among,
    /// The cluster ends with it, or has ended, or never was.
    Last,
    /// The cluster can't be asked, and why.
    Unknown(String),
}

impl Place {
    async fn of(session: &Session) -> Self {
        let layout = &session.layout;
        let joined = layout.node_certificate().exists();
        if layout.leaving().exists() {
            return Self::Last;
        }
        if !layout.cluster().exists() {
            return if joined { Self::Among } else { Self::Last };
        }
        if !layout.admin_kubeconfig().exists() {
            return Self::Among;
        }
        match is_alone(session).await {
            Ok(true) => Self::Last,
            Ok(false) => Self::Among,
            // The controllers say what is wrong.
            Err(_) if joined => Self::Among,
            Err(error) => Self::Unknown(format!("{error:#}")),
        }
    }
}

/// Whether the cluster's description has no other node. Only masters can ask.
async fn is_alone(session: &Session) -> Result<bool> {
    let client = cluster::Client::connect(&session.layout.admin_kubeconfig()).await?;
    client.wait_api(PATIENCE).await?;
    let cluster = controller::description(&client).await?;
    // Also where it has been forgotten already, by a try that was cut off.
    let here = session.own_node(&cluster).map(|node| node.id).ok();
    Ok(cluster.nodes.iter().all(|node| Some(node.id) == here))
}

/// Uninstalls the application, once; a half-finished install has none yet.
async fn end_application(session: &Session, force: bool) -> Result<()> {
    if !session.layout.cluster().exists() || session.layout.leaving().exists() {
        return Ok(());
    }
    match uninstall(session, force).await {
        Err(error) if force => {
            session.console.warning(&format!("{error:#}"));
            Ok(())
        }
        uninstalled => uninstalled.context(
            "the application could not be uninstalled, and the cluster stays as it is; \
             mend the cause, or leave without it by `gravity leave --force`",
        ),
    }
}

/// Runs the hooks of the end. The status hook is silent meanwhile.
async fn uninstall(session: &Session, force: bool) -> Result<()> {
    let manifest = session.manifest()?;
    if !HOOKS.iter().any(|hook| manifest.hooks.contains_key(hook)) {
        return Ok(());
    }
    let client = cluster::Client::connect(&session.layout.admin_kubeconfig()).await?;
    client.wait_api(PATIENCE).await?;
    let checked = manifest.hooks.contains_key(&HookName::Status);
    if checked {
        client.stop_status_hook().await?;
    }
    let ended = hooks(session, &client, &manifest, force).await;
    if checked && ended.is_err() {
        client.start_status_hook().await?;
    }
    ended
}

async fn hooks(
    session: &Session,
    client: &cluster::Client,
    manifest: &Manifest,
    force: bool,
) -> Result<()> {
    let cluster = session.cluster()?;
    // The same each time: a hook that has completed is not run again.
    let operation = format!("leave-{}", cluster.id);
    let mut ended = Ok(());
    for name in HOOKS {
        let Some(job) = manifest.hooks.get(&name) else {
            continue;
        };
        session.console.step(&format!("Running the {name} hook"));
        let hook = installer::hooks::hook(&cluster, name, job, &operation);
        match hook::once(session, client, hook, session.console.clone()).await {
            Ok(()) => {}
            Err(error) if force => session.console.warning(&format!("{error:#}")),
            Err(error) => {
                ended = Err(error);
                break;
            }
        }
    }
    hook::revoke(session, client, &operation).await;
    ended
}

/// Has the cluster move pods off this node and forget it.
async fn leave_cluster(session: &Session) -> Result<()> {
    let cluster = session.cluster()?;
    if !session.layout.node_certificate().exists() {
        // The first master has rights of its own.
        let client = session.administrator().await?;
        let name = &session.own_node(&cluster)?.hostname;
        let hooks = NodeHooks::of(&cluster, &session.manifest()?.hooks);
        let removal = Removal {
            client: &client,
            etcd: &session.etcd()?,
            hooks: &hooks,
            force: false,
        };
        return Ok(removal.run(name, session.console.clone()).await?);
    }
    let mut left = TRIES;
    loop {
        let mut member = agent::session(&session.layout, &cluster.controllers()).await?;
        left -= 1;
        match member.leave(false, &*session.console).await {
            // The controller has ended, or its node has; the next one goes on with it.
            Err(broken @ rpc::controller::Error::Broken(_)) if left > 0 => {
                session.console.warning(&format!("{broken}; asking again"));
            }
            ended => return Ok(ended?),
        }
    }
}
