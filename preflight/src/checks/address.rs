//! The advertised address is one of the host's.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "address",
    about: "addresses of interfaces that are up",
    limit: "the advertised address is one of them",
    remedy: "use --advertise-addr with one of these",
    strict: true,
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let wanted = input.requirements.advertise_address;
    let own = &input.facts.addresses;
    if wanted.is_unspecified() {
        return vec![
            CHECK
                .finding("address", "not chosen", "on an interface")
                .warns("the install needs --advertise-addr, as this host has not exactly one"),
        ];
    }
    let finding =
        |measured: String| CHECK.finding(format!("address {wanted}"), measured, "on an interface");
    vec![match own.iter().find(|address| address.address == wanted) {
        Some(address) => finding(format!("on {}", address.interface)),
        None if own.is_empty() => {
            finding("addresses could not be found out".into()).warns("look at `ip address`")
        }
        None => {
            let others = own.iter().filter(|address| !address.address.is_loopback());
            let others: Vec<_> = others.map(|address| address.address.to_string()).collect();
            let has = if others.is_empty() {
                "only loopback".into()
            } else {
                others.join(", ")
            };
            finding(format!("not on this host, which has {has}"))
                .fails("use --advertise-addr with one of these")
        }
    }]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::{facts, report, requirements, troubles};

    #[test]
    fn no_choice_warns() {
        let mut requirements = requirements();
        requirements.advertise_address = [0, 0, 0, 0].into();
        let report = report(&requirements, &facts());
        assert_eq!(troubles(&report), [(Severity::Warning, "address")]);
    }

    #[test]
    fn foreign_addresses_are_refused() {
        let mut requirements = requirements();
        requirements.advertise_address = [192, 168, 1, 6].into();
        let report = report(&requirements, &facts());
        assert_eq!(troubles(&report), [(Severity::Failure, "address")]);
        assert!(
            report
                .failures()
                .next()
                .unwrap()
                .measured
                .contains("192.168.1.5")
        );
    }
}
