//! Keeps a node's knowledge of the cluster's masters.
//!
//! In: the cluster's description, watched in Kubernetes. Out: the files that the
//! planet's balancer reads and that services choose their command by; on a
//! master that was the only one, those services restarted. Always holds: what
//! was known stays while Kubernetes can't be asked.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use cluster::Client;
use futures::StreamExt;
use planet::config::PlanetConfig;
use spec::ClusterSpec;

use crate::services::{MASTERS, SEVERAL_MASTERS};

/// How long a service may take to be ready after its restart.
const RESTART: Duration = Duration::from_secs(120);
/// In the marker: services have been restarted since.
const RESTARTED: &[u8] = b"restarted\n";

/// Why the masters can't be followed any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Kubernetes can't be spoken to.
    #[error("connect to Kubernetes")]
    Kubernetes(#[from] cluster::Error),
    /// What is known can't be written down.
    #[error("write down who the masters are")]
    Write(#[from] host::atomic::WriteError),
    /// The planet isn't what it should be.
    #[error("restart services for several masters")]
    Planet(#[from] planet::Error),
    /// The supervisor's configuration can't be read.
    #[error("read the planet's configuration")]
    Config(#[source] std::io::Error),
}

/// Follows the description until an error; `kubeconfig` is of the node.
///
/// # Errors
/// When what is known can't be written down or used.
pub async fn follow(kubeconfig: &Path) -> Result<(), Error> {
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
        planet.wait_ready(&only, RESTART, |_| ()).await?;
    }
    Ok(())
}

fn changed(config: &PlanetConfig) -> impl Iterator<Item = &str> {
    config
        .services
        .iter()
        .filter(|service| service.alternative.is_some())
        .map(|service| service.name.as_str())
}
