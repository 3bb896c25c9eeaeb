//! Takes phases back.
//!
//! In: the payload of a phase that has begun. Out: what it made is gone, what
//! it changed on the host is as before. All are idempotent and go by what is
//! there, as the phase may have ended anywhere. Objects in Kubernetes are
//! deleted where its API answers; elsewhere they go with the data of etcd,
//! which belongs to the phase that starts the planet.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use event::Sink;
use operation::PhaseError;
use spec::layout::Layout;
use spec::phase::{Hook, JoinSecrets, PhaseSpec, Secrets};

use super::{blocking, bootstrap, config, keep, own_data, recovery};
use crate::node::{
    entries, file, remove_beginning, remove_directory, remove_file, session, sync_filesystem,
    transient,
};
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
        PhaseSpec::Secrets(Secrets { authorities, .. })
        | PhaseSpec::JoinSecrets(JoinSecrets { authorities, .. }) => {
            blocking(node, sink, move |n, _| {
                secrets(&n.layout().planet_secrets(), &authorities)
            })
            .await
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
                return Err(file("remove", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn program(node: &Node, sink: &dyn Sink) -> Result<(), PhaseError> {
    node.undo_changes(sink);
    remove_beginning(&node.layout().programs(), image::PARTIAL)?;
    remove_file(&node.layout().gravity())?;
    remove_file(&node.layout().components())
}

/// A tree that was unpacked, and the part of one.
pub(super) fn unpacked(target: &Path) -> Result<(), PhaseError> {
    unpacked_with(target, remove_tree)
}

fn unpacked_with(
    target: &Path,
    remove: impl Fn(&Path) -> Result<(), PhaseError>,
) -> Result<(), PhaseError> {
    let partial = |path: &Path| {
        let mut name = std::ffi::OsString::from(image::PARTIAL);
        name.push(path.file_name().unwrap_or_default());
        path.with_file_name(name)
    };
    // Resources are made ready under this name.
    let unfinished = target.with_extension("partial");
    let aside = partial(target);
    for path in [&partial(&unfinished), &unfinished, &aside] {
        remove(path)?;
    }
    host::mounts::unmount_below(target, false).map_err(file("unmount what is below", target))?;
    // A tree that is there counts as whole: who is cut off leaves no part of it.
    match std::fs::rename(target, &aside) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(file("rename", target))?,
    }
    sync_parent(target)?;
    remove(&aside)
}

fn sync_parent(path: &Path) -> Result<(), PhaseError> {
    let directory = path.parent().unwrap_or(path);
    host::atomic::sync_directory(directory).map_err(file("sync", directory))
}

/// The secrets of the planet. A phase that is executed again keeps a key that
/// is there, and counts on its certificate: so what an authority has signed
/// goes before its key, and all keys before certificates.
fn secrets(directory: &Path, authorities: &BTreeMap<String, String>) -> Result<(), PhaseError> {
    let of_authority = |path: &Path| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        path.extension().is_some_and(|extension| extension == "key")
            && authorities.contains_key(&*name)
    };
    let signed = |path: &Path| {
        path.extension()
            .is_some_and(|extension| extension == "key" || extension == "kubeconfig")
            && !of_authority(path)
    };
    remove_those(directory, signed)?;
    remove_those(directory, of_authority)?;
    clear(directory)
}

/// Removes files of a directory for good.
fn remove_those(directory: &Path, which: impl Fn(&Path) -> bool) -> Result<(), PhaseError> {
    let mut found = entries(directory)?;
    found.retain(|path| which(path));
    for path in &found {
        remove_file(path)?;
    }
    found.first().map_or(Ok(()), |path| sync_parent(path))
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
    remove_data(node.layout())?;
    clear(&node.layout().planet_run())
}

/// The planet's configuration while data of its services are removed.
fn removing(layout: &Layout) -> PathBuf {
    layout.planet_config().with_extension("removing")
}

/// Removes the planet's configuration and what its services have written. They
/// can't tell a part of it from all.
pub(super) fn remove_data(layout: &Layout) -> Result<(), PhaseError> {
    let config = layout.planet_config();
    // A rename needs no room on a disk that is full.
    match std::fs::rename(&config, removing(layout)) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(file("rename", &config)(error)),
        Ok(()) => sync_parent(&config)?,
    }
    for name in SERVICE_DATA {
        let directory = layout.service(name);
        clear(&directory)?;
        // It may be on a disk of its own.
        if directory.exists() {
            sync_filesystem(&directory)?;
        }
    }
    remove_file(&removing(layout))
}

/// Goes on with a removal that was cut off.
pub(super) fn go_on_removing(layout: &Layout) -> Result<(), PhaseError> {
    match removing(layout).exists() {
        true => remove_data(layout),
        false => Ok(()),
    }
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
    client.delete(objects).await.map_err(transient)
}

async fn hook(node: &Node, phase: &Hook, sink: &dyn Sink) -> Result<(), PhaseError> {
    if !answers(node, "the hook's job and what it has made", sink).await {
        return Ok(());
    }
    let client = node.kubernetes().await?;
    client
        .delete_hook(&phase.operation, &phase.hook)
        .await
        .map_err(transient)?;
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
    left.map_err(transient)
}

/// Removes what is in a directory. What is mounted there is unmounted first:
/// it is somebody else's data.
pub(super) fn clear(directory: &Path) -> Result<(), PhaseError> {
    host::mounts::unmount_below(directory, true)
        .map_err(file("unmount what is below", directory))?;
    for path in entries(directory)? {
        let metadata = path.symlink_metadata().map_err(file("look at", &path))?;
        match metadata.is_dir() {
            true => remove_tree(&path)?,
            false => remove_file(&path)?,
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<(), PhaseError> {
    host::mounts::unmount_below(path, false).map_err(file("unmount what is below", path))?;
    remove_directory(path)
}

#[cfg(test)]
mod tests {
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
        let ready = rootfs.with_file_name("cd.partial");
        let unready = rootfs.with_file_name(".partial-cd.partial");
        let program_part = layout.programs().join(".partial-x");
        for path in [
            &blob,
            &rootfs.join("bin/sh"),
            &partial.join("bin/sh"),
            &ready.join("pod.yaml"),
            &unready.join("pod.yaml"),
            &program_part,
        ] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            put(path, "x").unwrap();
        }
        put(layout.logs().join("etcd.log"), "x").unwrap();
        // What was taken back already is fine.
        for _ in 0..2 {
            images(&node).unwrap();
            unpacked(&rootfs).unwrap();
            secrets(&layout.planet_secrets(), &BTreeMap::new()).unwrap();
            program(&node, &event::Discard).unwrap();
            directories(&node, &event::Discard).unwrap();
        }
        assert!(!blob.exists() && !program_part.exists());
        assert!(!layout.state_dir().join("planet/rootfs").exists());
        assert!(!layout.secrets().exists());
        assert!(layout.logs().join("etcd.log").exists());
    }

    #[test]
    fn a_removal_that_is_cut_off_leaves_no_tree_that_counts_as_whole() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("cd");
        let aside = directory.path().join(".partial-cd");
        std::fs::create_dir_all(target.join("bin")).unwrap();
        let fails = |path: &Path| match path.exists() {
            true => Err(PhaseError::lasting("cut off")),
            false => Ok(()),
        };
        unpacked_with(&target, fails).unwrap_err();
        assert!(!target.exists());
        assert!(aside.join("bin").exists());
        unpacked(&target).unwrap();
        assert!(!aside.exists());
    }

    #[test]
    fn keys_go_before_certificates_and_authorities_after_what_they_signed() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let authorities = ["etcd-ca", "stuck"].map(|name| (name.to_owned(), String::new()));
        let authorities = BTreeMap::from(authorities);
        for name in ["etcd-ca.key", "etcd-ca.crt", "etcd.key", "etcd.crt"] {
            put(place.join(name), "x").unwrap();
        }
        put(place.join("admin.kubeconfig"), "x").unwrap();
        let names = || {
            let names = entries(place).unwrap().into_iter();
            let mut names: Vec<_> = names
                .map(|path| path.strip_prefix(place).unwrap().display().to_string())
                .collect();
            names.sort();
            names
        };
        // No file: it can't be removed as one.
        let signed = place.join("leaf.key");
        std::fs::create_dir(&signed).unwrap();
        secrets(place, &authorities).unwrap_err();
        for name in ["etcd-ca.key", "etcd-ca.crt", "etcd.crt"] {
            assert!(place.join(name).exists(), "{name}");
        }
        std::fs::remove_dir(&signed).unwrap();
        let authority = place.join("stuck.key");
        std::fs::create_dir(&authority).unwrap();
        secrets(place, &authorities).unwrap_err();
        let left = names();
        let left: Vec<_> = left.iter().filter(|name| *name != "etcd-ca.key").collect();
        assert_eq!(left, ["etcd-ca.crt", "etcd.crt", "stuck.key"]);
        std::fs::remove_dir(&authority).unwrap();
        secrets(place, &authorities).unwrap();
        assert!(names().is_empty());
    }
}
