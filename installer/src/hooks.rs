//! What is run for a hook, the same in every operation.
//!
//! In: the cluster, a hook of its manifest. Out: a [`phase::Hook`]. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use manifest::HookName;
use spec::layout::PLANET_RESOURCES;
use spec::{ClusterSpec, ServiceUser, phase};

/// `GRAVITY_CLUSTER_*`, which hooks see.
pub(crate) fn cluster_environment(cluster: &ClusterSpec) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("GRAVITY_CLUSTER_NAME".into(), cluster.name.clone()),
        ("GRAVITY_CLUSTER_PROVIDER".into(), "generic".into()),
        (
            "GRAVITY_CLUSTER_FLAVOR".into(),
            cluster.flavor.clone().unwrap_or_default(),
        ),
    ])
}

/// A hook as `operation` runs it. `job` is the manifest's.
pub fn hook(cluster: &ClusterSpec, name: HookName, job: &str, operation: &str) -> phase::Hook {
    let mut env = cluster_environment(cluster);
    let &ServiceUser { uid, gid, .. } = &cluster.service_user;
    env.insert("GRAVITY_SERVICE_USER".into(), uid.to_string());
    let translated = manifest::service_user::translate(job, uid, gid);
    let resources = &cluster.image.resources;
    let digest = resources.rsplit(':').next().unwrap_or_default();
    phase::Hook {
        hook: name.to_string(),
        operation: operation.into(),
        job: translated.unwrap_or_else(|| job.into()),
        env,
        resources: PathBuf::from(PLANET_RESOURCES).join(digest),
        service_uid: uid,
    }
}
