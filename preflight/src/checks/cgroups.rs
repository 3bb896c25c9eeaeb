//! Control groups with the controllers that kubelet and runc use.

use host::facts::Cgroup;

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "cgroups",
    about: "control groups: version, mounted hierarchies, controllers",
    limit: "cpu, cpuset, memory, pids; with v1 also cpuacct, devices, freezer (kubelet)",
    remedy: "mount them, and remove cgroup_disable= from the kernel's command line; some boards \
             need cgroup_enable=memory there",
    strict: true,
    run: check,
    ..Check::PLAIN
};

const ALWAYS: &[&str] = &["cpu", "cpuset", "memory", "pids"];
const OF_V1: &[&str] = &["cpuacct", "devices", "freezer"];

fn check(input: &Input<'_>) -> Vec<Finding> {
    let facts = input.facts;
    let controllers = &facts.kernel.controllers;
    let (version, more) = match facts.cgroup {
        Cgroup::V1 => ("v1", OF_V1),
        Cgroup::Hybrid => ("v1 with v2 beside it", OF_V1),
        Cgroup::V2 => ("v2", &[][..]),
    };
    let needed: Vec<_> = ALWAYS.iter().chain(more).copied().collect();
    let wanted = needed.join(", ");
    if controllers.is_empty() && facts.mounts.is_empty() {
        return vec![CHECK.unknown("control groups", "", wanted)];
    }
    let missing: Vec<_> = needed
        .into_iter()
        .filter(|name| !controllers.contains(*name))
        .collect();
    let measured = match missing.as_slice() {
        [] => version.to_owned(),
        missing => format!("{version} without {}", missing.join(", ")),
    };
    vec![
        CHECK
            .finding("control groups", measured, wanted)
            .unless(missing.is_empty(), CHECK.remedy),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;
    use crate::testing::{only, spoiled, troubles};

    #[test]
    fn each_version_needs_its_controllers() {
        let trouble = only(Severity::Failure, "cgroups", |facts| {
            facts.kernel.controllers.remove("memory");
        });
        assert_eq!(trouble.measured, "v2 without memory");
        let trouble = only(Severity::Failure, "cgroups", |facts| {
            facts.cgroup = Cgroup::Hybrid;
        });
        assert!(trouble.measured.contains("freezer"));
        let report = spoiled(|facts| {
            facts.cgroup = Cgroup::V1;
            let more = OF_V1.iter().map(|name| (*name).to_owned());
            facts.kernel.controllers.extend(more);
        });
        assert_eq!(troubles(&report), []);
    }
}
