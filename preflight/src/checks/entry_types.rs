//! Directories of the state directory's filesystem know the types of their
//! entries.

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "entry-types",
    about: "whether directories of the state directory's filesystem say the types of their entries \
            (d_type)",
    limit: "they do: overlays need it (kernel documentation, overlayfs); XFS made with ftype=0, the \
            default of mkfs.xfs before 3.2.3, hasn't it",
    remedy: "make the filesystem anew (mkfs.xfs -n ftype=1), or put the state directory on another \
             with --state-dir",
    strict: true,
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let Some(place) = input.state_dir() else {
        return Vec::new();
    };
    let filesystem = place
        .space
        .as_ref()
        .map_or("", |space| space.filesystem.as_str());
    let title = format!("entry types of {}", input.requirements.state_dir.display());
    let wanted = "entries with a type";
    vec![match place.has_entry_types {
        None => CHECK.unknown(title, "", wanted),
        Some(true) => CHECK.finding(title, format!("{filesystem} has them"), wanted),
        Some(false) => {
            let measured = match filesystem {
                "xfs" => "xfs made with ftype=0".to_owned(),
                other => format!("{other} without them"),
            };
            CHECK.finding(title, measured, wanted).fails(CHECK.remedy)
        }
    }]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::only_at;

    #[test]
    fn xfs_without_types_fails() {
        only_at(Severity::Failure, "entry-types", |place| {
            place.space.as_mut().unwrap().filesystem = "xfs".into();
            place.has_entry_types = Some(false);
        });
        only_at(Severity::Warning, "entry-types", |place| {
            place.has_entry_types = None
        });
    }
}
