//! Puts the program without its payload on the node, with its links.

use std::path::Path;

use image::file::Image;
use operation::PhaseError;
use spec::phase::Program;

use crate::Node;
use crate::node::lasting;

/// Where the links are made: on every distribution's PATH.
const LINKS: &str = "/usr/local/bin";

pub(crate) fn execute(node: &Node, phase: &Program) -> Result<(), PhaseError> {
    let program = node.layout().gravity();
    let image = Image::open(&phase.image).map_err(|error| lasting(&error))?;
    image.extract_elf(&program).map_err(|error| lasting(&error))?;
    for name in &phase.links {
        let link = Path::new(LINKS).join(name);
        node.changes().symlink(&program, &link).map_err(|error| lasting(&error))?;
    }
    Ok(())
}
