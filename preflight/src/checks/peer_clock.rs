//! Clocks of two nodes agree.

use crate::{Check, Finding, Input};

/// As the original Gravity has it, in microseconds.
const LIMIT_US: u64 = 300_000;

pub(super) const CHECK: Check = Check {
    id: "peer-clock",
    about: "the time on other nodes, half of the shortest of eight round trips taken off",
    limit: "at most 300 ms from ours (as the original Gravity has it): leases of etcd and \
            certificates count on it",
    remedy: "turn on chrony or systemd-timesyncd on both nodes, with the same time servers",
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let wanted = "at most 300 ms from ours";
    input
        .peers()
        .map(|(address, seen)| {
            let title = format!("clock of {address}");
            let offset = match &seen.clock {
                Ok(offset) => offset,
                Err(why) => return CHECK.unknown(title, why, wanted),
            };
            let difference = offset.ahead_us.unsigned_abs();
            let direction = match offset.ahead_us {
                ..0 => "behind",
                0.. => "ahead",
            };
            let measured = format!("{} ms {direction}", difference / 1000);
            let finding = CHECK.finding(title, measured, wanted);
            // What the way took may have been all in one direction.
            match difference > LIMIT_US.saturating_add(offset.round_trip_us / 2) {
                true => finding.fails(CHECK.remedy),
                false => finding,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use host::facts::Offset;

    use crate::Severity;
    use crate::testing::{only_between, troubles, with_peers};

    fn offset(ahead_us: i64, round_trip_us: u64) -> Result<Offset, String> {
        Ok(Offset {
            ahead_us,
            round_trip_us,
        })
    }

    #[test]
    fn clocks_that_are_too_far_apart_fail() {
        for (ahead_us, told) in [(400_000, "400 ms ahead"), (-301_000, "301 ms behind")] {
            let finding = only_between(Severity::Failure, "peer-clock", |peer| {
                peer.seen.as_mut().unwrap().clock = offset(ahead_us, 1000);
            });
            assert_eq!(finding.measured, told);
        }
        only_between(Severity::Warning, "peer-clock", |peer| {
            peer.seen.as_mut().unwrap().clock = Err("no answer".into());
        });
    }

    #[test]
    fn what_the_measurement_can_not_tell_is_no_failure() {
        for (ahead_us, round_trip_us) in [(300_000, 0), (-300_000, 0), (400_000, 200_000)] {
            let report = with_peers(|peer| {
                peer.seen.as_mut().unwrap().clock = offset(ahead_us, round_trip_us);
            });
            assert_eq!(troubles(&report), [], "{ahead_us} {round_trip_us}");
        }
    }
}
