//! The host has an identity of its own.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "machine-id",
    about: "/etc/machine-id",
    limit: "32 hexadecimal digits, not all zero (machine-id(5)); kubelet reports it",
    remedy: "make one: `systemd-machine-id-setup`, or `dbus-uuidgen --ensure=/etc/machine-id`",
    run: check,
    severities: &[Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let id = input.facts.machine_id.as_str();
    let good = id.len() == 32
        && id.bytes().all(|digit| digit.is_ascii_hexdigit())
        && id.bytes().any(|digit| digit != b'0');
    let measured = match id {
        "" => "none",
        id => id,
    };
    vec![
        CHECK
            .finding("machine id", measured, "32 hexadecimal digits")
            .rather(good, CHECK.remedy),
    ]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::only;

    #[test]
    fn no_id_and_bad_ones_warn() {
        for bad in ["", "uninitialized", &"0".repeat(32), &"g".repeat(32)] {
            only(Severity::Warning, "machine-id", |facts| {
                facts.machine_id = bad.into()
            });
        }
    }
}
