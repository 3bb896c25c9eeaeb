//! Takes masters that are lost out of the cluster.
//!
//! In: the master that stays, which alone has etcd. Out: no other master is in
//! Kubernetes or in the cluster's description, by which all nodes know their
//! masters. What fails half-way can be done again: the description has the
//! masters until the end.

use std::sync::Arc;

use event::Sink;
use operation::PhaseError;
use spec::phase::{ForgetMasters, Hook};
use spec::{ClusterSpec, NodeSpec, Role};

use super::hook_run;
use crate::Node;
use crate::node::{lasting, transient};

/// How often a change that somebody else was faster with is made again.
const TRIES: usize = 10;

pub(super) async fn forget(
    node: &Node,
    phase: ForgetMasters,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    let client = node.kubernetes().await?;
    let lost = without_others(&client, &phase.node, &*sink).await?;
    let Some(hook) = phase.hook else {
        return Ok(());
    };
    for master in &lost {
        sink.step(&format!(
            "Running the {} hook for {}",
            hook.hook, master.hostname
        ));
        let hook = Hook {
            avoid: Some(master.hostname.clone()),
            // Each is a Job of its own.
            operation: master.id.to_string(),
            ..hook.clone().about(master)
        };
        let operation = hook.operation.clone();
        let ran = cluster::hooks::run(&client, &hook_run(hook), sink.clone()).await;
        // The master is gone, whatever the hook says.
        if let Err(error) = ran {
            sink.warning(&crate::text(&error));
        }
        if let Err(error) = client.revoke_hooks(&operation).await {
            sink.warning(&crate::text(&error));
        }
    }
    Ok(())
}

/// Changes the description; again where somebody else was faster.
async fn without_others(
    client: &cluster::Client,
    own: &str,
    sink: &dyn Sink,
) -> Result<Vec<NodeSpec>, PhaseError> {
    for _ in 0..TRIES {
        let read = client
            .description()
            .await
            .map_err(|error| transient(&error))?;
        let mut cluster: ClusterSpec =
            serde_json::from_str(&read.text).map_err(|error| lasting(&error))?;
        let lost = split(&mut cluster, own)?;
        for master in &lost {
            client
                .delete_node(&master.hostname)
                .await
                .map_err(|error| transient(&error))?;
        }
        let text = serde_json::to_string_pretty(&cluster).map_err(|error| lasting(&error))?;
        let replaced = client.replace_description(read, text).await;
        if replaced.map_err(|error| transient(&error))? {
            for master in &lost {
                sink.info(&format!(
                    "Master {} is no part of the cluster any more",
                    master.hostname
                ));
            }
            return Ok(lost);
        }
    }
    Err(PhaseError::transient(
        "others change the cluster's description all the time",
    ))
}

/// Takes all masters but one out of a description, and returns them.
fn split(cluster: &mut ClusterSpec, own: &str) -> Result<Vec<NodeSpec>, PhaseError> {
    let mut nodes = cluster.nodes.iter_mut();
    let stays = nodes.find(|node| node.hostname == own && node.role == Role::Master);
    let stays = stays.ok_or_else(|| {
        PhaseError::lasting(format!(
            "the cluster's description has no master {own}: other masters have removed it, and \
             its data are of no use"
        ))
    })?;
    // It may have been on its way out when the others were lost.
    stays.leaving = false;
    let is_lost = |node: &NodeSpec| node.role == Role::Master && node.hostname != own;
    let lost = cluster.nodes.extract_if(.., |node| is_lost(node)).collect();
    Ok(lost)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cluster() -> ClusterSpec {
        let node = |number: u8, role: &str, leaving: bool| {
            json!({
                "id": format!("00000000-0000-0000-0000-00000000000{number}"),
                "hostname": format!("n{number}"), "advertise_addresses": [format!("10.0.0.{number}")],
                "profile": "", "role": role, "pod_cidrs": [], "labels": {}, "state_dir": "/x",
                "leaving": leaving,
            })
        };
        serde_json::from_value(json!({
            "version": 1, "id": "00000000-0000-0000-0000-000000000000", "name": "c",
            "image": {"name": "i", "version": "1.0.0", "digest": "", "resources": ""},
            "flavor": null, "service_user": {"name": "planet", "uid": 1, "gid": 1},
            "pod_cidrs": [], "service_cidrs": [], "vxlan_port": 8472, "domain": "cluster.local",
            "nodes": [
                node(1, "master", false), node(2, "worker", false), node(3, "master", true),
                node(4, "master", false),
            ],
        }))
        .unwrap()
    }

    #[test]
    fn one_master_and_the_workers_stay() {
        let mut cluster = cluster();
        let lost = split(&mut cluster, "n3").unwrap();
        let names = |nodes: &[NodeSpec]| {
            let names = nodes.iter().map(|node| node.hostname.clone());
            names.collect::<Vec<_>>()
        };
        assert_eq!(names(&lost), ["n1", "n4"]);
        assert_eq!(names(&cluster.nodes), ["n2", "n3"]);
        assert_eq!(cluster.masters().count(), 1, "it does not leave any more");
        assert!(split(&mut cluster, "n3").unwrap().is_empty());
    }

    #[test]
    fn who_is_no_master_can_not_stay_alone() {
        for name in ["n2", "n9"] {
            let mut cluster = cluster();
            assert!(split(&mut cluster, name).is_err(), "{name}");
            assert_eq!(cluster.nodes.len(), 4);
        }
    }
}
