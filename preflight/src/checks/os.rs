//! The distribution: `ID` equal but for capitals, versions by component.

use manifest::Os;

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "os",
    about: "ID and VERSION_ID of /etc/os-release",
    limit: "one of the profile's; ID is equal but for capitals, versions match by component: 7 is \
            7.9, 1 is not 18.04",
    remedy: "use one of these",
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let allowed = &input.requirements.profile.os;
    if allowed.is_empty() {
        return Vec::new();
    }
    let os = &input.facts.os;
    let wanted = allowed
        .iter()
        .map(describe)
        .collect::<Vec<_>>()
        .join(" or ");
    let measured = match (os.id.as_str(), os.version_id.as_str()) {
        ("", _) => "could not be found out".to_owned(),
        (id, "") => format!("{id} of unknown version"),
        (id, version) => format!("{id} {version}"),
    };
    let finding = CHECK.finding("operating system", measured, wanted);
    if os.id.is_empty() {
        return vec![finding.warns("look at /etc/os-release")];
    }
    let mut best = Match::No;
    let named = |entry: &&Os| entry.name.eq_ignore_ascii_case(&os.id);
    for entry in allowed.iter().filter(named) {
        let any = entry.versions.is_empty().then_some(Match::Yes);
        let versions = entry
            .versions
            .iter()
            .map(|wanted| version(wanted, &os.version_id));
        best = versions.chain(any).fold(best, Ord::max);
    }
    vec![match best {
        Match::Yes => finding,
        Match::Unknown => {
            finding.warns("/etc/os-release is less exact than the requirement: compare by hand")
        }
        Match::No => finding.fails(CHECK.remedy),
    }]
}

fn describe(os: &Os) -> String {
    match os.versions.as_slice() {
        [] => os.name.clone(),
        versions => format!("{} {}", os.name, versions.join(", ")),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    No,
    /// The host doesn't say as much as is asked.
    Unknown,
    Yes,
}

/// `7` is 7.9; `1` is not 18.04; of `7` it is unknown whether it is 7.2.
fn version(wanted: &str, measured: &str) -> Match {
    let wanted: Vec<_> = wanted.split('.').collect();
    let measured: Vec<_> = measured
        .split('.')
        .filter(|part| !part.is_empty())
        .collect();
    if measured.starts_with(&wanted) {
        Match::Yes
    } else if wanted.starts_with(&measured) {
        Match::Unknown
    } else {
        Match::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;
    use crate::testing::{facts, report, requirements, troubles};

    #[test]
    fn versions_match_by_component() {
        for (wanted, measured, expected) in [
            ("7", "7.9", Match::Yes),
            ("7", "7", Match::Yes),
            ("18.04", "18.04", Match::Yes),
            ("1", "18.04", Match::No),
            ("7.2", "7.20", Match::No),
            ("7.2", "7", Match::Unknown),
            ("12", "", Match::Unknown),
        ] {
            assert_eq!(version(wanted, measured), expected, "{wanted} {measured}");
        }
    }

    #[test]
    fn ids_must_be_equal() {
        let cases = [
            ("debian", "12", None),
            ("Debian", "12", None),
            ("suse", "12", Some(Severity::Failure)),
            ("debian", "11", Some(Severity::Failure)),
            ("debian", "12.1", Some(Severity::Warning)),
        ];
        for (name, version, expected) in cases {
            let mut requirements = requirements();
            requirements.profile.os = vec![Os {
                name: name.into(),
                versions: vec![version.into()],
            }];
            let report = report(&requirements, &facts());
            let expected = Vec::from_iter(expected.map(|severity| (severity, "os")));
            assert_eq!(troubles(&report), expected, "{name} {version}");
        }
        let mut facts = facts();
        facts.os = host::facts::Os::default();
        let mut requirements = requirements();
        requirements.profile.os = vec![Os {
            name: "debian".into(),
            versions: Vec::new(),
        }];
        assert_eq!(
            troubles(&report(&requirements, &facts)),
            [(Severity::Warning, "os")]
        );
    }
}
