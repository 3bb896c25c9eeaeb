//! Containers of pods: who has to be told to end, and how long that may take.
//!
//! In: the directories that containerd's shims keep, and the processes that are in the
//! groups of pods. Out: the first process of every container, with the time that its
//! pod is given. The processes that hold a pod's namespaces are no containers: whoever
//! is left needs them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::files;

/// One directory a container: its `config.json`, and its process in `init.pid`.
pub(super) const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";
/// What Kubernetes gives a pod that asks for no other time, in seconds.
const USUAL: u64 = 30;
/// No pod gets more: the planet has to stop in time.
const LONGEST: u64 = 60;
/// Annotations, by the runtime and, as its configuration lets it pass, by kubelet.
const KIND: &str = "io.kubernetes.cri.container-type";
const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// A container that runs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Container {
    /// Its first process, which alone is told to end.
    pub(super) pid: i32,
    /// How long it may take to end.
    pub(super) grace: Duration,
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The containers in `bundles` whose process is one of `running`. What can't be read is
/// left out: a container may end at any moment.
pub(super) fn containers(bundles: &Path, running: &[i32]) -> Vec<Container> {
    let directories = fs::read_dir(bundles).into_iter().flatten();
    directories
        .filter_map(|entry| container(&entry.ok()?.path(), running))
        .collect()
}

fn container(bundle: &Path, running: &[i32]) -> Option<Container> {
    let pid = fs::read_to_string(bundle.join("init.pid")).ok()?;
    // The id of one that has ended may be another one's by now.
    let pid = pid
        .trim()
        .parse()
        .ok()
        .filter(|pid| running.contains(pid))?;
    let read: Bundle = files::read_json(&bundle.join("config.json")).ok()?;
    let annotation = |name: &str| read.annotations.get(name).map(String::as_str);
    if annotation(KIND) == Some("sandbox") {
        return None;
    }
    let grace = annotation(GRACE).and_then(|seconds| seconds.parse().ok());
    Some(Container {
        pid,
        grace: Duration::from_secs(grace.unwrap_or(USUAL).min(LONGEST)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_get_the_time_of_their_pods_up_to_a_minute() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = |pid: i32, annotations: serde_json::Value| {
            let bundle = directory.path().join(pid.to_string());
            fs::create_dir(&bundle).unwrap();
            host::atomic::write(&bundle.join("init.pid"), pid.to_string().as_bytes(), 0o644)
                .unwrap();
            let json = serde_json::json!({ "ociVersion": "1.0", "annotations": annotations });
            host::atomic::write(
                &bundle.join("config.json"),
                json.to_string().as_bytes(),
                0o644,
            )
            .unwrap();
        };
        bundle(1, serde_json::json!({ KIND: "sandbox" }));
        bundle(2, serde_json::json!({ KIND: "container", GRACE: "7" }));
        bundle(3, serde_json::json!({ KIND: "container", GRACE: "3600" }));
        bundle(4, serde_json::json!({ KIND: "container" }));
        bundle(5, serde_json::json!({ KIND: "container", GRACE: "7" }));
        fs::create_dir(directory.path().join("half-made")).unwrap();
        let mut found = containers(directory.path(), &[1, 2, 3, 4]);
        found.sort_by_key(|container| container.pid);
        let found: Vec<_> = found
            .iter()
            .map(|container| (container.pid, container.grace.as_secs()))
            .collect();
        assert_eq!(found, [(2, 7), (3, 60), (4, 30)]);
        assert_eq!(containers(&directory.path().join("none"), &[1]), []);
    }
}
