//! Unpacks the planet's root filesystem.

use event::Sink;
use image::Image;
use image::unpack::{Options, unpack};
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
    let mut layer = image
        .reader(&phase.layer)
        .map_err(|error| lasting(&error))?;
    unpack(&mut [&mut layer], &phase.target, &Options::rootfs(), sink)
        .map_err(|error| lasting(&error))?;
    Ok(())
}
