//! `tele ls`: what is in the hub.
//!
//! In: the hub. Out: a table of its images.

use anyhow::Result;
use console::Console;
use image::cluster::BASE_ARTIFACT;

use crate::cli::Ls;

pub(crate) fn run(arguments: &Ls, console: &Console) -> Result<()> {
    let hub = arguments.hub.open()?;
    let mut rows = Vec::new();
    for (name, descriptor) in hub.tags()? {
        let kind = match descriptor.artifact_type().as_ref().map(AsRef::as_ref) {
            Some(BASE_ARTIFACT) => "base image",
            Some(_) => "other",
            None => "container image",
        };
        let digest: String = descriptor.digest().as_ref().chars().take(19).collect();
        rows.push(vec![name, kind.to_owned(), digest]);
    }
    console.table(&["Image", "Kind", "Digest"], &rows);
    Ok(())
}
