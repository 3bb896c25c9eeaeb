//! Processors, as many as the profile says.

use crate::{Check, Finding, Input, Severity};

/// What kubeadm wants of a control plane.
const USUAL: u32 = 2;

pub(super) const CHECK: Check = Check {
    id: "cpu",
    about: "number of processors that are online",
    limit: "what the profile says; 2 where it says nothing (as kubeadm wants)",
    remedy: "use a machine that fits the profile",
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let cpus = input.facts.cpus;
    let needed = &input.requirements.profile.cpu;
    let wanted = match (needed.min, needed.max) {
        (None, None) => {
            let finding =
                CHECK.finding("processors", cpus.to_string(), format!("at least {USUAL}"));
            return match cpus {
                0 => vec![CHECK.unknown("processors", "", finding.wanted)],
                _ => vec![finding.rather(cpus >= USUAL, "Kubernetes will be slow; use more")],
            };
        }
        (Some(min), None) => format!("at least {min}"),
        (None, Some(max)) => format!("at most {max}"),
        (Some(min), Some(max)) => format!("{min} to {max}"),
    };
    let good = needed.min.is_none_or(|min| cpus >= min) && needed.max.is_none_or(|max| cpus <= max);
    let finding = CHECK.finding("processors", cpus.to_string(), wanted);
    vec![finding.unless(good, CHECK.remedy)]
}

#[cfg(test)]
mod tests {
    use manifest::Cpu;

    use crate::Severity;
    use crate::testing::{facts, report, requirements, troubles};

    #[test]
    fn one_processor_warns_where_the_profile_says_nothing() {
        crate::testing::only(Severity::Warning, "cpu", |facts| facts.cpus = 1);
    }

    #[test]
    fn both_limits_count() {
        let cases = [
            (
                Cpu {
                    min: Some(4),
                    max: Some(4),
                },
                0,
            ),
            (
                Cpu {
                    min: Some(8),
                    max: None,
                },
                1,
            ),
            (
                Cpu {
                    min: None,
                    max: Some(2),
                },
                1,
            ),
        ];
        for (cpu, failures) in cases {
            let mut requirements = requirements();
            requirements.profile.cpu = cpu;
            let report = report(&requirements, &facts());
            assert_eq!(
                troubles(&report),
                vec![(Severity::Failure, "cpu"); failures]
            );
        }
    }
}
