//! A proxy of the environment doesn't catch what is for the cluster.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "proxy",
    about: "http_proxy, https_proxy and no_proxy in the environment",
    limit: "no_proxy names the advertised address, the pod and the service network (kubeadm), and \
            169.254.20.10, where admin.kubeconfig finds the API",
    remedy: "add them to no_proxy",
    run: check,
    severities: &[Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let proxies = &input.facts.network.proxies;
    let used: Vec<_> = ["http_proxy", "https_proxy"]
        .into_iter()
        .filter_map(|name| proxies.get(name))
        .collect();
    let wanted = "none for cluster addresses";
    let Some(proxy) = used.first() else {
        return vec![CHECK.finding("proxy", "none", wanted)];
    };
    let exceptions = proxies
        .get("no_proxy")
        .map(String::as_str)
        .unwrap_or_default();
    let requirements = input.requirements;
    let networks = requirements
        .pod_cidrs
        .iter()
        .chain(&requirements.service_cidrs);
    let networks = networks.filter_map(|cidr| cidr.parse::<IpNet>().ok());
    let address = requirements.advertise_address;
    let own = (!address.is_unspecified()).then(|| IpNet::from(address));
    let leader = IpNet::from(spec::LEADER_ADDRESS);
    let caught: Vec<_> = own
        .into_iter()
        .chain([leader])
        .chain(networks)
        .filter(|network| !excepted(exceptions, network))
        .map(
            |network| match network.prefix_len() == network.max_prefix_len() {
                true => network.addr().to_string(),
                false => network.to_string(),
            },
        )
        .collect();
    vec![match caught.as_slice() {
        [] => CHECK.finding("proxy", format!("{proxy}, with exceptions"), wanted),
        caught => CHECK
            .finding(
                "proxy",
                format!("{proxy} catches {}", caught.join(", ")),
                wanted,
            )
            .warns(format!("no_proxy={}", caught.join(","))),
    }]
}

/// Whether an entry holds the network.
fn excepted(no_proxy: &str, network: &IpNet) -> bool {
    no_proxy.split(',').map(str::trim).any(|entry| {
        let as_address = || entry.parse::<IpAddr>().ok().map(IpNet::from);
        entry == "*"
            || entry
                .parse()
                .ok()
                .or_else(as_address)
                .is_some_and(|entry: IpNet| entry.contains(network))
    })
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::{only, spoiled, troubles};

    #[test]
    fn a_proxy_must_except_the_cluster() {
        let set = |exceptions: &'static str| {
            move |facts: &mut host::facts::HostFacts| {
                let proxies = &mut facts.network.proxies;
                proxies.insert("https_proxy".into(), "http://proxy:3128".into());
                proxies.insert("no_proxy".into(), exceptions.into());
            }
        };
        let trouble = only(
            Severity::Warning,
            "proxy",
            set("192.168.1.5, 10.100.0.0/16"),
        );
        let expected = "http://proxy:3128 catches 169.254.20.10, 10.244.0.0/16";
        assert_eq!(trouble.measured, expected);
        for good in ["10.0.0.0/8,192.168.0.0/16,169.254.0.0/16", "*"] {
            assert_eq!(troubles(&spoiled(set(good))), []);
        }
    }
}
