//! The lock file: which image each name stood for.
//!
//! In: the file beside the manifest, as the last build wrote it. Out: names
//! pinned to those digests; and the file of this build. It is no resource of
//! the cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use event::Sink;
use oci::{Digest, Reference};
use serde::{Deserialize, Serialize};

use super::base::Base;
use super::images::{Vendored, Wanted};

/// Version of the format.
const VERSION: u32 = 1;
/// Most bytes of the file.
const MAX_SIZE: u64 = 16 << 20;

/// The lock file of a manifest: `app.lock` beside `app.yaml`.
pub(crate) fn path(manifest: &Path) -> PathBuf {
    manifest.with_extension("lock")
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    /// Digest of the base image by its name.
    base: BTreeMap<String, String>,
    /// Digests of images by their full names: of an index, where the name
    /// leads to one.
    images: BTreeMap<String, Digest>,
}

/// What names are held to.
#[derive(Debug, Default)]
pub(crate) struct Locked(Option<(PathBuf, Document)>);

impl Locked {
    /// Reads the file that `--locked` demands.
    pub(crate) fn demand(path: &Path) -> Result<Self> {
        match read(path)? {
            Some(document) => Ok(Self(Some((path.to_owned(), document)))),
            None => bail!(
                "there is no lock file {}, which --locked demands: build without --locked, which writes it",
                path.display()
            ),
        }
    }

    /// Fails unless the file is about exactly this base and these images.
    pub(crate) fn check(&self, base: &Base, wanted: &[Wanted]) -> Result<()> {
        let Some((path, document)) = &self.0 else {
            return Ok(());
        };
        let mut differences = Vec::new();
        match document.base.get(&base.reference) {
            Some(digest) if *digest == base.digest.to_string() => {}
            Some(digest) => differences.push(format!(
                "the base image {} is {}, not {digest}",
                base.reference, base.digest
            )),
            None => differences.push(format!("it lacks the base image {}", base.reference)),
        }
        let names: Vec<String> = wanted.iter().filter_map(name).collect();
        let lacks = names
            .iter()
            .filter(|name| !document.images.contains_key(*name));
        differences.extend(lacks.map(|name| format!("it lacks {name}")));
        let left = document.images.keys().filter(|name| !names.contains(name));
        differences.extend(left.map(|name| format!("{name} is not used any more")));
        if !differences.is_empty() {
            bail!(
                "{} does not fit: {}: build without --locked, which renews it",
                path.display(),
                differences.join("; ")
            );
        }
        Ok(())
    }

    /// What to ask for: the image that the name stood for.
    pub(crate) fn pin(&self, image: &Reference) -> Result<Reference> {
        let images = self.0.as_ref().map(|(_, document)| &document.images);
        match images.and_then(|images| images.get(&image.to_string())) {
            Some(digest) if image.digest().is_none() => {
                // The tag stays: an engine knows nothing else.
                Ok(format!("{image}@{digest}").parse()?)
            }
            _ => Ok(image.clone()),
        }
    }
}

/// A name that can stand for another image tomorrow.
fn name(image: &Wanted) -> Option<String> {
    let floats = image.source.digest().is_none();
    floats.then(|| image.source.to_string())
}

fn read(path: &Path) -> Result<Option<Document>> {
    let what = || format!("cannot read the lock file {}", path.display());
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(what),
        Ok(meta) if !meta.is_file() || meta.len() > MAX_SIZE => {
            bail!(
                "{} is not a lock file: it is no file of at most {MAX_SIZE} bytes",
                path.display()
            )
        }
        Ok(_) => {}
    }
    let text = std::fs::read(path).with_context(what)?;
    let document: serde_json::Value = serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} is not a lock file of tele: move it away",
            path.display()
        )
    })?;
    // The version first: fields of a later one may differ.
    let version = document.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(VERSION)) {
        bail!(
            "{} is no lock file of version {VERSION}, which this program reads: move it away",
            path.display()
        );
    }
    let document = serde_json::from_value(document).with_context(|| {
        format!(
            "{} is not a lock file of tele: move it away",
            path.display()
        )
    })?;
    Ok(Some(document))
}

/// Fails when the file is there and is something else, which must not be lost.
pub(crate) fn check_ours(path: &Path) -> Result<()> {
    read(path).map(drop)
}

/// Writes the file for what was built; one that says the same stays. Where it
/// can't be written that is told, as the build itself is good.
pub(crate) fn write(path: &Path, base: &Base, images: &[Vendored], sink: &dyn Sink) -> Result<()> {
    let of = |image: &Vendored| {
        let source: Reference = image.application.source.parse().ok()?;
        let floats = source.digest().is_none();
        floats.then(|| (source.to_string(), image.resolved.clone()))
    };
    let document = Document {
        version: VERSION,
        base: [(base.reference.clone(), base.digest.to_string())].into(),
        images: images.iter().filter_map(of).collect(),
    };
    if read(path)?.as_ref() == Some(&document) {
        return Ok(());
    }
    let mut text = serde_json::to_string_pretty(&document).context("cannot write the lock file")?;
    text.push('\n');
    if let Err(error) = host::atomic::write(path, text.as_bytes(), 0o644) {
        sink.warning(&format!(
            "the lock file {} is not written: {error}",
            path.display()
        ));
    }
    Ok(())
}
