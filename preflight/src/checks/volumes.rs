//! Volumes: there where they must be, on the right kind of filesystem.

use std::path::Path;

use manifest::Volume;

use crate::{Finding, Input, Place};

const ID: &str = "volume";

pub(super) fn check(input: &Input<'_>) -> Vec<Finding> {
    let volumes = input.requirements.profile.volumes.iter();
    let place = |volume: &Volume| input.places.get(Path::new(&volume.path));
    volumes
        .flat_map(|volume| {
            place(volume)
                .map(|place| one(volume, place))
                .unwrap_or_default()
        })
        .collect()
}

fn one(volume: &Volume, place: &Place) -> Vec<Finding> {
    let title = format!("volume {}", volume.path);
    if !place.exists && !volume.create_if_missing {
        if volume.skip_if_missing {
            return Vec::new();
        }
        let finding = Finding::passed(ID, title, "is not there", "an existing path");
        return vec![finding.fails("create or mount it, or set createIfMissing in the manifest")];
    }
    if volume.filesystems.is_empty() {
        return Vec::new();
    }
    let wanted = volume.filesystems.join(" or ");
    let measured = place
        .space
        .as_ref()
        .map(|space| space.filesystem.as_str())
        .unwrap_or_default();
    if measured.is_empty() {
        let finding = Finding::passed(ID, title, "filesystem could not be found out", wanted);
        return vec![finding.warns("look at /proc/mounts")];
    }
    let good = volume
        .filesystems
        .iter()
        .any(|filesystem| filesystem == measured);
    vec![Finding::passed(ID, title, measured, wanted).unless(good, "mount such a filesystem there")]
}

#[cfg(test)]
mod tests {
    use crate::testing::{facts, requirements, room, troubles};
    use crate::{Places, Severity, evaluate};

    #[test]
    fn missing_paths_and_wrong_filesystems_fail() {
        let text = "metadata: {name: a, resourceVersion: 1.0.0}\nnodeProfiles: [{name: n, requirements: {volumes: [\
            {path: /gone, createIfMissing: false}, {path: /maybe, skipIfMissing: true}, {path: /new},\
            {path: /ext4, filesystems: [xfs, ext4]}, {path: /btrfs, filesystems: [btrfs]}, {path: /odd, filesystems: [xfs]}]}}]";
        let manifest = manifest::parse(text, "a").unwrap();
        let mut requirements = requirements();
        requirements.profile = manifest.node_profiles[0].requirements.clone();
        let mut places = Places::new();
        places.insert(requirements.state_dir.clone(), room(u64::MAX, 1));
        for path in ["/gone", "/maybe", "/new", "/ext4", "/btrfs", "/odd"] {
            let mut place = room(1, 1);
            place.exists = matches!(path, "/ext4" | "/btrfs" | "/odd");
            if path == "/odd" {
                place.space = Err("no such device".into());
            }
            places.insert(path.into(), place);
        }
        let report = evaluate(&requirements, &facts(), &places);
        let volume = |severity| (severity, "volume");
        assert_eq!(
            troubles(&report),
            [
                volume(Severity::Failure),
                volume(Severity::Failure),
                volume(Severity::Warning)
            ]
        );
        assert!(report.failures().next().unwrap().title.contains("/gone"));
    }
}
