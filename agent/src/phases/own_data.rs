//! Collects what this node's etcd holds, where there is no quorum any more.
//!
//! In: the data of etcd. Out: etcd and what works with it are stopped; a snapshot
//! in the operation's directory holds every entry that this member has ever got
//! and kept. Always holds: the data themselves are only read.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use event::Sink;
use operation::PhaseError;
use spec::phase::EtcdSnapshot;

use super::blocking;
use super::recovery::{self, Place};
use crate::Node;
use crate::etcd::Etcd;
use crate::node::{file, remove_directory, remove_file};

/// What must be left on the disk, in bytes.
const ROOM: u64 = 512 << 20;
/// The copy, the snapshot and the data that are made of it.
const TIMES: u64 = 3;

pub(super) async fn collect(
    node: &Arc<Node>,
    phase: EtcdSnapshot,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    recovery::stop(node, &*sink).await?;
    sink.info("Reading all that this node's etcd holds");
    blocking(node, sink, move |n, _| snapshot(n, &phase)).await
}

fn snapshot(node: &Node, phase: &EtcdSnapshot) -> Result<(), PhaseError> {
    let place = Place::of(node);
    let to = recovery::snapshot(node, &phase.operation);
    // It gets its name when it is whole.
    if to.exists() || place.is_replaced()? {
        return Ok(());
    }
    place.make()?;
    let (copy, new) = (place.copy(), to.with_extension("new"));
    remove_directory(&copy)?;
    remove_file(&new)?;
    check_room(&place.member)?;
    copy_tree(&place.member, &copy.join("member"))?;
    Etcd::on_host(node.layout())?.collect(&copy, &new)?;
    std::fs::rename(&new, &to).map_err(file("rename", &new))?;
    if let Some(directory) = to.parent() {
        host::atomic::sync_directory(directory).map_err(file("sync", directory))?;
    }
    remove_directory(&copy)
}

pub(super) async fn undo(
    node: &Arc<Node>,
    phase: EtcdSnapshot,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    if Place::of(node).is_replaced()? {
        return Err(PhaseError::lasting(
            "the restored data are in place; take /replace back first",
        ));
    }
    let to = recovery::snapshot(node, &phase.operation);
    remove_file(&to.with_extension("new"))?;
    remove_file(&to)?;
    remove_directory(&Place::of(node).copy())?;
    recovery::released(node, &[], &sink).await
}

fn check_room(member: &Path) -> Result<(), PhaseError> {
    let size = size(member)?;
    let space = host::facts::space(member).map_err(file("look at", member))?;
    let wanted = size.saturating_mul(TIMES).saturating_add(ROOM);
    match space.available_bytes >= wanted {
        true => Ok(()),
        false => Err(PhaseError::lasting(format!(
            "{} is on a disk with {} MB available; its recovery takes {} MB",
            member.display(),
            space.available_bytes / 1_000_000,
            wanted / 1_000_000
        ))),
    }
}

/// Bytes that files below take.
fn size(path: &Path) -> Result<u64, PhaseError> {
    let failed = file("look at", path);
    let metadata = path.symlink_metadata().map_err(failed)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let mut sum = 0;
    for entry in std::fs::read_dir(path).map_err(failed)? {
        sum += size(&entry.map_err(failed)?.path())?;
    }
    Ok(sum)
}

/// Copies directories and files; etcd has nothing else.
fn copy_tree(from: &Path, to: &Path) -> Result<(), PhaseError> {
    let failed = file("copy", from);
    let kind = from.symlink_metadata().map_err(failed)?.file_type();
    if kind.is_file() {
        return std::fs::copy(from, to).map(drop).map_err(failed);
    }
    if !kind.is_dir() {
        return Err(PhaseError::lasting(format!(
            "{} is neither a file nor a directory",
            from.display()
        )));
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(to)
        .map_err(failed)?;
    for entry in std::fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        copy_tree(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_all_files_and_follows_no_links() {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("member");
        std::fs::create_dir_all(from.join("snap")).unwrap();
        host::atomic::write(&from.join("snap/db"), b"data", 0o600).unwrap();
        let to = directory.path().join("copy/member");
        copy_tree(&from, &to).unwrap();
        assert_eq!(std::fs::read(to.join("snap/db")).unwrap(), b"data");
        assert_eq!(size(&from).unwrap(), 4);
        std::os::unix::fs::symlink("/etc/passwd", from.join("link")).unwrap();
        let error = copy_tree(&from, &directory.path().join("other")).unwrap_err();
        assert!(error.message.contains("neither"), "{error}");
    }
}
