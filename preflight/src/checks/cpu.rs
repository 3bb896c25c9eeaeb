//! Processors, as many as the profile says.

use crate::{Finding, Input};

pub(super) fn check(input: &Input<'_>) -> Vec<Finding> {
    let cpus = input.facts.cpus;
    let needed = &input.requirements.profile.cpu;
    let wanted = match (needed.min, needed.max) {
        (None, None) => return Vec::new(),
        (Some(min), None) => format!("at least {min}"),
        (None, Some(max)) => format!("at most {max}"),
        (Some(min), Some(max)) => format!("{min} to {max}"),
    };
    let good = needed.min.is_none_or(|min| cpus >= min) && needed.max.is_none_or(|max| cpus <= max);
    let finding = Finding::passed("cpu", "processors", cpus.to_string(), wanted);
    vec![finding.unless(good, "use a machine that fits the profile")]
}

#[cfg(test)]
mod tests {
    use manifest::Cpu;

    use crate::Severity;
    use crate::testing::{facts, report, requirements, troubles};

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
