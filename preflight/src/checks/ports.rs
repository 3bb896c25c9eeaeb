//! Ports of the cluster and of the profile are free, or it is said who holds
//! them.

use std::net::IpAddr;

use host::facts::{Listener, Port, Protocol};
use manifest::PortRange;
use spec::{API_PORT, LEADER_ADDRESS, REGISTRY_PORT};

use crate::{Check, Finding, Input, Requirements};

/// Who answers for names.
const DNS: &str = "cluster DNS";

/// TCP ports of the services of a node: what they are and who listens, and who
/// connects.
const OWN: &[(u16, &str, Remote)] = &[
    (spec::DNS_SERVICE_PORT, DNS, Remote::AllToMasters),
    (2379, "etcd", Remote::Masters),
    (2380, "etcd", Remote::Masters),
    (
        spec::CONTROLLER_PORT,
        "the cluster's controller",
        Remote::All,
    ),
    (REGISTRY_PORT, "the registry", Remote::All),
    (API_PORT, "the Kubernetes API", Remote::AllToMasters),
    (10248, "kubelet", Remote::Nobody),
    (10249, "kube-proxy", Remote::Nobody),
    (10250, "kubelet", Remote::All),
    (10256, "kube-proxy", Remote::Nobody),
    (10257, "kube-controller-manager", Remote::Nobody),
    (10259, "kube-scheduler", Remote::Nobody),
];

/// Which other nodes connect to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remote {
    /// None.
    Nobody,
    /// Masters, to those of masters.
    Masters,
    /// All, to those of masters.
    AllToMasters,
    /// All.
    All,
}

/// Ports that are needed.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Transport.
    pub protocol: Protocol,
    /// The ports.
    pub range: PortRange,
    /// The one address they are needed on; all where there is none.
    pub address: Option<IpAddr>,
    /// Who listens.
    pub user: &'a str,
    /// Who connects.
    pub remote: Remote,
}

pub(super) const CHECK: Check = Check {
    id: "ports",
    about: "who listens on ports of the cluster (etcd, the API, registry, kubelet, kube-proxy, DNS, \
            the overlay network) and of the profile",
    limit: "free",
    remedy: "stop that program or move it to another port",
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    if input.requirements.joined {
        return Vec::new();
    }
    wanted(input.requirements)
        .iter()
        .map(|wanted| one(wanted, &input.facts.listening))
        .collect()
}

/// Ports that services of a node and its application listen on.
pub fn wanted(requirements: &Requirements) -> Vec<Wanted<'static>> {
    let single = |port| PortRange {
        first: port,
        last: port,
    };
    let own = OWN.iter().map(|(port, user, remote)| Wanted {
        protocol: Protocol::Tcp,
        range: single(*port),
        address: None,
        user,
        remote: *remote,
    });
    let overlay = requirements.pod_network.port(requirements.vxlan_port);
    let overlay = overlay.map(|port| Wanted {
        protocol: Protocol::Udp,
        range: single(port),
        address: None,
        user: "the network between nodes",
        remote: Remote::All,
    });
    let dns = [Protocol::Tcp, Protocol::Udp].map(|protocol| Wanted {
        protocol,
        range: single(53),
        address: Some(LEADER_ADDRESS),
        user: DNS,
        remote: Remote::Nobody,
    });
    let dns_service = Wanted {
        protocol: Protocol::Udp,
        range: single(spec::DNS_SERVICE_PORT),
        address: None,
        user: DNS,
        remote: Remote::AllToMasters,
    };
    let dns = dns.into_iter().chain([dns_service]);
    let mut wanted: Vec<_> = own.chain(overlay).chain(dns).collect();
    for port in &requirements.profile.network.ports {
        let protocol = match port.protocol {
            manifest::Protocol::Tcp => Protocol::Tcp,
            manifest::Protocol::Udp => Protocol::Udp,
        };
        let user = "the application";
        wanted.extend(port.ranges.iter().map(|range| Wanted {
            protocol,
            range: *range,
            address: None,
            user,
            remote: Remote::All,
        }));
    }
    wanted
}

/// Who connects to a port.
pub(super) fn remote(requirements: &Requirements, port: Port) -> Remote {
    let wanted = wanted(requirements);
    let mut wanted = wanted.iter();
    let found = wanted
        .find(|wanted| wanted.protocol == port.protocol && wanted.range.contains(port.number));
    found.map_or(Remote::All, |wanted| wanted.remote)
}

fn one(wanted: &Wanted<'_>, listening: &[Listener]) -> Finding {
    let protocol = name(wanted.protocol);
    let title = match wanted.address {
        Some(address) => format!("port {}/{protocol} on {address}", wanted.range),
        None => format!("port {}/{protocol}", wanted.range),
    };
    let mut holders: Vec<_> = listening
        .iter()
        .filter(|listener| holds(wanted, listener))
        .map(describe)
        .collect();
    holders.sort();
    holders.dedup();
    let finding =
        |measured: String| CHECK.finding(title, measured, format!("free for {}", wanted.user));
    match holders.as_slice() {
        [] => finding("free".into()),
        holders => finding(format!("held by {}", holders.join(", ")))
            .fails("stop that program or move it to another port"),
    }
}

fn holds(wanted: &Wanted<'_>, listener: &Listener) -> bool {
    let same_address = wanted
        .address
        .is_none_or(|address| listener.address == address || listener.address.is_unspecified());
    listener.protocol == wanted.protocol && wanted.range.contains(listener.port) && same_address
}

fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn describe(listener: &Listener) -> String {
    let process = listener.process.as_deref().unwrap_or("an unknown program");
    let at = match listener.address {
        IpAddr::V6(address) => format!("[{address}]:{}", listener.port),
        IpAddr::V4(address) => format!("{address}:{}", listener.port),
    };
    match listener.pid {
        Some(pid) => format!("{process} (pid {pid}) at {at}"),
        None => format!("{process} at {at}"),
    }
}

#[cfg(test)]
mod tests {
    use manifest::Port;

    use super::*;
    use crate::Severity;
    use crate::testing::{facts, report, requirements, troubles};

    fn listener(protocol: Protocol, address: &str, port: u16) -> Listener {
        let address = address.parse().unwrap();
        Listener {
            protocol,
            address,
            port,
            pid: Some(12),
            process: Some("nginx".into()),
        }
    }

    #[test]
    fn held_ports_are_named_with_their_holder() {
        use Protocol::{Tcp, Udp};
        for (listener, held) in [
            (
                listener(Tcp, "0.0.0.0", 6443),
                Some("nginx (pid 12) at 0.0.0.0:6443"),
            ),
            (
                listener(Tcp, "::1", 5000),
                Some("nginx (pid 12) at [::1]:5000"),
            ),
            (
                listener(Udp, "0.0.0.0", 8472),
                Some("nginx (pid 12) at 0.0.0.0:8472"),
            ),
            (
                listener(Tcp, "127.0.0.1", 10003),
                Some("nginx (pid 12) at 127.0.0.1:10003"),
            ),
            (
                listener(Udp, "0.0.0.0", 53),
                Some("nginx (pid 12) at 0.0.0.0:53"),
            ),
            (listener(Udp, "127.0.0.53", 53), None),
            (listener(Udp, "0.0.0.0", 6443), None),
            (listener(Tcp, "0.0.0.0", 22), None),
        ] {
            let mut requirements = requirements();
            let ranges = vec!["10000-10005".parse().unwrap()];
            requirements.profile.network.ports = vec![Port {
                protocol: manifest::Protocol::Tcp,
                ranges,
            }];
            let mut facts = facts();
            facts.listening.push(listener);
            let report = report(&requirements, &facts);
            let expected = Vec::from_iter(held.map(|_| (Severity::Failure, "ports")));
            assert_eq!(troubles(&report), expected, "{:?}", facts.listening);
            if let Some(held) = held {
                assert_eq!(
                    report.failures().next().unwrap().measured,
                    format!("held by {held}")
                );
            }
        }
    }

    #[test]
    fn services_have_the_ports_that_no_peer_has_opened() {
        let own: Vec<u16> = OWN.iter().map(|(port, ..)| *port).collect();
        assert_eq!(own, spec::SERVICE_PORTS);
    }

    #[test]
    fn each_network_of_pods_has_its_port() {
        let udp = |pod_network| -> Vec<u16> {
            let requirements = crate::Requirements {
                pod_network,
                ..requirements()
            };
            let wanted = wanted(&requirements).into_iter();
            let remote = wanted.filter(|wanted| wanted.remote == Remote::All);
            let udp = remote.filter(|wanted| wanted.protocol == Protocol::Udp);
            udp.map(|wanted| wanted.range.first).collect()
        };
        assert_eq!(udp(spec::PodNetwork::Vxlan), [8472]);
        assert_eq!(udp(spec::PodNetwork::Wireguard), [51820]);
        assert!(udp(spec::PodNetwork::Vendor).is_empty());
    }
}
