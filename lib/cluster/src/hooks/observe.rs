//! What happens to the pods of a Job, as lines for people.
//!
//! In: successive states of pods. Out: lines for what changed, which
//! containers have logs that nobody follows yet, and in the end which
//! containers failed. Pure but for its memory.

use std::collections::{BTreeMap, HashMap, HashSet};

use event::Event;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodStatus};

/// One run of a container: what it is called, and how often it ran before.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Instance {
    pub pod: String,
    pub pod_uid: String,
    pub container: String,
    pub restarts: i32,
}

impl Instance {
    /// Who wrote the instance's lines.
    pub(super) fn source(&self) -> String {
        format!("{}/{}", self.pod, self.container)
    }
}

/// Remembers the last state of every pod.
#[derive(Debug, Default)]
pub(super) struct Observer {
    phases: HashMap<String, String>,
    states: HashMap<(String, String), (i32, String)>,
    followed: HashSet<Instance>,
    failures: BTreeMap<String, String>,
}

impl Observer {
    /// Takes the present state of a pod. Out: lines, and instances to follow.
    pub(super) fn pod(&mut self, pod: &Pod) -> (Vec<Event>, Vec<Instance>) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut lines = Vec::new();
        let status = pod.status.as_ref();
        let phase = status
            .and_then(|s| s.phase.clone())
            .unwrap_or_else(|| "Pending".into());
        let refused = status.filter(|_| phase == "Failed").and_then(refusal);
        if let Some(refused) = &refused {
            self.failures.insert(name.clone(), refused.clone());
        }
        match self.phases.insert(uid.clone(), phase.clone()) {
            None => {
                lines.push(info(format!(
                    "Created Pod \"{name}\" in namespace \"{namespace}\""
                )));
                if phase != "Pending" {
                    lines.push(changed(&name, &namespace, ("Pending", &phase), refused));
                }
            }
            Some(former) if former != phase => {
                lines.push(changed(&name, &namespace, (&former, &phase), refused));
            }
            Some(_) => {}
        }
        let statuses = status.into_iter().flat_map(|status| {
            let lists = [&status.init_container_statuses, &status.container_statuses];
            lists.into_iter().flatten().flatten()
        });
        let mut follow = Vec::new();
        for container in statuses {
            lines.extend(self.container(&name, &uid, container));
            let instance = Instance {
                pod: name.clone(),
                pod_uid: uid.clone(),
                container: container.name.clone(),
                restarts: container.restart_count,
            };
            if has_logs(container) && self.followed.insert(instance.clone()) {
                follow.push(instance);
            }
        }
        (lines, follow)
    }

    fn container(&mut self, pod: &str, uid: &str, status: &ContainerStatus) -> Vec<Event> {
        let mut lines = Vec::new();
        let name = &status.name;
        for state in [&status.state, &status.last_state] {
            let ended = state.as_ref().and_then(|state| state.terminated.as_ref());
            if let Some(ended) = ended.filter(|ended| ended.exit_code != 0) {
                let reason = ended.reason.as_deref().unwrap_or("Error");
                let text = match ended.message.as_deref().map(str::trim) {
                    Some(message) if !message.is_empty() => {
                        format!("exit code {}, {reason}: {message}", ended.exit_code)
                    }
                    _ => format!("exit code {}, {reason}", ended.exit_code),
                };
                self.failures.insert(format!("{pod}/{name}"), text);
                break;
            }
        }
        let waiting = status
            .state
            .as_ref()
            .and_then(|state| state.waiting.as_ref());
        let reason = waiting
            .and_then(|waiting| waiting.reason.clone())
            .unwrap_or_default();
        if is_trouble(&reason) {
            let message = waiting.and_then(|waiting| waiting.message.as_deref());
            let text = format!("{reason}: {}", message.unwrap_or_default());
            self.failures.entry(format!("{pod}/{name}")).or_insert(text);
        }
        let described = describe(status.state.as_ref());
        let key = (uid.to_owned(), name.clone());
        let now = (status.restart_count, described.clone());
        let former = self.states.insert(key, now.clone());
        match former {
            Some(former) if former == now => {}
            Some((restarts, _)) if restarts < status.restart_count => {
                let message = format!(
                    "Container \"{name}\" of Pod \"{pod}\" restarted ({} times), current state is \
                     \"{described}\"",
                    status.restart_count
                );
                lines.push(Event::Warning { message });
            }
            former => {
                let verb = if former.is_some() {
                    "changed"
                } else {
                    "created"
                };
                let message = format!(
                    "Container \"{name}\" of Pod \"{pod}\" {verb}, current state is \"{described}\""
                );
                lines.push(match is_trouble(&reason) {
                    true => Event::Warning { message },
                    false => info(message),
                });
            }
        }
        lines
    }

    /// What is known of containers that failed, by `pod/container`, and of pods
    /// that failed as a whole.
    pub(super) fn failures(&self) -> &BTreeMap<String, String> {
        &self.failures
    }
}

fn info(message: String) -> Event {
    Event::Info { message }
}

/// Why a pod failed as a whole: its node took it not, or not any more.
fn refusal(status: &PodStatus) -> Option<String> {
    let reason = status.reason.as_deref()?;
    let message = status.message.as_deref().map(str::trim);
    Some(match message.filter(|message| !message.is_empty()) {
        Some(message) => format!("{reason}: {message}"),
        None => reason.to_owned(),
    })
}

fn changed(
    name: &str,
    namespace: &str,
    (from, to): (&str, &str),
    refused: Option<String>,
) -> Event {
    let message = format!(
        "Pod \"{name}\" in namespace \"{namespace}\" has changed state from \"{from}\" to \"{to}\""
    );
    match refused {
        Some(why) => Event::Warning {
            message: format!("{message}: {why}"),
        },
        None => info(message),
    }
}

fn describe(state: Option<&ContainerState>) -> String {
    let Some(state) = state else {
        return "waiting".into();
    };
    if state.running.is_some() {
        return "running".into();
    }
    if let Some(ended) = &state.terminated {
        return format!("terminated, exit code {}", ended.exit_code);
    }
    match state
        .waiting
        .as_ref()
        .and_then(|waiting| waiting.reason.as_ref())
    {
        Some(reason) => format!("waiting, reason {reason}"),
        None => "waiting".into(),
    }
}

/// Whether a container waits for something that a person may have to mend.
fn is_trouble(reason: &str) -> bool {
    !matches!(reason, "" | "PodInitializing" | "ContainerCreating")
}

fn has_logs(status: &ContainerStatus) -> bool {
    let ran = |state: &Option<ContainerState>| {
        state
            .as_ref()
            .is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    ran(&status.state) || ran(&status.last_state)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(phase: &str, restarts: i32, state: Value, last: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "ns", "uid": "1" },
            "status": {
                "phase": phase,
                "containerStatuses": [{
                    "name": "c", "image": "x", "imageID": "", "ready": false,
                    "restartCount": restarts, "state": state, "lastState": last,
                }],
            },
        }))
        .unwrap()
    }

    fn texts(events: &[Event]) -> Vec<&str> {
        let text = |event| match event {
            &Event::Info { ref message } | &Event::Warning { ref message } => message.as_str(),
            _ => "",
        };
        events.iter().map(text).collect()
    }

    #[test]
    fn every_change_is_told_once() {
        let mut observer = Observer::default();
        let waiting = json!({"waiting": {"reason": "ContainerCreating"}});
        let (lines, follow) = observer.pod(&pod("Pending", 0, waiting.clone(), json!({})));
        assert_eq!(
            texts(&lines),
            [
                "Created Pod \"p\" in namespace \"ns\"",
                "Container \"c\" of Pod \"p\" created, current state is \
                 \"waiting, reason ContainerCreating\""
            ]
        );
        assert!(follow.is_empty());
        let (lines, _) = observer.pod(&pod("Pending", 0, waiting, json!({})));
        assert!(lines.is_empty());

        let running = json!({"running": {}});
        let (lines, follow) = observer.pod(&pod("Running", 0, running.clone(), json!({})));
        assert_eq!(
            texts(&lines)[0],
            "Pod \"p\" in namespace \"ns\" has changed state from \"Pending\" to \"Running\""
        );
        assert_eq!(follow.len(), 1);
        assert_eq!(follow[0].source(), "p/c");

        let failed = json!({"terminated": {"exitCode": 3, "reason": "Error"}});
        let (_, follow) = observer.pod(&pod("Running", 0, failed.clone(), json!({})));
        assert!(follow.is_empty());
        let (lines, follow) = observer.pod(&pod("Running", 1, running, failed));
        assert!(
            matches!(&lines[0], Event::Warning { message } if message.contains("restarted (1"))
        );
        assert_eq!(follow[0].restarts, 1);
        assert_eq!(observer.failures()["p/c"], "exit code 3, Error");
    }

    #[test]
    fn trouble_is_a_warning_and_remembered() {
        let mut observer = Observer::default();
        let state = json!({"waiting": {"reason": "ErrImagePull", "message": "not found"}});
        let (lines, _) = observer.pod(&pod("Pending", 0, state, json!({})));
        assert!(matches!(lines[1], Event::Warning { .. }));
        assert_eq!(observer.failures()["p/c"], "ErrImagePull: not found");
    }

    #[test]
    fn why_a_node_refuses_a_pod_is_told() {
        let mut observer = Observer::default();
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "1"},
            "status": {
                "phase": "Failed",
                "reason": "Evicted",
                "message": "Pod was rejected: The node had condition: [DiskPressure]. ",
            },
        }));
        let (lines, _) = observer.pod(&pod.unwrap());
        let why = "Evicted: Pod was rejected: The node had condition: [DiskPressure].";
        assert!(
            matches!(&lines[1], Event::Warning { message } if message.ends_with(why)),
            "{:?}",
            texts(&lines)
        );
        assert_eq!(observer.failures()["p"], why);
    }

    #[test]
    fn a_quick_container_is_followed_although_it_never_was_seen_running() {
        let mut observer = Observer::default();
        let state = json!({"terminated": {"exitCode": 0}});
        let (lines, follow) = observer.pod(&pod("Succeeded", 0, state, json!({})));
        assert_eq!(texts(&lines).len(), 3);
        assert_eq!(follow.len(), 1);
        assert!(observer.failures().is_empty());
    }
}
