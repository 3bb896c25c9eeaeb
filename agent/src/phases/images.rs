//! Fills the node's registry: blobs by digest, linked into the registry's
//! storage, where nothing is copied a second time.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use event::{Event, Sink, Unit};
use image::Image;
use image::cluster::ClusterImage;
use operation::PhaseError;
use spec::RegistryImage;
use spec::phase::Images;

use crate::Node;
use crate::node::{file, lasting, remove_beginning, sync_filesystem};

const TASK: &str = "container images";

pub(crate) fn execute(node: &Node, phase: &Images, sink: &dyn Sink) -> Result<(), PhaseError> {
    // What a try left that was cut off.
    remove_beginning(&node.layout().blobs().join("sha256"), image::PARTIAL)?;
    let image = Image::open(&phase.image).map_err(lasting)?;
    let cluster = ClusterImage::open(image.clone()).map_err(lasting)?;
    let mut contents = Vec::new();
    for entry in &phase.images {
        let blobs = cluster.image_blobs(&entry.digest).map_err(lasting)?;
        contents.push((entry, blobs));
    }
    let all: BTreeSet<_> = contents.iter().flat_map(|(_, blobs)| blobs).collect();
    let size = |digest: &str| image.blob(digest).map_or(0, |blob| blob.size);
    let total: u64 = all.iter().map(|digest| size(digest)).sum();
    let mut done = 0;
    for digest in all {
        let target = node.layout().blob(digest);
        // Blobs come there whole, under their digest.
        if !target.exists() {
            image.extract(digest, &target).map_err(lasting)?;
        }
        done += size(digest);
        sink.emit(Event::Progress {
            task: TASK.into(),
            done,
            total: Some(total),
            unit: Unit::Bytes,
        });
    }
    let storage = Storage::new(node);
    for (entry, blobs) in contents {
        storage.declare(node, entry, &blobs)?;
    }
    // Some filesystems may else forget links and directories.
    sync_filesystem(&node.layout().blobs())
}

/// The storage of the distribution registry, filesystem driver, version 2.
struct Storage(PathBuf);

impl Storage {
    fn new(node: &Node) -> Self {
        Self(node.layout().service("registry").join("docker/registry/v2"))
    }

    fn declare(
        &self,
        node: &Node,
        image: &RegistryImage,
        blobs: &[String],
    ) -> Result<(), PhaseError> {
        let repository = self.0.join("repositories").join(&image.repository);
        for digest in blobs {
            let path = digest.replacen(':', "/", 1);
            let hex = path.rsplit('/').next().unwrap_or_default();
            let data = self
                .0
                .join("blobs/sha256")
                .join(hex.get(..2).unwrap_or_default())
                .join(hex)
                .join("data");
            hard_link(&node.layout().blob(digest), &data)?;
            link(&repository.join("_layers").join(&path).join("link"), digest)?;
        }
        let manifests = repository.join("_manifests");
        let path = image.digest.replacen(':', "/", 1);
        link(
            &manifests.join("revisions").join(&path).join("link"),
            &image.digest,
        )?;
        if let Some(tag) = &image.tag {
            let tag = manifests.join("tags").join(tag);
            link(&tag.join("index").join(&path).join("link"), &image.digest)?;
            link(&tag.join("current/link"), &image.digest)?;
        }
        Ok(())
    }
}

fn hard_link(from: &Path, to: &Path) -> Result<(), PhaseError> {
    parents(to)?;
    match std::fs::hard_link(from, to) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(file("link", to)(error)),
        _ => Ok(()),
    }
}

/// A file of the registry that names a digest.
fn link(path: &Path, digest: &str) -> Result<(), PhaseError> {
    parents(path)?;
    host::atomic::write(path, digest.as_bytes(), 0o644).map_err(lasting)
}

fn parents(path: &Path) -> Result<(), PhaseError> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent).map_err(file("create", parent))
}

#[cfg(test)]
mod tests {
    use spec::layout::Layout;

    use super::*;

    #[test]
    fn what_was_extracted_in_part_goes_before_anything_is_extracted() {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::open(Layout::new(directory.path())).unwrap();
        let blob = node.layout().blob("sha256:ab");
        let partial = blob.with_file_name(".partial-x");
        std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
        for path in [&blob, &partial] {
            host::atomic::write(path, b"x", 0o644).unwrap();
        }
        let phase = Images {
            image: directory.path().join("none"),
            images: Vec::new(),
        };
        execute(&node, &phase, &event::Discard).unwrap_err();
        assert!(blob.exists() && !partial.exists());
    }
}
