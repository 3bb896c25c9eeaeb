//! The state directory's filesystem can hold as many files as the image makes.

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "inodes",
    about: "files that the state directory's filesystem can still hold",
    limit: "one for each 16 KiB that the image unpacks to (ext4's own ratio) and 20,000; not \
            looked at where there is no limit (btrfs)",
    remedy: "remove files, or mount a filesystem there that was made with more inodes",
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let Some(place) = input.state_dir().filter(|_| !input.requirements.joined) else {
        return Vec::new();
    };
    let needed = input.requirements.state_inodes;
    let title = format!("free inodes of {}", input.requirements.state_dir.display());
    let wanted = format!("at least {needed}");
    vec![match &place.space {
        None => CHECK.unknown(title, &place.error, wanted),
        Some(space) if space.inodes_total == 0 => CHECK.finding(title, "no limit", wanted),
        Some(space) => CHECK
            .finding(title, space.inodes_available.to_string(), wanted)
            .unless(space.inodes_available >= needed, CHECK.remedy),
    }]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::{facts, only_at, places, report_at, requirements, troubles};

    #[test]
    fn too_few_fail_and_no_limit_passes() {
        only_at(Severity::Failure, "inodes", |place| {
            place.space.as_mut().unwrap().inodes_available = 999;
        });
        let mut places = places();
        let place = places.paths.get_mut(&requirements().state_dir).unwrap();
        let space = place.space.as_mut().unwrap();
        (space.inodes_available, space.inodes_total) = (0, 0);
        assert_eq!(troubles(&report_at(&requirements(), &facts(), places)), []);
    }
}
