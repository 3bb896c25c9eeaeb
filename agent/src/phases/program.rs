//! Puts the program without its payload on the node, with its links and the
//! list of components that `gravity version` prints.

use std::path::Path;

use image::Image;
use image::cluster::ClusterImage;
use operation::PhaseError;
use spec::LINKS;
use spec::phase::Program;

use crate::Node;
use crate::node::lasting;

pub(crate) fn execute(node: &Node, phase: &Program) -> Result<(), PhaseError> {
    let program = node.layout().gravity();
    let image = Image::open(&phase.image).map_err(|error| lasting(&error))?;
    image
        .extract_elf(&program)
        .map_err(|error| lasting(&error))?;
    let components = ClusterImage::open(image)
        .and_then(|cluster| cluster.base())
        .map_err(|error| lasting(&error))?
        .config
        .components;
    let json = serde_json::to_vec_pretty(&components).map_err(|error| lasting(&error))?;
    host::atomic::write(&node.layout().components(), &json, 0o644)
        .map_err(|error| lasting(&error))?;
    for name in &phase.links {
        let link = Path::new(LINKS).join(name);
        node.changes()
            .symlink(&program, &link)
            .map_err(|error| lasting(&error))?;
    }
    Ok(())
}
