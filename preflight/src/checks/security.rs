//! Security modules that might keep containers from running.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "security-modules",
    about: "SELinux, AppArmor, fapolicyd",
    limit: "SELinux not enforcing, no fapolicyd: no policy for the planet is shipped",
    remedy: "set SELinux to permissive (`setenforce 0` and SELINUX=permissive in \
             /etc/selinux/config)",
    run: check,
    severities: &[Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let facts = input.facts;
    let title = "security modules";
    let wanted = "none that denies programs of the cluster";
    if facts.kernel.selinux.as_deref() == Some("enforcing") {
        let finding = CHECK.finding(title, "SELinux is enforcing", wanted);
        return vec![finding.warns(CHECK.remedy)];
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
    fn enforcing_modules_warn() {
        only(Severity::Warning, "security-modules", |facts| {
            facts.kernel.selinux = Some("enforcing".into());
        });
        only(Severity::Warning, "security-modules", |facts| {
            facts.processes.insert("fapolicyd".into(), 3);
        });
        let report = spoiled(|facts| facts.kernel.selinux = Some("permissive".into()));
        assert_eq!(troubles(&report), []);
    }
}
