//! `gravity version`: this program's version, and of every component of the
//! base image that it carries or that is installed.

use anyhow::{Context, Result};
use console::ExitCode;
use image::cluster::ClusterImage;
use serde::Serialize;

use super::Session;

#[derive(Debug, Serialize)]
struct Versions {
    gravity: &'static str,
    image: Option<String>,
    base: Option<String>,
    components: Vec<image::cluster::Component>,
}

pub(crate) fn run(session: &Session) -> Result<ExitCode> {
    let mut versions = Versions {
        gravity: env!("CARGO_PKG_VERSION"),
        image: None,
        base: None,
        components: Vec::new(),
    };
    // The installed program carries no image: it has left the list on the node.
    if let Ok(image) = session.image() {
        let cluster = ClusterImage::open(image).context("read the cluster image")?;
        versions.image = Some(format!(
            "{} {}",
            cluster.config.name, cluster.config.image_version
        ));
        let base = cluster.base().context("read the base image")?.config;
        versions.base = Some(base.version);
        versions.components = base.components;
    } else if session.global.image.is_some() {
        session.image()?;
    } else if let Ok(json) = std::fs::read(session.layout.components()) {
        versions.components =
            serde_json::from_slice(&json).context("read the list of components")?;
    }
    if session.console.is_json() {
        session.console.print_json(&versions)?;
        return Ok(ExitCode::Ok);
    }
    session
        .console
        .print(&format!("gravity {}", versions.gravity));
    if let Some(image) = &versions.image {
        session.console.print(&format!("image   {image}"));
    }
    if let Some(base) = &versions.base {
        session.console.print(&format!("base    gravity:{base}"));
    }
    let rows: Vec<_> = versions
        .components
        .iter()
        .map(|component| vec![component.name.clone(), component.version.clone()])
        .collect();
    if !rows.is_empty() {
        session.console.table(&["Component", "Version"], &rows);
    }
    Ok(ExitCode::Ok)
}
