//! Puts the program without its payload on the node, with its links and the
//! list of components that `gravity version` prints.

use std::path::Path;

use image::Image;
use image::cluster::ClusterImage;
use operation::PhaseError;
use spec::LINKS;
use spec::phase::Program;

use crate::Node;
use crate::node::{lasting, remove_beginning};

pub(crate) fn execute(node: &Node, phase: &Program) -> Result<(), PhaseError> {
    // What a try left that was cut off.
    remove_beginning(&node.layout().programs(), image::PARTIAL)?;
    let program = node.layout().gravity();
    let image = Image::open(&phase.image).map_err(lasting)?;
    image.extract_elf(&program).map_err(lasting)?;
    let components = ClusterImage::open(image)
        .and_then(|cluster| cluster.base())
        .map_err(lasting)?
        .config
        .components;
    let json = serde_json::to_vec_pretty(&components).map_err(lasting)?;
    host::atomic::write(&node.layout().components(), &json, 0o644).map_err(lasting)?;
    for name in &phase.links {
        let link = Path::new(LINKS).join(name);
        node.changes().symlink(&program, &link).map_err(lasting)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use spec::layout::Layout;

    use super::*;

    #[test]
    fn what_was_extracted_in_part_goes_before_anything_is_extracted() {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::open(Layout::new(directory.path())).unwrap();
        let partial = node.layout().programs().join(".partial-x");
        std::fs::create_dir_all(node.layout().programs()).unwrap();
        host::atomic::write(&partial, b"x", 0o755).unwrap();
        let phase = Program {
            image: directory.path().join("none"),
            links: Vec::new(),
        };
        execute(&node, &phase).unwrap_err();
        assert!(!partial.exists());
    }
}
