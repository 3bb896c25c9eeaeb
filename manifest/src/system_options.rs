//! Options of the services of a node, as the services of today take them.
//!
//! In: `systemOptions` of the manifest and of a profile; what a profile says
//! replaces what the manifest says. Out: [`ServiceOptions`], and findings:
//! arguments that mean nothing to today's services are errors, retired ones
//! that have a successor are warnings. Pure.

use std::collections::BTreeMap;

use crate::Diagnostic;
use crate::diagnostic::{Severity, nearest};
use crate::types::{HairpinMode, Manifest, NodeProfile, SystemOptions};

/// What the services of a node are started with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceOptions {
    /// Log level of containerd.
    pub runtime_log_level: Option<String>,
    /// Layers of an image that containerd pulls side by side.
    pub max_concurrent_downloads: Option<u32>,
    /// Flags of etcd by name.
    pub etcd: BTreeMap<String, String>,
    /// Flags of the kubelet by name.
    pub kubelet: BTreeMap<String, String>,
}

impl Manifest {
    /// What the services of a node with this profile are started with. What
    /// [`Manifest::unsupported`] refuses is left out.
    pub fn service_options(&self, profile: Option<&NodeProfile>) -> ServiceOptions {
        let mut merged = self.system_options.clone();
        if let Some(own) = profile.map(|profile| &profile.system_options) {
            for (value, own) in [
                (&mut merged.docker.args, &own.docker.args),
                (&mut merged.etcd.args, &own.etcd.args),
                (&mut merged.kubelet.args, &own.kubelet.args),
            ] {
                if !own.is_empty() {
                    value.clone_from(own);
                }
            }
        }
        translate(&merged).0
    }

    /// Arguments of services: errors for those that can't be translated, and
    /// warnings for those that are retired.
    pub(crate) fn arguments(&self) -> Vec<Diagnostic> {
        let profiles = self
            .node_profiles
            .iter()
            .enumerate()
            .map(|(index, profile)| {
                let path = format!("nodeProfiles[{index}].systemOptions");
                (path, &profile.system_options)
            });
        std::iter::once(("systemOptions".to_owned(), &self.system_options))
            .chain(profiles)
            .flat_map(|(path, options)| {
                let found = translate(options).1.into_iter();
                found.map(move |finding| self.report(&path, finding))
            })
            .collect()
    }

    /// Retired arguments that were translated: warnings for who builds.
    pub fn retired(&self) -> Vec<Diagnostic> {
        let mut found = self.arguments();
        found.retain(|one| one.severity == Severity::Warning);
        found
    }

    fn report(&self, path: &str, finding: Finding) -> Diagnostic {
        let Finding {
            field,
            severity,
            message,
            help,
        } = finding;
        let path = format!("{path}.{field}");
        let code = match severity {
            Severity::Error => "not-supported",
            Severity::Warning => "retired",
        };
        let message = format!("`{path}`: {message}");
        let mut report = self.source.at_value(&path, code, message, Some(help));
        report.severity = severity;
        report
    }
}

/// What was found in an argument.
#[derive(Debug)]
struct Finding {
    /// Such as `etcd.args[0]`.
    field: String,
    severity: Severity,
    message: String,
    help: String,
}

/// One argument: `--name=value`, `--name value` or `--name`.
#[derive(Debug, PartialEq, Eq)]
struct Flag<'a> {
    index: usize,
    name: &'a str,
    value: Option<&'a str>,
}

impl Flag<'_> {
    fn finding(&self, service: &str, severity: Severity, message: String, help: &str) -> Finding {
        Finding {
            field: format!("{service}.args[{}]", self.index),
            severity,
            message,
            help: help.into(),
        }
    }
}

/// Reads arguments; what is neither a flag nor the value of one has the name
/// that it is.
fn flags(args: &[String]) -> Vec<Flag<'_>> {
    let mut flags: Vec<Flag<'_>> = Vec::new();
    for (index, arg) in args.iter().enumerate() {
        let Some(name) = arg.strip_prefix('-') else {
            match flags.last_mut() {
                Some(last) if last.value.is_none() && last.index + 1 == index => {
                    last.value = Some(arg);
                }
                _ => flags.push(Flag {
                    index,
                    name: arg,
                    value: None,
                }),
            }
            continue;
        };
        let name = name.strip_prefix('-').unwrap_or(name);
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (name, None),
        };
        flags.push(Flag { index, name, value });
    }
    flags
}

fn translate(options: &SystemOptions) -> (ServiceOptions, Vec<Finding>) {
    let mut result = ServiceOptions::default();
    let mut found = Vec::new();
    for flag in flags(&options.docker.args) {
        found.extend(docker(&flag, &mut result));
    }
    for flag in flags(&options.etcd.args) {
        found.extend(etcd(&flag, &mut result.etcd));
    }
    for flag in flags(&options.kubelet.args) {
        found.extend(kubelet(&flag, &mut result.kubelet));
    }
    if options.kubelet.hairpin_mode == Some(HairpinMode::PromiscuousBridge) {
        // With today's packet filter a promiscuous bridge sends nothing back to
        // the pod that it came from; ports that reflect do.
        found.push(Finding {
            field: "kubelet.hairpinMode".into(),
            severity: Severity::Warning,
            message: "promiscuous-bridge becomes hairpin-veth: a pod would not reach itself \
                      through a promiscuous bridge"
                .into(),
            help: "write hairpin-veth, or leave it out".into(),
        });
    }
    (result, found)
}

/// Log levels of containerd; Docker's are among them.
const LEVELS: [&str; 7] = ["trace", "debug", "info", "warn", "error", "fatal", "panic"];

fn docker(flag: &Flag<'_>, result: &mut ServiceOptions) -> Option<Finding> {
    let refuse =
        |message: String, help: &str| Some(flag.finding("docker", Severity::Error, message, help));
    let value = flag.value.unwrap_or_default();
    let wrong = |wanted: &str| {
        let message = format!("`{}` can't be \"{value}\"", flag.name);
        refuse(message, &format!("use {wanted}"))
    };
    match (flag.name, value) {
        ("log-level" | "l", _) => {
            let level = value.to_lowercase();
            if !LEVELS.contains(&level.as_str()) {
                return wrong(&format!("one of {}", LEVELS.join(", ")));
            }
            result.runtime_log_level = Some(level);
        }
        ("debug" | "D", "" | "true") => result.runtime_log_level = Some("debug".into()),
        ("debug" | "D", "false") => {}
        ("max-concurrent-downloads", _) => match value.parse() {
            Ok(count @ 1..) => result.max_concurrent_downloads = Some(count),
            _ => return wrong("a number from 1 on"),
        },
        // What containerd does anyway.
        ("storage-driver" | "s", "overlay" | "overlay2")
        | ("live-restore", "" | "true")
        | ("exec-opt", "native.cgroupdriver=cgroupfs") => {}
        ("storage-driver" | "s", _) => return wrong("overlay or overlay2"),
        ("exec-opt", _) => return wrong("native.cgroupdriver=cgroupfs"),
        (name, _) => {
            let message = format!("`{name}` of Docker has no meaning for containerd");
            let help = "remove it; translated are --log-level, --debug, \
                        --max-concurrent-downloads, --storage-driver, --live-restore and --exec-opt";
            return refuse(message, help);
        }
    }
    None
}

/// Flags of etcd that a cluster may choose; all others are the installer's.
const ETCD: &[&str] = &[
    "auto-compaction-mode",
    "auto-compaction-retention",
    "backend-batch-interval",
    "backend-batch-limit",
    "backend-bbolt-freelist-type",
    "bootstrap-defrag-threshold-megabytes",
    "cipher-suites",
    "compact-hash-check-time",
    "compaction-batch-limit",
    "compaction-sleep-interval",
    "corrupt-check-time",
    "election-timeout",
    "enable-pprof",
    "feature-gates",
    "grpc-keepalive-interval",
    "grpc-keepalive-min-time",
    "grpc-keepalive-timeout",
    "heartbeat-interval",
    "initial-election-tick-advance",
    "log-format",
    "log-level",
    "max-concurrent-streams",
    "max-request-bytes",
    "max-snapshots",
    "max-txn-ops",
    "max-wals",
    "memory-mlock",
    "metrics",
    "pre-vote",
    "quota-backend-bytes",
    "raft-read-timeout",
    "raft-write-timeout",
    "snapshot-catchup-entries",
    "snapshot-count",
    "strict-reconfig-check",
    "tls-max-version",
    "tls-min-version",
    "warning-apply-duration",
    "warning-unary-request-duration",
    "watch-progress-notify-interval",
];

fn etcd(flag: &Flag<'_>, result: &mut BTreeMap<String, String>) -> Option<Finding> {
    let retired = |now: &str| {
        let message = format!("`{}` is retired; it becomes --{now}", flag.name);
        let help = "write that instead";
        Some(flag.finding("etcd", Severity::Warning, message, help))
    };
    let value = flag.value.unwrap_or("true");
    match flag.name {
        "debug" if value == "false" => retired("log-level=info"),
        "debug" => match result.insert("log-level".into(), "debug".into()) {
            Some(_) => Some(repeated(flag, "etcd", "log-level")),
            None => retired("log-level=debug"),
        },
        name => {
            let now = name.strip_prefix("experimental-").unwrap_or(name);
            if !ETCD.contains(&now) {
                return Some(unknown(flag, "etcd", ETCD, ""));
            }
            if result.insert(now.into(), value.into()).is_some() {
                return Some(repeated(flag, "etcd", now));
            }
            (now != name).then(|| retired(now)).flatten()
        }
    }
}

/// Flags of the kubelet that a cluster may choose; all others are the
/// installer's.
const KUBELET: &[&str] = &[
    "allowed-unsafe-sysctls",
    "container-log-max-files",
    "container-log-max-size",
    "contention-profiling",
    "cpu-cfs-quota",
    "cpu-cfs-quota-period",
    "cpu-manager-policy",
    "cpu-manager-policy-options",
    "cpu-manager-reconcile-period",
    "enable-controller-attach-detach",
    "enable-debugging-handlers",
    "event-burst",
    "event-qps",
    "eviction-hard",
    "eviction-max-pod-grace-period",
    "eviction-minimum-reclaim",
    "eviction-pressure-transition-period",
    "eviction-soft",
    "eviction-soft-grace-period",
    "fail-swap-on",
    "feature-gates",
    "file-check-frequency",
    "housekeeping-interval",
    "http-check-frequency",
    "image-credential-provider-bin-dir",
    "image-credential-provider-config",
    "image-gc-high-threshold",
    "image-gc-low-threshold",
    "kernel-memcg-notification",
    "kube-api-burst",
    "kube-api-content-type",
    "kube-api-qps",
    "kube-reserved",
    "local-storage-capacity-isolation",
    "log-flush-frequency",
    "logging-format",
    "manifest-url",
    "manifest-url-header",
    "max-open-files",
    "max-pods",
    "maximum-dead-containers",
    "maximum-dead-containers-per-container",
    "memory-manager-policy",
    "minimum-container-ttl-duration",
    "minimum-image-ttl-duration",
    "node-status-max-images",
    "node-status-update-frequency",
    "pod-manifest-path",
    "pod-max-pids",
    "pods-per-core",
    "protect-kernel-defaults",
    "qos-reserved",
    "registry-burst",
    "registry-qps",
    "reserved-cpus",
    "reserved-memory",
    "runtime-request-timeout",
    "seccomp-default",
    "serialize-image-pulls",
    "streaming-connection-idle-timeout",
    "sync-frequency",
    "system-reserved",
    "tls-cipher-suites",
    "tls-min-version",
    "topology-manager-policy",
    "topology-manager-policy-options",
    "topology-manager-scope",
    "v",
    "vmodule",
    "volume-plugin-dir",
    "volume-stats-agg-period",
];

/// Those of them whose values are lists: written several times they add up.
const LISTS: &[&str] = &[
    "allowed-unsafe-sysctls",
    "eviction-hard",
    "eviction-minimum-reclaim",
    "eviction-soft",
    "eviction-soft-grace-period",
    "feature-gates",
    "kube-reserved",
    "qos-reserved",
    "system-reserved",
    "tls-cipher-suites",
];

fn kubelet(flag: &Flag<'_>, result: &mut BTreeMap<String, String>) -> Option<Finding> {
    let instead = match flag.name {
        "hairpin-mode" => "systemOptions.kubelet.hairpinMode",
        "node-labels" => "labels of the profile",
        "register-with-taints" => "taints of the profile",
        _ => "",
    };
    if !KUBELET.contains(&flag.name) {
        return Some(unknown(flag, "kubelet", KUBELET, instead));
    }
    let value = flag.value.unwrap_or("true");
    match result.get_mut(flag.name) {
        Some(all) if LISTS.contains(&flag.name) => {
            all.push(',');
            all.push_str(value);
            None
        }
        Some(_) => Some(repeated(flag, "kubelet", flag.name)),
        None => {
            result.insert(flag.name.into(), value.into());
            None
        }
    }
}

/// One of two values would be lost.
fn repeated(flag: &Flag<'_>, service: &str, name: &str) -> Finding {
    let message = format!("--{name} of {service} is written more than once");
    flag.finding(service, Severity::Error, message, "keep one of them")
}

fn unknown(flag: &Flag<'_>, service: &str, known: &[&str], instead: &str) -> Finding {
    let message = format!(
        "`{}` of {service} can't be chosen by a cluster image",
        flag.name
    );
    let help = match nearest(flag.name, known.iter().copied()) {
        _ if !instead.is_empty() => format!("use {instead}"),
        Some(near) => format!("did you mean --{near}?"),
        None => "remove it: the installer sets it, or this version doesn't have it".into(),
    };
    flag.finding(service, Severity::Error, message, &help)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(system: &str, profile: &str) -> Manifest {
        let text = format!(
            "metadata: {{name: a, resourceVersion: 1.0.0}}\nsystemOptions: {system}\n\
             nodeProfiles: [{{name: n, systemOptions: {profile}}}]\n"
        );
        crate::parse(&text, "a").unwrap()
    }

    fn pairs(map: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
        map.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
    }

    #[test]
    fn arguments_of_the_page_are_translated() {
        let manifest = manifest(
            r#"{docker: {storageDriver: overlay, args: ["--log-level=DEBUG"]}, etcd: {args: ["-debug"]},
                kubelet: {args: ["--system-reserved=memory=500Mi"], hairpinMode: "promiscuous-bridge"}}"#,
            "{}",
        );
        let options = manifest.service_options(manifest.node_profiles.first());
        assert_eq!(options.runtime_log_level.as_deref(), Some("debug"));
        assert_eq!(pairs(&options.etcd), [("log-level", "debug")]);
        assert_eq!(
            pairs(&options.kubelet),
            [("system-reserved", "memory=500Mi")]
        );
        assert_eq!(manifest.unsupported(), []);
        let warnings: Vec<_> = manifest.retired().iter().map(ToString::to_string).collect();
        assert!(warnings[1].contains("promiscuous-bridge becomes hairpin-veth"));
        assert_eq!(
            warnings[..1],
            [
                "a:2:94: warning[retired]: `systemOptions.etcd.args[0]`: `debug` is retired; it becomes --log-level=debug\n  help: write that instead"
            ]
        );
    }

    #[test]
    fn a_profile_replaces_what_it_names() {
        let manifest = manifest(
            r#"{docker: {args: ["-l", warn]}, etcd: {args: ["--snapshot-count=5"]}, kubelet: {args: ["--v=3"]}}"#,
            r#"{docker: {args: ["-D", "--max-concurrent-downloads", "7"]}, kubelet: {hairpinMode: promiscuous-bridge}}"#,
        );
        let global = manifest.service_options(None);
        assert_eq!(global.runtime_log_level.as_deref(), Some("warn"));
        let own = manifest.service_options(manifest.node_profiles.first());
        assert_eq!(own.runtime_log_level.as_deref(), Some("debug"));
        assert_eq!(own.max_concurrent_downloads, Some(7));
        assert_eq!(pairs(&own.etcd), [("snapshot-count", "5")]);
        assert_eq!(pairs(&own.kubelet), [("v", "3")]);
    }

    #[test]
    fn lists_add_up_and_no_other_argument_is_written_twice() {
        let manifest = manifest(
            r#"{etcd: {args: ["--max-wals=2", "--experimental-max-wals=3", "--log-level=info", "-debug"]},
                kubelet: {args: ["--system-reserved=cpu=1", "--v=2", "--system-reserved", "memory=1Gi", "--v=3"]}}"#,
            "{}",
        );
        let options = manifest.service_options(None);
        assert_eq!(
            options.kubelet["system-reserved"], "cpu=1,memory=1Gi",
            "{options:?}"
        );
        let found: Vec<_> = manifest
            .unsupported()
            .into_iter()
            .map(|one| one.message)
            .collect();
        assert_eq!(
            found,
            [
                "`systemOptions.etcd.args[1]`: --max-wals of etcd is written more than once",
                "`systemOptions.etcd.args[3]`: --log-level of etcd is written more than once",
                "`systemOptions.kubelet.args[4]`: --v of kubelet is written more than once",
            ]
        );
    }

    #[test]
    fn what_has_no_meaning_is_refused_by_name() {
        let manifest = manifest(
            r#"{docker: {args: ["--insecure-registry=x", "--log-level=loud", "--storage-driver=zfs", stray]},
                etcd: {args: ["--data-dir=/x", "--snapshot-cuont=1", "--experimental-max-wals=2"]}}"#,
            r#"{kubelet: {args: ["--node-labels=a=b", "--network-plugin=cni", "--kubeconfig=/x"]}}"#,
        );
        let found: Vec<_> = manifest
            .unsupported()
            .iter()
            .map(|one| (one.message.clone(), one.help.clone().unwrap()))
            .collect();
        let expected = [
            (
                "docker.args[0]`: `insecure-registry` of Docker",
                "remove it",
            ),
            (
                "docker.args[1]`: `log-level` can't be \"loud\"",
                "use one of trace",
            ),
            (
                "docker.args[2]`: `storage-driver` can't be \"zfs\"",
                "use overlay",
            ),
            ("docker.args[3]`: `stray` of Docker", "remove it"),
            ("etcd.args[0]`: `data-dir` of etcd", "remove it"),
            (
                "etcd.args[1]`: `snapshot-cuont` of etcd",
                "did you mean --snapshot-count?",
            ),
            ("kubelet.args[0]`: `node-labels` of kubelet", "use labels"),
            ("kubelet.args[1]`: `network-plugin` of kubelet", "remove it"),
            ("kubelet.args[2]`: `kubeconfig` of kubelet", "remove it"),
        ];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for ((message, help), (wanted, remedy)) in found.iter().zip(expected) {
            assert!(message.contains(wanted), "{message}");
            assert!(help.starts_with(remedy), "{help}");
        }
        assert_eq!(manifest.retired().len(), 1);
    }
}
