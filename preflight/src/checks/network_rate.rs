//! The network between nodes is fast enough.

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "network-rate",
    about: "minTransferRate of the profile's network",
    limit: "what the profile says, between any two nodes; one node by itself has nothing to measure",
    remedy: "connect the nodes by a faster network",
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let wanted = input.requirements.profile.network.min_transfer_rate;
    let finding = |rate: manifest::Rate| {
        let measured = "one node: nothing to measure";
        CHECK.finding(
            "network between nodes",
            measured,
            format!("at least {rate}"),
        )
    };
    wanted.map(finding).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use crate::testing::{facts, report, requirements, troubles, with_profile};

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
}
