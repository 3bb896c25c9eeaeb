//! Programs that change packet filters behind the cluster's back.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "firewall",
    about: "firewalls that run or are enabled, nm-cloud-setup",
    limit: "none, or one that lets pods, services and the cluster's ports through",
    remedy: "let the pod and service networks and the cluster's ports through (docs/preflight.md), \
             or turn it off",
    run: check,
    severities: &[Severity::Warning],
    ..Check::PLAIN
};

/// Programs by the name of their process and of their unit.
const KNOWN: &[(&str, &str)] = &[
    ("firewalld", "firewalld.service"),
    ("ufw", "ufw.service"),
    ("nm-cloud-setup", "nm-cloud-setup.timer"),
];

fn check(input: &Input<'_>) -> Vec<Finding> {
    let facts = input.facts;
    let found: Vec<_> = KNOWN
        .iter()
        .filter(|(process, unit)| {
            facts.processes.contains_key(*process) || facts.enabled_units.contains(*unit)
        })
        .map(|(name, _)| *name)
        .collect();
    let measured = match found.as_slice() {
        [] => "none".to_owned(),
        found => format!("{} is on", found.join(", ")),
    };
    vec![
        CHECK
            .finding(
                "firewalls",
                measured,
                "none, or one that lets the cluster through",
            )
            .rather(found.is_empty(), CHECK.remedy),
    ]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::only;

    #[test]
    fn firewalls_are_named_whether_they_run_or_will() {
        let trouble = only(Severity::Warning, "firewall", |facts| {
            facts.processes.insert("firewalld".into(), 9);
        });
        assert_eq!(trouble.measured, "firewalld is on");
        only(Severity::Warning, "firewall", |facts| {
            facts.enabled_units.insert("nm-cloud-setup.timer".into());
        });
    }
}
