//! Programs and containers may run from where they will lie.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "mount-options",
    about: "options of the mount that the state directory lies on",
    limit: "writable, without noexec; nosuid only keeps programs in containers from changing their \
            user, and nodev only pods from opening devices that they make in volumes there: devices \
            of containers and raw block volumes lie on mounts of their own",
    remedy: "mount it without these options (/etc/fstab, `mount -o remount,...`), or use another \
             directory with --state-dir",
    strict: true,
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let Some(place) = input.state_dir() else {
        return Vec::new();
    };
    let title = format!("mount of {}", input.requirements.state_dir.display());
    let wanted = "rw, exec, suid, dev";
    if place.mount_options.is_empty() {
        return vec![CHECK.unknown(title, &place.error, wanted)];
    }
    let among = |names: &[&'static str]| {
        names
            .iter()
            .copied()
            .filter(|name| place.has_option(name))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let (bad, doubtful) = (among(&["ro", "noexec"]), among(&["nosuid", "nodev"]));
    vec![if !bad.is_empty() {
        CHECK.finding(title, bad, wanted).fails(CHECK.remedy)
    } else if !doubtful.is_empty() {
        CHECK.finding(title, doubtful, wanted).warns(CHECK.remedy)
    } else {
        CHECK.finding(title, wanted, wanted)
    }]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::only_at;

    #[test]
    fn options_that_forbid_are_found() {
        for (option, severity) in [
            ("noexec", Severity::Failure),
            ("ro", Severity::Failure),
            // Hosts that are hardened by the book have it on /var.
            ("nodev", Severity::Warning),
            ("nosuid", Severity::Warning),
        ] {
            only_at(severity, "mount-options", |place| {
                place.mount_options.push(option.into());
            });
        }
        only_at(Severity::Warning, "mount-options", |place| {
            place.mount_options.clear()
        });
    }
}
