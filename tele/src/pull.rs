//! `tele pull`: an image of the hub to a file.
//!
//! In: NAME[:VERSION]. Out: the file of a cluster image as it was pushed, byte
//! for byte; or a container image, such as `planet`, in an archive. Blobs stay
//! in the state directory, so a pull that broke off goes on, and the next
//! version fetches only what changed.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use console::Console;
use console::render::bytes;
use event::Sink;
use oci::Digest;
use oci::hub::{self, Entry};
use oci::layout::MAX_DOCUMENT;

use crate::export::{Archive, image_archive};
use crate::unfinished::{Directory, Overwrite};
use crate::{artifact, hub as options};

/// What to pull.
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// The cluster image. VERSION may be `latest`, as when there is none,
    /// `stable`, or a range such as ^1.2.
    #[arg(value_name = "NAME[:VERSION]")]
    pub(crate) image: String,
    /// The file [default: NAME-VERSION.tar, or NAME-VERSION for an executable].
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Replace the file if it exists.
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Where fetched content is kept [default: gravity/tele in the user's cache
    /// directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Pull a container image, such as planet, and write it in this format.
    #[arg(long, value_enum)]
    pub(crate) format: Option<Archive>,
    #[command(flatten)]
    pub(crate) hub: options::Options,
}

/// Writes a container image as an archive.
fn container(
    arguments: &Pull,
    format: Archive,
    (name, version): (&str, &str),
    entry: &Entry,
    connection: &options::Connection,
    console: &Arc<Console>,
) -> Result<()> {
    let output = arguments.output.clone();
    let output =
        output.unwrap_or_else(|| format!("{}-{version}.tar", name.replace('/', "-")).into());
    let overwrite = Overwrite::from(arguments.force);
    overwrite.check(&output)?;
    let shown = format!("{name}:{version}");
    let hub = &connection.hub;
    console.step(&format!("Pulling {shown} from {}", hub.describe()));
    let (_state, cache) = options::cache(arguments.state_dir.as_ref())?;
    let progress = options::progress("pull", console);
    let mut blobs = entry.manifest.layers().clone();
    blobs.push(entry.manifest.config().clone());
    let layout = connection
        .runtime
        .block_on(hub.fetch(name, &blobs, &cache, &progress))?;
    progress.finish();
    let work = Directory::beside(&output, &connection.runtime)?;
    image_archive(&shown, entry, &layout, format, &work, &output, overwrite)?;
    let size = std::fs::metadata(&output)?.len();
    console.print(&format!("{}: {}", output.display(), bytes(size)));
    Ok(())
}

pub(crate) fn run(arguments: &Pull, console: &Arc<Console>) -> Result<()> {
    let connection = arguments.hub.connect(false)?;
    let (runtime, hub) = (&connection.runtime, &connection.hub);
    let (name, wanted) = options::split(&arguments.image)?;
    let tag = runtime.block_on(options::find(hub, name, wanted))?;
    let entry = runtime.block_on(hub.entry(name, &tag))?;
    let kind = entry.descriptor.artifact_type().as_ref().map(AsRef::as_ref);
    let shown = format!("{name}:{}", hub::version(&tag));
    match (kind, arguments.format) {
        (Some(artifact::FILE_ARTIFACT), None) => {}
        (None, Some(format)) => {
            let version = hub::version(&tag);
            let image = (hub::repository(name), version);
            let image = (&*image.0, &*image.1);
            return container(arguments, format, image, &entry, &connection, console);
        }
        (None, None) => bail!("{shown} is a container image: name its archive with --format"),
        (Some(artifact::FILE_ARTIFACT), Some(_)) => {
            bail!("{shown} is a cluster image: --format is for container images such as planet")
        }
        (kind, _) => bail!(
            "{shown} is not a cluster image, but {}: only those are pulled to a file",
            crate::ls::kind(kind)
        ),
    }
    let (_state, cache) = options::cache(arguments.state_dir.as_ref())?;
    let progress = options::progress("pull", console);
    let unusable = || format!("cannot use {shown}");
    let config = entry.manifest.config().clone();
    if config.size() > MAX_DOCUMENT {
        bail!("{shown}: its config has {} bytes", config.size());
    }
    let layout =
        runtime.block_on(hub.fetch(name, std::slice::from_ref(&config), &cache, &progress))?;
    let config = layout.read_blob(&Digest::try_from(config.digest())?, MAX_DOCUMENT)?;
    let config = artifact::read(&config, &entry).with_context(unusable)?;

    let output = arguments.output.clone().unwrap_or_else(|| {
        let extension = if config.archive { ".tar" } else { "" };
        // Neither comes from the artifact: both were names of the hub.
        format!(
            "{}-{}{extension}",
            hub::repository(name).replace('/', "-"),
            hub::version(&tag)
        )
        .into()
    });
    let overwrite = Overwrite::from(arguments.force);
    overwrite.check(&output)?;
    console.step(&format!("Pulling {shown} from {}", hub.describe()));
    let layout = runtime.block_on(hub.fetch(name, entry.manifest.layers(), &cache, &progress));
    progress.finish();
    let (layout, work) = (layout?, Directory::beside(&output, runtime)?);
    artifact::assemble(
        &config,
        &layout,
        &work,
        &output,
        overwrite,
        console.as_ref(),
    )
    .with_context(unusable)?;
    console.print(&format!("{}: {}", output.display(), bytes(config.size)));
    Ok(())
}
