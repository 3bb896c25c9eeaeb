//! What the other nodes of the cluster have logged.
//!
//! In: the cluster, asked with the rights of its administrator. Out: the ends of the
//! logs that each node's kubelet serves, of its services and pods, as files
//! `nodes/NAME/…`. Always holds: a node takes a bounded time and a bounded part of
//! the report, and one that doesn't answer is named.

use std::time::Duration;

use cluster::Client;
use jiff::Timestamp;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;

use super::{Found, is_told};

/// Of a longer log only this many bytes at its end are taken.
const MAX_LOG: u64 = 4 << 20;
/// Most bytes of one node.
const MAX_NODE: u64 = 64 << 20;
/// Most directories that are looked into: one of services, two for each pod.
const MAX_DIRECTORIES: usize = 500;
/// How long one node may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the names of the nodes may take.
const ANSWER: Duration = Duration::from_secs(20);

/// Sends files of all nodes but `here`, whose own ones are at hand.
pub(super) async fn collect(client: &Client, here: &str, since: Timestamp, files: &Sender<Found>) {
    let names = match timeout(ANSWER, client.nodes()).await {
        Ok(Ok(nodes)) => nodes.into_iter().map(|node| node.name),
        Ok(Err(error)) => return drop(files.send(Found::missing("nodes", error)).await),
        Err(_) => {
            let why = "the cluster did not say in time which there are";
            return drop(files.send(Found::missing("nodes", why)).await);
        }
    };
    for name in names.filter(|name| name != here) {
        let directory = format!("nodes/{name}");
        let why = match timeout(PATIENCE, node(client, &name, since, files)).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not complete after {} s", PATIENCE.as_secs()),
        };
        drop(files.send(Found::missing(&directory, why)).await);
    }
}

/// Sends files of one node; the error of the first request, when it doesn't answer.
async fn node(
    client: &Client,
    name: &str,
    since: Timestamp,
    files: &Sender<Found>,
) -> Result<(), cluster::Error> {
    let mut left = MAX_NODE;
    for path in logs(client, name).await? {
        let file = format!("nodes/{name}/{path}");
        let text = match client.node_log(name, &path, MAX_LOG.min(left), since).await {
            Ok(text) if text.is_empty() => continue,
            Ok(text) => text,
            Err(error) => {
                drop(files.send(Found::missing(&file, error)).await);
                continue;
            }
        };
        left = left.saturating_sub(text.len() as u64);
        drop(files.send(Found::text(&file, text)).await);
        if left == 0 {
            let why = format!("more than {} MiB; {path} is the last", MAX_NODE >> 20);
            drop(
                files
                    .send(Found::missing(&format!("nodes/{name}"), why))
                    .await,
            );
            break;
        }
    }
    Ok(())
}

/// Logs of services, then those of pods. The audit log stays where it is.
async fn logs(client: &Client, node: &str) -> Result<Vec<String>, cluster::Error> {
    let mut found = client.node_log_names(node, "planet/").await?;
    found.retain(|name| is_told(name.as_ref()));
    let mut found: Vec<_> = found.iter().map(|name| format!("planet/{name}")).collect();
    let mut directories = vec!["pods/".to_owned()];
    let mut looked = 0;
    while let Some(directory) = directories.pop().filter(|_| looked < MAX_DIRECTORIES) {
        looked += 1;
        // A pod may have gone meanwhile, and a node may have had none yet.
        for name in client
            .node_log_names(node, &directory)
            .await
            .unwrap_or_default()
        {
            let path = format!("{directory}{name}");
            match name.ends_with('/') {
                true => directories.push(path),
                false if is_told(name.as_ref()) => found.push(path),
                false => {}
            }
        }
    }
    Ok(found)
}
