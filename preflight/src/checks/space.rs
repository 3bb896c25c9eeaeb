//! Free room: of each volume and the state directory by itself, and of those
//! together that share a filesystem.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use manifest::Bytes;

use crate::{Finding, Input};

const ID: &str = "space";
const REMEDY: &str = "free some, or mount a larger filesystem there";

pub(super) fn check(input: &Input<'_>) -> Vec<Finding> {
    let needed = needed(input);
    let mut findings: Vec<_> = needed
        .iter()
        .filter_map(|(path, bytes)| one(input, path, *bytes))
        .collect();
    let mut shared: BTreeMap<u64, Shared<'_>> = BTreeMap::new();
    for (path, bytes) in &needed {
        let Some(place) = input.places.get(path) else {
            continue;
        };
        let (Some(device), Ok(space)) = (place.device, &place.space) else {
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
fn needed(input: &Input<'_>) -> Vec<(PathBuf, Bytes)> {
    let requirements = input.requirements;
    let skipped = |volume: &manifest::Volume| {
        volume.skip_if_missing
            && input
                .places
                .get(Path::new(&volume.path))
                .is_none_or(|place| !place.exists)
    };
    let volumes = requirements
        .profile
        .volumes
        .iter()
        .filter(|volume| !skipped(volume));
    let volumes =
        volumes.filter_map(|volume| Some((PathBuf::from(&volume.path), volume.capacity?)));
    [(
        requirements.state_dir.clone(),
        Bytes(requirements.state_bytes),
    )]
    .into_iter()
    .chain(volumes)
    .collect()
}

fn one(input: &Input<'_>, path: &Path, bytes: Bytes) -> Option<Finding> {
    let title = format!("free space of {}", path.display());
    let wanted = format!("at least {}", bytes.human());
    Some(match &input.places.get(path)?.space {
        Ok(space) => Finding::passed(ID, title, Bytes(space.available_bytes).human(), wanted)
            .unless(space.available_bytes >= bytes.0, REMEDY),
        Err(error) => {
            let measured = format!("could not be measured ({error})");
            Finding::passed(ID, title, measured, wanted)
                .warns(format!("look at `df {}`", path.display()))
        }
    })
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
        Some(Finding::passed(ID, title, Bytes(self.available).human(), wanted).warns(REMEDY))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{facts, requirements, room, troubles};
    use crate::{Places, Requirements, Severity, evaluate};

    fn with_volume(gigabytes: u64) -> Requirements {
        let text = format!(
            "metadata: {{name: a, resourceVersion: 1.0.0}}\n\
             nodeProfiles: [{{name: n, requirements: {{volumes: [{{path: /data, capacity: {gigabytes}GB}}]}}}}]"
        );
        let mut requirements = requirements();
        requirements.profile = manifest::parse(&text, "a").unwrap().node_profiles[0]
            .requirements
            .clone();
        requirements
    }

    #[test]
    fn room_is_counted_by_itself_and_together() {
        let cases = [
            (5, 1, 10_000_000_000, vec![]),
            (20, 2, 10_000_000_000, vec![(Severity::Failure, "space")]),
            (10, 1, 10_000_000_000, vec![(Severity::Warning, "space")]),
            (10, 2, 10_000_000_000, vec![]),
        ];
        for (gigabytes, device, available, expected) in cases {
            let requirements = with_volume(gigabytes);
            let mut places = Places::new();
            places.insert("/data".into(), room(available, device));
            places.insert(requirements.state_dir.clone(), room(available, 1));
            let report = evaluate(&requirements, &facts(), &places);
            assert_eq!(troubles(&report), expected, "{gigabytes} GB on {device}");
        }
    }

    #[test]
    fn unknown_room_is_a_warning() {
        let requirements = requirements();
        let mut place = room(0, 1);
        place.space = Err("permission denied".into());
        let places = Places::from([(requirements.state_dir.clone(), place)]);
        let report = evaluate(&requirements, &facts(), &places);
        assert_eq!(troubles(&report), [(Severity::Warning, "space")]);
    }
}
