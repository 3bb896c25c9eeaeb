//! The links to the node's programs can be made.

use std::path::{Path, PathBuf};

use spec::{LINKED, LINKS};

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "links",
    about: "gravity, kubectl and helm in /usr/local/bin",
    limit: "nothing, or a symbolic link: the install makes links there, and `gravity leave` restores \
            links that it has replaced, but no files",
    remedy: "move it away; the cluster brings its own",
    strict: true,
    run: check,
    ..Check::PLAIN
};

/// Where the install makes them.
pub(crate) fn paths() -> impl Iterator<Item = PathBuf> {
    LINKED.iter().map(|name| Path::new(LINKS).join(name))
}

fn check(input: &Input<'_>) -> Vec<Finding> {
    // A cluster has made its own; nothing makes them again.
    if input.requirements.joined {
        return Vec::new();
    }
    let seen: Vec<_> = paths()
        .filter_map(|path| Some((input.places.paths.get(&path)?, path)))
        .collect();
    let in_the_way: Vec<_> = seen
        .iter()
        .filter(|(place, _)| place.exists() && !place.is_link)
        .map(|(_, path)| path.display().to_string())
        .collect();
    let wanted = "nothing, or symbolic links";
    let finding = |measured| CHECK.finding(format!("programs in {LINKS}"), measured, wanted);
    match (seen.as_slice(), in_the_way.as_slice()) {
        // Stored facts of an older program.
        ([], _) => Vec::new(),
        (_, []) => vec![finding(wanted.to_owned())],
        (_, paths) => {
            let measured = format!("{}: no symbolic link", paths.join(", "));
            vec![finding(measured).fails(CHECK.remedy)]
        }
    }
}

#[cfg(test)]
mod tests {
    use host::facts::{Kind, Place};

    use crate::testing::{facts, places, report_at, requirements, troubles};
    use crate::{Places, Report, Severity};

    fn with(name: &str, kind: Option<Kind>, is_link: bool, joined: bool) -> Report {
        let mut places = places();
        let place = Place {
            kind,
            is_link,
            ..Place::default()
        };
        places
            .paths
            .insert(super::Path::new(super::LINKS).join(name), place);
        let mut requirements = requirements();
        requirements.joined = joined;
        report_at(&requirements, &facts(), places)
    }

    #[test]
    fn what_is_no_link_is_in_the_way_as_the_phase_would_say() {
        for kind in [Kind::File, Kind::Directory] {
            let report = with("kubectl", Some(kind), false, false);
            assert_eq!(troubles(&report), [(Severity::Failure, "links")]);
            let failure = report.failures().next().unwrap();
            assert!(
                failure.measured.starts_with("/usr/local/bin/kubectl:"),
                "{failure}"
            );
        }
        // Ours, others, such that lead nowhere.
        for kind in [Some(Kind::File), None] {
            assert_eq!(troubles(&with("gravity", kind, true, false)), []);
        }
        assert_eq!(troubles(&with("helm", Some(Kind::File), false, true)), []);
        let seen = Places::look(&requirements()).paths;
        assert!(super::paths().all(|path| seen.contains_key(&path)));
    }
}
