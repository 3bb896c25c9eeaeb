//! Kernel parameters.

use crate::{Check, Finding, Fix, Input, Reads, Severity};

pub(super) const CHECK: Check = Check {
    id: "sysctls",
    about: "kernel parameters below /proc/sys",
    limit: "forwarding on, bridged packets filtered (both set by the install); rp_filter not 1, \
            arp_filter and arp_ignore 0, which would drop packets of pods; 1,024 inotify instances \
            and 65,536 watches (Embedded Cluster)",
    remedy: "`gravity check --autofix` sets it, now and at every boot",
    fixable: true,
    reads: Reads {
        sysctls: &[
            "net.ipv4.ip_forward",
            "net.bridge.bridge-nf-call-iptables",
            "net.ipv4.conf.all.rp_filter",
            "net.ipv4.conf.default.rp_filter",
            "net.ipv4.conf.all.arp_filter",
            "net.ipv4.conf.all.arp_ignore",
            "fs.inotify.max_user_instances",
            "fs.inotify.max_user_watches",
            "fs.may_detach_mounts",
        ],
        ..Reads::NOTHING
    },
    run: check,
    severities: &[Severity::Warning],
    ..Check::PLAIN
};

enum Want {
    Is(u64),
    IsNot(u64, u64),
    AtLeast(u64),
}

use Want::{AtLeast, Is, IsNot};

/// Parameters, what they should be, and the module that has them.
const WANTED: &[(&str, Want, Option<&str>)] = &[
    ("net.ipv4.ip_forward", Is(1), None),
    (
        "net.bridge.bridge-nf-call-iptables",
        Is(1),
        Some("br_netfilter"),
    ),
    // 1 is strict: what comes in by another way than it went out is dropped.
    ("net.ipv4.conf.all.rp_filter", IsNot(1, 2), None),
    ("net.ipv4.conf.default.rp_filter", IsNot(1, 2), None),
    ("net.ipv4.conf.all.arp_filter", Is(0), None),
    ("net.ipv4.conf.all.arp_ignore", Is(0), None),
    ("fs.inotify.max_user_instances", AtLeast(1024), None),
    ("fs.inotify.max_user_watches", AtLeast(65_536), None),
    // Kernels of RHEL 7 only.
    ("fs.may_detach_mounts", Is(1), None),
];

fn check(input: &Input<'_>) -> Vec<Finding> {
    let values = &input.facts.kernel.sysctls;
    if values.is_empty() {
        return vec![CHECK.unknown("kernel parameters", "", "as containers need them")];
    }
    let mut findings = Vec::new();
    for (name, want, module) in WANTED {
        let (good, value, wanted): (fn(u64, u64) -> bool, _, _) = match want {
            Is(value) => (|is, value| is == value, *value, value.to_string()),
            IsNot(bad, better) => (
                |is, better| is == 0 || is >= better,
                *better,
                format!("not {bad}"),
            ),
            AtLeast(least) => (|is, least| is >= least, *least, format!("at least {least}")),
        };
        let fix = Fix::Sysctl {
            name: (*name).into(),
            value: value.to_string(),
        };
        let load = module.map(|name| Fix::Module { name: name.into() });
        let title = format!("kernel parameter {name}");
        let sets = input.requirements.sets.contains(*name);
        let finding = |measured: &str| match sets {
            true => CHECK.finding(title, format!("{measured}; the install sets it"), wanted),
            false => CHECK
                .finding(title, measured, wanted)
                .warns(CHECK.remedy)
                .mended_by(load.into_iter().chain([fix]).collect()),
        };
        findings.extend(match (values.get(*name), module) {
            // A parameter that this kernel never had.
            (None, None) => None,
            (None, Some(module)) => Some(finding(&format!("none; module {module} has it"))),
            (Some(text), _) => match text.trim().parse() {
                Ok(is) if good(is, value) => None,
                _ => Some(finding(text)),
            },
        });
    }
    if findings.is_empty() {
        let wanted = "as containers need them";
        findings.push(CHECK.finding("kernel parameters", wanted, wanted));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;
    use crate::testing::{facts, only, report, requirements, troubles};

    #[test]
    fn each_parameter_is_judged_and_can_be_mended() {
        for (name, bad) in [
            ("net.ipv4.ip_forward", "0"),
            ("net.ipv4.conf.all.rp_filter", "1"),
            ("net.ipv4.conf.all.arp_ignore", "2"),
            ("fs.inotify.max_user_instances", "128"),
            ("fs.may_detach_mounts", "0"),
            ("fs.inotify.max_user_watches", "odd"),
        ] {
            let trouble = only(Severity::Warning, "sysctls", |facts| {
                facts.kernel.sysctls.insert(name.into(), bad.into());
            });
            assert!(trouble.title.contains(name), "{trouble:?}");
            assert_eq!(trouble.fixes.len(), 1);
        }
        let trouble = only(Severity::Warning, "sysctls", |facts| {
            facts
                .kernel
                .sysctls
                .remove("net.bridge.bridge-nf-call-iptables");
        });
        assert_eq!(
            trouble.fixes[0],
            Fix::Module {
                name: "br_netfilter".into()
            }
        );
    }

    #[test]
    fn what_the_operation_sets_is_no_trouble() {
        let (mut facts, mut requirements) = (facts(), requirements());
        facts
            .kernel
            .sysctls
            .insert("net.ipv4.ip_forward".into(), "0".into());
        requirements.sets.insert("net.ipv4.ip_forward".into());
        assert_eq!(troubles(&report(&requirements, &facts)), []);
    }
}
