//! Devices that the profile names are there, and are devices.

use std::path::Path;

use manifest::Device;

use crate::{Check, Finding, Input, Severity, UNSEEN};

pub(super) const CHECK: Check = Check {
    id: "device",
    about: "paths and patterns of the profile's devices",
    limit: "each path is a device (a failure), each pattern means at least one (a warning): not \
            every machine has what patterns allow for",
    remedy: "install the device's driver, or use a machine that has it",
    run: check,
    severities: &[Severity::Failure, Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let devices = input.requirements.profile.devices.iter();
    devices.map(|device| one(input, device)).collect()
}

fn one(input: &Input<'_>, device: &Device) -> Finding {
    let title = format!("device {}", device.path);
    let wanted = "at least one device";
    let Some(paths) = input.places.meant(&device.path) else {
        return CHECK.unknown(title, "bad pattern, or too many match", wanted);
    };
    let place = |path: &Path| input.places.paths.get(path);
    if paths.iter().any(|path| place(path).is_none()) {
        return CHECK.unknown(title, UNSEEN, wanted);
    }
    let existing: Vec<_> = paths
        .into_iter()
        .filter(|path| place(path).is_some_and(host::facts::Place::exists))
        .collect();
    let others: Vec<_> = existing
        .iter()
        .filter(|path| !place(path).is_some_and(host::facts::Place::is_device))
        .map(|path| path.display().to_string())
        .collect();
    match (existing.len(), others.as_slice()) {
        (0, _) if input.places.patterns.contains_key(&device.path) => {
            CHECK.finding(title, "none", wanted).warns(CHECK.remedy)
        }
        (0, _) => CHECK.finding(title, "none", wanted).fails(CHECK.remedy),
        (count, []) => CHECK.finding(title, count.to_string(), wanted),
        (_, others) => {
            let measured = format!("{} is no device", others.join(", "));
            let remedy = "narrow the pattern in the manifest";
            CHECK.finding(title, measured, wanted).fails(remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use host::facts::{Kind, Place};

    use crate::Severity;
    use crate::testing::{facts, places, report_at, troubles, with_profile};

    #[test]
    fn devices_must_be_there_and_be_devices() {
        let requirements = with_profile("{devices: [{path: '/dev/nv*'}, {path: /dev/kvm}]}");
        let device = |kind| Place {
            kind,
            ..Place::default()
        };
        let cases = [
            (Some(Kind::CharacterDevice), Some(Kind::BlockDevice), 0),
            (Some(Kind::CharacterDevice), None, 1),
            (Some(Kind::Directory), Some(Kind::CharacterDevice), 1),
        ];
        for (nvidia, kvm, failures) in cases {
            let mut places = places();
            places
                .patterns
                .insert("/dev/nv*".into(), Ok(vec!["/dev/nv0".into()]));
            places.paths.insert("/dev/nv0".into(), device(nvidia));
            places.paths.insert("/dev/kvm".into(), device(kvm));
            let report = report_at(&requirements, &facts(), places);
            assert_eq!(
                troubles(&report),
                vec![(Severity::Failure, "device"); failures]
            );
        }
        let mut places = places();
        places.patterns.insert("/dev/nv*".into(), Ok(Vec::new()));
        places
            .paths
            .insert("/dev/kvm".into(), device(Some(Kind::BlockDevice)));
        let report = report_at(&requirements, &facts(), places);
        assert_eq!(troubles(&report), [(Severity::Warning, "device")]);
    }
}
