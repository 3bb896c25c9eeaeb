//! Programs of the host that the installation calls.

use crate::{Check, Finding, Input, Reads, Severity};

pub(super) const CHECK: Check = Check {
    id: "programs",
    about: "useradd and groupadd on the PATH and in directories of the system (/usr/sbin)",
    limit: "both, where the service user has to be made",
    remedy: "install the package that has them (passwd, shadow-utils), or make the service user \
             yourself",
    reads: Reads {
        programs: &["useradd", "groupadd"],
        ..Reads::NOTHING
    },
    run: check,
    severities: &[Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let missing: Vec<_> = CHECK
        .reads
        .programs
        .iter()
        .copied()
        .filter(|program| !input.facts.programs.contains(*program))
        .collect();
    let wanted = "useradd, groupadd";
    vec![match missing.as_slice() {
        [] => CHECK.finding("programs", wanted, wanted),
        missing => CHECK
            .finding(
                "programs",
                format!("without {}", missing.join(", ")),
                wanted,
            )
            .warns(CHECK.remedy),
    }]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::only;

    #[test]
    fn missing_programs_warn() {
        let trouble = only(Severity::Warning, "programs", |facts| {
            facts.programs.remove("useradd");
        });
        assert_eq!(trouble.measured, "without useradd");
    }
}
