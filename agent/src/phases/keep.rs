//! Keeps the cluster image for nodes that join, whatever becomes of the file
//! that was installed from. What the blob store has already isn't kept twice:
//! there the kept file has holes.

use image::{Blob, Encoding, Image};
use operation::PhaseError;
use spec::layout::Layout;
use spec::phase::Keep;

use super::undo::clear;
use crate::Node;
use crate::node::{file, lasting};

/// Smaller blobs, documents among them, are kept twice: so the file can be read
/// without the store.
const SMALL: u64 = 1 << 20;

pub(crate) fn execute(node: &Node, phase: &Keep) -> Result<(), PhaseError> {
    let layout = node.layout();
    let target = layout.cluster_image();
    let image = Image::open(&phase.image).map_err(lasting)?;
    let elsewhere = |blob: &Blob| is_stored(layout, blob);
    // It came from other nodes.
    if phase.image == target {
        return image.release(elsewhere).map_err(lasting);
    }
    let directory = layout.image();
    // What a try left that was cut off.
    clear(&directory)?;
    std::fs::create_dir_all(&directory).map_err(file("create", &directory))?;
    image.keep(&target, elsewhere).map_err(lasting)
}

/// Earlier phases may be executed again, which read all of the image.
pub(super) fn undo(node: &Node, phase: &Keep) -> Result<(), PhaseError> {
    let layout = node.layout();
    let target = layout.cluster_image();
    if phase.image != target {
        return clear(&layout.image());
    }
    let image = Image::open(&target).map_err(lasting)?;
    for blob in image.blobs().filter(|blob| is_stored(layout, blob)) {
        image
            .restore(blob, &layout.blob(&blob.digest))
            .map_err(lasting)?;
    }
    Ok(())
}

fn is_stored(layout: &Layout, blob: &Blob) -> bool {
    let stored = || std::fs::metadata(layout.blob(&blob.digest)).map(|meta| meta.len());
    blob.encoding == Encoding::Raw
        && blob.length >= SMALL
        && stored().is_ok_and(|length| length == blob.length)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use image::Writer;
    use image::digest::sha256;

    use super::*;

    const SIZE: usize = 2 << 20;

    /// An image of a large blob that the store has, and one that it hasn't.
    fn image(directory: &Path, layout: &Layout) -> (std::path::PathBuf, String) {
        let stored = vec![1; SIZE];
        let elf = directory.join("elf");
        host::atomic::write(&elf, b"program", 0o755).unwrap();
        let path = directory.join("file");
        let mut writer = Writer::create(&path, &elf).unwrap();
        let root = writer.add_blob_bytes(b"root", "a/b").unwrap();
        let digest = writer.add_blob_bytes(&stored, "a/b").unwrap();
        writer.add_blob_bytes(&vec![2; SIZE], "a/b").unwrap();
        writer.finish(&root, "linux/amd64").unwrap();
        let blob = layout.blob(&digest);
        std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
        host::atomic::write(&blob, &stored, 0o644).unwrap();
        (path, digest)
    }

    /// Parts of the kept image that are not there.
    fn holes(layout: &Layout) -> Vec<String> {
        let kept = Image::open(layout.cluster_image()).unwrap();
        let damage = kept.verify(&event::Discard);
        damage.into_iter().map(|damage| damage.part).collect()
    }

    #[test]
    fn what_the_store_has_is_not_kept_twice_and_comes_back_with_undo() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("state"));
        std::fs::create_dir_all(layout.state_dir()).unwrap();
        let (path, digest) = image(directory.path(), &layout);
        assert_eq!(digest, sha256(&vec![1; SIZE]));
        let node = Node::open(layout.clone()).unwrap();
        let phase = Keep {
            image: path.clone(),
        };
        for _ in 0..2 {
            execute(&node, &phase).unwrap();
            let holes = holes(&layout);
            assert!(holes.len() == 1 && holes[0].contains(&digest), "{holes:?}");
        }
        undo(&node, &phase).unwrap();
        assert!(!layout.cluster_image().exists());

        // One that came from other nodes stays, and is whole again.
        std::fs::copy(&path, layout.cluster_image()).unwrap();
        let phase = Keep {
            image: layout.cluster_image(),
        };
        execute(&node, &phase).unwrap();
        assert_eq!(holes(&layout).len(), 1);
        undo(&node, &phase).unwrap();
        assert!(holes(&layout).is_empty());
    }
}
