//! The processor can run what the image holds.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "architecture",
    about: "architecture of the kernel, features of the processor",
    limit: "x86_64, as the image was built for; x86-64-v2, which containers of today's \
            distributions are compiled for (RHEL 9)",
    remedy: "use an x86_64 machine; in a virtual machine choose a CPU model that passes the \
             host's features",
    strict: true,
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

/// What x86-64-v2 has beyond the first level, as `/proc/cpuinfo` names it
/// (psABI, "Micro-Architecture Levels").
const LEVEL_2: &[&str] = &["cx16", "lahf_lm", "popcnt", "ssse3", "sse4_1", "sse4_2"];

fn check(input: &Input<'_>) -> Vec<Finding> {
    let architecture = input.facts.architecture.as_str();
    if architecture.is_empty() {
        return vec![CHECK.unknown("architecture", "", "x86_64")];
    }
    let mut findings = vec![
        CHECK
            .finding("architecture", architecture, "x86_64")
            .unless(architecture == "x86_64", "use a machine with x86_64"),
    ];
    let features = &input.facts.cpu_features;
    if architecture == "x86_64" && !features.is_empty() {
        let missing: Vec<_> = LEVEL_2
            .iter()
            .copied()
            .filter(|feature| !features.contains(*feature))
            .collect();
        let measured = match missing.as_slice() {
            [] => "x86-64-v2 or later".to_owned(),
            missing => format!("without {}", missing.join(", ")),
        };
        findings.push(
            CHECK
                .finding("processor level", measured, "x86-64-v2")
                .rather(missing.is_empty(), CHECK.remedy),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::only;

    #[test]
    fn other_architectures_fail_and_old_processors_warn() {
        only(Severity::Failure, "architecture", |facts| {
            facts.architecture = "aarch64".into();
        });
        let trouble = only(Severity::Warning, "architecture", |facts| {
            facts.cpu_features.remove("popcnt");
        });
        assert_eq!(trouble.measured, "without popcnt");
    }
}
