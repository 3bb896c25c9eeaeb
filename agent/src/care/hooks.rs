//! Ends what hooks may do whose operation was killed before it could.
//!
//! In: the cluster, with the rights of its administrator. Out: no right of a hook
//! that is over.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

/// How long all of it may take: the next look comes soon.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks once.
pub(super) async fn revoke_forgotten(kubeconfig: &Path) {
    let revoking = async {
        let client = cluster::Client::connect(kubeconfig).await?;
        client.revoke_forgotten_hooks(Timestamp::now()).await
    };
    match tokio::time::timeout(PATIENCE, revoking).await {
        Ok(Ok(0)) => {}
        Ok(Ok(count)) => tracing::info!("deleted {count} objects that hooks had rights by"),
        Ok(Err(error)) => tracing::warn!("rights of hooks: {error}"),
        Err(_) => tracing::warn!("rights of hooks: the cluster did not answer in time"),
    }
}
