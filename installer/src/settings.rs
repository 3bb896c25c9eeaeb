//! Resources of Gravity that a user gives to an install: what the cluster's services
//! are to be like.
//!
//! In: documents of `--config`. Out: [`Settings`], of which the networks take the place
//! of defaults and the rest goes into the [`ClusterSpec`](spec::ClusterSpec), which all
//! nodes have. Always holds: what could take a node's services from each other, or open
//! them to others, is refused, and so is any field that nothing would come of. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use spec::ServiceSettings;

/// Kinds of the resources that are understood, and their version.
const ENVIRONMENT: &str = "RuntimeEnvironment";
const CONFIGURATION: &str = "ClusterConfiguration";
const VERSION: &str = "v1";
/// Most that the settings may take, in bytes of JSON: the description of a cluster,
/// which holds them, is one object of Kubernetes.
const MAX_SIZE: usize = 32 << 10;
/// Highest port of a service of our own, but that of WireGuard.
const MAX_OWN_PORT: u16 = 10_259;
/// Form of a kubelet's configuration.
const KUBELET: [(&str, &str); 2] = [
    ("apiVersion", "kubelet.config.k8s.io/v1beta1"),
    ("kind", "KubeletConfiguration"),
];
/// Fields of it by which other services find a kubelet, trust it or share with it.
const OURS: [&str; 19] = [
    "address",
    "authentication",
    "authorization",
    "cgroupDriver",
    "cgroupRoot",
    "clusterDNS",
    "clusterDomain",
    "containerRuntimeEndpoint",
    "enforceNodeAllocatable",
    "healthzBindAddress",
    "healthzPort",
    "podCIDR",
    "port",
    "readOnlyPort",
    "resolvConf",
    "rotateCertificates",
    "serverTLSBootstrap",
    "tlsCertFile",
    "tlsPrivateKeyFile",
];

/// What resources of Gravity say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Addresses of pods.
    pub pod_cidr: Option<String>,
    /// Addresses of services.
    pub service_cidr: Option<String>,
    /// What all nodes have to know.
    pub services: ServiceSettings,
    /// Kinds of the resources that were taken in.
    kinds: BTreeSet<&'static str>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resource<T> {
    #[serde(rename = "kind")]
    _kind: String,
    version: String,
    #[serde(default, rename = "metadata")]
    _metadata: Value,
    spec: T,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuntimeEnvironment {
    data: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterConfiguration {
    #[serde(default)]
    global: Global,
    #[serde(default)]
    kubelet: Kubelet,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Global {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "serviceCIDR")]
    service_cidr: Option<String>,
    service_node_port_range: Option<String>,
    #[serde(default)]
    feature_gates: BTreeMap<String, bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kubelet {
    #[serde(default)]
    config: Map<String, Value>,
}

impl Settings {
    /// Takes one of the resources in.
    ///
    /// # Errors
    /// With the reason why it can't be: it is of another kind, comes a second time, or
    /// its values are none.
    pub fn add(&mut self, resource: &Value) -> Result<(), String> {
        let is = |kind: &&str| {
            let given = resource["kind"].as_str();
            given.is_some_and(|given| given.eq_ignore_ascii_case(kind))
        };
        let kind = [ENVIRONMENT, CONFIGURATION].into_iter().find(is);
        let kind = kind.ok_or_else(|| {
            format!(
                "is of a kind of Gravity that this release does not support: it knows \
                 {CONFIGURATION} and {ENVIRONMENT}; remove it"
            )
        })?;
        if !self.kinds.insert(kind) {
            return Err(format!("is the second {kind}: make one of both"));
        }
        match kind {
            ENVIRONMENT => self.add_environment(read(resource)?)?,
            _ => self.add_configuration(read(resource)?)?,
        }
        let size = serde_json::to_vec(&self.services).map_or(usize::MAX, |json| json.len());
        match size > MAX_SIZE {
            true => Err(format!("is too long: more than {MAX_SIZE} bytes")),
            false => Ok(()),
        }
    }

    fn add_environment(
        &mut self,
        RuntimeEnvironment { data }: RuntimeEnvironment,
    ) -> Result<(), String> {
        for (name, value) in &data {
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let begins = name.starts_with(|c: char| !c.is_ascii_digit());
            if !begins || !name.chars().all(is_name) {
                return Err(format!("has {name:?}, which is no name of a variable"));
            }
            if value.contains('\0') {
                return Err(format!("has a value of {name} with a NUL in it"));
            }
        }
        self.services.environment = data;
        Ok(())
    }

    fn add_configuration(&mut self, added: ClusterConfiguration) -> Result<(), String> {
        let ClusterConfiguration { global, kubelet } = added;
        if let Some(ports) = &global.service_node_port_range {
            check_ports(ports)?;
        }
        let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric());
        if let Some(gate) = global.feature_gates.keys().find(|gate| !is_name(gate)) {
            return Err(format!("has {gate:?}, which is no name of a feature gate"));
        }
        self.services.kubelet = kubelet_fields(kubelet.config)?;
        self.services.feature_gates = global.feature_gates;
        self.services.node_ports = global.service_node_port_range;
        self.pod_cidr = global.pod_cidr;
        self.service_cidr = global.service_cidr;
        Ok(())
    }
}

fn read<T: DeserializeOwned>(resource: &Value) -> Result<T, String> {
    let resource: Resource<T> = serde_json::from_value(resource.clone())
        .map_err(|error| format!("can't be used: {error}"))?;
    match resource.version == VERSION {
        true => Ok(resource.spec),
        false => Err(format!(
            "is of version {:?}, and this release understands {VERSION}",
            resource.version
        )),
    }
}

/// Ports of Services: two numbers, which no service of ours has.
fn check_ports(ports: &str) -> Result<(), String> {
    let bounds = ports.split_once('-');
    let bounds = bounds.map(|(first, last)| (first.parse::<u16>(), last.parse()));
    match bounds {
        Some((Ok(first), Ok(last))) if first <= last && first > MAX_OWN_PORT => Ok(()),
        _ => Err(format!(
            "has serviceNodePortRange {ports:?}, which is no range of ports above {MAX_OWN_PORT}, \
             such as 30000-32767"
        )),
    }
}

/// The fields that take the place of ours.
fn kubelet_fields(mut fields: Map<String, Value>) -> Result<Map<String, Value>, String> {
    for (name, value) in KUBELET {
        if fields.remove(name).is_some_and(|given| given != value) {
            return Err(format!("has kubelet.config whose {name} is not {value}"));
        }
    }
    let gates = fields.get("featureGates");
    if gates.is_some_and(|gates| !gates.is_object()) {
        return Err("has featureGates in kubelet.config that are no gates".into());
    }
    match OURS.iter().find(|name| fields.contains_key(**name)) {
        Some(name) => Err(format!(
            "has {name} in kubelet.config, which is chosen by the install; remove it"
        )),
        None => Ok(fields),
    }
}

#[cfg(test)]
mod tests {
    use cluster::is_of_gravity;
    use serde_json::json;

    use super::*;

    fn configuration(spec: Value) -> Value {
        json!({ "kind": "ClusterConfiguration", "version": "v1", "spec": spec })
    }

    fn environment(data: Value) -> Value {
        json!({
            "kind": "runtimeenvironment", "version": "v1", "metadata": { "name": "any" },
            "spec": { "data": data },
        })
    }

    fn refused(resource: &Value) -> String {
        Settings::default().add(resource).unwrap_err()
    }

    #[test]
    fn both_kinds_are_taken() {
        let mut settings = Settings::default();
        let environment = environment(json!({ "HTTP_PROXY": "proxy.example:8001" }));
        let configuration = configuration(json!({
            "global": {
                "podCIDR": "10.1.0.0/16", "serviceCIDR": "10.2.0.0/16",
                "serviceNodePortRange": "31000-31999",
                "featureGates": { "AllAlpha": false },
            },
            "kubelet": { "config": {
                "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
                "maxPods": 50,
            } },
        }));
        assert!(is_of_gravity(&environment) && is_of_gravity(&configuration));
        settings.add(&environment).unwrap();
        settings.add(&configuration).unwrap();
        assert_eq!(settings.pod_cidr.as_deref(), Some("10.1.0.0/16"));
        assert_eq!(settings.service_cidr.as_deref(), Some("10.2.0.0/16"));
        let services = &settings.services;
        assert_eq!(services.environment["HTTP_PROXY"], "proxy.example:8001");
        assert_eq!(services.node_ports.as_deref(), Some("31000-31999"));
        assert!(!services.feature_gates["AllAlpha"]);
        assert_eq!(
            Value::Object(services.kubelet.clone()),
            json!({ "maxPods": 50 })
        );
        for again in [environment, configuration] {
            assert!(settings.add(&again).unwrap_err().contains("second"));
        }
    }

    #[test]
    fn what_nothing_would_come_of_is_refused() {
        for (resource, reason) in [
            (
                json!({ "kind": "user", "version": "v2" }),
                "a kind of Gravity",
            ),
            (
                json!({ "kind": "RuntimeEnvironment", "version": "v1" }),
                "missing field `spec`",
            ),
            (
                json!({ "kind": "RuntimeEnvironment", "version": "v3", "spec": { "data": {} } }),
                "understands v1",
            ),
            (environment(json!({ "1A": "" })), "no name of a variable"),
            (environment(json!({ "A=B": "" })), "no name of a variable"),
            (environment(json!({ "": "" })), "no name of a variable"),
            (environment(json!({ "A": "a\0b" })), "NUL"),
            (
                environment(json!({ "A": "a".repeat(MAX_SIZE) })),
                "too long",
            ),
            (
                configuration(json!({ "global": { "cloudProvider": "aws" } })),
                "cloudProvider",
            ),
            (
                configuration(json!({ "kubelet": { "config": { "featureGates": "A=true" } } })),
                "that are no gates",
            ),
            (
                configuration(json!({ "kubelet": { "extraArgs": [] } })),
                "extraArgs",
            ),
            (
                configuration(json!({ "global": { "featureGates": { "A,B": true } } })),
                "A,B",
            ),
            (
                configuration(json!({ "kubelet": { "config": { "kind": "Pod" } } })),
                "kind is not KubeletConfiguration",
            ),
            (
                configuration(json!({ "kubelet": { "config": { "authorization": {} } } })),
                "has authorization in kubelet.config",
            ),
        ] {
            let refused = refused(&resource);
            assert!(refused.contains(reason), "{refused}");
        }
        for ports in [
            "",
            "30000",
            "2-1",
            "31000-30000",
            "1-70000",
            "6000-32767",
            "a-b",
        ] {
            let spec = json!({ "global": { "serviceNodePortRange": ports } });
            assert!(
                refused(&configuration(spec)).contains("no range of ports"),
                "{ports}"
            );
        }
    }
}
