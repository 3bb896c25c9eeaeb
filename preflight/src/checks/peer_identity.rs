//! No two nodes are taken for one.

use host::facts::Introduction;

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
    let own = Introduction::of(input.facts);
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
    fn what_nobody_knows_is_not_shared() {
        let report = crate::testing::with_peers(|peer| {
            let who = &mut peer.seen.as_mut().unwrap().who;
            (who.machine_id, who.macs) = (String::new(), Vec::new());
        });
        assert_eq!(crate::testing::troubles(&report), []);
    }
}
