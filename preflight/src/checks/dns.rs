//! Name servers that the cluster's DNS and pods can ask.

use std::net::IpAddr;

use spec::LEADER_ADDRESS;

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "dns",
    about: "name servers and search domains in /etc/resolv.conf",
    limit: "name servers that are not loopback, which pods that use the host's (dnsPolicy Default) \
            would not reach; at most 3, as many as the C library reads",
    remedy: "write the network's name servers to /etc/resolv.conf; with systemd-resolved link it \
             to /run/systemd/resolve/resolv.conf",
    run: check,
    severities: &[Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let (title, wanted) = ("name servers", "one that is not this host itself");
    let Some(conf) = &input.facts.network.resolv_conf else {
        let finding = CHECK.finding(title, "no /etc/resolv.conf", wanted);
        return vec![finding.warns("pods will resolve no names outside the cluster; write one")];
    };
    let servers: Vec<_> = conf
        .nameservers
        .iter()
        .filter(|server| **server != LEADER_ADDRESS)
        .collect();
    let names: Vec<_> = servers.iter().map(ToString::to_string).collect();
    let finding = |measured: String| CHECK.finding(title, measured, wanted);
    let (own, others): (Vec<&IpAddr>, Vec<&IpAddr>) = servers
        .into_iter()
        .partition(|server| server.to_canonical().is_loopback());
    vec![match (own.is_empty(), others.is_empty()) {
        (true, true) => {
            finding("none".into()).warns("pods will resolve no names outside the cluster")
        }
        (false, true) => finding(format!("only {}", names.join(", "))).warns(CHECK.remedy),
        (false, false) => finding(names.join(", ")).warns(CHECK.remedy),
        (true, false) if others.len() > 3 => {
            finding(names.join(", ")).warns("only the first 3 are asked; remove the others")
        }
        (true, false) => finding(names.join(", ")),
    }]
}

#[cfg(test)]
mod tests {
    use host::facts::ResolvConf;

    use crate::Severity;
    use crate::testing::{spoiled, troubles};

    #[test]
    fn a_name_server_on_loopback_is_told() {
        let cases = [
            (Some(vec!["127.0.0.1"]), Some(Severity::Warning)),
            (Some(vec!["::1", "127.0.0.53"]), Some(Severity::Warning)),
            (Some(vec!["::ffff:127.0.0.1"]), Some(Severity::Warning)),
            (Some(vec!["10.0.0.1", "127.0.0.1"]), Some(Severity::Warning)),
            (
                Some(vec!["1.0.0.1", "1.0.0.2", "1.0.0.3", "1.0.0.4"]),
                Some(Severity::Warning),
            ),
            (Some(vec![]), Some(Severity::Warning)),
            (None, Some(Severity::Warning)),
            // What an earlier installation left is passed over by the installer.
            (Some(vec!["169.254.20.10", "10.0.0.1"]), None),
        ];
        for (servers, expected) in cases {
            let report = spoiled(|facts| {
                facts.network.resolv_conf = servers.clone().map(|servers| ResolvConf {
                    nameservers: servers
                        .iter()
                        .map(|server| server.parse().unwrap())
                        .collect(),
                    search: Vec::new(),
                });
            });
            let expected = Vec::from_iter(expected.map(|severity| (severity, "dns")));
            assert_eq!(troubles(&report), expected, "{servers:?}");
        }
    }
}
