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
    /// Those of them that only the cluster itself reaches.
    pub(super) inside: Vec<String>,
}

impl Endpoint {
    /// URLs as a person reads them.
    fn shown(&self) -> impl Iterator<Item = String> {
        self.urls
            .iter()
            .map(move |url| match self.inside.contains(url) {
                true => format!("{url} (inside the cluster)"),
                false => url.clone(),
            })
    }
}

/// What is told where there is no URL.
const NONE: &str = "no such service with an address is there";

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
        let inside = urls.iter().filter(|url| url.inside);
        found.push(Endpoint {
            name: endpoint.name.clone(),
            description: endpoint.description.clone().unwrap_or_default(),
            inside: inside.map(|url| url.text.clone()).collect(),
            urls: urls.into_iter().map(|url| url.text).collect(),
        });
    }
    Ok(found)
}

/// Where the user goes on, as lines.
pub(crate) fn setup_text(endpoint: &Endpoint) -> Vec<String> {
    match endpoint.urls.is_empty() {
        true => vec![format!(
            "Finish the setup at the endpoint {}: {NONE}",
            endpoint.name
        )],
        false => endpoint
            .shown()
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
            lines.push(format!("      - {NONE}"));
        }
        lines.extend(endpoint.shown().map(|url| format!("      - {url}")));
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
            inside: Vec::new(),
        };
        assert_eq!(
            setup_text(&endpoint),
            ["Finish the setup at the endpoint Setup: no such service with an address is there"]
        );
        endpoint.urls = vec!["http://10.0.0.1:30090".into()];
        assert_eq!(
            setup_text(&endpoint),
            ["Finish the setup at http://10.0.0.1:30090"]
        );
        endpoint.inside = endpoint.urls.clone();
        assert_eq!(
            setup_text(&endpoint),
            ["Finish the setup at http://10.0.0.1:30090 (inside the cluster)"]
        );
    }

    #[test]
    fn what_only_the_cluster_reaches_is_told_from_what_is_not_there() {
        let endpoint = |name: &str, urls: &[&str], inside: &[&str]| Endpoint {
            name: name.into(),
            description: String::new(),
            urls: urls.iter().map(ToString::to_string).collect(),
            inside: inside.iter().map(ToString::to_string).collect(),
        };
        let (web, own) = ("http://10.0.0.1:30080", "http://10.100.0.7");
        assert_eq!(
            endpoints_text(&[
                endpoint("Web", &[web, own], &[own]),
                endpoint("Gone", &[], &[]),
            ]),
            [
                "Cluster endpoints:",
                "  * Web",
                "      - http://10.0.0.1:30080",
                "      - http://10.100.0.7 (inside the cluster)",
                "  * Gone",
                "      - no such service with an address is there",
            ]
        );
    }
}
