//! Node objects.
//!
//! In: a node's name, labels and part of the pod network. Out: the object
//! exists before the kubelet registers, so that the pod network is known from
//! the first pod; and a wait until the node is ready.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, Taint};
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::client::{Client, DEADLINE, Error, request, retry, unless_there};

/// Annotation of a node with the state of its services, which it writes itself.
pub(crate) const SERVICES: &str = "gravitational.io/services";

/// A taint; an empty value is none.
pub fn taint(key: &str, value: &str, effect: &str) -> Taint {
    Taint {
        key: key.into(),
        value: Some(value)
            .filter(|value| !value.is_empty())
            .map(Into::into),
        effect: effect.into(),
        time_added: None,
    }
}

impl Client {
    /// Makes the node's object, or brings labels, taints and pod network of the
    /// existing one up to date. Labels and taints of others stay. A taint is
    /// known by its key and effect.
    ///
    /// # Errors
    /// When the API refuses it, or the node has another pod network.
    pub async fn ensure_node(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
        taints: &[Taint],
        pod_cidrs: &[String],
    ) -> Result<(), Error> {
        let api: Api<Node> = Api::all(self.0.clone());
        let what = format!("creating node {name}");
        let node = planned(name, labels, taints, pod_cidrs);
        let params = PostParams::default();
        let created = retry(&what, DEADLINE, || async {
            unless_there(api.create(&params, &node).await)
        });
        if created.await? {
            return Ok(());
        }
        let what = format!("updating node {name}");
        let existing = retry(&what, DEADLINE, || api.get(name)).await?;
        let Some(patch) = difference(name, &existing, labels, taints, pod_cidrs)? else {
            return Ok(());
        };
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        retry(&what, DEADLINE, || async {
            api.patch(name, &params, &patch).await
        })
        .await
        .map(drop)
    }

    /// Writes down how the services of a node are, as it says itself: the kubelet's
    /// user may do that for its own node.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses it.
    pub async fn announce_services(&self, name: &str, services: &str) -> Result<(), Error> {
        let api: Api<Node> = Api::all(self.0.clone());
        let patch = json!({ "metadata": { "annotations": { SERVICES: services } } });
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let what = format!("telling how the services of {name} are");
        let told = api.patch(name, &params, &patch).await;
        told.map(drop).map_err(|error| request(&what, error))
    }

    /// Waits until the node's Ready condition is true. Returns what it is short of
    /// all the same.
    ///
    /// # Errors
    /// When it isn't within `deadline`, with what the condition says; or when
    /// the API refuses us.
    pub async fn wait_node_ready(
        &self,
        name: &str,
        deadline: Duration,
    ) -> Result<Vec<String>, Error> {
        let api: Api<Node> = Api::all(self.0.clone());
        let mut state = "there is no such node".to_owned();
        let waiting = async {
            let mut changes = pin!(watcher::watch_object(api, name).default_backoff());
            while let Some(change) = changes.next().await {
                match change {
                    Ok(Some(node)) => match readiness(&node) {
                        Ok(()) => return Ok(pressure(&node)),
                        Err(reason) => state = reason,
                    },
                    Ok(None) => state = "there is no such node".into(),
                    Err(error) => {
                        if let Some(error) = refusal(error) {
                            return Err(request(&format!("watching node {name}"), error));
                        }
                        state = "the API doesn't answer".into();
                    }
                }
            }
            Ok(Vec::new())
        };
        match timeout(deadline, waiting).await {
            Ok(result) => result,
            Err(_) => {
                let seconds = deadline.as_secs();
                Err(Error::NotReady {
                    name: name.into(),
                    seconds,
                    state,
                })
            }
        }
    }
}

/// The error within a watcher's, if watching again won't help.
pub(crate) fn refusal(error: watcher::Error) -> Option<kube::Error> {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => match &error {
            kube::Error::Api(status) if matches!(status.code, 401 | 403) => Some(error),
            _ => None,
        },
        _ => None,
    }
}

fn planned(
    name: &str,
    labels: &BTreeMap<String, String>,
    taints: &[Taint],
    pod_cidrs: &[String],
) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            pod_cidr: pod_cidrs.first().cloned(),
            pod_cidrs: (!pod_cidrs.is_empty()).then(|| pod_cidrs.to_vec()),
            taints: (!taints.is_empty()).then(|| taints.to_vec()),
            ..NodeSpec::default()
        }),
        status: None,
    }
}

/// What has to change in an existing node; `None` if nothing.
fn difference(
    name: &str,
    existing: &Node,
    labels: &BTreeMap<String, String>,
    taints: &[Taint],
    pod_cidrs: &[String],
) -> Result<Option<Value>, Error> {
    let mut patch = json!({});
    let has = existing.metadata.labels.clone().unwrap_or_default();
    let missing: BTreeMap<_, _> = labels
        .iter()
        .filter(|(key, value)| has.get(*key) != Some(value))
        .collect();
    if !missing.is_empty() {
        patch["metadata"] = json!({ "labels": missing });
    }
    let spec = existing.spec.as_ref();
    let mut all = spec
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let before = all.clone();
    for taint in taints {
        let same = |one: &Taint| one.key == taint.key && one.effect == taint.effect;
        match all.iter_mut().find(|one| same(one)) {
            Some(one) => one.value.clone_from(&taint.value),
            None => all.push(taint.clone()),
        }
    }
    if all != before {
        // A list is replaced as a whole.
        patch["spec"]["taints"] = json!(all);
    }
    let actual = spec
        .and_then(|spec| spec.pod_cidrs.clone())
        .unwrap_or_default();
    if actual.is_empty() && !pod_cidrs.is_empty() {
        patch["spec"]["podCIDR"] = json!(pod_cidrs[0]);
        patch["spec"]["podCIDRs"] = json!(pod_cidrs);
    } else if actual != pod_cidrs {
        let (name, wanted) = (name.into(), pod_cidrs.to_vec());
        return Err(Error::PodNetwork {
            name,
            actual,
            wanted,
        });
    }
    Ok(patch
        .as_object()
        .is_some_and(|fields| !fields.is_empty())
        .then_some(patch))
}

fn conditions(node: &Node) -> &[NodeCondition] {
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    conditions.unwrap_or_default()
}

/// What the node is short of, so that it takes no pods and evicts others; with what
/// to do.
pub(crate) fn pressure(node: &Node) -> Vec<String> {
    let short = conditions(node).iter().filter(|c| c.status == "True");
    let told = short.filter_map(|condition| {
        let (what, remedy) = match condition.type_.as_str() {
            "DiskPressure" => ("room on its disk", "make some below the state directory"),
            "MemoryPressure" => ("memory", "move work to other nodes, or add some"),
            "PIDPressure" => ("process ids", "end what starts so many processes"),
            _ => return None,
        };
        Some(format!(
            "too little {what} ({}), so that it evicts pods and takes no new ones; {remedy}",
            condition.type_
        ))
    });
    told.collect()
}

/// Whether the node is ready, and why not.
pub(crate) fn readiness(node: &Node) -> Result<(), String> {
    let ready = conditions(node).iter().find(|c| c.type_ == "Ready");
    match ready {
        Some(condition) if condition.status == "True" => Ok(()),
        Some(condition) => {
            let reason = condition.reason.as_deref().unwrap_or("unknown reason");
            match condition
                .message
                .as_deref()
                .filter(|message| !message.is_empty())
            {
                Some(message) => Err(format!("{reason}: {message}")),
                None => Err(reason.into()),
            }
        }
        None => Err("the kubelet has not registered".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("role".to_owned(), text.to_owned())])
    }

    #[test]
    fn existing_nodes_are_changed_only_where_they_differ() {
        let cidrs = ["10.244.0.0/24".to_owned()];
        let node = planned("n", &labels("a"), &[], &cidrs);
        assert_eq!(
            node.spec.as_ref().unwrap().pod_cidr.as_deref(),
            Some("10.244.0.0/24")
        );
        assert_eq!(
            difference("n", &node, &labels("a"), &[], &cidrs).unwrap(),
            None
        );
        assert_eq!(
            difference("n", &node, &labels("b"), &[], &cidrs).unwrap(),
            Some(json!({ "metadata": { "labels": { "role": "b" } } }))
        );
        let bare = planned("n", &labels("a"), &[], &[]);
        assert_eq!(
            difference("n", &bare, &labels("a"), &[], &cidrs).unwrap(),
            Some(json!({ "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs } }))
        );
        let error = difference("n", &node, &labels("a"), &[], &["10.0.0.0/24".into()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "node n exists with pod network [\"10.244.0.0/24\"] instead of [\"10.0.0.0/24\"]"
        );
    }

    #[test]
    fn taints_of_others_stay() {
        let taint = |key, value| taint(key, value, "NoSchedule");
        let node = planned(
            "n",
            &labels("a"),
            &[taint("theirs", "1"), taint("ours", "1")],
            &[],
        );
        let patch = |taints: &[Taint]| difference("n", &node, &labels("a"), taints, &[]).unwrap();
        assert_eq!(patch(&[taint("ours", "1")]), None);
        let changed = patch(&[taint("ours", "2"), taint("new", "3")]).unwrap();
        let pairs: Vec<_> = changed["spec"]["taints"]
            .as_array()
            .unwrap()
            .iter()
            .collect();
        let expected = [("theirs", "1"), ("ours", "2"), ("new", "3")];
        assert_eq!(pairs.len(), expected.len());
        for (found, (key, value)) in pairs.iter().zip(expected) {
            assert_eq!(
                (&found["key"], &found["value"]),
                (&json!(key), &json!(value))
            );
        }
    }

    #[test]
    fn nodes_tell_why_they_are_not_ready() {
        let node = |conditions: Value| -> Node {
            serde_json::from_value(json!({ "status": { "conditions": conditions } })).unwrap()
        };
        assert_eq!(
            readiness(&node(json!([{"type": "Ready", "status": "True"}]))),
            Ok(())
        );
        let waiting = json!([
            {"type": "DiskPressure", "status": "True"},
            {"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": "no CNI"},
        ]);
        assert_eq!(
            readiness(&node(waiting)),
            Err("KubeletNotReady: no CNI".into())
        );
        assert_eq!(
            readiness(&Node::default()),
            Err("the kubelet has not registered".into())
        );
    }

    #[test]
    fn nodes_tell_what_they_are_short_of() {
        let node = |conditions: Value| -> Node {
            serde_json::from_value(json!({ "status": { "conditions": conditions } })).unwrap()
        };
        let short = node(json!([
            {"type": "MemoryPressure", "status": "False"},
            {"type": "DiskPressure", "status": "True"},
            {"type": "NetworkUnavailable", "status": "True"},
            {"type": "Ready", "status": "True"},
        ]));
        let told = pressure(&short);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("too little room on its disk (DiskPressure)"));
        assert_eq!(pressure(&Node::default()), Vec::<String>::new());
    }
}
