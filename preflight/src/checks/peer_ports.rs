//! Ports reach from node to node.

use host::facts::{Port, Protocol, Reach, Way};

use super::ports::{Remote, remote, wanted};
use crate::{Check, Finding, Input, Requirements, Severity};

pub(super) const CHECK: Check = Check {
    id: "peer-ports",
    about: "ports of the cluster and of the profile, opened for it and tried in both directions",
    limit: "each answers; those of etcd are a warning, as masters alone need them",
    remedy: "let these ports through firewalls on both nodes and between them \
             (docs/preflight.md has the list)",
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

/// What the other node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// A master, or a node that may become one.
    Master,
    /// A worker: it has none of the ports that only masters offer.
    Worker,
}

/// Ports that nodes have to reach of each other, `most` at most: all of the cluster's,
/// and of large ranges of the profile some, evenly spread, the first and the last among
/// them.
pub fn needed(requirements: &Requirements, other: Other, most: usize) -> Vec<Port> {
    let wanted = wanted(requirements);
    let (own, others): (Vec<_>, Vec<_>) = wanted
        .iter()
        .filter(|wanted| match wanted.remote {
            Remote::Nobody => false,
            Remote::Masters | Remote::AllToMasters => other == Other::Master,
            Remote::All => true,
        })
        .partition(|wanted| wanted.range.first == wanted.range.last);
    let ports = |wanted: &&super::ports::Wanted<'_>| {
        let protocol = wanted.protocol;
        let range = wanted.range.first..=wanted.range.last;
        range.map(move |number| Port { protocol, number })
    };
    let mut needed: Vec<_> = own.iter().flat_map(ports).collect();
    needed.dedup();
    needed.truncate(most);
    let ranges: Vec<_> = others.iter().flat_map(ports).collect();
    let room = most - needed.len();
    match ranges.len() <= room {
        true => needed.extend(ranges),
        false if room > 1 => {
            let last = ranges.len() - 1;
            needed.extend((0..room).map(|step| ranges[step * last / (room - 1)]));
        }
        false => {}
    }
    needed
}

fn check(input: &Input<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (address, seen) in input.peers() {
        let ways = [
            (&seen.there, format!("ports of {address}, from this node")),
            (&seen.back, format!("ports of this node, from {address}")),
        ];
        for (way, title) in ways {
            if !way.ports.is_empty() {
                findings.push(one(way, title, input.requirements));
            }
        }
    }
    findings
}

fn one(way: &Way, title: String, requirements: &Requirements) -> Finding {
    let names = |wanted: fn(&Reach) -> bool| -> Vec<String> {
        let mut found = Vec::new();
        for (port, reach) in &way.ports {
            if wanted(reach) {
                found.push(name(*port));
            }
        }
        found
    };
    let silent = names(|reach| *reach == Reach::Silent);
    let refused = names(|reach| *reach == Reach::Refused);
    let unknown = names(|reach| matches!(reach, Reach::Unknown(_)));
    let reached = way.ports.len() - silent.len() - refused.len() - unknown.len();
    let mut parts = Vec::new();
    if !silent.is_empty() {
        parts.push(format!("no answer from {}", silent.join(", ")));
    }
    if !refused.is_empty() {
        parts.push(format!("refused by {}", refused.join(", ")));
    }
    parts.push(format!("{reached} answer"));
    if !unknown.is_empty() {
        parts.push(format!("{} can't be told", unknown.join(", ")));
    }
    let finding = CHECK.finding(title, parts.join("; "), "each answers");
    let bad = way.ports.iter();
    let mut bad = bad.filter(|(_, reach)| matches!(reach, Reach::Silent | Reach::Refused));
    let of_masters = |port: Port| remote(requirements, port) == Remote::Masters;
    match (
        silent.len() + refused.len(),
        bad.all(|(port, _)| of_masters(*port)),
    ) {
        (0, _) => finding,
        (_, true) => finding.warns(CHECK.remedy),
        (_, false) => finding.fails(CHECK.remedy),
    }
}

fn name(port: Port) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{}/{protocol}", port.number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;
    use crate::testing::{only_between, requirements, troubles, with_peers, with_profile};

    const API: Port = Port {
        protocol: Protocol::Tcp,
        number: spec::API_PORT,
    };

    fn port(protocol: Protocol, number: u16) -> Port {
        Port { protocol, number }
    }

    #[test]
    fn ports_that_do_not_come_through_fail_by_direction() {
        let vxlan = port(Protocol::Udp, 8472);
        let finding = only_between(Severity::Failure, "peer-ports", |peer| {
            let way = &mut peer.seen.as_mut().unwrap().back;
            way.ports = vec![(API, Reach::Refused), (vxlan, Reach::Silent)];
        });
        assert!(finding.title.starts_with("ports of this node, from"));
        assert_eq!(
            finding.measured,
            "no answer from 8472/udp; refused by 6443/tcp; 0 answer"
        );
    }

    #[test]
    fn etcds_ports_are_of_masters_and_what_can_not_be_told_is_no_trouble() {
        only_between(Severity::Warning, "peer-ports", |peer| {
            let etcd = port(Protocol::Tcp, 2380);
            peer.seen.as_mut().unwrap().there.ports = vec![(etcd, Reach::Silent)];
        });
        let report = with_peers(|peer| {
            let held = Reach::Unknown("held".into());
            peer.seen.as_mut().unwrap().there.ports = vec![(API, held)];
        });
        assert_eq!(troubles(&report), []);
    }

    #[test]
    fn what_stays_on_a_node_is_not_tried_and_ranges_are_spread() {
        let with = |requirements: &_, other, most| -> Vec<u16> {
            let needed = needed(requirements, other, most).into_iter();
            needed.map(|port| port.number).collect()
        };
        let numbers = |requirements: &_, most| with(requirements, Other::Master, most);
        // Workers have neither etcd nor the API, nor the DNS of the Service.
        let of_workers = [3009, 5000, 10250, 8472];
        assert_eq!(with(&requirements(), Other::Worker, 256), of_workers);
        let own = [1053, 2379, 2380, 3009, 5000, 6443, 10250, 8472, 1053];
        assert_eq!(numbers(&requirements(), 256), own);
        let profile =
            with_profile("{network: {ports: [{ranges: ['9000-9100', '80'], protocol: tcp}]}}");
        let found = numbers(&profile, 13);
        assert_eq!((&found[..9], found[9]), (&own[..], 80));
        assert_eq!(found[10..], [9000, 9050, 9100]);
        assert_eq!(numbers(&profile, 1000).len(), 10 + 101);
        assert_eq!(numbers(&profile, 3), own[..3]);
    }
}
