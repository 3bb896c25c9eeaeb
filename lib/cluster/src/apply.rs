//! Applies objects of any kind.
//!
//! In: objects as data, or YAML documents. Out: the cluster has them. It is a
//! server-side apply with one field manager, so applying twice changes nothing,
//! and fields that others own stay theirs unless the objects name them.

use std::collections::HashMap;

use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{self, Scope};
use kube::{Api, Error as KubeError};
use serde_json::Value;

use crate::client::{Client, DEADLINE, Error, is_missing, retry};

/// The field manager of all that we apply.
pub(crate) const MANAGER: &str = "gravity";

/// Most text that is read as objects, in bytes. etcd takes 1.5 MB an object.
const MAX_TEXT: usize = 16 << 20;

/// The objects of a YAML or JSON text with any number of documents; lists are
/// taken apart, empty documents left out.
///
/// # Errors
/// When the text isn't YAML; with line and column.
pub fn documents(text: &str) -> Result<Vec<Value>, Error> {
    if text.len() > MAX_TEXT {
        return Err(Error::Yaml(format!(
            "{} bytes, more than {MAX_TEXT}",
            text.len()
        )));
    }
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| Error::Yaml(error.to_string()))?;
    let mut objects = Vec::new();
    for mut document in documents {
        let is_list = document["kind"]
            .as_str()
            .is_some_and(|kind| kind.ends_with("List"));
        match document.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) if is_list => objects.extend(items),
            Some(items) => {
                document["items"] = items;
                objects.push(document);
            }
            None => objects.push(document),
        }
    }
    Ok(objects)
}

/// Whether a document is a resource of Gravity: it has a version, but no API's.
pub fn is_of_gravity(document: &Value) -> bool {
    document["apiVersion"].is_null() && document["version"].is_string()
}

/// What an object is called in messages, and what finds its API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
}

impl Identity {
    pub(crate) fn of(object: &Value) -> Result<Self, Error> {
        let field = |value: &Value| value.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
        let name = field(&object["metadata"]["name"]);
        let kind = field(&object["kind"]);
        let known = format!(
            "{} \"{}\"",
            kind.as_deref().unwrap_or("of unknown kind"),
            name.as_deref().unwrap_or_default()
        );
        let missing = |field| Error::Incomplete {
            object: known.clone(),
            field,
        };
        Ok(Self {
            api_version: field(&object["apiVersion"]).ok_or_else(|| missing("apiVersion"))?,
            kind: kind.ok_or_else(|| missing("kind"))?,
            name: name.ok_or_else(|| missing("metadata.name"))?,
            namespace: field(&object["metadata"]["namespace"]),
        })
    }

    pub(crate) fn gvk(&self) -> GroupVersionKind {
        let (group, version) = self
            .api_version
            .split_once('/')
            .unwrap_or(("", &self.api_version));
        GroupVersionKind::gvk(group, version, &self.kind)
    }

    pub(crate) fn describe(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{} \"{namespace}/{}\"", self.kind, self.name),
            None => format!("{} \"{}\"", self.kind, self.name),
        }
    }

    /// What others may need comes first; otherwise the given order stays.
    fn rank(&self) -> u8 {
        match self.kind.as_str() {
            "Namespace" => 0,
            "CustomResourceDefinition" => 1,
            _ => 2,
        }
    }
}

/// Whether a failed request is worth making again while `apply` waits.
fn missing_namespace(error: &KubeError) -> bool {
    matches!(error, KubeError::Api(status)
        if status.code == 404 && status.details.as_ref().is_some_and(|d| d.kind == "namespaces"))
}

impl Client {
    /// Applies objects of any kind that the cluster knows: namespaces first,
    /// then custom resource definitions, then the others in order.
    ///
    /// # Errors
    /// When an object isn't one, its kind is unknown, or the API refuses it.
    /// Objects before it have been applied.
    pub async fn apply(&self, objects: &[Value]) -> Result<(), Error> {
        let mut order = Vec::new();
        for object in objects {
            order.push((Identity::of(object)?, object));
        }
        order.sort_by_key(|(identity, _)| identity.rank());
        let defines = order.iter().any(|(identity, _)| identity.rank() == 1);
        let mut kinds = HashMap::new();
        for (identity, object) in order {
            let gvk = identity.gvk();
            if !kinds.contains_key(&gvk) {
                let found = self.kind(&identity, &gvk, defines).await?;
                kinds.insert(gvk.clone(), found);
            }
            if let Some((resource, scope)) = kinds.get(&gvk) {
                self.apply_one(&identity, object, resource, scope).await?;
            }
        }
        Ok(())
    }

    async fn apply_one(
        &self,
        identity: &Identity,
        object: &Value,
        resource: &ApiResource,
        scope: &Scope,
    ) -> Result<(), Error> {
        let what = format!("applying {}", identity.describe());
        let api = self.api(identity, resource, scope);
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(object);
        retry(&what, DEADLINE, || async {
            api.patch(&identity.name, &params, &patch).await
        })
        .await
        .map(drop)
    }

    /// The API of an object.
    pub(crate) fn api(
        &self,
        identity: &Identity,
        resource: &ApiResource,
        scope: &Scope,
    ) -> Api<DynamicObject> {
        match scope {
            Scope::Cluster => Api::all_with(self.0.clone(), resource),
            Scope::Namespaced => {
                let namespace = identity.namespace.as_deref().unwrap_or("default");
                Api::namespaced_with(self.0.clone(), namespace, resource)
            }
        }
    }

    /// Finds the API of a kind. Where the same objects define kinds, a kind may
    /// take a moment to appear.
    pub(crate) async fn kind(
        &self,
        identity: &Identity,
        gvk: &GroupVersionKind,
        wait: bool,
    ) -> Result<(ApiResource, Scope), Error> {
        let what = format!("looking up kind {} of {}", gvk.kind, identity.api_version);
        let end = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let found = retry(&what, DEADLINE, || async {
                match discovery::pinned_kind(&self.0, gvk).await {
                    Ok((resource, capabilities)) => Ok(Some((resource, capabilities.scope))),
                    Err(KubeError::Discovery(_)) => Ok(None),
                    Err(error) if is_missing(&error) && !missing_namespace(&error) => Ok(None),
                    Err(error) => Err(error),
                }
            });
            if let Some(found) = found.await? {
                return Ok(found);
            }
            if !wait || tokio::time::Instant::now() > end {
                return Err(Error::UnknownKind {
                    object: identity.describe(),
                    kind: identity.kind.clone(),
                    api_version: identity.api_version.clone(),
                });
            }
            tokio::time::sleep(std::time::Duration::from_millis(250)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_taken_apart() {
        let text = "\
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- {apiVersion: v1, kind: Secret, metadata: {name: b, namespace: a}}
---
# nothing
---
apiVersion: example.com/v1
kind: Basket
metadata: {name: c}
items: [apple]
";
        let objects = documents(text).unwrap();
        let names: Vec<_> = objects
            .iter()
            .map(|o| Identity::of(o).unwrap().describe())
            .collect();
        assert_eq!(names, ["Namespace \"a\"", "Secret \"a/b\"", "Basket \"c\""]);
        assert_eq!(objects[2]["items"][0], "apple");
        let node = r#"{"kind":"Node"}"#;
        assert_eq!(documents(node).unwrap()[0].to_string(), node);
        assert_eq!(documents("").unwrap().len(), 0);
    }

    #[test]
    fn bad_documents_are_refused() {
        let error = documents("a: b\nc: [").unwrap_err().to_string();
        assert!(error.contains("line"), "{error}");
        let object = serde_json::json!({"kind": "Secret", "metadata": {"name": "b"}});
        assert_eq!(
            Identity::of(&object).unwrap_err().to_string(),
            "Kubernetes object Secret \"b\" has no apiVersion"
        );
        assert!(Identity::of(&Value::String("text".into())).is_err());
    }

    #[test]
    fn kinds_are_found_by_group_and_version() {
        let object = serde_json::json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"},
        });
        let gvk = Identity::of(&object).unwrap().gvk();
        assert_eq!((gvk.group.as_str(), gvk.version.as_str()), ("apps", "v1"));
    }
}
