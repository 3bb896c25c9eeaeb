//! Packets between pods are forwarded.

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "forwarding",
    about: "TCP and UDP between two network namespaces with addresses of pods, made for it and \
            removed again; needs `ip`",
    limit: "both come through: firewalls and Docker drop what is forwarded",
    remedy: "let the firewall forward packets from and to the network of pods; `iptables -S FORWARD` \
             and `nft list ruleset` show who drops them",
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    // On a node of a cluster pods show it.
    if input.requirements.joined {
        return Vec::new();
    }
    let Some(measured) = &input.measured.forwarding else {
        return Vec::new();
    };
    let (title, wanted) = ("forwarding between pods", "TCP and UDP come through");
    let forwarding = match measured {
        Ok(forwarding) => forwarding,
        // Hosts without `ip` are no bad hosts.
        Err(error) => {
            let measured = format!("not tried: {error}");
            return vec![CHECK.finding(title, measured, wanted)];
        }
    };
    let blocked = match (forwarding.tcp, forwarding.udp) {
        (true, true) => return vec![CHECK.finding(title, wanted, wanted)],
        (false, false) => "TCP and UDP are",
        (false, true) => "TCP is",
        (true, false) => "UDP is",
    };
    vec![
        CHECK
            .finding(title, format!("{blocked} dropped"), wanted)
            .fails(CHECK.remedy),
    ]
}

#[cfg(test)]
mod tests {
    use crate::measure::forwarding::Forwarding;
    use crate::testing::{measured, requirements, troubles};
    use crate::{Measured, Severity};

    #[test]
    fn what_is_dropped_fails() {
        for (forwarding, failures) in [
            (
                Ok(Forwarding {
                    tcp: true,
                    udp: true,
                }),
                0,
            ),
            (
                Ok(Forwarding {
                    tcp: true,
                    udp: false,
                }),
                1,
            ),
            (
                Ok(Forwarding {
                    tcp: false,
                    udp: false,
                }),
                1,
            ),
            (Err("`ip` is not installed".to_owned()), 0),
        ] {
            let taken = Measured {
                forwarding: Some(forwarding),
                ..Measured::default()
            };
            let report = measured(&requirements(), taken);
            assert_eq!(
                troubles(&report),
                vec![(Severity::Failure, "forwarding"); failures]
            );
        }
    }
}
