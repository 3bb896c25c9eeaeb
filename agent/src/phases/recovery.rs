//! Gives etcd the data of a snapshot.
//!
//! In: a snapshot in the operation's directory. Out: etcd runs with its data,
//! at greater revisions than before. What it had lies beside it until the node
//! is well again, and comes back when the phases are taken back.
//!
//! Always holds: `member` is there with all of the former data or all of the
//! restored ones, as the two are exchanged at once. Which of them it is tells
//! the inode that is written down first. `former` is whole or not there: what
//! is removed gets the name `trash` before.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use event::Sink;
use operation::PhaseError;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use spec::phase::{EtcdReplace, EtcdRestore, EtcdSnapshot};

use super::{blocking, wait_healthy};
use crate::Node;
use crate::etcd::Etcd;
use crate::node::{file, lasting, remove_directory, remove_file, transient};

/// What works with etcd and etcd itself, in the order in which it is stopped.
const STOPPED: &[&str] = &[
    "status-hook",
    "care",
    "controller",
    "kube-scheduler",
    "kube-controller-manager",
    "kube-apiserver",
    "etcd",
];
/// These must be ready before the next one is started.
const FIRST: &[&str] = &["etcd", "kube-apiserver"];
/// How long one of them may take to end; its own limit is shorter.
const END: Duration = Duration::from_secs(60);
/// How long one of them may take to be ready.
const READY: Duration = Duration::from_secs(300);

/// Directories of a recovery, below etcd's own.
pub(super) struct Place {
    pub(super) member: PathBuf,
    aside: PathBuf,
}

/// Written down before anything is made.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Inode of the data as they were; `None` where there were none.
    former: Option<u64>,
}

impl Place {
    pub(super) fn of(node: &Node) -> Self {
        let data = node.layout().service("etcd");
        Self {
            member: data.join("member"),
            aside: data.join(".recovery"),
        }
    }

    /// A copy of the data as they were.
    pub(super) fn copy(&self) -> PathBuf {
        self.aside.join("copy")
    }

    /// Makes sure that it is there, root's alone.
    pub(super) fn make(&self) -> Result<(), PhaseError> {
        make(&self.aside)
    }

    fn record(&self) -> PathBuf {
        self.aside.join("record.json")
    }

    fn restored(&self) -> PathBuf {
        self.aside.join("restored")
    }

    fn former(&self) -> PathBuf {
        self.aside.join("former")
    }

    /// Former data that nobody gets back.
    fn trash(&self) -> PathBuf {
        self.aside.join("trash")
    }

    fn inode(&self) -> Option<u64> {
        inode(&self.member)
    }

    fn read(&self) -> Result<Option<Record>, PhaseError> {
        let path = self.record();
        match std::fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json).map(Some).map_err(lasting),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file("read", &path)(error)),
        }
    }

    fn write(&self) -> Result<(), PhaseError> {
        let record = Record {
            former: self.inode(),
        };
        let json = serde_json::to_vec(&record).map_err(lasting)?;
        host::atomic::write(&self.record(), &json, 0o600).map_err(lasting)
    }

    /// Whether the restored data are in place.
    pub(super) fn is_replaced(&self) -> Result<bool, PhaseError> {
        let Some(record) = self.read()? else {
            return Ok(false);
        };
        let Some(inode) = self.inode() else {
            return Ok(false);
        };
        Ok(match record.former {
            Some(former) => inode != former,
            None => !self.restored().join("member").exists(),
        })
    }

    /// Puts the restored data in place, in one step.
    fn exchange(&self) -> Result<(), PhaseError> {
        if !self.is_replaced()? {
            self.settle()?;
            // etcd makes new ones where it has none.
            self.write()?;
            let restored = self.restored().join("member");
            let flags = match self.inode() {
                Some(_) => RenameFlags::EXCHANGE,
                None => RenameFlags::NOREPLACE,
            };
            renameat_with(CWD, &restored, CWD, &self.member, flags)
                .map_err(|error| file("exchange", &self.member)(error.into()))?;
            self.sync()?;
        }
        self.rename(&self.restored(), &self.former())
    }

    /// Puts the former data back, in one step.
    fn exchange_back(&self) -> Result<(), PhaseError> {
        if self.is_replaced()? {
            let moved = match self.former_member()? {
                Some(former) => {
                    renameat_with(CWD, &former, CWD, &self.member, RenameFlags::EXCHANGE)
                        .map_err(std::io::Error::from)
                }
                None => std::fs::create_dir_all(self.former())
                    .and_then(|()| std::fs::rename(&self.member, self.former().join("member"))),
            };
            moved.map_err(file("exchange", &self.member))?;
            self.sync()?;
        }
        self.rename(&self.former(), &self.restored())
    }

    /// While the former data are in place: names the restored ones so again where
    /// [`Self::exchange_back`] was cut off before it did.
    fn settle(&self) -> Result<(), PhaseError> {
        let former = self.read()?.and_then(|record| record.former);
        let moved = inode(&self.former().join("member"));
        match moved {
            Some(inode) if Some(inode) == former => Err(PhaseError::lasting(format!(
                "the data of etcd were removed; the former ones are in {}",
                self.former().display()
            ))),
            Some(_) if !self.restored().join("member").exists() => {
                self.rename(&self.former(), &self.restored())
            }
            _ => Ok(()),
        }
    }

    /// Where the former data are while the restored ones are in place; `None`
    /// where there were none.
    fn former_member(&self) -> Result<Option<PathBuf>, PhaseError> {
        // Wherever the last try ended.
        let found = [self.former(), self.restored()]
            .map(|directory| directory.join("member"))
            .into_iter()
            .find(|path| path.exists());
        let had = self.read()?.and_then(|record| record.former);
        match (found, had) {
            (None, Some(_)) => Err(removed()),
            (found, _) => Ok(found),
        }
    }

    /// Removes the former data: who is cut off leaves all of them or none.
    fn discard(&self) -> Result<(), PhaseError> {
        let trash = self.trash();
        // What a try left that was cut off.
        remove_directory(&trash)?;
        self.rename(&self.former(), &trash)?;
        match host::atomic::sync_directory(&self.aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(file("sync", &self.aside)(error));
            }
            _ => {}
        }
        remove_directory(&trash)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), PhaseError> {
        match std::fs::rename(from, to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(file("rename", from)(error))
            }
            _ => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), PhaseError> {
        for path in [&self.member, &self.aside] {
            if let Some(parent) = path.parent() {
                host::atomic::sync_directory(parent).map_err(file("sync", parent))?;
            }
        }
        Ok(())
    }
}

/// Makes data of the snapshot, beside those of etcd.
pub(super) fn restore(node: &Node, phase: &EtcdRestore) -> Result<(), PhaseError> {
    let place = Place::of(node);
    place.make()?;
    if place.is_replaced()? {
        return Ok(());
    }
    if place.read()?.is_none() {
        place.write()?;
    }
    place.settle()?;
    let restored = place.restored();
    remove_directory(&restored)?;
    let snapshot = snapshot(node, &phase.operation);
    Etcd::on_host(node.layout())?.restore(&snapshot, &restored, phase)?;
    own(&restored, &phase.user)
}

/// What an operation gives etcd the state of.
pub(super) fn snapshot(node: &Node, operation: &str) -> PathBuf {
    let operation = node.layout().operations().join(operation);
    operation.join(EtcdRestore::SNAPSHOT)
}

/// The number of a directory; `None` where there is none.
fn inode(directory: &Path) -> Option<u64> {
    let metadata = directory.symlink_metadata().ok()?;
    metadata.is_dir().then_some(metadata.ino())
}

/// A directory that is root's, though etcd's own is not.
fn make(path: &Path) -> Result<(), PhaseError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(file("create", path)(error));
        }
        _ => {}
    }
    let metadata = path.symlink_metadata().map_err(file("look at", path))?;
    match metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw() {
        true => Ok(()),
        false => Err(PhaseError::lasting(format!(
            "{} is not ours; look at it, then remove it by hand",
            path.display()
        ))),
    }
}

/// Gives a tree to the service user.
fn own(path: &Path, user: &spec::ServiceUser) -> Result<(), PhaseError> {
    let failed = file("give away", path);
    if path.symlink_metadata().map_err(failed)?.is_dir() {
        for entry in std::fs::read_dir(path).map_err(failed)? {
            own(&entry.map_err(failed)?.path(), user)?;
        }
    }
    chown(path, Some(user.uid), Some(user.gid)).map_err(failed)
}

/// Stops etcd and what works with it, and puts the restored data in place.
pub(super) async fn replace(node: &Arc<Node>, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
    stop(node, &*sink).await?;
    blocking(node, sink, |n, _| Place::of(n).exchange()).await
}

pub(super) async fn stop(node: &Node, sink: &dyn Sink) -> Result<(), PhaseError> {
    let planet = node.planet();
    let status = match planet.status().await {
        Ok(status) => status,
        Err(_) if planet::container::running(&node.layout().planet_config()).is_err() => {
            sink.info("The planet does not run");
            return Ok(());
        }
        Err(error) => return Err(transient(error)),
    };
    for name in STOPPED {
        if status.services.iter().any(|service| service.name == *name) {
            sink.info(&format!("Stopping {name}"));
            planet.hold(name, END).await.map_err(transient)?;
        }
    }
    Ok(())
}

/// Starts all that was stopped, and waits until the node is ready.
pub(super) async fn start(
    node: &Arc<Node>,
    name: &str,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    release(node, &sink).await?;
    wait_healthy(node, name, "admin", &[], sink).await
}

async fn release(node: &Arc<Node>, sink: &Arc<dyn Sink>) -> Result<(), PhaseError> {
    released(node, FIRST, sink).await
}

/// Starts all that was stopped; those of `first` must be ready before the next.
pub(super) async fn released(
    node: &Arc<Node>,
    first: &[&str],
    sink: &Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    super::planet::start_configured(node, sink.clone()).await?;
    let planet = node.planet();
    let known = planet.wait_known(READY).await.map_err(transient)?;
    for name in STOPPED.iter().rev() {
        if !known.services.iter().any(|service| service.name == *name) {
            continue;
        }
        sink.info(&format!("Starting {name}"));
        let released = async {
            planet.release(name).await?;
            match first.contains(name) {
                true => planet.wait_ready(&[(*name).to_owned()], READY).await,
                false => Ok(()),
            }
        };
        released.await.map_err(transient)?;
    }
    Ok(())
}

/// Removes the data that etcd had before, and the operation's snapshot.
pub(super) fn clean(node: &Node, phase: &EtcdSnapshot) -> Result<(), PhaseError> {
    let place = Place::of(node);
    // Before the record, without which they would not be put back.
    place.discard()?;
    remove_directory(&place.aside)?;
    place.sync()?;
    remove_file(&snapshot(node, &phase.operation))
}

pub(super) fn undo_restore(node: &Node) -> Result<(), PhaseError> {
    let place = Place::of(node);
    match place.is_replaced()? {
        // With it the former data would go.
        true => Err(PhaseError::lasting(
            "the restored data are in place; take /replace back first",
        )),
        false => remove_directory(&place.aside),
    }
}

pub(super) async fn undo_replace(
    node: &Arc<Node>,
    phase: &EtcdReplace,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    let place = Place::of(node);
    if place.is_replaced()? {
        // Nothing is stopped for data that are not there.
        place.former_member()?;
        stop(node, &*sink).await?;
        blocking(node, sink.clone(), move |_, _| place.exchange_back()).await?;
    }
    if phase.without_quorum {
        return released(node, &[], &sink).await;
    }
    release(node, &sink).await?;
    node.planet()
        .wait_ready(&[], READY)
        .await
        .map_err(transient)
}

pub(super) fn undo_clean(node: &Node) -> Result<(), PhaseError> {
    match Place::of(node).former().exists() {
        true => Ok(()),
        false => Err(removed()),
    }
}

fn removed() -> PhaseError {
    PhaseError::lasting(
        "the data that etcd had before are removed; go on with `gravity resume`, or look at \
         `gravity etcd snapshots` for others",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use spec::layout::Layout;

    use super::*;

    const NOBODY: u32 = 65534;

    fn put(directory: &Path, text: &str) {
        std::fs::create_dir_all(directory).unwrap();
        host::atomic::write(&directory.join("db"), text.as_bytes(), 0o600).unwrap();
    }

    fn begun(former: Option<&str>) -> (tempfile::TempDir, Place) {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::open(Layout::new(directory.path())).unwrap();
        let place = Place::of(&node);
        std::fs::create_dir_all(place.member.parent().unwrap()).unwrap();
        if let Some(text) = former {
            put(&place.member, text);
        }
        make(&place.aside).unwrap();
        place.write().unwrap();
        put(&place.restored().join("member"), "restored");
        (directory, place)
    }

    fn data(place: &Place) -> Option<String> {
        std::fs::read_to_string(place.member.join("db")).ok()
    }

    #[test]
    fn data_are_exchanged_once_however_often_and_come_back() {
        let (_directory, place) = begun(Some("former"));
        assert!(!place.is_replaced().unwrap());
        for _ in 0..3 {
            place.exchange().unwrap();
            assert_eq!(data(&place).as_deref(), Some("restored"));
        }
        assert!(place.former().join("member/db").exists());
        for _ in 0..3 {
            place.exchange_back().unwrap();
            assert_eq!(data(&place).as_deref(), Some("former"));
        }
        assert!(place.restored().join("member/db").exists());
        place.exchange().unwrap();
        assert_eq!(data(&place).as_deref(), Some("restored"));
    }

    #[test]
    fn a_kill_right_after_the_exchange_loses_nothing() {
        for back in [false, true] {
            let (_directory, place) = begun(Some("former"));
            let restored = place.restored().join("member");
            renameat_with(CWD, &restored, CWD, &place.member, RenameFlags::EXCHANGE).unwrap();
            match back {
                false => place.exchange().unwrap(),
                true => place.exchange_back().unwrap(),
            }
            let expected = if back { "former" } else { "restored" };
            assert_eq!(data(&place).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_taking_back_that_was_cut_off_is_gone_on_with_in_both_directions() {
        for had in [None, Some("former")] {
            for forward in [false, true] {
                let (_directory, place) = begun(had);
                place.exchange().unwrap();
                place.exchange_back().unwrap();
                // As it was before the last step.
                std::fs::rename(place.restored(), place.former()).unwrap();
                if forward {
                    // As a first try leaves it where etcd had no data.
                    std::fs::create_dir_all(place.restored()).unwrap();
                    place.exchange().unwrap();
                    assert_eq!(data(&place).as_deref(), Some("restored"));
                    assert_eq!(place.former().join("member").exists(), had.is_some());
                }
                place.exchange_back().unwrap();
                assert_eq!(data(&place).as_deref(), had);
                assert!(place.restored().join("member/db").exists());
            }
        }
    }

    #[test]
    fn former_data_are_not_taken_for_restored_ones() {
        let (_directory, place) = begun(Some("former"));
        place.exchange().unwrap();
        std::fs::remove_dir_all(&place.member).unwrap();
        assert!(place.exchange().is_err());
        let former = place.former().join("member/db");
        assert_eq!(std::fs::read_to_string(former).unwrap(), "former");
    }

    #[test]
    fn etcd_without_data_gets_some_and_has_none_again() {
        let (_directory, place) = begun(None);
        place.exchange().unwrap();
        assert_eq!(data(&place).as_deref(), Some("restored"));
        place.exchange_back().unwrap();
        assert_eq!(data(&place), None);
        assert!(!place.is_replaced().unwrap());
    }

    #[test]
    fn the_former_data_do_not_go_with_what_was_restored() {
        let (directory, place) = begun(Some("former"));
        let node = Node::open(Layout::new(directory.path())).unwrap();
        place.exchange().unwrap();
        assert!(undo_restore(&node).is_err());
        undo_clean(&node).unwrap();
        place.exchange_back().unwrap();
        undo_restore(&node).unwrap();
        assert!(!place.aside.exists());
        assert_eq!(data(&place).as_deref(), Some("former"));

        let (directory, place) = begun(Some("former"));
        let node = Node::open(Layout::new(directory.path())).unwrap();
        place.exchange().unwrap();
        let phase = EtcdSnapshot {
            operation: "1".into(),
        };
        for _ in 0..2 {
            clean(&node, &phase).unwrap();
        }
        assert!(undo_clean(&node).is_err());
        assert_eq!(data(&place).as_deref(), Some("restored"));
    }

    /// Does it as somebody else where this is root, whom no mode stops.
    fn as_nobody<T: Send>(what: impl FnOnce() -> T + Send) -> T {
        let doing = move || {
            // Of this thread alone.
            nix::unistd::setfsuid(NOBODY.into());
            what()
        };
        std::thread::scope(|scope| scope.spawn(doing).join().unwrap())
    }

    #[test]
    fn data_that_are_removed_in_part_do_not_come_back() {
        let (directory, place) = begun(Some("former"));
        let node = Node::open(Layout::new(directory.path())).unwrap();
        let phase = EtcdSnapshot {
            operation: "1".into(),
        };
        put(&place.member.join("snap"), "former");
        place.exchange().unwrap();
        // Something in the middle can't be removed.
        if nix::unistd::geteuid().is_root() {
            let user = spec::ServiceUser {
                name: "nobody".into(),
                uid: NOBODY,
                gid: NOBODY,
            };
            own(directory.path(), &user).unwrap();
        }
        let snap = place.former().join("member/snap");
        let mode = |path: &Path, mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path, mode).unwrap();
        };
        mode(&snap, 0o500);
        for _ in 0..2 {
            as_nobody(|| clean(&node, &phase)).unwrap_err();
            assert!(undo_clean(&node).is_err());
            assert!(place.former_member().is_err());
            assert!(place.exchange_back().is_err());
            assert!(undo_restore(&node).is_err());
            assert_eq!(data(&place).as_deref(), Some("restored"));
        }

        mode(&place.trash().join("member/snap"), 0o700);
        as_nobody(|| clean(&node, &phase)).unwrap();
        assert!(!place.aside.exists());
        assert_eq!(data(&place).as_deref(), Some("restored"));
    }

    #[test]
    fn a_link_where_the_directory_should_be_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".recovery");
        std::os::unix::fs::symlink("/tmp", &path).unwrap();
        assert!(make(&path).is_err());
    }
}
