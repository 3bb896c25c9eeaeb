//! Root may do here what containers need.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "capabilities",
    about: "effective capabilities of this process",
    limit: "those that containerd, kubelet and kube-proxy use; CAP_SYS_RESOURCE is better had: \
            without it, services can't be kept from the kernel's out-of-memory killer",
    remedy: "run it as root of the host itself, not in a container with fewer rights",
    strict: true,
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

/// Numbers of capabilities, from linux/capability.h.
const NEEDED: &[(u32, &str)] = &[
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (10, "CAP_NET_BIND_SERVICE"),
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    (18, "CAP_SYS_CHROOT"),
    (19, "CAP_SYS_PTRACE"),
    (21, "CAP_SYS_ADMIN"),
    (27, "CAP_MKNOD"),
];
const WANTED: (u32, &str) = (24, "CAP_SYS_RESOURCE");

fn check(input: &Input<'_>) -> Vec<Finding> {
    // Others than root are told so, once.
    if input.facts.uid != 0 {
        return Vec::new();
    }
    let title = "capabilities of root";
    let Some(set) = input.facts.kernel.capabilities else {
        return vec![CHECK.unknown(title, "no CapEff in /proc/self/status", "all")];
    };
    let has = |number: u32| set & (1 << number) != 0;
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(number, _)| !has(*number))
        .map(|(_, name)| *name)
        .collect();
    if !missing.is_empty() {
        let measured = format!("without {}", missing.join(", "));
        return vec![CHECK.finding(title, measured, "all").fails(CHECK.remedy)];
    }
    let measured = match has(WANTED.0) {
        true => "all".to_owned(),
        false => format!("without {}", WANTED.1),
    };
    vec![CHECK.finding(title, measured, "all").rather(
        has(WANTED.0),
        "it works, but services are not kept from the out-of-memory killer",
    )]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;
    use crate::testing::only;

    #[test]
    fn missing_rights_are_named() {
        let trouble = only(Severity::Failure, "capabilities", |facts| {
            facts.kernel.capabilities = Some(!(1 << 21));
        });
        assert_eq!(trouble.measured, "without CAP_SYS_ADMIN");
        for set in [Some(!(1 << WANTED.0)), None] {
            only(Severity::Warning, "capabilities", |facts| {
                facts.kernel.capabilities = set;
            });
        }
    }
}
