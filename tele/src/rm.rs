//! `tele rm`: removes a version from the hub.
//!
//! In: NAME:VERSION, exactly. Out: nothing.

use std::sync::Arc;

use anyhow::{Result, bail};
use clap::Args;
use console::Console;
use oci::hub;

use crate::hub as options;

/// What to remove.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// The image, with its version in full.
    #[arg(value_name = "NAME:VERSION")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) hub: options::Options,
}

pub(crate) fn run(arguments: &Rm, console: &Arc<Console>) -> Result<()> {
    let (name, Some(version)) = options::split(&arguments.image)? else {
        bail!(
            "which version of {} is to be removed? Write NAME:VERSION",
            arguments.image
        );
    };
    let connection = arguments.hub.connect(false)?;
    let tag = hub::tag(version);
    connection.runtime.block_on(async {
        let tags = connection.hub.tags(name).await?;
        if !tags.contains(&tag) {
            bail!("{} has no {name}:{version}", connection.hub.describe());
        }
        Ok(connection.hub.remove(name, &tag).await?)
    })?;
    console.print(&format!(
        "{name}:{version} is removed from {}",
        connection.hub.describe()
    ));
    Ok(())
}
