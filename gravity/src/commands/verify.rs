//! `gravity verify`: checks every byte of a cluster image.

use anyhow::{Context, Result};
use console::ExitCode;
use image::cluster::ClusterImage;

use super::Session;

pub(crate) fn run(session: &Session) -> Result<ExitCode> {
    let image = session.image()?;
    let mut damages = image.verify(&*session.console);
    if damages.is_empty() {
        let cluster = ClusterImage::open(image).context("verify the cluster image")?;
        damages = cluster.verify_archive();
    }
    for damage in &damages {
        session.console.error_text(&damage.to_string());
    }
    if damages.is_empty() {
        session.console.print("the image is whole");
        return Ok(ExitCode::Ok);
    }
    Ok(ExitCode::DamagedImage)
}
