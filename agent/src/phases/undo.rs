//! Takes phases back.
//!
//! In: the payload of a phase that has begun. Out: what it made is gone, what
//! it changed on the host is as before. All are idempotent and go by what is
//! there, as the phase may have ended anywhere. Objects in Kubernetes are
//! deleted where its API answers; elsewhere they go with the data of etcd,
//! which belongs to the phase that starts the planet.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use event::Sink;
use operation::PhaseError;
use spec::phase::{Hook, PhaseSpec};

use super::{blocking, bootstrap, config, keep, own_data, recovery};
use crate::node::{file, session, transient};
use crate::{Node, daemon, residue};

/// Data that the planet's services write, below the state directory.
const SERVICE_DATA: &[&str] = &[
    "planet/overlay",
    "etcd",
    "etcd-snapshots",
    "containerd",
    "kubelet",
];

/// Takes one phase back.
pub(crate) async fn undo(
    node: &Arc<Node>,
    phase: PhaseSpec,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    match phase {
        PhaseSpec::Bootstrap(_) => blocking(node, sink, |n, s| directories(n, s)).await,
        PhaseSpec::Volumes(_) => {
            blocking(node, sink, |n, s| {
                n.undo_changes(s);
                Ok(())
            })
            .await
        }
        PhaseSpec::Program(_) => blocking(node, sink, |n, s| program(n, s)).await,
        PhaseSpec::Rootfs(phase) => blocking(node, sink, move |_, _| unpacked(&phase.target)).await,
        PhaseSpec::Images(_) => blocking(node, sink, |n, _| images(n)).await,
        PhaseSpec::Resources(phase) => {
            blocking(node, sink, move |n, _| {
                unpacked(&n.layout().resources(&phase.digest))
            })
            .await
        }
        PhaseSpec::Keep(phase) => blocking(node, sink, move |n, _| keep::undo(n, &phase)).await,
        PhaseSpec::Register(phase) => leave_cluster(node, &phase.controllers, &*sink).await,
        PhaseSpec::Secrets(_) | PhaseSpec::JoinSecrets(_) => {
            blocking(node, sink, |n, _| clear(&n.layout().planet_secrets())).await
        }
        PhaseSpec::Planet(phase) => {
            // Its etcd may vote: the others must know before its data goes.
            if !phase.member_of.is_empty() {
                leave_cluster(node, &phase.member_of, &*sink).await?;
            }
            blocking(node, sink, |n, s| planet(n, s)).await
        }
        PhaseSpec::Node(phase) => {
            let object = serde_json::json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": phase.name },
            });
            objects(node, &[object], &*sink).await
        }
        PhaseSpec::Apply(phase) => objects(node, &phase.objects, &*sink).await,
        PhaseSpec::Config(phase) => {
            let found = config::objects(node, &phase)?;
            objects(node, &found, &*sink).await
        }
        PhaseSpec::Health(_)
        | PhaseSpec::Nodes(_)
        | PhaseSpec::Added(_)
        | PhaseSpec::EtcdStart(_) => Ok(()),
        PhaseSpec::EtcdCollect(phase) => own_data::undo(node, phase, sink).await,
        PhaseSpec::EtcdRestore(_) => blocking(node, sink, |n, _| recovery::undo_restore(n)).await,
        PhaseSpec::EtcdReplace(phase) => recovery::undo_replace(node, &phase, sink).await,
        PhaseSpec::ForgetMasters(_) => {
            sink.warning(
                "The other masters are part of the cluster again when the data that etcd had \
                 before are back, with /replace",
            );
            Ok(())
        }
        PhaseSpec::EtcdClean(_) => recovery::undo_clean(node),
        PhaseSpec::Hook(phase) => hook(node, &phase, &*sink).await,
        PhaseSpec::Complete(_) | PhaseSpec::CompleteJoin(_) => {
            if matches!(phase, PhaseSpec::Complete(_)) {
                stop_status_hook(node, &*sink).await;
            }
            let layout = node.layout();
            remove_file(&layout.cluster())?;
            remove_file(&layout.manifest())
        }
    }
}

/// Without Kubernetes nobody runs it anyway.
async fn stop_status_hook(node: &Node, sink: &dyn Sink) {
    let stopped = async {
        let client = node.kubernetes().await.map_err(|error| error.message)?;
        let stopped = client.stop_status_hook().await;
        stopped.map_err(|error| error.to_string())
    };
    if let Err(error) = stopped.await {
        sink.warning(&error);
    }
}

/// The user, and directories that hold nothing any more. Logs stay.
fn directories(node: &Node, sink: &dyn Sink) -> Result<(), PhaseError> {
    node.undo_changes(sink);
    for (name, _) in bootstrap::DIRECTORIES.iter().rev() {
        let path = node.layout().state_dir().join(name);
        match std::fs::remove_dir(&path) {
            Err(error)
                if !matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty
                ) =>
            {
                return Err(file("remove", &path, &error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn program(node: &Node, sink: &dyn Sink) -> Result<(), PhaseError> {
    node.undo_changes(sink);
    remove_file(&node.layout().gravity())?;
    remove_file(&node.layout().components())
}

/// A tree that was unpacked, and the part of one.
fn unpacked(target: &Path) -> Result<(), PhaseError> {
    if let (Some(parent), Some(name)) = (target.parent(), target.file_name()) {
        let mut partial = std::ffi::OsString::from(".partial-");
        partial.push(name);
        remove_tree(&parent.join(partial))?;
    }
    remove_tree(&target.with_extension("partial"))?;
    remove_tree(target)
}

/// All of the registry: it is filled by one phase.
fn images(node: &Node) -> Result<(), PhaseError> {
    clear(&node.layout().service("registry"))?;
    clear(&node.layout().blobs().join("sha256"))
}

fn planet(node: &Node, sink: &dyn Sink) -> Result<(), PhaseError> {
    daemon::stop(node.layout())?;
    if let Some(rootfs) = daemon::rootfs(node.layout()) {
        for left in residue::remove(&rootfs).left {
            sink.warning(&format!("left {}: {}", left.what, left.why));
        }
    }
    node.undo_changes(sink);
    for name in SERVICE_DATA {
        clear(&node.layout().service(name))?;
    }
    clear(&node.layout().planet_run())?;
    remove_file(&node.layout().planet_config())
}

/// Whether Kubernetes can be asked. Where it can't, says what that means.
async fn answers(node: &Node, what: &str, sink: &dyn Sink) -> bool {
    let api = ["kube-apiserver".to_owned()];
    let status = node.planet().status().await;
    let ready = status.is_ok_and(|status| status.are_ready(&api));
    if !ready {
        sink.warning(&format!(
            "Kubernetes does not answer: {what} go with its data, when the phase that starts the planet is rolled back"
        ));
    }
    ready
}

async fn objects(
    node: &Node,
    objects: &[serde_json::Value],
    sink: &dyn Sink,
) -> Result<(), PhaseError> {
    if !answers(node, "the phase's objects", sink).await {
        return Ok(());
    }
    let client = node.kubernetes().await?;
    client
        .delete(objects)
        .await
        .map_err(|error| transient(&error))
}

async fn hook(node: &Node, phase: &Hook, sink: &dyn Sink) -> Result<(), PhaseError> {
    if !answers(node, "the hook's job and what it has made", sink).await {
        return Ok(());
    }
    let client = node.kubernetes().await?;
    client
        .delete_hook(&phase.operation, &phase.hook)
        .await
        .map_err(|error| transient(&error))?;
    sink.warning(&format!(
        "What the hook {} has made in the cluster stays there",
        phase.hook
    ));
    Ok(())
}

/// Has the cluster forget the node. One that it doesn't know is fine.
async fn leave_cluster(
    node: &Node,
    controllers: &[SocketAddr],
    sink: &dyn Sink,
) -> Result<(), PhaseError> {
    let mut session = session(node.layout(), controllers).await?;
    let left = session.leave(true, sink).await;
    left.map_err(|error| transient(&error))
}

/// Removes what is in a directory. What is mounted there is unmounted first:
/// it is somebody else's data.
pub(super) fn clear(directory: &Path) -> Result<(), PhaseError> {
    host::mounts::unmount_below(directory, true)
        .map_err(|error| file("unmount what is below", directory, &error))?;
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(file("read", directory, &error)),
    };
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|e| e.path())).collect();
    for path in paths.map_err(|error| file("read", directory, &error))? {
        let metadata = path
            .symlink_metadata()
            .map_err(|error| file("look at", &path, &error))?;
        match metadata.is_dir() {
            true => remove_tree(&path)?,
            false => remove_file(&path)?,
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<(), PhaseError> {
    host::mounts::unmount_below(path, false)
        .map_err(|error| file("unmount what is below", path, &error))?;
    gone(path, std::fs::remove_dir_all(path))
}

fn remove_file(path: &Path) -> Result<(), PhaseError> {
    gone(path, std::fs::remove_file(path))
}

fn gone(path: &Path, result: std::io::Result<()>) -> Result<(), PhaseError> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(file("remove", path, &error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use spec::layout::Layout;

    use super::*;

    fn put(path: impl AsRef<Path>, text: impl AsRef<[u8]>) -> std::io::Result<()> {
        host::atomic::write(path.as_ref(), text.as_ref(), 0o600).map_err(|error| error.source)
    }

    #[test]
    fn what_phases_made_goes_in_any_state_and_logs_stay() {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::open(Layout::new(directory.path())).unwrap();
        let layout = node.layout().clone();
        for (name, _) in bootstrap::DIRECTORIES {
            std::fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        let blob = layout.blob("sha256:ab");
        let rootfs = layout.rootfs("sha256:cd");
        let partial = rootfs.with_file_name(".partial-cd");
        for path in [&blob, &rootfs.join("bin/sh"), &partial.join("bin/sh")] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            put(path, "x").unwrap();
        }
        put(layout.logs().join("etcd.log"), "x").unwrap();
        // What was taken back already is fine.
        for _ in 0..2 {
            images(&node).unwrap();
            unpacked(&rootfs).unwrap();
            clear(&layout.planet_secrets()).unwrap();
            program(&node, &event::Discard).unwrap();
            directories(&node, &event::Discard).unwrap();
        }
        assert!(!blob.exists() && !rootfs.exists() && !partial.exists());
        assert!(!layout.secrets().exists());
        assert!(layout.logs().join("etcd.log").exists());
    }
}
