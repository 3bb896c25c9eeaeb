//! What hooks may do: everything, for as long as the operation runs.
//!
//! In: an operation and a namespace. Out: a service account bound to
//! cluster-admin; and its end, with that of the values of its hooks, also where the
//! operation was killed. Always holds: what a Job without an end uses stays, but for
//! [`Client::revoke_hooks`].

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, ObjectMeta, PostParams, Preconditions,
};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::run::end;
use super::values::VALUES_SECRET;
use super::{OPERATION_LABEL, SERVICE_ACCOUNT, service_account};
use crate::client::{Client, DEADLINE, Error, is_conflict, retry, unless_missing, unless_there};

/// Annotation of what hooks are allowed by: the time until which it stays, whether
/// a Job uses it or not.
pub(super) const UNTIL: &str = "gravitational.io/until";

/// How long that is. Between giving rights and making the Job lie a few requests,
/// each of which is tried again for a while, and at worst the removal of a former
/// Job; and the clocks of two masters differ.
const KEPT: SignedDuration = SignedDuration::from_mins(20);

/// What is being done, in errors.
const REVOKING: &str = "deleting the hooks' service accounts";

impl Client {
    /// Creates a namespace that doesn't exist; an existing one stays as it is.
    pub(super) async fn ensure_namespace(&self, name: &str) -> Result<(), Error> {
        let api: Api<Namespace> = Api::all(self.0.clone());
        let what = format!("creating namespace {name}");
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.into()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let params = PostParams::default();
        retry(&what, DEADLINE, || async {
            unless_there(api.create(&params, &namespace).await)
        })
        .await
        .map(drop)
    }

    /// Ends what the hooks of an operation were allowed: deletes their service
    /// accounts and bindings, and their copies of the values. Deleting what is gone already is success.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn revoke_hooks(&self, operation_id: &str) -> Result<(), Error> {
        let labels = format!("{OPERATION_LABEL}={operation_id}");
        for right in self.rights(&labels).await? {
            right.end(&DeleteParams::default()).await?;
        }
        Ok(())
    }

    /// Ends what hooks were allowed whose operation was killed before it could do
    /// so: where [`UNTIL`] has passed and no Job of the operation is without an end.
    /// An operation that goes on later allows its hooks anew. Returns how many
    /// objects were deleted.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn revoke_forgotten_hooks(&self, now: Timestamp) -> Result<usize, Error> {
        let mut forgotten = self.rights(OPERATION_LABEL).await?;
        forgotten.retain(|right| is_over(&right.object, now));
        if forgotten.is_empty() {
            return Ok(0);
        }
        let jobs: Api<Job> = Api::all(self.0.clone());
        let params = ListParams::default().labels(OPERATION_LABEL);
        let jobs = self
            .list("listing the jobs of hooks", &jobs, params)
            .await?;
        let running = jobs.iter().filter(|job| end(job).is_none());
        let running: BTreeSet<_> = running.filter_map(|job| operation(&job.metadata)).collect();
        let mut count = 0;
        for right in &forgotten {
            if operation(&right.object.metadata).is_some_and(|id| running.contains(id)) {
                continue;
            }
            // Not what was allowed anew since it was read.
            let as_read = DeleteParams::default().preconditions(Preconditions {
                resource_version: right.object.resource_version(),
                uid: None,
            });
            count += usize::from(right.end(&as_read).await?);
        }
        Ok(count)
    }

    /// What hooks are allowed by objects with these labels; the bindings come first,
    /// as nothing is allowed without them.
    async fn rights(&self, labels: &str) -> Result<Vec<Right>, Error> {
        let params = ListParams::default().labels(labels);
        let kinds = [
            (
                ApiResource::erase::<ClusterRoleBinding>(&()),
                SERVICE_ACCOUNT,
            ),
            (ApiResource::erase::<ServiceAccount>(&()), SERVICE_ACCOUNT),
            (ApiResource::erase::<Secret>(&()), VALUES_SECRET),
        ];
        let mut rights = Vec::new();
        for (kind, ours) in kinds {
            let all: Api<DynamicObject> = Api::all_with(self.0.clone(), &kind);
            for object in self.list(REVOKING, &all, params.clone()).await? {
                if !object.name_any().starts_with(ours) {
                    continue;
                }
                let api = match object.namespace() {
                    Some(namespace) => Api::namespaced_with(self.0.clone(), &namespace, &kind),
                    None => all.clone(),
                };
                rights.push(Right { api, object });
            }
        }
        Ok(rights)
    }

    /// Lets the hooks of an operation in a namespace do everything.
    pub(super) async fn allow_hooks(
        &self,
        operation_id: &str,
        namespace: &str,
    ) -> Result<(), Error> {
        self.ensure_namespace(namespace).await?;
        self.apply(&objects(operation_id, namespace, &until()))
            .await
    }
}

/// Until when rights that are given now are not taken by anybody else.
pub(super) fn until() -> String {
    (Timestamp::now() + KEPT).to_string()
}

/// Whether nobody needs an object any more, unless a Job runs.
fn is_over(object: &DynamicObject, now: Timestamp) -> bool {
    let until = object.annotations().get(UNTIL);
    until
        .and_then(|until| until.parse::<Timestamp>().ok())
        .is_some_and(|until| until < now)
}

/// The operation that made an object.
fn operation(metadata: &ObjectMeta) -> Option<&str> {
    let labels = metadata.labels.as_ref()?;
    labels.get(OPERATION_LABEL).map(String::as_str)
}

/// An object that allows hooks something.
struct Right {
    api: Api<DynamicObject>,
    object: DynamicObject,
}

impl Right {
    /// Deletes it. Whether it was there, as `params` want it.
    async fn end(&self, params: &DeleteParams) -> Result<bool, Error> {
        let name = self.object.name_any();
        retry(REVOKING, DEADLINE, || async {
            match unless_missing(self.api.delete(&name, params).await) {
                Err(error) if params.preconditions.is_some() && is_conflict(&error) => Ok(false),
                answer => answer,
            }
        })
        .await
    }
}

fn objects(operation_id: &str, namespace: &str, until: &str) -> Vec<Value> {
    let account = service_account(operation_id);
    let annotations = json!({ UNTIL: until });
    vec![
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                "name": account,
                "namespace": namespace,
                "labels": { OPERATION_LABEL: operation_id },
                "annotations": annotations,
            },
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {
                "name": format!("{account}-{namespace}"),
                "labels": { OPERATION_LABEL: operation_id },
                "annotations": annotations,
            },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "cluster-admin",
            },
            "subjects": [
                { "kind": "ServiceAccount", "name": account, "namespace": namespace },
            ],
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_over_when_their_time_has_passed_and_not_before() {
        let now = Timestamp::now();
        let ends = now + KEPT;
        for object in objects("5f6a", "shop", &ends.to_string()) {
            let object: DynamicObject = serde_json::from_value(object).unwrap();
            assert!(!is_over(&object, now));
            assert!(!is_over(&object, ends));
            assert!(is_over(&object, ends + SignedDuration::from_secs(1)));
            assert_eq!(operation(&object.metadata), Some("5f6a"));
        }
        let mut other = DynamicObject::new("x", &ApiResource::erase::<Secret>(&()));
        assert!(!is_over(&other, ends + KEPT));
        other
            .annotations_mut()
            .insert(UNTIL.into(), "tomorrow".into());
        assert!(!is_over(&other, ends + KEPT));
    }
}
