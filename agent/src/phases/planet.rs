//! Starts the planet and waits for some of its services.

use std::sync::Arc;
use std::time::Duration;

use event::Sink;
use host::changes::Journal;
use operation::PhaseError;
use planet::config::PlanetConfig;
use spec::phase::Planet;

use crate::node::{lasting, transient};
use crate::{Node, daemon, disk};

/// From the start of the container until the API answers; seconds as a rule,
/// minutes under emulation.
const DEADLINE: Duration = Duration::from_secs(600);

/// Module that has the `net.bridge.*` kernel parameters.
const BRIDGE_MODULE: &str = "br_netfilter";
/// List of modules that systemd loads at boot.
pub(crate) const MODULES_AT_BOOT: &str = "/etc/modules-load.d/gravity.conf";

pub(crate) async fn execute(
    node: &Arc<Node>,
    phase: Planet,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    let starter = node.clone();
    let config = phase.config;
    let warnings = sink.clone();
    blocking(move || start(&starter, &config, &*warnings)).await?;
    wait_ready(node, &phase.wait_for).await?;
    sink.info(&format!("Services are up: {}", phase.wait_for.join(", ")));
    Ok(())
}

/// Starts the planet again where it doesn't run, as after a boot without
/// systemd. Its configuration stays as it has become.
pub(crate) async fn start_again(
    node: &Arc<Node>,
    phase: Planet,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    let starter = node.clone();
    blocking(move || {
        let planet = serde_json::from_value(phase.config).map_err(|error| lasting(&error))?;
        prepare_kernel(&mut starter.changes(), &planet, &*sink)?;
        daemon::start(&starter)
    })
    .await?;
    wait_ready(node, &phase.wait_for).await
}

async fn blocking(
    work: impl FnOnce() -> Result<(), PhaseError> + Send + 'static,
) -> Result<(), PhaseError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| PhaseError::transient(format!("the phase's thread ended: {error}")))?
}

async fn wait_ready(node: &Node, services: &[String]) -> Result<(), PhaseError> {
    let planet = node.planet();
    tokio::select! {
        ready = planet.wait_ready(services, DEADLINE, |_| ()) => {
            ready.map(drop).map_err(|error| transient(&error))
        }
        full = disk::unusable(node.layout().state_dir()) => Err(full),
    }
}

fn start(node: &Node, config: &serde_json::Value, sink: &dyn Sink) -> Result<(), PhaseError> {
    let planet: PlanetConfig =
        serde_json::from_value(config.clone()).map_err(|error| lasting(&error))?;
    prepare_kernel(&mut node.changes(), &planet, sink)?;
    let json = serde_json::to_vec_pretty(&planet).map_err(|error| lasting(&error))?;
    host::atomic::write(&node.layout().planet_config(), &json, 0o644)
        .map_err(|error| lasting(&error))?;
    daemon::start(node)
}

/// A module that the kernel lacks and doesn't load by itself.
pub(crate) fn missing_module(planet: &PlanetConfig) -> Option<&'static str> {
    let mut parameters = planet.sysctls.keys();
    let bridges = parameters.find(|key| key.starts_with("net.bridge."))?;
    let missing = host::sysctl::get(bridges).is_err_and(|error| error.is_missing());
    missing.then_some(BRIDGE_MODULE)
}

/// Gives the kernel what the services need. Most modules are loaded by the
/// kernel itself when they are used; the one that shows bridged packets to the
/// packet filter is not, and without it a pod doesn't reach a Service whose pod
/// is on the same node.
fn prepare_kernel(
    changes: &mut Journal,
    planet: &PlanetConfig,
    sink: &dyn Sink,
) -> Result<(), PhaseError> {
    if let Some(module) = missing_module(planet) {
        changes
            .load_module(module)
            .map_err(|error| lasting(&error))?;
        if host::facts::has_systemd() {
            let list = format!("{module}\n");
            changes
                .write_file(MODULES_AT_BOOT.as_ref(), list.as_bytes(), 0o644)
                .map_err(|error| lasting(&error))?;
        }
    }
    for (key, value) in &planet.sysctls {
        // Some kernels don't let root set some: the planet tries again at each
        // start and says so in its state.
        if let Err(error) = changes.set_sysctl(key, value) {
            sink.warning(&crate::text(&error));
        }
    }
    Ok(())
}
