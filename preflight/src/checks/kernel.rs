//! The kernel, new enough for kube-proxy's nftables mode.

use crate::{Check, Finding, Input, Severity};

/// Oldest kernel on which kube-proxy's nftables mode runs, as its
/// documentation says.
const MINIMUM: (u32, u32) = (5, 13);

pub(super) const CHECK: Check = Check {
    id: "kernel",
    about: "release of the running kernel",
    limit: "5.13: the oldest that kube-proxy's nftables mode runs on, as its documentation says",
    remedy: "install a newer kernel of your distribution",
    strict: true,
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let release = &input.facts.kernel_release;
    let wanted = format!("at least {}.{}", MINIMUM.0, MINIMUM.1);
    vec![match version(release) {
        Some(version) => CHECK
            .finding("kernel", release, wanted)
            .unless(version >= MINIMUM, CHECK.remedy),
        None => CHECK
            .finding("kernel", format!("unknown release \"{release}\""), wanted)
            .warns("look at `uname -r`"),
    }]
}

/// The first two numbers of a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::{facts, report, requirements, troubles};

    #[test]
    fn old_kernels_fail_and_odd_ones_warn() {
        for (release, expected) in [
            ("5.13.0", None),
            ("10.0-rc1", None),
            ("5.9.16-generic", Some(Severity::Failure)),
            ("4.18.0-513.el8", Some(Severity::Failure)),
            ("", Some(Severity::Warning)),
            ("custom", Some(Severity::Warning)),
        ] {
            let mut facts = facts();
            facts.kernel_release = release.into();
            let expected = Vec::from_iter(expected.map(|severity| (severity, "kernel")));
            assert_eq!(
                troubles(&report(&requirements(), &facts)),
                expected,
                "{release}"
            );
        }
    }
}
