//! Security modules that might keep containers from running.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "security-modules",
    about: "SELinux, AppArmor, fapolicyd",
    limit: "SELinux not enforcing (a failure): there is no policy for the planet yet; no fapolicyd (a \
            warning); AppArmor may be on",
    remedy: "set SELinux to permissive (`setenforce 0`, and SELINUX=permissive in /etc/selinux/config); \
             `--ignore security-modules` where a policy of your own lets it run",
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let facts = input.facts;
    let title = "security modules";
    let wanted = "none that denies programs of the cluster";
    if facts.kernel.selinux.as_deref() == Some("enforcing") {
        let finding = CHECK.finding(title, "SELinux is enforcing", wanted);
        return vec![finding.fails(CHECK.remedy)];
    }
    if facts.processes.contains_key("fapolicyd") {
        let finding = CHECK.finding(title, "fapolicyd runs", wanted);
        return vec![finding.warns("have it trust the state directory, or stop it")];
    }
    let mut modules = Vec::new();
    modules.extend(
        facts
            .kernel
            .selinux
            .as_ref()
            .map(|mode| format!("SELinux is {mode}")),
    );
    modules.extend(facts.kernel.apparmor.then(|| "AppArmor".to_owned()));
    let measured = match modules.as_slice() {
        [] => "none".to_owned(),
        modules => modules.join(", "),
    };
    vec![CHECK.finding(title, measured, wanted)]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::{only, spoiled, troubles};

    #[test]
    fn enforcing_selinux_fails_and_can_be_ignored() {
        let found = only(Severity::Failure, "security-modules", |facts| {
            facts.kernel.selinux = Some("enforcing".into());
        });
        assert!(found.remedy.contains("setenforce 0"), "{}", found.remedy);
        let mut report = spoiled(|facts| facts.kernel.selinux = Some("enforcing".into()));
        report.ignore(&["security-modules".to_owned()]).unwrap();
        assert_eq!(report.failures().count(), 0);
        let report = spoiled(|facts| facts.kernel.selinux = Some("permissive".into()));
        assert_eq!(troubles(&report), []);
    }

    #[test]
    fn fapolicyd_warns() {
        only(Severity::Warning, "security-modules", |facts| {
            facts.processes.insert("fapolicyd".into(), 3);
        });
    }

    #[test]
    fn apparmor_is_named_and_no_trouble() {
        for apparmor in [true, false] {
            let report = spoiled(|facts| facts.kernel.apparmor = apparmor);
            assert_eq!(troubles(&report), []);
            let mut findings = report.findings.iter();
            let found = findings.find(|finding| finding.id == "security-modules");
            let expected = if apparmor { "AppArmor" } else { "none" };
            assert_eq!(found.unwrap().measured, expected);
        }
    }
}
