//! Tells the cluster how the services of this node are.
//!
//! In: what the supervisor says. Out: an annotation of the node in Kubernetes,
//! written when something has changed, with the rights of the node's kubelet.

use std::time::Duration;

use planet::client::{Client, ServiceStatus};
use spec::care::Care;

/// How often the supervisor is asked.
const EVERY: Duration = Duration::from_secs(5);
/// How long the API may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most characters of a reason.
const REASON: usize = 300;

/// Announces for ever.
pub(super) async fn announce(care: &Care, planet: &Client) {
    let kubeconfig = Care::layout().kubelet_kubeconfig();
    let mut announced = None;
    loop {
        tokio::time::sleep(EVERY).await;
        let Ok(status) = planet.status().await else {
            continue;
        };
        let services = told(&status.services);
        if announced.as_ref() == Some(&services) {
            continue;
        }
        let telling = async {
            // Its certificate may be another one by now.
            let client = cluster::Client::connect(&kubeconfig).await?;
            client.announce_services(&care.node, &services).await
        };
        match tokio::time::timeout(PATIENCE, telling).await {
            Ok(Ok(())) => announced = Some(services),
            // The node's object is made later, and the API comes and goes.
            Ok(Err(error)) => tracing::debug!(%error, "nobody was told of the services"),
            Err(_) => tracing::debug!("nobody was told of the services in time"),
        }
    }
}

/// What others want to know: no process ids, and no times.
fn told(services: &[ServiceStatus]) -> String {
    let shortened = |text: &String| text.chars().take(REASON).collect();
    let services: Vec<_> = services
        .iter()
        .map(|service| ServiceStatus {
            pid: None,
            since: 0,
            last_error: service.last_error.as_ref().map(shortened),
            ..service.clone()
        })
        .collect();
    serde_json::json!(services).to_string()
}

#[cfg(test)]
mod tests {
    use planet::client::State;

    use super::*;

    #[test]
    fn a_service_that_is_as_before_is_not_told_again() {
        let service = |pid, state| ServiceStatus {
            name: "kubelet".into(),
            state,
            pid: Some(pid),
            restarts: 1,
            since: u64::from(pid.unsigned_abs()),
            last_error: Some("x".repeat(5000)),
        };
        let first = told(&[service(1, State::Ready)]);
        assert_eq!(first, told(&[service(2, State::Ready)]));
        assert_ne!(first, told(&[service(1, State::Failed)]));
        assert!(first.len() < 500);
        let read: Vec<ServiceStatus> = serde_json::from_str(&first).unwrap();
        assert_eq!(read[0].name, "kubelet");
    }
}
