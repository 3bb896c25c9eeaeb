//! Scripts of the manifest end well.

use crate::measure::script;
use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "custom-check",
    about: "scripts of the profile's customChecks, run by the program of their first line, else by \
            bash, in the working directory",
    limit: "exit code 0, within the time of --timeout; 64 KiB of each output are kept",
    remedy: "see what the script wrote; the vendor of the image made it",
    run: check,
    ..Check::PLAIN
};

const WANTED: &str = "exit code 0";

fn check(input: &Input<'_>) -> Vec<Finding> {
    let checks = &input.requirements.profile.custom_checks;
    let Some(scripts) = &input.measured.scripts else {
        let titles = checks.iter().enumerate();
        return titles
            .map(|(number, check)| {
                CHECK
                    .finding(script::title(number, check), "was not run", WANTED)
                    .warns("run the check on the node itself, without --quick")
            })
            .collect();
    };
    let finding = |script: &script::Script| {
        let finding = CHECK.finding(script.title.as_str(), script.end.as_str(), WANTED);
        let finding = finding.unless(script.passed, CHECK.remedy);
        Finding {
            output: script.output.clone(),
            ..finding
        }
    };
    scripts.iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use crate::measure::script::Script;
    use crate::testing::{measured, report, requirements, troubles, with_profile};
    use crate::{Measured, Severity};

    #[test]
    fn scripts_that_fail_fail_with_what_they_wrote() {
        let script = |passed, end: &str| Script {
            title: "license".into(),
            passed,
            end: end.into(),
            output: "no license\n".into(),
        };
        let scripts = vec![script(true, "exit code 0"), script(false, "exit code 3")];
        let report = measured(
            &requirements(),
            Measured {
                scripts: Some(scripts),
                ..Measured::default()
            },
        );
        assert_eq!(troubles(&report), [(Severity::Failure, "custom-check")]);
        let failure = report.failures().next().unwrap();
        assert_eq!(
            (failure.measured.as_str(), failure.output.as_str()),
            ("exit code 3", "no license\n")
        );
    }

    #[test]
    fn scripts_that_were_not_run_warn() {
        let requirements = with_profile("{customChecks: [{script: 'exit 0'}]}");
        let report = report(&requirements, &crate::testing::facts());
        assert_eq!(troubles(&report), [(Severity::Warning, "custom-check")]);
    }
}
