//! Starts the planet and waits for some of its services.

use std::sync::Arc;
use std::time::Duration;

use event::Sink;
use operation::PhaseError;
use planet::config::PlanetConfig;
use spec::phase::Planet;

use crate::node::{lasting, transient};
use crate::{Node, daemon, room};

/// From the start of the container until the API answers; seconds as a rule,
/// minutes under emulation.
const DEADLINE: Duration = Duration::from_secs(600);

pub(crate) async fn execute(
    node: &Arc<Node>,
    phase: Planet,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    let starter = node.clone();
    let config = phase.config;
    tokio::task::spawn_blocking(move || start(&starter, &config))
        .await
        .map_err(|error| PhaseError::transient(format!("the phase's thread ended: {error}")))??;
    let planet = node.planet();
    tokio::select! {
        ready = planet.wait_ready(&phase.wait_for, DEADLINE, |_| ()) => {
            ready.map_err(|error| transient(&error))?;
        }
        full = room::exhausted(node.layout().state_dir()) => return Err(full),
    }
    sink.info(&format!("Services are up: {}", phase.wait_for.join(", ")));
    Ok(())
}

fn start(node: &Node, config: &serde_json::Value) -> Result<(), PhaseError> {
    let planet: PlanetConfig =
        serde_json::from_value(config.clone()).map_err(|error| lasting(&error))?;
    {
        let mut changes = node.changes();
        for (key, value) in &planet.sysctls {
            // The planet sets them again at each start, and tells which it can't.
            drop(changes.set_sysctl(key, value));
        }
    }
    let json = serde_json::to_vec_pretty(&planet).map_err(|error| lasting(&error))?;
    host::atomic::write(&node.layout().planet_config(), &json, 0o644)
        .map_err(|error| lasting(&error))?;
    daemon::start(node)
}
