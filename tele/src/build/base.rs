//! The base image of a build.
//!
//! In: the hub and what the manifest asks for. Out: a base image that this
//! program can build on.

use anyhow::{Context, Result, bail};
use image::cluster::{BASE_ARTIFACT, BASE_CONFIG, BaseConfig, GRAVITY_ELF, LAYER_TAR};
use manifest::BaseImage;
use oci::spec::{Descriptor, ImageManifest};
use oci::{Digest, Layout};
use semver::{Version, VersionReq};

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
        Some(version) => format!("gravity:{version}"),
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

fn newest(hub: &Layout, stable: bool) -> Result<String> {
    let tags = hub.tags()?;
    let versions = tags
        .iter()
        .filter_map(|(name, _)| Version::parse(name.strip_prefix("gravity:")?).ok());
    match versions
        .filter(|version| !stable || version.pre.is_empty())
        .max()
    {
        Some(version) => Ok(format!("gravity:{version}")),
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
