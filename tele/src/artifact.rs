//! The file of a cluster image as an artifact of a hub.
//!
//! In: a file, or an artifact. Out: the other one, with the same bytes. The
//! artifact's layers are the parts of the file as they are stored, compressed
//! ones compressed; its config says where each begins. What lies between parts
//! is zero. So nothing is compressed again, whatever the version of zstd, and
//! a version of the image shares all parts with another that did not change.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use event::Sink;
use image::cluster::ClusterImage;
use image::{Damage, Image};
use oci::hub::Entry;
use oci::spec::Descriptor;
use oci::{Content, Digest, Layout};
use serde::{Deserialize, Serialize};

use crate::unfinished::{Directory, Overwrite};
use crate::verify::archive;

/// `artifactType` of the file of a cluster image.
pub(crate) const FILE_ARTIFACT: &str = "application/vnd.gravitational.cluster.file.v1";
/// Media type of [`FileConfig`].
pub(crate) const FILE_CONFIG: &str = "application/vnd.gravitational.cluster.file.config.v1+json";
const VERSION: u32 = 1;
/// Parts begin at pages: more than this is never between two.
const PAGE: u64 = 4096;

/// How the file is put together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FileConfig {
    /// Version of this document.
    pub(crate) version: u32,
    /// `metadata.name` of the Image Manifest.
    pub(crate) name: String,
    /// `metadata.resourceVersion` of the Image Manifest.
    pub(crate) image_version: String,
    /// Whether the file is an archive with the executable, or that alone.
    pub(crate) archive: bool,
    /// Length of the file in bytes.
    pub(crate) size: u64,
    /// Its parts, in order.
    pub(crate) parts: Vec<Part>,
}

/// A part of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) digest: Digest,
}

/// An artifact that can be pushed.
#[derive(Debug)]
pub(crate) struct Artifact {
    pub(crate) config: FileConfig,
    pub(crate) manifest: Vec<u8>,
    pub(crate) descriptor: Descriptor,
    pub(crate) contents: Vec<Content>,
    /// Holds the config.
    _file: tempfile::NamedTempFile,
}

/// Describes a file, of which every byte is verified.
pub(crate) fn describe(path: &Path, sink: &dyn Sink) -> Result<Artifact> {
    let cluster = ClusterImage::open(Image::open(path)?)?;
    if let Some(first) = damage(&cluster, sink) {
        bail!("{} is damaged, {first}: build it again", path.display());
    }
    let stored = cluster.image.parts()?;
    let mut contents = Vec::new();
    let mut layers = BTreeMap::new();
    let mut parts = Vec::new();
    for (order, part) in stored.iter().enumerate() {
        let digest: Digest = part.digest.parse()?;
        parts.push(Part {
            offset: part.offset,
            size: part.length,
            digest: digest.clone(),
        });
        layers.entry(digest.clone()).or_insert((order, part));
        contents.push(Content {
            digest,
            path: path.to_owned(),
            offset: part.offset,
            size: part.length,
        });
    }
    let size = stored.last().map_or(0, |part| part.offset + part.length);
    let config = FileConfig {
        version: VERSION,
        name: cluster.config.name.clone(),
        image_version: cluster.config.image_version.clone(),
        archive: size > cluster.image.length(),
        size,
        parts,
    };
    let text = serde_json::to_vec(&config)?;
    let mut file = tempfile::NamedTempFile::new().context("cannot create a temporary file")?;
    file.write_all(&text)
        .context("cannot write a temporary file")?;
    contents.push(Content {
        digest: Digest::of(&text),
        path: file.path().to_owned(),
        offset: 0,
        size: text.len() as u64,
    });
    let mut layers: Vec<_> = layers.into_values().collect();
    layers.sort_by_key(|(order, _)| *order);
    let layers: Vec<_> = layers
        .into_iter()
        .map(|(_, part)| {
            serde_json::json!({
                "mediaType": part.media_type, "digest": part.digest, "size": part.length,
            })
        })
        .collect();
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": FILE_ARTIFACT,
        "config": {
            "mediaType": FILE_CONFIG, "digest": Digest::of(&text), "size": text.len(),
        },
        "layers": layers,
        "annotations": {
            "org.opencontainers.image.title": config.name,
            "org.opencontainers.image.version": config.image_version,
        },
    }))?;
    if manifest.len() as u64 > oci::layout::MAX_DOCUMENT {
        bail!(
            "{} has {} parts, more than registries take in one manifest",
            path.display(),
            config.parts.len()
        );
    }
    let mut descriptor = oci::layout::descriptor(
        Digest::of(&manifest),
        manifest.len() as u64,
        "application/vnd.oci.image.manifest.v1+json",
    )?;
    descriptor.set_artifact_type(Some(FILE_ARTIFACT.into()));
    Ok(Artifact {
        config,
        manifest,
        descriptor,
        contents,
        _file: file,
    })
}

/// The first part of the file that is not what was built.
fn damage(cluster: &ClusterImage, sink: &dyn Sink) -> Option<Damage> {
    let mut found = cluster.image.verify_stored(sink);
    found.extend(archive(cluster, sink));
    found.into_iter().next()
}

/// Reads how a file is put together, and compares it with the layers.
pub(crate) fn read(config: &[u8], entry: &Entry) -> Result<FileConfig> {
    let value: serde_json::Value = serde_json::from_slice(config)?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(VERSION)) {
        bail!(
            "it has version {} of its format, this program reads {VERSION}: use a later tele",
            version.map_or("none".into(), |version| version.to_string())
        );
    }
    let config: FileConfig = serde_json::from_value(value)?;
    let layers: BTreeMap<&str, u64> = entry
        .manifest
        .layers()
        .iter()
        .map(|layer| (layer.digest().as_ref(), layer.size()))
        .collect();
    let mut end = 0;
    for part in &config.parts {
        if layers.get(part.digest.as_str()) != Some(&part.size) {
            bail!("its part {} is no layer of it", part.digest);
        }
        if part.offset < end || part.offset - end >= PAGE {
            bail!(
                "its part {} is not where the one before it ends",
                part.digest
            );
        }
        end = part.offset.saturating_add(part.size);
    }
    if end != config.size {
        bail!("its parts end at byte {end}, expected {}", config.size);
    }
    Ok(config)
}

/// Puts the file together in `work`; it appears at `path` whole or not at all.
pub(crate) fn assemble(
    config: &FileConfig,
    blobs: &Layout,
    work: &Directory,
    path: &Path,
    overwrite: Overwrite,
    sink: &dyn Sink,
) -> Result<()> {
    let temp = work.file()?;
    let mut at = 0;
    for part in &config.parts {
        let blob = blobs.blob_path(&part.digest);
        let what = || format!("cannot read {}", blob.display());
        let mut from = File::open(&blob).with_context(what)?;
        let mut to = temp.as_file();
        std::io::copy(&mut std::io::repeat(0).take(part.offset - at), &mut to)?;
        // File to file: the kernel copies, or shares the blocks.
        let copied = std::io::copy(&mut from, &mut to).with_context(what)?;
        if copied != part.size {
            bail!(
                "{} has {copied} bytes, expected {}: remove it, so that it is fetched again",
                blob.display(),
                part.size
            );
        }
        at = part.offset + part.size;
    }
    // Blobs of the cache were verified when they came, some long ago.
    let cluster = ClusterImage::open(Image::open(temp.path())?)?;
    if let Some(first) = damage(&cluster, sink) {
        bail!(
            "what was fetched is damaged, {first}: remove the directory {}, so that it is fetched again",
            blobs.dir().display()
        );
    }
    let mode = if config.archive { 0o644 } else { 0o755 };
    temp.as_file()
        .set_permissions(std::fs::Permissions::from_mode(mode))?;
    overwrite.persist(temp, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use event::Discard;
    use tokio::runtime::Runtime;

    use super::*;
    use crate::build::tests::Vendor;

    #[test]
    fn what_was_pushed_is_put_together_again_unless_a_part_is_damaged() {
        let vendor = Vendor::new();
        let blobs = Layout::open_or_create(vendor.at("cache")).unwrap();
        let runtime = Runtime::new().unwrap();
        for name in ["shop", "shop.tar"] {
            let path = vendor.build(name, &Default::default()).unwrap();
            let artifact = describe(&path, &Discard).unwrap();
            for part in &artifact.contents {
                let mut bytes = vec![0; part.size as usize];
                let file = File::open(&part.path).unwrap();
                file.read_exact_at(&mut bytes, part.offset).unwrap();
                blobs.put_blob_bytes(&bytes, "a/b").unwrap();
            }
            let pulled = vendor.at("pulled");
            let assemble = |overwrite| {
                let work = Directory::beside(&pulled, &runtime).unwrap();
                assemble(
                    &artifact.config,
                    &blobs,
                    &work,
                    &pulled,
                    overwrite,
                    &Discard,
                )
            };
            assemble(Overwrite::Replace).unwrap();
            let whole = std::fs::read(&path).unwrap();
            assert!(std::fs::read(&pulled).unwrap() == whole);
            assert!(assemble(Overwrite::Refuse).is_err(), "it is there");
            let last = artifact.config.parts.last().unwrap();
            let rotten = File::options()
                .write(true)
                .open(blobs.blob_path(&last.digest))
                .unwrap();
            rotten.write_all_at(b"?", last.size - 1).unwrap();
            let error = assemble(Overwrite::Replace).unwrap_err().to_string();
            assert!(error.contains("damaged"), "{error}");
            assert!(std::fs::read(&pulled).unwrap() == whole);
        }
    }
}
