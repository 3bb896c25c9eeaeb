//! `tele ls`: what is in the hub.
//!
//! In: the hub. Out: its images, the newest version of each or all, as a table,
//! JSON or YAML.

use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use console::Console;
use console::render::bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use image::cluster::BASE_ARTIFACT;
use oci::hub::{self, Hub, HubError};
use semver::Version;
use serde::Serialize;

use crate::artifact::FILE_ARTIFACT;
use crate::hub as options;

/// Questions at a time.
const QUESTIONS: usize = 16;

/// What to list.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only these images.
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// All versions, not only the newest.
    #[arg(long)]
    pub(crate) all: bool,
    /// How the list looks.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) hub: options::Options,
}

/// How a list looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table.
    Text,
    /// A list of objects.
    Json,
    /// The same as YAML.
    Yaml,
}

/// One version of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Row {
    name: String,
    version: String,
    kind: &'static str,
    /// Of all its blobs, in bytes.
    size: u64,
    digest: String,
}

pub(crate) fn run(arguments: &Ls, console: &Arc<Console>) -> Result<()> {
    let connection = arguments.hub.connect(false)?;
    let rows =
        connection
            .runtime
            .block_on(list(&connection.hub, &arguments.names, arguments.all))?;
    match arguments.format {
        Format::Json => console.print_json(&rows)?,
        Format::Yaml => console.print(serde_saphyr::to_string(&rows)?.trim_end()),
        Format::Text => {
            let rows: Vec<_> = rows.into_iter().map(Row::cells).collect();
            console.table(&["Image", "Version", "Kind", "Size", "Digest"], &rows);
        }
    }
    Ok(())
}

async fn list(hub: &Hub, names: &[String], all: bool) -> Result<Vec<Row>> {
    let names = match names {
        [] => hub.names().await?,
        names => names.to_vec(),
    };
    let wanted: Vec<Vec<(String, String)>> = stream::iter(names)
        .map(|name| async move {
            let mut tags = hub.tags(&name).await?;
            // The newest first; what is no version is the oldest.
            tags.sort_by_cached_key(|tag| (Version::parse(&hub::version(tag)).ok(), tag.clone()));
            tags.reverse();
            if !all {
                tags.truncate(1);
            }
            Ok::<_, HubError>(tags.into_iter().map(|tag| (name.clone(), tag)).collect())
        })
        .buffered(QUESTIONS)
        .try_collect()
        .await?;
    let rows = stream::iter(wanted.into_iter().flatten())
        .map(|(name, tag)| row(hub, name, tag))
        .buffered(QUESTIONS)
        .try_collect()
        .await?;
    Ok(rows)
}

async fn row(hub: &Hub, name: String, tag: String) -> Result<Row, HubError> {
    let entry = match hub.entry(&name, &tag).await {
        Ok(entry) => entry,
        Err(HubError::NotAnImage { .. }) => {
            return Ok(Row {
                version: hub::version(&tag),
                name,
                kind: "index",
                size: 0,
                digest: String::new(),
            });
        }
        Err(error) => return Err(error),
    };
    let blobs = std::iter::once(entry.manifest.config()).chain(entry.manifest.layers());
    let title = (entry.manifest.annotations().as_ref())
        .and_then(|all| all.get("org.opencontainers.image.title"))
        // It may differ in upper and lower case alone.
        .filter(|title| hub::repository(title) == name);
    Ok(Row {
        version: hub::version(&tag),
        kind: kind(entry.descriptor.artifact_type().as_ref().map(AsRef::as_ref)),
        size: blobs.map(|blob| blob.size()).sum(),
        digest: entry.descriptor.digest().to_string(),
        name: title.cloned().unwrap_or(name),
    })
}

impl Row {
    fn cells(self) -> Vec<String> {
        vec![
            self.name,
            self.version,
            self.kind.to_owned(),
            bytes(self.size),
            self.digest.chars().take(19).collect(),
        ]
    }
}

/// What an artifact of this type is called.
pub(crate) fn kind(artifact_type: Option<&str>) -> &'static str {
    match artifact_type {
        Some(FILE_ARTIFACT) => "cluster image",
        Some(BASE_ARTIFACT) => "base image",
        Some(_) => "other",
        None => "container image",
    }
}
