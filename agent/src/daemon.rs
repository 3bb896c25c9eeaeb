//! The planet as the host's daemon: `gravity.service` under systemd, a process
//! of its own elsewhere.
//!
//! In: the node's layout with a planet configuration. Out: a running or a
//! stopped planet. Without systemd nothing starts it at boot.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use host::command::Cmd;
use operation::PhaseError;
use spec::layout::Layout;

use crate::Node;
use crate::node::{file, lasting};

/// Name of the unit; the page calls it the gravity daemon.
pub(crate) const UNIT: &str = "gravity.service";
const UNIT_DIRECTORY: &str = "/etc/systemd/system";
/// Services have their own time limits; this one is for all of them.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);
/// How long systemd itself may take beside that.
const MARGIN: Duration = Duration::from_secs(30);

/// File of the unit.
pub(crate) fn unit_path() -> PathBuf {
    Path::new(UNIT_DIRECTORY).join(UNIT)
}

/// Starts the planet unless it runs.
pub(crate) fn start(node: &Node) -> Result<(), PhaseError> {
    match host::facts::has_systemd() {
        true => start_unit(node),
        false => start_process(node.layout()),
    }
}

fn unit(layout: &Layout) -> String {
    let gravity = layout.gravity();
    let config = layout.planet_config();
    let state = layout.state_dir();
    format!(
        "[Unit]
Description=Gravity: the container of Kubernetes services
After=network-online.target local-fs.target
Wants=network-online.target
RequiresMountsFor={}

[Service]
Type=exec
ExecStart={} planet run --config {}
Restart=always
RestartSec=5
# Pods and services live in cgroups of the planet's own below this one.
Delegate=yes
KillMode=mixed
TimeoutStopSec={}
LimitNOFILE=1048576
LimitNPROC=infinity
TasksMax=infinity
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
",
        state.display(),
        gravity.display(),
        config.display(),
        STOP_TIMEOUT.as_secs(),
    )
}

fn start_unit(node: &Node) -> Result<(), PhaseError> {
    node.changes()
        .install_unit(&unit_path(), unit(node.layout()).as_bytes())
        .map_err(|error| lasting(&error))?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", UNIT])?;
    systemctl(&["start", UNIT])
}

fn systemctl(arguments: &[&str]) -> Result<(), PhaseError> {
    Cmd::new("systemctl")
        .args(arguments)
        // It waits for the unit's end, which has so long.
        .timeout(STOP_TIMEOUT + MARGIN)
        .run()
        .map_err(|error| lasting(&error))?;
    Ok(())
}

fn start_process(layout: &Layout) -> Result<(), PhaseError> {
    // A new one takes over a planet that has lost its own.
    if planet::container::has_daemon(&layout.planet_config()) {
        return Ok(());
    }
    let log = layout.logs().join("planet.log");
    let failed = |error: std::io::Error| file("start the planet; see", &log, &error);
    let output = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&log)
        .map_err(failed)?;
    let errors = output.try_clone().map_err(failed)?;
    // Not waited for: it is the daemon, and makes a session of its own.
    Command::new(layout.gravity())
        .args(["planet", "run", "--config"])
        .arg(layout.planet_config())
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .current_dir("/")
        .spawn()
        .map_err(failed)?;
    Ok(())
}

/// Stops the planet and waits for its end. Stopping a stopped one is fine.
pub(crate) fn stop(layout: &Layout) -> Result<(), PhaseError> {
    if host::facts::has_systemd() && unit_path().exists() {
        return systemctl(&["disable", "--now", UNIT]);
    }
    if !layout.planet_config().exists() {
        return Ok(());
    }
    planet::container::stop(&layout.planet_config(), STOP_TIMEOUT).map_err(|error| lasting(&error))
}

/// Root filesystem of the configured planet, where one is unpacked.
pub(crate) fn rootfs(layout: &Layout) -> Option<PathBuf> {
    let json = std::fs::read(layout.planet_config()).ok()?;
    let config: planet::config::PlanetConfig = serde_json::from_slice(&json).ok()?;
    config.rootfs.exists().then_some(config.rootfs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_waits_for_the_disk_of_its_state_and_limits_nothing() {
        let expected = "[Unit]
Description=Gravity: the container of Kubernetes services
After=network-online.target local-fs.target
Wants=network-online.target
RequiresMountsFor=/srv/gravity

[Service]
Type=exec
ExecStart=/srv/gravity/bin/gravity planet run --config /srv/gravity/planet/config.json
Restart=always
RestartSec=5
# Pods and services live in cgroups of the planet's own below this one.
Delegate=yes
KillMode=mixed
TimeoutStopSec=120
LimitNOFILE=1048576
LimitNPROC=infinity
TasksMax=infinity
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
";
        assert_eq!(unit(&Layout::new("/srv/gravity")), expected);
    }
}
