//! The kernel has, or can load, what networks of pods are made of.

use host::modules::Presence;

use crate::{Check, Finding, Input, Reads};

pub(super) const CHECK: Check = Check {
    id: "kernel-modules",
    about: "/proc/modules, modules.builtin and modules.dep of the running kernel, its configuration",
    limit: "modules of the overlay, bridge and VXLAN, connection tracking, and the nftables \
            expressions that kube-proxy and flannel use are loaded, built in or loadable",
    remedy: "install the modules of the running kernel (linux-modules-extra, kernel-modules); after \
             an update of the kernel, restart the host",
    strict: true,
    reads: Reads {
        modules: &[
            "overlay",
            "br_netfilter",
            "bridge",
            "veth",
            "vxlan",
            "nf_conntrack",
            "nf_tables",
            "nft_ct",
            "nft_nat",
            "nft_masq",
            "nft_numgen",
            "nft_fib_ipv4",
            "nft_reject_ipv4",
        ],
        kernel_options: &[
            "CONFIG_OVERLAY_FS",
            "CONFIG_BRIDGE_NETFILTER",
            "CONFIG_BRIDGE",
            "CONFIG_VETH",
            "CONFIG_VXLAN",
            "CONFIG_NF_CONNTRACK",
            "CONFIG_NF_TABLES",
            "CONFIG_NFT_CT",
            "CONFIG_NFT_NAT",
            "CONFIG_NFT_MASQ",
            "CONFIG_NFT_NUMGEN",
            "CONFIG_NFT_FIB_IPV4",
            "CONFIG_NFT_REJECT_IPV4",
        ],
        ..Reads::NOTHING
    },
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let kernel = &input.facts.kernel;
    let (mut missing, mut unknown) = (Vec::new(), Vec::new());
    // Each module is built by the option beside it.
    for (name, option) in CHECK.reads.modules.iter().zip(CHECK.reads.kernel_options) {
        let value = kernel
            .options
            .as_ref()
            .and_then(|options| options.get(*option));
        match kernel.modules.get(*name) {
            Some(Presence::Loaded | Presence::Builtin | Presence::Loadable) => {}
            _ if value.is_some_and(|value| value == "y") => {}
            _ if kernel.options.is_some() || kernel.has_module_files => missing.push(*name),
            _ => unknown.push(*name),
        }
    }
    let (title, wanted) = ("kernel modules", "loaded, built in or loadable");
    let all = CHECK.reads.modules.len();
    vec![match (missing.as_slice(), unknown.as_slice()) {
        ([], []) => CHECK.finding(title, format!("all {all}"), wanted),
        ([], unknown) => {
            let why = format!("nothing says whether it has {}", unknown.join(", "));
            CHECK.unknown(title, &why, wanted)
        }
        (missing, _) => CHECK
            .finding(title, format!("without {}", missing.join(", ")), wanted)
            .fails(CHECK.remedy),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;
    use crate::testing::{only, spoiled, troubles};

    #[test]
    fn modules_that_are_nowhere_fail() {
        let absent = |facts: &mut host::facts::HostFacts| {
            facts
                .kernel
                .modules
                .insert("vxlan".into(), Presence::Absent);
        };
        let report = spoiled(absent);
        assert_eq!(troubles(&report), [], "built in by its configuration");
        let trouble = only(Severity::Failure, "kernel-modules", |facts| {
            absent(facts);
            let options = facts.kernel.options.as_mut().unwrap();
            options.insert("CONFIG_VXLAN".into(), "m".into());
        });
        assert_eq!(trouble.measured, "without vxlan");
        only(Severity::Failure, "kernel-modules", |facts| {
            absent(facts);
            facts.kernel.options = None;
        });
        only(Severity::Warning, "kernel-modules", |facts| {
            absent(facts);
            facts.kernel.options = None;
            facts.kernel.has_module_files = false;
        });
    }

    #[test]
    fn each_module_has_its_option() {
        assert_eq!(CHECK.reads.modules.len(), CHECK.reads.kernel_options.len());
    }
}
