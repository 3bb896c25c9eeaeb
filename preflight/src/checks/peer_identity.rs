//! No two nodes are taken for one.

use std::net::IpAddr;

use host::facts::{HostFacts, Introduction};

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "peer-identity",
    about: "names, machine-ids and hardware addresses of this and other nodes",
    limit: "each node has its own: Kubernetes knows nodes by their names, and copies of one \
            virtual machine answer for each other (kubeadm's requirements)",
    remedy: "give each node a name (`hostnamectl set-hostname`), a machine-id (remove \
             /etc/machine-id, then `systemd-machine-id-setup`) and a MAC address of its own",
    strict: true,
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let own = own(input.facts, input.requirements.advertise_address);
    let seen = input.peers();
    seen.map(|(address, seen)| {
        let shared = shared(&own, &seen.who);
        let title = format!("identity of {address}");
        let finding = |measured: String| CHECK.finding(title, measured, "its own");
        match shared.is_empty() {
            true => finding(format!("{}: its own", seen.who.hostname)),
            false => finding(format!("it has our {}", shared.join(", "))).fails(CHECK.remedy),
        }
    })
    .collect()
}

/// Who this host is. Other interfaces than that of its address are on networks that it
/// needn't share with the peers: a NAT of each machine's own, a management controller's.
fn own(facts: &HostFacts, advertised: IpAddr) -> Introduction {
    let mut own = Introduction::of(facts);
    if let Some(advertised) = facts.address(advertised) {
        let interface = facts.network.interface(&advertised.interface);
        own.macs
            .retain(|mac| interface.is_some_and(|interface| interface.mac == *mac));
    }
    own
}

fn shared(own: &Introduction, other: &Introduction) -> Vec<String> {
    let mut shared = Vec::new();
    let mut both = |what: &str, ours: &str, theirs: &str| {
        if !ours.is_empty() && ours.eq_ignore_ascii_case(theirs) {
            shared.push(format!("{what} {ours}"));
        }
    };
    both("name", &own.hostname, &other.hostname);
    both("machine-id", &own.machine_id, &other.machine_id);
    for mac in &own.macs {
        for others in &other.macs {
            both("hardware address", mac, others);
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::{facts, only_between};

    #[test]
    fn what_two_nodes_share_is_told() {
        let ours = facts();
        let found = [
            only_between(Severity::Failure, "peer-identity", |peer| {
                peer.seen.as_mut().unwrap().who.hostname = "NODE-1".into();
            }),
            only_between(Severity::Failure, "peer-identity", |peer| {
                peer.seen.as_mut().unwrap().who.machine_id = ours.machine_id.clone();
            }),
            only_between(Severity::Failure, "peer-identity", |peer| {
                peer.seen.as_mut().unwrap().who.macs = vec!["02:00:00:00:00:01".into()];
            }),
        ];
        for (finding, what) in found.iter().zip(["name", "machine-id", "hardware"]) {
            assert!(finding.measured.contains(what), "{finding:?}");
        }
    }

    #[test]
    fn interfaces_of_other_networks_may_share_an_address() {
        let mut facts = facts();
        let mut nat = facts.network.interfaces[0].clone();
        (nat.name, nat.mac) = ("nat".into(), "08:00:27:8d:c0:4d".into());
        facts.network.interfaces.push(nat);
        let mut address = facts.addresses[1].clone();
        (address.interface, address.address) = ("nat".into(), [10, 0, 2, 15].into());
        facts.addresses.push(address);
        let macs = |advertised: [u8; 4]| super::own(&facts, advertised.into()).macs;
        assert_eq!(macs([192, 168, 1, 5]), ["02:00:00:00:00:01"]);
        assert_eq!(macs([10, 0, 2, 15]), ["08:00:27:8d:c0:4d"]);
        // Which one it is, isn't known.
        assert_eq!(macs([0, 0, 0, 0]).len(), 2);
    }

    #[test]
    fn what_nobody_knows_is_not_shared() {
        let report = crate::testing::with_peers(|peer| {
            let who = &mut peer.seen.as_mut().unwrap().who;
            (who.machine_id, who.macs) = (String::new(), Vec::new());
        });
        assert_eq!(crate::testing::troubles(&report), []);
    }
}
