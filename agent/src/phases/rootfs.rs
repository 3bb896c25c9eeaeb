//! Unpacks the planet's root filesystem.

use event::Sink;
use image::file::Image;
use operation::PhaseError;
use spec::phase::Rootfs;

use crate::Node;
use crate::node::lasting;

pub(crate) fn execute(_: &Node, phase: &Rootfs, sink: &dyn Sink) -> Result<(), PhaseError> {
    // Only whole trees are renamed to this place.
    if phase.target.exists() {
        return Ok(());
    }
    let image = Image::open(&phase.image).map_err(|error| lasting(&error))?;
    image::unpack::layers(&image, &phase.layers, &phase.target, sink).map_err(|error| lasting(&error))
}
