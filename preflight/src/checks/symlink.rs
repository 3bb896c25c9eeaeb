//! The state directory is where its path says.

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "symlink",
    about: "symbolic links on the way to the state directory",
    limit: "none: kubelet and containerd compare paths as they are written with those of mounts",
    remedy: "use the path that the link leads to with --state-dir, or a bind mount",
    strict: true,
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let Some(place) = input.state_dir() else {
        return Vec::new();
    };
    let title = format!("path {}", input.requirements.state_dir.display());
    let wanted = "no symbolic link";
    vec![match &place.link {
        None => CHECK.finding(title, wanted, wanted),
        Some(link) => CHECK
            .finding(title, format!("{} is one", link.display()), wanted)
            .fails(CHECK.remedy),
    }]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::only_at;

    #[test]
    fn links_fail() {
        only_at(Severity::Failure, "symlink", |place| {
            place.link = Some("/var/lib".into())
        });
    }
}
