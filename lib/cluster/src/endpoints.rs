//! Where an application can be reached.
//!
//! In: an endpoint of the manifest: a Service by name or labels. Out: URLs, one
//! for each address by which the Service is reached from outside the cluster,
//! or its cluster address where there is no other.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Service, ServicePort};
use kube::Api;
use kube::api::ListParams;

use crate::client::{Client, DEADLINE, Error, retry};

/// How a Service is found, as the manifest has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Namespace of the Service; all namespaces where none is given.
    pub namespace: Option<String>,
    /// Name of the Service.
    pub service: Option<String>,
    /// Labels of the Service, used where no name is given.
    pub selector: BTreeMap<String, String>,
    /// Scheme of the URL; guessed from the port where none is given.
    pub protocol: Option<String>,
    /// A port of the Service, or its node port; all where none is given.
    pub port: Option<u16>,
}

/// A URL of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Url {
    /// As it is typed.
    pub text: String,
    /// Whether it is an address of the cluster's own, which others don't reach.
    pub inside: bool,
}

impl Client {
    /// URLs of an endpoint; none while its Service doesn't exist, or has no address or
    /// no such port.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn endpoints(&self, endpoint: &Endpoint) -> Result<Vec<Url>, Error> {
        let what = "looking up services";
        let all: Api<Service> = match &endpoint.namespace {
            Some(namespace) => Api::namespaced(self.0.clone(), namespace),
            None => Api::all(self.0.clone()),
        };
        let services = match (&endpoint.service, &endpoint.namespace) {
            (Some(name), Some(_)) => {
                let found = retry(what, DEADLINE, || all.get_opt(name));
                found.await?.into_iter().collect()
            }
            (Some(name), None) => {
                let params = ListParams::default().fields(&format!("metadata.name={name}"));
                self.list(what, &all, params).await?
            }
            (None, _) if endpoint.selector.is_empty() => Vec::new(),
            (None, _) => {
                let labels: Vec<_> = endpoint
                    .selector
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                let params = ListParams::default().labels(&labels.join(","));
                self.list(what, &all, params).await?
            }
        };
        let nodes = self.list_nodes().await?;
        let addresses: Vec<_> = nodes.iter().filter_map(internal_address).collect();
        Ok(urls(endpoint, &services, &addresses))
    }
}

fn urls(endpoint: &Endpoint, services: &[Service], nodes: &[String]) -> Vec<Url> {
    let mut urls = Vec::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let mut outside: Vec<String> = spec.external_ips.clone().unwrap_or_default();
        let balancer = service
            .status
            .as_ref()
            .and_then(|s| s.load_balancer.as_ref());
        for ingress in balancer
            .and_then(|b| b.ingress.as_deref())
            .unwrap_or_default()
        {
            outside.extend(ingress.hostname.clone().or_else(|| ingress.ip.clone()));
        }
        for port in spec.ports.as_deref().unwrap_or_default() {
            // Either side of a node port names it.
            let named = |wanted| wanted == port.port || Some(wanted) == port.node_port;
            if endpoint.port.is_some_and(|wanted| !named(wanted.into())) {
                continue;
            }
            let scheme = endpoint.protocol.as_deref().unwrap_or_else(|| scheme(port));
            let mut add = |host: &str, port: i32, inside| {
                let text = url(scheme, host, port);
                urls.push(Url { text, inside });
            };
            for host in &outside {
                add(host, port.port, false);
            }
            if let Some(node_port) = port.node_port {
                for node in nodes {
                    add(node, node_port, false);
                }
            } else if outside.is_empty()
                && let Some(address) = spec.cluster_ip.as_deref().filter(|ip| *ip != "None")
            {
                add(address, port.port, true);
            }
        }
    }
    urls.sort();
    urls.dedup();
    urls
}

/// The first internal address of a node.
fn internal_address(node: &Node) -> Option<String> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let mut internal = addresses.iter().filter(|one| one.type_ == "InternalIP");
    internal.next().map(|one| one.address.clone())
}

fn scheme(port: &ServicePort) -> &'static str {
    let hint = port
        .app_protocol
        .as_deref()
        .or(port.name.as_deref())
        .unwrap_or_default();
    match (hint, port.port) {
        (hint, _) if hint.starts_with("https") => "https",
        (hint, _) if hint.starts_with("http") => "http",
        (_, 443 | 8443) => "https",
        (_, 80 | 8080) => "http",
        _ if port.protocol.as_deref() == Some("UDP") => "udp",
        _ => "tcp",
    }
}

fn url(scheme: &str, host: &str, port: i32) -> String {
    let scheme = scheme.to_lowercase();
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.into()
    };
    match (scheme.as_str(), port) {
        ("http", 80) | ("https", 443) => format!("{scheme}://{host}"),
        _ => format!("{scheme}://{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value, status: Value) -> Service {
        serde_json::from_value(json!({ "spec": spec, "status": status })).unwrap()
    }

    fn found(endpoint: &Endpoint, spec: Value, status: Value) -> Vec<Url> {
        let nodes = ["10.0.0.1".to_owned(), "fd00::1".to_owned()];
        urls(endpoint, &[service(spec, status)], &nodes)
    }

    fn run(endpoint: &Endpoint, spec: Value, status: Value) -> Vec<String> {
        let found = found(endpoint, spec, status).into_iter();
        found.map(|url| url.text).collect()
    }

    #[test]
    fn only_an_address_of_the_cluster_is_inside() {
        let inside = |spec: Value| {
            let found = found(&Endpoint::default(), spec, json!({})).into_iter();
            found.map(|url| url.inside).collect::<Vec<_>>()
        };
        let plain = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
        assert_eq!(inside(plain), [true]);
        let external =
            json!({"externalIPs": ["10.0.0.9"], "ports": [{"port": 80, "nodePort": 30080}]});
        assert_eq!(inside(external), [false; 3]);
    }

    #[test]
    fn node_ports_are_reached_on_every_node() {
        let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": 30080}]});
        assert_eq!(
            run(&Endpoint::default(), spec.clone(), json!({})),
            ["http://10.0.0.1:30080", "http://[fd00::1]:30080"]
        );
        let https = Endpoint {
            protocol: Some("HTTPS".into()),
            ..Endpoint::default()
        };
        assert_eq!(
            run(&https, spec.clone(), json!({}))[0],
            "https://10.0.0.1:30080"
        );
        let by_node_port = Endpoint {
            port: Some(30080),
            ..Endpoint::default()
        };
        assert_eq!(run(&by_node_port, spec.clone(), json!({})).len(), 2);
        let other = Endpoint {
            port: Some(81),
            ..Endpoint::default()
        };
        assert_eq!(run(&other, spec, json!({})), [] as [&str; 0]);
    }

    #[test]
    fn other_services_are_reached_by_their_own_address() {
        let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 443}, {"port": 5432}]});
        assert_eq!(
            run(&Endpoint::default(), spec, json!({})),
            ["https://10.96.0.7", "tcp://10.96.0.7:5432"]
        );
        let headless = json!({"clusterIP": "None", "ports": [{"port": 80}]});
        assert_eq!(
            run(&Endpoint::default(), headless, json!({})),
            [] as [&str; 0]
        );
        let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 9000, "name": "http-api"}]});
        let status = json!({"loadBalancer": {"ingress": [{"hostname": "lb.example.com"}]}});
        assert_eq!(
            run(&Endpoint::default(), spec, status),
            ["http://lb.example.com:9000"]
        );
    }
}
