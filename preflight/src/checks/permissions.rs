//! Services that don't run as root reach the state directory.

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "permissions",
    about: "the state directory and all above it",
    limit: "everyone may enter them (o+x): etcd and the API server run as the service user",
    remedy: "let everyone enter it: `chmod o+x`, or use another directory with --state-dir",
    strict: true,
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let Some(place) = input.state_dir() else {
        return Vec::new();
    };
    let title = format!("way to {}", input.requirements.state_dir.display());
    let closed: Vec<_> = place
        .closed
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let wanted = "everyone may enter";
    vec![match closed.as_slice() {
        [] => CHECK.finding(title, wanted, wanted),
        closed => CHECK
            .finding(
                title,
                format!("only some may enter {}", closed.join(", ")),
                wanted,
            )
            .fails(format!("chmod o+x {}", closed.join(" "))),
    }]
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
}
