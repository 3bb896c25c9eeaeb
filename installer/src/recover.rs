//! The recovery of etcd from a snapshot.
//!
//! In: the node, its planet. Out: a [`Plan`]. Pure: nothing is touched.

use operation::{PLAN_VERSION, Phase, Plan};
use planet::config::PlanetConfig;
use spec::phase::{EtcdClean, EtcdReplace, EtcdRestore, EtcdStart, PhaseSpec};
use spec::{ClusterSpec, Role};
use uuid::Uuid;

/// Kind of the operation.
pub const KIND: &str = "recover";

/// Why there is nothing to recover.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The planet has no etcd, or one that was started otherwise.
    #[error("etcd of this node has no {0}; recover on a master")]
    NoMember(&'static str),
    /// Each of several members would have to be recovered.
    #[error(
        "the cluster has {0} members of etcd; this version recovers clusters of one master only"
    )]
    SeveralMembers(usize),
    /// A payload can't be written.
    #[error("write the plan")]
    Json(#[from] serde_json::Error),
}

/// Plans a recovery. The snapshot belongs into the operation's directory, as
/// [`EtcdRestore::SNAPSHOT`].
///
/// # Errors
/// When the node has no member of etcd, or others have, too.
pub fn plan(cluster: &ClusterSpec, node: &str, planet: &PlanetConfig) -> Result<Plan, Error> {
    let masters = cluster
        .nodes
        .iter()
        .filter(|node| node.role == Role::Master);
    match masters.count() {
        0 | 1 => {}
        several => return Err(Error::SeveralMembers(several)),
    }
    let mut services = planet.services.iter();
    let etcd = services
        .find(|service| service.name == "etcd")
        .ok_or(Error::NoMember("service"))?;
    let flag = |name: &'static str| {
        let prefix = format!("--{name}=");
        let mut values = etcd.command.iter();
        let value = values.find_map(|argument| argument.strip_prefix(&prefix));
        value.map(ToOwned::to_owned).ok_or(Error::NoMember(name))
    };
    let operation = Uuid::new_v4().to_string();
    let restore = EtcdRestore {
        operation: operation.clone(),
        user: cluster.service_user.clone(),
        member: flag("name")?,
        peer_url: flag("initial-advertise-peer-urls")?,
        token: flag("initial-cluster-token")?,
    };
    let leaf = |id: &str, description: &str, payload: PhaseSpec| {
        Ok::<_, Error>(Phase {
            node: Some(node.to_owned()),
            payload: serde_json::to_value(payload)?,
            ..Phase::new(id, description)
        })
    };
    let start = EtcdStart { node: node.into() };
    let clean = EtcdClean {
        operation: operation.clone(),
    };
    Ok(Plan {
        version: PLAN_VERSION,
        kind: KIND.into(),
        created_by_version: env!("CARGO_PKG_VERSION").into(),
        phases: vec![
            leaf(
                "/restore",
                "Make data of the snapshot",
                PhaseSpec::EtcdRestore(restore),
            )?,
            leaf(
                "/replace",
                "Stop etcd and what uses it, put the data in place",
                PhaseSpec::EtcdReplace(EtcdReplace {}),
            )?,
            leaf(
                "/start",
                "Start etcd and what uses it",
                PhaseSpec::EtcdStart(start),
            )?,
            leaf(
                "/clean",
                "Remove the former data",
                PhaseSpec::EtcdClean(clean),
            )?,
        ],
        operation_id: operation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::tests::planned;

    #[test]
    fn a_recovery_knows_the_member_by_what_etcd_was_started_with() {
        let (cluster, planet) = planned(|_| ());
        let plan = plan(&cluster, "node-1", &planet).unwrap();
        plan.validate().unwrap();
        let ids: Vec<_> = plan.leaves().iter().map(|phase| &*phase.id).collect();
        assert_eq!(ids, ["/restore", "/replace", "/start", "/clean"]);
        let payload = plan.phase("/restore").unwrap().payload.clone();
        let PhaseSpec::EtcdRestore(restore) = serde_json::from_value(payload).unwrap() else {
            panic!()
        };
        let expected = EtcdRestore {
            operation: plan.operation_id,
            user: cluster.service_user,
            member: "node-1".into(),
            peer_url: "https://192.168.7.9:2380".into(),
            token: cluster.id.to_string(),
        };
        assert_eq!(restore, expected);
    }

    #[test]
    fn a_cluster_that_this_can_not_recover_is_refused() {
        let (mut cluster, mut planet) = planned(|_| ());
        cluster.nodes.push(cluster.nodes[0].clone());
        let error = plan(&cluster, "node-1", &planet).unwrap_err();
        assert!(error.to_string().contains("has 2 members"), "{error}");
        cluster.nodes.pop();
        planet.services.retain(|service| service.name != "etcd");
        let error = plan(&cluster, "node-1", &planet).unwrap_err();
        assert!(matches!(error, Error::NoMember("service")), "{error}");
    }
}
