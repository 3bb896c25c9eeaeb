//! Deletes objects of any kind.
//!
//! In: objects as data, of which only kind and name count; a hook's name. Out:
//! the cluster doesn't have them. What it never had is success.

use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use serde_json::Value;

use crate::apply::Identity;
use crate::client::{Client, DEADLINE, Error, is_missing, retry};
use crate::hooks::{HOOK_LABEL, OPERATION_LABEL};

impl Client {
    /// Deletes objects, the last one first, with what depends on them.
    ///
    /// # Errors
    /// When an object isn't one or the API refuses us.
    pub async fn delete(&self, objects: &[Value]) -> Result<(), Error> {
        for object in objects.iter().rev() {
            let identity = Identity::of(object)?;
            let what = format!("deleting {}", identity.describe());
            let (resource, scope) = match self.kind(&identity, &identity.gvk(), false).await {
                Ok(found) => found,
                // Without the kind there are no objects of it.
                Err(Error::UnknownKind { .. }) => continue,
                Err(error) => return Err(error),
            };
            let api = self.api(&identity, &resource, &scope);
            let params = DeleteParams::background();
            retry(&what, DEADLINE, || async {
                gone(api.delete(&identity.name, &params).await.map(drop))
            })
            .await?;
        }
        Ok(())
    }

    /// Deletes the Jobs of a hook of an operation, with their pods.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn delete_hook(&self, operation_id: &str, hook: &str) -> Result<(), Error> {
        let what = format!("deleting the job of hook {hook}");
        let all: Api<Job> = Api::all(self.0.clone());
        let labels = format!("{OPERATION_LABEL}={operation_id},{HOOK_LABEL}={hook}");
        let selected = ListParams::default().labels(&labels);
        let params = DeleteParams::background();
        for job in self.list(&what, &all, selected).await? {
            let namespace = job.namespace().unwrap_or_default();
            let jobs: Api<Job> = Api::namespaced(self.0.clone(), &namespace);
            let name = job.name_any();
            retry(&what, DEADLINE, || async {
                gone(jobs.delete(&name, &params).await.map(drop))
            })
            .await?;
        }
        Ok(())
    }
}

pub(crate) fn gone(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if is_missing(&error) => Ok(()),
        result => result,
    }
}
