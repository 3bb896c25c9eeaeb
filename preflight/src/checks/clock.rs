//! Something keeps the clock right.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "clock",
    about: "what the kernel says of its clock (adjtimex)",
    limit: "synchronised, by whatever program; certificates and etcd's leases count on it, and \
            nodes may differ by 300 ms at most",
    remedy: "turn on chrony or systemd-timesyncd, such as `timedatectl set-ntp true`, with a time \
             server that this host reaches",
    run: check,
    severities: &[Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let wanted = "synchronised";
    vec![match input.facts.kernel.clock {
        None => CHECK.unknown("clock", "", wanted),
        Some(clock) if clock.synchronised => {
            let error = format!("synchronised to {} ms", clock.max_error_us.div_ceil(1000));
            CHECK.finding("clock", error, wanted)
        }
        Some(_) => CHECK
            .finding("clock", "not synchronised", wanted)
            .warns(CHECK.remedy),
    }]
}

#[cfg(test)]
mod tests {
    use host::facts::Clock;

    use crate::Severity;
    use crate::testing::only;

    #[test]
    fn a_clock_that_nothing_keeps_warns() {
        let clock = Clock {
            synchronised: false,
            max_error_us: 16_000_000,
        };
        for clock in [None, Some(clock)] {
            only(Severity::Warning, "clock", |facts| {
                facts.kernel.clock = clock
            });
        }
    }
}
