//! `runAsUser: -1` and `runAsGroup: -1` in Kubernetes resources.
//!
//! In: the text of a YAML file, of one or more documents. Out: the same text
//! with the service user and its group in place of -1, no other byte changed. Text that is
//! not YAML, such as the template of a chart, is left alone.

use std::collections::BTreeMap;

use crate::yaml::{self, Limits, Node};

/// Where numbers are in the text, and the service user's in place of them.
type Places = BTreeMap<(usize, usize), u32>;

/// Puts `uid` and `gid` where a pod, a container or an init container asks for
/// user and group -1. `None` when nothing changes.
pub fn translate(text: &str, uid: u32, gid: u32) -> Option<String> {
    // Parsing is only worth it where the words are there at all.
    if !text.contains("runAs") {
        return None;
    }
    let documents = yaml::documents(text, &Limits::MANIFEST).ok()?;
    let mut places = Places::new();
    for document in &documents {
        resource(document, None, (uid, gid), &mut places);
    }
    let mut result = text.to_owned();
    for ((start, end), id) in places.iter().rev() {
        // Aliases share a place, so that it is visited once.
        if result
            .get(*start..*end)
            .is_some_and(|old| old.trim() == "-1")
        {
            result.replace_range(start..end, &id.to_string());
        }
    }
    (result != text).then_some(result)
}

/// Path to the pod's spec by kind.
fn pod_spec(kind: &str) -> Option<&'static [&'static str]> {
    match kind {
        "Pod" => Some(&["spec"]),
        "ReplicationController"
        | "Deployment"
        | "DaemonSet"
        | "ReplicaSet"
        | "StatefulSet"
        | "Job" => Some(&["spec", "template", "spec"]),
        "PodTemplate" => Some(&["template", "spec"]),
        "CronJob" => Some(&["spec", "jobTemplate", "spec", "template", "spec"]),
        _ => None,
    }
}

/// Items of a typed list, such as a `PodList`, may leave out their kind.
fn resource(node: &Node, kind_of_list: Option<&str>, user: (u32, u32), places: &mut Places) {
    let kind = node.get("kind").and_then(Node::text).or(kind_of_list);
    let kind = kind.unwrap_or_default();
    if let Some(item_kind) = kind.strip_suffix("List") {
        let items = node.get("items").map(Node::items).unwrap_or_default();
        let item_kind = (!item_kind.is_empty()).then_some(item_kind);
        for item in items {
            resource(item, item_kind, user, places);
        }
        return;
    }
    let Some(path) = pod_spec(kind) else { return };
    let Some(spec) = path.iter().try_fold(node, |node, key| node.get(key)) else {
        return;
    };
    holder(spec, user, places);
    for containers in ["initContainers", "containers", "ephemeralContainers"] {
        let containers = spec.get(containers).map(Node::items).unwrap_or_default();
        for container in containers {
            holder(container, user, places);
        }
    }
}

fn holder(holder: &Node, (uid, gid): (u32, u32), places: &mut Places) {
    let Some(context) = holder.get("securityContext") else {
        return;
    };
    for (field, id) in [("runAsUser", uid), ("runAsGroup", gid)] {
        let value = context.get(field);
        if let Some(value) = value.filter(|value| value.text() == Some("-1")) {
            places.insert((value.bytes.start, value.bytes.end), id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "\
# keep: this
apiVersion: v1
kind: Pod
metadata: {name: nginx, labels: {runAsUser: \"-1\"}}
spec:
  securityContext:
    runAsUser: -1   # to use for all
  initContainers:
  - name: i
    securityContext: { runAsUser: -1, runAsGroup: -1 }
  containers:
  - name: nginx
    securityContext:
      runAsUser:   -1
  - name: other
    securityContext:
      runAsUser: 0
---
kind: ConfigMap
data:
  x: |
    runAsUser: -1
";

    #[test]
    fn only_the_numbers_change() {
        let expected = POD
            .replace("runAsUser: -1   # to", "runAsUser: 1001   # to")
            .replace(
                "{ runAsUser: -1, runAsGroup: -1 }",
                "{ runAsUser: 1001, runAsGroup: 2002 }",
            )
            .replace("runAsUser:   -1\n", "runAsUser:   1001\n");
        assert_eq!(
            translate(POD, 1001, 2002).as_deref(),
            Some(expected.as_str())
        );
    }

    #[test]
    fn every_kind_with_a_template_is_translated() {
        let template = "template: {spec: {containers: [{securityContext: {runAsUser: -1}}]}}";
        for kind in [
            "ReplicationController",
            "Deployment",
            "DaemonSet",
            "ReplicaSet",
            "StatefulSet",
            "Job",
        ] {
            let text = format!("kind: {kind}\nspec: {{{template}}}\n");
            assert_eq!(
                translate(&text, 7, 8),
                Some(text.replace("-1", "7")),
                "{kind}"
            );
        }
        let cron = format!("kind: CronJob\nspec: {{jobTemplate: {{spec: {{{template}}}}}}}\n");
        assert_eq!(translate(&cron, 7, 8), Some(cron.replace("-1", "7")));
        let list = format!("kind: List\nitems:\n- kind: Job\n  spec: {{{template}}}\n");
        assert_eq!(translate(&list, 7, 8), Some(list.replace("-1", "7")));
        let typed = "kind: PodList\nitems:\n- spec: {securityContext: {runAsUser: -1}}\n";
        assert_eq!(translate(typed, 7, 8), Some(typed.replace("-1", "7")));
        let windows = "kind: Pod\r\nspec:\r\n  securityContext:\r\n    runAsGroup: -1\r\n";
        assert_eq!(translate(windows, 7, 8), Some(windows.replace("-1", "8")));
        let alias = "kind: Pod\nspec:\n  securityContext: &c {runAsUser: -1}\n  containers: [{securityContext: *c}]\n";
        assert_eq!(
            translate(alias, 1234567, 0),
            Some(alias.replace("-1", "1234567"))
        );
    }

    #[test]
    fn anything_else_is_left_alone() {
        let unknown = "kind: Thing\nspec: {securityContext: {runAsUser: -1}}\n";
        let chart = "kind: Pod\nspec:\n  {{- if .Values.x }}\n  securityContext: {runAsUser: -1}\n  {{- end }}\n";
        for text in [
            "",
            "kind: Pod",
            unknown,
            chart,
            "a: [",
            "kind: Pod\nspec: {securityContext: {runAsUser: 5}}",
        ] {
            assert_eq!(translate(text, 1, 1), None, "{text}");
        }
    }
}
