//! There is a default route, and no rule leads packets for pods elsewhere.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "default-route",
    about: "routes of the main table, and rules that `ip rule` lists",
    limit: "a default route: without one, packets to a Service find no way before kube-proxy can \
            redirect them; a dummy one will do; no rule for packets from the advertised address \
            (source-based routing) that has packets to pods looked up elsewhere",
    remedy: "add one: `ip route add default via GATEWAY`; put a rule for pods before the other, now \
             and at every boot: `ip rule add priority NUMBER to POD_NETWORK lookup main`",
    run: check,
    severities: &[Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let facts = input.facts;
    let default = facts.routes.iter().find(|route| route.is_default());
    let measured = match default {
        Some(route) => format!("by {}", route.interface),
        None => "none".to_owned(),
    };
    let mut findings = vec![CHECK.finding("default route", measured, "one").rather(
        default.is_some(),
        "add one: `ip route add default via GATEWAY`",
    )];
    for pods in &input.requirements.pod_cidrs {
        let Ok(range) = pods.parse::<IpNet>() else {
            continue;
        };
        let address = input.requirements.advertise_address;
        if let Some(rule) = astray(&facts.network.rules, address, range) {
            let wanted = format!("a rule before it that has {pods} looked up in the main table");
            let remedy = format!(
                "add it, now and at every boot: `ip rule add priority NUMBER to {pods} lookup main`"
            );
            let rule = rule.replace('\t', " ");
            findings.push(
                CHECK
                    .finding("rule for the node's address", rule, wanted)
                    .warns(remedy),
            );
        }
    }
    findings
}

/// The rule, if any, by which packets from the address to pods don't get to the main table,
/// where the routes to pods are. When kube-proxy redirects what the node itself says to a
/// Service, its packets have that address already, and are routed anew.
fn astray(rules: &[String], address: IpAddr, pods: IpNet) -> Option<&str> {
    for rule in rules {
        let words: Vec<_> = rule.split_whitespace().collect();
        // These are about some packets only.
        let some = [
            "not", "fwmark", "iif", "oif", "tos", "dsfield", "ipproto", "sport", "dport",
            "uidrange",
        ];
        if words.iter().any(|word| some.contains(word)) {
            continue;
        }
        let after = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1).copied()
        };
        let from = after("from").and_then(network);
        let to = after("to").and_then(network);
        if from.is_some_and(|from| !from.contains(&address))
            || to.is_some_and(|to| !to.contains(&pods))
        {
            continue;
        }
        match after("lookup") {
            Some("main") => return None,
            Some(table) if from.is_some() && table != "local" => return Some(rule),
            _ => {}
        }
    }
    None
}

/// A network or an address as `ip` writes it; `None` for all.
fn network(text: &str) -> Option<IpNet> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{only, spoiled, troubles};

    #[test]
    fn no_default_route_warns() {
        only(Severity::Warning, "default-route", |facts| {
            facts.routes.clear()
        });
    }

    #[test]
    fn a_rule_for_the_address_warns_unless_pods_are_looked_up_before() {
        let with = |rules: &[&str]| {
            let (first, last) = ("0:\tfrom all lookup local", "32766:\tfrom all lookup main");
            let rules = [&[first][..], rules, &[last]].concat();
            let rules: Vec<_> = rules.into_iter().map(str::to_owned).collect();
            move |facts: &mut host::facts::HostFacts| facts.network.rules = rules
        };
        let by_address = "100:\tfrom 192.168.1.5 lookup 100";
        let trouble = only(Severity::Warning, "default-route", with(&[by_address]));
        assert_eq!(trouble.measured, "100: from 192.168.1.5 lookup 100");
        for bad in [
            "100:\tfrom 192.168.1.0/24 lookup nic",
            "100:\tfrom 192.168.1.5 to 10.0.0.0/8 lookup 100",
        ] {
            let rules = vec![bad.to_owned()];
            let pods = "10.244.0.0/16".parse().unwrap();
            assert!(
                astray(&rules, [192, 168, 1, 5].into(), pods).is_some(),
                "{bad}"
            );
        }
        for good in [
            &["99:\tfrom all to 10.244.0.0/16 lookup main", by_address][..],
            &[
                "99:\tfrom all lookup main suppress_prefixlength 0",
                by_address,
            ],
            &["100:\tfrom 192.168.7.5 lookup 100"],
            &["100:\tfrom 192.168.1.5 to 192.168.0.0/16 lookup 100"],
            &["100:\tfrom all fwmark 0x1 lookup 100"],
            &["100:\tfrom 192.168.1.5 ipproto tcp sport 22 lookup 100"],
        ] {
            assert_eq!(troubles(&spoiled(with(good))), [], "{good:?}");
        }
    }
}
