//! The Job of a hook: pure functions.
//!
//! In: what a vendor wrote; a [`HookRun`]. Out: that Job, as far as it can be judged
//! without a cluster; the Job that is created. What the vendor wrote wins over every
//! default; containers and init containers are treated alike.

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Container, EnvVar, HostPathVolumeSource, Node, NodeSelectorRequirement, NodeSelectorTerm,
    PodSecurityContext, PodSpec, SecretVolumeSource, Toleration, Volume, VolumeMount,
};
use kube::ResourceExt;
use serde_json::Value;

use super::{
    DEFAULT_NAMESPACE, HOOK_LABEL, HookRun, NETWORK_INSTALL, OPERATION_LABEL, STATUS, values,
};
use crate::node::readiness;

/// Longest Job that is read, in bytes: what fits into etcd.
const MAX_JOB: usize = 1 << 20;

/// How long a Job may run that doesn't say it itself, in seconds: 20 minutes,
/// as the original.
const DEADLINE_SECONDS: i64 = 1200;

/// The same of the status hook: it is run every minute, and tells nothing while it
/// hangs.
const STATUS_DEADLINE_SECONDS: i64 = 120;

/// How long a Job stays in the cluster that doesn't say it itself, in seconds: 30 days, in
/// which an operation that was cut off is gone on with.
const KEPT_SECONDS: i32 = 30 * 24 * 60 * 60;

/// Longest name of a Job: it becomes a label's value.
const MAX_NAME: usize = 63;

/// Label of masters. The kubelet of a worker can't give it to its own node, as it could
/// one outside of `kubernetes.io`: the API server's `NodeRestriction` refuses that.
const MASTER: &str = "node-role.kubernetes.io/control-plane";

/// Field of nodes with their name.
const NODE_NAME: &str = "metadata.name";

/// Where containers see the cluster resources.
const RESOURCES: &str = "/var/lib/gravity/resources";

/// Programs that every container sees: volume, path in the planet, path in the
/// container. `helm` also takes what Helm 2 took, and calls `helm3`.
const PROGRAMS: [(&str, &str, &str); 3] = [
    (
        "gravity-kubectl",
        "/usr/local/bin/kubectl",
        "/usr/local/bin/kubectl",
    ),
    (
        "gravity-helm",
        "/usr/local/bin/helm-shim",
        "/usr/local/bin/helm",
    ),
    (
        "gravity-helm3",
        "/usr/local/bin/helm",
        "/usr/local/bin/helm3",
    ),
];

const RESOURCES_VOLUME: &str = "gravity-resources";

/// Where containers see the values of the install, as the original had it.
const VALUES: &str = "/var/lib/gravity/helm";

const VALUES_VOLUME: &str = "gravity-helm-values";

/// Read by whichever user a container runs as.
const VALUES_MODE: i32 = 0o444;

/// Why a text isn't a hook's Job.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum JobError {
    /// It is too long.
    #[error("hook {hook}: the job has {size} bytes, more than {MAX_JOB}")]
    TooLong {
        /// The hook.
        hook: String,
        /// Its size in bytes.
        size: usize,
    },
    /// It is no YAML, or no Job.
    #[error("hook {hook}: not a batch/v1 Job{}: {message}", position(*line, *column))]
    Invalid {
        /// The hook.
        hook: String,
        /// Line, from 1; 0 if unknown.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong.
        message: String,
    },
    /// It holds fields that a Job doesn't have.
    #[error("hook {hook}: a batch/v1 Job has no field {fields}")]
    UnknownFields {
        /// The hook.
        hook: String,
        /// Paths of the fields.
        fields: String,
    },
    /// It uses a name of ours.
    #[error("hook {hook}: the volume name \"{volume}\" is reserved; rename it")]
    Reserved {
        /// The hook.
        hook: String,
        /// The volume.
        volume: String,
    },
}

fn position(line: u64, column: u64) -> String {
    match line {
        0 => String::new(),
        _ => format!(", line {line}, column {column}"),
    }
}

/// The Job that a hook is run as.
///
/// # Errors
/// As [`parse`].
pub(super) fn job(hook: &HookRun) -> Result<Job, JobError> {
    let mut job = parse(&hook.name, &hook.job_yaml)?;
    let suffix = suffix(hook);
    let metadata = &mut job.metadata;
    let base = metadata.name.take().or(metadata.generate_name.take());
    let base = base.unwrap_or_else(|| hook.name.to_lowercase());
    metadata.name = Some(unique_name(&base, &suffix));
    metadata
        .namespace
        .get_or_insert_with(|| DEFAULT_NAMESPACE.into());
    // Left from an export of an existing object, these make creation fail.
    metadata.resource_version = None;
    metadata.uid = None;
    job.status = None;

    let labels = [
        (OPERATION_LABEL, hook.operation_id.clone()),
        (HOOK_LABEL, hook.name.clone()),
    ];
    for (key, value) in &labels {
        let own = job.metadata.labels.get_or_insert_default();
        own.insert((*key).into(), value.clone());
    }
    let spec = job.spec.get_or_insert_default();
    spec.ttl_seconds_after_finished.get_or_insert(KEPT_SECONDS);
    let mut deadline = DEADLINE_SECONDS;
    if hook.name == STATUS {
        deadline = STATUS_DEADLINE_SECONDS;
        // The next check comes in a minute; retries would only delay the news.
        spec.backoff_limit.get_or_insert(0);
    }
    spec.active_deadline_seconds.get_or_insert(deadline);
    let template = spec.template.metadata.get_or_insert_default();
    for (key, value) in labels {
        template
            .labels
            .get_or_insert_default()
            .insert(key.into(), value);
    }
    complete_pod(hook, spec);
    avoid(&mut job, hook.avoid.as_slice());
    Ok(job)
}

/// Nodes on which the pods of a Job would only wait, as they tolerate everything: those
/// that are not ready or shall take no pods. Nothing where there is no better one that
/// its `nodeSelector`, `avoided` and its place on masters leave, or where its vendor
/// chooses nodes otherwise.
pub(super) fn unfit(job: &Job, nodes: &[Node], avoided: Option<&str>) -> Vec<String> {
    let pod = pod_of(job);
    if pod.is_some_and(chooses_nodes) {
        return Vec::new();
    }
    let selector = pod.and_then(|pod| pod.node_selector.as_ref());
    let on_masters = pod.is_some_and(|pod| requirements(pod).any(is_master));
    let is_left = |node: &Node| {
        let mut wanted = selector.into_iter().flatten();
        node.metadata.name.as_deref() != avoided
            && wanted.all(|(key, value)| node.labels().get(key) == Some(value))
            && (!on_masters || node.labels().contains_key(MASTER))
    };
    let is_fit = |node: &Node| {
        let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable);
        readiness(node).is_ok() && cordoned != Some(true)
    };
    if !nodes.iter().any(|node| is_left(node) && is_fit(node)) {
        return Vec::new();
    }
    let unfit = nodes.iter().filter(|node| !is_fit(node));
    unfit.map(ResourceExt::name_any).collect()
}

/// Whether a vendor wants certain nodes by more than labels, or the nodes of other pods.
fn chooses_nodes(pod: &PodSpec) -> bool {
    let affinity = pod.affinity.as_ref();
    let pods = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
    let pods = pods.and_then(|pods| {
        pods.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    // That it keeps away from nodes, or is on a master, may be ours.
    pod.node_name.is_some()
        || requirements(pod).any(|wanted| wanted.operator != "NotIn" && !is_master(wanted))
        || pods.is_some_and(|pods| !pods.is_empty())
}

/// Whether a vendor says anything of where a pod runs. What a node may have and others
/// don't does: a volume, a device, a runtime.
fn is_placed(pod: &PodSpec) -> bool {
    let selector = pod.node_selector.as_ref();
    let mut volumes = pod.volumes.iter().flatten();
    let containers = pod.containers.iter();
    let containers = containers.chain(pod.init_containers.iter().flatten());
    let resources = containers.filter_map(|container| container.resources.as_ref());
    let mut names = resources
        .flat_map(|wanted| [&wanted.requests, &wanted.limits])
        .flatten()
        .flat_map(|wanted| wanted.keys());
    chooses_nodes(pod)
        || requirements(pod).next().is_some()
        || selector.is_some_and(|selector| !selector.is_empty())
        || volumes
            .any(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some())
        || names.any(|name| name.contains('/'))
        || pod.resource_claims.is_some()
        || pod.runtime_class_name.is_some()
}

/// What a pod requires of its node.
fn requirements(pod: &PodSpec) -> impl Iterator<Item = &NodeSelectorRequirement> {
    let affinity = pod.affinity.as_ref();
    let nodes = affinity.and_then(|affinity| affinity.node_affinity.as_ref());
    let required = nodes.and_then(|nodes| {
        nodes
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let terms = required
        .into_iter()
        .flat_map(|required| &required.node_selector_terms);
    terms.flat_map(|term| {
        let expressions = term.match_expressions.iter().flatten();
        expressions.chain(term.match_fields.iter().flatten())
    })
}

fn is_master(wanted: &NodeSelectorRequirement) -> bool {
    wanted.key == MASTER && wanted.operator == "Exists"
}

/// What nodes have to be for a pod. One of these must be met, so what holds for the pod
/// is said in each; there is at least one.
fn terms(pod: &mut PodSpec) -> &mut Vec<NodeSelectorTerm> {
    let affinity = pod.affinity.get_or_insert_default();
    let affinity = affinity.node_affinity.get_or_insert_default();
    let required = &mut affinity.required_during_scheduling_ignored_during_execution;
    let terms = &mut required.get_or_insert_default().node_selector_terms;
    if terms.is_empty() {
        terms.push(NodeSelectorTerm::default());
    }
    terms
}

/// Keeps the pods of a Job away from nodes, whatever else they want of nodes.
pub(super) fn avoid(job: &mut Job, nodes: &[String]) {
    if nodes.is_empty() {
        return;
    }
    // By the field, which takes one name at a time: a node that has never been ready
    // may lack the label with its name.
    let elsewhere = nodes.iter().map(|node| NodeSelectorRequirement {
        key: NODE_NAME.into(),
        operator: "NotIn".into(),
        values: Some(vec![node.clone()]),
    });
    let spec = job.spec.get_or_insert_default();
    for term in terms(spec.template.spec.get_or_insert_default()) {
        let fields = term.match_fields.get_or_insert_default();
        fields.extend(elsewhere.clone());
    }
}

/// The Job that a vendor wrote for the hook `hook`.
///
/// # Errors
/// When the text isn't a Job, has fields that Jobs don't have, lacks one that
/// Kubernetes demands, or uses one of our volume names.
pub fn parse(hook: &str, text: &str) -> Result<Job, JobError> {
    let name = || hook.to_owned();
    if text.len() > MAX_JOB {
        return Err(JobError::TooLong {
            hook: name(),
            size: text.len(),
        });
    }
    let invalid = |error: &serde_saphyr::Error| {
        let location = error.location();
        JobError::Invalid {
            hook: name(),
            line: location.map_or(0, |l| l.line()),
            column: location.map_or(0, |l| l.column()),
            message: first_line(error),
        }
    };
    let written: Value = serde_saphyr::from_str(text).map_err(|error| invalid(&error))?;
    let wrong = |message: String| JobError::Invalid {
        hook: name(),
        line: 0,
        column: 0,
        message,
    };
    if written["kind"].as_str() != Some("Job") {
        let kind = written["kind"].as_str().unwrap_or_default();
        return Err(wrong(format!("its kind is \"{kind}\"")));
    }
    let job: Job = serde_saphyr::from_str(text).map_err(|error| invalid(&error))?;
    let understood = serde_json::to_value(&job).map_err(|error| wrong(error.to_string()))?;
    let mut unknown = Vec::new();
    unknown_fields(&written, &understood, "", &mut unknown);
    if !unknown.is_empty() {
        return Err(JobError::UnknownFields {
            hook: name(),
            fields: unknown.join(", "),
        });
    }
    if let Some(message) = lacks(pod_of(&job)) {
        return Err(wrong(message));
    }
    let mut volumes = pod_of(&job)
        .and_then(|pod| pod.volumes.as_ref())
        .into_iter()
        .flatten();
    match volumes.find(|volume| is_reserved(&volume.name)) {
        None => Ok(job),
        Some(volume) => Err(JobError::Reserved {
            hook: name(),
            volume: volume.name.clone(),
        }),
    }
}

fn pod_of(job: &Job) -> Option<&PodSpec> {
    job.spec.as_ref()?.template.spec.as_ref()
}

/// What Kubernetes would refuse a Job's pod for that isn't a question of fields.
fn lacks(pod: Option<&PodSpec>) -> Option<String> {
    let Some(pod) = pod.filter(|pod| !pod.containers.is_empty()) else {
        return Some("spec.template.spec.containers is empty".into());
    };
    if let Some(policy) = &pod.restart_policy
        && !["OnFailure", "Never"].contains(&policy.as_str())
    {
        return Some(format!(
            "its restartPolicy is \"{policy}\", not \"OnFailure\" or \"Never\""
        ));
    }
    let init = pod.init_containers.iter().flatten();
    init.chain(&pod.containers).find_map(|container| {
        let image = container.image.as_deref().unwrap_or_default();
        match (container.name.as_str(), image) {
            ("", _) => Some("a container has no name".into()),
            (name, "") => Some(format!("its container \"{name}\" has no image")),
            _ => None,
        }
    })
}

fn is_reserved(volume: &str) -> bool {
    let mut programs = PROGRAMS.iter();
    [RESOURCES_VOLUME, VALUES_VOLUME].contains(&volume)
        || programs.any(|(name, ..)| *name == volume)
}

/// The message without the excerpt of the text that follows it, and without the
/// position, which is told apart.
fn first_line(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text.lines().next().unwrap_or_default();
    let message = line.strip_prefix("error: ").unwrap_or(line);
    let message = message.strip_prefix("line ").map_or(message, |rest| {
        rest.split_once(": ")
            .map_or(message, |(_, message)| message)
    });
    message
        .split(" at line ")
        .next()
        .unwrap_or(message)
        .to_owned()
}

/// Paths of what was written but isn't part of what was understood. Without
/// this a misspelt field would be ignored.
fn unknown_fields(written: &Value, understood: &Value, path: &str, unknown: &mut Vec<String>) {
    match (written, understood) {
        (Value::Object(written), Value::Object(understood)) => {
            for (key, value) in written {
                let path = match path {
                    "" => key.clone(),
                    _ => format!("{path}.{key}"),
                };
                match understood.get(key) {
                    Some(other) => unknown_fields(value, other, &path, unknown),
                    None if is_empty(value) => {}
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(written), Value::Array(understood)) => {
            for (index, (one, other)) in written.iter().zip(understood).enumerate() {
                unknown_fields(one, other, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

/// Absent and empty are the same in Kubernetes' API.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// Six hex digits of operation and hook.
fn suffix(hook: &HookRun) -> String {
    super::short_hash(&format!("{}\n{}", hook.operation_id, hook.name))
}

fn unique_name(base: &str, suffix: &str) -> String {
    let room = MAX_NAME - suffix.len() - 1;
    let base: String = base.chars().take(room).collect();
    format!("{}-{suffix}", base.trim_end_matches(['-', '.']))
}

fn complete_pod(hook: &HookRun, spec: &mut JobSpec) {
    let pod = spec.template.spec.get_or_insert_default();
    // A pod without a restart policy would be refused by the API server.
    pod.restart_policy.get_or_insert_with(|| "OnFailure".into());
    if pod.service_account_name.is_none() && pod.service_account.is_none() {
        pod.service_account_name = Some(super::service_account(&hook.operation_id));
        if !is_placed(pod) {
            keep_on_masters(pod);
        }
    }
    let security = pod
        .security_context
        .get_or_insert_with(|| PodSecurityContext {
            run_as_user: Some(0),
            run_as_non_root: Some(false),
            fs_group: Some(0),
            ..PodSecurityContext::default()
        });
    translate(&mut security.run_as_user, hook);
    let everything = Toleration {
        operator: Some("Exists".into()),
        ..Toleration::default()
    };
    let tolerations = pod.tolerations.get_or_insert_default();
    if !tolerations.contains(&everything) {
        tolerations.push(everything);
    }
    if hook.name == NETWORK_INSTALL {
        // Before it has run there is no other network.
        pod.host_network = Some(true);
        pod.dns_policy
            .get_or_insert_with(|| "ClusterFirstWithHostNet".into());
    }
    add_volumes(hook, pod);
    let init = pod.init_containers.iter_mut().flatten();
    for container in init.chain(&mut pod.containers) {
        complete_container(hook, container);
    }
}

/// Root on a node can read the tokens of its pods. Those of our account allow
/// everything, as root on a master may do anyway.
fn keep_on_masters(pod: &mut PodSpec) {
    for term in terms(pod) {
        let expressions = term.match_expressions.get_or_insert_default();
        expressions.push(NodeSelectorRequirement {
            key: MASTER.into(),
            operator: "Exists".into(),
            values: None,
        });
    }
}

fn translate(user: &mut Option<i64>, hook: &HookRun) {
    if *user == Some(-1) {
        *user = Some(hook.service_user_uid.into());
    }
}

fn add_volumes(hook: &HookRun, pod: &mut PodSpec) {
    let on_host = |name: &str, path: String, kind: &str| Volume {
        name: name.into(),
        host_path: Some(HostPathVolumeSource {
            path,
            type_: Some(kind.into()),
        }),
        ..Volume::default()
    };
    let volumes = pod.volumes.get_or_insert_default();
    let resources = hook.resources_host_path.to_string_lossy().into_owned();
    volumes.push(on_host(RESOURCES_VOLUME, resources, "Directory"));
    volumes.extend(PROGRAMS.map(|(name, path, _)| on_host(name, path.to_owned(), "File")));
    volumes.push(Volume {
        name: VALUES_VOLUME.into(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(values::copy_name(&hook.operation_id)),
            default_mode: Some(VALUES_MODE),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    });
}

fn complete_container(hook: &HookRun, container: &mut Container) {
    container
        .image_pull_policy
        .get_or_insert_with(|| "IfNotPresent".into());
    if let Some(security) = &mut container.security_context {
        translate(&mut security.run_as_user, hook);
    }
    let own = container.env.take().unwrap_or_default();
    let mut env = hook.env.clone();
    env.entry("GRAVITY_SERVICE_USER".into())
        .or_insert(hook.service_user_uid.to_string());
    env.retain(|name, _| own.iter().all(|var| var.name != *name));
    // Ours come first, so that the container's own can refer to them.
    let ours = env.into_iter().map(|(name, value)| EnvVar {
        name,
        value: Some(value),
        ..EnvVar::default()
    });
    container.env = Some(ours.chain(own).collect());

    let mounts = container.volume_mounts.get_or_insert_default();
    let programs = PROGRAMS.map(|(name, _, path)| (name, path));
    let ours = [(RESOURCES_VOLUME, RESOURCES), (VALUES_VOLUME, VALUES)];
    for (name, path) in ours.into_iter().chain(programs) {
        // Where the container mounts something of its own, it wants that.
        if mounts
            .iter()
            .any(|mount| mount.mount_path.trim_end_matches('/') == path)
        {
            continue;
        }
        mounts.push(VolumeMount {
            name: name.into(),
            mount_path: path.into(),
            read_only: Some(true),
            ..VolumeMount::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const PAGE: &str = "\
apiVersion: batch/v1
kind: Job
metadata:
  name: db-seed
  namespace: default
spec:
  template:
    spec:
      restartPolicy: OnFailure
      containers:
        - name: dbseed
          image: installer-hooks:latest
";

    fn hook(text: &str) -> HookRun {
        HookRun {
            name: "install".into(),
            job_yaml: text.into(),
            env: BTreeMap::from([("GRAVITY_CLUSTER_NAME".into(), "demo".into())]),
            resources_host_path: "/var/lib/gravity/resources/ab".into(),
            service_user_uid: 980,
            operation_id: "5f6a".into(),
            avoid: None,
        }
    }

    fn built(text: &str) -> Value {
        serde_json::to_value(job(&hook(text)).unwrap()).unwrap()
    }

    #[test]
    fn a_plain_job_gets_all_that_hooks_have() {
        let job = built(PAGE);
        let name = job["metadata"]["name"].as_str().unwrap();
        assert!(
            name.starts_with("db-seed-") && name.len() == "db-seed-".len() + 6,
            "{name}"
        );
        assert_eq!(job["metadata"]["namespace"], "default");
        assert_eq!(
            job["metadata"]["labels"]["gravitational.io/operation"],
            "5f6a"
        );
        assert_eq!(
            job["metadata"]["labels"]["gravitational.io/hook"],
            "install"
        );
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 1200);
        assert_eq!(job["spec"]["ttlSecondsAfterFinished"], 2_592_000);
        let pod = &job["spec"]["template"]["spec"];
        assert_eq!(
            pod,
            &serde_json::json!({
                "restartPolicy": "OnFailure",
                "serviceAccountName": crate::hooks::service_account("5f6a"),
                "securityContext": { "runAsUser": 0, "runAsNonRoot": false, "fsGroup": 0 },
                "tolerations": [{ "operator": "Exists" }],
                "affinity": { "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{
                        "matchExpressions": [{ "key": MASTER, "operator": "Exists" }],
                    }]},
                }},
                "volumes": [
                    { "name": "gravity-resources", "hostPath": {
                        "path": "/var/lib/gravity/resources/ab", "type": "Directory" } },
                    { "name": "gravity-kubectl", "hostPath": {
                        "path": "/usr/local/bin/kubectl", "type": "File" } },
                    { "name": "gravity-helm", "hostPath": {
                        "path": "/usr/local/bin/helm-shim", "type": "File" } },
                    { "name": "gravity-helm3", "hostPath": {
                        "path": "/usr/local/bin/helm", "type": "File" } },
                    { "name": "gravity-helm-values", "secret": {
                        "secretName": crate::hooks::values::copy_name("5f6a"),
                        "defaultMode": 0o444 } },
                ],
                "containers": [{
                    "name": "dbseed",
                    "image": "installer-hooks:latest",
                    "imagePullPolicy": "IfNotPresent",
                    "env": [
                        { "name": "GRAVITY_CLUSTER_NAME", "value": "demo" },
                        { "name": "GRAVITY_SERVICE_USER", "value": "980" },
                    ],
                    "volumeMounts": [
                        { "name": "gravity-resources", "readOnly": true,
                          "mountPath": "/var/lib/gravity/resources" },
                        { "name": "gravity-helm-values", "readOnly": true,
                          "mountPath": "/var/lib/gravity/helm" },
                        { "name": "gravity-kubectl", "readOnly": true,
                          "mountPath": "/usr/local/bin/kubectl" },
                        { "name": "gravity-helm", "readOnly": true,
                          "mountPath": "/usr/local/bin/helm" },
                        { "name": "gravity-helm3", "readOnly": true,
                          "mountPath": "/usr/local/bin/helm3" },
                    ],
                }],
            })
        );
    }

    #[test]
    fn what_the_vendor_wrote_wins() {
        let job = built(
            "\
kind: Job
metadata: {name: x, labels: {app: mine}}
spec:
  activeDeadlineSeconds: 7
  ttlSecondsAfterFinished: 9
  template:
    metadata: {labels: {app: mine}}
    spec:
      restartPolicy: Never
      serviceAccountName: own
      securityContext: {runAsUser: -1}
      tolerations: [{key: a, operator: Exists}]
      volumes: [{name: data, emptyDir: {}}]
      initContainers:
      - name: init
        image: i
        imagePullPolicy: Always
        securityContext: {runAsUser: -1, runAsGroup: 5}
        env: [{name: GRAVITY_CLUSTER_NAME, value: other}]
      containers:
      - name: c
        image: c
        securityContext: {runAsUser: 7}
        env: [{name: A, value: $(GRAVITY_CLUSTER_NAME)}]
        volumeMounts: [{name: data, mountPath: /usr/local/bin/helm/}]
",
        );
        assert_eq!(job["metadata"]["namespace"], "kube-system");
        assert_eq!(job["metadata"]["labels"]["app"], "mine");
        let template = &job["spec"]["template"];
        assert_eq!(template["metadata"]["labels"]["app"], "mine");
        assert_eq!(
            template["metadata"]["labels"]["gravitational.io/hook"],
            "install"
        );
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 7);
        assert_eq!(job["spec"]["ttlSecondsAfterFinished"], 9);
        let pod = &template["spec"];
        assert_eq!(pod["restartPolicy"], "Never");
        assert_eq!(pod["serviceAccountName"], "own");
        assert_eq!(
            pod["securityContext"],
            serde_json::json!({ "runAsUser": 980 })
        );
        assert_eq!(pod["tolerations"].as_array().unwrap().len(), 2);
        assert_eq!(pod["volumes"][0]["name"], "data");
        assert_eq!(pod["volumes"].as_array().unwrap().len(), 6);
        let init = &pod["initContainers"][0];
        assert_eq!(init["imagePullPolicy"], "Always");
        assert_eq!(init["securityContext"]["runAsUser"], 980);
        assert_eq!(init["securityContext"]["runAsGroup"], 5);
        assert_eq!(init["env"][0]["value"], "980");
        assert_eq!(init["env"][1]["value"], "other");
        assert_eq!(init["volumeMounts"].as_array().unwrap().len(), 5);
        let container = &pod["containers"][0];
        assert_eq!(container["securityContext"]["runAsUser"], 7);
        assert_eq!(container["env"][2]["name"], "A");
        assert_eq!(container["volumeMounts"][0]["name"], "data");
        assert_eq!(container["volumeMounts"].as_array().unwrap().len(), 5);
    }

    #[test]
    fn a_status_check_is_short_and_not_retried_unless_it_says_so() {
        let status = |text: &str| {
            let run = HookRun {
                name: STATUS.into(),
                ..hook(text)
            };
            let spec = job(&run).unwrap().spec.unwrap();
            (spec.backoff_limit, spec.active_deadline_seconds)
        };
        assert_eq!(status(PAGE), (Some(0), Some(120)));
        let own = PAGE.replace(
            "spec:\n  template:",
            "spec:\n  backoffLimit: 3\n  activeDeadlineSeconds: 600\n  template:",
        );
        assert_eq!(status(&own), (Some(3), Some(600)));
        assert_eq!(job(&hook(PAGE)).unwrap().spec.unwrap().backoff_limit, None);
    }

    #[test]
    fn the_hook_that_brings_the_network_does_without() {
        let pod = |name: &str, text: &str| {
            let run = HookRun {
                name: name.into(),
                ..hook(text)
            };
            let pod = job(&run).unwrap().spec.unwrap().template.spec.unwrap();
            (pod.host_network, pod.dns_policy)
        };
        let with_hosts = Some("ClusterFirstWithHostNet".to_owned());
        assert_eq!(pod(NETWORK_INSTALL, PAGE), (Some(true), with_hosts));
        let own = PAGE.replace(
            "      containers",
            "      hostNetwork: false\n      dnsPolicy: Default\n      containers",
        );
        let default = Some("Default".to_owned());
        assert_eq!(pod(NETWORK_INSTALL, &own), (Some(true), default.clone()));
        assert_eq!(pod("install", &own), (Some(false), default));
        assert_eq!(pod("install", PAGE), (None, None));
    }

    #[test]
    fn names_are_the_same_again_and_differ_between_operations() {
        let first = hook(PAGE);
        assert_eq!(job(&first).unwrap(), job(&first).unwrap());
        let other = HookRun {
            operation_id: "other".into(),
            ..first.clone()
        };
        assert_ne!(suffix(&first), suffix(&other));
        let other = HookRun {
            name: "postInstall".into(),
            ..first.clone()
        };
        assert_ne!(suffix(&first), suffix(&other));
        let long = unique_name(&"a.".repeat(60), "abcdef");
        assert!(
            long.len() <= MAX_NAME && long.ends_with("a-abcdef"),
            "{long}"
        );
        let nameless = PAGE.replace("name: db-seed", "generateName: seed-");
        assert!(
            built(&nameless)["metadata"]["name"]
                .as_str()
                .unwrap()
                .starts_with("seed-")
        );
        let nameless = PAGE.replace("  name: db-seed\n", "");
        assert!(
            built(&nameless)["metadata"]["name"]
                .as_str()
                .unwrap()
                .starts_with("install-")
        );
    }

    fn refused(text: &str) -> String {
        job(&hook(text)).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_job_is_refused_with_its_place() {
        let error = refused(&PAGE.replace("kind: Job", "kind: Pod"));
        assert_eq!(
            error,
            "hook install: not a batch/v1 Job: its kind is \"Pod\""
        );
        let error = refused(&PAGE.replace("batch/v1", "batch/v2"));
        assert!(
            error.contains("line 1") && error.contains("batch/v2"),
            "{error}"
        );
        let error = refused("kind: Job\nspec: [");
        assert!(error.contains("not a batch/v1 Job, line"), "{error}");
        let error = refused(&PAGE.replace("image: installer-hooks:latest", "image: [7]"));
        assert!(error.contains("line 12"), "{error}");
        let error = refused("kind: Job\nmetadata: {name: x}");
        assert!(error.contains("containers is empty"), "{error}");
        assert!(refused("").contains("not a batch/v1 Job"));
        let error = refused(&format!("{PAGE}---\n{PAGE}"));
        assert!(error.contains("not a batch/v1 Job"), "{error}");
        let error = refused(&PAGE.replace("OnFailure", "Always"));
        assert!(error.contains("its restartPolicy is \"Always\""), "{error}");
        let error = refused(&PAGE.replace("installer-hooks:latest", "\"\""));
        assert!(error.contains("\"dbseed\" has no image"), "{error}");
        let init = PAGE.replace(
            "      containers:",
            "      initContainers: [{image: a}]\n      containers:",
        );
        assert!(refused(&init).contains("a container has no name"));
        assert!(refused(&" ".repeat(MAX_JOB + 1)).contains("more than"));
    }

    #[test]
    fn misspelt_fields_and_reserved_names_are_refused() {
        let error = refused(&PAGE.replace("image:", "imagePolicy: x\n          image:"));
        assert_eq!(
            error,
            "hook install: a batch/v1 Job has no field spec.template.spec.containers[0].imagePolicy"
        );
        let text = PAGE.replace(
            "      containers:",
            "      volumes: [{name: gravity-helm}]\n      containers:",
        );
        assert!(refused(&text).contains("\"gravity-helm\" is reserved"));
    }

    #[test]
    fn pods_keep_away_from_a_node_that_goes_whatever_else_they_want() {
        let nodes = |text: &str| {
            let run = HookRun {
                avoid: Some("node-1".into()),
                ..hook(text)
            };
            let job = serde_json::to_value(job(&run).unwrap()).unwrap();
            let affinity = &job["spec"]["template"]["spec"]["affinity"]["nodeAffinity"];
            affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"].clone()
        };
        let elsewhere = serde_json::json!({
            "key": "metadata.name", "operator": "NotIn", "values": ["node-1"],
        });
        let containers = "containers: [{name: a, image: b}]";
        let plain = format!("{{kind: Job, spec: {{template: {{spec: {{{containers}}}}}}}}}");
        let expected = serde_json::json!([{
            "matchExpressions": [{ "key": MASTER, "operator": "Exists" }],
            "matchFields": [elsewhere],
        }]);
        assert_eq!(nodes(&plain), expected);
        let own = "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
                   {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}, \
                   {matchExpressions: [{key: b, operator: Exists}]}]}}}";
        let text = format!("{{kind: Job, spec: {{template: {{spec: {{{own}, {containers}}}}}}}}}");
        let terms = nodes(&text);
        for (index, key) in ["a", "b"].iter().enumerate() {
            let term = &terms[index];
            assert_eq!(term["matchExpressions"][0]["key"], **key);
            assert_eq!(term["matchFields"], expected[0]["matchFields"]);
        }
    }

    #[test]
    fn what_may_do_everything_is_on_masters_unless_it_says_where() {
        let with = |more: &str| {
            let more = format!("      {more}\n      containers:");
            let job = job(&hook(&PAGE.replace("      containers:", &more))).unwrap();
            pod_of(&job).is_some_and(|pod| requirements(pod).any(is_master))
        };
        assert!(with(""));
        assert!(with("volumes: [{name: data, emptyDir: {}}]"));
        assert!(with("nodeSelector: {}"));
        assert!(with(
            "initContainers: [{name: a, image: b, resources: {limits: {cpu: 1}}}]"
        ));
        for more in [
            "serviceAccountName: own",
            "serviceAccount: own",
            "nodeName: a",
            "nodeSelector: {disk: fast}",
            "volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]",
            "volumes: [{name: data, ephemeral: {volumeClaimTemplate: {spec: {}}}}]",
            "resourceClaims: [{name: gpu, resourceClaimName: gpu}]",
            "runtimeClassName: gvisor",
            "initContainers: [{name: a, image: b, resources: {limits: {nvidia.com/gpu: 1}}}]",
            // Such as one that keeps away from masters.
            "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
             {nodeSelectorTerms: [{matchExpressions: [{key: role, operator: NotIn, \
             values: [master]}]}]}}}",
            "affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
             [{topologyKey: kubernetes.io/hostname}]}}",
        ] {
            assert!(!with(more), "{more}");
        }
    }

    #[test]
    fn nodes_that_do_not_work_are_unfit_where_there_is_another() {
        let node = |name: &str, ready: &str, cordoned: bool| -> Node {
            let mut labels = BTreeMap::from([("disk", name)]);
            if name != "worker" {
                labels.insert(MASTER, "");
            }
            let node = serde_json::json!({
                "metadata": { "name": name, "labels": labels },
                "spec": { "unschedulable": cordoned },
                "status": { "conditions": [{ "type": "Ready", "status": ready }] },
            });
            serde_json::from_value(node).unwrap()
        };
        let nodes = [
            node("a", "True", false),
            node("b", "Unknown", false),
            node("c", "True", true),
            node("worker", "True", false),
        ];
        let found = |text: &str, avoided: Option<&str>| {
            let job = job(&hook(text)).unwrap();
            unfit(&job, &nodes, avoided)
        };
        assert_eq!(found(PAGE, None), ["b", "c"]);
        assert_eq!(found(PAGE, Some("b")), ["b", "c"]);
        // A worker is no better one.
        assert!(found(PAGE, Some("a")).is_empty());
        let own = PAGE.replace(
            "      containers:",
            "      serviceAccountName: own\n      containers:",
        );
        assert_eq!(found(&own, Some("a")), ["b", "c"]);
        let on = |disk: &str| {
            let selector = format!("      nodeSelector: {{disk: {disk}}}\n      containers:");
            found(&PAGE.replace("      containers:", &selector), None)
        };
        assert_eq!(on("a"), ["b", "c"]);
        assert!(on("c").is_empty());
        let with = |more: &str| {
            let more = format!("      {more}\n      containers:");
            found(&PAGE.replace("      containers:", &more), None)
        };
        let by = |term: &str| {
            with(&format!(
                "affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: \
                 {{nodeSelectorTerms: [{{{term}}}]}}}}}}"
            ))
        };
        assert!(with("nodeName: c").is_empty());
        let only = "{key: disk, operator: In, values: [c]}";
        assert!(by(&format!("matchExpressions: [{only}]")).is_empty());
        // As it is kept away from a node that goes.
        let other = "{key: metadata.name, operator: NotIn, values: [d]}";
        assert_eq!(by(&format!("matchFields: [{other}]")), ["b", "c"]);
    }
}
