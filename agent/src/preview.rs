//! What a plan would change on this host.
//!
//! In: a plan. Out: the users, files, kernel parameters and units that its
//! phases would make or change, as the host is now. Nothing is touched.

use std::path::PathBuf;

use operation::{PhaseError, Plan};
use planet::config::PlanetConfig;
use serde::Serialize;
use spec::LINKS;
use spec::phase::{PhaseSpec, Volume};

use crate::phases::planet::{MODULES_AT_BOOT, missing_module, module_at_boot};
use crate::{daemon, network_manager, read};

/// Changes to come. Of what is there already nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Users and groups that are made.
    pub users: Vec<String>,
    /// Directories that are made, and what gets another owner or mode.
    pub directories: Vec<String>,
    /// Files and links that are written outside of the state directory.
    pub files: Vec<PathBuf>,
    /// systemd units that are installed and started.
    pub units: Vec<String>,
    /// Kernel modules that are loaded.
    pub modules: Vec<String>,
    /// Kernel parameters that are set.
    pub sysctls: Vec<Parameter>,
}

/// A kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Parameter {
    /// Its dotted name.
    pub name: String,
    /// Its value; `None` where the kernel doesn't have it yet.
    pub now: Option<String>,
    /// The value that it gets.
    pub then: String,
}

/// Finds out what `plan` would change.
///
/// # Errors
/// When a payload can't be read, or the service user can't be had.
pub fn preview(plan: &Plan) -> Result<Preview, PhaseError> {
    let mut preview = Preview::default();
    for phase in plan.leaves() {
        match read(phase)? {
            PhaseSpec::Bootstrap(phase) => {
                let user = &phase.user;
                let missing = host::users::missing(&user.name, user.uid, user.gid)
                    .map_err(crate::node::lasting)?;
                if missing.group {
                    preview
                        .users
                        .push(format!("group {} ({})", user.name, user.gid));
                }
                if missing.user {
                    preview
                        .users
                        .push(format!("user {} ({})", user.name, user.uid));
                }
            }
            PhaseSpec::Volumes(phase) => {
                for volume in &phase.volumes {
                    preview.directories.extend(directories(volume)?);
                }
            }
            PhaseSpec::Program(phase) => {
                let links = phase
                    .links
                    .iter()
                    .map(|name| PathBuf::from(LINKS).join(name));
                preview.files.extend(links);
            }
            PhaseSpec::Planet(phase) => {
                let planet = serde_json::from_value(phase.config).map_err(crate::node::lasting)?;
                kernel(&planet, &mut preview);
                preview
                    .files
                    .extend(network_manager::file().filter(|file| !file.exists()));
            }
            _ => {}
        }
    }
    Ok(preview)
}

/// What a volume makes or changes. Nothing is made for a pattern.
fn directories(volume: &Volume) -> Result<Vec<String>, PhaseError> {
    let path = &volume.path;
    let there = match volume.pattern {
        true => planet::paths::matches(&path.to_string_lossy()).map_err(PhaseError::lasting)?,
        false if path.exists() => vec![path.clone()],
        false if volume.create => return Ok(vec![path.display().to_string()]),
        false => Vec::new(),
    };
    let asked = volume.uid.is_some() || volume.gid.is_some() || volume.mode.is_some();
    let changed = there.iter().filter(|_| asked);
    Ok(changed
        .map(|path| format!("{} (owner and mode)", path.display()))
        .collect())
}

fn kernel(planet: &PlanetConfig, preview: &mut Preview) {
    preview
        .modules
        .extend(missing_module(planet).map(ToOwned::to_owned));
    let list = PathBuf::from(MODULES_AT_BOOT);
    if module_at_boot(planet).is_some() && !list.exists() {
        preview.files.push(list);
    }
    for (name, then) in &planet.sysctls {
        let now = host::sysctl::get(name).ok();
        if !now
            .as_ref()
            .is_some_and(|now| host::sysctl::same(now, then))
        {
            preview.sysctls.push(Parameter {
                name: name.clone(),
                now,
                then: then.clone(),
            });
        }
    }
    if host::facts::has_systemd() {
        preview.files.push(daemon::unit_path());
        preview.units.push(daemon::UNIT.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use operation::Phase;
    use spec::ServiceUser;
    use spec::phase::{Bootstrap, Program, Volumes};

    use super::*;

    #[test]
    fn only_what_is_missing_is_a_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let volume = |name: &str, mode, create| Volume {
            path: path(name),
            pattern: false,
            target: None,
            uid: None,
            gid: None,
            mode,
            create,
            skip_if_missing: !create,
            recursive: false,
        };
        let pattern = |name: &str, mode| Volume {
            pattern: true,
            ..volume(name, mode, true)
        };
        for name in ["there", "owned", "disk-1", "disk-2"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        let root = |uid| ServiceUser {
            name: "root".into(),
            uid,
            gid: 0,
        };
        let volumes = vec![
            volume("there", None, true),
            volume("owned", Some(0o700), true),
            volume("new", None, true),
            volume("maybe", None, false),
            pattern("disk-?", Some(0o700)),
            pattern("o*", None),
            pattern("no-*", Some(0o700)),
        ];
        let phases = [
            PhaseSpec::Bootstrap(Bootstrap { user: root(0) }),
            PhaseSpec::Volumes(Volumes {
                volumes,
                user: root(0),
            }),
            PhaseSpec::Program(Program {
                image: "/x".into(),
                links: vec!["kubectl".into()],
            }),
        ];
        let mut plan = Plan::new("install", "1", Vec::new());
        for (index, payload) in phases.iter().enumerate() {
            let mut phase = Phase::new(format!("/{index}"), "x");
            phase.payload = serde_json::to_value(payload).unwrap();
            plan.phases.push(phase);
        }
        let expected = Preview {
            directories: vec![
                format!("{} (owner and mode)", path("owned").display()),
                path("new").display().to_string(),
                format!("{} (owner and mode)", path("disk-1").display()),
                format!("{} (owner and mode)", path("disk-2").display()),
            ],
            files: vec!["/usr/local/bin/kubectl".into()],
            ..Preview::default()
        };
        assert_eq!(preview(&plan).unwrap(), expected);
        assert!(!path("new").exists());
    }
}
