//! `localhost` is this host.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "localhost",
    about: "`localhost` in /etc/hosts",
    limit: "a loopback address: services of a node talk to each other by it",
    remedy: "write `127.0.0.1 localhost` to /etc/hosts",
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let wanted = "127.0.0.1";
    let Some(addresses) = &input.facts.network.localhost else {
        return vec![CHECK.unknown("localhost", "no /etc/hosts", wanted)];
    };
    let names: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let foreign = addresses.iter().any(|address| !address.is_loopback());
    vec![match (addresses.is_empty(), foreign) {
        (true, _) => CHECK
            .finding("localhost", "not in /etc/hosts", wanted)
            .warns(CHECK.remedy),
        (false, foreign) => CHECK
            .finding("localhost", names.join(", "), wanted)
            .unless(!foreign, CHECK.remedy),
    }]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::only;

    #[test]
    fn localhost_elsewhere_fails_and_none_warns() {
        only(Severity::Failure, "localhost", |facts| {
            facts.network.localhost = Some(vec![[127, 0, 0, 1].into(), [10, 0, 0, 1].into()]);
        });
        for none in [Some(Vec::new()), None] {
            only(Severity::Warning, "localhost", |facts| {
                facts.network.localhost = none
            });
        }
    }
}
