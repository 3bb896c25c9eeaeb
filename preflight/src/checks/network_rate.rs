//! The network between nodes is fast enough.

use host::facts::Seen;

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "network-rate",
    about: "how fast bytes come through one TCP connection to other nodes, both ways: the best of \
            three times 0.4 s; a join measures only what the profile wants, until it is reached",
    limit: "minTransferRate of the profile's network, between any two nodes; one node by itself \
            has nothing to measure",
    remedy: "connect the nodes by a faster network",
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let wanted = input.requirements.profile.network.min_transfer_rate;
    let limit = wanted.map_or("no limit".into(), |rate| format!("at least {rate}"));
    if input.measured.peers.is_empty() {
        let measured = "one node: nothing to measure";
        let finding = || CHECK.finding("network between nodes", measured, limit);
        return wanted.map(|_| finding()).into_iter().collect();
    }
    let mut findings = Vec::new();
    for (address, seen) in input.peers() {
        let title = format!("network to {address}");
        match rates(seen) {
            None if wanted.is_none() => {}
            None => findings.push(CHECK.unknown(title, "no TCP port was to be had", &*limit)),
            Some((to, from)) => {
                let mb = |rate: u64| rate / 1_000_000;
                let measured = format!("{} MB/s there, {} MB/s back", mb(to), mb(from));
                let finding = CHECK.finding(title, measured, &*limit);
                findings.push(match wanted.is_some_and(|rate| to.min(from) < rate.0) {
                    true => finding.fails(CHECK.remedy),
                    false => finding,
                });
            }
        }
    }
    findings
}

/// Bytes a second to the peer and from it; it was measured by one of both.
fn rates(seen: &Seen) -> Option<(u64, u64)> {
    let ours = seen.there.rates.map(|rates| (rates.there, rates.back));
    ours.or_else(|| seen.back.rates.map(|rates| (rates.back, rates.there)))
}

#[cfg(test)]
mod tests {
    use host::facts::Rates;

    use crate::Severity;
    use crate::testing::{facts, peer, report, requirements, troubles, with_profile};
    use crate::{Facts, Measured, evaluate};

    #[test]
    fn a_wanted_rate_is_told_and_no_trouble_for_one_node() {
        let told = |requirements: &_| {
            let report = report(requirements, &facts());
            assert_eq!(troubles(&report), []);
            let rate = report.passed().find(|finding| finding.id == "network-rate");
            rate.map(|finding| finding.wanted.clone())
        };
        let wanted = told(&with_profile("{network: {minTransferRate: 50MB/s}}"));
        assert_eq!(wanted.unwrap(), "at least 50MB/s");
        assert_eq!(told(&requirements()), None);
    }

    #[test]
    fn the_slower_direction_decides_whoever_measured_it() {
        let judged = |there: Option<Rates>, back: Option<Rates>| {
            let mut peer = peer();
            let seen = peer.seen.as_mut().unwrap();
            (seen.there.rates, seen.back.rates) = (there, back);
            let facts = Facts {
                host: facts(),
                places: crate::testing::places(),
                measured: Measured {
                    peers: vec![peer],
                    ..Measured::default()
                },
            };
            let wanted = with_profile("{network: {minTransferRate: 50MB/s}}");
            let report = evaluate(&wanted, &facts);
            let trouble = report.findings.into_iter();
            let mut trouble = trouble.filter(|finding| finding.id == "network-rate");
            let finding = trouble.next().unwrap();
            (finding.severity, finding.measured)
        };
        let rates = |there, back| Some(Rates { there, back });
        let (fast, slow) = (60_000_000, 49_000_000);
        let (severity, told) = judged(rates(fast, slow), None);
        assert_eq!(severity, Severity::Failure);
        assert_eq!(told, "60 MB/s there, 49 MB/s back");
        let (severity, told) = judged(None, rates(fast, slow));
        assert_eq!(severity, Severity::Failure);
        assert_eq!(told, "49 MB/s there, 60 MB/s back");
        assert_eq!(judged(rates(fast, fast), None).0, Severity::Info);
        assert_eq!(judged(None, None).0, Severity::Warning);
    }
}
