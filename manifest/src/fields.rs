//! The fields of the manifest: which there are, which must be there, what each
//! holds. One decoder a mapping, one line a field.

use std::collections::BTreeMap;

use semver::Version;

use crate::HookName;
use crate::decode::{Decoder, Source, boolean, integer, list, name, parsed, text, text_map};
use crate::types::{
    Aws, Cpu, CustomCheck, Device, Docker, Endpoint, Etcd, Eula, Extension, Extensions, Flavor,
    FlavorNode, Flavors, Generic, Installer, Kind, Kubelet, License, Manifest, Metadata, Network,
    NodeProfile, Os, Port, Ports, Protocol, Provider, ProviderNetwork, Providers, Ram,
    Requirements, SystemOptions, Taint, TaintEffect, Terraform, Volume,
};
use crate::yaml::Node;

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
    }
}

fn api_version(d: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let version = text(d, node, path)?;
    if !API_VERSIONS.contains(&version.as_str()) {
        let message =
            format!("`{path}`: \"{version}\" is not a version of the manifest that is known");
        d.error(
            node.at,
            "invalid-value",
            message,
            Some(format!("write {API_VERSION}")),
        );
        return None;
    }
    Some(version)
}

/// `url(...)` around a URL, as in a style sheet, is taken off.
fn logo(d: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let value = text(d, node, path)?;
    let inner = value
        .trim()
        .strip_prefix("url(")
        .and_then(|rest| rest.strip_suffix(')'));
    let logo = inner.map_or(value.as_str(), |inner| {
        inner.trim().trim_matches(['"', '\''])
    });
    if !["data:", "file://", "http://", "https://"]
        .iter()
        .any(|scheme| logo.starts_with(scheme))
    {
        let help = "write a URL that begins with file://, https://, http:// or data:";
        let message = format!("`{path}`: {} is not the URL of an image", node.describe());
        d.error(node.at, "invalid-value", message, Some(help.into()));
        return None;
    }
    Some(logo.to_owned())
}

fn metadata(d: &mut Decoder, node: &Node, path: &str) -> Option<Metadata> {
    let mut f = d.fields(node, path);
    let metadata = Metadata {
        name: f.required(d, "name", image_name).unwrap_or_default(),
        resource_version: f
            .required(d, "resourceVersion", version)
            .unwrap_or_else(|| Version::new(0, 0, 0)),
        description: f.optional(d, "description", text),
        author: f.optional(d, "author", text),
        labels: f.or_default(d, "labels", text_map),
    };
    f.finish(d);
    Some(metadata)
}

fn image_name(d: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let name = name(d, node, path)?;
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.chars().all(good) || name.len() > 128 {
        let message = format!("`{path}`: \"{name}\" is not a name");
        d.error(
            node.at,
            "invalid-value",
            message,
            Some("use at most 128 letters, digits, \"-\" and \"_\"".into()),
        );
        return None;
    }
    Some(name)
}

fn version(d: &mut Decoder, node: &Node, path: &str) -> Option<Version> {
    let version = text(d, node, path)?;
    let parsed = Version::parse(&version);
    if let Err(error) = &parsed {
        let message = format!("`{path}`: \"{version}\" is not a semantic version ({error})");
        d.error(
            node.at,
            "invalid-value",
            message,
            Some("write three numbers, such as 1.2.3 or 1.2.3-alpha.1".into()),
        );
    }
    parsed.ok()
}

fn endpoint(d: &mut Decoder, node: &Node, path: &str) -> Option<Endpoint> {
    let mut f = d.fields(node, path);
    let endpoint = Endpoint {
        name: f.required(d, "name", name).unwrap_or_default(),
        description: f.optional(d, "description", text),
        selector: f.or_default(d, "selector", text_map),
        service_name: f.optional(d, "serviceName", name),
        namespace: f.optional(d, "namespace", name),
        protocol: f.optional(d, "protocol", name),
        port: f.optional(d, "port", integer),
        hidden: f.or_default(d, "hidden", boolean),
    };
    f.finish(d);
    Some(endpoint)
}

fn providers(d: &mut Decoder, node: &Node, path: &str) -> Option<Providers> {
    let mut f = d.fields(node, path);
    let providers = Providers {
        default: f.optional(d, "default", name),
        aws: f.or_default(d, "aws", aws),
        azure: f.or_default(d, "azure", provider),
        generic: f.or_default(d, "generic", generic),
    };
    f.finish(d);
    Some(providers)
}

fn aws(d: &mut Decoder, node: &Node, path: &str) -> Option<Aws> {
    let mut f = d.fields(node, path);
    let aws = Aws {
        network: f.optional(d, "network", provider_network),
        regions: f.or_default(d, "regions", list(name)),
        terraform: f.or_default(d, "terraform", terraform),
        disabled: f.or_default(d, "disabled", boolean),
    };
    f.finish(d);
    Some(aws)
}

fn provider_network(d: &mut Decoder, node: &Node, path: &str) -> Option<ProviderNetwork> {
    let mut f = d.fields(node, path);
    let network = ProviderNetwork {
        kind: f.optional(d, "type", name),
    };
    f.finish(d);
    Some(network)
}

fn terraform(d: &mut Decoder, node: &Node, path: &str) -> Option<Terraform> {
    let mut f = d.fields(node, path);
    let terraform = Terraform {
        script: f.optional(d, "script", text),
        instance_script: f.optional(d, "instanceScript", text),
    };
    f.finish(d);
    Some(terraform)
}

fn provider(d: &mut Decoder, node: &Node, path: &str) -> Option<Provider> {
    let mut f = d.fields(node, path);
    let provider = Provider {
        disabled: f.or_default(d, "disabled", boolean),
    };
    f.finish(d);
    Some(provider)
}

fn generic(d: &mut Decoder, node: &Node, path: &str) -> Option<Generic> {
    let mut f = d.fields(node, path);
    let generic = Generic {
        network: f.or_default(d, "network", network),
        disabled: f.or_default(d, "disabled", boolean),
    };
    f.finish(d);
    Some(generic)
}

fn network(d: &mut Decoder, node: &Node, path: &str) -> Option<Network> {
    let mut f = d.fields(node, path);
    let network = Network {
        kind: f.optional(d, "type", parsed),
    };
    f.finish(d);
    Some(network)
}

fn installer(d: &mut Decoder, node: &Node, path: &str) -> Option<Installer> {
    let mut f = d.fields(node, path);
    let installer = Installer {
        eula: f.optional(d, "eula", eula),
        flavors: f.optional(d, "flavors", flavors),
        setup_endpoints: f.or_default(d, "setupEndpoints", list(name)),
    };
    f.finish(d);
    Some(installer)
}

fn eula(d: &mut Decoder, node: &Node, path: &str) -> Option<Eula> {
    let mut f = d.fields(node, path);
    let eula = Eula {
        source: f.required(d, "source", name).unwrap_or_default(),
    };
    f.finish(d);
    Some(eula)
}

fn flavors(d: &mut Decoder, node: &Node, path: &str) -> Option<Flavors> {
    let mut f = d.fields(node, path);
    let flavors = Flavors {
        prompt: f.optional(d, "prompt", text),
        description: f.optional(d, "description", text),
        default: f.optional(d, "default", name),
        items: f.required(d, "items", list(flavor)).unwrap_or_default(),
    };
    f.finish(d);
    Some(flavors)
}

fn flavor(d: &mut Decoder, node: &Node, path: &str) -> Option<Flavor> {
    let mut f = d.fields(node, path);
    let flavor = Flavor {
        name: f.required(d, "name", name).unwrap_or_default(),
        description: f.optional(d, "description", text),
        nodes: f
            .required(d, "nodes", list(flavor_node))
            .unwrap_or_default(),
    };
    f.finish(d);
    Some(flavor)
}

fn flavor_node(d: &mut Decoder, node: &Node, path: &str) -> Option<FlavorNode> {
    let mut f = d.fields(node, path);
    let nodes = FlavorNode {
        profile: f.required(d, "profile", name).unwrap_or_default(),
        count: f.required(d, "count", integer).unwrap_or_default(),
    };
    f.finish(d);
    Some(nodes)
}

fn node_profile(d: &mut Decoder, node: &Node, path: &str) -> Option<NodeProfile> {
    let mut f = d.fields(node, path);
    let profile = NodeProfile {
        name: f.required(d, "name", name).unwrap_or_default(),
        description: f.optional(d, "description", text),
        labels: f.or_default(d, "labels", text_map),
        taints: f.or_default(d, "taints", list(taint)),
        service_role: f.optional(d, "serviceRole", parsed),
        expand_policy: f.optional(d, "expandPolicy", parsed),
        requirements: f.or_default(d, "requirements", requirements),
        system_options: f.or_default(d, "systemOptions", system_options),
    };
    f.finish(d);
    Some(profile)
}

fn taint(d: &mut Decoder, node: &Node, path: &str) -> Option<Taint> {
    let mut f = d.fields(node, path);
    let taint = Taint {
        key: f.required(d, "key", name).unwrap_or_default(),
        value: f.or_default(d, "value", text),
        effect: f
            .required(d, "effect", parsed)
            .unwrap_or(TaintEffect::NoSchedule),
    };
    f.finish(d);
    Some(taint)
}

fn requirements(d: &mut Decoder, node: &Node, path: &str) -> Option<Requirements> {
    let mut f = d.fields(node, path);
    let requirements = Requirements {
        cpu: f.or_default(d, "cpu", cpu),
        ram: f.or_default(d, "ram", ram),
        os: f.or_default(d, "os", list(os)),
        custom_checks: f.or_default(d, "customChecks", list(custom_check)),
        volumes: f.or_default(d, "volumes", list(volume)),
        devices: f.or_default(d, "devices", list(device)),
        network: f.or_default(d, "network", ports),
    };
    f.finish(d);
    Some(requirements)
}

fn cpu(d: &mut Decoder, node: &Node, path: &str) -> Option<Cpu> {
    let mut f = d.fields(node, path);
    let cpu = Cpu {
        min: f.optional(d, "min", integer),
        max: f.optional(d, "max", integer),
    };
    f.finish(d);
    Some(cpu)
}

fn ram(d: &mut Decoder, node: &Node, path: &str) -> Option<Ram> {
    let mut f = d.fields(node, path);
    let ram = Ram {
        min: f.optional(d, "min", parsed),
        max: f.optional(d, "max", parsed),
    };
    f.finish(d);
    Some(ram)
}

fn os(d: &mut Decoder, node: &Node, path: &str) -> Option<Os> {
    let mut f = d.fields(node, path);
    let os = Os {
        name: f.required(d, "name", name).unwrap_or_default(),
        versions: f.or_default(d, "versions", list(name)),
    };
    f.finish(d);
    Some(os)
}

fn custom_check(d: &mut Decoder, node: &Node, path: &str) -> Option<CustomCheck> {
    let mut f = d.fields(node, path);
    let check = CustomCheck {
        description: f.optional(d, "description", text),
        script: f.required(d, "script", name).unwrap_or_default(),
    };
    f.finish(d);
    Some(check)
}

fn volume(d: &mut Decoder, node: &Node, path: &str) -> Option<Volume> {
    let mut f = d.fields(node, path);
    let skip = f.or_default(d, "skipIfMissing", boolean);
    let volume = Volume {
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
        mode: f.optional(d, "mode", parsed),
        recursive: f.or_default(d, "recursive", boolean),
        hidden: f.or_default(d, "hidden", boolean),
    };
    f.finish(d);
    Some(volume)
}

fn absolute_path(d: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let value = text(d, node, path)?;
    if !value.starts_with('/') || value.split('/').any(|part| part == "..") || value.contains('\0')
    {
        let message = format!("`{path}`: \"{value}\" is not an absolute path");
        d.error(
            node.at,
            "invalid-value",
            message,
            Some("begin with \"/\", without \"..\"".into()),
        );
        return None;
    }
    Some(value)
}

fn device(d: &mut Decoder, node: &Node, path: &str) -> Option<Device> {
    let mut f = d.fields(node, path);
    let device = Device {
        path: f.required(d, "path", absolute_path).unwrap_or_default(),
        permissions: f.optional(d, "permissions", permissions),
        file_mode: f.optional(d, "fileMode", parsed),
        uid: f.or_default(d, "uid", integer),
        gid: f.or_default(d, "gid", integer),
    };
    f.finish(d);
    Some(device)
}

fn permissions(d: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let value = text(d, node, path)?;
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
    let mut f = d.fields(node, path);
    let ports = Ports {
        min_transfer_rate: f.optional(d, "minTransferRate", parsed),
        ports: f.or_default(d, "ports", list(port)),
    };
    f.finish(d);
    Some(ports)
}

fn port(d: &mut Decoder, node: &Node, path: &str) -> Option<Port> {
    let mut f = d.fields(node, path);
    let port = Port {
        protocol: f.optional(d, "protocol", parsed).unwrap_or(Protocol::Tcp),
        ranges: f.required(d, "ranges", list(parsed)).unwrap_or_default(),
    };
    f.finish(d);
    Some(port)
}

fn license(d: &mut Decoder, node: &Node, path: &str) -> Option<License> {
    let mut f = d.fields(node, path);
    let license = License {
        enabled: f.or_default(d, "enabled", boolean),
    };
    f.finish(d);
    Some(license)
}

fn system_options(d: &mut Decoder, node: &Node, path: &str) -> Option<SystemOptions> {
    let mut f = d.fields(node, path);
    let options = SystemOptions {
        base_image: f.optional(d, "baseImage", name),
        docker: f.or_default(d, "docker", docker),
        etcd: f.or_default(d, "etcd", etcd),
        kubelet: f.or_default(d, "kubelet", kubelet),
    };
    f.finish(d);
    Some(options)
}

fn docker(d: &mut Decoder, node: &Node, path: &str) -> Option<Docker> {
    let mut f = d.fields(node, path);
    let docker = Docker {
        storage_driver: f.optional(d, "storageDriver", parsed),
        args: f.or_default(d, "args", list(text)),
    };
    f.finish(d);
    Some(docker)
}

fn etcd(d: &mut Decoder, node: &Node, path: &str) -> Option<Etcd> {
    let mut f = d.fields(node, path);
    let etcd = Etcd {
        args: f.or_default(d, "args", list(text)),
    };
    f.finish(d);
    Some(etcd)
}

fn kubelet(d: &mut Decoder, node: &Node, path: &str) -> Option<Kubelet> {
    let mut f = d.fields(node, path);
    let kubelet = Kubelet {
        args: f.or_default(d, "args", list(text)),
        hairpin_mode: f.optional(d, "hairpinMode", parsed),
    };
    f.finish(d);
    Some(kubelet)
}

fn extensions(d: &mut Decoder, node: &Node, path: &str) -> Option<Extensions> {
    let mut f = d.fields(node, path);
    let extensions = Extensions {
        logs: f.optional(d, "logs", extension),
        monitoring: f.optional(d, "monitoring", extension),
        catalog: f.optional(d, "catalog", extension),
    };
    f.finish(d);
    Some(extensions)
}

fn extension(d: &mut Decoder, node: &Node, path: &str) -> Option<Extension> {
    let mut f = d.fields(node, path);
    let extension = Extension {
        disabled: f.or_default(d, "disabled", boolean),
    };
    f.finish(d);
    Some(extension)
}

/// Hooks without a value are absent: manifests list them all.
fn hooks(d: &mut Decoder, node: &Node, path: &str) -> Option<BTreeMap<HookName, String>> {
    let mut f = d.fields(node, path);
    let mut hooks = BTreeMap::new();
    for hook in HookName::ALL {
        if let Some(Some(job)) = f.optional(d, hook.as_str(), job) {
            hooks.insert(*hook, job);
        }
    }
    f.finish(d);
    Some(hooks)
}

fn job(d: &mut Decoder, node: &Node, path: &str) -> Option<Option<String>> {
    let mut f = d.fields(node, path);
    let job = f.required(d, "job", name);
    f.finish(d);
    Some(job)
}
