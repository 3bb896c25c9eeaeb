//! Takes masters that are lost out of the cluster.
//!
//! In: the master that stays, which alone has etcd. Out: no other master is in
//! Kubernetes or in the cluster's description, by which all nodes know their
//! masters. What fails half-way can be done again: the description has each
//! master, as one that leaves, until its hook has run.

use std::sync::Arc;

use event::Sink;
use host::causes::causes;
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
    let lost = change(&client, |cluster| give_up(cluster, &phase.node)).await?;
    for master in &lost {
        let deleted = client.delete_node(&master.hostname).await;
        deleted.map_err(transient)?;
    }
    for master in &lost {
        if let Some(hook) = &phase.hook {
            run_hook(&client, hook, master, sink.clone()).await;
        }
        change(&client, |cluster| {
            cluster.nodes.retain(|other| other.id != master.id);
            Ok(())
        })
        .await?;
        sink.info(&format!(
            "Master {} is no part of the cluster any more",
            master.hostname
        ));
    }
    Ok(())
}

/// The master is gone, whatever the hook says.
async fn run_hook(client: &cluster::Client, hook: &Hook, master: &NodeSpec, sink: Arc<dyn Sink>) {
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
    let ran = cluster::hooks::run(client, &hook_run(hook), sink.clone()).await;
    if let Err(error) = ran {
        sink.warning(&causes(&error));
    }
    if let Err(error) = client.revoke_hooks(&operation).await {
        sink.warning(&causes(&error));
    }
}

/// Changes the description; again where somebody else was faster.
async fn change<T>(
    client: &cluster::Client,
    mut make: impl FnMut(&mut ClusterSpec) -> Result<T, PhaseError>,
) -> Result<T, PhaseError> {
    for _ in 0..TRIES {
        let read = client.description().await.map_err(transient)?;
        let mut cluster: ClusterSpec = serde_json::from_str(&read.text).map_err(lasting)?;
        let made = make(&mut cluster)?;
        let text = serde_json::to_string_pretty(&cluster).map_err(lasting)?;
        let replaced = client.replace(read, text).await;
        if replaced.map_err(transient)? {
            return Ok(made);
        }
    }
    Err(PhaseError::transient(
        "others change the cluster's description all the time",
    ))
}

/// Has nobody count on any master but one, and returns the others.
fn give_up(cluster: &mut ClusterSpec, own: &str) -> Result<Vec<NodeSpec>, PhaseError> {
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
    let is_lost = |node: &&mut NodeSpec| node.role == Role::Master && node.hostname != own;
    let lost = cluster.nodes.iter_mut().filter(is_lost).map(|node| {
        node.leaving = true;
        node.clone()
    });
    Ok(lost.collect())
}

#[cfg(test)]
mod tests {
    use spec::sample;

    use super::*;

    fn cluster() -> ClusterSpec {
        let node = |number: u8, role, leaving| NodeSpec {
            leaving,
            ..sample::node(&format!("n{number}"), [10, 0, 0, number].into(), role, "")
        };
        ClusterSpec {
            nodes: vec![
                node(1, Role::Master, false),
                node(2, Role::Worker, false),
                node(3, Role::Master, true),
                node(4, Role::Master, false),
            ],
            ..sample::cluster()
        }
    }

    #[test]
    fn one_master_is_counted_on_and_the_others_stay_known_until_they_are_done_with() {
        let mut cluster = cluster();
        let names = |nodes: &[NodeSpec]| {
            let names = nodes.iter().map(|node| node.hostname.clone());
            names.collect::<Vec<_>>()
        };
        let lost = give_up(&mut cluster, "n3").unwrap();
        assert_eq!(names(&lost), ["n1", "n4"]);
        let counted: Vec<_> = cluster.masters().map(|master| master.to_string()).collect();
        assert_eq!(counted, ["10.0.0.3"], "it does not leave any more");
        // Cut off while the hook of the first one ran, or of the second.
        assert_eq!(names(&give_up(&mut cluster, "n3").unwrap()), ["n1", "n4"]);
        cluster.nodes.retain(|node| node.hostname != "n1");
        assert_eq!(names(&give_up(&mut cluster, "n3").unwrap()), ["n4"]);
        cluster.nodes.retain(|node| node.hostname != "n4");
        assert!(give_up(&mut cluster, "n3").unwrap().is_empty());
        assert_eq!(names(&cluster.nodes), ["n2", "n3"]);
    }

    #[test]
    fn who_is_no_master_can_not_stay_alone() {
        for name in ["n2", "n9"] {
            let mut cluster = cluster();
            assert!(give_up(&mut cluster, name).is_err(), "{name}");
            assert_eq!(cluster.masters().count(), 2);
        }
    }
}
