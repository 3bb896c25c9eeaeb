//! `gravity stop` and `gravity start`: the application and the node's services.

use anyhow::{Context, Result, anyhow, bail};
use console::ExitCode;
use event::Sink;
use installer::coordinator::Operation;
use manifest::HookName;
use spec::phase::PhaseSpec;

use super::{Session, hook, require_root, status};
use crate::cli::Stop;

pub(crate) async fn stop(session: &Session, arguments: &Stop) -> Result<ExitCode> {
    require_root()?;
    status::cluster(session)?;
    session.administrator().await?;
    if !arguments.confirm
        && !session
            .console
            .confirm("All services and pods on this node will be stopped. Go on?")?
    {
        bail!("nothing was changed");
    }
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
    agent::power::stop(&session.layout)
        .map_err(|error| anyhow!(error.message))
        .context("stop the planet")?;
    session
        .console
        .info("Stopped; `gravity start` starts it again");
    Ok(ExitCode::Ok)
}

pub(crate) async fn start(session: &Session) -> Result<ExitCode> {
    require_root()?;
    let cluster = status::cluster(session)?;
    session.administrator().await?;
    let node = session.own_node(&cluster)?;
    let _lock = host::lock::Lock::acquire(&session.layout.operation_lock())?;
    session.console.step("Starting services");
    let services = waited_for(session)?;
    let name = &node.hostname;
    agent::power::start(&session.layout, name, &services, session.console.clone())
        .await
        .map_err(|error| anyhow!(error.message))
        .context("start the planet")?;
    run_hook(session, HookName::Start).await?;
    Ok(ExitCode::Ok)
}

/// The services that this node's own operation waited for.
fn waited_for(session: &Session) -> Result<Vec<String>> {
    let operations = Operation::all(&session.layout)?;
    let phases = operations.iter().flat_map(|one| one.plan.leaves());
    let mut payloads =
        phases.filter_map(|phase| serde_json::from_value(phase.payload.clone()).ok());
    Ok(payloads
        .find_map(|payload| match payload {
            PhaseSpec::Health(health) => Some(health.services),
            _ => None,
        })
        .unwrap_or_default())
}

/// Runs a hook where the image has it.
async fn run_hook(session: &Session, name: HookName) -> Result<()> {
    match status::manifest(session)?.hooks.contains_key(&name) {
        true => hook::by_hand(session, name, &[], session.console.clone()).await,
        false => Ok(()),
    }
}
