//! Memory is not swapped.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "swap",
    about: "/proc/swaps",
    limit: "off: limits of pods' memory are not exact with it, and nodes get slow rather than evict \
            pods",
    remedy: "turn it off: `swapoff -a`, and remove it from /etc/fstab",
    run: check,
    severities: &[Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let swaps = &input.facts.swaps;
    let measured = match swaps.as_slice() {
        [] => "off".to_owned(),
        swaps => format!("on {}", swaps.join(", ")),
    };
    vec![
        CHECK
            .finding("swap", measured, "off")
            .rather(swaps.is_empty(), CHECK.remedy),
    ]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::only;

    #[test]
    fn swap_warns() {
        only(Severity::Warning, "swap", |facts| {
            facts.swaps.push("/dev/sda2".into())
        });
    }
}
