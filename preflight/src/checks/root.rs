//! Only root may change a host.

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "root",
    about: "user id of this process",
    limit: "0: only root may change a host",
    remedy: "run the command with sudo",
    strict: true,
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let uid = input.facts.uid;
    let finding = CHECK.finding("user", format!("uid {uid}"), "root (uid 0)");
    vec![finding.unless(uid == 0, CHECK.remedy)]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::{facts, report, requirements, troubles};

    #[test]
    fn others_than_root_are_refused() {
        let mut facts = facts();
        facts.uid = 1000;
        let report = report(&requirements(), &facts);
        assert_eq!(troubles(&report), [(Severity::Failure, "root")]);
        let text = report.failures().next().unwrap().to_string();
        assert_eq!(
            text,
            "user: uid 1000, wanted: root (uid 0); run the command with sudo"
        );
    }
}
