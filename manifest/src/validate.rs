//! What the fields mean together.
//!
//! In: a decoded manifest. Out: references that lead nowhere, names that are
//! taken, limits that contradict each other.

use std::collections::BTreeSet;

use crate::decode::{MAX_DIAGNOSTICS, Source, repeated};
use crate::types::{Manifest, NetworkType, NodeProfile, Volume};
use crate::{Diagnostic, HookName, diagnostic};

struct Findings<'a> {
    source: &'a Source,
    found: Vec<Diagnostic>,
}

impl Findings<'_> {
    fn add(&mut self, path: &str, code: &'static str, message: String, help: impl Into<String>) {
        self.found
            .push(self.source.at_value(path, code, message, Some(help.into())));
    }

    /// Reports names that occur twice. `path` makes the path of an index.
    fn unique<'n>(
        &mut self,
        what: &str,
        names: impl Iterator<Item = &'n str>,
        path: impl Fn(usize) -> String,
    ) {
        for (index, name) in repeated(names)
            .into_iter()
            .filter(|(_, name)| !name.is_empty())
            .take(MAX_DIAGNOSTICS)
        {
            let message = format!("there are two {what} \"{name}\"");
            self.add(&path(index), "duplicate-name", message, "give each its own");
        }
    }

    /// Reports a name that is not among those defined.
    fn refers(&mut self, path: &str, what: &str, name: &str, defined: &BTreeSet<&str>) {
        // An empty name was reported already, and may be the one that is meant.
        let told = self.found.len() >= MAX_DIAGNOSTICS;
        if told || name.is_empty() || defined.contains(name) || defined.contains("") {
            return;
        }
        let few = || defined.iter().copied().take(100);
        let help = match diagnostic::nearest(name, few()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None if defined.is_empty() => "none is defined".into(),
            None => format!("defined are {}", Vec::from_iter(few()).join(", ")),
        };
        self.add(
            path,
            "undefined-reference",
            format!("there is no {what} \"{name}\""),
            help,
        );
    }
}

pub(crate) fn validate(manifest: &Manifest) -> Vec<Diagnostic> {
    let mut findings = Findings {
        source: &manifest.source,
        found: Vec::new(),
    };
    endpoints(manifest, &mut findings);
    flavors(manifest, &mut findings);
    let names = manifest
        .node_profiles
        .iter()
        .map(|profile| profile.name.as_str());
    findings.unique("node profiles", names, |index| {
        format!("nodeProfiles[{index}].name")
    });
    for (index, profile) in manifest.node_profiles.iter().enumerate() {
        requirements(profile, &format!("nodeProfiles[{index}]"), &mut findings);
    }
    if manifest.base_image.is_some() && manifest.system_options.runtime.is_some() {
        let message = "baseImage and systemOptions.runtime both name the base image".to_owned();
        findings.add(
            "systemOptions.runtime",
            "conflict",
            message,
            "keep baseImage",
        );
    }
    provisioning(manifest, &mut findings);
    let network = manifest.providers.generic.network.kind;
    if network == Some(NetworkType::Wireguard)
        && manifest.hooks.contains_key(&HookName::NetworkInstall)
    {
        let message = "networkInstall replaces the network that would be encrypted".to_owned();
        findings.add(
            "providers.generic.network.type",
            "conflict",
            message,
            "leave out the type, or the hook",
        );
    }
    findings.found
}

/// Own provisioning of machines takes all of its hooks.
fn provisioning(manifest: &Manifest, findings: &mut Findings<'_>) {
    let hooks = [
        HookName::ClusterProvision,
        HookName::ClusterDeprovision,
        HookName::NodesProvision,
        HookName::NodesDeprovision,
    ];
    let (given, missing): (Vec<&HookName>, Vec<&HookName>) = hooks
        .iter()
        .partition(|hook| manifest.hooks.contains_key(hook));
    let Some(first) = given.first().filter(|_| !missing.is_empty()) else {
        return;
    };
    let names: Vec<_> = missing.iter().map(|hook| hook.as_str()).collect();
    let message = format!("{first} needs other hooks beside it: {}", names.join(", "));
    findings.add(
        &format!("hooks.{first}"),
        "conflict",
        message,
        "write all four hooks or none",
    );
}

fn endpoints(manifest: &Manifest, findings: &mut Findings<'_>) {
    let names: Vec<_> = manifest
        .endpoints
        .iter()
        .map(|endpoint| endpoint.name.as_str())
        .collect();
    findings.unique("endpoints", names.iter().copied(), |index| {
        format!("endpoints[{index}].name")
    });
    for (index, endpoint) in manifest.endpoints.iter().enumerate() {
        if !endpoint.name.is_empty()
            && endpoint.selector.is_empty()
            && !findings
                .source
                .has(&format!("endpoints[{index}].serviceName"))
        {
            let message = format!("endpoint \"{}\" leads to no service", endpoint.name);
            findings.add(
                &format!("endpoints[{index}]"),
                "missing-field",
                message,
                "add serviceName or selector",
            );
        }
    }
    for (index, name) in manifest.installer.setup_endpoints.iter().enumerate() {
        findings.refers(
            &format!("installer.setupEndpoints[{index}]"),
            "endpoint",
            name,
            &names.iter().copied().collect(),
        );
    }
    if manifest.installer.setup_endpoints.len() > 1 {
        let message = "there are several setup endpoints".to_owned();
        findings.add(
            "installer.setupEndpoints[1]",
            "conflict",
            message,
            "keep one",
        );
    }
}

fn flavors(manifest: &Manifest, findings: &mut Findings<'_>) {
    let Some(flavors) = &manifest.installer.flavors else {
        return;
    };
    let path = "installer.flavors";
    let names: Vec<_> = flavors
        .items
        .iter()
        .map(|flavor| flavor.name.as_str())
        .collect();
    findings.unique("flavors", names.iter().copied(), |index| {
        format!("{path}.items[{index}].name")
    });
    if let Some(default) = &flavors.default {
        let names = names.iter().copied().collect();
        findings.refers(&format!("{path}.default"), "flavor", default, &names);
    }
    if findings.source.has("installer.flavors.items") && flavors.items.is_empty() {
        let message = "there are flavors but none is listed".to_owned();
        findings.add(
            &format!("{path}.items"),
            "missing-field",
            message,
            "list one, or leave out `flavors`",
        );
    }
    let profiles: BTreeSet<_> = manifest
        .node_profiles
        .iter()
        .map(|profile| profile.name.as_str())
        .collect();
    for (index, flavor) in flavors.items.iter().enumerate() {
        let path = format!("{path}.items[{index}].nodes");
        let names = flavor.nodes.iter().map(|node| node.profile.as_str());
        findings.unique("entries for profile", names, |index| {
            format!("{path}[{index}].profile")
        });
        for (index, node) in flavor.nodes.iter().enumerate() {
            findings.refers(
                &format!("{path}[{index}].profile"),
                "node profile",
                &node.profile,
                &profiles,
            );
        }
        if findings.source.has(&path) && flavor.nodes.iter().all(|node| node.count == 0) {
            let message = format!("flavor \"{}\" has no nodes", flavor.name);
            findings.add(
                &path,
                "invalid-value",
                message,
                "give at least one profile a count of 1 or more",
            );
        }
    }
}

fn requirements(profile: &NodeProfile, path: &str, findings: &mut Findings<'_>) {
    for (key, value) in &profile.labels {
        label(&format!("{path}.labels.{key}"), key, value, findings);
    }
    // Nodes have it as this label, unless the profile says otherwise.
    if !profile.labels.contains_key("role") {
        label(&format!("{path}.name"), "role", &profile.name, findings);
    }
    for (index, taint) in profile.taints.iter().enumerate() {
        let path = format!("{path}.taints[{index}]");
        if !taint.key.is_empty() {
            label(&format!("{path}.key"), &taint.key, &taint.value, findings);
        }
    }
    let taints: Vec<_> = profile
        .taints
        .iter()
        .map(|taint| format!("{}:{}", taint.key, taint.effect.as_str()))
        .collect();
    findings.unique("taints", taints.iter().map(String::as_str), |index| {
        format!("{path}.taints[{index}]")
    });
    let by_label = NodeProfile {
        service_role: None,
        ..profile.clone()
    }
    .role();
    if let (Some(role), Some(label)) = (profile.service_role, by_label)
        && role != label
    {
        let (role, label) = (role.as_str(), label.as_str());
        let message = format!("the role is {role}, but {label} by the labels");
        findings.add(
            &format!("{path}.serviceRole"),
            "conflict",
            message,
            "keep serviceRole or the label",
        );
    }
    let needed = &profile.requirements;
    let path = format!("{path}.requirements");
    if let (Some(min), Some(max)) = (needed.cpu.min, needed.cpu.max) {
        limits(&format!("{path}.cpu.max"), min <= max, (min, max), findings);
    }
    if let (Some(min), Some(max)) = (needed.ram.min, needed.ram.max) {
        limits(&format!("{path}.ram.max"), min <= max, (min, max), findings);
    }
    let volumes = || needed.volumes.iter();
    // One path may be mounted in several places.
    let paths = volumes().map(|volume| match volume.target_path {
        None => volume.path.as_str(),
        Some(_) => "",
    });
    findings.unique("volumes with path", paths, |index| {
        format!("{path}.volumes[{index}].path")
    });
    // Of those that may be missing, and of matches of patterns, which lie below it,
    // several may have one.
    let targets_taken = volumes().map(|volume| match &volume.target_path {
        Some(target) if !volume.skip_if_missing && !volume.is_pattern() => target.as_str(),
        _ => "",
    });
    findings.unique("volumes with targetPath", targets_taken, |index| {
        format!("{path}.volumes[{index}].targetPath")
    });
    let names = volumes().map(|volume| volume.name.as_deref().unwrap_or_default());
    findings.unique("volumes named", names, |index| {
        format!("{path}.volumes[{index}].name")
    });
    for (index, device) in needed.devices.iter().enumerate() {
        pattern(
            &format!("{path}.devices[{index}].path"),
            &device.path,
            findings,
        );
    }
    for (index, volume) in needed.volumes.iter().enumerate() {
        targets(&format!("{path}.volumes[{index}]"), volume, findings);
        if volume.skip_if_missing && volume.create_if_missing {
            let message =
                "a volume can't be both skipped and created where it is missing".to_owned();
            let at = format!("{path}.volumes[{index}].createIfMissing");
            findings.add(
                &at,
                "conflict",
                message,
                "keep one of skipIfMissing and createIfMissing",
            );
        }
    }
}

/// A shell pattern: `**` is none, and `[` needs its `]`.
fn pattern(at: &str, value: &str, findings: &mut Findings<'_>) {
    let closed = |part: &str| {
        part.rfind('[')
            .is_none_or(|open| part[open..].contains(']'))
    };
    if value.contains("**") || !value.split('/').all(closed) {
        findings.add(
            at,
            "invalid-value",
            format!("\"{value}\" is not a shell pattern"),
            "use *, ? and [...] within the name of a file or directory",
        );
    }
}

/// Every match of a pattern has its own place: patterns of the target are those
/// of the path, in order.
fn targets(at: &str, volume: &Volume, findings: &mut Findings<'_>) {
    pattern(&format!("{at}.path"), &volume.path, findings);
    let Some(target) = &volume.target_path else {
        return;
    };
    let wild = |path: &str| -> Vec<String> {
        let parts = path
            .split('/')
            .filter(|part| part.contains(['*', '?', '[']));
        parts.map(ToOwned::to_owned).collect()
    };
    let wanted = wild(&volume.path);
    let named = wild(target);
    if !named.is_empty() && named != wanted {
        let message = format!(
            "the patterns of \"{target}\" are not those of \"{}\", in order",
            volume.path
        );
        let help = match wanted.is_empty() {
            true => "name one place".to_owned(),
            false => format!(
                "repeat {}, or name the directory of all matches",
                wanted.join(", ")
            ),
        };
        findings.add(&format!("{at}.targetPath"), "conflict", message, help);
    }
    if target.trim_end_matches('/').is_empty() {
        let message = "a volume at / would hide the container".to_owned();
        findings.add(
            &format!("{at}.targetPath"),
            "invalid-value",
            message,
            "name a directory below",
        );
    }
}

fn limits<T: std::fmt::Display>(
    path: &str,
    ok: bool,
    (min, max): (T, T),
    findings: &mut Findings<'_>,
) {
    if !ok {
        let message = format!("the most, {max}, is less than the least, {min}");
        findings.add(
            path,
            "conflict",
            message,
            "raise `max`, lower `min` or leave out one of them",
        );
    }
}

/// Whether a text is a DNS name as Kubernetes has them (RFC 1123), also for nodes.
pub fn is_dns_name(text: &str) -> bool {
    let part = |part: &str| {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && part.chars().all(good) && !part.starts_with('-') && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

/// The syntax of Kubernetes: an optional DNS prefix, then a name; names and
/// values have at most 63 characters and begin and end with a letter or digit.
fn label(path: &str, key: &str, value: &str, findings: &mut Findings<'_>) {
    let word = |text: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        text.len() <= 63
            && text.chars().all(inner)
            && edge(text.chars().next())
            && edge(text.chars().last())
    };
    let good_key = key.split_once('/').map_or_else(
        || word(key),
        |(prefix, name)| is_dns_name(prefix) && word(name),
    );
    let help =
        "use at most 63 letters, digits, \"-\", \"_\" and \".\", a letter or digit at both ends";
    if !good_key {
        findings.add(
            path,
            "invalid-value",
            format!("\"{key}\" is not the name of a Kubernetes label"),
            help,
        );
    }
    if !value.is_empty() && !word(value) {
        findings.add(
            path,
            "invalid-value",
            format!("\"{value}\" is not the value of a Kubernetes label"),
            help,
        );
    }
}
