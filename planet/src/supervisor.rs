//! Keeps the services of the planet running.
//!
//! In: the configuration inside the container. Out: running services, in the
//! order that they require each other; their state at the control socket.
//! Always holds: a service outlives its supervisor; a supervisor that is
//! started again finds the services that run and starts only the others.

mod balancer;
mod board;
mod logs;
mod pods;
pub(crate) mod probe;
mod service;
mod socket;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::address;
use crate::cgroup;
use crate::config::PlanetConfig;
use crate::container;
use crate::error::{Context, Result};
use board::Board;
use service::{Command, Unit};

/// Sockets inside; the second one is seen by the host.
const SOCKETS: &[&str] = &[crate::client::SOCKET, "/run/planet/host/planet.sock"];
/// State of services, for the next supervisor.
const STATES: &str = "/run/planet/services";
/// Logs of services.
pub(crate) const LOGS: &str = "/var/log/planet";
/// Open files that a service may have, where the machine allows it.
const OPEN_FILES: u64 = 1 << 20;

/// Runs the supervisor inside the container until SIGTERM or a request to
/// stop, and then stops all services.
///
/// # Errors
/// When the configuration can't be read or the addresses can't be made.
pub fn run() -> Result<()> {
    let config = container::load(Path::new(container::CONFIG))?;
    // One thread: it is idle almost always, and small.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .on("start the runtime")?;
    runtime.block_on(supervise(config))
}

async fn supervise(config: PlanetConfig) -> Result<()> {
    let (stop, stopping) = watch::channel(false);
    let stop = Arc::new(stop);
    // Before anything runs: a SIGTERM from now on stops in order.
    listen_to_signals(&stop)?;
    raise_open_files();
    for cidr in config.addresses() {
        address::add(cidr).on("add an address to lo")?;
    }
    let board = Board::new(&config.services);
    set_sysctls(&config, &board);

    let mut commands = Vec::new();
    let mut units = JoinSet::new();
    let hierarchies = cgroup::hierarchies()?;
    for directory in [STATES, LOGS] {
        fs::create_dir_all(directory).at("create", directory)?;
    }
    for service in &config.services {
        let (sender, receiver) = mpsc::channel::<Command>(8);
        commands.push((service.name.clone(), sender));
        let dependents = config.outlived_by(service);
        let unit = Unit::new(service.clone(), dependents, &hierarchies, board.clone());
        units.spawn(unit.keep(receiver, stopping.clone()));
    }

    let mut helpers = JoinSet::new();
    for balancer in config.balancers.clone() {
        helpers.spawn(balancer::run(balancer, board.clone()));
    }
    helpers.spawn(logs::rotate(
        config
            .services
            .iter()
            .map(|service| service.name.clone())
            .chain([logs::DAEMON.to_owned()])
            .collect(),
    ));
    let commands = Arc::new(commands);
    for path in SOCKETS.iter().map(PathBuf::from) {
        if path.parent().is_some_and(Path::is_dir) {
            let listener = socket::listen(&path)?;
            helpers.spawn(socket::serve(
                listener,
                board.clone(),
                commands.clone(),
                stop.clone(),
            ));
        }
    }

    // They end only when told to stop.
    while units.join_next().await.is_some() {}
    helpers.shutdown().await;
    for path in SOCKETS {
        drop(fs::remove_file(path));
    }
    for cidr in config.addresses() {
        address::remove(cidr).on("remove an address from lo")?;
    }
    Ok(())
}

fn listen_to_signals(stop: &Arc<watch::Sender<bool>>) -> Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).on("listen to signals")?;
        let stop = stop.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                stop.send_replace(true);
            }
        });
    }
    Ok(())
}

/// Services inherit the limit.
fn raise_open_files() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    let wanted = OPEN_FILES.max(hard);
    // The hard limit can be raised by a root that has CAP_SYS_RESOURCE.
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_err() && soft < hard {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn set_sysctls(config: &PlanetConfig, board: &Board) {
    for (name, value) in &config.sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        let has = fs::read_to_string(&path).unwrap_or_default();
        if has.trim() == value {
            continue;
        }
        let set = fs::File::options()
            .write(true)
            .open(&path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes()));
        if let Err(error) = set {
            board.warn(format!(
                "kernel parameter {name} is {:?} and can't become {value:?}: {error}",
                has.trim()
            ));
        }
    }
}
