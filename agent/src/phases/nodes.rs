//! Waits until the nodes of a flavor have joined and are ready.

use std::collections::BTreeMap;
use std::time::Duration;

use event::{Event, NodeState, Sink};
use operation::PhaseError;
use spec::ClusterSpec;
use spec::phase::Nodes;
use tokio::time::{Instant, sleep};

use crate::Node;
use crate::node::{lasting, transient};

/// People bring them: as long as the tokens that are made for it are good.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// How often it is looked who is there.
const PAUSE: Duration = Duration::from_secs(2);

pub(crate) async fn execute(node: &Node, phase: &Nodes, sink: &dyn Sink) -> Result<(), PhaseError> {
    let client = node.kubernetes().await?;
    let end = Instant::now() + PATIENCE;
    let mut told = String::new();
    let mut shown = BTreeMap::new();
    loop {
        let nodes = nodes(&client).await?;
        for event in changes(&mut shown, &nodes) {
            sink.emit(event);
        }
        let ready = nodes.iter().filter(|node| node.state == NodeState::Ready);
        let missing = phase.missing(ready.map(|node| node.profile.as_str()));
        if missing.is_empty() {
            sink.info("All nodes of the flavor have joined");
            return Ok(());
        }
        let waiting = text(&missing);
        if Instant::now() > end {
            return Err(PhaseError::transient(waiting));
        }
        if waiting != told {
            sink.info(&waiting);
            told = waiting;
        }
        sleep(PAUSE).await;
    }
}

/// One of the cluster's nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    name: String,
    address: String,
    profile: String,
    state: NodeState,
}

impl Seen {
    fn event(self) -> Event {
        Event::Node {
            name: self.name,
            address: self.address,
            profile: self.profile,
            state: self.state,
        }
    }
}

/// What differs from what was shown, which becomes what there is.
fn changes(shown: &mut BTreeMap<String, Seen>, nodes: &[Seen]) -> Vec<Event> {
    let now: BTreeMap<_, _> = nodes
        .iter()
        .map(|node| (node.name.clone(), node.clone()))
        .collect();
    let before = std::mem::replace(shown, now);
    let gone = before
        .values()
        .filter(|node| !shown.contains_key(&node.name));
    let gone = gone.map(|node| Seen {
        state: NodeState::Gone,
        ..node.clone()
    });
    let changed = shown
        .values()
        .filter(|node| before.get(&node.name) != Some(node));
    gone.chain(changed.cloned()).map(Seen::event).collect()
}

/// The nodes that the cluster knows, and how far they are.
async fn nodes(client: &cluster::Client) -> Result<Vec<Seen>, PhaseError> {
    let read = client.description().await.map_err(transient)?;
    let cluster: ClusterSpec = serde_json::from_str(&read.text).map_err(lasting)?;
    let known = client.nodes().await.map_err(transient)?;
    let state = |name: &str| match known.iter().find(|node| node.name == name) {
        Some(node) if node.ready => NodeState::Ready,
        Some(_) => NodeState::Starting,
        None => NodeState::Joining,
    };
    let seen = cluster.nodes.into_iter().map(|node| Seen {
        state: state(&node.hostname),
        name: node.hostname,
        address: node
            .advertise_addresses
            .first()
            .map(ToString::to_string)
            .unwrap_or_default(),
        profile: node.profile,
    });
    Ok(seen.collect())
}

fn text(missing: &BTreeMap<&str, u32>) -> String {
    let nodes: u32 = missing.values().sum();
    let each: Vec<_> = missing
        .iter()
        .map(|(profile, count)| format!("{count} of profile {profile}"))
        .collect();
    let s = if nodes == 1 { "" } else { "s" };
    format!(
        "Waiting for {nodes} more node{s} to join: {}",
        each.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_told_once() {
        let node = |name: &str, state| Seen {
            name: name.into(),
            address: "10.0.0.2".into(),
            profile: "db".into(),
            state,
        };
        let mut shown = BTreeMap::new();
        let mut told = |nodes: &[Seen]| -> Vec<(String, NodeState)> {
            let events = changes(&mut shown, nodes).into_iter();
            let pair = |event| match event {
                Event::Node { name, state, .. } => (name, state),
                other => panic!("{other:?}"),
            };
            events.map(pair).collect()
        };
        let pair = |name: &str, state| (name.to_owned(), state);
        let one = [node("a", NodeState::Ready)];
        let two = |state| node("b", state);
        assert_eq!(told(&one), [pair("a", NodeState::Ready)]);
        assert_eq!(told(&one), []);
        let joining = [one[0].clone(), two(NodeState::Joining)];
        assert_eq!(told(&joining), [pair("b", NodeState::Joining)]);
        let starting = [one[0].clone(), two(NodeState::Starting)];
        assert_eq!(told(&starting), [pair("b", NodeState::Starting)]);
        assert_eq!(told(&one), [pair("b", NodeState::Gone)]);
    }

    #[test]
    fn nodes_are_waited_for_by_profile_and_more_are_fine() {
        let phase = Nodes {
            wanted: BTreeMap::from([("db".to_owned(), 2), ("web".to_owned(), 3)]),
        };
        let missing = |there: &[&'static str]| text(&phase.missing(there.iter().copied()));
        assert_eq!(
            missing(&["web"]),
            "Waiting for 4 more nodes to join: 2 of profile db, 2 of profile web"
        );
        assert_eq!(
            missing(&["web", "web", "web", "web", "db"]),
            "Waiting for 1 more node to join: 1 of profile db"
        );
        assert!(
            phase
                .missing(["web", "db", "web", "web", "db", "x"].into_iter())
                .is_empty()
        );
    }
}
