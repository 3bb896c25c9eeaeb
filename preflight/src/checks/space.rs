//! Free room: of each volume and the state directory by itself, and of those
//! together that share a filesystem.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use manifest::Bytes;

use crate::{Check, Finding, Input, Severity, UNSEEN};

pub(super) const CHECK: Check = Check {
    id: "space",
    about: "free space of the state directory and each volume, and of those together that share a \
            filesystem",
    limit: "what the image unpacks to and 2 GiB; each volume's capacity",
    remedy: "free some, or mount a larger filesystem there",
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let needed = needed(input);
    let mut findings: Vec<_> = needed
        .iter()
        .map(|(path, bytes)| one(input, path, *bytes))
        .collect();
    let mut shared: BTreeMap<u64, Shared<'_>> = BTreeMap::new();
    for (path, bytes) in &needed {
        let Some(place) = input.places.paths.get(path) else {
            continue;
        };
        let (Some(device), Some(space)) = (place.device, &place.space) else {
            continue;
        };
        let entry = shared.entry(device).or_default();
        entry.paths.push(path);
        entry.needed = entry.needed.saturating_add(bytes.0);
        entry.available = space.available_bytes;
    }
    findings.extend(shared.values().filter_map(Shared::warning));
    findings
}

/// What each path needs. Volumes that are skipped need nothing.
fn needed(input: &Input<'_>) -> BTreeMap<PathBuf, Bytes> {
    let requirements = input.requirements;
    let mut needed: BTreeMap<PathBuf, Bytes> = BTreeMap::new();
    for volume in &requirements.profile.volumes {
        let Some(capacity) = volume.capacity else {
            continue;
        };
        for path in input.places.meant(&volume.path).unwrap_or_default() {
            let place = input.places.paths.get(path);
            let missing = place.is_none_or(|place| !place.exists());
            if !(volume.skip_if_missing && missing) {
                // Volumes with one path share its room.
                let most = needed.entry(path.to_owned()).or_default();
                *most = capacity.max(*most);
            }
        }
    }
    // What is installed needs no more.
    if !requirements.joined {
        let own = needed.entry(requirements.state_dir.clone()).or_default();
        own.0 = own.0.saturating_add(requirements.state_bytes);
    }
    needed
}

fn one(input: &Input<'_>, path: &Path, bytes: Bytes) -> Finding {
    let title = format!("free space of {}", path.display());
    let wanted = format!("at least {}", bytes.human());
    let Some(place) = input.places.paths.get(path) else {
        return CHECK.unknown(title, UNSEEN, wanted);
    };
    match &place.space {
        Some(space) => CHECK
            .finding(title, Bytes(space.available_bytes).human(), wanted)
            .unless(space.available_bytes >= bytes.0, CHECK.remedy),
        None => CHECK.unknown(title, &place.error, wanted),
    }
}

/// Paths on one filesystem.
#[derive(Debug, Default)]
struct Shared<'a> {
    paths: Vec<&'a PathBuf>,
    needed: u64,
    available: u64,
}

impl Shared<'_> {
    fn warning(&self) -> Option<Finding> {
        if self.paths.len() < 2 || self.available >= self.needed {
            return None;
        }
        let paths: Vec<_> = self
            .paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let title = format!("free space of {} together", paths.join(" and "));
        let wanted = format!("{} in all", Bytes(self.needed).human());
        Some(
            CHECK
                .finding(title, Bytes(self.available).human(), wanted)
                .warns(CHECK.remedy),
        )
    }
}

#[cfg(test)]
mod tests {
    use host::facts::Place;

    use crate::Severity;
    use crate::testing::{facts, places, report_at, requirements, room, troubles, with_profile};

    #[test]
    fn room_is_counted_by_itself_and_together() {
        let cases = [
            (5, 1, 10_000_000_000, vec![]),
            (20, 2, 10_000_000_000, vec![(Severity::Failure, "space")]),
            (10, 1, 10_000_000_000, vec![(Severity::Warning, "space")]),
            (10, 2, 10_000_000_000, vec![]),
        ];
        for (gigabytes, device, available, expected) in cases {
            let requirements = with_profile(&format!(
                "{{volumes: [{{path: /data, capacity: {gigabytes}GB}}]}}"
            ));
            let mut places = places();
            places.paths.insert("/data".into(), room(available, device));
            let report = report_at(&requirements, &facts(), places);
            assert_eq!(troubles(&report), expected, "{gigabytes} GB on {device}");
        }
    }

    #[test]
    fn volumes_with_one_path_need_the_most_that_one_of_them_wants() {
        let requirements = with_profile(
            "{volumes: [{path: /data, targetPath: /a, capacity: 20GB}, \
             {path: /data, targetPath: /b, capacity: 1GB}]}",
        );
        let mut places = places();
        places.paths.insert("/data".into(), room(10_000_000_000, 2));
        let report = report_at(&requirements, &facts(), places);
        assert_eq!(troubles(&report), [(Severity::Failure, "space")]);
    }

    #[test]
    fn each_path_of_a_pattern_and_none_of_a_skipped_one_needs_room() {
        let requirements = with_profile(
            "{volumes: [{path: '/d-*', capacity: 1TB}, {path: /no, skipIfMissing: true, capacity: 1TB}]}",
        );
        let mut places = places();
        places
            .patterns
            .insert("/d-*".into(), Ok(vec!["/d-1".into(), "/d-2".into()]));
        places
            .paths
            .insert("/d-1".into(), room(2_000_000_000_000, 2));
        places.paths.insert("/d-2".into(), room(1, 3));
        places.paths.insert(
            "/no".into(),
            Place {
                kind: None,
                ..room(1, 4)
            },
        );
        let report = report_at(&requirements, &facts(), places);
        assert_eq!(troubles(&report), [(Severity::Failure, "space")]);
        assert!(report.failures().next().unwrap().title.contains("/d-2"));
    }

    #[test]
    fn unknown_room_is_a_warning() {
        let mut places = places();
        let place = places.paths.get_mut(&requirements().state_dir).unwrap();
        place.space = None;
        place.error = "permission denied".into();
        let report = report_at(&requirements(), &facts(), places);
        assert!(report.failures().next().is_none());
        let troubles = troubles(&report);
        assert!(
            troubles.contains(&(Severity::Warning, "space")),
            "{troubles:?}"
        );
    }
}
