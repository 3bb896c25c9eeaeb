//! Where the application can be reached.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::commands::Session;

/// One URL at which the application can be reached.
#[derive(Debug, Serialize)]
pub(crate) struct Endpoint {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) urls: Vec<String>,
}

/// The endpoints that the manifest shows to the user.
pub(crate) async fn endpoints(
    session: &Session,
    client: &cluster::Client,
) -> Result<Vec<Endpoint>> {
    let manifest = session.manifest()?;
    let shown = manifest.endpoints.iter().filter(|one| !one.hidden);
    look_up(client, shown).await
}

/// The endpoint at which the user goes on after the install.
pub(crate) async fn setup_endpoint(
    session: &Session,
    client: &cluster::Client,
) -> Result<Option<Endpoint>> {
    let manifest = session.manifest()?;
    let found = look_up(client, manifest.setup_endpoint().into_iter()).await?;
    Ok(found.into_iter().next())
}

async fn look_up(
    client: &cluster::Client,
    endpoints: impl Iterator<Item = &manifest::Endpoint>,
) -> Result<Vec<Endpoint>> {
    let mut found = Vec::new();
    for endpoint in endpoints {
        let wanted = cluster::Endpoint {
            namespace: endpoint.namespace.clone(),
            service: endpoint.service_name.clone(),
            selector: endpoint.selector.clone(),
            protocol: endpoint.protocol.clone(),
            port: endpoint.port,
        };
        let urls = client
            .endpoints(&wanted)
            .await
            .with_context(|| format!("look up endpoint {}", endpoint.name))?;
        found.push(Endpoint {
            name: endpoint.name.clone(),
            description: endpoint.description.clone().unwrap_or_default(),
            urls,
        });
    }
    Ok(found)
}

/// Where the user goes on, as lines.
pub(crate) fn setup_text(endpoint: &Endpoint) -> Vec<String> {
    match endpoint.urls.is_empty() {
        true => vec![format!(
            "Finish the setup at the endpoint {}, whose service can't be reached from outside yet",
            endpoint.name
        )],
        false => (endpoint.urls.iter())
            .map(|url| format!("Finish the setup at {url}"))
            .collect(),
    }
}

/// Endpoints as lines.
pub(crate) fn endpoints_text(endpoints: &[Endpoint]) -> Vec<String> {
    let mut lines = Vec::new();
    if !endpoints.is_empty() {
        lines.push("Cluster endpoints:".into());
    }
    for endpoint in endpoints {
        let description = match endpoint.description.is_empty() {
            true => String::new(),
            false => format!(" ({})", endpoint.description),
        };
        lines.push(format!("  * {}{description}", endpoint.name));
        if endpoint.urls.is_empty() {
            lines.push("      - not reachable from outside: its service has no node port".into());
        }
        lines.extend(endpoint.urls.iter().map(|url| format!("      - {url}")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_told_where_setup_goes_on() {
        let mut endpoint = Endpoint {
            name: "Setup".into(),
            description: String::new(),
            urls: Vec::new(),
        };
        let text = setup_text(&endpoint);
        assert!(
            text.len() == 1 && text[0].contains("endpoint Setup"),
            "{text:?}"
        );
        endpoint.urls = vec!["http://10.0.0.1:30090".into()];
        assert_eq!(
            setup_text(&endpoint),
            ["Finish the setup at http://10.0.0.1:30090"]
        );
    }
}
