//! Services that don't run as root reach the state directory, and root alone decides
//! what is there.

use std::path::PathBuf;

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "permissions",
    about: "the state directory and all above it",
    limit: "everyone may enter them (o+x), as etcd and the API server run as the service user; they \
            are root's and nobody else may write to them, but above it where the sticky bit is set: \
            who could put another directory there would have root run programs of theirs",
    remedy: "let everyone enter them: `chmod o+x`, and root alone change them: `chown root`, \
             `chmod go-w`; or use another directory with --state-dir",
    strict: true,
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let Some(place) = input.state_dir() else {
        return Vec::new();
    };
    let title = format!("way to {}", input.requirements.state_dir.display());
    let (mut measured, mut remedies) = (Vec::new(), Vec::new());
    if !place.closed.is_empty() {
        measured.push(format!("only some may enter {}", join(&place.closed, ", ")));
        remedies.push(format!("chmod o+x {}", join(&place.closed, " ")));
    }
    if !place.open.is_empty() {
        let open = join(&place.open, " ");
        measured.push(format!(
            "others than root may change {}",
            join(&place.open, ", ")
        ));
        remedies.push(format!("chown root {open} && chmod go-w {open}"));
    }
    let wanted = "everyone may enter, only root may change";
    vec![match measured.is_empty() {
        true => CHECK.finding(title, wanted, wanted),
        false => CHECK
            .finding(title, measured.join("; "), wanted)
            .fails(format!(
                "use another directory with --state-dir, or `{}`",
                remedies.join(" && ")
            )),
    }]
}

fn join(paths: &[PathBuf], separator: &str) -> String {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(separator)
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::only_at;

    #[test]
    fn a_closed_parent_fails() {
        only_at(Severity::Failure, "permissions", |place| {
            place.closed.push("/var/lib".into())
        });
    }

    #[test]
    fn a_parent_that_others_may_change_fails() {
        only_at(Severity::Failure, "permissions", |place| {
            place.open.push("/var/lib".into())
        });
    }
}
