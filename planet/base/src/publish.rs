//! Publishes a base image into a hub on this machine.
//!
//! In: the planet's root filesystem, its bill of materials and the gravity
//! program. Out: the images `gravity:<version>` and `planet:<version>` in an
//! OCI layout, in which a name always stands for a complete image.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use oci::Digest;
use oci::layout::{self, Layout};
use oci::spec::Descriptor;
use serde_json::{Value, json};

use crate::assemble::Planet;
use crate::file;
use crate::versions::Versions;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What [`publish`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    /// Digest of the manifest of `gravity:<version>`.
    pub(crate) base: String,
    /// Digest of the manifest of `planet:<version>`.
    pub(crate) planet: String,
    /// Whether the hub had other images, or none, under these names.
    pub(crate) changed: bool,
}

/// Publishes both images; blobs that are already there are not written, and
/// those that only the former images had are removed.
///
/// # Errors
/// When the hub can't be written, or `gravity` can't be read; [`check_elf`]
/// tells early whether it is one.
pub(crate) fn publish(
    hub: &Layout,
    versions: &Versions,
    planet: &Planet,
    gravity: &Path,
) -> Result<Published> {
    let (os, architecture) = versions.platform.split_once('/').context("platform")?;
    let rootfs = put_tar(hub, planet)?;
    let program = hub.put_blob_file(gravity, "application/vnd.gravitational.gravity.v1")?;
    let sbom = hub.put_blob_file(&planet.sbom(), "application/vnd.cyclonedx+json")?;
    let base = put_manifest(
        hub,
        &json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.gravitational.base.v1",
            "config": hub.put_blob_bytes(
                &serde_json::to_vec(&config(versions))?,
                "application/vnd.gravitational.base.config.v1+json",
            )?,
            "layers": [&rootfs, &program, &sbom],
        }),
    )?;
    let image_config = json!({
        "architecture": architecture,
        "os": os,
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["/bin/bash"],
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": [planet.digest] },
    });
    let image = put_manifest(
        hub,
        &json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": hub.put_blob_bytes(
                &serde_json::to_vec(&image_config)?,
                "application/vnd.oci.image.config.v1+json",
            )?,
            "layers": [&rootfs],
        }),
    )?;
    let platform = json!({ "architecture": architecture, "os": os });
    let mut changed = false;
    for (name, descriptor) in [("gravity", &base), ("planet", &image)] {
        let mut descriptor = descriptor.clone();
        descriptor.set_platform(Some(serde_json::from_value(platform.clone())?));
        changed |= name_image(hub, &format!("{name}:{}", versions.version), descriptor)?;
    }
    Ok(Published {
        base: base.digest().to_string(),
        planet: image.digest().to_string(),
        changed,
    })
}

/// What the base image says of itself.
fn config(versions: &Versions) -> Value {
    let components: Vec<Value> = versions
        .components
        .iter()
        .map(|c| json!({ "name": c.name, "version": c.version, "license": c.license }))
        .collect();
    json!({
        "version": versions.version,
        "planet_config_version": versions.planet_config_version,
        "product_versions": versions.product_versions,
        "platform": versions.platform,
        "components": components,
    })
}

/// Fails unless the file is a program for Linux.
pub(crate) fn check_elf(path: &Path) -> Result<()> {
    let mut magic = Vec::new();
    let file = File::open(path).with_context(|| {
        format!(
            "{}: build it by `cargo build --release -p gravity`",
            path.display()
        )
    })?;
    file.take(4)
        .read_to_end(&mut magic)
        .with_context(|| path.display().to_string())?;
    ensure!(
        magic == *b"\x7fELF",
        "{}: not a program for Linux (ELF)",
        path.display()
    );
    Ok(())
}

/// The root filesystem, which was hashed when it was made and is not copied
/// where the hub can have a second name for the same file.
fn put_tar(hub: &Layout, planet: &Planet) -> Result<Descriptor> {
    let digest: Digest = planet.digest.parse()?;
    let from = planet.tar();
    if !hub.has_blob(&digest, planet.size) {
        let link = file::beside(&hub.blob_path(&digest));
        let _ = std::fs::remove_file(&link);
        if std::fs::hard_link(&from, &link).is_ok() {
            hub.adopt_verified(&link, &digest)?;
        } else {
            let copied = hub.put_blob_file(&from, LAYER)?;
            ensure!(
                copied.digest().to_string() == planet.digest,
                "{} is {}, expected {}: remove its directory, and it will be made again",
                from.display(),
                copied.digest(),
                planet.digest
            );
        }
    }
    Ok(layout::descriptor(digest, planet.size, LAYER)?)
}

fn put_manifest(hub: &Layout, manifest: &Value) -> Result<Descriptor> {
    let mut descriptor = hub.put_blob_bytes(&serde_json::to_vec(manifest)?, MANIFEST)?;
    if let Some(artifact) = manifest["artifactType"].as_str() {
        descriptor.set_artifact_type(Some(artifact.into()));
    }
    Ok(descriptor)
}

/// Gives an image its name. The result is whether another had it, or none.
fn name_image(hub: &Layout, name: &str, descriptor: Descriptor) -> Result<bool> {
    let tags = hub.tags()?;
    let former = tags.into_iter().find(|tag| tag.0 == name).map(|tag| tag.1);
    if former
        .as_ref()
        .is_some_and(|former| former.digest() == descriptor.digest())
    {
        return Ok(false);
    }
    hub.tag(name, descriptor)?;
    if let Some(former) = former {
        let mut surplus = reachable(hub, &former);
        for (_, image) in hub.tags()? {
            for digest in reachable(hub, &image) {
                surplus.remove(&digest);
            }
        }
        for digest in surplus {
            let _ = std::fs::remove_file(hub.blob_path(&digest));
        }
    }
    Ok(true)
}

/// The digests that an image consists of.
fn reachable(hub: &Layout, image: &Descriptor) -> BTreeSet<Digest> {
    let mut found = BTreeSet::new();
    let mut open = vec![json!(image)];
    while let Some(descriptor) = open.pop() {
        let digest = descriptor["digest"]
            .as_str()
            .unwrap_or_default()
            .parse::<Digest>();
        let Ok(digest) = digest else { continue };
        let media_type = descriptor["mediaType"].as_str().unwrap_or_default();
        let nested = media_type.contains("manifest") || media_type.contains("index");
        if found.insert(digest.clone())
            && nested
            && let Ok(document) = hub.read_json::<Value>(&digest)
        {
            for list in ["manifests", "layers"] {
                open.extend(document[list].as_array().cloned().unwrap_or_default());
            }
            open.push(document["config"].clone());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(hub: &Layout, content: &str) -> Descriptor {
        let put = |bytes: &[u8], kind| hub.put_blob_bytes(bytes, kind).unwrap();
        let manifest = json!({
            "schemaVersion": 2,
            "config": put(b"{}", "application/vnd.oci.image.config.v1+json"),
            "layers": [put(content.as_bytes(), LAYER), put(b"shared", LAYER)],
        });
        put_manifest(hub, &manifest).unwrap()
    }

    #[test]
    fn names_move_to_new_images_and_only_what_nobody_names_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Layout::open_or_create(dir.path()).unwrap();
        let name =
            |name: &str, content: &str| name_image(&hub, name, image(&hub, content)).unwrap();
        assert!(name("planet:1", "one"));
        assert!(name("planet:2", "two"));
        assert!(!name("planet:2", "two"));
        assert!(name("planet:1", "three"));
        let has = |content: &str| hub.blob_path(&Digest::of(content.as_bytes())).exists();
        assert!(!has("one") && has("two") && has("three") && has("shared"));
        let names: Vec<String> = hub.tags().unwrap().into_iter().map(|tag| tag.0).collect();
        assert_eq!(names, ["planet:1", "planet:2"]);
    }

    #[test]
    fn readers_understand_what_the_base_image_says_of_itself() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let versions = Versions::load(source, "6.0.0").unwrap();
        let read: image::cluster::BaseConfig = serde_json::from_value(config(&versions)).unwrap();
        assert_eq!(read.version, "6.0.0");
        assert_eq!(read.planet_config_version, 1);
        assert_eq!(read.components[0].name, "kubernetes");
        assert_eq!(read.components[0].license.as_deref(), Some("Apache-2.0"));
    }

    #[test]
    fn only_programs_are_published() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gravity");
        for bytes in ["text", "", "EL"] {
            file::write(&path, bytes).unwrap();
            assert!(
                check_elf(&path)
                    .unwrap_err()
                    .to_string()
                    .contains("not a program")
            );
        }
        file::write(&path, "\x7fELF and more").unwrap();
        check_elf(&path).unwrap();
    }
}
