//! Nobody who logs in is the service user.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "service-user",
    about: "users of /etc/passwd with a login shell",
    limit: "none with the service user's id: the data of etcd is that user's, so on a master this \
            person could do all that an administrator of the cluster can, and on any node stop its \
            services",
    remedy: "use an id of its own with --service-uid",
    run: check,
    severities: &[Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    if input.requirements.joined {
        return Vec::new();
    }
    let uid = input.requirements.service_uid;
    let title = format!("service user (uid {uid})");
    let wanted = "no user who logs in";
    vec![match input.facts.logins.get(&uid) {
        None => CHECK.finding(title, wanted, wanted),
        Some(name) => CHECK
            .finding(title, format!("{name}, who logs in"), wanted)
            .warns(CHECK.remedy),
    }]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::only;

    #[test]
    fn a_person_with_the_id_warns() {
        only(Severity::Warning, "service-user", |facts| {
            facts.logins.insert(1000, "alice".into());
        });
    }
}
