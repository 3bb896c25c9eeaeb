//! Names that nobody made don't exist.

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "wildcard-dns",
    about: "a random name in each search domain of /etc/resolv.conf, asked of its name servers",
    limit: "it doesn't exist: where every name does, pods reach the wrong host by every name outside \
            the cluster, as they try search domains first",
    remedy: "remove the domain from `search` in /etc/resolv.conf, or its wildcard record (*) from \
             the name server",
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let Some(measured) = &input.measured.wildcards else {
        return Vec::new();
    };
    let (title, wanted) = ("wildcard DNS", "no domain in which every name exists");
    vec![match measured {
        Err(error) => CHECK.unknown(title, error, wanted),
        Ok(domains) if domains.is_empty() => CHECK.finding(title, "none", wanted),
        Ok(domains) => CHECK
            .finding(
                title,
                format!("every name exists in {}", domains.join(", ")),
                wanted,
            )
            .fails(CHECK.remedy),
    }]
}

#[cfg(test)]
mod tests {
    use crate::testing::{measured, requirements, troubles};
    use crate::{Measured, Severity};

    #[test]
    fn wildcards_fail_and_silence_warns() {
        for (wildcards, expected) in [
            (Ok(Vec::new()), None),
            (Ok(vec!["example.org".to_owned()]), Some(Severity::Failure)),
            (
                Err("no name server answers".into()),
                Some(Severity::Warning),
            ),
        ] {
            let taken = Measured {
                wildcards: Some(wildcards),
                ..Measured::default()
            };
            let report = measured(&requirements(), taken);
            let expected = Vec::from_iter(expected.map(|severity| (severity, "wildcard-dns")));
            assert_eq!(troubles(&report), expected);
        }
    }
}
