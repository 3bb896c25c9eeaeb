//! Volumes: there where they must be, on the right kind of filesystem.

use std::path::Path;

use host::facts::Place;
use manifest::Volume;

use crate::{Check, Finding, Input, UNSEEN};

pub(super) const CHECK: Check = Check {
    id: "volume",
    about: "paths and patterns of the profile's volumes",
    limit: "there, unless createIfMissing or skipIfMissing; a directory or a file; on one of the \
            wanted filesystems",
    remedy: "create or mount it, or set createIfMissing in the manifest",
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let volumes = input.requirements.profile.volumes.iter();
    volumes.flat_map(|volume| of(input, volume)).collect()
}

fn of(input: &Input<'_>, volume: &Volume) -> Vec<Finding> {
    let title = format!("volume {}", volume.path);
    let Some(paths) = input.places.meant(&volume.path) else {
        return vec![CHECK.unknown(title, "bad pattern, or too many match", "paths")];
    };
    if paths.is_empty() && !volume.skip_if_missing {
        // Nobody knows what to create for a pattern.
        let finding = CHECK.finding(title, "nothing matches", "at least one path");
        return vec![finding.fails("create what it means, or set skipIfMissing in the manifest")];
    }
    let finding = |path: &Path| match input.places.paths.get(path) {
        Some(place) => one(volume, path, place),
        None => {
            let title = format!("volume {}", path.display());
            Some(CHECK.unknown(title, UNSEEN, "an existing path"))
        }
    };
    paths.into_iter().filter_map(finding).collect()
}

fn one(volume: &Volume, path: &Path, place: &Place) -> Option<Finding> {
    use host::facts::Kind;
    let title = format!("volume {}", path.display());
    match place.kind {
        None if volume.skip_if_missing => return None,
        None if !volume.create_if_missing => {
            let finding = CHECK.finding(title, "is not there", "an existing path");
            return Some(finding.fails(CHECK.remedy));
        }
        None | Some(Kind::Directory | Kind::File) => {}
        Some(_) => {
            let finding = CHECK.finding(title, "is something else", "a directory or a file");
            return Some(finding.fails("move it away"));
        }
    }
    let there = match place.kind {
        None => "will be created",
        Some(Kind::File) => "is a file",
        Some(_) => "is there",
    };
    if volume.filesystems.is_empty() {
        return Some(CHECK.finding(title, there, "there, or created"));
    }
    let wanted = volume.filesystems.join(" or ");
    let space = place.space.as_ref();
    let measured = space.map_or("", |space| space.filesystem.as_str());
    if measured.is_empty() {
        return Some(CHECK.unknown(title, &place.error, wanted));
    }
    let good = volume
        .filesystems
        .iter()
        .any(|filesystem| filesystem == measured);
    let finding = CHECK.finding(title, measured, wanted);
    Some(finding.unless(good, "mount such a filesystem there"))
}

#[cfg(test)]
mod tests {
    use host::facts::Kind;

    use crate::Severity;
    use crate::testing::{facts, places, report_at, room, troubles, with_profile};

    #[test]
    fn missing_paths_and_wrong_filesystems_fail() {
        let requirements = with_profile(
            "{volumes: [{path: /gone, createIfMissing: false}, {path: /maybe, skipIfMissing: true}, \
             {path: /new}, {path: /file}, {path: /ext4, filesystems: [xfs, ext4]}, \
             {path: /btrfs, filesystems: [btrfs]}, {path: /odd, filesystems: [xfs]}, \
             {path: /dev/sda}, {path: '/no-*'}, {path: '/skip-*', skipIfMissing: true}]}",
        );
        let mut places = places();
        for path in [
            "/gone", "/maybe", "/new", "/file", "/ext4", "/btrfs", "/odd", "/dev/sda",
        ] {
            let mut place = room(1, 1);
            place.kind = match path {
                "/ext4" | "/btrfs" | "/odd" => Some(Kind::Directory),
                "/file" => Some(Kind::File),
                "/dev/sda" => Some(Kind::BlockDevice),
                _ => None,
            };
            if path == "/odd" {
                place.space = None;
            }
            places.paths.insert(path.into(), place);
        }
        for pattern in ["/no-*", "/skip-*"] {
            places.patterns.insert(pattern.into(), Ok(Vec::new()));
        }
        let report = report_at(&requirements, &facts(), places);
        let found: Vec<_> = report
            .findings
            .iter()
            .filter(|finding| finding.severity != Severity::Info)
            .map(|finding| (finding.severity, finding.title.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                (Severity::Failure, "volume /gone"),
                (Severity::Failure, "volume /btrfs"),
                (Severity::Warning, "volume /odd"),
                (Severity::Failure, "volume /dev/sda"),
                (Severity::Failure, "volume /no-*"),
            ]
        );
        assert!(troubles(&report).iter().all(|(_, id)| *id == "volume"));
    }
}
