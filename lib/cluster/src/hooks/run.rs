//! Runs a hook to its end.
//!
//! In: a [`HookRun`]. Out: its Job has completed, or an error with what its
//! pods said last. A Job that an interrupted run left is taken up where it
//! stands; one that failed is made anew, since running the hook again is what a
//! resumed operation asks for.

use std::fmt::Write;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use event::Sink;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event as ApiEvent, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::job::{self, JobError};
use super::logs::{self, Tails};
use super::observe::Observer;
use super::{BY_HAND, HookRun, NETWORK_INSTALL, service_account};
use crate::client::{Client, DEADLINE, Error, request, retry, unless_missing, unless_there};
use crate::node::refusal;

/// How much longer than its own deadline a Job is waited for. Kubernetes ends a
/// Job at its deadline; this is for a cluster that no longer does.
const GRACE: Duration = Duration::from_secs(120);

/// How long logs may take to arrive after the Job has ended.
const DRAIN: Duration = Duration::from_secs(10);

/// Events of the pods that an error quotes.
const EVENTS: usize = 10;

/// Why a hook did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// Its text is no Job.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The API didn't do what was asked.
    #[error("hook {hook} failed")]
    Cluster {
        /// The hook.
        hook: String,
        /// What went wrong.
        source: Error,
    },
    /// The Job failed.
    #[error("hook {hook} failed: Job \"{job}\" in namespace \"{namespace}\": {reason}{details}")]
    Failed {
        /// The hook.
        hook: String,
        /// Name of the Job.
        job: String,
        /// Its namespace.
        namespace: String,
        /// What the Job's condition says.
        reason: String,
        /// Failed containers, their last lines, and events; lines of text.
        details: String,
    },
    /// The Job neither completed nor failed in time.
    #[error(
        "hook {hook}: Job \"{job}\" in namespace \"{namespace}\" has not ended after {seconds} s; \
         are the controller manager and the kubelet running?{details}"
    )]
    TimedOut {
        /// The hook.
        hook: String,
        /// Name of the Job.
        job: String,
        /// Its namespace.
        namespace: String,
        /// How long was waited.
        seconds: u64,
        /// As in [`HookError::Failed`].
        details: String,
    },
}

/// A hook whose Job is there.
#[derive(Debug)]
pub struct Begun {
    job: Job,
    /// How long it is waited for; nothing where it has completed before.
    left: Option<Duration>,
}

/// Runs a hook until its Job has completed. What its pods write is emitted as
/// [`event::Event::Log`], what happens to them as lines.
///
/// # Errors
/// When the text is no Job, the API refuses it, or the Job fails.
pub async fn run(client: &Client, hook: &HookRun, sink: Arc<dyn Sink>) -> Result<(), HookError> {
    let begun = begin(client, hook, &*sink).await?;
    follow(client, hook, begun, sink).await
}

/// The first part of [`run`]: has the Job of a hook made. From then on it runs, whatever
/// ends us.
///
/// # Errors
/// When the text is no Job or the API refuses it.
pub async fn begin(client: &Client, hook: &HookRun, sink: &dyn Sink) -> Result<Begun, HookError> {
    let mut job = job::job(hook)?;
    let cluster = |source| HookError::Cluster {
        hook: hook.name.clone(),
        source,
    };
    // Before the network is there no node is ready.
    if hook.name != NETWORK_INSTALL {
        let nodes = client.list_nodes().await.map_err(cluster)?;
        let unfit = job::unfit(&job, &nodes, hook.avoid.as_deref());
        job::avoid(&mut job, &unfit);
    }
    let run = Run::new(client, hook, &job, sink);
    let account = job
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref()?.service_account_name.as_deref());
    if account == Some(&*service_account(&hook.operation_id)) {
        client
            .allow_hooks(&hook.operation_id, &run.namespace)
            .await
            .map_err(cluster)?;
    } else {
        client
            .ensure_namespace(&run.namespace)
            .await
            .map_err(cluster)?;
    }
    client
        .give_values(&hook.operation_id, &run.namespace)
        .await
        .map_err(cluster)?;
    if run.start(&job).await.map_err(cluster)? {
        return Ok(Begun { job, left: None });
    }
    if hook.operation_id.starts_with(BY_HAND)
        && let Err(error) = client.delete_older_jobs(&hook.name).await
    {
        sink.warning(&error.to_string());
    }
    let seconds = job
        .spec
        .as_ref()
        .and_then(|spec| spec.active_deadline_seconds);
    let seconds = seconds
        .and_then(|s| u64::try_from(s).ok())
        .unwrap_or_default();
    let left = Some(Duration::from_secs(seconds) + GRACE);
    Ok(Begun { job, left })
}

/// The second part of [`run`]: waits until the Job has completed.
///
/// # Errors
/// When the Job fails, or can't be followed.
pub async fn follow(
    client: &Client,
    hook: &HookRun,
    begun: Begun,
    sink: Arc<dyn Sink>,
) -> Result<(), HookError> {
    let Some(left) = begun.left else {
        return Ok(());
    };
    Run::new(client, hook, &begun.job, &*sink).watch(left).await
}

/// Deletes the Job of a hook with its pods, and waits until it is gone. One
/// that doesn't exist is gone.
///
/// # Errors
/// When the text is no Job, the API refuses it, or the pods don't end.
pub async fn remove(client: &Client, hook: &HookRun) -> Result<(), HookError> {
    let job = job::job(hook)?;
    let run = Run::new(client, hook, &job, &event::Discard);
    let gone = async {
        let jobs = run.jobs();
        let what = format!("looking for {}", run.described());
        match retry(&what, DEADLINE, || jobs.get_opt(&run.name)).await? {
            Some(existing) => run.remove(&existing).await,
            None => Ok(()),
        }
    };
    gone.await.map_err(|source| HookError::Cluster {
        hook: hook.name.clone(),
        source,
    })
}

/// How a Job ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Complete,
    Failed(String),
}

pub(crate) fn end(job: &Job) -> Option<End> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .filter(|condition| condition.status == "True")
        .find_map(|condition| match condition.type_.as_str() {
            "Complete" => Some(End::Complete),
            "Failed" => {
                let parts = [condition.reason.as_deref(), condition.message.as_deref()];
                let text: Vec<_> = parts
                    .into_iter()
                    .flatten()
                    .filter(|part| !part.is_empty())
                    .collect();
                Some(End::Failed(text.join(": ")))
            }
            _ => None,
        })
}

struct Run<'a> {
    client: &'a Client,
    hook: &'a HookRun,
    sink: &'a dyn Sink,
    name: String,
    namespace: String,
}

impl<'a> Run<'a> {
    fn new(client: &'a Client, hook: &'a HookRun, job: &Job, sink: &'a dyn Sink) -> Self {
        Self {
            client,
            hook,
            sink,
            name: job.name_any(),
            namespace: job.namespace().unwrap_or_default(),
        }
    }

    fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.client.0.clone(), &self.namespace)
    }

    fn described(&self) -> String {
        format!("Job \"{}\" in namespace \"{}\"", self.name, self.namespace)
    }

    /// Creates the Job, or takes up the one that exists. Whether it has
    /// completed before.
    async fn start(&self, job: &Job) -> Result<bool, Error> {
        let jobs = self.jobs();
        let what = format!("creating {}", self.described());
        let params = PostParams::default();
        // The second attempt follows the removal of a failed Job.
        for _ in 0..2 {
            let created = retry(&what, DEADLINE, || async {
                unless_there(jobs.create(&params, job).await)
            });
            if created.await? {
                self.sink.info(&format!("Created {}", self.described()));
                return Ok(false);
            }
            let existing = retry(&what, DEADLINE, || jobs.get_opt(&self.name)).await?;
            let Some(existing) = existing else { continue };
            match end(&existing) {
                Some(End::Complete) => {
                    self.sink
                        .info(&format!("{} has completed before", self.described()));
                    return Ok(true);
                }
                None if existing.metadata.deletion_timestamp.is_none() => {
                    self.sink
                        .info(&format!("{} is running already", self.described()));
                    return Ok(false);
                }
                None | Some(End::Failed(_)) => {
                    self.sink.info(&format!(
                        "{} failed before and is run again",
                        self.described()
                    ));
                    self.remove(&existing).await?;
                }
            }
        }
        Err(request(
            &what,
            kube::Error::Api(
                kube::core::Status::failure("it exists although it was removed", "AlreadyExists")
                    .with_code(409)
                    .boxed(),
            ),
        ))
    }

    /// Deletes a Job with its pods, and waits until it is gone.
    async fn remove(&self, job: &Job) -> Result<(), Error> {
        let jobs = self.jobs();
        let what = format!("deleting {}", self.described());
        let params = DeleteParams::foreground();
        let uid = job.uid().unwrap_or_default();
        let end = Instant::now() + GRACE;
        loop {
            retry(&what, DEADLINE, || async {
                unless_missing(jobs.delete(&self.name, &params).await)
            })
            .await?;
            let left = end.saturating_duration_since(Instant::now());
            let gone = kube::runtime::wait::conditions::is_deleted(&uid);
            let waiting = kube::runtime::wait::await_condition(jobs.clone(), &self.name, gone);
            match timeout(left, waiting).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => {
                    tracing::debug!(what, ?error, "watching again");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Err(_) => {
                    return Err(Error::NoAnswer {
                        what,
                        seconds: GRACE.as_secs(),
                    });
                }
            }
        }
    }

    /// Follows the Job and its pods until it has ended.
    async fn watch(&self, deadline: Duration) -> Result<(), HookError> {
        let start = Instant::now();
        let pods: Api<Pod> = Api::namespaced(self.client.0.clone(), &self.namespace);
        let selector = watcher::Config::default().labels(&format!("job-name={}", self.name));
        let mut pod_changes = pin!(
            watcher(pods.clone(), selector)
                .default_backoff()
                .applied_objects()
        );
        let mut job_changes =
            pin!(watcher::watch_object(self.jobs(), &self.name).default_backoff());
        let mut observer = Observer::default();
        let tails = Tails::default();
        let mut following = FuturesUnordered::new();
        let mut late = pin!(sleep_until(start + deadline));
        let ended = loop {
            tokio::select! {
                () = &mut late => {
                    return Err(HookError::TimedOut {
                        hook: self.hook.name.clone(),
                        job: self.name.clone(),
                        namespace: self.namespace.clone(),
                        seconds: deadline.as_secs(),
                        details: self.details(&observer, &tails).await,
                    });
                }
                Some(change) = pod_changes.next() => match change {
                    Ok(pod) => {
                        let (lines, follow) = observer.pod(&pod);
                        lines.into_iter().for_each(|line| self.sink.emit(line));
                        for instance in follow {
                            following.push(logs::follow(pods.clone(), instance, self.sink, &tails));
                        }
                    }
                    Err(error) => self.interrupted("pods", error)?,
                },
                Some(change) = job_changes.next() => match change {
                    Ok(Some(job)) => if let Some(ended) = end(&job) { break ended },
                    Ok(None) => break End::Failed("it was deleted before it ended".into()),
                    Err(error) => self.interrupted("the job", error)?,
                },
                Some(()) = following.next(), if !following.is_empty() => {}
            }
        };
        // A pod that ended just now may not have been seen yet.
        let params = ListParams::default().labels(&format!("job-name={}", self.name));
        if let Ok(left) = self
            .client
            .list("listing the pods of a hook", &pods, params)
            .await
        {
            for pod in left {
                let (lines, follow) = observer.pod(&pod);
                lines.into_iter().for_each(|line| self.sink.emit(line));
                for instance in follow {
                    following.push(logs::follow(pods.clone(), instance, self.sink, &tails));
                }
            }
        }
        if timeout(DRAIN, following.by_ref().collect::<Vec<()>>())
            .await
            .is_err()
        {
            self.sink.warning(&format!(
                "The logs of {} are not complete",
                self.described()
            ));
        }
        match ended {
            End::Complete => {
                let seconds = start.elapsed().as_secs();
                let text = format!(
                    "{} has completed, {seconds} seconds elapsed",
                    self.described()
                );
                self.sink.info(&text);
                Ok(())
            }
            End::Failed(reason) => Err(HookError::Failed {
                hook: self.hook.name.clone(),
                job: self.name.clone(),
                namespace: self.namespace.clone(),
                reason,
                details: self.details(&observer, &tails).await,
            }),
        }
    }

    /// A watch goes on by itself unless the API refuses it.
    fn interrupted(&self, of: &str, error: watcher::Error) -> Result<(), HookError> {
        tracing::debug!(job = self.name, of, ?error, "watching again");
        match refusal(error) {
            None => Ok(()),
            Some(source) => Err(HookError::Cluster {
                hook: self.hook.name.clone(),
                source: request(&format!("watching {of} of {}", self.described()), source),
            }),
        }
    }

    /// Which containers failed, what they wrote last, and what Kubernetes says.
    async fn details(&self, observer: &Observer, tails: &Tails) -> String {
        let mut text = String::new();
        for (source, failure) in observer.failures() {
            let _ = write!(text, "\n  {source}: {failure}");
            for line in tails.of(source) {
                let _ = write!(text, "\n    {line}");
            }
        }
        for line in self.events().await {
            let _ = write!(text, "\n  {line}");
        }
        text
    }

    /// Warnings about the Job and its pods, oldest first; none if they can't be
    /// had.
    async fn events(&self) -> Vec<String> {
        let api: Api<ApiEvent> = Api::namespaced(self.client.0.clone(), &self.namespace);
        let params = ListParams::default().fields("type=Warning");
        let listed = timeout(DRAIN, self.client.list("listing events", &api, params)).await;
        let mut events = listed.ok().and_then(Result::ok).unwrap_or_default();
        // Pods of a Job are named after it.
        events.retain(|event| {
            let name = event.involved_object.name.as_deref().unwrap_or_default();
            let rest = name.strip_prefix(&self.name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        });
        events.sort_by_key(|event| {
            event
                .metadata
                .creation_timestamp
                .as_ref()
                .map(|time| time.0)
        });
        let skipped = events.len().saturating_sub(EVENTS);
        let line = |event: &ApiEvent| {
            let object = &event.involved_object;
            format!(
                "{} {}: {}: {}",
                object.kind.as_deref().unwrap_or_default(),
                object.name.as_deref().unwrap_or_default(),
                event.reason.as_deref().unwrap_or_default(),
                event.message.as_deref().unwrap_or_default().trim()
            )
        };
        events.iter().skip(skipped).map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn ended(conditions: Value) -> Option<End> {
        end(&serde_json::from_value(json!({ "status": { "conditions": conditions } })).unwrap())
    }

    #[test]
    fn a_job_ends_by_a_true_condition() {
        assert_eq!(ended(json!([])), None);
        assert_eq!(end(&Job::default()), None);
        assert_eq!(
            ended(json!([{"type": "SuccessCriteriaMet", "status": "True"}])),
            None
        );
        assert_eq!(
            ended(json!([{"type": "Complete", "status": "False"}])),
            None
        );
        assert_eq!(
            ended(json!([{"type": "Complete", "status": "True"}])),
            Some(End::Complete)
        );
        let failed = json!([
            {"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"},
            {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "late"},
        ]);
        assert_eq!(
            ended(failed),
            Some(End::Failed("DeadlineExceeded: late".into()))
        );
    }
}
