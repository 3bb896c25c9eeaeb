//! Unpacks the cluster resources that hooks see, a directory a digest.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use event::Sink;
use image::Image;
use image::unpack::{Options, unpack};
use operation::PhaseError;
use spec::phase::Resources;

use super::undo::unpacked;
use crate::Node;
use crate::node::{entries, file, lasting, sync_filesystem};

/// Largest resource that is looked through for `runAsUser: -1`, in bytes.
const MAX_RESOURCE: u64 = 16 << 20;
/// Directories of a chart that helm renders: templates, not YAML. The build looks
/// for images in the same files.
const RENDERED: [&str; 3] = ["templates", "crds", "charts"];

pub(crate) fn execute(node: &Node, phase: &Resources, sink: &dyn Sink) -> Result<(), PhaseError> {
    let target = node.layout().resources(&phase.digest);
    if !target.exists() {
        make(phase, &target, sink)?;
    }
    // Some filesystems may else forget the new name.
    sync_filesystem(&target)
}

fn make(phase: &Resources, target: &Path, sink: &dyn Sink) -> Result<(), PhaseError> {
    // What a try left that was cut off.
    unpacked(target)?;
    let image = Image::open(&phase.image).map_err(lasting)?;
    let partial = target.with_extension("partial");
    let mut layer = image.reader(&phase.digest).map_err(lasting)?;
    unpack(&mut [&mut layer], &partial, &Options::resources(), sink).map_err(lasting)?;
    readable(&partial)?;
    let user = (phase.service_uid, phase.service_gid);
    translate(&partial, user, sink)?;
    std::fs::rename(&partial, target).map_err(file("rename", target))
}

/// Lets everybody read it, as `chmod -R a+rX` does: a hook runs as the user that it
/// names, and the vendor's umask may have kept files from others.
fn readable(path: &Path) -> Result<(), PhaseError> {
    let metadata = path.symlink_metadata().map_err(file("look at", path))?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let mode = metadata.permissions().mode() & 0o7777;
    let added = match metadata.is_dir() || mode & 0o111 != 0 {
        true => 0o555,
        false => 0o444,
    };
    std::fs::set_permissions(path, Permissions::from_mode(mode | added))
        .map_err(file("set the mode of", path))?;
    if metadata.is_dir() {
        for entry in entries(path)? {
            readable(&entry)?;
        }
    }
    Ok(())
}

/// Replaces `runAsUser: -1` and `runAsGroup: -1` in YAML files, but for what helm renders of a
/// chart (page, "Service User").
fn translate(directory: &Path, user: (u32, u32), sink: &dyn Sink) -> Result<(), PhaseError> {
    let is_chart = directory.join("Chart.yaml").is_file();
    for path in entries(directory)? {
        let kind = path
            .symlink_metadata()
            .map_err(file("look at", &path))?
            .file_type();
        let name = path.file_name().unwrap_or_default();
        if kind.is_dir() {
            if !(is_chart && RENDERED.iter().any(|rendered| name == *rendered)) {
                translate(&path, user, sink)?;
            }
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
    let metadata = path.metadata().map_err(file("read", path))?;
    if metadata.len() > MAX_RESOURCE {
        sink.warning(&format!(
            "{} is too large to look for runAsUser: -1 in",
            path.display()
        ));
        return Ok(());
    }
    let bytes = std::fs::read(path).map_err(file("read", path))?;
    let Ok(text) = String::from_utf8(bytes) else {
        return Ok(());
    };
    match manifest::service_user::translate(&text, uid, gid) {
        Some(translated) => {
            let mode = metadata.permissions().mode() & 0o7777;
            host::atomic::write(path, translated.as_bytes(), mode).map_err(lasting)
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
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
            // The application may be a chart itself.
            ("Chart.yaml", "name: root\n", false),
            ("templates/pod.yaml", pod, false),
            ("chart/Chart.yaml", "name: chart\n", false),
            ("chart/templates/pod.yaml", pod, false),
            ("chart/crds/pod.yaml", pod, false),
            ("chart/charts/sub/pod.yaml", pod, false),
            ("chart/files/pod.yaml", pod, true),
            ("chart/files/templates/pod.yaml", pod, true),
            ("below/templates/pod.yaml", pod, true),
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

    #[test]
    fn everybody_reads_what_the_vendor_kept_to_himself() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("resources");
        let at = |name: &str| root.join(name);
        let mode = |path: &Path| path.symlink_metadata().unwrap().permissions().mode() & 0o777;
        std::fs::create_dir_all(at("below")).unwrap();
        host::atomic::write(&at("below/pod.yaml"), b"", 0o600).unwrap();
        host::atomic::write(&at("below/install.sh"), b"", 0o750).unwrap();
        let outside = directory.path().join("outside");
        host::atomic::write(&outside, b"", 0o600).unwrap();
        std::os::unix::fs::symlink("../outside", at("link")).unwrap();
        for private in [at("below"), root.clone()] {
            std::fs::set_permissions(private, Permissions::from_mode(0o700)).unwrap();
        }
        readable(&root).unwrap();
        assert_eq!(mode(&root), 0o755);
        assert_eq!(mode(&at("below")), 0o755);
        assert_eq!(mode(&at("below/pod.yaml")), 0o644);
        assert_eq!(mode(&at("below/install.sh")), 0o755);
        assert_eq!(mode(&outside), 0o600);
    }
}
