//! Unpacks the planet's root filesystem.

use event::Sink;
use image::unpack::{Options, unpack};
use image::{Chunks, Image, layer};
use operation::PhaseError;
use spec::phase::Rootfs;

use crate::Node;
use crate::node::lasting;

pub(crate) fn execute(_: &Node, phase: &Rootfs, sink: &dyn Sink) -> Result<(), PhaseError> {
    // Only whole trees are renamed to this place.
    if phase.target.exists() {
        return Ok(());
    }
    let image = Image::open(&phase.image).map_err(lasting)?;
    let mut layers = Vec::new();
    for one in &phase.layers {
        let layer = layer::open(&image, &one.digest, &one.media_type);
        layers.push(layer.map_err(lasting)?);
    }
    let mut chunks: Vec<&mut dyn Chunks> = Vec::new();
    for layer in &mut layers {
        chunks.push(layer.as_mut());
    }
    unpack(&mut chunks, &phase.target, &Options::rootfs(), sink).map_err(lasting)?;
    Ok(())
}
