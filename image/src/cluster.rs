//! What the blobs of a cluster image mean.
//!
//! In: an [`Image`]. Out: its [`ClusterConfig`], the base's [`BaseConfig`] and
//! the blobs of every application image, each document read within a limit
//! and verified. The root is an OCI image index that lists the cluster
//! artifact, the base and every application image.

use std::collections::BTreeMap;
use std::str::FromStr;

use oci_spec::image::{
    Descriptor, DescriptorBuilder, Digest, ImageIndex, ImageIndexBuilder, ImageManifest,
    ImageManifestBuilder, MediaType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::file::archive::Rest;
use crate::layer::Compression;
use crate::{Damage, Error, Image, Result, Writer};

/// `artifactType` of the cluster's manifest.
const CLUSTER_ARTIFACT: &str = "application/vnd.gravitational.cluster.v1";
/// Media type of the [`ClusterConfig`].
const CLUSTER_CONFIG: &str = "application/vnd.gravitational.cluster.config.v1+json";
/// Media type of the resolved Image Manifest.
pub const MANIFEST_YAML: &str = "application/vnd.gravitational.manifest.v1+yaml";
/// `artifactType` of a base image.
pub const BASE_ARTIFACT: &str = "application/vnd.gravitational.base.v1";
/// Media type of the [`BaseConfig`].
pub const BASE_CONFIG: &str = "application/vnd.gravitational.base.config.v1+json";
/// Media type of the static `gravity` program in a base image.
pub const GRAVITY_ELF: &str = "application/vnd.gravitational.gravity.v1";
/// Media type of an uncompressed layer.
pub const LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// Version of [`ClusterConfig`].
pub const CONFIG_VERSION: u32 = 1;
/// Most layers of an image; the kernel mounts no more than 500.
const MAX_LAYERS: usize = 500;
/// Most bytes of a document: an OCI manifest, an index, a config, the Image Manifest
/// with its texts.
pub const MAX_DOCUMENT: u64 = 8 << 20;

/// The cluster, without what lies in blobs of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// [`CONFIG_VERSION`] of the writer.
    pub version: u32,
    /// `metadata.name` of the Image Manifest.
    pub name: String,
    /// `metadata.resourceVersion` of the Image Manifest.
    pub image_version: String,
    /// `metadata.description`, or nothing.
    #[serde(default)]
    pub description: String,
    /// The base.
    pub base: BaseReference,
    /// Digest of the image manifest of each profile with a planet of its own;
    /// all others take the base's root filesystem.
    #[serde(default)]
    pub planets: BTreeMap<String, String>,
    /// The application images.
    pub images: Vec<ApplicationImage>,
    /// Certificates, PEM, of those who may sign licenses for it, where it
    /// demands one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license_authorities: Option<String>,
    /// Digest of the resolved Image Manifest.
    pub manifest: String,
    /// Digest of the tar with the resources.
    pub resources: String,
    /// What an archive with the image has behind it. Images of before have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Rest>,
}

/// Which base a cluster was built on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseReference {
    /// Name in the Hub, such as `gravity:6.0.0`.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: String,
}

/// One container image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationImage {
    /// Name in the cluster's registry, such as
    /// `leader.telekube.local:5000/gravitational/debian-tall:stretch`.
    pub reference: String,
    /// Name where it was pulled from.
    pub source: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Digest of the index of several platforms that `reference` is pinned to
    /// and that lists the manifest; the others are not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
}

/// What a base image says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseConfig {
    /// Version of the base, such as `6.0.0`.
    pub version: String,
    /// Version of the planet's configuration schema that it takes.
    pub planet_config_version: u32,
    /// Product versions that it fits, as a semver requirement.
    pub product_versions: String,
    /// What it runs on, such as `linux/amd64`.
    pub platform: String,
    /// What it consists of.
    pub components: Vec<Component>,
}

/// One program or package of a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Name, such as `kubernetes`.
    pub name: String,
    /// Version, such as `v1.37.2`.
    pub version: String,
    /// SPDX expression, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
}

/// Where the parts of the base are.
#[derive(Debug, Clone)]
pub struct Base {
    /// What it says of itself.
    pub config: BaseConfig,
    /// Digest of the root filesystem's tar.
    pub rootfs: String,
    /// Digest of the `gravity` program.
    pub gravity: String,
}

/// The root filesystem of a planet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planet {
    /// Digest that stands for all of it.
    pub digest: String,
    /// Its layers, the lowest, which is the base's root filesystem, first.
    pub layers: Vec<PlanetLayer>,
}

/// One layer of a [`Planet`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanetLayer {
    /// Digest of the blob.
    pub digest: String,
    /// Media type of the layer, which tells its compression.
    pub media_type: String,
}

/// A cluster image whose documents were read.
#[derive(Debug, Clone)]
pub struct ClusterImage {
    /// The file.
    pub image: Image,
    /// The cluster.
    pub config: ClusterConfig,
    /// The root: every manifest in the image.
    pub index: ImageIndex,
}

impl ClusterImage {
    /// Follows the root of `image` to the cluster's config.
    ///
    /// # Errors
    /// [`Error::Document`] when it is no cluster image, or one of a later
    /// version; [`Error::MissingBlob`] when it names what it does not hold.
    pub fn open(image: Image) -> Result<Self> {
        let index: ImageIndex = document(&image, image.root(), "the root index")?;
        let mut found = None;
        for descriptor in index.manifests() {
            let digest = descriptor.digest().to_string();
            if image.blob(&digest).is_none() {
                return Err(Error::MissingBlob { digest });
            }
            if kind(descriptor.artifact_type()) == Some(CLUSTER_ARTIFACT)
                && found.replace(digest).is_some()
            {
                return Err(invalid("the root index", "lists two clusters"));
            }
        }
        let digest = found.ok_or_else(|| invalid("the root index", "lists no cluster"))?;
        let manifest: ImageManifest = document(&image, &digest, "the cluster's manifest")?;
        if kind(manifest.artifact_type()) != Some(CLUSTER_ARTIFACT) {
            return Err(invalid(
                "the cluster's manifest",
                "is of another artifact type",
            ));
        }
        let config = manifest.config().digest().to_string();
        let config: serde_json::Value = document(&image, &config, "the cluster's config")?;
        // The version first: fields of a later one may differ.
        let version = config.get("version").and_then(serde_json::Value::as_u64);
        if version != Some(u64::from(CONFIG_VERSION)) {
            let reason = format!(
                "has version {}, this program reads {CONFIG_VERSION}: use the program inside that file",
                version.map_or("none".into(), |v| v.to_string())
            );
            return Err(invalid("the cluster's config", reason));
        }
        let config: ClusterConfig = serde_json::from_value(config)
            .map_err(|e| invalid("the cluster's config", e.to_string()))?;
        let all = [&config.base.digest, &config.manifest, &config.resources];
        let images = config
            .images
            .iter()
            .flat_map(|image| std::iter::once(&image.digest).chain(&image.index));
        for digest in all.into_iter().chain(images).chain(config.planets.values()) {
            if image.blob(digest).is_none() {
                return Err(Error::MissingBlob {
                    digest: digest.clone(),
                });
            }
        }
        Ok(Self {
            image,
            config,
            index,
        })
    }

    /// Compares what an archive has around the image with what was built; finds
    /// nothing where the image is alone. Of one whose config says nothing of the
    /// archive, only the header can be compared.
    pub fn verify_archive(&self) -> Vec<Damage> {
        self.image.verify_archive(self.config.archive.as_ref())
    }

    /// The resolved Image Manifest, as YAML.
    ///
    /// # Errors
    /// When it is damaged or not text.
    pub fn manifest_yaml(&self) -> Result<String> {
        let bytes = self
            .image
            .read_blob_bytes(&self.config.manifest, MAX_DOCUMENT)?;
        String::from_utf8(bytes).map_err(|e| invalid("the Image Manifest", e.to_string()))
    }

    /// Reads the manifest of an image that the cluster holds.
    ///
    /// # Errors
    /// When it is not there, damaged, or no image manifest.
    pub fn image_manifest(&self, digest: &str) -> Result<ImageManifest> {
        document(&self.image, digest, &format!("the image manifest {digest}"))
    }

    /// The blobs of one image, all of which are there: manifest, config,
    /// layers. Those that occur twice are listed once. Of an index it is the
    /// index and the blobs of its manifests that are there.
    ///
    /// # Errors
    /// [`Error::MissingBlob`], or what is wrong with the manifest.
    pub fn image_blobs(&self, digest: &str) -> Result<Vec<String>> {
        let indexes = || {
            self.config
                .images
                .iter()
                .filter_map(|image| image.index.as_deref())
        };
        if indexes().any(|index| index == digest) {
            let what = format!("the image index {digest}");
            let index: ImageIndex = document(&self.image, digest, &what)?;
            let mut blobs = vec![digest.to_owned()];
            let listed = index.manifests().iter().map(|one| one.digest().to_string());
            for manifest in listed.filter(|manifest| self.image.blob(manifest).is_some()) {
                // An index of indexes would go on without end.
                if indexes().all(|index| index != manifest) {
                    blobs.extend(self.image_blobs(&manifest)?);
                }
            }
            return Ok(blobs);
        }
        let manifest = self.image_manifest(digest)?;
        let mut blobs = vec![digest.to_owned()];
        for part in std::iter::once(manifest.config()).chain(manifest.layers()) {
            let digest = part.digest().to_string();
            if self.image.blob(&digest).is_none() {
                return Err(Error::MissingBlob { digest });
            }
            if !blobs.contains(&digest) {
                blobs.push(digest);
            }
        }
        Ok(blobs)
    }

    /// The planet of nodes of this profile: its own, or the base's.
    ///
    /// # Errors
    /// When a layer is missing or of an unknown kind, or the lowest isn't the
    /// base's root filesystem.
    pub fn planet(&self, profile: &str) -> Result<Planet> {
        let rootfs = self.base()?.rootfs;
        let Some(digest) = self.config.planets.get(profile) else {
            return Ok(Planet {
                digest: rootfs.clone(),
                layers: vec![PlanetLayer {
                    digest: rootfs,
                    media_type: LAYER_TAR.into(),
                }],
            });
        };
        let what = || format!("the planet of profile {profile}");
        let mut layers = Vec::new();
        for layer in self.image_manifest(digest)?.layers() {
            let (digest, media_type) = (layer.digest().to_string(), layer.media_type().to_string());
            Compression::of(&media_type)?;
            if self.image.blob(&digest).is_none() {
                return Err(Error::MissingBlob { digest });
            }
            layers.push(PlanetLayer { digest, media_type });
        }
        if layers.len() > MAX_LAYERS {
            return Err(invalid(
                &what(),
                format!("has {} layers, more than {MAX_LAYERS}", layers.len()),
            ));
        }
        if layers.first().is_none_or(|layer| layer.digest != rootfs) {
            return Err(invalid(
                &what(),
                format!("does not begin with the base's root filesystem, {rootfs}"),
            ));
        }
        Ok(Planet {
            digest: digest.clone(),
            layers,
        })
    }

    /// The base and its parts.
    ///
    /// # Errors
    /// When a part is missing or not what it must be.
    pub fn base(&self) -> Result<Base> {
        let what = format!("the base image {}", self.config.base.reference);
        let manifest: ImageManifest = document(&self.image, &self.config.base.digest, &what)?;
        if kind(manifest.artifact_type()) != Some(BASE_ARTIFACT) {
            return Err(invalid(&what, "is of another artifact type"));
        }
        let config = document(&self.image, manifest.config().digest().as_ref(), &what)?;
        let layer = |wanted: &str| {
            manifest
                .layers()
                .iter()
                .find(|layer| layer.media_type().as_ref() == wanted)
                .map(|layer| layer.digest().to_string())
        };
        let gravity = layer(GRAVITY_ELF)
            .ok_or_else(|| invalid(&what, format!("has no layer of type {GRAVITY_ELF}")))?;
        let rootfs = layer(LAYER_TAR)
            .ok_or_else(|| invalid(&what, format!("has no layer of type {LAYER_TAR}")))?;
        Ok(Base {
            config,
            rootfs,
            gravity,
        })
    }
}

/// Writes what leads from the root to the cluster: config, artifact manifest
/// and index; returns the root's digest. `parts` are descriptors of the blobs
/// that the config names, `base` and `images` of manifests; they and all that
/// they refer to were added before.
///
/// # Errors
/// When a digest is malformed or the file can't be written.
pub fn write_root(
    writer: &mut Writer,
    config: &ClusterConfig,
    parts: Vec<Descriptor>,
    base: Descriptor,
    images: Vec<Descriptor>,
) -> Result<String> {
    let (config, _) = write_json(writer, config, CLUSTER_CONFIG)?;
    let artifact = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .artifact_type(MediaType::from(CLUSTER_ARTIFACT))
        .config(config)
        .layers(parts)
        .build()
        .map_err(|e| invalid("the cluster's manifest", e.to_string()))?;
    let (mut cluster, _) = write_json(writer, &artifact, MediaType::ImageManifest.as_ref())?;
    cluster.set_artifact_type(Some(MediaType::from(CLUSTER_ARTIFACT)));
    let mut manifests = vec![cluster, base];
    manifests.extend(images);
    let index = ImageIndexBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .build()
        .map_err(|e| invalid("the root index", e.to_string()))?;
    write_json(writer, &index, MediaType::ImageIndex.as_ref()).map(|(_, digest)| digest)
}

/// A descriptor of content with this digest and size in bytes.
///
/// # Errors
/// [`Error::BadDigest`].
pub fn descriptor(digest: &str, size: u64, media_type: &str) -> Result<Descriptor> {
    crate::digest::check(digest)?;
    let digest = Digest::from_str(digest).map_err(|_| Error::BadDigest {
        digest: digest.into(),
    })?;
    DescriptorBuilder::default()
        .media_type(MediaType::from(media_type))
        .digest(digest)
        .size(size)
        .build()
        .map_err(|e| invalid("a descriptor", e.to_string()))
}

fn write_json<T: Serialize>(
    writer: &mut Writer,
    value: &T,
    media_type: &str,
) -> Result<(Descriptor, String)> {
    // Maps of OCI types are hash maps; a value sorts them.
    let mut value = serde_json::to_value(value).map_err(|e| invalid(media_type, e.to_string()))?;
    value.sort_all_objects();
    let bytes = serde_json::to_vec(&value).map_err(|e| invalid(media_type, e.to_string()))?;
    let digest = writer.add_blob_bytes(&bytes, media_type)?;
    Ok((descriptor(&digest, bytes.len() as u64, media_type)?, digest))
}

fn kind(media_type: &Option<MediaType>) -> Option<&str> {
    media_type.as_ref().map(AsRef::as_ref)
}

fn invalid(what: &str, reason: impl Into<String>) -> Error {
    Error::Document {
        what: what.into(),
        reason: reason.into(),
    }
}

fn document<T: DeserializeOwned>(image: &Image, digest: &str, what: &str) -> Result<T> {
    let bytes = image.read_blob_bytes(digest, MAX_DOCUMENT)?;
    serde_json::from_slice(&bytes).map_err(|e| invalid(what, e.to_string()))
}

#[cfg(test)]
mod tests;
