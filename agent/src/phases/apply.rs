//! Applies Kubernetes objects.

use operation::PhaseError;
use serde_json::Value;
use spec::phase::Apply;

use crate::Node;
use crate::node::transient;

pub(crate) async fn execute(node: &Node, phase: Apply) -> Result<(), PhaseError> {
    let client = node.kubernetes().await?;
    let applied = async {
        // Once it is there it changes with the nodes that come and go.
        let mut objects = phase.objects;
        if objects.iter().any(is_description) && client.has_description().await? {
            objects.retain(|object| !is_description(object));
        }
        client.apply(&objects).await
    };
    applied.await.map_err(transient)
}

/// Whether an object says what the cluster is.
fn is_description(object: &Value) -> bool {
    let is = |at: &str, wanted: &str| object.pointer(at).and_then(Value::as_str) == Some(wanted);
    is("/kind", "ConfigMap")
        && is("/metadata/namespace", "kube-system")
        && is("/metadata/name", cluster::DESCRIPTION)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_description_is_told_from_other_objects() {
        let object = |kind: &str, namespace: &str, name: &str| {
            let metadata = json!({ "namespace": namespace, "name": name });
            json!({ "apiVersion": "v1", "kind": kind, "metadata": metadata })
        };
        let description = object("ConfigMap", "kube-system", "gravity-cluster");
        assert!(is_description(&description));
        for other in [
            object("ConfigMap", "kube-system", "cluster-info"),
            object("ConfigMap", "default", "gravity-cluster"),
            object("Secret", "kube-system", "gravity-cluster"),
            json!({}),
        ] {
            assert!(!is_description(&other), "{other}");
        }
    }
}
