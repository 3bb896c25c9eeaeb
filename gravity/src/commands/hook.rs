//! `gravity hook run`: a hook of the installed image, by hand. `gravity hook
//! watch`: the planet's service that runs the status hook.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use console::ExitCode;
use event::Sink;
use manifest::{HookName, Manifest};
use spec::phase;

use super::{Session, require_root};
use crate::cli::Hook;

/// How often the status hook is run (page: "called every minute").
const PERIOD: Duration = Duration::from_secs(60);

pub(crate) async fn run(session: &Session, command: &Hook) -> Result<ExitCode> {
    match command {
        Hook::Run { name, env } => {
            require_root()?;
            by_hand(session, *name, env, session.console.clone()).await?;
            Ok(ExitCode::Ok)
        }
        Hook::Watch {
            kubeconfig,
            node,
            hook,
        } => watch(kubeconfig, node, hook).await,
    }
}

/// Runs a hook of the installed image as an operation of its own. What it
/// writes goes to `sink`.
pub(crate) async fn by_hand(
    session: &Session,
    name: HookName,
    env: &[(String, String)],
    sink: Arc<dyn Sink>,
) -> Result<()> {
    let cluster = session.cluster()?;
    let manifest = session.manifest()?;
    let operation = format!("{}{}", cluster::hooks::BY_HAND, uuid::Uuid::new_v4());
    let mut hook = installer::hooks::hook(&cluster, name, job(&manifest, name)?, &operation);
    hook.env.extend(env.iter().cloned());
    let client = session.administrator().await?;
    let ended = once(session, &client, hook, sink).await;
    revoke(session, &client, &operation).await;
    ended
}

fn job(manifest: &Manifest, name: HookName) -> Result<&str> {
    if let Some(job) = manifest.hooks.get(&name) {
        return Ok(job);
    }
    let has: Vec<_> = manifest.hooks.keys().map(|hook| hook.as_str()).collect();
    match has.is_empty() {
        true => bail!("the cluster image has no hooks"),
        false => bail!(
            "the cluster image has no hook {name}; it has {}",
            has.join(", ")
        ),
    }
}

/// Runs a hook to its end; Ctrl+C and SIGTERM end it.
pub(crate) async fn once(
    session: &Session,
    client: &cluster::Client,
    hook: phase::Hook,
    sink: Arc<dyn Sink>,
) -> Result<()> {
    let hook = agent::hook_run(hook);
    tokio::select! {
        ended = cluster::hooks::run(client, &hook, sink) => Ok(ended?),
        () = interrupted() => {
            session.console.warning("Interrupted: the hook's Job is removed");
            cluster::hooks::remove(client, &hook).await?;
            bail!("hook {} was interrupted", hook.name)
        }
    }
}

/// Comes back at Ctrl+C or SIGTERM. From then on neither ends the process by itself.
pub(crate) async fn interrupted() {
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = agent::terminated() => {}
    }
}

/// Ends what the hooks of an operation may do; their own result is worth more
/// than a failure of this.
pub(crate) async fn revoke(session: &Session, client: &cluster::Client, operation: &str) {
    if let Err(error) = client.revoke_hooks(operation).await {
        session.console.warning(&error.to_string());
    }
}

async fn watch(kubeconfig: &Path, node: &str, hook: &Path) -> Result<ExitCode> {
    super::log_to_stderr();
    let context = || format!("read {}", hook.display());
    let json = std::fs::read(hook).with_context(context)?;
    let hook: phase::Hook = serde_json::from_slice(&json).with_context(context)?;
    let client = cluster::Client::connect(kubeconfig).await?;
    cluster::hooks::watch(&client, node, &agent::hook_run(hook), PERIOD).await;
    Ok(ExitCode::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_that_the_image_has_not_is_refused_with_those_it_has() {
        let header = "apiVersion: cluster.gravitational.io/v2\nkind: Cluster\n\
                      metadata: {name: x, resourceVersion: 1.0.0}\n";
        let hooks = "hooks: {dump: {job: '{kind: Job}'}, info: {job: '{kind: Job}'}}\n";
        let none = manifest::parse(header, "app.yaml").unwrap();
        let two = manifest::parse(&format!("{header}{hooks}"), "app.yaml").unwrap();
        assert_eq!(job(&two, HookName::Dump).unwrap(), "{kind: Job}");
        assert_eq!(
            job(&two, HookName::Backup).unwrap_err().to_string(),
            "the cluster image has no hook backup; it has info, dump"
        );
        assert!(job(&none, HookName::Dump).is_err());
    }
}
