//! No other Kubernetes runs here, and nothing that rewrites its packet filters.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "conflicts",
    about: "programs that run",
    limit: "no other Kubernetes: two kubelets on one node remove each other's pods; Docker and LXD \
            are better away, as they forbid forwarding",
    remedy: "stop and disable it: a node belongs to one cluster",
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
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
    let found = |names: &[&str]| {
        let one = |name: &&str| Some(format!("{name} (pid {})", running.get(*name)?));
        names.iter().filter_map(one).collect::<Vec<_>>().join(", ")
    };
    let (kubernetes, filters) = (found(KUBERNETES), found(FILTERS));
    if kubernetes.is_empty() && filters.is_empty() {
        let measured = match running.is_empty() {
            true => return vec![CHECK.unknown("other programs", "", "no other Kubernetes")],
            false => "no other Kubernetes, no Docker",
        };
        return vec![CHECK.finding("other programs", measured, "no other Kubernetes")];
    }
    let mut findings = Vec::new();
    if !kubernetes.is_empty() {
        let finding = CHECK.finding("another Kubernetes", kubernetes, "not on this node");
        findings.push(finding.fails(CHECK.remedy));
    }
    if !filters.is_empty() {
        let finding = CHECK.finding(
            "programs that forbid forwarding",
            filters,
            "not on this node",
        );
        findings.push(finding.warns(
            "they set the policy of forwarding to DROP: stop them, or have them forward packets of pods",
        ));
    }
    findings
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
        assert_eq!(trouble.measured, "kubelet (pid 42)");
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
