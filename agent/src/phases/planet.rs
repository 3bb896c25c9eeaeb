//! Starts the planet and waits for some of its services.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use event::Sink;
use host::causes::causes;
use host::changes::Journal;
use host::modules::Presence;
use operation::PhaseError;
use planet::config::PlanetConfig;
use spec::layout::Layout;
use spec::phase::Planet;

use super::{blocking, undo};
use crate::node::{file, lasting, remove_directory, remove_file};
use crate::{Node, daemon, disk, network_manager};

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
    let Planet {
        config,
        wait_for,
        member_of,
    } = phase;
    // The data of who joins are the others' too.
    let begins = member_of.is_empty();
    blocking(node, sink.clone(), move |n, s| {
        undo::go_on_removing(n.layout())?;
        if begins {
            begin_etcd(n.layout())?;
        }
        start(n, &config, s)
    })
    .await?;
    wait_ready(node, &wait_for, DEADLINE).await?;
    blocking(node, sink.clone(), |n, _| etcd_has_begun(n.layout())).await?;
    sink.info(&format!("Services are up: {}", wait_for.join(", ")));
    Ok(())
}

/// Is there until the services have answered once.
fn etcd_begins(layout: &Layout) -> PathBuf {
    layout.service("etcd").join(".begins")
}

/// Has etcd begin without data where it has never answered: a disk that broke at
/// its first writes leaves some that it can't go on with.
fn begin_etcd(layout: &Layout) -> Result<(), PhaseError> {
    let begins = etcd_begins(layout);
    let member = layout.service("etcd").join("member");
    if begins.exists() {
        daemon::stop(layout)?;
        remove_directory(&member)
    } else if member.exists() {
        Ok(())
    } else {
        host::atomic::write(&begins, b"", 0o600).map_err(lasting)
    }
}

/// From here on its data are the cluster's.
fn etcd_has_begun(layout: &Layout) -> Result<(), PhaseError> {
    remove_file(&etcd_begins(layout))?;
    let directory = layout.service("etcd");
    host::atomic::sync_directory(&directory).map_err(file("sync", &directory))
}

/// Starts the planet again where it doesn't run, as after a boot without
/// systemd. Its configuration stays as it has become.
pub(crate) async fn start_again(
    node: &Arc<Node>,
    phase: Planet,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    start_configured(node, sink).await?;
    wait_ready(node, &phase.wait_for, DEADLINE).await
}

/// Starts the planet as it is configured, unless it runs. The end of the machine
/// has taken from the kernel what it was given.
pub(crate) async fn start_configured(
    node: &Arc<Node>,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    blocking(node, sink, |n, s| prepared(n, s, daemon::start)).await
}

fn prepared(
    node: &Node,
    sink: &dyn Sink,
    start: impl FnOnce(&Node, &PlanetConfig) -> Result<(), PhaseError>,
) -> Result<(), PhaseError> {
    let planet = planet::container::load(&node.layout().planet_config());
    let planet = planet.map_err(lasting)?;
    prepare_kernel(&mut node.changes(), &planet, sink)?;
    start(node, &planet)
}

/// What is not ready in all that time won't be after another try.
async fn wait_ready(
    node: &Node,
    services: &[String],
    deadline: Duration,
) -> Result<(), PhaseError> {
    let planet = node.planet();
    tokio::select! {
        ready = planet.wait_ready(services, deadline) => ready.map_err(lasting),
        full = disk::unusable(node.layout().state_dir()) => Err(full),
    }
}

fn start(node: &Node, config: &serde_json::Value, sink: &dyn Sink) -> Result<(), PhaseError> {
    let planet: PlanetConfig = serde_json::from_value(config.clone()).map_err(lasting)?;
    prepare_kernel(&mut node.changes(), &planet, sink)?;
    network_manager::leave_us_alone(&mut node.changes(), sink)?;
    let json = serde_json::to_vec_pretty(&planet).map_err(lasting)?;
    host::atomic::write(&node.layout().planet_config(), &json, 0o644).map_err(lasting)?;
    daemon::start(node, &planet)
}

/// A parameter of bridges that the services need.
fn of_bridges(planet: &PlanetConfig) -> Option<&String> {
    let mut parameters = planet.sysctls.keys();
    parameters.find(|key| key.starts_with("net.bridge."))
}

/// A module that the kernel lacks and doesn't load by itself.
pub(crate) fn missing_module(planet: &PlanetConfig) -> Option<&'static str> {
    let bridges = of_bridges(planet)?;
    let missing = host::sysctl::get(bridges).is_err_and(|error| error.is_missing());
    missing.then_some(BRIDGE_MODULE)
}

/// The module that systemd has to load at boot, by [`MODULES_AT_BOOT`].
pub(crate) fn module_at_boot(planet: &PlanetConfig) -> Option<&'static str> {
    match host::facts::has_systemd() {
        true => at_boot(planet, host::modules::presence(BRIDGE_MODULE)),
        false => None,
    }
}

/// Whoever has loaded the module by now may not do so after a boot; what is part of the
/// kernel needs nobody.
fn at_boot(planet: &PlanetConfig, presence: Presence) -> Option<&'static str> {
    of_bridges(planet)?;
    matches!(presence, Presence::Loaded | Presence::Loadable).then_some(BRIDGE_MODULE)
}

/// Gives the kernel what the services need, now and at each boot. Most modules are loaded
/// by the kernel itself when they are used; the one that shows bridged packets to the
/// packet filter is not, and without it a pod doesn't reach a Service whose pod
/// is on the same node.
fn prepare_kernel(
    changes: &mut Journal,
    planet: &PlanetConfig,
    sink: &dyn Sink,
) -> Result<(), PhaseError> {
    if let Some(module) = missing_module(planet) {
        changes.load_module(module).map_err(lasting)?;
    }
    if let Some(module) = module_at_boot(planet) {
        let list = format!("{module}\n");
        changes
            .write_file(MODULES_AT_BOOT.as_ref(), list.as_bytes(), 0o644)
            .map_err(lasting)?;
    }
    for (key, value) in &planet.sysctls {
        // Some kernels don't let root set some: the planet tries again at each
        // start and says so in its state.
        if let Err(error) = changes.set_sysctl(key, value) {
            sink.warning(&causes(&error));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The configuration of a planet that needs one kernel parameter.
    fn config(parameter: &str) -> serde_json::Value {
        serde_json::json!({
            "version": planet::config::SCHEMA_VERSION, "hostname": "n", "rootfs": "/r",
            "overlay": "/o", "mounts": [], "files": [], "link_local_addresses": [],
            "balancers": [], "sysctls": { parameter: "1" }, "services": [],
        })
    }

    #[test]
    fn a_module_is_loaded_at_boot_whoever_has_loaded_it_now() {
        let planet =
            |parameter| -> PlanetConfig { serde_json::from_value(config(parameter)).unwrap() };
        let bridges = planet("net.bridge.bridge-nf-call-iptables");
        let others = planet("net.ipv4.ip_forward");
        for (presence, needed) in [
            (Presence::Loaded, true),
            (Presence::Loadable, true),
            (Presence::Builtin, false),
            (Presence::Absent, false),
        ] {
            let expected = needed.then_some(BRIDGE_MODULE);
            assert_eq!(at_boot(&bridges, presence), expected, "{presence:?}");
            assert_eq!(at_boot(&others, presence), None, "{presence:?}");
        }
    }

    #[tokio::test]
    async fn a_planet_that_is_not_ready_in_time_is_not_waited_for_again() {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::open(Layout::new(directory.path())).unwrap();
        let waited = wait_ready(&node, &[], Duration::from_millis(50)).await;
        assert!(!waited.unwrap_err().transient);
    }

    #[test]
    fn the_kernel_is_prepared_at_every_start() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        let node = Node::open(layout.clone()).unwrap();
        let config = config("kernel.no_such_thing");
        let path = layout.planet_config();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        host::atomic::write(&path, config.to_string().as_bytes(), 0o644).unwrap();
        let sink = event::Memory::default();
        let said = |sink: &event::Memory| format!("{:?}", sink.events());
        prepared(&node, &sink, |_, _| {
            let before = said(&sink);
            assert!(before.contains("no_such_thing"), "not before: {before}");
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn etcd_begins_anew_only_until_it_has_answered() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        let member = layout.service("etcd").join("member");
        std::fs::create_dir_all(layout.service("etcd")).unwrap();
        begin_etcd(&layout).unwrap();
        std::fs::create_dir_all(member.join("wal")).unwrap();
        begin_etcd(&layout).unwrap();
        assert!(!member.exists());
        std::fs::create_dir_all(member.join("wal")).unwrap();
        etcd_has_begun(&layout).unwrap();
        for _ in 0..2 {
            begin_etcd(&layout).unwrap();
            assert!(member.join("wal").exists());
        }
        assert!(!etcd_begins(&layout).exists());
    }

    #[test]
    fn data_that_were_removed_in_part_are_not_begun_with() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        let member = layout.service("etcd").join("member");
        let put = |path: &std::path::Path| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            host::atomic::write(path, b"", 0o600).unwrap();
        };
        put(&layout.planet_config());
        put(&member.join("wal"));
        put(&layout.service("containerd").join("meta.db"));
        // What is no directory can't be emptied.
        put(&layout.service("kubelet"));
        undo::remove_data(&layout).unwrap_err();
        std::fs::remove_file(layout.service("kubelet")).unwrap();
        // The part that is left where the removal ended before.
        put(&member.join("wal"));

        undo::go_on_removing(&layout).unwrap();
        begin_etcd(&layout).unwrap();
        assert!(!member.exists());
        assert!(etcd_begins(&layout).exists());
        put(&member.join("wal"));
        put(&layout.planet_config());
        undo::go_on_removing(&layout).unwrap();
        assert!(member.join("wal").exists());
    }
}
