//! What a node does for itself while it runs: the `care` service of its planet.
//!
//! In: [`Care`], the supervisor's socket. Out: certificates that are renewed in
//! time, snapshots of etcd, an etcd that doesn't fill up; other nodes know how the
//! services of this one are. What fails is logged and tried again at the next look.

mod certificates;
mod hooks;
mod services;

use std::path::Path;
use std::time::Duration;

use event::{Event, Sink};
use host::facts::Clock;
use jiff::Timestamp;
use operation::PhaseError;
use planet::client::Client;
use spec::care::{CONFIG, Care};
use spec::layout::Layout;

use crate::etcd::{Etcd, Status};
use crate::node::lasting;
use crate::snapshots::{self, Kind};

pub use certificates::renew;

/// Longest wait before the first look: services start meanwhile.
const FIRST: Duration = Duration::from_secs(30);
/// A database that is smaller isn't defragmented, in bytes.
const SMALL: u64 = 100 << 20;

/// How the node of a layout cares for itself, as its planet was told.
///
/// # Errors
/// When there is no planet, or one without care.
pub fn configured(layout: &Layout) -> Result<Care, PhaseError> {
    let config = planet::container::load(&layout.planet_config()).map_err(lasting)?;
    let mut files = config.files.iter();
    let care = files
        .find(|file| file.path == Path::new(CONFIG))
        .ok_or_else(|| PhaseError::lasting("this node's planet has no service `care`"))?;
    serde_json::from_str(&care.content).map_err(lasting)
}

/// Cares for the node until `stop` comes back. `socket` is the supervisor's.
pub async fn run(care: &Care, socket: &Path, stop: impl Future<Output = ()>) {
    let planet = Client::new(socket);
    let caring = async {
        tokio::time::sleep(FIRST.min(care.period())).await;
        loop {
            look(care, &planet).await;
            tokio::time::sleep(care.period()).await;
        }
    };
    tokio::select! {
        () = caring => {}
        () = services::announce(care, &planet) => {}
        () = stop => {}
    }
}

/// Writes to the log of the service.
struct Logged;

impl Sink for Logged {
    fn emit(&self, event: Event) {
        if let Event::Step { message } | Event::Info { message } | Event::Warning { message } =
            event
        {
            tracing::info!("{message}");
        }
    }
}

async fn look(care: &Care, planet: &Client) {
    let layout = Care::layout();
    let now = Timestamp::now().as_second();
    let due = certificates::due_together(&layout, care, now, care.period(), Clock::read());
    match renew(&layout, care, planet, due, &Logged).await {
        Ok(renewed) if renewed.is_empty() => {}
        Ok(renewed) => tracing::info!("renewed {}", renewed.join(", ")),
        Err(error) => tracing::warn!("certificates: {error}"),
    }
    if care.etcd {
        let directory = layout.etcd_snapshots();
        let looked = tokio::task::spawn_blocking(move || look_at_etcd(&Etcd::inside(), &directory));
        match looked.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("etcd: {error}"),
            Err(error) => tracing::warn!("etcd: {error}"),
        }
        hooks::revoke_forgotten(&layout.admin_kubeconfig()).await;
    }
}

fn look_at_etcd(etcd: &Etcd, directory: &Path) -> Result<(), PhaseError> {
    let mut status = etcd.status()?;
    if status.is_full {
        status = relieve(etcd, &status)?;
    }
    if !is_snapshot_due(directory, Timestamp::now())? {
        return Ok(());
    }
    let taken = snapshots::take(etcd, directory, Kind::Scheduled);
    if is_fragmented(&status) {
        etcd.defragment()?;
        let now = etcd.status()?.size;
        tracing::info!("defragmented etcd: {} bytes, {now} now", status.size);
    }
    let (snapshot, content) = taken?;
    tracing::info!(
        revision = content.revision,
        keys = content.keys,
        "took snapshot {}",
        snapshot.name
    );
    Ok(())
}

/// Ends the alarm of a full database, where there is room after all.
fn relieve(etcd: &Etcd, status: &Status) -> Result<Status, PhaseError> {
    tracing::warn!(
        "etcd has used up its quota of {} bytes and takes no writes",
        status.quota
    );
    etcd.compact(status.revision)?;
    etcd.defragment()?;
    let now = etcd.status()?;
    if !has_room(&now) {
        return Err(PhaseError::lasting(format!(
            "its {} bytes of {} are in use; delete objects that nobody needs, or give it more by \
             quota-backend-bytes",
            now.used, now.quota
        )));
    }
    etcd.disarm()?;
    tracing::info!("etcd has {} bytes now and takes writes again", now.size);
    Ok(now)
}

/// Whether writes would not raise the alarm at once.
fn has_room(status: &Status) -> bool {
    status.size < status.quota / 10 * 9
}

/// Whether defragmentation is worth that etcd answers nobody meanwhile.
fn is_fragmented(status: &Status) -> bool {
    status.size > SMALL && status.used < status.size / 2
}

fn is_snapshot_due(directory: &Path, now: Timestamp) -> Result<bool, PhaseError> {
    let all = snapshots::list_at(directory, now)?;
    // One of a time to come is the last where there is no other.
    Ok(all.last().is_none_or(|last| {
        let age = now.duration_since(last.time);
        age.is_negative() || age.unsigned_abs() >= snapshots::EVERY
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planet_of_another_version_does_not_say_how_a_node_cares() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        let path = layout.planet_config();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let asked = |version: u32| {
            let config = serde_json::json!({
                "version": version, "hostname": "n", "rootfs": "/r", "overlay": "/o",
                "mounts": [], "files": [], "link_local_addresses": [], "balancers": [],
                "sysctls": {}, "services": [],
            });
            host::atomic::write(&path, config.to_string().as_bytes(), 0o644).unwrap();
            configured(&layout).unwrap_err().message
        };
        let version = planet::config::SCHEMA_VERSION;
        assert!(asked(version).contains("no service `care`"));
        let other = asked(version + 1);
        assert!(
            other.contains(&format!("version {}", version + 1)),
            "{other}"
        );
    }

    fn status(size: u64, used: u64) -> Status {
        Status {
            cluster: 1,
            revision: 1,
            size,
            used,
            quota: 1000 << 20,
            is_full: false,
            has_leader: true,
            is_learner: false,
        }
    }

    #[test]
    fn a_database_is_defragmented_when_it_is_large_and_half_empty() {
        const MB: u64 = 1 << 20;
        for (size, used, fragmented) in [
            (99, 1, false),
            (101, 50, true),
            (101, 51, false),
            (900, 400, true),
        ] {
            let status = status(size * MB, used * MB);
            assert_eq!(is_fragmented(&status), fragmented, "{size} {used}");
        }
        assert!(has_room(&status(899 * MB, 0)));
        assert!(!has_room(&status(901 * MB, 0)));
    }

    fn put(directory: &Path, time: Timestamp) {
        let name = format!("{}-scheduled.db", time.strftime("%Y%m%dT%H%M%SZ"));
        host::atomic::write(&directory.join(name), b"x", 0o600).unwrap();
    }

    #[test]
    fn a_snapshot_is_due_when_there_is_none_or_it_is_old_or_of_the_future() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let due = |hours: &[i64]| {
            let directory = tempfile::tempdir().unwrap();
            for hours in hours {
                let time = now - jiff::SignedDuration::from_hours(*hours);
                put(directory.path(), time);
            }
            is_snapshot_due(directory.path(), now).unwrap()
        };
        for (hours, expected) in [
            (&[][..], true),
            (&[0], false),
            (&[5], false),
            (&[6], true),
            (&[-1], true),
            (&[5, -1, -1000], false),
            (&[6, -1, -1000], true),
        ] {
            assert_eq!(due(hours), expected, "{hours:?}");
        }
    }

    #[test]
    fn a_clock_that_was_wrong_takes_no_history_along() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let after = |minutes| now + jiff::SignedDuration::from_mins(minutes);
        // It was a year off when the node started, one way or the other.
        for wrong in [-365 * 24 * 60, 365 * 24 * 60] {
            let directory = tempfile::tempdir().unwrap();
            let directory = directory.path();
            let look = |time| {
                let due = is_snapshot_due(directory, time).unwrap();
                if due {
                    put(directory, time);
                    snapshots::remove_surplus(directory, time).unwrap();
                }
                due
            };
            let looks = |minutes: std::ops::Range<i64>| {
                let looks = minutes.step_by(5).filter(|minute| look(after(*minute)));
                looks.count()
            };
            let oldest = |time| {
                let all = snapshots::list_at(directory, time).unwrap().into_iter();
                let times = all.map(|snapshot| snapshot.time);
                times.filter(|past| (now..=time).contains(past)).min()
            };
            const DAY: i64 = 24 * 60;
            assert_eq!(looks(0..2 * DAY), 8);
            look(after(2 * DAY + wrong));
            // The last one was taken six hours ago.
            assert_eq!(looks(2 * DAY..4 * DAY), 8);
            let kept = oldest(after(4 * DAY)).unwrap();
            assert_eq!(kept, after(2 * DAY), "{wrong}");
            let all = snapshots::list_at(directory, after(4 * DAY)).unwrap();
            assert_eq!(all.first().unwrap().time, kept, "{wrong} is left");
        }
    }
}
