//! The planet as the host's daemon: `gravity.service` under systemd, a process
//! of its own elsewhere.
//!
//! In: the node's layout with a planet configuration. Out: a running or a
//! stopped planet. Without systemd nothing starts it at boot.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use host::command::Cmd;
use operation::PhaseError;
use planet::config::{Mount, PlanetConfig};
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

/// Starts the planet unless it runs; `planet` is its configuration.
pub(crate) fn start(node: &Node, planet: &PlanetConfig) -> Result<(), PhaseError> {
    match host::facts::has_systemd() {
        true => start_unit(node, planet),
        false => start_process(node.layout()),
    }
}

/// The unit of a planet with these mounts. What a planet needs must be mounted; what it
/// can do without is waited for, where it is mounted at boot: what is mounted later it
/// doesn't see, and pods would write below the mount point. `disks` are the mount units
/// that the needed lies on: one that is mounted after boot starts the planet then.
fn unit(layout: &Layout, mounts: &[Mount], disks: &BTreeSet<String>) -> String {
    let requires: String = needed(layout, mounts)
        .into_iter()
        .map(|path| format!("RequiresMountsFor={}\n", word(path)))
        .collect();
    let wanted_by: String = disks.iter().map(|name| format!(" {name}")).collect();
    let after: BTreeSet<_> = mounts
        .iter()
        .filter(|mount| can_miss(mount))
        .flat_map(places)
        .flat_map(|path| path.ancestors().filter_map(mount_unit).collect::<Vec<_>>())
        .collect();
    let after: String = after.iter().map(|name| format!(" {name}")).collect();
    format!(
        "[Unit]
Description=Gravity: the container of Kubernetes services
After=network-online.target local-fs.target{after}
Wants=network-online.target
# Mounts that want it come with these, too.
Conflicts=rescue.target system-update.target
{requires}
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
WantedBy=multi-user.target{wanted_by}
",
        word(&layout.gravity()),
        // What looks like a variable would be replaced in an argument.
        word(&layout.planet_config()).replace('$', "$$"),
        STOP_TIMEOUT.as_secs(),
    )
}

/// Whether a planet runs without this mount.
fn can_miss(mount: &Mount) -> bool {
    mount.pattern || mount.optional
}

/// What must be there before a planet starts.
fn needed<'a>(layout: &'a Layout, mounts: &'a [Mount]) -> BTreeSet<&'a Path> {
    let volumes = mounts.iter().filter(|mount| !can_miss(mount));
    volumes
        .map(|mount| mount.source.as_path())
        .chain([layout.state_dir()])
        .collect()
}

/// What an optional mount stands for, as far as it is known now. What matches a pattern is
/// often a mount point itself.
fn places(mount: &Mount) -> Vec<PathBuf> {
    if !mount.pattern {
        return vec![mount.source.clone()];
    }
    let found = planet::paths::matches(&mount.source.to_string_lossy());
    let mut places = found.unwrap_or_default();
    places.push(planet::paths::prefix(&mount.source));
    places
}

/// A path as a word of a unit, where blanks end words and `%` begins a specifier.
fn word(path: &Path) -> String {
    let text = path.to_string_lossy().replace('%', "%%");
    if text.contains(|c: char| c.is_whitespace() || "\"'\\".contains(c)) {
        let text = text.replace('\\', r"\\").replace('"', "\\\"");
        return format!("\"{text}\"");
    }
    text
}

/// Name of the unit that mounts something there, as `systemd-escape --path` makes it;
/// `None` for the root.
fn mount_unit(path: &Path) -> Option<String> {
    let names = path.strip_prefix("/").unwrap_or(path).components();
    let names = names.map(|name| name.as_os_str().to_string_lossy());
    let path = Vec::from_iter(names).join("/");
    let escaped = path
        .bytes()
        .enumerate()
        .map(|(index, byte)| match byte {
            b'/' => "-".to_owned(),
            b'.' if index == 0 => r"\x2e".to_owned(),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => {
                char::from(byte).to_string()
            }
            _ => format!(r"\x{byte:02x}"),
        })
        .collect::<String>();
    (!path.is_empty()).then(|| format!("{escaped}.mount"))
}

fn start_unit(node: &Node, planet: &PlanetConfig) -> Result<(), PhaseError> {
    let mounted = host::mounts::list().map_err(file("read", Path::new("/proc/mounts")))?;
    let disks = needed(node.layout(), &planet.mounts)
        .into_iter()
        .filter_map(|path| mount_unit(&host::mounts::holding(&mounted, path)?.target))
        .collect();
    let unit = unit(node.layout(), &planet.mounts, &disks);
    node.changes()
        .install_unit(&unit_path(), unit.as_bytes())
        .map_err(lasting)?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", UNIT])?;
    sync_units()?;
    systemctl(&["start", UNIT])
}

/// Has it on disk whether the unit is enabled.
fn sync_units() -> Result<(), PhaseError> {
    host::changes::sync_units().map_err(file("sync", Path::new(UNIT_DIRECTORY)))
}

fn systemctl(arguments: &[&str]) -> Result<(), PhaseError> {
    Cmd::new("systemctl")
        .args(arguments)
        // It waits for the unit's end, which has so long.
        .timeout(STOP_TIMEOUT + MARGIN)
        .run()
        .map_err(lasting)?;
    Ok(())
}

fn start_process(layout: &Layout) -> Result<(), PhaseError> {
    // A new one takes over a planet that has lost its own.
    if planet::container::has_daemon(&layout.planet_config()) {
        return Ok(());
    }
    let log = layout.logs().join("planet.log");
    let failed = file("start the planet; see", &log);
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
        systemctl(&["disable", "--now", UNIT])?;
        return sync_units();
    }
    if !layout.planet_config().exists() {
        return Ok(());
    }
    planet::container::stop(&layout.planet_config(), STOP_TIMEOUT).map_err(lasting)
}

/// Root filesystem of the configured planet, where one is unpacked.
pub(crate) fn rootfs(layout: &Layout) -> Option<PathBuf> {
    let config = planet::container::load(&layout.planet_config()).ok()?;
    config.rootfs.exists().then_some(config.rootfs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_waits_for_its_disks_comes_with_them_and_limits_nothing() {
        let mount = |source: &str, pattern, optional| Mount {
            source: source.into(),
            pattern,
            optional,
            ..Mount::default()
        };
        let mounts = [
            mount("/srv/gravity/etcd", false, false),
            mount("/mnt/my data", false, false),
            mount("/srv/gravity/etcd", false, false),
            mount("/data/disk-b/x", false, true),
            mount("/disks/none-?/x", true, false),
        ];
        let expected = r#"[Unit]
Description=Gravity: the container of Kubernetes services
After=network-online.target local-fs.target data-disk\x2db-x.mount data-disk\x2db.mount data.mount disks.mount
Wants=network-online.target
# Mounts that want it come with these, too.
Conflicts=rescue.target system-update.target
RequiresMountsFor="/mnt/my data"
RequiresMountsFor=/srv/gravity
RequiresMountsFor=/srv/gravity/etcd

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
WantedBy=multi-user.target mnt-my\x20data.mount srv.mount
"#;
        let disks = BTreeSet::from([r"mnt-my\x20data.mount".to_owned(), "srv.mount".to_owned()]);
        assert_eq!(
            unit(&Layout::new("/srv/gravity"), &mounts, &disks),
            expected
        );
    }

    #[test]
    fn what_matches_a_pattern_is_waited_for_as_the_directory_of_all() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk-1");
        std::fs::create_dir(&disk).unwrap();
        let mount = Mount {
            source: directory.path().join("disk-?"),
            pattern: true,
            ..Mount::default()
        };
        assert_eq!(places(&mount), [disk.as_path(), directory.path()]);
    }

    #[test]
    fn paths_are_what_systemd_takes_them_for() {
        let word = |path: &str| word(path.as_ref());
        assert_eq!(word("/a/100%"), "/a/100%%");
        assert_eq!(word("/a b"), r#""/a b""#);
        assert_eq!(word(r#"/a"b\c"#), r#""/a\"b\\c""#);
        let unit = |path: &str| mount_unit(path.as_ref());
        assert_eq!(unit("/"), None);
        assert_eq!(unit("/var//lib/").unwrap(), "var-lib.mount");
        assert_eq!(unit("/.a/.b").unwrap(), r"\x2ea-.b.mount");
        assert_eq!(unit("/a-b/c d/é").unwrap(), r"a\x2db-c\x20d-\xc3\xa9.mount");
    }
}
