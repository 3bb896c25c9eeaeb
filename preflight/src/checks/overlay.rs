//! Containers' filesystems can be laid over the state directory's.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "overlay",
    about: "type of the state directory's filesystem",
    limit: "one that can be the upper layer of an overlay: not an overlay itself, not a network or \
            FAT filesystem (kernel documentation, overlayfs)",
    remedy: "put the state directory on ext4, xfs or btrfs: mount one there, or use --state-dir",
    strict: true,
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

const NEVER: &[&str] = &[
    "overlay", "aufs", "nfs", "nfs4", "cifs", "smb3", "vfat", "exfat", "msdos", "fuseblk", "9p",
    "squashfs", "iso9660", "ecryptfs",
];
const WELL: &[&str] = &["ext4", "ext3", "xfs", "btrfs", "f2fs", "zfs", "bcachefs"];

fn check(input: &Input<'_>) -> Vec<Finding> {
    let Some(place) = input.state_dir() else {
        return Vec::new();
    };
    let title = format!("filesystem of {}", input.requirements.state_dir.display());
    let wanted = "ext4, xfs or btrfs";
    let Some(space) = place
        .space
        .as_ref()
        .filter(|space| !space.filesystem.is_empty())
    else {
        return vec![CHECK.unknown(title, &place.error, wanted)];
    };
    let filesystem = space.filesystem.as_str();
    let finding = CHECK.finding(title, filesystem, wanted);
    vec![match filesystem {
        never if NEVER.contains(&never) => finding.fails(CHECK.remedy),
        well if WELL.contains(&well) => finding,
        "tmpfs" | "ramfs" => finding.warns("all of the cluster is lost at a restart; use a disk"),
        _ => finding.warns("it was not tried; use ext4, xfs or btrfs"),
    }]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::only_at;

    #[test]
    fn filesystems_that_carry_no_overlay_fail() {
        for (filesystem, severity) in [
            ("overlay", Severity::Failure),
            ("nfs4", Severity::Failure),
            ("tmpfs", Severity::Warning),
            ("newfs", Severity::Warning),
            ("", Severity::Warning),
        ] {
            only_at(severity, "overlay", |place| {
                place.space.as_mut().unwrap().filesystem = filesystem.into();
            });
        }
    }
}
