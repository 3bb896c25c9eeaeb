//! The kernel has, or can load, what networks of pods are made of.

use host::facts::Kernel;
use host::modules::Presence;
use spec::PodNetwork;

use crate::{Check, Finding, Input, Reads};

pub(super) const CHECK: Check = Check {
    id: "kernel-modules",
    about: "/proc/modules, modules.builtin and modules.dep of the running kernel, its configuration, \
            modprobe.d and kernel.modules_disabled",
    limit: "modules of the overlay, bridge and VXLAN, connection tracking, and the nftables \
            expressions that kube-proxy and flannel use are loaded, built in or loadable, and not \
            forbidden; in place of VXLAN's that of WireGuard where the image has `type: wireguard`, \
            and none where the vendor's hook installs the network",
    remedy: "install the modules of the running kernel (linux-modules-extra, kernel-modules); after \
             an update of the kernel, restart the host; remove `install` and `blacklist` lines \
             about them from modprobe.d",
    strict: true,
    reads: Reads {
        modules: &[
            "overlay",
            "br_netfilter",
            "bridge",
            "veth",
            "vxlan",
            "wireguard",
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
            "CONFIG_WIREGUARD",
            "CONFIG_NF_CONNTRACK",
            "CONFIG_NF_TABLES",
            "CONFIG_NFT_CT",
            "CONFIG_NFT_NAT",
            "CONFIG_NFT_MASQ",
            "CONFIG_NFT_NUMGEN",
            "CONFIG_NFT_FIB_IPV4",
            "CONFIG_NFT_REJECT_IPV4",
        ],
        sysctls: &[MODULES_DISABLED],
        ..Reads::NOTHING
    },
    run: check,
    ..Check::PLAIN
};

/// The kernel loads no more modules, where it is 1.
const MODULES_DISABLED: &str = "kernel.modules_disabled";

/// Modules that come with those that need them, whatever a `blacklist` says: it is about
/// the aliases by which the kernel asks for the others, and about the list of modules for
/// the boot, where br_netfilter is.
const DEPENDENCIES: [&str; 2] = ["bridge", "nf_conntrack"];

fn check(input: &Input<'_>) -> Vec<Finding> {
    let kernel = &input.facts.kernel;
    let network = input.requirements.pod_network;
    let (mut missing, mut unknown, mut all) = (Vec::new(), Vec::new(), 0);
    // Each module is built by the option beside it.
    for (name, option) in CHECK.reads.modules.iter().zip(CHECK.reads.kernel_options) {
        if of_network(name).is_some_and(|of| of != network) {
            continue;
        }
        all += 1;
        let value = kernel
            .options
            .as_ref()
            .and_then(|options| options.get(*option));
        let presence = kernel.modules.get(*name);
        let known = kernel.options.is_some() || kernel.has_module_files;
        match (presence, forbidden(name, kernel)) {
            (Some(Presence::Loaded | Presence::Builtin), _) => {}
            _ if value.is_some_and(|value| value == "y") => {}
            (_, Some(by)) if known => missing.push(format!("{name} ({by} forbids it)")),
            (Some(Presence::Loadable), _) => {}
            _ if known => missing.push((*name).to_owned()),
            _ => unknown.push(*name),
        }
    }
    let (title, wanted) = ("kernel modules", "loaded, built in or loadable");
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

/// What forbids to load a module.
fn forbidden(module: &str, kernel: &Kernel) -> Option<String> {
    if kernel
        .sysctls
        .get(MODULES_DISABLED)
        .is_some_and(|set| set == "1")
    {
        return Some(MODULES_DISABLED.to_owned());
    }
    let listed = || match DEPENDENCIES.contains(&module) {
        true => None,
        false => kernel.blacklisted.get(module),
    };
    let file = kernel.forbidden.get(module).or_else(listed)?;
    Some(file.display().to_string())
}

/// The network of pods that alone needs a module.
fn of_network(module: &str) -> Option<PodNetwork> {
    match module {
        "vxlan" => Some(PodNetwork::Vxlan),
        "wireguard" => Some(PodNetwork::Wireguard),
        _ => None,
    }
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
    fn modules_that_the_host_forbids_fail() {
        let loadable = |facts: &mut host::facts::HostFacts, name: &str| {
            let kernel = &mut facts.kernel;
            kernel.options = None;
            kernel.modules.insert(name.into(), Presence::Loadable);
        };
        let file = || std::path::PathBuf::from("/etc/modprobe.d/cis.conf");
        let trouble = only(Severity::Failure, "kernel-modules", |facts| {
            loadable(facts, "overlay");
            facts.kernel.forbidden.insert("overlay".into(), file());
        });
        let expected = "without overlay (/etc/modprobe.d/cis.conf forbids it)";
        assert_eq!(trouble.measured, expected);
        only(Severity::Failure, "kernel-modules", |facts| {
            loadable(facts, "vxlan");
            facts.kernel.blacklisted.insert("vxlan".into(), file());
        });
        let trouble = only(Severity::Failure, "kernel-modules", |facts| {
            loadable(facts, "vxlan");
            let sysctls = &mut facts.kernel.sysctls;
            sysctls.insert(MODULES_DISABLED.into(), "1".into());
        });
        let expected = "without vxlan (kernel.modules_disabled forbids it)";
        assert_eq!(trouble.measured, expected);
        let loaded = spoiled(|facts| {
            facts.kernel.forbidden.insert("overlay".into(), file());
            let sysctls = &mut facts.kernel.sysctls;
            sysctls.insert(MODULES_DISABLED.into(), "1".into());
        });
        assert_eq!(troubles(&loaded), []);
        let dependency = spoiled(|facts| {
            loadable(facts, "nf_conntrack");
            let name = "nf_conntrack".into();
            facts.kernel.blacklisted.insert(name, file());
        });
        assert_eq!(troubles(&dependency), []);
    }

    #[test]
    fn only_the_module_of_the_chosen_network_is_wanted() {
        let measured = |pod_network| {
            let mut facts = crate::testing::facts();
            let kernel = &mut facts.kernel;
            for (module, option) in [("vxlan", "CONFIG_VXLAN"), ("wireguard", "CONFIG_WIREGUARD")] {
                kernel.modules.insert(module.into(), Presence::Absent);
                kernel.options.as_mut().unwrap().remove(option);
            }
            let requirements = crate::Requirements {
                pod_network,
                ..crate::testing::requirements()
            };
            let report = crate::testing::report(&requirements, &facts);
            let mut of_check = report.findings.into_iter().filter(|one| one.id == CHECK.id);
            of_check.next().unwrap().measured
        };
        assert_eq!(measured(PodNetwork::Vxlan), "without vxlan");
        assert_eq!(measured(PodNetwork::Wireguard), "without wireguard");
        assert_eq!(measured(PodNetwork::Vendor), "all 12");
    }

    #[test]
    fn each_module_has_its_option() {
        assert_eq!(CHECK.reads.modules.len(), CHECK.reads.kernel_options.len());
    }
}
