//! The kernel was built with what containers need.

use crate::{Check, Finding, Input, Reads, Severity};

pub(super) const CHECK: Check = Check {
    id: "kernel-config",
    about: "the kernel's configuration: /proc/config.gz, /boot/config-*, /lib/modules/*/config",
    limit: "options that containerd, runc, kubelet (its system verification), kube-proxy's nftables \
            mode and flannel need are y or m",
    remedy: "boot a kernel of your distribution's standard package",
    reads: Reads {
        kernel_options: &[
            "CONFIG_NAMESPACES",
            "CONFIG_UTS_NS",
            "CONFIG_IPC_NS",
            "CONFIG_PID_NS",
            "CONFIG_NET_NS",
            "CONFIG_CGROUPS",
            "CONFIG_CGROUP_SCHED",
            "CONFIG_FAIR_GROUP_SCHED",
            "CONFIG_CGROUP_PIDS",
            "CONFIG_CPUSETS",
            "CONFIG_MEMCG",
            "CONFIG_POSIX_MQUEUE",
            "CONFIG_KEYS",
            "CONFIG_SECCOMP",
            "CONFIG_UNIX",
            "CONFIG_INET",
            "CONFIG_NETFILTER",
            "CONFIG_NF_NAT",
            "CONFIG_CFS_BANDWIDTH",
            "CONFIG_BLK_CGROUP",
            "CONFIG_SECCOMP_FILTER",
        ],
        ..Reads::NOTHING
    },
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

/// Without them some limits of pods are not enforced.
const OPTIONAL: &[&str] = &[
    "CONFIG_CFS_BANDWIDTH",
    "CONFIG_BLK_CGROUP",
    "CONFIG_SECCOMP_FILTER",
];

fn check(input: &Input<'_>) -> Vec<Finding> {
    let (title, kernel) = ("kernel configuration", &input.facts.kernel);
    let all = CHECK.reads.kernel_options;
    let wanted = format!("{} options", all.len());
    let missing = |optional: bool| {
        all.iter()
            .copied()
            .filter(|name| OPTIONAL.contains(name) == optional)
            .filter(|name| kernel.has_option(name) == Some(false))
            .collect::<Vec<_>>()
    };
    if kernel.options.is_none() {
        // A kernel whose configuration isn't told is no bad kernel.
        return vec![CHECK.finding(title, "not on this host; not looked at", wanted)];
    }
    vec![
        match (missing(false).as_slice(), missing(true).as_slice()) {
            ([], []) => CHECK.finding(title, "has them", wanted),
            ([], optional) => CHECK
                .finding(title, format!("without {}", optional.join(", ")), wanted)
                .warns("some limits of pods will not be enforced"),
            (missing, _) => CHECK
                .finding(title, format!("without {}", missing.join(", ")), wanted)
                .fails(CHECK.remedy),
        },
    ]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::{only, spoiled, troubles};

    #[test]
    fn missing_options_are_named() {
        for (option, severity) in [
            ("CONFIG_PID_NS", Severity::Failure),
            ("CONFIG_CFS_BANDWIDTH", Severity::Warning),
        ] {
            let trouble = only(severity, "kernel-config", |facts| {
                facts.kernel.options.as_mut().unwrap().remove(option);
            });
            assert_eq!(trouble.measured, format!("without {option}"));
        }
        assert_eq!(troubles(&spoiled(|facts| facts.kernel.options = None)), []);
    }
}
