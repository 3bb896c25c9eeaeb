//! Packets of an interface's size reach the other node.

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "peer-mtu",
    about: "a UDP packet of the interface's MTU that may not be broken, in both directions",
    limit: "it arrives: pods' packets are as large, and are lost where the network between nodes \
            takes smaller ones only",
    remedy: "give the interface the MTU of the network between the nodes (`ip link set dev \
             INTERFACE mtu SIZE`, and in the system's configuration), or mend that network",
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (address, seen) in input.peers() {
        for (way, direction) in [(&seen.there, "to"), (&seen.back, "from")] {
            // Where no UDP port could be had, its own check says so.
            let Some(packet) = way.packet else { continue };
            let title = format!("large packets {direction} {address}");
            let wanted = format!("packets of {} bytes arrive", packet.size);
            findings.push(match packet.arrived {
                true => CHECK.finding(title, "they arrive", wanted),
                false => CHECK
                    .finding(title, "they are lost", wanted)
                    .fails(CHECK.remedy),
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use host::facts::Packet;

    use crate::Severity;
    use crate::testing::only_between;

    #[test]
    fn large_packets_that_are_lost_fail() {
        let finding = only_between(Severity::Failure, "peer-mtu", |peer| {
            peer.seen.as_mut().unwrap().back.packet = Some(Packet {
                size: 9000,
                arrived: false,
            });
        });
        assert_eq!(finding.wanted, "packets of 9000 bytes arrive");
        assert!(finding.title.contains("from"));
    }
}
