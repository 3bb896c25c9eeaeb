//! Unpacks the cluster resources that hooks see, a directory a digest.

use std::path::Path;

use event::Sink;
use image::Image;
use image::unpack::{Options, unpack};
use operation::PhaseError;
use spec::phase::Resources;

use crate::Node;
use crate::node::{file, lasting};

/// Largest resource that is looked through for `runAsUser: -1`, in bytes.
const MAX_RESOURCE: u64 = 16 << 20;

pub(crate) fn execute(node: &Node, phase: &Resources, sink: &dyn Sink) -> Result<(), PhaseError> {
    let target = node.layout().resources(&phase.digest);
    if target.exists() {
        return Ok(());
    }
    let image = Image::open(&phase.image).map_err(|error| lasting(&error))?;
    let partial = target.with_extension("partial");
    remove(&partial)?;
    let mut layer = image
        .reader(&phase.digest)
        .map_err(|error| lasting(&error))?;
    unpack(&mut [&mut layer], &partial, &Options::resources(), sink)
        .map_err(|error| lasting(&error))?;
    let user = (phase.service_uid, phase.service_gid);
    translate(&partial, user, sink)?;
    std::fs::rename(&partial, &target).map_err(|error| file("rename", &target, &error))
}

fn remove(path: &Path) -> Result<(), PhaseError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(file("remove", path, &error))
        }
        _ => Ok(()),
    }
}

/// Replaces `runAsUser: -1` and `runAsGroup: -1` in YAML files; charts are templates, not YAML, and
/// are left alone (page, "Service User").
fn translate(directory: &Path, user: (u32, u32), sink: &dyn Sink) -> Result<(), PhaseError> {
    if directory.join("Chart.yaml").exists() {
        return Ok(());
    }
    let entries = std::fs::read_dir(directory).map_err(|error| file("read", directory, &error))?;
    for entry in entries {
        let entry = entry.map_err(|error| file("read", directory, &error))?;
        let path = entry.path();
        let kind = entry
            .file_type()
            .map_err(|error| file("read", &path, &error))?;
        if kind.is_dir() {
            translate(&path, user, sink)?;
        } else if kind.is_file() && is_yaml(&path) {
            translate_file(&path, user, sink)?;
        }
    }
    Ok(())
}

fn is_yaml(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn translate_file(path: &Path, (uid, gid): (u32, u32), sink: &dyn Sink) -> Result<(), PhaseError> {
    let metadata = path
        .metadata()
        .map_err(|error| file("read", path, &error))?;
    if metadata.len() > MAX_RESOURCE {
        sink.warning(&format!(
            "{} is too large to look for runAsUser: -1 in",
            path.display()
        ));
        return Ok(());
    }
    let bytes = std::fs::read(path).map_err(|error| file("read", path, &error))?;
    let Ok(text) = String::from_utf8(bytes) else {
        return Ok(());
    };
    match manifest::service_user::translate(&text, uid, gid) {
        Some(translated) => {
            let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o7777;
            host::atomic::write(path, translated.as_bytes(), mode).map_err(|error| lasting(&error))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_resources_are_translated_and_only_in_yaml() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let pod = "# mine\nkind: Pod\nspec:\n  securityContext: {runAsUser: -1, runAsGroup: -1}\n";
        let several = format!("kind: Service\n---\n{pod}---\n{pod}");
        let files = [
            ("pod.yaml", pod, true),
            ("below/here/several.yml", &several, true),
            ("notes.txt", pod, false),
            ("pod.json", pod, false),
            ("chart/Chart.yaml", "name: chart\n", false),
            ("chart/templates/pod.yaml", pod, false),
        ];
        for (name, text, _) in files {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            host::atomic::write(&path, text.as_bytes(), 0o640).unwrap();
        }
        translate(root, (1001, 1002), &event::Discard).unwrap();
        for (name, text, translated) in files {
            let expected = match translated {
                true => text
                    .replace("User: -1", "User: 1001")
                    .replace("Group: -1", "Group: 1002"),
                false => text.to_owned(),
            };
            let path = root.join(name);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), expected, "{name}");
            let mode = path.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o640, "{name}");
        }
    }
}
