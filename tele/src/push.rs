//! `tele push`: a cluster image, or an image of a local hub, into the hub.
//!
//! In: a file, or NAME:VERSION of a directory. Out: how much of it had to move.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use console::Console;
use console::render::bytes;
use event::Sink;
use oci::hub::{self, Hub, Moved};
use oci::{Content, Digest, Layout};

use crate::{artifact, hub as options};

/// What to push where.
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// A cluster image; or NAME:VERSION of a base or planet image that is in
    /// the directory named by --from.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Replace the version if the hub has it with another content.
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Directory in OCI image layout with the image NAME:VERSION [default:
    /// gravity/hub in the user's data directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) from: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) hub: options::Options,
}

pub(crate) fn run(arguments: &Push, console: &Arc<Console>) -> Result<()> {
    let connection = arguments.hub.connect(true)?;
    let (name, version, moved) = match arguments.file.to_str() {
        Some(image) if !arguments.file.exists() && image.contains(':') => {
            copy(arguments, image, &connection, console)?
        }
        _ => push(arguments, &connection, console)?,
    };
    let Moved {
        present,
        mounted,
        sent,
    } = moved;
    console.print(&format!(
        "{name}:{version} is in {}: {} sent, {} there before",
        connection.hub.describe(),
        bytes(sent),
        bytes(present + mounted)
    ));
    Ok(())
}

fn push(
    arguments: &Push,
    connection: &options::Connection,
    console: &Arc<Console>,
) -> Result<(String, String, Moved)> {
    console.step(&format!("Verifying {}", arguments.file.display()));
    let artifact = artifact::describe(&arguments.file, console.as_ref())?;
    let (name, version) = (&artifact.config.name, &artifact.config.image_version);
    console.step(&format!(
        "Pushing {name}:{version} to {}",
        connection.hub.describe()
    ));
    let progress = options::progress("push", console);
    let moved = connection.runtime.block_on(connection.hub.push(
        name,
        &hub::tag(version),
        (&artifact.manifest, &artifact.descriptor),
        &artifact.contents,
        arguments.force,
        &progress,
    ));
    progress.finish();
    Ok((name.clone(), version.clone(), moved?))
}

/// Copies an image of a directory.
fn copy(
    arguments: &Push,
    image: &str,
    connection: &options::Connection,
    console: &Arc<Console>,
) -> Result<(String, String, Moved)> {
    let (name, wanted) = options::split(image)?;
    let missing = || format!("there is no file {image}, and no image of that name");
    let dir = arguments
        .from
        .clone()
        .or_else(hub::user_dir)
        .with_context(missing)?;
    let layout = Layout::open(dir).with_context(missing)?;
    let from = Hub::Directory(layout.clone());
    let (runtime, to) = (&connection.runtime, &connection.hub);
    let tag = runtime
        .block_on(options::find(&from, name, wanted))
        .with_context(missing)?;
    let entry = runtime.block_on(from.entry(name, &tag))?;
    let mut contents = Vec::new();
    let parts = std::iter::once(entry.manifest.config()).chain(entry.manifest.layers());
    for blob in parts {
        let digest = Digest::try_from(blob.digest())?;
        let path = layout.blob_path(&digest);
        if !layout.has_blob(&digest, blob.size()) {
            bail!("{} is missing or damaged", path.display());
        }
        contents.push(Content {
            digest,
            path,
            offset: 0,
            size: blob.size(),
        });
    }
    console.step(&format!("Pushing {name}:{tag} to {}", to.describe()));
    let progress = options::progress("push", console);
    let manifest = (entry.bytes.as_slice(), &entry.descriptor);
    let moved =
        runtime.block_on(to.push(name, &tag, manifest, &contents, arguments.force, &progress));
    progress.finish();
    Ok((name.to_owned(), hub::version(&tag), moved?))
}
