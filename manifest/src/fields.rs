//! The fields of the manifest: which there are, which must be there, what each
//! holds. One decoder a mapping, one line a field.

use std::collections::BTreeMap;

use semver::Version;
use serde_json::json;

use crate::decode::{Decoder, Source, boolean, integer, list, name, parsed, text, text_map};
use crate::types::{
    Aws, Cpu, CustomCheck, Dependencies, Device, Docker, Enabled, Encryption, Endpoint, Etcd, Eula,
    Extension, Extensions, Flavor, FlavorNode, Flavors, Generic, IamPolicy, Ingress, Installer,
    Kind, Kubelet, License, Manifest, Metadata, Network, NodeProfile, Os, Port, Ports, ProfileAws,
    ProfileProviders, Protocol, Provider, ProviderNetwork, Providers, Ram, Requirements, Runtime,
    Storage, SystemDependencies, SystemOptions, Taint, TaintEffect, Terraform, Volume,
};
use crate::yaml::{Node, Value};
use crate::{Bytes, HookName, Mode, PortRange, ValueError};

/// The only repository of packages there is.
const REPOSITORY: &str = "gravitational.io";

const API_VERSION: &str = "cluster.gravitational.io/v2";
const API_VERSIONS: [&str; 2] = [API_VERSION, "bundle.gravitational.io/v2"];

/// Decodes the root. The result is only of use when no error was reported.
pub(crate) fn manifest(d: &mut Decoder, node: &Node) -> Manifest {
    let mut f = d.fields(node, "");
    let manifest = Manifest {
        api_version: f
            .optional(d, "apiVersion", api_version)
            .unwrap_or_else(|| API_VERSION.into()),
        kind: f.optional(d, "kind", parsed).unwrap_or(Kind::Cluster),
        metadata: f
            .required(d, "metadata", metadata)
            .unwrap_or_else(no_metadata),
        base_image: f.optional(d, "baseImage", parsed),
        release_notes: f.optional(d, "releaseNotes", text),
        logo: f.optional(d, "logo", logo),
        endpoints: f.or_default(d, "endpoints", list(endpoint)),
        providers: f.or_default(d, "providers", providers),
        installer: f.or_default(d, "installer", installer),
        node_profiles: f.or_default(d, "nodeProfiles", list(node_profile)),
        license: f.or_default(d, "license", license),
        system_options: f.or_default(d, "systemOptions", system_options),
        extensions: f.or_default(d, "extensions", extensions),
        web_config: f.optional(d, "webConfig", web_config),
        dependencies: f.or_default(d, "dependencies", dependencies),
        ingress: f.or_default(d, "ingress", ingress),
        storage: f.or_default(d, "storage", storage),
        hooks: f.or_default(d, "hooks", hooks),
        source: Source::default(),
    };
    f.finish(d);
    manifest
}

fn no_metadata() -> Metadata {
    Metadata {
        name: String::new(),
        resource_version: Version::new(0, 0, 0),
        description: None,
        author: None,
        labels: BTreeMap::new(),
        namespace: None,
        repository: None,
        created_timestamp: None,
        hidden: false,
    }
}

fn api_version(d: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let version = text(d, node, path);
    d.narrow(&[("type", json!("string")), ("enum", json!(API_VERSIONS))]);
    let version = version?;
    if !API_VERSIONS.contains(&version.as_str()) {
        let help = format!("write {API_VERSION}");
        return invalid(
            d,
            node,
            path,
            "a version of the manifest that is known",
            &help,
        );
    }
    Some(version)
}

/// `url(...)` around a URL, as in a style sheet, is taken off.
fn logo(d: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let value = text(d, node, path);
    let pattern = r#"^\s*(url\(\s*["']?)?(file://|https?://|data:image/)"#;
    d.narrow(&[("type", json!("string")), ("pattern", json!(pattern))]);
    let value = value?;
    let value = value.trim();
    let inner = value
        .strip_prefix("url(")
        .and_then(|rest| rest.strip_suffix(')'));
    let logo = inner.map_or(value, |inner| inner.trim().trim_matches(['"', '\'']));
    if !["data:image/", "file://", "http://", "https://"]
        .iter()
        .any(|scheme| logo.starts_with(scheme))
    {
        let help = "write a URL that begins with file://, https://, http:// or data:image/";
        return invalid(d, node, path, "the URL of an image", help);
    }
    Some(logo.to_owned())
}

fn metadata(d: &mut Decoder, node: &Node, path: &str) -> Option<Metadata> {
    d.mapping(node, path, |d, f| Metadata {
        name: f.required(d, "name", image_name).unwrap_or_default(),
        resource_version: f
            .required(d, "resourceVersion", version)
            .unwrap_or_else(|| Version::new(0, 0, 0)),
        description: f.optional(d, "description", text),
        author: f.optional(d, "author", text),
        labels: f.or_default(d, "labels", text_map),
        namespace: f.optional(d, "namespace", dns_label),
        repository: f.optional(d, "repository", repository),
        created_timestamp: f.optional(d, "createdTimestamp", timestamp),
        hidden: f.or_default(d, "hidden", boolean),
    })
}

/// A value that has the wrong form.
fn invalid<T>(d: &mut Decoder, node: &Node, path: &str, what: &str, help: &str) -> Option<T> {
    let message = format!("`{path}`: {} is not {what}", node.describe());
    d.error(node.at, "invalid-value", message, Some(help.into()));
    None
}

/// The name of a namespace or a service.
fn dns_label(d: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let name = name(d, node, path);
    d.narrow(&[("pattern", json!("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]);
    let name = name?;
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = name.starts_with('-') || name.ends_with('-');
    if name.len() > 63 || edges || !name.chars().all(good) {
        let help =
            "use at most 63 lower-case letters, digits and \"-\", a letter or digit at both ends";
        return invalid(d, node, path, "a Kubernetes name", help);
    }
    Some(name)
}

fn repository(d: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let name = text(d, node, path);
    d.narrow(&[("type", json!("string")), ("enum", json!([REPOSITORY]))]);
    match name? {
        name if name == REPOSITORY => Some(name),
        _ => invalid(
            d,
            node,
            path,
            "a repository",
            "leave it out: there is only gravitational.io",
        ),
    }
}

fn timestamp(d: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let time = text(d, node, path);
    d.narrow(&[("type", json!("string")), ("format", json!("date-time"))]);
    let time = time?;
    match time.parse::<jiff::Timestamp>() {
        Ok(_) => Some(time),
        Err(_) => invalid(d, node, path, "a time", "write it as 2026-01-31T12:00:00Z"),
    }
}

fn image_name(d: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let name = name(d, node, path);
    d.narrow(&[("pattern", json!("^[a-zA-Z0-9_-]{1,128}$"))]);
    let name = name?;
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.chars().all(good) || name.len() > 128 {
        let help = "use at most 128 letters, digits, \"-\" and \"_\"";
        return invalid(d, node, path, "a name", help);
    }
    Some(name)
}

fn version(d: &mut Decoder, node: &Node, path: &str) -> Option<Version> {
    let version = text(d, node, path);
    let pattern =
        r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$";
    d.narrow(&[("type", json!("string")), ("pattern", json!(pattern))]);
    let version = version?;
    match Version::parse(&version) {
        Ok(version) => Some(version),
        Err(error) => {
            let what = format!("a semantic version ({error})");
            let help = "write three numbers, such as 1.2.3 or 1.2.3-alpha.1";
            invalid(d, node, path, &what, help)
        }
    }
}

fn endpoint(d: &mut Decoder, node: &Node, path: &str) -> Option<Endpoint> {
    d.mapping(node, path, |d, f| Endpoint {
        name: f.required(d, "name", name).unwrap_or_default(),
        description: f.optional(d, "description", text),
        selector: f.or_default(d, "selector", text_map),
        service_name: f.optional(d, "serviceName", dns_label),
        namespace: f.optional(d, "namespace", dns_label),
        protocol: f.optional(d, "protocol", name),
        port: f.optional(d, "port", integer),
        hidden: f.or_default(d, "hidden", boolean),
    })
}

fn providers(d: &mut Decoder, node: &Node, path: &str) -> Option<Providers> {
    d.mapping(node, path, |d, f| Providers {
        default: f.optional(d, "default", name),
        aws: f.or_default(d, "aws", aws),
        azure: f.or_default(d, "azure", provider),
        generic: f.or_default(d, "generic", generic),
    })
}

fn aws(d: &mut Decoder, node: &Node, path: &str) -> Option<Aws> {
    d.mapping(node, path, |d, f| Aws {
        network: f.optional(d, "network", provider_network),
        regions: f.or_default(d, "regions", list(name)),
        iam_policy: f.optional(d, "iamPolicy", iam_policy),
        terraform: f.or_default(d, "terraform", terraform),
        disabled: f.or_default(d, "disabled", boolean),
    })
}

fn iam_policy(d: &mut Decoder, node: &Node, path: &str) -> Option<IamPolicy> {
    d.mapping(node, path, |d, f| IamPolicy {
        version: f.optional(d, "version", name),
        actions: f.or_default(d, "actions", list(name)),
    })
}

fn provider_network(d: &mut Decoder, node: &Node, path: &str) -> Option<ProviderNetwork> {
    d.mapping(node, path, |d, f| ProviderNetwork {
        kind: f.optional(d, "type", name),
    })
}

fn terraform(d: &mut Decoder, node: &Node, path: &str) -> Option<Terraform> {
    d.mapping(node, path, |d, f| Terraform {
        script: f.optional(d, "script", text),
        instance_script: f.optional(d, "instanceScript", text),
    })
}

fn provider(d: &mut Decoder, node: &Node, path: &str) -> Option<Provider> {
    d.mapping(node, path, |d, f| Provider {
        disabled: f.or_default(d, "disabled", boolean),
    })
}

fn generic(d: &mut Decoder, node: &Node, path: &str) -> Option<Generic> {
    d.mapping(node, path, |d, f| Generic {
        network: f.or_default(d, "network", network),
        disabled: f.or_default(d, "disabled", boolean),
    })
}

fn network(d: &mut Decoder, node: &Node, path: &str) -> Option<Network> {
    d.mapping(node, path, |d, f| Network {
        kind: f.optional(d, "type", parsed),
    })
}

fn installer(d: &mut Decoder, node: &Node, path: &str) -> Option<Installer> {
    d.mapping(node, path, |d, f| Installer {
        eula: f.optional(d, "eula", eula),
        flavors: f.optional(d, "flavors", flavors),
        setup_endpoints: f.or_default(d, "setupEndpoints", list(name)),
    })
}

fn eula(d: &mut Decoder, node: &Node, path: &str) -> Option<Eula> {
    d.mapping(node, path, |d, f| Eula {
        source: f.required(d, "source", name).unwrap_or_default(),
    })
}

fn flavors(d: &mut Decoder, node: &Node, path: &str) -> Option<Flavors> {
    d.mapping(node, path, |d, f| Flavors {
        prompt: f.optional(d, "prompt", text),
        description: f.optional(d, "description", text),
        default: f.optional(d, "default", name),
        items: f.required(d, "items", list(flavor)).unwrap_or_default(),
    })
}

fn flavor(d: &mut Decoder, node: &Node, path: &str) -> Option<Flavor> {
    d.mapping(node, path, |d, f| Flavor {
        name: f.required(d, "name", name).unwrap_or_default(),
        description: f.optional(d, "description", text),
        nodes: f
            .required(d, "nodes", list(flavor_node))
            .unwrap_or_default(),
    })
}

fn flavor_node(d: &mut Decoder, node: &Node, path: &str) -> Option<FlavorNode> {
    d.mapping(node, path, |d, f| FlavorNode {
        profile: f.required(d, "profile", name).unwrap_or_default(),
        count: f.required(d, "count", integer).unwrap_or_default(),
    })
}

fn node_profile(d: &mut Decoder, node: &Node, path: &str) -> Option<NodeProfile> {
    d.mapping(node, path, |d, f| NodeProfile {
        name: f.required(d, "name", name).unwrap_or_default(),
        description: f.optional(d, "description", text),
        labels: f.or_default(d, "labels", text_map),
        taints: f.or_default(d, "taints", list(taint)),
        service_role: f.optional(d, "serviceRole", parsed),
        expand_policy: f.optional(d, "expandPolicy", parsed),
        providers: f.or_default(d, "providers", profile_providers),
        requirements: f.or_default(d, "requirements", requirements),
        system_options: f.or_default(d, "systemOptions", system_options),
    })
}

fn profile_providers(d: &mut Decoder, node: &Node, path: &str) -> Option<ProfileProviders> {
    d.mapping(node, path, |d, f| ProfileProviders {
        aws: f.or_default(d, "aws", profile_aws),
    })
}

fn profile_aws(d: &mut Decoder, node: &Node, path: &str) -> Option<ProfileAws> {
    d.mapping(node, path, |d, f| ProfileAws {
        instance_types: f.or_default(d, "instanceTypes", list(name)),
    })
}

fn taint(d: &mut Decoder, node: &Node, path: &str) -> Option<Taint> {
    d.mapping(node, path, |d, f| Taint {
        key: f.required(d, "key", name).unwrap_or_default(),
        value: f.or_default(d, "value", text),
        effect: f
            .required(d, "effect", parsed)
            .unwrap_or(TaintEffect::NoSchedule),
    })
}

fn requirements(d: &mut Decoder, node: &Node, path: &str) -> Option<Requirements> {
    d.mapping(node, path, |d, f| Requirements {
        cpu: f.or_default(d, "cpu", cpu),
        ram: f.or_default(d, "ram", ram),
        os: f.or_default(d, "os", list(os)),
        custom_checks: f.or_default(d, "customChecks", list(custom_check)),
        volumes: f.or_default(d, "volumes", list(volume)),
        devices: f.or_default(d, "devices", list(device)),
        network: f.or_default(d, "network", ports),
    })
}

fn cpu(d: &mut Decoder, node: &Node, path: &str) -> Option<Cpu> {
    d.mapping(node, path, |d, f| Cpu {
        min: f.optional(d, "min", integer),
        // Manifests write 0 for no limit.
        max: f.optional(d, "max", integer).filter(|max| *max > 0),
    })
}

fn ram(d: &mut Decoder, node: &Node, path: &str) -> Option<Ram> {
    d.mapping(node, path, |d, f| Ram {
        min: f.optional(d, "min", parsed),
        max: f.optional(d, "max", parsed).filter(|max: &Bytes| max.0 > 0),
    })
}

fn os(d: &mut Decoder, node: &Node, path: &str) -> Option<Os> {
    d.mapping(node, path, |d, f| Os {
        name: f.required(d, "name", name).unwrap_or_default(),
        versions: f.or_default(d, "versions", list(name)),
    })
}

fn custom_check(d: &mut Decoder, node: &Node, path: &str) -> Option<CustomCheck> {
    d.mapping(node, path, |d, f| CustomCheck {
        description: f.optional(d, "description", text),
        script: f.required(d, "script", name).unwrap_or_default(),
    })
}

fn volume(d: &mut Decoder, node: &Node, path: &str) -> Option<Volume> {
    d.mapping(node, path, |d, f| {
        let skip = f.or_default(d, "skipIfMissing", boolean);
        Volume {
            path: f.required(d, "path", absolute_path).unwrap_or_default(),
            name: f.optional(d, "name", name),
            target_path: f.optional(d, "targetPath", absolute_path),
            capacity: f.optional(d, "capacity", parsed),
            filesystems: f.or_default(d, "filesystems", list(name)),
            min_transfer_rate: f.optional(d, "minTransferRate", parsed),
            create_if_missing: f.optional(d, "createIfMissing", boolean).unwrap_or(!skip),
            skip_if_missing: skip,
            uid: f.optional(d, "uid", integer),
            gid: f.optional(d, "gid", integer),
            mode: f.optional(d, "mode", mode),
            recursive: f.or_default(d, "recursive", boolean),
            hidden: f.or_default(d, "hidden", boolean),
            selinux_label: f.optional(d, "seLinuxLabel", name),
        }
    })
}

fn absolute_path(d: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let value = text(d, node, path);
    d.narrow(&[("type", json!("string")), ("pattern", json!("^/"))]);
    let value = value?;
    if !value.starts_with('/') || value.split('/').any(|part| part == "..") || value.contains('\0')
    {
        let help = "begin with \"/\", without \"..\"";
        return invalid(d, node, path, "an absolute path", help);
    }
    Some(value)
}

/// Without quotes YAML reads 0755 as octal or decimal, by its version.
fn mode(d: &mut Decoder, node: &Node, path: &str) -> Option<Mode> {
    if let Value::Scalar { text, plain: true } = &node.value
        && !node.is_null()
        && text.bytes().all(|digit| digit.is_ascii_digit())
    {
        let message = format!("`{path}` must be text in quotes, not the number {text}");
        let help = format!("write \"{text}\"");
        d.error(node.at, "wrong-type", message, Some(help));
        return None;
    }
    parsed(d, node, path)
}

fn device(d: &mut Decoder, node: &Node, path: &str) -> Option<Device> {
    d.mapping(node, path, |d, f| Device {
        path: f.required(d, "path", absolute_path).unwrap_or_default(),
        permissions: f.optional(d, "permissions", permissions),
        file_mode: f.optional(d, "fileMode", mode),
        uid: f.or_default(d, "uid", integer),
        gid: f.or_default(d, "gid", integer),
    })
}

fn permissions(d: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let value = text(d, node, path);
    d.narrow(&[
        ("type", json!("string")),
        ("pattern", json!("^[rwm]{1,3}$")),
    ]);
    let value = value?;
    let twice = |(at, c): (usize, char)| value[..at].contains(c);
    if value.is_empty()
        || !value.chars().all(|c| "rwm".contains(c))
        || value.char_indices().any(twice)
    {
        let message = format!("`{path}`: \"{value}\" are not permissions of a device");
        let help = "use each of r (read), w (write) and m (mknod) at most once";
        d.error(node.at, "invalid-value", message, Some(help.into()));
        return None;
    }
    Some(value)
}

fn ports(d: &mut Decoder, node: &Node, path: &str) -> Option<Ports> {
    d.mapping(node, path, |d, f| Ports {
        min_transfer_rate: f.optional(d, "minTransferRate", parsed),
        ports: f.or_default(d, "ports", list(port)),
    })
}

fn port(d: &mut Decoder, node: &Node, path: &str) -> Option<Port> {
    d.mapping(node, path, |d, f| Port {
        protocol: f.optional(d, "protocol", parsed).unwrap_or(Protocol::Tcp),
        ranges: f
            .required(d, "ranges", list(port_ranges))
            .unwrap_or_default()
            .concat(),
    })
}

/// One or more ranges, with commas between them.
fn port_ranges(d: &mut Decoder, node: &Node, path: &str) -> Option<Vec<PortRange>> {
    let several = text(d, node, path);
    let range = r"\s*[0-9]{1,5}\s*(-\s*[0-9]{1,5}\s*)?";
    let pattern = format!("^{range}(,{range})*$");
    d.narrow(&[
        ("pattern", json!(pattern)),
        ("examples", json!(["8080", "10000-10005"])),
    ]);
    let mut ranges = Vec::new();
    for range in several?.split(',') {
        match range.parse::<PortRange>() {
            Ok(range) => ranges.push(range),
            Err(ValueError { message, allowed }) => {
                let message = format!("`{path}`: {message}");
                d.error(node.at, "invalid-value", message, Some(allowed));
            }
        }
    }
    Some(ranges)
}

fn license(d: &mut Decoder, node: &Node, path: &str) -> Option<License> {
    d.mapping(node, path, |d, f| License {
        enabled: f.or_default(d, "enabled", boolean),
        kind: f.optional(d, "type", parsed),
    })
}

fn web_config(d: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let config = text(d, node, path)?;
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&config) {
        Ok(_) => Some(config),
        Err(_) => invalid(
            d,
            node,
            path,
            "a JSON object",
            "write it as text, such as '{\"key\": 1}'",
        ),
    }
}

fn dependencies(d: &mut Decoder, node: &Node, path: &str) -> Option<Dependencies> {
    d.mapping(node, path, |d, f| Dependencies {
        packages: f.or_default(d, "packages", list(parsed)),
        apps: f.or_default(d, "apps", list(parsed)),
    })
}

fn ingress(d: &mut Decoder, node: &Node, path: &str) -> Option<Ingress> {
    d.mapping(node, path, |d, f| Ingress {
        nginx: f.or_default(d, "nginx", enabled),
    })
}

fn storage(d: &mut Decoder, node: &Node, path: &str) -> Option<Storage> {
    d.mapping(node, path, |d, f| Storage {
        openebs: f.or_default(d, "openebs", enabled),
    })
}

fn enabled(d: &mut Decoder, node: &Node, path: &str) -> Option<Enabled> {
    d.mapping(node, path, |d, f| Enabled {
        enabled: f.or_default(d, "enabled", boolean),
    })
}

fn system_options(d: &mut Decoder, node: &Node, path: &str) -> Option<SystemOptions> {
    d.mapping(node, path, |d, f| SystemOptions {
        base_image: f.optional(d, "baseImage", name),
        docker: f.or_default(d, "docker", docker),
        etcd: f.or_default(d, "etcd", etcd),
        kubelet: f.or_default(d, "kubelet", kubelet),
        allow_privileged: f.optional(d, "allowPrivileged", boolean),
        args: f.or_default(d, "args", list(text)),
        runtime: f.optional(d, "runtime", runtime),
        dependencies: f.or_default(d, "dependencies", system_dependencies),
    })
}

fn runtime(d: &mut Decoder, node: &Node, path: &str) -> Option<Runtime> {
    d.mapping(node, path, |d, f| Runtime {
        name: f.optional(d, "name", name),
        version: f.optional(d, "version", version),
        repository: f.optional(d, "repository", repository),
    })
}

fn system_dependencies(d: &mut Decoder, node: &Node, path: &str) -> Option<SystemDependencies> {
    d.mapping(node, path, |d, f| SystemDependencies {
        runtime_package: f.optional(d, "runtimePackage", parsed),
    })
}

fn docker(d: &mut Decoder, node: &Node, path: &str) -> Option<Docker> {
    d.mapping(node, path, |d, f| Docker {
        storage_driver: f.optional(d, "storageDriver", parsed),
        capacity: f.optional(d, "capacity", parsed),
        args: f.or_default(d, "args", list(text)),
    })
}

fn etcd(d: &mut Decoder, node: &Node, path: &str) -> Option<Etcd> {
    d.mapping(node, path, |d, f| Etcd {
        args: f.or_default(d, "args", list(text)),
    })
}

fn kubelet(d: &mut Decoder, node: &Node, path: &str) -> Option<Kubelet> {
    d.mapping(node, path, |d, f| Kubelet {
        args: f.or_default(d, "args", list(text)),
        hairpin_mode: f.optional(d, "hairpinMode", parsed),
    })
}

fn extensions(d: &mut Decoder, node: &Node, path: &str) -> Option<Extensions> {
    d.mapping(node, path, |d, f| Extensions {
        logs: f.optional(d, "logs", extension),
        monitoring: f.optional(d, "monitoring", extension),
        catalog: f.optional(d, "catalog", extension),
        encryption: f.optional(d, "encryption", encryption),
        kubernetes: f.optional(d, "kubernetes", extension),
        configuration: f.optional(d, "configuration", extension),
        ops_center: f.optional(d, "opsCenter", extension),
    })
}

fn encryption(d: &mut Decoder, node: &Node, path: &str) -> Option<Encryption> {
    d.mapping(node, path, |d, f| Encryption {
        encryption_key: f.required(d, "encryptionKey", name).unwrap_or_default(),
        ca_cert: f.required(d, "caCert", name).unwrap_or_default(),
    })
}

fn extension(d: &mut Decoder, node: &Node, path: &str) -> Option<Extension> {
    d.mapping(node, path, |d, f| Extension {
        disabled: f.or_default(d, "disabled", boolean),
    })
}

/// Hooks without a value or a job are absent: manifests list them all.
fn hooks(d: &mut Decoder, node: &Node, path: &str) -> Option<BTreeMap<HookName, String>> {
    d.mapping(node, path, |d, f| {
        let mut hooks = BTreeMap::new();
        for hook in HookName::ALL {
            let job = |d: &mut Decoder, node: &Node, path: &str| job(d, node, path, *hook);
            if let Some(Some(job)) = f.optional(d, hook.as_str(), job) {
                hooks.insert(*hook, job);
            }
        }
        hooks
    })
}

fn job(d: &mut Decoder, node: &Node, path: &str, hook: HookName) -> Option<Option<String>> {
    d.mapping(node, path, |d, f| {
        let job = f.optional(d, "job", name);
        // Of no use, but others write it.
        f.optional(d, "type", |d, node, path| {
            let kind = text(d, node, path);
            d.narrow(&[("type", json!("string")), ("enum", json!([hook.as_str()]))]);
            if kind? != hook.as_str() {
                let help = format!("leave it out, or write {hook}");
                invalid::<()>(d, node, path, "the type of this hook", &help);
            }
            Some(())
        });
        job
    })
}
