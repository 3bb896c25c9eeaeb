//! The disk below the state directory is soon done with etcd's writes.

use crate::measure::disk::{SLOW_US, TOO_SLOW_US};
use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "disk-latency",
    about: "fdatasync after each of many writes of 2,300 bytes below the state directory, for 2 to \
            5 s, as etcd's log does",
    limit: "99 of 100 within 10 ms (etcd's hardware guide), else a warning; beyond 150 ms, or below \
            10 writes a second, a failure (limits of the original Gravity)",
    remedy: "put the state directory on a local SSD, and other work on other disks",
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

/// Writes a second below which it warns and fails.
const FEW: u64 = 50;
const TOO_FEW: u64 = 10;

fn check(input: &Input<'_>) -> Vec<Finding> {
    let Some(measured) = &input.measured.latency else {
        return Vec::new();
    };
    let title = format!("disk latency of {}", input.requirements.state_dir.display());
    let wanted = "99 of 100 writes within 10 ms";
    let latency = match measured {
        Ok(latency) => latency,
        Err(error) => return vec![CHECK.unknown(title, error, wanted)],
    };
    let text = format!(
        "p50 {}, p99 {}, {} writes a second",
        milliseconds(latency.p50_us),
        milliseconds(latency.p99_us),
        latency.iops
    );
    let finding = CHECK.finding(title, text, wanted);
    vec![if latency.p99_us > TOO_SLOW_US || latency.iops < TOO_FEW {
        finding.fails(CHECK.remedy)
    } else if latency.p99_us > SLOW_US || latency.iops < FEW {
        finding.warns(CHECK.remedy)
    } else {
        finding
    }]
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:02} ms", microseconds / 1000, microseconds % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use crate::measure::disk::Latency;
    use crate::testing::{measured, requirements, troubles};
    use crate::{Measured, Severity};

    #[test]
    fn slow_disks_warn_and_slower_ones_fail() {
        let ok = |p99_us, iops| {
            Ok(Latency {
                p50_us: 500,
                p99_us,
                iops,
            })
        };
        for (latency, expected) in [
            (ok(10_000, 50), None),
            (ok(10_001, 50), Some(Severity::Warning)),
            (ok(1, 49), Some(Severity::Warning)),
            (ok(150_001, 50), Some(Severity::Failure)),
            (ok(1, 9), Some(Severity::Failure)),
            (Err("no room".into()), Some(Severity::Warning)),
        ] {
            let taken = Measured {
                latency: Some(latency.clone()),
                ..Measured::default()
            };
            let report = measured(&requirements(), taken);
            let expected = Vec::from_iter(expected.map(|severity| (severity, "disk-latency")));
            assert_eq!(troubles(&report), expected, "{latency:?}");
        }
        assert_eq!(super::milliseconds(12_345), "12.34 ms");
    }
}
