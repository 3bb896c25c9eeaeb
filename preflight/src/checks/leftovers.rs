//! Nothing is left of an earlier installation.

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "leftovers",
    about: "mounts below the state directory and /var/lib/kubelet, interfaces, tables and chains of \
            packet filters, and units that Kubernetes makes",
    limit: "none: old rules would send packets of Services to pods that are gone",
    remedy: "remove the earlier installation by its own means (`gravity leave --force`, `kubeadm \
             reset`), or restart the host",
    run: check,
    ..Check::PLAIN
};

const INTERFACES: &[&str] = &[
    "cni0",
    "flannel.1",
    "flannel-wg",
    "flannel-wg-v6",
    "kube-ipvs0",
    "nodelocaldns",
    "vxlan.calico",
    "tunl0",
    "cilium_host",
    "weave",
];
/// How names of chains begin.
const CHAINS: &[&str] = &["KUBE-", "CNI-", "FLANNEL", "cali-", "CILIUM_"];
/// Tables of nftables.
const TABLES: &[&str] = &[
    "ip kube-proxy",
    "ip6 kube-proxy",
    "ip flannel-ipv4",
    "ip6 flannel-ipv6",
    "inet cni_hostport",
];
const UNITS: &[&str] = &[
    "gravity.service",
    "kubelet.service",
    "k3s.service",
    "k3s-agent.service",
    "rke2-server.service",
    "rke2-agent.service",
    "k0scontroller.service",
    "k0sworker.service",
];

fn check(input: &Input<'_>) -> Vec<Finding> {
    if input.requirements.joined {
        return Vec::new();
    }
    let facts = input.facts;
    let mounts = facts.mounts.iter().map(|mount| &mount.target);
    let state_dir = &input.requirements.state_dir;
    let is_ours = |path: &&std::path::PathBuf| {
        // The directory itself may well be a disk of its own.
        (path.starts_with(state_dir) && *path != state_dir)
            || (path.starts_with("/var/lib/kubelet") && path.as_os_str() != "/var/lib/kubelet")
    };
    let mounts = mounts
        .filter(is_ours)
        .map(|path| path.display().to_string());
    let interfaces = facts
        .network
        .interfaces
        .iter()
        .map(|interface| &interface.name);
    // The kernel makes a tunl0 by itself; only Calico gives it an address.
    let addressed = |name: &str| {
        facts
            .addresses
            .iter()
            .any(|address| address.interface == name)
    };
    let interfaces = interfaces
        .filter(|name| INTERFACES.contains(&name.as_str()))
        .filter(|name| *name != "tunl0" || addressed(name));
    let filters = facts.network.filters.iter().flatten().filter(|name| {
        TABLES.contains(&name.as_str()) || CHAINS.iter().any(|start| name.starts_with(start))
    });
    let units = facts
        .enabled_units
        .iter()
        .filter(|unit| UNITS.contains(&unit.as_str()));
    let kinds = [
        ("mounts", mounts.collect::<Vec<_>>()),
        ("network interfaces", interfaces.cloned().collect()),
        (
            "packet filter tables and chains",
            filters.cloned().collect(),
        ),
        ("services", units.cloned().collect()),
    ];
    let mut findings: Vec<_> = kinds
        .into_iter()
        .filter(|(_, found)| !found.is_empty())
        .map(|(what, found)| {
            CHECK
                .finding(
                    format!("{what} of an earlier installation"),
                    some(&found),
                    "none",
                )
                .fails(CHECK.remedy)
        })
        .collect();
    if findings.is_empty() {
        findings.push(CHECK.finding("earlier installations", "none", "none"));
    }
    findings
}

/// The first few.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use host::facts::{HostFacts, Interface};
    use host::mounts::Mount;

    use crate::Severity;
    use crate::testing::{facts, only, report, requirements, spoiled, troubles};

    fn mount(target: &str) -> Mount {
        Mount {
            target: target.into(),
            root: "/".into(),
            filesystem: "tmpfs".into(),
            source: "tmpfs".into(),
            options: "rw".into(),
            shared: false,
        }
    }

    fn interface(name: &str) -> Interface {
        Interface {
            name: name.into(),
            ..Interface::default()
        }
    }

    #[test]
    fn remains_are_found_by_name() {
        type Spoil = fn(&mut HostFacts);
        let spoils: [(&str, Spoil); 5] = [
            ("/var/lib/gravity/x", |facts| {
                facts.mounts.push(mount("/var/lib/gravity/x"))
            }),
            ("/var/lib/kubelet/pods/1", |facts| {
                facts.mounts.push(mount("/var/lib/kubelet/pods/1"));
            }),
            ("cni0", |facts| {
                facts.network.interfaces.push(interface("cni0"))
            }),
            ("KUBE-SERVICES", |facts| {
                let filters = facts.network.filters.as_mut().unwrap();
                filters.extend(["KUBE-SERVICES".to_owned(), "ip filter".into()]);
            }),
            ("kubelet.service", |facts| {
                facts.enabled_units.insert("kubelet.service".into());
            }),
        ];
        for (name, spoil) in spoils {
            let trouble = only(Severity::Failure, "leftovers", spoil);
            assert_eq!(trouble.measured, name);
            // Of a cluster that runs, they are its own.
            let (mut facts, mut requirements) = (facts(), requirements());
            spoil(&mut facts);
            requirements.joined = true;
            assert_eq!(troubles(&report(&requirements, &facts)), []);
        }
    }

    #[test]
    fn a_disk_of_its_own_and_the_kernels_tunnel_are_no_remains() {
        let report = spoiled(|facts| {
            facts.mounts.push(mount("/var/lib/gravity"));
            facts.network.interfaces.push(interface("tunl0"));
            facts.network.filters = None;
        });
        assert_eq!(troubles(&report), []);
        let many: Vec<_> = (0..6).map(|number| number.to_string()).collect();
        assert_eq!(super::some(&many), "0, 1, 2, 3 and 2 more");
    }
}
