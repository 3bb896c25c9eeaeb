//! Temporary files can be made.

use host::facts::Kind;

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "temp-dir",
    about: "the directory for temporary files (TMPDIR, else /tmp)",
    limit: "a writable directory with 64 MiB; it may be noexec",
    remedy: "make room in it, or set TMPDIR to another directory",
    run: check,
    ..Check::PLAIN
};

const ROOM: u64 = 64 << 20;

fn check(input: &Input<'_>) -> Vec<Finding> {
    let path = &input.places.temp_dir;
    let Some(place) = input.places.paths.get(path) else {
        return Vec::new();
    };
    let title = format!("temporary directory {}", path.display());
    let wanted = "writable, 64 MiB";
    let finding = |measured: &str| CHECK.finding(title.as_str(), measured, wanted);
    vec![match (&place.space, place.kind) {
        (_, None) => finding("is not there").fails(CHECK.remedy),
        (_, kind) if kind != Some(Kind::Directory) => {
            finding("is no directory").fails(CHECK.remedy)
        }
        _ if place.has_option("ro") => finding("is read-only").fails(CHECK.remedy),
        (Some(space), _) if space.available_bytes < ROOM => finding("is full").fails(CHECK.remedy),
        (None, _) => CHECK.unknown(title, &place.error, wanted),
        _ => finding(wanted),
    }]
}

#[cfg(test)]
mod tests {
    use host::facts::Place;

    use super::*;
    use crate::Severity;
    use crate::testing::{facts, places, report_at, requirements, room, troubles};

    #[test]
    fn it_must_be_there_and_take_files() {
        let read_only = Place {
            mount_options: vec!["ro".into()],
            ..room(ROOM, 1)
        };
        let file = Place {
            kind: Some(Kind::File),
            ..room(ROOM, 1)
        };
        for bad in [Place::default(), read_only, file, room(ROOM - 1, 1)] {
            let mut places = places();
            places.paths.insert("/tmp".into(), bad);
            let report = report_at(&requirements(), &facts(), places);
            assert_eq!(troubles(&report), [(Severity::Failure, "temp-dir")]);
        }
    }
}
