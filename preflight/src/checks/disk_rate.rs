//! Disks write as fast as the profile says.

use std::path::Path;

use manifest::Rate;

use crate::measure::disk::USUAL_RATE;
use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "disk-rate",
    about: "96 MiB written and synced below the state directory and each volume with \
            minTransferRate: the best of three",
    limit: "the volume's minTransferRate; below the state directory 10 MB/s, else a warning (the \
            original Gravity's limit)",
    remedy: "use a faster disk there, or look what else writes to it",
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let volumes = input
        .requirements
        .profile
        .volumes
        .iter()
        .flat_map(|volume| {
            let paths = volume
                .min_transfer_rate
                .and_then(|_| input.places.meant(&volume.path));
            let paths = paths.unwrap_or_default().into_iter();
            paths.map(|path| (path, volume.min_transfer_rate.unwrap_or_default()))
        });
    let mut findings: Vec<_> = volumes
        .filter_map(|(path, rate)| one(input, path, rate, true))
        .collect();
    let own = (input.requirements.state_dir.as_path(), Rate(USUAL_RATE));
    findings.extend(one(input, own.0, own.1, false));
    findings
}

fn one(input: &Input<'_>, path: &Path, rate: Rate, required: bool) -> Option<Finding> {
    let title = format!("write rate of {}", path.display());
    let wanted = format!("at least {rate}");
    let measured = input
        .measured
        .rates
        .as_ref()
        .and_then(|rates| rates.get(path));
    Some(match measured {
        // Nobody asked for the state directory's.
        None if !required => return None,
        // A volume that is skipped.
        None if input.measured.rates.is_some() => return None,
        None => CHECK
            .finding(title, "was not measured", wanted)
            .warns("run the check on the node itself, without --quick"),
        Some(Err(error)) => CHECK.unknown(title, error, wanted),
        Some(Ok(bytes)) => {
            let text = format!("{}/s", manifest::Bytes(*bytes).human());
            let finding = CHECK.finding(title, text, wanted);
            match required {
                true => finding.unless(*bytes >= rate.0, CHECK.remedy),
                false => finding.rather(*bytes >= rate.0, CHECK.remedy),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::testing::{measured, requirements, troubles, with_profile};
    use crate::{Measured, Severity};

    #[test]
    fn volumes_fail_and_the_state_directory_warns() {
        let requirements = with_profile("{volumes: [{path: /data, minTransferRate: 50MB/s}]}");
        for (data, own, expected) in [
            (Ok(50_000_000), Ok(10_000_000), vec![]),
            (Ok(49_999_999), Ok(10_000_000), vec![Severity::Failure]),
            (Ok(50_000_000), Ok(9_999_999), vec![Severity::Warning]),
            (
                Err("full".to_owned()),
                Ok(10_000_000),
                vec![Severity::Warning],
            ),
        ] {
            let taken = Measured {
                rates: Some(BTreeMap::from([
                    ("/data".into(), data),
                    (requirements.state_dir.clone(), own),
                ])),
                ..Measured::default()
            };
            let report = measured(&requirements, taken);
            let expected: Vec<_> = expected
                .into_iter()
                .map(|severity| (severity, "disk-rate"))
                .collect();
            assert_eq!(troubles(&report), expected);
        }
        let report = measured(&requirements, Measured::default());
        assert_eq!(troubles(&report), [(Severity::Warning, "disk-rate")]);
    }

    #[test]
    fn without_a_rate_nothing_has_to_be_measured() {
        assert_eq!(
            troubles(&measured(&requirements(), Measured::default())),
            []
        );
    }
}
