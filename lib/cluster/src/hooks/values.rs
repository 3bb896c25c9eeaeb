//! Helm values for hooks: what the customer gave to the install.
//!
//! In: values as YAML, which the install keeps as a Secret of `kube-system`.
//! Out: a copy beside each hook's Job, as pods see Secrets of their own namespace
//! alone; and its end, with the hooks' rights. It holds an empty mapping where
//! nothing was given, so a hook may count on the file.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::ObjectMeta;
use serde_json::Value;

use super::access::{UNTIL, until};
use super::{DEFAULT_NAMESPACE, OPERATION_LABEL, short_hash};
use crate::client::{Client, DEADLINE, Error, request, retry};

/// Name of the Secret that the install keeps.
pub(super) const VALUES_SECRET: &str = "gravity-helm-values";
/// Name of the file in it.
const FILE: &str = "values.yaml";
/// What hooks see where nothing was given.
const NOTHING: &[u8] = b"{}\n";

/// The Secret that keeps `yaml` in the cluster.
pub fn values_secret(yaml: &str) -> Secret {
    secret(
        VALUES_SECRET.into(),
        DEFAULT_NAMESPACE,
        yaml.as_bytes().to_vec(),
    )
}

fn secret(name: String, namespace: &str, yaml: Vec<u8>) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(FILE.into(), ByteString(yaml))])),
        ..Secret::default()
    }
}

/// Name of the copy for the hooks of an operation: operations that overlap don't
/// end each other's.
pub(super) fn copy_name(operation_id: &str) -> String {
    format!("{VALUES_SECRET}-{}", short_hash(operation_id))
}

fn copy(operation_id: &str, namespace: &str, kept: Option<Secret>) -> Secret {
    let yaml = kept
        .and_then(|kept| kept.data?.remove(FILE))
        .map_or_else(|| NOTHING.to_vec(), |yaml| yaml.0);
    let mut copy = secret(copy_name(operation_id), namespace, yaml);
    copy.metadata.labels = Some(BTreeMap::from([(
        OPERATION_LABEL.into(),
        operation_id.into(),
    )]));
    copy.metadata.annotations = Some(BTreeMap::from([(UNTIL.into(), until())]));
    copy
}

impl Client {
    /// Gives the hooks of an operation in a namespace, which exists, the values
    /// of the install.
    pub(super) async fn give_values(
        &self,
        operation_id: &str,
        namespace: &str,
    ) -> Result<(), Error> {
        let api: Api<Secret> = Api::namespaced(self.0.clone(), DEFAULT_NAMESPACE);
        let what = "reading the values of the install";
        let kept = retry(what, DEADLINE, || api.get_opt(VALUES_SECRET)).await?;
        let copy = object(&copy(operation_id, namespace, kept))?;
        self.apply(&[copy]).await
    }
}

fn object(secret: &Secret) -> Result<Value, Error> {
    serde_json::to_value(secret).map_err(|error| {
        request(
            "writing the values of hooks",
            kube::Error::SerdeError(error),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_get_what_was_given_or_an_empty_mapping() {
        let yaml = |kept| {
            let copy = object(&copy("5f6a", "shop", kept)).unwrap();
            assert_eq!(copy["kind"], "Secret");
            assert_eq!(copy["metadata"]["namespace"], "shop");
            assert_eq!(
                copy["metadata"]["labels"]["gravitational.io/operation"],
                "5f6a"
            );
            assert_eq!(copy["metadata"]["name"], copy_name("5f6a"));
            assert!(copy["metadata"]["annotations"][UNTIL].is_string());
            copy["data"][FILE].as_str().unwrap().to_owned()
        };
        // Base64 of "a: 1" and "{}\n".
        assert_eq!(yaml(Some(values_secret("a: 1"))), "YTogMQ==");
        assert_eq!(yaml(None), "e30K");
        // Somebody has emptied it.
        assert_eq!(yaml(Some(Secret::default())), "e30K");
        assert_ne!(copy_name("5f6a"), copy_name("5f6b"));
    }
}
