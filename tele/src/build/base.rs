//! The base image of a build.
//!
//! In: the hub and what the manifest asks for. Out: a base image that this
//! program can build on.

use anyhow::{Context, Result, bail};
use image::cluster::{BASE_ARTIFACT, BASE_CONFIG, BaseConfig, GRAVITY_ELF, LAYER_TAR};
use manifest::BaseImage;
use oci::layout::MAX_DOCUMENT;
use oci::spec::{Descriptor, ImageManifest};
use oci::{Digest, Hub, Layout, Progress};
use semver::{Version, VersionReq};

/// Name of base images in a hub.
const NAME: &str = "gravity";
/// Version of the planet's configuration schema that this program knows.
const PLANET_CONFIG: u32 = 1;
const PLATFORM: &str = "linux/amd64";

/// A base image in the hub.
#[derive(Debug)]
pub(crate) struct Base {
    /// Its name, such as `gravity:6.0.0`.
    pub(crate) reference: String,
    pub(crate) descriptor: Descriptor,
    /// Digest of its manifest.
    pub(crate) digest: Digest,
    pub(crate) manifest: ImageManifest,
    pub(crate) config: BaseConfig,
    /// The tar of the planet's root filesystem.
    pub(crate) rootfs: Descriptor,
    /// The static program.
    pub(crate) gravity: Digest,
}

impl Base {
    /// Version of its Kubernetes.
    pub(crate) fn kubernetes(&self) -> Option<&str> {
        self.config
            .components
            .iter()
            .find(|part| part.name == "kubernetes")
            .map(|part| part.version.as_str())
    }

    pub(crate) fn describe(&self) -> String {
        match self.kubernetes() {
            Some(version) => format!("Kubernetes {version}"),
            None => format!("version {}", self.config.version),
        }
    }
}

/// The base image that is asked for, else the newest that fits.
pub(crate) fn select(hub: &Layout, wanted: Option<&BaseImage>) -> Result<Base> {
    let version = wanted.and_then(|base| base.version.as_ref());
    let reference = match version {
        Some(version) => format!("{NAME}:{version}"),
        None => newest(hub, wanted.is_some_and(|base| base.stable))?,
    };
    let descriptor = hub
        .resolve(&reference)
        .context("cannot find the base image: `tele ls` lists what there is")?;
    let base = read(hub, &reference, descriptor)
        .with_context(|| format!("cannot use the base image {reference}"))?;
    fits(&base.config).with_context(|| format!("cannot use the base image {reference}"))?;
    Ok(base)
}

/// Has the base image that is asked for, else the newest that fits, in the
/// layout `into`; returns which.
pub(crate) async fn fetch(
    hub: &Hub,
    wanted: Option<&BaseImage>,
    into: &Layout,
    progress: &Progress,
) -> Result<BaseImage> {
    let stable = wanted.is_some_and(|base| base.stable);
    let mut versions = match wanted.and_then(|base| base.version.clone()) {
        Some(version) => vec![version],
        None => {
            let tags = hub.tags(NAME).await?;
            let versions = tags.iter().map(|tag| oci::hub::version(tag));
            versions
                .filter_map(|version| Version::parse(&version).ok())
                .filter(|version| !stable || version.pre.is_empty())
                .collect()
        }
    };
    versions.sort();
    let mut unfit = None;
    while let Some(version) = versions.pop() {
        let tag = oci::hub::tag(&version.to_string());
        let entry = hub.entry(NAME, &tag).await.with_context(|| {
            format!("cannot find the base image {NAME}:{version}: `tele ls` lists what there is")
        })?;
        let config = entry.manifest.config().clone();
        if config.media_type().as_ref() == BASE_CONFIG && config.size() <= MAX_DOCUMENT {
            let blobs = hub
                .fetch(NAME, std::slice::from_ref(&config), into, progress)
                .await?;
            let config: BaseConfig = blobs.read_json(&Digest::try_from(config.digest())?)?;
            if let Err(error) = fits(&config) {
                unfit = Some(error.context(format!("cannot use the base image {NAME}:{version}")));
                continue;
            }
        }
        hub.fetch(NAME, entry.manifest.layers(), into, progress)
            .await?;
        progress.finish();
        into.put_blob_bytes(&entry.bytes, entry.descriptor.media_type().as_ref())?;
        into.tag(&format!("{NAME}:{version}"), entry.descriptor)?;
        return Ok(BaseImage {
            name: NAME.into(),
            version: Some(version),
            stable,
        });
    }
    match unfit {
        Some(error) => Err(error),
        None => bail!("the hub {} holds no base image", hub.describe()),
    }
}

/// Whether the layout has all of a base image, with this digest.
pub(crate) fn is_whole(hub: &Layout, reference: &str, digest: &str) -> bool {
    let found = hub.resolve(reference);
    found.is_ok_and(|descriptor| {
        let manifest = hub.read_manifest(&descriptor);
        descriptor.digest().as_ref() == digest
            && manifest.is_ok_and(|manifest| {
                holds(hub, manifest.layers().iter().chain([manifest.config()]))
            })
    })
}

/// Whether the layout has these blobs, in full length.
pub(crate) fn holds<'a>(layout: &Layout, blobs: impl IntoIterator<Item = &'a Descriptor>) -> bool {
    blobs.into_iter().all(|blob| {
        let digest = Digest::try_from(blob.digest());
        digest.is_ok_and(|digest| layout.has_blob(&digest, blob.size()))
    })
}

/// The newest that fits, else why the newest doesn't.
fn newest(hub: &Layout, stable: bool) -> Result<String> {
    let mut versions: Vec<(Version, Descriptor)> = hub
        .tags()?
        .into_iter()
        .filter_map(|(name, descriptor)| {
            let version = name.strip_prefix(NAME)?.strip_prefix(':')?;
            Some((Version::parse(version).ok()?, descriptor))
        })
        .filter(|(version, _)| !stable || version.pre.is_empty())
        .collect();
    versions.sort_by(|a, b| b.0.cmp(&a.0));
    let reference = |version: &Version| format!("{NAME}:{version}");
    let fitting = versions.iter().find(|(version, descriptor)| {
        read(hub, &reference(version), descriptor.clone())
            .and_then(|base| fits(&base.config))
            .is_ok()
    });
    match fitting.or(versions.first()) {
        Some((version, _)) => Ok(reference(version)),
        None => bail!(
            "the hub {} holds no base image: `make base` makes one",
            hub.dir().display()
        ),
    }
}

fn read(hub: &Layout, reference: &str, descriptor: Descriptor) -> Result<Base> {
    let digest = Digest::try_from(descriptor.digest())?;
    let manifest = hub.read_manifest(&descriptor)?;
    if manifest.artifact_type().as_ref().map(AsRef::as_ref) != Some(BASE_ARTIFACT) {
        bail!("it is not a base image, but of another artifact type");
    }
    if manifest.config().media_type().as_ref() != BASE_CONFIG {
        bail!(
            "its config has the type {}, expected {BASE_CONFIG}",
            manifest.config().media_type().as_ref()
        );
    }
    let config = hub.read_json(&Digest::try_from(manifest.config().digest())?)?;
    let layer = |kind: &str| {
        let mut layers = manifest.layers().iter();
        let found = layers.find(|layer| layer.media_type().as_ref() == kind);
        found.with_context(|| format!("it has no layer of type {kind}"))
    };
    let gravity = Digest::try_from(layer(GRAVITY_ELF)?.digest())?;
    let rootfs = layer(LAYER_TAR)?.clone();
    Ok(Base {
        reference: reference.into(),
        descriptor,
        digest,
        manifest,
        config,
        rootfs,
        gravity,
    })
}

fn fits(base: &BaseConfig) -> Result<()> {
    let product = Version::parse(env!("CARGO_PKG_VERSION"))?;
    let versions = VersionReq::parse(&base.product_versions).with_context(|| {
        format!(
            "its product versions `{}` are malformed",
            base.product_versions
        )
    })?;
    if !versions.matches(&product) {
        bail!(
            "it fits the product versions {}, this is {product}: take another base image or another tele",
            base.product_versions
        );
    }
    if base.planet_config_version != PLANET_CONFIG {
        bail!(
            "its planet takes configuration version {}, this program writes {PLANET_CONFIG}: take another base image",
            base.planet_config_version
        );
    }
    if base.platform != PLATFORM {
        bail!("it is for {}, expected {PLATFORM}", base.platform);
    }
    Ok(())
}
