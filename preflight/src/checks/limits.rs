//! Processes may open enough files.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "limits",
    about: "hard limit of open files of this process",
    limit: "65,536 (k0s; etcd and the API server use thousands); root with CAP_SYS_RESOURCE raises \
            it by itself",
    remedy: "raise it: `nofile` in /etc/security/limits.conf, or LimitNOFILE of the service that \
             starts this program",
    run: check,
    severities: &[Severity::Warning],
    ..Check::PLAIN
};

const ENOUGH: u64 = 65_536;

fn check(input: &Input<'_>) -> Vec<Finding> {
    let wanted = format!("at least {ENOUGH}");
    let Some(limit) = input.facts.kernel.max_open_files else {
        return vec![CHECK.unknown("open files", "", wanted)];
    };
    let good = limit >= ENOUGH || input.facts.can_lower_oom_score;
    vec![
        CHECK
            .finding("open files", limit.to_string(), wanted)
            .rather(good, CHECK.remedy),
    ]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::{only, spoiled, troubles};

    #[test]
    fn a_low_limit_that_cannot_be_raised_warns() {
        only(Severity::Warning, "limits", |facts| {
            facts.kernel.max_open_files = Some(4096);
            facts.can_lower_oom_score = false;
        });
        let report = spoiled(|facts| facts.kernel.max_open_files = Some(4096));
        assert_eq!(troubles(&report), []);
    }
}
