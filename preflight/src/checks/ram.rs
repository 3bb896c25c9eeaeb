//! Memory, as much as the profile says.

use manifest::Bytes;

use crate::{Check, Finding, Input, Severity};

/// What kubeadm wants of a control plane.
const USUAL: Bytes = Bytes(1_700_000_000);

pub(super) const CHECK: Check = Check {
    id: "ram",
    about: "memory that the kernel manages",
    limit: "what the profile says, exactly; 1,700 MB where it says nothing (as kubeadm wants)",
    remedy: "use a machine that fits the profile",
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let needed = &input.requirements.profile.ram;
    let wanted = match (needed.min, needed.max) {
        (None, None) => format!("at least {}", USUAL.human()),
        (Some(min), None) => format!("at least {min}"),
        (None, Some(max)) => format!("at most {max}"),
        (Some(min), Some(max)) => format!("{min} to {max}"),
    };
    let ram = Bytes(input.facts.ram_bytes);
    if ram.0 == 0 {
        let finding = CHECK.finding("memory", "could not be measured", wanted);
        return vec![finding.warns("look at /proc/meminfo")];
    }
    if (needed.min, needed.max) == (None, None) {
        let finding = CHECK.finding("memory", ram.human(), wanted);
        return vec![finding.rather(ram >= USUAL, "pods will be evicted; use more")];
    }
    let good = needed.min.is_none_or(|min| ram >= min) && needed.max.is_none_or(|max| ram <= max);
    let finding = CHECK.finding("memory", ram.human(), wanted);
    vec![finding.unless(good, CHECK.remedy)]
}

#[cfg(test)]
mod tests {
    use manifest::{Bytes, Ram};

    use crate::Severity;
    use crate::testing::{facts, report, requirements, troubles};

    #[test]
    fn little_memory_warns_where_the_profile_says_nothing() {
        crate::testing::only(Severity::Warning, "ram", |facts| facts.ram_bytes = 1 << 30);
    }

    #[test]
    fn limits_are_exact_and_unknown_memory_is_a_warning() {
        let cases = [
            (8_000_000_000, None),
            (7_999_999_999, Some((Severity::Failure, "ram"))),
            (0, Some((Severity::Warning, "ram"))),
        ];
        for (bytes, expected) in cases {
            let mut requirements = requirements();
            requirements.profile.ram = Ram {
                min: Some(Bytes(8_000_000_000)),
                max: None,
            };
            let mut facts = facts();
            facts.ram_bytes = bytes;
            let report = report(&requirements, &facts);
            assert_eq!(troubles(&report), Vec::from_iter(expected), "{bytes}");
        }
    }
}
