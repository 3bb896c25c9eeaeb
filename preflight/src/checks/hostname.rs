//! The host's name can be a node's name.

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "hostname",
    about: "name of the host",
    limit: "a DNS label of at most 63 characters (RFC 1123), as Kubernetes puts it in labels; not \
            localhost; capital letters become small ones",
    remedy: "give the host a name of letters, digits and hyphens of its own, such as `hostnamectl \
             set-hostname node-1`",
    strict: true,
    run: check,
    ..Check::PLAIN
};

/// Longest value of a label in Kubernetes, in characters.
const LONGEST: usize = 63;

fn check(input: &Input<'_>) -> Vec<Finding> {
    let name = input.facts.hostname.to_lowercase();
    let wanted = "a DNS name of at most 63 characters";
    if name.is_empty() {
        return vec![CHECK.unknown("host name", "", wanted)];
    }
    let measured = match trouble(&name) {
        None => return vec![CHECK.finding("host name", name, wanted)],
        Some(trouble) => format!("{name}, which {trouble}"),
    };
    vec![
        CHECK
            .finding("host name", measured, wanted)
            .fails(CHECK.remedy),
    ]
}

fn trouble(name: &str) -> Option<String> {
    let is_label = |label: &str| {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(inner)
    };
    if name.len() > LONGEST {
        return Some(format!("has {} characters", name.len()));
    }
    if matches!(name, "localhost" | "localhost.localdomain") {
        return Some("every host has".into());
    }
    (!name.split('.').all(is_label)).then(|| "is no DNS name".into())
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::{only, spoiled, troubles};

    #[test]
    fn names_become_labels_or_fail() {
        for bad in ["a_b", "-a", "a..b", "localhost", "ö", &"x".repeat(64)] {
            only(Severity::Failure, "hostname", |facts| {
                facts.hostname = bad.into()
            });
        }
        for good in ["Node-1", "node.example.org", "7", &"x".repeat(63)] {
            let report = spoiled(|facts| facts.hostname = good.into());
            assert_eq!(troubles(&report), [], "{good}");
        }
        only(Severity::Warning, "hostname", |facts| {
            facts.hostname = String::new()
        });
    }
}
