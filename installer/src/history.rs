//! What has happened to a cluster: nodes that came, went or failed, services
//! and the application that were down, and since when they are well again.
//!
//! In: nodes as Kubernetes and they themselves tell them, the last end of the
//! status hook. Out: changes, the oldest first, kept in Kubernetes. Always
//! holds: a change is written down once, however many masters see it; there are
//! never more than [`MOST`].

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use cluster::hooks::LastCheck;
use cluster::{Client, NodeStatus};
use futures::StreamExt;
use jiff::Timestamp;
use planet::client::ServiceStatus;
use rpc::controller::Refusal;
use serde::{Deserialize, Serialize};

use crate::controller;
use crate::services::OF_MASTERS;

/// Most changes that are kept: some 100 KB.
pub const MOST: usize = 500;
/// Longest reason that is kept, in bytes.
const MAX_REASON: usize = 200;
/// How often the status hook's end is looked at.
const LOOK: Duration = Duration::from_secs(30);
/// Changes that come together are written together.
const TOGETHER: Duration = Duration::from_secs(2);
/// How often a change that somebody else was faster with is made again.
const TRIES: usize = 10;
/// Subject of the application.
const STATUS_HOOK: &str = "status hook";
const READY: &str = "ready";

/// Why the history can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Kubernetes can't be spoken to.
    #[error(transparent)]
    Kubernetes(#[from] cluster::Error),
    /// What the cluster is can't be read.
    #[error(transparent)]
    Description(#[from] Refusal),
    /// What was kept is none.
    #[error("read the cluster's history")]
    Read(#[source] serde_json::Error),
}

/// How something is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `ready`, or what is wrong: `not ready`, `failed`, `gone` ...
    pub state: String,
    /// Why, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When it was seen.
    pub time: Timestamp,
    /// What has changed: `node n1`, `etcd on n1`, `status hook`.
    pub subject: String,
    /// How it is from then on.
    #[serde(flatten)]
    pub state: State,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct History {
    now: BTreeMap<String, State>,
    changes: Vec<Change>,
}

/// The changes of a cluster, the oldest first.
///
/// # Errors
/// When they can't be read.
pub async fn read(client: &Client) -> Result<Vec<Change>, Error> {
    Ok(parse(&client.history().await?.text)?.changes)
}

/// Writes down what changes, for ever.
pub(crate) async fn keep(client: &Client) {
    let mut lists = pin!(client.watch_nodes());
    let mut ticks = tokio::time::interval(LOOK);
    let mut nodes: Option<Vec<NodeStatus>> = None;
    let mut written = BTreeMap::new();
    loop {
        tokio::select! {
            list = lists.next() => nodes = list,
            _ = ticks.tick() => {}
        }
        tokio::time::sleep(TOGETHER).await;
        while let Some(Some(list)) = futures::FutureExt::now_or_never(lists.next()) {
            nodes = Some(list);
        }
        let Some(nodes) = &nodes else { continue };
        let kept = async {
            let masters = controller::description(client).await?.masters().count();
            let now = observe(nodes, masters, client.last_check().await?.as_ref());
            if now != written {
                write(client, &now).await?;
                written = now;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = kept.await {
            tracing::warn!(%error, "what has changed is written down later");
        }
    }
}

async fn write(client: &Client, now: &BTreeMap<String, State>) -> Result<(), Error> {
    for _ in 0..TRIES {
        let kept = client.history().await?;
        let mut history = parse(&kept.text).unwrap_or_else(|error| {
            tracing::warn!(%error, "the history begins anew");
            History::default()
        });
        if !history.take(now, Timestamp::now()) {
            return Ok(());
        }
        let text = serde_json::to_string(&history).map_err(Error::Read)?;
        if client.replace(kept, text).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// An empty text is no history yet.
fn parse(text: &str) -> Result<History, Error> {
    match text {
        "" => Ok(History::default()),
        text => serde_json::from_str(text).map_err(Error::Read),
    }
}

impl History {
    /// Goes from what was to what is. Whether anything has changed.
    fn take(&mut self, now: &BTreeMap<String, State>, time: Timestamp) -> bool {
        let changed = |(subject, state): &(&String, &State)| {
            let before = self.now.get(*subject).map(|before| &before.state);
            // What is well from its beginning is nothing to tell, but for nodes.
            match before {
                Some(before) => *before != state.state,
                None => state.state != READY || subject.starts_with("node "),
            }
        };
        let mut changes: Vec<_> = now
            .iter()
            .filter(changed)
            .map(|(subject, state)| (subject.clone(), state.clone()))
            .collect();
        let is_gone =
            |subject: &&String| !now.contains_key(*subject) && subject.starts_with("node ");
        changes.extend(self.now.keys().filter(is_gone).map(|subject| {
            let gone = State {
                state: "gone".into(),
                reason: None,
            };
            (subject.clone(), gone)
        }));
        let is_same = changes.is_empty() && self.now.keys().eq(now.keys());
        self.now.clone_from(now);
        let changes = changes.into_iter().map(|(subject, state)| Change {
            time,
            subject,
            state,
        });
        self.changes.extend(changes);
        let over = self.changes.len().saturating_sub(MOST);
        self.changes.drain(..over);
        !is_same
    }
}

/// How everything is: each node; the services of those that are ready, for who
/// isn't can't announce anything; the application. Of two masters one stands by,
/// without the services that only masters have: these are left out then.
fn observe(
    nodes: &[NodeStatus],
    masters: usize,
    check: Option<&LastCheck>,
) -> BTreeMap<String, State> {
    let told_of = |service: &ServiceStatus| masters != 2 || !OF_MASTERS.contains(&&*service.name);
    let mut now = BTreeMap::new();
    for node in nodes {
        let short = node.pressure.first();
        let state = match (node.ready, short) {
            (true, None) => READY,
            (true, Some(_)) => "short of resources",
            (false, _) => "not ready",
        };
        let reason = node.reason.as_ref().or(short);
        now.insert(
            format!("node {}", node.name),
            told(state, reason.map(String::as_str)),
        );
        // One of another version tells nothing that is understood.
        let services = node.services.as_deref();
        let services: Vec<ServiceStatus> = services
            .filter(|_| node.ready)
            .and_then(|json| serde_json::from_str(json).ok())
            .unwrap_or_default();
        for service in services.into_iter().filter(told_of) {
            let state = service.state.to_string();
            let reason = service.last_error.as_deref().filter(|_| state != READY);
            now.insert(
                format!("{} on {}", service.name, node.name),
                told(&state, reason),
            );
        }
    }
    if let Some(check) = check {
        let state = if check.passed { READY } else { "failed" };
        let reason = Some(check.message.as_str()).filter(|reason| !reason.is_empty());
        now.insert(STATUS_HOOK.into(), told(state, reason));
    }
    now
}

fn told(state: &str, reason: Option<&str>) -> State {
    State {
        state: state.into(),
        reason: reason.map(|reason| {
            let first = reason.lines().next().unwrap_or_default();
            first[..first.floor_char_boundary(MAX_REASON)].to_owned()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ready: bool, service: Option<&str>) -> NodeStatus {
        NodeStatus {
            name: name.into(),
            ready,
            reason: (!ready).then(|| "Kubelet stopped posting node status.".into()),
            pressure: Vec::new(),
            services: service.map(|state| {
                serde_json::json!([{
                    "name": "etcd", "state": state, "pid": 1, "restarts": 0, "since": 0,
                    "last_error": "exit code 1\nand more",
                }])
                .to_string()
            }),
        }
    }

    fn lines(history: &History) -> Vec<String> {
        let line = |change: &Change| {
            let State { state, reason } = &change.state;
            format!(
                "{}: {state} {}",
                change.subject,
                reason.as_deref().unwrap_or_default()
            )
        };
        history.changes.iter().map(line).collect()
    }

    #[test]
    fn nodes_and_services_come_fail_and_go() {
        let mut history = History::default();
        let mut time = Timestamp::from_second(1_700_000_000).unwrap();
        let mut take = |nodes: &[NodeStatus]| {
            time += jiff::SignedDuration::from_secs(1);
            history.take(&observe(nodes, 1, None), time)
        };
        assert!(take(&[node("a", true, Some("ready"))]));
        assert!(!take(&[node("a", true, Some("ready"))]), "told twice");
        assert!(take(&[
            node("a", true, Some("failed")),
            node("b", false, None)
        ]));
        // What a node announced before it failed says nothing any more.
        assert!(take(&[
            node("a", true, Some("ready")),
            node("b", true, None)
        ]));
        assert!(take(&[NodeStatus {
            pressure: vec!["too little memory".into()],
            ..node("a", true, Some("ready"))
        }]));
        assert!(take(&[node("a", false, Some("ready"))]));
        assert_eq!(
            lines(&history),
            [
                "node a: ready ",
                "etcd on a: failed exit code 1",
                "node b: not ready Kubelet stopped posting node status.",
                "etcd on a: ready ",
                "node b: ready ",
                "node a: short of resources too little memory",
                "node b: gone ",
                "node a: not ready Kubelet stopped posting node status.",
            ]
        );
        let text = serde_json::to_string(&history).unwrap();
        assert_eq!(parse(&text).unwrap().changes, history.changes);
        let standby = observe(&[node("a", true, Some("starting"))], 2, None);
        assert_eq!(standby.into_keys().collect::<Vec<_>>(), ["node a"]);
        assert!(parse("").unwrap().changes.is_empty());
        assert!(parse("[]").is_err());
    }

    #[test]
    fn only_the_youngest_changes_are_kept_and_reasons_are_short() {
        let mut history = History::default();
        for number in 0..=MOST {
            let check = LastCheck {
                passed: number % 2 == 1,
                message: "ä".repeat(300),
                time: Timestamp::UNIX_EPOCH,
            };
            let time = Timestamp::from_second(number as i64).unwrap();
            assert!(history.take(&observe(&[], 1, Some(&check)), time));
        }
        assert_eq!(history.changes.len(), MOST);
        assert_eq!(history.changes[0].time.as_second(), 1);
        let reason = history.changes[0].state.reason.clone().unwrap();
        assert!(reason.len() <= MAX_REASON, "{}", reason.len());
    }
}
