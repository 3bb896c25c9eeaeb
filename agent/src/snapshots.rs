//! Snapshots of etcd that a node keeps.
//!
//! In: a member, a directory. Out: files `<time>-<kind>.db`, each checked after
//! it was written. Always holds: what has such a name is whole; they are
//! limited in number and bytes; root alone may read them. One process at a time
//! writes there.

use std::ffi::OsStr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use host::lock::Lock;
use jiff::Timestamp;
use operation::PhaseError;
use serde::Serialize;

use crate::etcd::{Content, Etcd};
use crate::node::{entries, file, lasting, remove_beginning};

/// How often a node takes one by itself.
pub const EVERY: Duration = Duration::from_secs(6 * 60 * 60);
/// How many of each kind are kept.
const KEPT: usize = 8;
/// How many bytes all of them may have; the youngest is kept whatever it has.
const MAX_BYTES: u64 = 4 << 30;
/// What must be left on the disk beside a new one, in bytes.
const ROOM: u64 = 512 << 20;
/// How long another process may take for its own.
const PATIENCE: Duration = Duration::from_secs(60);
/// Form of the time in a name.
const TIME: &str = "%Y%m%dT%H%M%SZ";
/// Last part of a name.
const SUFFIX: &str = ".db";
/// What begins the name of a file that isn't whole yet.
const NEW: &str = ".new-";

/// Why a snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// By the node itself.
    Scheduled,
    /// Before an operation that changes the cluster.
    BeforeOperation,
    /// By `gravity etcd snapshot`.
    Manual,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Scheduled, Self::BeforeOperation, Self::Manual];

    /// As it is part of a name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::BeforeOperation => "before-operation",
            Self::Manual => "manual",
        }
    }
}

/// A snapshot that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Its file's name.
    pub name: String,
    /// When it was taken.
    pub time: Timestamp,
    /// Why.
    pub kind: Kind,
    /// Its size in bytes.
    pub size: u64,
    /// Its file.
    pub path: PathBuf,
}

/// All snapshots of a directory, the oldest first. Those of a time to come count
/// as the oldest: the clock was wrong, and they would be the youngest for long.
///
/// # Errors
/// When it can't be read.
pub fn list(directory: &Path) -> Result<Vec<Snapshot>, PhaseError> {
    list_at(directory, Timestamp::now())
}

pub(crate) fn list_at(directory: &Path, now: Timestamp) -> Result<Vec<Snapshot>, PhaseError> {
    let mut found = Vec::new();
    for path in entries(directory)? {
        let Some(name) = path.file_name().and_then(OsStr::to_str).map(str::to_owned) else {
            continue;
        };
        let Some((time, kind)) = parse(&name) else {
            continue;
        };
        let Ok(metadata) = path.symlink_metadata() else {
            continue;
        };
        if metadata.is_file() {
            found.push(Snapshot {
                name,
                time,
                kind,
                size: metadata.size(),
                path,
            });
        }
    }
    found.sort_by_key(|snapshot| (snapshot.time <= now, snapshot.time, snapshot.kind));
    Ok(found)
}

fn parse(name: &str) -> Option<(Timestamp, Kind)> {
    let (time, kind) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    let time = jiff::civil::DateTime::strptime(TIME, time).ok()?;
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    Some((time, kind))
}

fn name(time: Timestamp, kind: Kind) -> String {
    format!("{}-{}{SUFFIX}", time.strftime(TIME), kind.as_str())
}

/// Takes a snapshot, checks it, and removes those that are too many.
///
/// # Errors
/// When etcd doesn't answer, the disk has too little room, or the snapshot is
/// damaged, which is removed then.
pub fn take(etcd: &Etcd, directory: &Path, kind: Kind) -> Result<(Snapshot, Content), PhaseError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(file("create", directory))?;
    let _lock = Lock::wait(&directory.join(".lock"), PATIENCE).map_err(lasting)?;
    // The lock's holder makes them: what is there is of one that was killed.
    remove_beginning(directory, NEW)?;
    check_room(etcd.status()?.size, directory)?;
    let (time, name) = free_name(directory, kind);
    let (new, path) = (
        directory.join(format!("{NEW}{name}")),
        directory.join(&name),
    );
    let content = etcd.save(&new).inspect_err(|_| {
        // The next one removes what is left of it.
        let _ = remove_beginning(directory, NEW);
    })?;
    std::fs::rename(&new, &path).map_err(file("rename", &new))?;
    host::atomic::sync_directory(directory).map_err(file("sync", directory))?;
    // Whatever the clock does meanwhile, this one is the youngest.
    remove_surplus(directory, time)?;
    let size = path.metadata().map_or(0, |metadata| metadata.len());
    let snapshot = Snapshot {
        name,
        time,
        kind,
        size,
        path,
    };
    Ok((snapshot, content))
}

/// A name that no snapshot has: one a second and kind.
fn free_name(directory: &Path, kind: Kind) -> (Timestamp, String) {
    loop {
        let time = Timestamp::now();
        let name = name(time, kind);
        if !directory.join(&name).exists() {
            return (time, name);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn check_room(size: u64, directory: &Path) -> Result<(), PhaseError> {
    let space = host::facts::space(directory).map_err(file("look at", directory))?;
    match space.available_bytes >= size + ROOM {
        true => Ok(()),
        false => Err(PhaseError::lasting(format!(
            "{} has {} MB available; a snapshot of etcd takes {} MB and leaves {} MB at least",
            directory.display(),
            space.available_bytes / 1_000_000,
            size / 1_000_000,
            ROOM / 1_000_000
        ))),
    }
}

pub(crate) fn remove_surplus(directory: &Path, now: Timestamp) -> Result<(), PhaseError> {
    for old in surplus(&list_at(directory, now)?) {
        std::fs::remove_file(&old).map_err(file("remove", &old))?;
    }
    Ok(())
}

/// What is too much of snapshots, the oldest of which is first.
fn surplus(all: &[Snapshot]) -> Vec<PathBuf> {
    let mut kept = Vec::new();
    let mut surplus = Vec::new();
    let (mut bytes, mut counts) = (0, [0; Kind::ALL.len()]);
    for snapshot in all.iter().rev() {
        let count = &mut counts[snapshot.kind as usize];
        if *count < KEPT && (kept.is_empty() || bytes + snapshot.size <= MAX_BYTES) {
            *count += 1;
            bytes += snapshot.size;
            kept.push(&snapshot.path);
        } else {
            surplus.push(snapshot.path.clone());
        }
    }
    surplus
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(minute: i64, kind: Kind, size: u64) -> Snapshot {
        let time = Timestamp::from_second(1_700_000_000 + 60 * minute).unwrap();
        let name = name(time, kind);
        Snapshot {
            path: Path::new("/x").join(&name),
            name,
            time,
            kind,
            size,
        }
    }

    #[test]
    fn names_tell_time_and_kind_and_others_are_nobodys() {
        for kind in Kind::ALL {
            let time = Timestamp::from_second(1_700_000_000).unwrap();
            assert_eq!(parse(&name(time, kind)), Some((time, kind)));
        }
        assert_eq!(
            snapshot(0, Kind::BeforeOperation, 0).name,
            "20231114T221320Z-before-operation.db"
        );
        for other in [
            ".lock",
            ".new-20231114T221320Z-manual.db",
            "20231114T221320Z-manual.db.part",
            "20231114T221320Z-other.db",
            "x-manual.db",
            "manual.db",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn old_ones_go_by_number_of_their_kind_and_by_bytes() {
        let mut all: Vec<_> = (0..10)
            .map(|minute| snapshot(minute, Kind::Scheduled, 10))
            .collect();
        all.insert(0, snapshot(-1, Kind::Manual, 10));
        // The manual one is older and of a kind of its own.
        assert_eq!(surplus(&all), [all[2].path.clone(), all[1].path.clone()]);
        assert!(surplus(&all[..9]).is_empty());

        let large: Vec<_> = (0..3)
            .map(|minute| snapshot(minute, Kind::Manual, MAX_BYTES / 2))
            .collect();
        assert_eq!(surplus(&large), [large[0].path.clone()]);
        let huge: Vec<_> = (0..2)
            .map(|minute| snapshot(minute, Kind::Manual, MAX_BYTES * 2))
            .collect();
        assert_eq!(surplus(&huge), [huge[0].path.clone()]);
        assert!(surplus(&[]).is_empty());
    }

    #[test]
    fn a_list_leaves_out_what_is_unfinished_and_that_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = directory.path().join(name);
            host::atomic::write(&path, b"x", 0o600).unwrap();
        };
        let unfinished = format!("{NEW}20231114T221320Z-manual.db.part");
        put(&unfinished);
        put("20231114T221321Z-manual.db");
        put("20231114T221320Z-scheduled.db");
        let names = || -> Vec<_> {
            let all = list(directory.path()).unwrap().into_iter();
            all.map(|one| one.name).collect()
        };
        let expected = [
            "20231114T221320Z-scheduled.db",
            "20231114T221321Z-manual.db",
        ];
        assert_eq!(names(), expected);
        remove_beginning(directory.path(), NEW).unwrap();
        assert!(!directory.path().join(unfinished).exists());
        assert_eq!(names(), expected);
        assert!(list(&directory.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn one_of_a_time_to_come_is_the_oldest() {
        let directory = tempfile::tempdir().unwrap();
        let put = |minute| {
            let name = snapshot(minute, Kind::Scheduled, 0).name;
            host::atomic::write(&directory.path().join(&name), b"x", 0o600).unwrap();
            name
        };
        let at = |minute| snapshot(minute, Kind::Scheduled, 0).time;
        let names = |now| -> Vec<_> {
            let all = list_at(directory.path(), now).unwrap().into_iter();
            all.map(|one| one.name).collect()
        };
        let (past, to_come, further) = (put(0), put(1000), put(2000));
        assert_eq!(names(at(0)), [&to_come, &further, &past].map(String::clone));
        assert_eq!(
            names(at(999)),
            [&to_come, &further, &past].map(String::clone)
        );
        assert_eq!(
            names(at(1000)),
            [&further, &past, &to_come].map(String::clone)
        );

        let taken: Vec<_> = (1..8).map(put).collect();
        remove_surplus(directory.path(), at(7)).unwrap();
        let kept: Vec<_> = std::iter::once(past).chain(taken).collect();
        assert_eq!(names(at(7)), kept);
    }

    #[test]
    fn a_second_one_of_the_same_second_gets_a_name_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let (_, first) = free_name(directory.path(), Kind::Manual);
        host::atomic::write(&directory.path().join(&first), b"x", 0o600).unwrap();
        let (_, second) = free_name(directory.path(), Kind::Manual);
        assert!(first < second, "{first} {second}");
    }

    #[test]
    fn a_snapshot_leaves_room_on_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        check_room(0, directory.path()).unwrap();
        let error = check_room(u64::MAX - ROOM, directory.path()).unwrap_err();
        assert!(error.message.contains("MB available"), "{error}");
    }
}
