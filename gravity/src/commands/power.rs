//! `gravity stop` and `gravity start`: the application and the node's services.
//!
//! The vendor's hooks speak of the application as a whole: they run on masters,
//! whose administrator's rights they need; a worker stops and starts without.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use console::ExitCode;
use event::Sink;
use installer::coordinator::Operation;
use manifest::HookName;
use spec::layout::Layout;
use spec::phase::{Health, PhaseSpec};

use super::{Session, hook, own, require_root};
use crate::cli::Stop;

pub(crate) async fn stop(session: &Session, arguments: &Stop) -> Result<ExitCode> {
    require_root()?;
    session.cluster()?;
    // A manifest that can't be read is told below.
    let hooks = session.manifest().map(|manifest| manifest.hooks);
    let question = question(&session.layout, &hooks.unwrap_or_default());
    session.go_on(arguments.confirm, question)?;
    let _lock = host::lock::Lock::acquire(&session.layout.operation_lock())?;
    match run_hook(session, HookName::Stop).await {
        Ok(()) => {}
        Err(error) if arguments.force => session.console.warning(&format!("{error:#}")),
        Err(error) => {
            return Err(error.context(
                "the application could not be stopped, and everything runs on; mend the cause, \
                 or stop the node without it by `gravity stop --force`",
            ));
        }
    }
    session.console.step("Stopping services and pods");
    agent::power::stop(&session.layout).context("stop the planet")?;
    session
        .console
        .info("Stopped; `gravity start` starts it again");
    Ok(ExitCode::Ok)
}

/// What is asked before a stop: the hook ends more than this node.
fn question(layout: &Layout, hooks: &BTreeMap<HookName, String>) -> &'static str {
    match hooks.contains_key(&HookName::Stop) && layout.admin_kubeconfig().exists() {
        true => {
            "All services and pods on this node will be stopped. Before that the image's stop hook \
             ends the application on all nodes. Go on?"
        }
        false => "All services and pods on this node will be stopped. Go on?",
    }
}

pub(crate) async fn start(session: &Session) -> Result<ExitCode> {
    require_root()?;
    let cluster = session.cluster()?;
    let node = session.own_node(&cluster)?;
    if let Some(reason) = own::lost_address(node, &own::addresses()) {
        bail!(reason);
    }
    if let Some(renamed) = own::renamed(node, &own::host_name()?) {
        session.console.warning(&renamed);
    }
    let _lock = host::lock::Lock::acquire(&session.layout.operation_lock())?;
    session.console.step("Starting services");
    let health = health(session)?;
    agent::power::start(&session.layout, &health, session.console.clone())
        .await
        .context("start the planet")?;
    run_hook(session, HookName::Start).await?;
    Ok(ExitCode::Ok)
}

/// What this node's own operation waited for.
fn health(session: &Session) -> Result<Health> {
    let operations = Operation::all(&session.layout)?;
    let phases = operations.iter().flat_map(|one| one.plan.leaves());
    let mut payloads =
        phases.filter_map(|phase| serde_json::from_value(phase.payload.clone()).ok());
    payloads
        .find_map(|payload| match payload {
            PhaseSpec::Health(health) => Some(health),
            _ => None,
        })
        .context("no operation of this node says what is to be waited for")
}

/// Runs a hook where the image has it, on masters.
async fn run_hook(session: &Session, name: HookName) -> Result<()> {
    if !session.manifest()?.hooks.contains_key(&name) {
        return Ok(());
    }
    if !session.layout.admin_kubeconfig().exists() {
        let text = format!("The {name} hook runs on masters only; this node is a worker");
        session.console.info(&text);
        return Ok(());
    }
    hook::by_hand(session, name, &[], session.console.clone()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stops_a_master_is_told_that_the_hook_is_for_all_nodes() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        let hooks = BTreeMap::from([(HookName::Stop, String::new())]);
        assert!(!question(&layout, &hooks).contains("hook"), "on a worker");
        std::fs::create_dir_all(layout.planet_secrets()).unwrap();
        host::atomic::write(&layout.admin_kubeconfig(), b"{}", 0o600).unwrap();
        assert!(question(&layout, &hooks).contains("on all nodes"));
        assert!(!question(&layout, &BTreeMap::new()).contains("hook"));
    }
}
