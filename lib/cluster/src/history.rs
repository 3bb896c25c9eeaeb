//! What has happened to a cluster, as it keeps it itself.
//!
//! In and out: text in a ConfigMap, and the nodes whenever something about them
//! changes. A change is made to what was read, or not at all.

use std::collections::BTreeMap;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::ObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};

use crate::client::{Client, DEADLINE, Error, retry};
use crate::membership::NAMESPACE;
use crate::status::{NodeStatus, node_status};

/// ConfigMap with the history.
const NAME: &str = "gravity-history";
/// Key in it.
const KEY: &str = "history.json";

/// A history as it was read.
#[derive(Debug, Clone)]
pub struct Kept {
    /// JSON; `None` where nothing was kept yet.
    pub text: Option<String>,
    map: ConfigMap,
}

impl Client {
    /// What has happened to the cluster.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn history(&self) -> Result<Kept, Error> {
        let api = self.maps();
        let what = "reading the cluster's history";
        let map = retry(what, DEADLINE, || api.get_opt(NAME)).await?;
        let map = map.unwrap_or_else(|| ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                namespace: Some(NAMESPACE.into()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        });
        let text = map.data.as_ref().and_then(|data| data.get(KEY)).cloned();
        Ok(Kept { text, map })
    }

    /// Replaces what was read; `false` where somebody else was faster.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn replace_history(&self, read: Kept, text: String) -> Result<bool, Error> {
        let mut map = read.map;
        map.data.get_or_insert_default().insert(KEY.into(), text);
        self.keep("keeping the cluster's history", &map).await
    }

    /// All nodes, now and after each change of one. It goes on for ever, also
    /// while the API can't be reached.
    pub fn watch_nodes(&self) -> impl Stream<Item = Vec<NodeStatus>> {
        let nodes: Api<Node> = Api::all(self.0.clone());
        let mut known = BTreeMap::new();
        let mut listed = BTreeMap::new();
        watcher::watcher(nodes, watcher::Config::default())
            .default_backoff()
            .filter_map(move |event| {
                let changed = match event {
                    Ok(watcher::Event::Init) => {
                        listed.clear();
                        false
                    }
                    Ok(watcher::Event::InitApply(node)) => {
                        listed.insert(node.name_any(), node_status(&node));
                        false
                    }
                    Ok(watcher::Event::InitDone) => {
                        known = std::mem::take(&mut listed);
                        true
                    }
                    Ok(watcher::Event::Apply(node)) => {
                        let status = node_status(&node);
                        known.insert(node.name_any(), status.clone()) != Some(status)
                    }
                    Ok(watcher::Event::Delete(node)) => known.remove(&node.name_any()).is_some(),
                    Err(error) => {
                        tracing::debug!(?error, "watching the cluster's nodes again");
                        false
                    }
                };
                let all = changed.then(|| known.values().cloned().collect());
                std::future::ready(all)
            })
    }
}
