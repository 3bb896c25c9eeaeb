//! Custom planet images: a base's planet with layers of the vendor's on top.
//!
//! In: the images that `systemOptions.baseImage` names, the hub, registries.
//! Out: images that were checked to descend from this build's base, each with
//! the manifest by which the cluster image refers to it. That manifest names
//! the base's own root filesystem as its lowest layer, however the tool that
//! built the image has compressed its copy, so that only the layers on top are
//! added.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use event::Sink;
use image::layer::Compression;
use manifest::Manifest;
use oci::hub::HubError;
use oci::layout::MAX_DOCUMENT;
use oci::spec::{Descriptor, ImageConfiguration, ImageManifest, MediaType};
use oci::{Client, Digest, Failure, Hub, Layout, Progress, Reference};
use semver::Version;

use super::base::{self, Base};
use super::lock::Locked;

/// Most bytes that a layer decompresses to.
const MAX_LAYER: u64 = 64 << 30;

/// A planet image that was found and checked.
#[derive(Debug, Clone)]
pub(crate) struct Planet {
    /// Its name, such as `custom-planet:1.0.0`.
    pub(crate) name: String,
    /// Profiles whose nodes run it; `""` stands for nodes without one.
    pub(crate) profiles: Vec<String>,
    /// Digest of the manifest that its name led to.
    pub(crate) resolved: Digest,
    /// Where its blobs are.
    pub(crate) layout: Layout,
    /// Its manifest in the cluster image.
    pub(crate) manifest: Vec<u8>,
    /// Descriptor of that manifest.
    pub(crate) descriptor: Descriptor,
    /// Its config, as it was built.
    pub(crate) config: Descriptor,
    /// Its layers without the base's.
    pub(crate) layers: Vec<Descriptor>,
}

impl Planet {
    /// Which profiles take it, with its digest.
    pub(crate) fn of_profiles(&self) -> impl Iterator<Item = (String, String)> {
        let digest = self.descriptor.digest().to_string();
        self.profiles
            .iter()
            .map(move |profile| (profile.clone(), digest.clone()))
    }
}

/// The planet images that a manifest names, with the profiles that take them.
pub(crate) fn named(manifest: &Manifest) -> BTreeMap<String, Vec<String>> {
    let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let everywhere = manifest.system_options.base_image.as_ref();
    if let Some(image) = everywhere {
        // A node without a profile.
        named.entry(image.clone()).or_default().push(String::new());
    }
    for profile in &manifest.node_profiles {
        if let Some(image) = profile.system_options.base_image.as_ref().or(everywhere) {
            let profiles = named.entry(image.clone()).or_default();
            profiles.push(profile.name.clone());
        }
    }
    named
}

/// Where planet images are looked for, in this order.
pub(crate) struct Places<'a> {
    /// The registry that fills `hub`.
    pub(crate) remote: Option<&'a Hub>,
    pub(crate) hub: &'a Layout,
    /// Finds container images and puts them into `cache`.
    pub(crate) client: &'a Client,
    pub(crate) cache: &'a Layout,
    /// What names are held to.
    pub(crate) locked: &'a Locked,
}

/// Finds and checks all planet images of a manifest.
pub(crate) async fn select(
    manifest: &Manifest,
    base: &Base,
    places: &Places<'_>,
    sink: &Arc<dyn Sink>,
) -> Result<Vec<Planet>> {
    let mut planets = Vec::new();
    for (name, profiles) in named(manifest) {
        let what = || format!("cannot use the planet image {name}");
        version(&name).with_context(what)?;
        let (layout, descriptor) = places.find(&name, sink).await.with_context(what)?;
        let planet = check(&name, profiles, base, layout, &descriptor).with_context(what)?;
        sink.info(&format!(
            "Planet image {name}: {} layers on top of {}",
            planet.layers.len(),
            base.reference
        ));
        planets.push(planet);
    }
    Ok(planets)
}

/// The semantic version that the image's tag must be.
fn version(name: &str) -> Result<Version> {
    let reference: Reference = name.parse()?;
    let tag = match (reference.tag(), reference.digest()) {
        // `latest` is what a name without a tag means.
        (Some(tag), _) if tag != "latest" || name.ends_with(":latest") => tag,
        _ => bail!("it has no tag: name its version, such as {name}:1.0.0"),
    };
    Version::parse(tag).with_context(|| {
        format!("its tag `{tag}` is not a semantic version: tag it with one, such as 1.0.0")
    })
}

impl Places<'_> {
    /// In the hub under its name, as it is or as Buildah calls an image without
    /// a registry; else in its registry. One that is pinned is taken by its
    /// digest, wherever its tag has moved.
    async fn find(&self, name: &str, sink: &Arc<dyn Sink>) -> Result<(Layout, Descriptor)> {
        let progress = Progress::new("planet image", Arc::clone(sink));
        let image = self.locked.pin_planet(name)?;
        let pinned = image.digest();
        for layout in [self.hub, self.cache] {
            if let Some(descriptor) = pinned.and_then(|digest| whole(layout, digest)) {
                return Ok((layout.clone(), descriptor));
            }
        }
        let name = name.split('@').next().unwrap_or(name);
        let names = [name.to_owned(), format!("localhost/{name}")];
        if let Some(remote) = self.remote {
            for name in &names {
                if let Some(descriptor) = self.fetch(remote, name, pinned, &progress).await? {
                    return Ok((self.hub.clone(), descriptor));
                }
            }
        }
        if pinned.is_none() {
            let tags = self.hub.tags()?;
            for name in &names {
                if let Some((_, descriptor)) = tags.iter().find(|(tag, _)| tag == name) {
                    return Ok((self.hub.clone(), descriptor.clone()));
                }
            }
        }
        let pulled = self.client.pull(&image, self.cache, &progress);
        let pulled = pulled.await.with_context(|| {
            let dir = self.hub.dir().display();
            let (hub, copy) = match self.remote {
                Some(remote) => (remote.describe(), format!("tele push {name} --from DIR")),
                None => (
                    dir.to_string(),
                    format!("buildah push {name} oci:{dir}:{name}"),
                ),
            };
            match pinned {
                Some(digest) => format!(
                    "the hub {hub} does not hold it with the digest {digest} either: copy that there; if the lock \
                     file names it, build without --locked, which renews it"
                ),
                None => format!(
                    "the hub {hub} does not hold it either: copy it there, for example by `{copy}`"
                ),
            }
        })?;
        progress.finish();
        Ok((self.cache.clone(), pulled.manifest))
    }

    /// Has an image of the registry in `hub`; nothing when it isn't there.
    async fn fetch(
        &self,
        remote: &Hub,
        image: &str,
        pinned: Option<&Digest>,
        progress: &Progress,
    ) -> Result<Option<Descriptor>> {
        let (name, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
        let wanted = pinned.map_or(tag, Digest::as_str);
        let entry = match remote.entry(name, wanted).await {
            Ok(entry) => entry,
            // A hub holds no name with a port.
            Err(HubError::Failure(Failure::NotFound { .. }) | HubError::BadName { .. }) => {
                return Ok(None);
            }
            // It may have it: a stranger's image of that name must not do.
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("cannot take {image} from the hub {}", remote.describe())
                });
            }
        };
        let digest = entry.descriptor.digest();
        if let Some(pinned) = pinned.filter(|pinned| pinned.as_str() != digest.as_ref()) {
            bail!("the hub {} gives {digest} for {pinned}", remote.describe());
        }
        let blobs: Vec<_> = needed(&entry.manifest).cloned().collect();
        remote.fetch(name, &blobs, self.hub, progress).await?;
        progress.finish();
        let kind = entry.descriptor.media_type().as_ref();
        self.hub.put_blob_bytes(&entry.bytes, kind)?;
        Ok(Some(entry.descriptor))
    }
}

/// All blobs but the lowest layer: that is the base's, which is there, or nothing
/// fits.
fn needed(manifest: &ImageManifest) -> impl Iterator<Item = &Descriptor> {
    let layers = manifest.layers().iter().skip(1);
    layers.chain([manifest.config()])
}

/// The image with this digest, where all that is needed of it is in the layout.
fn whole(layout: &Layout, digest: &Digest) -> Option<Descriptor> {
    let bytes = layout.read_blob(digest, MAX_DOCUMENT).ok()?;
    let manifest: ImageManifest = serde_json::from_slice(&bytes).ok()?;
    let kind = manifest.media_type().clone();
    let kind = kind.unwrap_or(MediaType::ImageManifest);
    let there = base::holds(layout, needed(&manifest));
    let descriptor = oci::layout::descriptor(digest.clone(), bytes.len() as u64, kind.as_ref());
    descriptor.ok().filter(|_| there)
}

/// Checks that an image descends from `base` and that its layers are what its
/// config says.
fn check(
    name: &str,
    profiles: Vec<String>,
    base: &Base,
    layout: Layout,
    descriptor: &Descriptor,
) -> Result<Planet> {
    if !matches!(
        descriptor.media_type(),
        MediaType::ImageManifest | MediaType::Other(_)
    ) {
        bail!(
            "it is of the type {}, not an image for one platform",
            descriptor.media_type()
        );
    }
    let mut manifest: ImageManifest = layout.read_manifest(descriptor)?;
    let resolved = Digest::try_from(descriptor.digest())?;
    let config = manifest.config().clone();
    let configuration: ImageConfiguration =
        layout.read_json(&Digest::try_from(config.digest())?)?;
    let (os, architecture) = (configuration.os(), configuration.architecture());
    if format!("{os}/{architecture}") != base.config.platform {
        bail!(
            "it is for {os}/{architecture}, the base image {} for {}",
            base.reference,
            base.config.platform
        );
    }
    let (layers, contents) = (manifest.layers(), configuration.rootfs().diff_ids());
    if layers.len() != contents.len() {
        bail!(
            "its manifest has {} layers, its config {}",
            layers.len(),
            contents.len()
        );
    }
    let wanted = base.rootfs.digest().to_string();
    let lowest = contents.first().map_or("nothing", String::as_str);
    if lowest != wanted {
        bail!(
            "it does not descend from this build's base image {}: its lowest layer is {lowest}, that of \
             planet:{} is {wanted}; build it again FROM planet:{1}, or name the base image that it was built from \
             as `baseImage`",
            base.reference,
            base.config.version
        );
    }
    let own: Vec<Descriptor> = layers[1..].to_vec();
    for (layer, content) in own.iter().zip(&contents[1..]) {
        verify(&layout, layer, content)?;
    }
    let mut all = vec![base.rootfs.clone()];
    all.extend(own.iter().cloned());
    manifest.set_layers(all);
    manifest.set_media_type(Some(MediaType::ImageManifest));
    // Annotations are a hash map; as a value they have one order.
    let mut value = serde_json::to_value(&manifest)?;
    value.sort_all_objects();
    let bytes = serde_json::to_vec(&value)?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        bail!("its manifest has more than {MAX_DOCUMENT} bytes");
    }
    let descriptor = oci::layout::descriptor(
        Digest::of(&bytes),
        bytes.len() as u64,
        MediaType::ImageManifest.as_ref(),
    )?;
    Ok(Planet {
        name: name.into(),
        profiles,
        resolved,
        layout,
        manifest: bytes,
        descriptor,
        config,
        layers: own,
    })
}

/// Compares a layer and what it decompresses to with their digests: here, so
/// that a damaged one never reaches a customer.
fn verify(layout: &Layout, layer: &Descriptor, content: &str) -> Result<()> {
    let digest = Digest::try_from(layer.digest())?;
    let path = layout.blob_path(&digest);
    oci::layout::verify_file(&path, &digest)?;
    let compression = Compression::of(layer.media_type().as_ref())?;
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut tar = compression.decode(file)?.take(MAX_LAYER);
    let (actual, size) = oci::digest::copy(&mut tar, &mut std::io::sink())
        .with_context(|| format!("its layer {digest} does not decompress"))?;
    if size == MAX_LAYER {
        bail!("its layer {digest} decompresses to more than {MAX_LAYER} bytes");
    }
    if actual.as_str() != content {
        bail!("its layer {digest} holds {actual}, its config says {content}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profiles_own_image_comes_before_the_clusters() {
        let text = "\
apiVersion: cluster.gravitational.io/v2
kind: Cluster
metadata: {name: a, resourceVersion: 1.0.0}
systemOptions: {baseImage: 'common:1.0.0'}
nodeProfiles:
- {name: db, systemOptions: {baseImage: 'special:2.0.0'}}
- {name: web}
";
        let parse = |text: &str| named(&manifest::parse(text, "app.yaml").unwrap());
        let expected = BTreeMap::from([
            ("common:1.0.0".to_owned(), vec![String::new(), "web".into()]),
            ("special:2.0.0".to_owned(), vec!["db".into()]),
        ]);
        assert_eq!(parse(text), expected);
        let none = text.replace("systemOptions: {baseImage: 'common:1.0.0'}\n", "");
        assert_eq!(parse(&none).len(), 1);
    }

    #[test]
    fn a_tag_is_a_semantic_version() {
        for good in [
            "custom-planet:1.0.0",
            "quay.io/a/planet:5.1.1-1906",
            "localhost:5000/p:1.2.3-rc.1",
        ] {
            version(good).unwrap();
        }
        for (bad, why) in [
            ("custom-planet", "has no tag"),
            ("custom-planet:latest", "`latest` is not a semantic version"),
            ("custom-planet:1.0", "`1.0` is not a semantic version"),
            ("custom-planet:v1.0.0", "`v1.0.0` is not"),
            ("custom planet:1.0.0", "not the name of an image"),
        ] {
            let error = format!("{:#}", version(bad).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }
}
