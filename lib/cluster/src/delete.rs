//! Deletes objects of any kind.
//!
//! In: objects as data, of which only kind and name count; a hook's name. Out:
//! the cluster doesn't have them. What it never had is success.

use std::cmp::Reverse;

use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use serde_json::Value;

use crate::apply::Identity;
use crate::client::{Client, DEADLINE, Error, retry, unless_missing};
use crate::hooks::{BY_HAND, HOOK_LABEL, OPERATION_LABEL, end};

/// Jobs of a hook that are kept of those run by hand.
const KEPT_JOBS: usize = 5;

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
                unless_missing(api.delete(&identity.name, &params).await)
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
        let labels = format!("{OPERATION_LABEL}={operation_id},{HOOK_LABEL}={hook}");
        let jobs = self.jobs(&what, &labels).await?;
        self.delete_jobs(&what, jobs).await
    }

    /// Deletes the Jobs of a hook that was run [by hand](BY_HAND) with their pods, but
    /// for the last [`KEPT_JOBS`] of them and those that have not ended. Jobs of other
    /// operations stay.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub(crate) async fn delete_older_jobs(&self, hook: &str) -> Result<(), Error> {
        let what = format!("deleting older jobs of hook {hook}");
        let jobs = self.jobs(&what, &format!("{HOOK_LABEL}={hook}")).await?;
        self.delete_jobs(&what, older(jobs)).await
    }

    async fn jobs(&self, what: &str, labels: &str) -> Result<Vec<Job>, Error> {
        let all: Api<Job> = Api::all(self.0.clone());
        self.list(what, &all, ListParams::default().labels(labels))
            .await
    }

    async fn delete_jobs(&self, what: &str, jobs: Vec<Job>) -> Result<(), Error> {
        let params = DeleteParams::background();
        for job in jobs {
            let namespace = job.namespace().unwrap_or_default();
            let jobs: Api<Job> = Api::namespaced(self.0.clone(), &namespace);
            let name = job.name_any();
            retry(what, DEADLINE, || async {
                unless_missing(jobs.delete(&name, &params).await)
            })
            .await?;
        }
        Ok(())
    }
}

/// Of the Jobs of a hook those that nobody looks at any more.
fn older(mut jobs: Vec<Job>) -> Vec<Job> {
    jobs.retain(|job| {
        let operation = job.labels().get(OPERATION_LABEL);
        operation.is_some_and(|id| id.starts_with(BY_HAND))
    });
    jobs.sort_by_key(|job| Reverse(job.creation_timestamp().map(|time| time.0)));
    let mut older = jobs.split_off(jobs.len().min(KEPT_JOBS));
    older.retain(|job| end(job).is_some());
    older
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_jobs_those_that_run_and_those_of_other_operations_are_kept() {
        let job = |number: u32, operation: &str, condition: &str| -> Job {
            serde_json::from_value(json!({
                "metadata": {
                    "name": format!("dump-{number}"),
                    "creationTimestamp": format!("2026-01-01T00:00:{number:02}Z"),
                    "labels": { OPERATION_LABEL: operation },
                },
                "status": { "conditions": [{ "type": condition, "status": "True" }] },
            }))
            .unwrap()
        };
        let mut jobs = vec![
            job(0, "5f6a", "Complete"),
            job(1, "by-hand-1", "Failed"),
            job(2, "by-hand-2", "Suspended"),
            job(3, "by-hand-3", "Complete"),
        ];
        assert!(older(jobs.clone()).is_empty());
        // In whatever order they are listed.
        for number in [8, 7, 6, 5, 4] {
            jobs.insert(0, job(number, "by-hand-x", "Complete"));
        }
        let older = older(jobs);
        let names: Vec<_> = older.iter().map(ResourceExt::name_any).collect();
        assert_eq!(names, ["dump-3", "dump-1"]);
    }
}
