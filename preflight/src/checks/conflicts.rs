//! No other Kubernetes runs here, and nothing that rewrites its packet filters.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "conflicts",
    about: "programs that run",
    limit: "no other Kubernetes: two kubelets on one node remove each other's pods; Docker and LXD \
            are better away, as they forbid forwarding",
    remedy: "stop and disable it: a node belongs to one cluster",
    run: check,
    ..Check::PLAIN
};

const KUBERNETES: &[&str] = &[
    "kubelet",
    // The kernel cuts names at 15 characters.
    "kube-apiserver",
    "kube-controller",
    "kube-scheduler",
    "kube-proxy",
    "hyperkube",
    "k3s-server",
    "k3s-agent",
    "rke2",
    "k0s",
    "microk8s",
    "planet",
];
const FILTERS: &[&str] = &["dockerd", "docker-current", "lxd"];

fn check(input: &Input<'_>) -> Vec<Finding> {
    if input.requirements.joined {
        return Vec::new();
    }
    let running = &input.facts.processes;
    let found = |names: &[&'static str], severity| {
        names
            .iter()
            .filter_map(|name| Some((*name, *running.get(*name)?, severity)))
            .collect::<Vec<_>>()
    };
    let mut all = found(KUBERNETES, Severity::Failure);
    all.extend(found(FILTERS, Severity::Warning));
    if all.is_empty() {
        let measured = match running.is_empty() {
            true => return vec![CHECK.unknown("other programs", "", "no other Kubernetes")],
            false => "no other Kubernetes, no Docker",
        };
        return vec![CHECK.finding("other programs", measured, "no other Kubernetes")];
    }
    let finding = |(name, pid, severity): (&str, u32, Severity)| {
        let measured = format!("runs (pid {pid})");
        let finding = CHECK.finding(format!("program {name}"), measured, "not on this node");
        match severity {
            Severity::Failure => finding.fails(CHECK.remedy),
            _ => finding.warns(
                "it forbids forwarding of packets (policy DROP): stop it, or let it forward those \
                 of pods",
            ),
        }
    };
    all.into_iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::{facts, only, report, requirements, troubles};

    #[test]
    fn another_kubernetes_fails_and_docker_warns_unless_it_is_ours() {
        let trouble = only(Severity::Failure, "conflicts", |facts| {
            facts.processes.insert("kubelet".into(), 42);
        });
        assert_eq!(trouble.measured, "runs (pid 42)");
        only(Severity::Warning, "conflicts", |facts| {
            facts.processes.insert("dockerd".into(), 42);
        });
        let mut facts = facts();
        facts.processes.insert("kubelet".into(), 42);
        let mut requirements = requirements();
        requirements.joined = true;
        assert_eq!(troubles(&report(&requirements, &facts)), []);
    }
}
