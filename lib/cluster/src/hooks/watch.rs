//! The status hook: run every minute by one process of the cluster.
//!
//! In: the hook, and who we are. Out: while we hold the Lease, the hook's Job
//! is made, awaited and removed again and again; how the last one ended is
//! written beside the Lease. Without a Lease nothing is run: an install makes
//! it at its end, and whoever wants silence deletes it.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, interval, sleep};

use super::{DEFAULT_NAMESPACE, HookError, HookRun, remove, run};
use crate::client::{
    Client, DEADLINE, Error, is_conflict, is_missing, request, retry, unless_missing,
};

/// Name of the Lease, in [`DEFAULT_NAMESPACE`].
const LEASE: &str = "gravity-status-hook";

/// Annotation of the Lease: a [`LastCheck`] as JSON.
const RESULT: &str = "gravitational.io/last-check";

/// How long a Lease is held without being renewed, in seconds; and how often it
/// is renewed.
const HELD: u32 = 30;
const RENEW: Duration = Duration::from_secs(10);

/// Longest message that is kept, in bytes.
const MAX_MESSAGE: usize = 4096;

/// How the status hook ended last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCheck {
    /// Whether the application is well.
    pub passed: bool,
    /// Why it is not; empty otherwise.
    pub message: String,
    /// When it ended.
    pub time: jiff::Timestamp,
}

impl Client {
    /// Lets whoever watches run the status hook.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn start_status_hook(&self) -> Result<(), Error> {
        self.apply(&[json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": LEASE, "namespace": DEFAULT_NAMESPACE },
        })])
        .await
    }

    /// Keeps everybody from running the status hook. One that runs is ended
    /// soon.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn stop_status_hook(&self) -> Result<(), Error> {
        let leases = self.leases();
        let params = DeleteParams::default();
        retry("stopping the status hook", DEADLINE, || async {
            unless_missing(leases.delete(LEASE, &params).await)
        })
        .await
        .map(drop)
    }

    /// How the status hook ended last; `None` where it has not run yet.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn last_check(&self) -> Result<Option<LastCheck>, Error> {
        let leases = self.leases();
        let what = "reading how the status hook ended";
        let lease = retry(what, DEADLINE, || leases.get_opt(LEASE)).await?;
        let text = lease.and_then(|lease| lease.metadata.annotations?.remove(RESULT));
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.0.clone(), DEFAULT_NAMESPACE)
    }
}

/// Runs the status hook every `period` whenever `identity` holds the Lease;
/// never ends.
pub async fn watch(client: &Client, identity: &str, hook: &HookRun, period: Duration) {
    let mut holder = Holder {
        client,
        identity,
        seen: None,
    };
    let mut due = Instant::now();
    let mut last = None;
    loop {
        let held = holder.hold().await;
        if held && Instant::now() >= due {
            due = Instant::now() + period;
            match check(&mut holder, hook).await {
                Some(result) => {
                    if last != Some(result.passed) {
                        tracing::info!(passed = result.passed, "status hook: {}", result.message);
                        last = Some(result.passed);
                    }
                    if let Err(error) = publish(client, &result).await {
                        tracing::warn!("{error}");
                    }
                }
                None => tracing::info!("status hook: ended, somebody else runs it or nobody may"),
            }
        }
        let left = due.saturating_duration_since(Instant::now());
        sleep(if held { RENEW.min(left) } else { RENEW }).await;
    }
}

/// Runs the hook once. `None` when the Lease was lost meanwhile.
async fn check(holder: &mut Holder<'_>, hook: &HookRun) -> Option<LastCheck> {
    let client = holder.client;
    let once = async {
        // One that a former holder has left would count as ours.
        remove(client, hook).await?;
        run(client, hook, std::sync::Arc::new(event::Discard)).await
    };
    let lost = async {
        let mut ticks = interval(RENEW);
        loop {
            ticks.tick().await;
            if !holder.hold().await {
                return;
            }
        }
    };
    let ended = tokio::select! {
        ended = once => Some(ended),
        () = lost => None,
    };
    if let Err(error) = remove(client, hook).await {
        tracing::warn!("{}", text(&error));
    }
    if let Err(error) = client.revoke_hooks(&hook.operation_id).await {
        tracing::warn!("{error}");
    }
    ended.map(|ended| LastCheck {
        passed: ended.is_ok(),
        message: ended.err().map(|error| text(&error)).unwrap_or_default(),
        time: jiff::Timestamp::now(),
    })
}

/// The error with its cause, not longer than what is kept.
fn text(error: &HookError) -> String {
    let mut text = error.to_string();
    if let Some(cause) = std::error::Error::source(error) {
        text = format!("{text}: {cause}");
    }
    text.truncate(text.floor_char_boundary(MAX_MESSAGE));
    text
}

async fn publish(client: &Client, result: &LastCheck) -> Result<(), Error> {
    let leases = client.leases();
    let what = "storing how the status hook ended";
    let result = serde_json::to_string(result)
        .map_err(|error| request(what, kube::Error::SerdeError(error)))?;
    let patch = json!({ "metadata": { "annotations": { RESULT: result } } });
    let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
    retry(what, DEADLINE, || async {
        // Where it is gone nobody wants to know any more.
        unless_missing(leases.patch(LEASE, &params, &patch).await)
    })
    .await
    .map(drop)
}

struct Holder<'a> {
    client: &'a Client,
    identity: &'a str,
    /// Version of the Lease, and when it was first seen: clocks of nodes
    /// differ, so nobody else's are read.
    seen: Option<(String, Instant)>,
}

impl Holder<'_> {
    /// Takes or renews the Lease. Whether it is ours.
    async fn hold(&mut self) -> bool {
        match self.try_hold().await {
            Ok(held) => held,
            Err(error) => {
                tracing::warn!("{error}");
                false
            }
        }
    }

    async fn try_hold(&mut self) -> Result<bool, Error> {
        let leases = self.client.leases();
        let what = "taking the Lease of the status hook";
        let get = || leases.get_opt(LEASE);
        let Some(mut lease) = retry(what, RENEW, get).await? else {
            return Ok(false);
        };
        if !self.may_take(&lease, Instant::now()) {
            return Ok(false);
        }
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        spec.holder_identity = Some(self.identity.into());
        spec.lease_duration_seconds = i32::try_from(HELD).ok();
        spec.renew_time = Some(MicroTime(jiff::Timestamp::now()));
        // It carries the version that was read: who is second is refused.
        match leases.replace(LEASE, &PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(error) if is_conflict(&error) || is_missing(&error) => Ok(false),
            Err(error) => Err(request(what, error)),
        }
    }

    fn may_take(&mut self, lease: &Lease, now: Instant) -> bool {
        let holder = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref())
            .filter(|holder| !holder.is_empty());
        if holder.is_none_or(|holder| holder == self.identity) {
            return true;
        }
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        match &self.seen {
            Some((seen, since)) if *seen == version => {
                now.duration_since(*since) > Duration::from_secs(HELD.into())
            }
            _ => {
                self.seen = Some((version, now));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str) -> Lease {
        serde_json::from_value(json!({
            "metadata": { "name": LEASE, "resourceVersion": version },
            "spec": { "holderIdentity": holder },
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn a_lease_is_taken_when_it_is_free_ours_or_not_renewed() {
        let kubeconfig = "
clusters: [{name: x, cluster: {server: 'https://127.0.0.1:1'}}]
users: [{name: x, user: {}}]
contexts: [{name: x, context: {cluster: x, user: x}}]
current-context: x
";
        let client = Client::from_kubeconfig(kubeconfig).await.unwrap();
        let mut holder = Holder {
            client: &client,
            identity: "a",
            seen: None,
        };
        let start = Instant::now();
        let mut may_take = |name: &str, version: &str, seconds| {
            let now = start + Duration::from_secs(seconds);
            holder.may_take(&lease(name, version), now)
        };
        assert!(may_take("", "1", 0));
        assert!(may_take("a", "1", 0));
        assert!(!may_take("b", "1", 0));
        assert!(!may_take("b", "1", 25));
        // It was renewed: the time begins anew.
        assert!(!may_take("b", "2", 25));
        assert!(!may_take("b", "2", 50));
        assert!(may_take("b", "2", 56));
    }

    #[test]
    fn messages_are_bounded() {
        let error = HookError::Failed {
            hook: "status".into(),
            job: "j".into(),
            namespace: "n".into(),
            reason: "r".into(),
            details: "ä".repeat(MAX_MESSAGE),
        };
        let text = text(&error);
        assert!(text.len() <= MAX_MESSAGE && text.starts_with("hook status failed"));
    }
}
