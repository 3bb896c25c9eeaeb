//! Images in a directory or an archive: OCI layouts, and what `docker save`
//! writes.
//!
//! In: a path and the name of an image. Out: the image's blobs in a layout,
//! each with its digest. What an engine has unpacked has no manifest any more:
//! it gets one that follows from its config and layers alone, so it is the same
//! every time.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageIndex};
use serde::Deserialize;
use serde_json::{Value, json};

use super::SourceError;
use super::archive::Archive;
use crate::digest::Digest;
use crate::layout::{Layout, LayoutError, MAX_DOCUMENT, REF_NAME};
use crate::part::Part;
use crate::reference::Reference;
use crate::registry::{Content, Document, Pulled, choose, complete, read};
use event::Progress;

/// Name of an image in what containerd and Docker write.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// How compressed layers begin.
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Most that a zstd stream may ask to be remembered: 128 MiB.
const ZSTD_WINDOW_LOG: u32 = 27;
/// Most bytes of a layer that is unpacked.
const MAX_LAYER: u64 = 64 << 30;
const BUFFER: usize = 128 << 10;
/// Indexes within indexes that are followed.
const MAX_DEPTH: usize = 4;

/// A directory or an archive.
#[derive(Debug)]
pub(crate) enum Bundle {
    Directory(PathBuf),
    Archive(Archive),
}

/// An image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Bundle {
    pub(crate) fn open(path: &Path) -> Result<Self, SourceError> {
        Ok(match path.is_dir() {
            true => Self::Directory(path.to_owned()),
            false => Self::Archive(Archive::open(path)?),
        })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            Self::Archive(archive) => archive.path(),
        }
    }

    fn bad(&self, reason: impl Into<String>) -> SourceError {
        SourceError::Malformed {
            place: self.path().display().to_string(),
            reason: reason.into(),
        }
    }

    /// The content of a file, and its size.
    fn part(&self, name: &str) -> Result<Option<(Part, u64)>, SourceError> {
        match self {
            Self::Archive(archive) => Ok(archive
                .find(name)
                .map(|(file, offset, size)| (Part::new(file, offset, size), size))),
            Self::Directory(dir) => {
                let path = dir.join(name);
                let failed = |source| LayoutError::Io {
                    action: "open",
                    path: path.clone(),
                    source,
                };
                let file = match File::open(&path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(failed(error).into()),
                };
                let size = file.metadata().map_err(failed)?.len();
                Ok(Some((Part::new(Arc::new(file), 0, size), size)))
            }
        }
    }

    fn read(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let Some((mut part, size)) = self.part(name)? else {
            return Ok(None);
        };
        if size > max {
            return Err(self.bad(format!("{name} has {size} bytes; at most {max} are read")));
        }
        let mut bytes = Vec::new();
        part.read_to_end(&mut bytes)
            .map_err(|error| self.bad(format!("{name}: {error}")))?;
        Ok(Some(bytes))
    }

    /// Has an image in `layout`; nothing when it isn't here. With `any`, the
    /// only image there is is the one that is meant, whatever its name.
    pub(crate) fn pull(
        &self,
        image: &Reference,
        any: bool,
        layout: &Layout,
        progress: &Progress,
    ) -> Result<Option<Pulled>, SourceError> {
        if self.part("oci-layout")?.is_some() {
            return self.pull_oci(image, any, layout, progress);
        }
        match self.read("manifest.json", MAX_DOCUMENT)? {
            Some(saved) => self.pull_saved(&saved, image, any, layout, progress),
            None => Err(self.bad(
                "it is neither an OCI layout nor what `docker save` writes: it has neither oci-layout nor manifest.json",
            )),
        }
    }

    fn pull_oci(
        &self,
        image: &Reference,
        any: bool,
        layout: &Layout,
        progress: &Progress,
    ) -> Result<Option<Pulled>, SourceError> {
        let index = self
            .read("index.json", MAX_DOCUMENT)?
            .ok_or_else(|| self.bad("it has no index.json"))?;
        let index: ImageIndex = serde_json::from_slice(&index)
            .map_err(|error| self.bad(format!("index.json: {error}")))?;
        let all = index.manifests();
        let pinned = image.digest();
        let meant = |descriptor: &&Descriptor| match pinned {
            Some(digest) => descriptor.digest().as_ref() == digest.as_str(),
            None => names(descriptor, image),
        };
        let found = all.iter().find(meant).or_else(|| match all.as_slice() {
            [only] if any && pinned.is_none() => Some(only),
            _ => None,
        });
        let Some(found) = found else {
            return Ok(None);
        };
        let mut digest = Digest::try_from(found.digest()).map_err(LayoutError::from)?;
        let mut index = None;
        for _ in 0..MAX_DEPTH {
            let document = self.document(&digest)?;
            let Content::Index(list) = &document.content else {
                return self
                    .take(&document, index, image, layout, progress)
                    .map(Some);
            };
            put(layout, &document)?;
            index.get_or_insert(digest);
            digest = choose(list).map_err(|reason| self.bad(reason))?;
        }
        Err(self.bad(format!("its indexes nest more than {MAX_DEPTH} deep")))
    }

    fn document(&self, digest: &Digest) -> Result<Document, SourceError> {
        let bytes = self
            .read(&format!("blobs/sha256/{}", digest.hex()), MAX_DOCUMENT)?
            .ok_or_else(|| self.bad(format!("it lacks the manifest {digest}")))?;
        let document =
            read(bytes, None).map_err(|reason| self.bad(format!("{digest}: {reason}")))?;
        match document.digest == *digest {
            true => Ok(document),
            false => Err(self.bad(format!(
                "the manifest {digest} has digest {}: it is damaged",
                document.digest
            ))),
        }
    }

    fn take(
        &self,
        document: &Document,
        index: Option<Digest>,
        image: &Reference,
        layout: &Layout,
        progress: &Progress,
    ) -> Result<Pulled, SourceError> {
        let Content::Image(manifest) = &document.content else {
            return Err(self.bad("it holds an index where an image should be"));
        };
        let blobs: Vec<&Descriptor> = std::iter::once(manifest.config())
            .chain(manifest.layers())
            .collect();
        progress.expect(blobs.iter().map(|blob| blob.size()).sum());
        for blob in blobs {
            let digest = Digest::try_from(blob.digest()).map_err(LayoutError::from)?;
            let name = format!("blobs/sha256/{}", digest.hex());
            self.copy(&name, &digest, Some(blob.size()), layout, progress)?;
        }
        put(layout, document)?;
        Ok(complete(&image.to_string(), document, index, layout)?)
    }

    fn pull_saved(
        &self,
        saved: &[u8],
        image: &Reference,
        any: bool,
        layout: &Layout,
        progress: &Progress,
    ) -> Result<Option<Pulled>, SourceError> {
        let saved: Vec<Saved> = serde_json::from_slice(saved)
            .map_err(|error| self.bad(format!("manifest.json: {error}")))?;
        let tagged = saved.iter().find(|saved| {
            let tags = saved.repo_tags.iter().flatten();
            tags.filter_map(|tag| tag.parse().ok())
                .any(|tag: Reference| image.is_also(&tag))
        });
        let found = tagged.or(match saved.as_slice() {
            [only] if any => Some(only),
            _ => None,
        });
        let Some(found) = found else {
            return Ok(None);
        };
        let config = self
            .read(&found.config, MAX_DOCUMENT)?
            .ok_or_else(|| self.bad(format!("it lacks the config {}", found.config)))?;
        let layers = diff_ids(&config).map_err(|reason| self.bad(reason))?;
        if layers.len() != found.layers.len() {
            return Err(self.bad(format!(
                "it has {} layers, its config lists {}",
                found.layers.len(),
                layers.len()
            )));
        }
        for (name, digest) in found.layers.iter().zip(&layers) {
            if let Some((_, size)) = self.part(name)? {
                progress.expect(size);
            }
            self.copy_layer(name, digest, layout, progress)?;
        }
        let config = layout.put_blob_bytes(&config, CONFIG)?;
        synthesize(&config, &layers, image, layout)
    }

    /// Copies a layer into the layout, unless it is there. Some tools compress
    /// the layers of an archive; its config knows the digest of what is inside.
    fn copy_layer(
        &self,
        name: &str,
        digest: &Digest,
        layout: &Layout,
        progress: &Progress,
    ) -> Result<(), SourceError> {
        let failed = |error: std::io::Error| self.bad(format!("{name}: {error}"));
        let mut magic = Vec::new();
        let part = self.part(name)?;
        if let Some((part, _)) = part {
            part.take(4).read_to_end(&mut magic).map_err(failed)?;
        }
        let Some((part, size)) = self.part(name)?.filter(|_| is_compressed(&magic)) else {
            return self.copy(name, digest, None, layout, progress);
        };
        if !layout.blob_path(digest).is_file() {
            let mut blob = layout.begin_blob()?;
            let mut content = decompressed(&magic, part)
                .map_err(failed)?
                .take(MAX_LAYER + 1);
            let length = std::io::copy(&mut content, &mut blob).map_err(failed)?;
            if length > MAX_LAYER {
                return Err(self.bad(format!("{name} unpacks to more than {MAX_LAYER} bytes")));
            }
            if let Err(actual) = blob.finish_as(digest)? {
                return Err(self.bad(format!(
                    "the content of {name} has digest {actual}, expected {digest}: it is damaged"
                )));
            }
        }
        progress.add(size);
        Ok(())
    }

    /// Copies a file into the layout, unless it is there.
    fn copy(
        &self,
        name: &str,
        digest: &Digest,
        expected: Option<u64>,
        layout: &Layout,
        progress: &Progress,
    ) -> Result<(), SourceError> {
        let (mut part, size) = self
            .part(name)?
            .ok_or_else(|| self.bad(format!("it lacks {name}, of digest {digest}")))?;
        if expected.is_some_and(|expected| expected != size) {
            return Err(self.bad(format!(
                "{name} has {size} bytes, expected {}",
                expected.unwrap_or_default()
            )));
        }
        if !layout.has_blob(digest, size) {
            let mut blob = layout.begin_blob()?;
            std::io::copy(&mut part, &mut blob)
                .map_err(|error| self.bad(format!("{name}: {error}")))?;
            if let Err(actual) = blob.finish_as(digest)? {
                return Err(self.bad(format!(
                    "{name} has digest {actual}, expected {digest}: it is damaged, or compressed where it may not be"
                )));
            }
        }
        progress.add(size);
        Ok(())
    }
}

fn is_compressed(magic: &[u8]) -> bool {
    magic.starts_with(&GZIP) || magic.starts_with(&ZSTD)
}

fn decompressed(magic: &[u8], part: Part) -> std::io::Result<Box<dyn Read>> {
    let reader = BufReader::with_capacity(BUFFER, part);
    if magic.starts_with(&GZIP) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader)));
    }
    let mut decoder = zstd::Decoder::with_buffer(reader)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(Box::new(decoder))
}

/// Whether the descriptor has the image's name.
fn names(descriptor: &Descriptor, image: &Reference) -> bool {
    let annotations = descriptor.annotations().as_ref();
    [CONTAINERD_NAME, REF_NAME]
        .iter()
        .filter_map(|key| annotations?.get(*key)?.parse::<Reference>().ok())
        .any(|name| image.is_also(&name))
}

fn put(layout: &Layout, document: &Document) -> Result<(), SourceError> {
    if !layout.has_blob(&document.digest, document.bytes.len() as u64) {
        layout.put_blob_bytes(&document.bytes, &document.media_type)?;
    }
    Ok(())
}

/// Digests of the uncompressed layers, as a config lists them.
fn diff_ids(config: &[u8]) -> Result<Vec<Digest>, String> {
    let config: Value = serde_json::from_slice(config)
        .map_err(|error| format!("its config is malformed: {error}"))?;
    config
        .pointer("/rootfs/diff_ids")
        .and_then(Value::as_array)
        .ok_or("its config lists no layers")?
        .iter()
        .map(|digest| digest.as_str().unwrap_or_default().parse())
        .collect::<Result<_, crate::digest::BadDigest>>()
        .map_err(|error| error.to_string())
}

/// The image with this config, when it and all its layers are in the layout
/// already.
pub(crate) fn cached(
    config: &Digest,
    image: &Reference,
    layout: &Layout,
) -> Result<Option<Pulled>, SourceError> {
    let Ok(bytes) = layout.read_blob(config, MAX_DOCUMENT) else {
        return Ok(None);
    };
    let Ok(layers) = diff_ids(&bytes) else {
        return Ok(None);
    };
    if !layers.iter().all(|layer| layout.blob_path(layer).is_file()) {
        return Ok(None);
    }
    let config = crate::layout::descriptor(config.clone(), bytes.len() as u64, CONFIG)?;
    synthesize(&config, &layers, image, layout)
}

/// Makes the manifest of an image that has none; nothing when another one is
/// asked for by its digest.
fn synthesize(
    config: &Descriptor,
    layers: &[Digest],
    image: &Reference,
    layout: &Layout,
) -> Result<Option<Pulled>, SourceError> {
    let describe = |digest: &Digest| {
        let path = layout.blob_path(digest);
        let size = std::fs::metadata(&path).map_err(|source| LayoutError::Io {
            action: "read",
            path,
            source,
        })?;
        Ok(json!({ "mediaType": LAYER, "digest": digest, "size": size.len() }))
    };
    let layers: Vec<Value> = layers
        .iter()
        .map(describe)
        .collect::<Result<_, LayoutError>>()?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": config.digest(), "size": config.size() },
        "layers": layers,
    });
    let document =
        read(manifest.to_string().into_bytes(), None).map_err(|reason| SourceError::Malformed {
            place: image.to_string(),
            reason,
        })?;
    if image
        .digest()
        .is_some_and(|digest| *digest != document.digest)
    {
        return Ok(None);
    }
    put(layout, &document)?;
    Ok(Some(complete(&image.to_string(), &document, None, layout)?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// An archive with one layer, as it lies in the archive.
    fn archive(path: &Path, content: &[u8], layer: &[u8]) {
        let digest = Digest::of(content);
        let config = json!({
            "os": "linux", "architecture": "amd64",
            "rootfs": { "type": "layers", "diff_ids": [digest.as_str()] },
        });
        let list = json!([{
            "Config": "config.json", "RepoTags": ["docker.io/library/app:1"],
            "Layers": ["layer.tar.gz"],
        }]);
        let mut tar = tar::Builder::new(File::create(path).unwrap());
        for (name, bytes) in [
            ("config.json", config.to_string().as_bytes()),
            ("layer.tar.gz", layer),
            ("manifest.json", list.to_string().as_bytes()),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes).unwrap();
        }
        tar.into_inner().unwrap();
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn compressed_layers_of_an_archive_are_the_same_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        let content = b"a layer".repeat(1000);
        let progress = Progress::new("x", Arc::new(event::Discard));
        let pull = |name: &str| {
            let layout = Layout::open_or_create(dir.path().join(name)).unwrap();
            let image = "app:1".parse().unwrap();
            let bundle = Bundle::open(&path).unwrap();
            bundle.pull(&image, false, &layout, &progress)
        };
        let mut pulled = Vec::new();
        let zstd = zstd::encode_all(&content[..], 3).unwrap();
        for (name, layer) in [
            ("plain", content.clone()),
            ("gz", gzip(&content)),
            ("zst", zstd),
        ] {
            archive(&path, &content, &layer);
            pulled.push(pull(name).unwrap().unwrap().manifest.digest().to_string());
            // Again, from what is there.
            assert!(pull(name).unwrap().is_some());
        }
        assert_eq!(pulled[0], pulled[1]);
        assert_eq!(pulled[0], pulled[2]);

        archive(&path, &content, &gzip(b"another"));
        let error = pull("other").unwrap_err().to_string();
        assert!(
            error.contains("the content of layer.tar.gz has digest"),
            "{error}"
        );
        let cut = gzip(&content);
        archive(&path, &content, &cut[..cut.len() - 9]);
        assert!(pull("cut").is_err());
    }
}
