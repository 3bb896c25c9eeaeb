//! The recovery of etcd: from a snapshot, or where other masters are lost from
//! what this node's own etcd holds.
//!
//! In: the node, its planet. Out: a [`Plan`]. Pure: nothing is touched.

use manifest::HookName;
use operation::Plan;
use planet::config::PlanetConfig;
use spec::phase::{EtcdReplace, EtcdRestore, EtcdSnapshot, EtcdStart, ForgetMasters, PhaseSpec};
use spec::{ClusterSpec, NodeSpec};
use uuid::Uuid;

use crate::hooks::NodeHooks;
use crate::install;

/// Kind of the operation.
pub const KIND: &str = "recover";

/// The phase from which on the node has other data.
pub const REPLACE: &str = "/replace";

/// The phase of a recovery without the other masters that takes them out.
pub const FORGET: &str = "/forget";

/// Why there is nothing to recover.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The planet has no etcd, or one that was started otherwise.
    #[error("etcd of this node has no {0}; recover on a master")]
    NoMember(&'static str),
    /// Members that work would go on with other data.
    #[error(
        "the {0} members of etcd have a quorum and take writes, so there is nothing to recover; \
         `gravity remove NODE --force` takes out masters that are dead. Back to a snapshot goes a \
         cluster of one master only"
    )]
    Quorum(usize),
    /// Another master may have a quorum, or be recovered, too.
    #[error(
        "{0} answers: a recovery here would make a second cluster beside it. Where its etcd is \
         down, start it there (`gravity start`), and the cluster goes on; where its data are lost, \
         take it off by `gravity leave --force` there, or switch it off"
    )]
    OthersAnswer(String),
    /// One master is not recovered from what it has anyway.
    #[error(
        "this is the cluster's only master: say which snapshot it is to go back to; `gravity etcd \
         snapshots` lists them"
    )]
    NoSnapshot,
    /// A payload can't be written.
    #[error("write the plan")]
    Json(#[from] serde_json::Error),
}

/// What a recovery begins with, and ends.
#[derive(Debug)]
pub struct Recovery<'a> {
    /// The cluster.
    pub cluster: &'a ClusterSpec,
    /// The master that is recovered.
    pub node: &'a NodeSpec,
    /// Its planet.
    pub planet: &'a PlanetConfig,
    /// Whether the state comes from what its own etcd holds; from a snapshot
    /// otherwise.
    pub own_data: bool,
    /// Where other masters are lost, which are then taken out of the cluster: the
    /// hooks of nodes that go.
    pub without_others: Option<&'a NodeHooks>,
}

/// Plans a recovery. A snapshot belongs into the operation's directory, as
/// [`EtcdRestore::SNAPSHOT`].
///
/// # Errors
/// When the node has no member of etcd.
pub fn plan(recovery: &Recovery<'_>) -> Result<Plan, Error> {
    let Recovery {
        cluster,
        node,
        planet,
        own_data,
        without_others,
    } = recovery;
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
    let token = flag("initial-cluster-token")?;
    let leaf = |id, description, payload| install::leaf(&node.hostname, id, description, payload);
    let mut phases = Vec::new();
    if *own_data {
        let collect = EtcdSnapshot {
            operation: operation.clone(),
        };
        phases.push(leaf(
            "/collect",
            "Stop etcd and what uses it, make a snapshot of all that it holds",
            PhaseSpec::EtcdCollect(collect),
        )?);
    }
    let restore = EtcdRestore {
        operation: operation.clone(),
        user: cluster.service_user.clone(),
        member: flag("name")?,
        peer_url: flag("initial-advertise-peer-urls")?,
        // Others that come back are of another cluster then: neither understands
        // what the other one sends.
        token: match without_others {
            Some(_) => format!("{token}-{operation}"),
            None => token,
        },
    };
    phases.push(leaf(
        "/restore",
        "Make data of the snapshot",
        PhaseSpec::EtcdRestore(restore),
    )?);
    let replace = EtcdReplace {
        without_quorum: without_others.is_some(),
    };
    phases.push(leaf(
        REPLACE,
        "Stop etcd and what uses it, put the data in place",
        PhaseSpec::EtcdReplace(replace),
    )?);
    let start = EtcdStart {
        node: node.hostname.clone(),
    };
    phases.push(leaf(
        "/start",
        "Start etcd and what uses it",
        PhaseSpec::EtcdStart(start),
    )?);
    if let Some(hooks) = without_others {
        let forget = ForgetMasters {
            node: node.hostname.clone(),
            hook: hooks.get(HookName::PostNodeRemove).cloned(),
        };
        phases.push(leaf(
            FORGET,
            "Take the other masters out of the cluster",
            PhaseSpec::ForgetMasters(forget),
        )?);
    }
    let clean = EtcdSnapshot {
        operation: operation.clone(),
    };
    phases.push(leaf(
        "/clean",
        "Remove the former data",
        PhaseSpec::EtcdClean(clean),
    )?);
    Ok(Plan::new(KIND, operation, phases))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::tests::planned;

    fn ids(plan: &Plan) -> Vec<&str> {
        plan.validate().unwrap();
        plan.leaves().iter().map(|phase| &*phase.id).collect()
    }

    fn payload(plan: &Plan, id: &str) -> PhaseSpec {
        serde_json::from_value(plan.phase(id).unwrap().payload.clone()).unwrap()
    }

    fn of_one<'a>(cluster: &'a ClusterSpec, planet: &'a PlanetConfig) -> Recovery<'a> {
        Recovery {
            cluster,
            node: &cluster.nodes[0],
            planet,
            own_data: false,
            without_others: None,
        }
    }

    #[test]
    fn a_recovery_knows_the_member_by_what_etcd_was_started_with() {
        let (cluster, planet) = planned(|_| ());
        let plan = plan(&of_one(&cluster, &planet)).unwrap();
        assert_eq!(ids(&plan), ["/restore", "/replace", "/start", "/clean"]);
        let expected = EtcdRestore {
            operation: plan.operation_id.clone(),
            user: cluster.service_user,
            member: "node-1".into(),
            peer_url: "https://192.168.7.9:2380".into(),
            token: cluster.id.to_string(),
        };
        assert_eq!(payload(&plan, "/restore"), PhaseSpec::EtcdRestore(expected));
    }

    #[test]
    fn who_is_left_of_several_becomes_another_etcd_and_forgets_the_others() {
        let (cluster, planet) = planned(|_| ());
        let text = "metadata: {name: a, resourceVersion: 1.0.0}\n\
                    hooks: {postNodeRemove: {job: '{kind: Job}'}}";
        let hooks = NodeHooks::of(&cluster, &manifest::parse(text, "a").unwrap().hooks);
        let left = Recovery {
            own_data: true,
            without_others: Some(&hooks),
            ..of_one(&cluster, &planet)
        };
        let plan = super::plan(&left).unwrap();
        let phases = [
            "/collect", "/restore", "/replace", "/start", "/forget", "/clean",
        ];
        assert_eq!(ids(&plan), phases);
        let PhaseSpec::EtcdRestore(restore) = payload(&plan, "/restore") else {
            panic!()
        };
        assert_ne!(restore.token, cluster.id.to_string());
        let PhaseSpec::ForgetMasters(forget) = payload(&plan, "/forget") else {
            panic!()
        };
        assert_eq!(forget.node, "node-1");
        assert_eq!(forget.hook.unwrap().hook, "postNodeRemove");
        let replace = EtcdReplace {
            without_quorum: true,
        };
        assert_eq!(payload(&plan, "/replace"), PhaseSpec::EtcdReplace(replace));
        let from_snapshot = Recovery {
            own_data: false,
            ..left
        };
        assert_eq!(ids(&super::plan(&from_snapshot).unwrap()), phases[1..]);
    }

    #[test]
    fn a_node_without_etcd_is_refused() {
        let (cluster, mut planet) = planned(|_| ());
        planet.services.retain(|service| service.name != "etcd");
        let error = plan(&of_one(&cluster, &planet)).unwrap_err();
        assert!(matches!(error, Error::NoMember("service")), "{error}");
    }
}
