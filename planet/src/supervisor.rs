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

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use host::causes::causes;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

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
/// How often it is looked whether the host still has what it was given.
const LOOK: Duration = Duration::from_secs(10);

/// Runs the supervisor inside the container until SIGTERM, and then stops all
/// services.
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
    // Before anything runs: a SIGTERM from now on stops in order.
    listen_to_signals(&stop)?;
    raise_open_files();
    for cidr in config.addresses() {
        address::add(cidr).on("add an address to lo")?;
    }
    let board = Board::new(&config.services);
    let mut failed = BTreeSet::new();
    for (what, set) in sysctls(&config) {
        if let Err(reason) = set {
            board.warn(format!("{what}: {reason}"));
            failed.insert(what);
        }
    }

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
    helpers.spawn(keep_host(config.clone(), board.clone(), failed));
    let commands = Arc::new(commands);
    for path in SOCKETS.iter().map(PathBuf::from) {
        if path.parent().is_some_and(Path::is_dir) {
            let listener = socket::listen(&path)?;
            helpers.spawn(socket::serve(listener, board.clone(), commands.clone()));
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

fn listen_to_signals(stop: &watch::Sender<bool>) -> Result<()> {
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

/// Gives the host for ever again what others take away, as a restart of networkd does
/// with addresses and `sysctl --system` with kernel parameters. Of what has `failed`
/// somebody was warned.
async fn keep_host(config: PlanetConfig, board: Board, mut failed: BTreeSet<String>) {
    loop {
        sleep(LOOK).await;
        let addresses = config.addresses().map(|cidr| {
            let added = address::add(cidr).map_err(|error| error.to_string());
            (format!("address {cidr} on lo"), added)
        });
        tell(addresses.chain(sysctls(&config)), &mut failed, &board);
    }
}

/// Logs what had to be set again, which is well now; warns of what can't be, once until
/// it can.
fn tell(
    looked: impl Iterator<Item = (String, Result<bool, String>)>,
    failed: &mut BTreeSet<String>,
    board: &Board,
) {
    for (what, set) in looked {
        match set {
            Ok(was_set) => {
                failed.remove(&what);
                if was_set {
                    tracing::warn!("{what} was gone or changed: set again");
                }
            }
            Err(reason) if failed.insert(what.clone()) => board.warn(format!("{what}: {reason}")),
            Err(_) => {}
        }
    }
}

/// Sets the kernel parameters, one after the other.
fn sysctls(config: &PlanetConfig) -> impl Iterator<Item = (String, Result<bool, String>)> {
    config
        .sysctls
        .iter()
        .map(|(name, value)| (format!("kernel parameter {name}"), set_sysctl(name, value)))
}

/// Sets a kernel parameter that has another value. Says whether it had.
fn set_sysctl(name: &str, value: &str) -> Result<bool, String> {
    // One that can't be read differs, and setting it says why.
    let has = host::sysctl::get(name).unwrap_or_default();
    if host::sysctl::same(&has, value) {
        return Ok(false);
    }
    let set = host::sysctl::set(name, value).map(|()| true);
    set.map_err(|error| format!("is {has:?} and can't become {value:?}: {}", causes(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kernel_parameter_that_differs_is_written() {
        // Nobody can write this one.
        assert_eq!(set_sysctl("kernel.ostype", " Linux\n"), Ok(false));
        let error = set_sysctl("kernel.ostype", "Other").unwrap_err();
        assert!(error.starts_with("is \"Linux\" and can't"), "{error}");
        assert!(set_sysctl("kernel.no_such_thing", "1").is_err());
    }

    #[test]
    fn what_can_not_be_set_is_told_once_until_it_can() {
        let board = Board::new(&[]);
        let mut failed = BTreeSet::new();
        let mut look = |set: Result<bool, &str>| {
            let looked = ("x".to_owned(), set.map_err(str::to_owned));
            tell(std::iter::once(looked), &mut failed, &board);
            board.subscribe().borrow().warnings.clone()
        };
        assert!(look(Ok(false)).is_empty());
        assert!(look(Ok(true)).is_empty());
        assert_eq!(look(Err("refused")), ["x: refused"]);
        assert_eq!(look(Err("refused again")).len(), 1);
        assert_eq!(look(Ok(true)).len(), 1);
        assert_eq!(look(Err("refused again"))[1], "x: refused again");
    }
}
