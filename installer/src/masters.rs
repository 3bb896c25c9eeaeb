//! Keeps a node's knowledge of the cluster's masters.
//!
//! In: the cluster's description, watched in Kubernetes. Out: the files that the
//! planet's balancer reads and that services choose their command by; on a
//! master that was the only one, those services restarted. Always holds: what
//! was known stays while Kubernetes can't be asked, which is tried for ever.

use std::convert::Infallible;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use cluster::Client;
use futures::StreamExt;
use planet::config::PlanetConfig;
use spec::ClusterSpec;
use tokio::time::{Instant, sleep};

/// File inside with the addresses of all masters, JSON. It outlives restarts.
pub(crate) const MASTERS: &str = "/run/planet/host/masters.json";
/// File inside that exists once there was more than one master.
pub(crate) const SEVERAL_MASTERS: &str = "/run/planet/host/several-masters";
/// First and longest wait after a failure.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(30);
/// How often it is looked for a new certificate.
const LOOK: Duration = Duration::from_secs(10);
/// How long a service may take to be ready after its restart.
const RESTART: Duration = Duration::from_secs(120);
/// In the marker: services have been restarted since.
const RESTARTED: &[u8] = b"restarted\n";

/// Why the masters can't be followed any more.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Kubernetes can't be spoken to.
    #[error("connect to Kubernetes")]
    Kubernetes(#[from] cluster::Error),
    /// What is known can't be written down.
    #[error("write down who the masters are")]
    Write(#[from] host::atomic::WriteError),
    /// The planet isn't what it should be.
    #[error("restart services for several masters")]
    Planet(#[from] planet::Error),
}

/// Follows the cluster's description, with the rights of `kubeconfig`, which is of
/// the node: anew when its certificate was renewed, and later each time after a failure,
/// which is logged.
pub async fn keep(kubeconfig: &Path) -> Infallible {
    let mut wait = WAIT_MIN;
    loop {
        let started = Instant::now();
        let followed = tokio::select! {
            // First, so that no certificate is renewed unseen.
            biased;
            () = renewed(kubeconfig, LOOK) => continue,
            followed = follow(kubeconfig) => followed,
        };
        if let Err(error) = followed {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "the cluster's masters can't be followed");
        }
        if started.elapsed() > WAIT_MAX {
            wait = WAIT_MIN;
        }
        sleep(wait).await;
        wait = (wait * 2).min(WAIT_MAX);
    }
}

/// Comes back when the file, looked at so often, is another one.
async fn renewed(file: &Path, every: Duration) {
    let first = written(file);
    while written(file) == first {
        sleep(every).await;
    }
}

fn written(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).ok()?.modified().ok()
}

/// Follows the description until an error.
async fn follow(kubeconfig: &Path) -> Result<(), Error> {
    let client = Client::connect(kubeconfig).await?;
    let mut descriptions = pin!(client.watch_description());
    while let Some(text) = descriptions.next().await {
        match serde_json::from_str(&text) {
            Ok(cluster) => know(&cluster).await?,
            Err(error) => tracing::warn!(%error, "the cluster's description can't be read"),
        }
    }
    Ok(())
}

async fn know(cluster: &ClusterSpec) -> Result<(), Error> {
    let masters: Vec<_> = cluster.masters().collect();
    if masters.is_empty() {
        return Ok(());
    }
    tracing::info!(?masters, "the cluster's masters");
    let json = serde_json::json!(masters).to_string();
    host::atomic::write(Path::new(MASTERS), json.as_bytes(), 0o644)?;
    let marker = Path::new(SEVERAL_MASTERS);
    if cluster.has_several_masters() && std::fs::read(marker).ok().as_deref() != Some(RESTARTED) {
        host::atomic::write(marker, b"", 0o644)?;
        restart().await?;
        host::atomic::write(marker, RESTARTED, 0o644)?;
    }
    Ok(())
}

/// Restarts services that run with the command for a single master.
async fn restart() -> Result<(), Error> {
    let config = planet::container::load(Path::new(planet::container::CONFIG))?;
    let planet = planet::client::Client::new(Path::new(planet::client::SOCKET));
    for name in changed(&config) {
        tracing::info!(name, "restarting with the command for several masters");
        planet.restart(name).await?;
        let only = [name.to_owned()];
        planet.wait_ready(&only, RESTART).await?;
    }
    Ok(())
}

fn changed(config: &PlanetConfig) -> impl Iterator<Item = &str> {
    config
        .services
        .iter()
        .filter(|service| {
            let alternative = service.alternative.as_ref();
            alternative.is_some_and(|other| other.when == Path::new(SEVERAL_MASTERS))
        })
        .map(|service| service.name.as_str())
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn what_the_number_of_masters_changes_is_restarted_and_nothing_else() {
        let (_, config) = crate::install::tests::planned(|_| ());
        let changed = Vec::from_iter(changed(&config));
        assert!(changed.contains(&"kube-scheduler"), "{changed:?}");
        // It has another command, too, but for another reason.
        assert!(!changed.contains(&"coredns"), "{changed:?}");
    }

    #[tokio::test]
    async fn what_fails_is_tried_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("kubeconfig");
        // Longer than the first wait.
        let patience = WAIT_MIN + Duration::from_millis(200);
        assert!(timeout(patience, keep(&missing)).await.is_err());
    }

    #[tokio::test]
    async fn a_new_certificate_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kubeconfig");
        host::atomic::write(&file, b"old", 0o600).unwrap();
        let every = Duration::from_millis(5);
        let mut seen = pin!(renewed(&file, every));
        assert!(timeout(every * 4, &mut seen).await.is_err());
        let later = SystemTime::now() + Duration::from_secs(1);
        let written = std::fs::File::options().write(true).open(&file).unwrap();
        written.set_modified(later).unwrap();
        timeout(Duration::from_secs(60), seen).await.unwrap();
    }
}
