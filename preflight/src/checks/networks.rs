//! The networks of pods and services overlap with nothing: not with each
//! other, the node's address, nor with networks that the host reaches.

use ipnet::IpNet;

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "networks",
    about: "the networks of pods and services against routes, addresses and each other",
    limit: "no address in two of them",
    remedy: "choose another with --pod-network-cidr or --service-cidr",
    strict: true,
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    // Of a cluster that runs, the networks are in use: by itself.
    if input.requirements.joined {
        return Vec::new();
    }
    let requirements = input.requirements;
    let pods = requirements
        .pod_cidrs
        .iter()
        .map(|cidr| ("pod network", "--pod-network-cidr", cidr));
    let services = requirements
        .service_cidrs
        .iter()
        .map(|cidr| ("service network", "--service-cidr", cidr));
    let wanted = "a network of its own";
    let mut findings = Vec::new();
    let mut taken = local(input);
    for (what, flag, cidr) in pods.chain(services) {
        let title = format!("{what} {cidr}");
        let remedy = format!("choose another with {flag}");
        let Ok(network) = cidr.parse::<IpNet>() else {
            findings.push(
                CHECK
                    .finding(title, "is no network", "CIDR notation")
                    .fails(remedy),
            );
            continue;
        };
        let overlaps: Vec<_> = taken
            .iter()
            .filter(|(_, other)| overlap(network, *other))
            .map(|(name, _)| name.as_str())
            .collect();
        findings.push(match overlaps.as_slice() {
            [] => CHECK.finding(title, "overlaps with nothing", wanted),
            overlaps => CHECK
                .finding(
                    title,
                    format!("overlaps with {}", overlaps.join(", ")),
                    wanted,
                )
                .fails(remedy),
        });
        taken.push((format!("{what} {cidr}"), network));
    }
    findings
}

/// Whether some address is in both.
fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// Networks of the host. The default route leads to all others and is none.
fn local(input: &Input<'_>) -> Vec<(String, IpNet)> {
    let facts = input.facts;
    let advertised = input.requirements.advertise_address;
    let mut networks = Vec::new();
    if !advertised.is_unspecified() {
        networks.push((format!("address {advertised}"), IpNet::from(advertised)));
    }
    for address in &facts.addresses {
        let name = format!(
            "{}/{} of {}",
            address.address, address.prefix, address.interface
        );
        let network = IpNet::new(address.address, address.prefix);
        networks.extend(network.map(|network| (name, network)));
    }
    for route in &facts.routes {
        let name = format!("the route {} by {}", route.destination, route.interface);
        let network: Option<IpNet> = route.destination.parse().ok();
        let network = network.filter(|network| network.prefix_len() > 0);
        networks.extend(network.map(|network| (name, network)));
    }
    networks
}

#[cfg(test)]
mod tests {
    use host::facts::Route;

    use crate::Severity;
    use crate::testing::{facts, report, requirements, troubles};

    #[test]
    fn overlaps_are_named() {
        for (pods, services, overlaps) in [
            (
                "10.244.0.0/16",
                "10.244.128.0/20",
                Some("pod network 10.244.0.0/16"),
            ),
            (
                "192.168.0.0/16",
                "10.100.0.0/16",
                Some("address 192.168.1.5, 192.168.1.5/24 of eth0"),
            ),
            (
                "10.244.0.0/16",
                "172.30.0.0/16",
                Some("the route 172.16.0.0/12 by tun0"),
            ),
            ("fd00::/48", "10.100.0.0/16", None),
            ("10.244.0.0/99", "10.100.0.0/16", Some("is no network")),
            ("10.244.0.0/16", "10.100.0.0/16", None),
        ] {
            let mut requirements = requirements();
            requirements.pod_cidrs = vec![pods.into()];
            requirements.service_cidrs = vec![services.into()];
            let mut facts = facts();
            for (destination, interface) in [("0.0.0.0/0", "eth0"), ("172.16.0.0/12", "tun0")] {
                facts.routes.push(Route {
                    destination: destination.into(),
                    interface: interface.into(),
                });
            }
            let report = report(&requirements, &facts);
            let expected = Vec::from_iter(overlaps.map(|_| (Severity::Failure, "networks")));
            assert_eq!(troubles(&report), expected, "{pods} {services}");
            let measured = report
                .failures()
                .next()
                .map(|failure| failure.measured.clone())
                .unwrap_or_default();
            assert!(
                measured.contains(overlaps.unwrap_or_default()),
                "{measured}"
            );
        }
    }
}
