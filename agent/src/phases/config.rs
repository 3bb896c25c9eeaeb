//! Applies the resources that the user gave to the install.

use operation::PhaseError;
use serde_json::Value;
use spec::phase::Config;

use crate::Node;
use crate::node::{file, lasting, transient};

pub(crate) async fn execute(node: &Node, phase: Config) -> Result<(), PhaseError> {
    let objects = objects(node, &phase)?;
    let client = node.kubernetes().await?;
    client.apply(&objects).await.map_err(transient)
}

/// The resources that are Kubernetes': Gravity's own are in the plan since it was made.
pub(super) fn objects(node: &Node, phase: &Config) -> Result<Vec<Value>, PhaseError> {
    let operation = node.layout().operations().join(&phase.operation);
    let path = operation.join(&phase.file);
    let text = std::fs::read_to_string(&path).map_err(file("read", &path))?;
    let mut objects = cluster::documents(&text).map_err(lasting)?;
    objects.retain(|object| !cluster::is_of_gravity(object));
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use spec::layout::Layout;

    use super::*;

    #[test]
    fn resources_of_gravity_are_neither_applied_nor_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::open(Layout::new(directory.path())).unwrap();
        let phase = Config {
            operation: "1".into(),
            file: "config.yaml".into(),
        };
        let operation = node.layout().operations().join("1");
        std::fs::create_dir_all(&operation).unwrap();
        let text = "kind: ClusterConfiguration\nversion: v1\nspec: {}\n---\n\
                    apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: b}\n";
        let path = operation.join("config.yaml");
        host::atomic::write(&path, text.as_bytes(), 0o600).unwrap();
        let objects = objects(&node, &phase).unwrap();
        let kinds: Vec<_> = objects.iter().map(|object| &object["kind"]).collect();
        assert_eq!(kinds, ["ConfigMap"]);
    }
}
