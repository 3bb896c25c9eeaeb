//! Only root may change a host.

use crate::{Finding, Input};

pub(super) fn check(input: &Input<'_>) -> Vec<Finding> {
    let uid = input.facts.uid;
    let finding = Finding::passed("root", "user", format!("uid {uid}"), "root (uid 0)");
    vec![finding.unless(uid == 0, "run the command with sudo")]
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
