//! `runAsUser: -1` in Kubernetes resources.
//!
//! In: the text of a YAML file, of one or more documents. Out: the same text
//! with the service user in place of -1, no other byte changed. Text that is
//! not YAML, such as the template of a chart, is left alone.

use std::collections::BTreeSet;

use crate::yaml::{self, Limits, Node};

/// Puts `uid` where a pod, a container or an init container asks for user -1.
/// `None` when nothing changes.
pub fn translate(text: &str, uid: u32) -> Option<String> {
    // Parsing is only worth it where the words are there at all.
    if !text.contains("runAsUser") {
        return None;
    }
    let documents = yaml::documents(text, &Limits::MANIFEST).ok()?;
    let mut places = BTreeSet::new();
    for document in &documents {
        resource(document, &mut places);
    }
    let mut result = text.to_owned();
    for (start, end) in places.iter().rev() {
        // Aliases share a place, so that it is visited once.
        if result
            .get(*start..*end)
            .is_some_and(|old| old.trim() == "-1")
        {
            result.replace_range(start..end, &uid.to_string());
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

fn resource(node: &Node, places: &mut BTreeSet<(usize, usize)>) {
    let kind = node.get("kind").and_then(Node::text).unwrap_or_default();
    if kind == "List" || kind.ends_with("List") {
        let items = node.get("items").map(Node::items).unwrap_or_default();
        items.iter().for_each(|item| resource(item, places));
        return;
    }
    let Some(path) = pod_spec(kind) else { return };
    let Some(spec) = path.iter().try_fold(node, |node, key| node.get(key)) else {
        return;
    };
    user(spec, places);
    for containers in ["initContainers", "containers", "ephemeralContainers"] {
        let containers = spec.get(containers).map(Node::items).unwrap_or_default();
        containers
            .iter()
            .for_each(|container| user(container, places));
    }
}

fn user(holder: &Node, places: &mut BTreeSet<(usize, usize)>) {
    let user = holder
        .get("securityContext")
        .and_then(|context| context.get("runAsUser"));
    if let Some(user) = user.filter(|user| user.text() == Some("-1")) {
        places.insert((user.bytes.start, user.bytes.end));
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
            .replace("{ runAsUser: -1,", "{ runAsUser: 1001,")
            .replace("runAsUser:   -1\n", "runAsUser:   1001\n");
        assert_eq!(translate(POD, 1001).as_deref(), Some(expected.as_str()));
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
            assert_eq!(translate(&text, 7), Some(text.replace("-1", "7")), "{kind}");
        }
        let cron = format!("kind: CronJob\nspec: {{jobTemplate: {{spec: {{{template}}}}}}}\n");
        assert_eq!(translate(&cron, 7), Some(cron.replace("-1", "7")));
        let list = format!("kind: List\nitems:\n- kind: Job\n  spec: {{{template}}}\n");
        assert_eq!(translate(&list, 7), Some(list.replace("-1", "7")));
        let alias = "kind: Pod\nspec:\n  securityContext: &c {runAsUser: -1}\n  containers: [{securityContext: *c}]\n";
        assert_eq!(
            translate(alias, 1234567),
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
            assert_eq!(translate(text, 1), None, "{text}");
        }
    }
}
