//! Programs that change packet filters behind the cluster's back.

use host::facts::Protocol;

use super::ports::{Remote, wanted};
use crate::{Check, Finding, Fix, Input, Requirements, Severity, fix};

pub(super) const CHECK: Check = Check {
    id: "firewall",
    about: "firewalls that run or are enabled, nm-cloud-setup",
    limit: "none, or one that lets pods and the cluster's ports through: firewalld with the zone and \
            the policy that `--autofix` makes does",
    remedy: "let the network of pods and the cluster's ports through, or turn it off; for firewalld \
             `gravity check --autofix` does it, and the finding has the commands",
    run: check,
    severities: &[Severity::Warning],
    fixable: true,
    ..Check::PLAIN
};

const FIREWALLD: &str = "firewalld";
const UFW: &str = "ufw";
/// Programs by the name of their process and of their unit.
const KNOWN: &[(&str, &str)] = &[
    (FIREWALLD, "firewalld.service"),
    (UFW, "ufw.service"),
    // No process of its own; its rules as they come from Debian begin with the end of
    // all others.
    ("nftables", "nftables.service"),
    ("nm-cloud-setup", "nm-cloud-setup.timer"),
];

fn check(input: &Input<'_>) -> Vec<Finding> {
    let facts = input.facts;
    let mut found = Vec::new();
    let mut findings = Vec::new();
    for (process, unit) in KNOWN {
        let starts = facts.enabled_units.contains(*unit) && (*process != UFW || facts.network.ufw);
        if !facts.processes.contains_key(*process) && !starts {
            continue;
        }
        match *process {
            FIREWALLD => findings.push(firewalld(input)),
            other => found.push(other),
        }
    }
    let measured = match found.as_slice() {
        [] if !findings.is_empty() => return findings,
        [] => "none".to_owned(),
        found => format!("{} is on", found.join(", ")),
    };
    let others = CHECK
        .finding(
            "firewalls",
            measured,
            "none, or one that lets the cluster through",
        )
        .rather(
            found.is_empty(),
            "let the network of pods and the cluster's ports through (docs/preflight.md), or turn \
             it off",
        );
    findings.push(others);
    findings
}

/// Ports that other nodes and clients connect to, as firewalld writes them.
fn ports(requirements: &Requirements) -> Vec<String> {
    let wanted = wanted(requirements);
    let wanted = wanted.iter();
    let from_outside = wanted.filter(|wanted| wanted.remote != Remote::Nobody);
    let mut ports: Vec<_> = from_outside
        .map(|wanted| {
            let protocol = match wanted.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            format!("{}/{protocol}", wanted.range)
        })
        .collect();
    ports.dedup();
    ports
}

fn firewalld(input: &Input<'_>) -> Finding {
    let networks = input.requirements.pod_cidrs.clone();
    let ports = ports(input.requirements);
    let own = &input.facts.network.firewalld;
    let finding = |measured| {
        let wanted = "off, or one that lets the cluster through";
        CHECK.finding("firewalld", measured, wanted)
    };
    if *own == Some(fix::firewalld(&networks, &ports)) {
        return finding(
            "on; its zone gravity-pods and its policy gravity-ports let the cluster through",
        );
    }
    let commands = commands(&networks, &ports);
    let finding = finding("on");
    match own {
        Some(_) => finding
            .warns(format!(
                "`gravity check --autofix` has it let pods and ports through, or do it by yourself: \
                 {commands}"
            ))
            .mended_by(vec![Fix::Firewalld { networks, ports }]),
        // Older than its policies.
        None => finding.warns(format!("have it let pods and ports through: {commands}")),
    }
}

/// What to type where the user wants other zones than ours.
fn commands(networks: &[String], ports: &[String]) -> String {
    let options = |option: &str, values: &[String]| {
        let values = values.iter().map(|value| format!(" --{option}={value}"));
        values.collect::<String>()
    };
    format!(
        "`firewall-cmd --permanent --zone=trusted{}`, `firewall-cmd --permanent{}`, \
         `firewall-cmd --reload`",
        options("add-source", networks),
        options("add-port", ports)
    )
}

#[cfg(test)]
mod tests {
    use host::facts::{Firewalld, HostFacts};

    use super::ports;
    use crate::testing::{only, report, requirements, spoiled, troubles, with_profile};
    use crate::{Fix, Severity};

    fn runs(facts: &mut HostFacts) {
        facts.processes.insert("firewalld".into(), 9);
        facts.network.firewalld = Some(Firewalld::default());
    }

    #[test]
    fn firewalls_are_named_whether_they_run_or_will() {
        let trouble = only(Severity::Warning, "firewall", |facts| {
            facts.processes.insert("ufw".into(), 9);
        });
        assert_eq!(trouble.measured, "ufw is on");
        only(Severity::Warning, "firewall", |facts| {
            facts.enabled_units.insert("nm-cloud-setup.timer".into());
        });
        let ufw = |on| {
            move |facts: &mut HostFacts| {
                facts.enabled_units.insert("ufw.service".into());
                facts.network.ufw = on;
            }
        };
        only(Severity::Warning, "firewall", ufw(true));
        assert_eq!(troubles(&spoiled(ufw(false))), []);
        let rules = only(Severity::Warning, "firewall", |facts| {
            facts.enabled_units.insert("nftables.service".into());
        });
        assert_eq!(rules.measured, "nftables is on");
        let both = spoiled(|facts| {
            runs(facts);
            facts.processes.insert("ufw".into(), 9);
        });
        assert_eq!(troubles(&both), [(Severity::Warning, "firewall"); 2]);
    }

    #[test]
    fn firewalld_is_told_what_this_cluster_needs() {
        let trouble = only(Severity::Warning, "firewall", runs);
        for words in [
            "--zone=trusted --add-source=10.244.0.0/16",
            "--add-port=6443/tcp",
            "--add-port=8472/udp",
            "`firewall-cmd --reload`",
        ] {
            assert!(trouble.remedy.contains(words), "{}", trouble.remedy);
        }
        // What listens for this node alone stays closed.
        assert!(!trouble.remedy.contains("10257"), "{}", trouble.remedy);
        assert!(!trouble.fixes.is_empty());
        // Before it had policies there is nothing to mend.
        let old = only(Severity::Warning, "firewall", |facts| {
            runs(facts);
            facts.network.firewalld = None;
        });
        assert!(old.fixes.is_empty() && old.remedy.contains("--add-port=6443/tcp"));
    }

    #[test]
    fn firewalld_is_fine_with_what_autofix_makes_and_no_less() {
        let mut facts = crate::testing::facts();
        runs(&mut facts);
        let requirements = requirements();
        let found = report(&requirements, &facts);
        let fixes = found.fixes();
        let [Fix::Firewalld { networks, ports }] = fixes.as_slice() else {
            panic!("nothing to mend: {found:?}")
        };
        let made = crate::fix::firewalld(networks, ports);
        assert!(made.zone.contains("<source address=\"10.244.0.0/16\"/>"));
        let api = "<port port=\"6443\" protocol=\"tcp\"/>";
        assert!(made.policy.contains(api), "{}", made.policy);
        facts.network.firewalld = Some(made);
        assert_eq!(troubles(&report(&requirements, &facts)), []);
        let mut more = requirements;
        more.vxlan_port = 4789;
        let found = report(&more, &facts);
        assert_eq!(troubles(&found), [(Severity::Warning, "firewall")]);
    }

    #[test]
    fn ports_of_the_profile_are_among_them() {
        let requirements =
            with_profile("{network: {ports: [{protocol: tcp, ranges: ['80', '30000-30100']}]}}");
        let ports = ports(&requirements);
        assert!(ports.contains(&"80/tcp".to_owned()), "{ports:?}");
        assert!(ports.contains(&"30000-30100/tcp".to_owned()), "{ports:?}");
    }
}
