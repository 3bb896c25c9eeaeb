//! The lock file: which image each name stood for.
//!
//! In: the file beside the manifest, as the last build wrote it. Out: names
//! pinned to those digests; and the file of this build. It is no resource of
//! the cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use event::Sink;
use manifest::BaseImage;
use oci::{Digest, Layout, Reference};
use serde::{Deserialize, Serialize};

use super::base::{self, Base};
use super::images::{Vendored, Wanted};
use super::planet::Planet;

/// Version of the format.
const VERSION: u32 = 2;
/// The earliest that is read: it knows no planets.
const EARLIEST: u32 = 1;
/// Most bytes of the file.
const MAX_SIZE: usize = 16 << 20;

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
    /// Digests of planet images by the names that the manifest gives them.
    #[serde(default)]
    planets: BTreeMap<String, Digest>,
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

    /// The base image to take: the file's, where no version is asked for.
    pub(crate) fn base(&self, wanted: Option<BaseImage>) -> Option<BaseImage> {
        let stable = wanted.as_ref().is_some_and(|base| base.stable);
        let fits = |base: &BaseImage| {
            let version = base.version.as_ref();
            version.is_some_and(|version| !stable || version.pre.is_empty())
        };
        let locked = self.0.as_ref().and_then(|(_, document)| {
            let name = document.base.keys().next()?;
            name.parse().ok().filter(fits)
        });
        match &wanted {
            Some(base) if base.version.is_some() => wanted,
            _ => locked.or(wanted),
        }
    }

    /// Whether the hub has the base image whole, with the file's digest.
    pub(crate) fn has_base(&self, hub: &Layout, wanted: Option<&BaseImage>) -> bool {
        let Some(((_, document), wanted)) = self.0.as_ref().zip(wanted) else {
            return false;
        };
        let reference = wanted.to_string();
        let digest = document.base.get(&reference);
        digest.is_some_and(|digest| base::is_whole(hub, &reference, digest))
    }

    /// Fails unless the file is about exactly this base, these planets and these
    /// images.
    pub(crate) fn check<'a>(
        &self,
        base: &Base,
        planets: impl Iterator<Item = &'a String>,
        wanted: &[Wanted],
    ) -> Result<()> {
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
        let planets: Vec<String> = planets.filter(|name| floats(name)).cloned().collect();
        let images: Vec<String> = wanted.iter().filter_map(name).collect();
        for (names, locked) in [(planets, &document.planets), (images, &document.images)] {
            let lacks = names.iter().filter(|name| !locked.contains_key(*name));
            differences.extend(lacks.map(|name| format!("it lacks {name}")));
            let left = locked.keys().filter(|name| !names.contains(name));
            differences.extend(left.map(|name| format!("{name} is not used any more")));
        }
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
        pinned(
            image.clone(),
            images.and_then(|images| images.get(&image.to_string())),
        )
    }

    /// The same for the planet image that the manifest calls so.
    pub(crate) fn pin_planet(&self, name: &str) -> Result<Reference> {
        let planets = self.0.as_ref().map(|(_, document)| &document.planets);
        pinned(name.parse()?, planets.and_then(|planets| planets.get(name)))
    }
}

fn pinned(image: Reference, digest: Option<&Digest>) -> Result<Reference> {
    match digest {
        // The tag stays: an engine knows nothing else.
        Some(digest) if image.digest().is_none() => Ok(format!("{image}@{digest}").parse()?),
        _ => Ok(image),
    }
}

/// Whether the name of a planet image can stand for another one tomorrow.
fn floats(name: &str) -> bool {
    !name.contains('@')
}

/// A name that can stand for another image tomorrow.
fn name(image: &Wanted) -> Option<String> {
    let floats = image.source.digest().is_none();
    floats.then(|| image.source.to_string())
}

fn read(path: &Path) -> Result<Option<Document>> {
    let what = || format!("cannot read the lock file {}", path.display());
    if !path.try_exists().with_context(what)? {
        return Ok(None);
    }
    let text = super::manifest::read(path, MAX_SIZE)
        .map_err(|message| anyhow::anyhow!("{}: {message}", what()))?;
    let document: serde_json::Value = serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} is not a lock file of tele: move it away",
            path.display()
        )
    })?;
    // The version first: fields of a later one may differ.
    let version = document.get("version").and_then(serde_json::Value::as_u64);
    if !version.is_some_and(|version| (EARLIEST.into()..=VERSION.into()).contains(&version)) {
        bail!(
            "{} is no lock file of the versions {EARLIEST} to {VERSION}, which this program reads: move it away",
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
pub(crate) fn write(
    path: &Path,
    base: &Base,
    planets: &[Planet],
    images: &[Vendored],
    sink: &dyn Sink,
) -> Result<()> {
    let of = |image: &Vendored| {
        let source: Reference = image.application.source.parse().ok()?;
        let floats = source.digest().is_none();
        floats.then(|| (source.to_string(), image.resolved.clone()))
    };
    let document = Document {
        version: VERSION,
        base: [(base.reference.clone(), base.digest.to_string())].into(),
        planets: planets
            .iter()
            .filter(|planet| floats(&planet.name))
            .map(|planet| (planet.name.clone(), planet.resolved.clone()))
            .collect(),
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
