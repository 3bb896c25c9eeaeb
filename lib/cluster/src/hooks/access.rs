//! What hooks may do: everything, for as long as the operation runs.
//!
//! In: an operation and a namespace. Out: a service account bound to
//! cluster-admin; and its end, with that of the values of its hooks.

use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::values::VALUES_SECRET;
use super::{OPERATION_LABEL, SERVICE_ACCOUNT, service_account};
use crate::client::{Client, DEADLINE, Error, is_conflict, retry};
use crate::delete::gone;

impl Client {
    /// Creates a namespace that doesn't exist; an existing one stays as it is.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn ensure_namespace(&self, name: &str) -> Result<(), Error> {
        let api: Api<Namespace> = Api::all(self.0.clone());
        let what = format!("creating namespace {name}");
        let namespace = Namespace {
            metadata: kube::api::ObjectMeta {
                name: Some(name.into()),
                ..kube::api::ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let params = PostParams::default();
        retry(&what, DEADLINE, || async {
            match api.create(&params, &namespace).await {
                Ok(_) => Ok(()),
                Err(error) if is_conflict(&error) => Ok(()),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Ends what the hooks of an operation were allowed: deletes their service
    /// accounts and bindings, and their copies of the values. Deleting what is gone already is success.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn revoke_hooks(&self, operation_id: &str) -> Result<(), Error> {
        let params = ListParams::default().labels(&format!("{OPERATION_LABEL}={operation_id}"));
        let bindings: Api<ClusterRoleBinding> = Api::all(self.0.clone());
        let what = "deleting the hooks' service accounts";
        let delete = DeleteParams::default();
        for binding in self.list(what, &bindings, params.clone()).await? {
            let name = binding.name_any();
            if name.starts_with(SERVICE_ACCOUNT) {
                retry(what, DEADLINE, || async {
                    gone(bindings.delete(&name, &delete).await.map(drop))
                })
                .await?;
            }
        }
        let accounts: Api<ServiceAccount> = Api::all(self.0.clone());
        for account in self.list(what, &accounts, params.clone()).await? {
            let (name, namespace) = (account.name_any(), account.namespace().unwrap_or_default());
            let accounts: Api<ServiceAccount> = Api::namespaced(self.0.clone(), &namespace);
            if name.starts_with(SERVICE_ACCOUNT) {
                retry(what, DEADLINE, || async {
                    gone(accounts.delete(&name, &delete).await.map(drop))
                })
                .await?;
            }
        }
        let secrets: Api<Secret> = Api::all(self.0.clone());
        for secret in self.list(what, &secrets, params).await? {
            let (name, namespace) = (secret.name_any(), secret.namespace().unwrap_or_default());
            let secrets: Api<Secret> = Api::namespaced(self.0.clone(), &namespace);
            if name.starts_with(VALUES_SECRET) {
                retry(what, DEADLINE, || async {
                    gone(secrets.delete(&name, &delete).await.map(drop))
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Lets the hooks of an operation in a namespace do everything.
    pub(super) async fn allow_hooks(
        &self,
        operation_id: &str,
        namespace: &str,
    ) -> Result<(), Error> {
        self.ensure_namespace(namespace).await?;
        self.apply(&objects(operation_id, namespace)).await
    }
}

fn objects(operation_id: &str, namespace: &str) -> Vec<Value> {
    let account = service_account(operation_id);
    vec![
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                "name": account,
                "namespace": namespace,
                "labels": { OPERATION_LABEL: operation_id },
            },
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {
                "name": format!("{account}-{namespace}"),
                "labels": { OPERATION_LABEL: operation_id },
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
