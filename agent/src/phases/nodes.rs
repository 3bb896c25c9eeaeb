//! Waits until the nodes of a flavor have joined and are ready.

use std::collections::BTreeMap;
use std::time::Duration;

use event::Sink;
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
    loop {
        let ready = profiles(&client).await?;
        let missing = phase.missing(ready.iter().map(String::as_str));
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

/// Profiles of the nodes that are ready.
async fn profiles(client: &cluster::Client) -> Result<Vec<String>, PhaseError> {
    let read = client
        .description()
        .await
        .map_err(|error| transient(&error))?;
    let cluster: ClusterSpec = serde_json::from_str(&read.text).map_err(|error| lasting(&error))?;
    let status = client.status().await.map_err(|error| transient(&error))?;
    let is_ready = |name: &str| {
        status
            .nodes
            .iter()
            .any(|node| node.ready && node.name == name)
    };
    let ready = cluster
        .nodes
        .into_iter()
        .filter(|node| is_ready(&node.hostname));
    Ok(ready.map(|node| node.profile).collect())
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
