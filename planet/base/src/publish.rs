//! Publishes a base image into a hub on this machine.
//!
//! In: the planet's root filesystem, its bill of materials and the gravity
//! program. Out: the images `gravity:<version>` and `planet:<version>` in an
//! OCI layout. A blob has its name only when it is complete, the index is
//! replaced as a whole, and a second publisher waits for the first.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::assemble::Planet;
use crate::file;
use crate::versions::Versions;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const NAME: &str = "org.opencontainers.image.ref.name";

/// Longest index or manifest that is read, bytes.
const MAX_JSON: u64 = 16 << 20;

/// An OCI layout.
#[derive(Debug)]
pub(crate) struct Hub {
    directory: PathBuf,
    /// Held while the hub is changed.
    _lock: File,
}

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

/// Publishes both images; nothing is written that is already there.
///
/// # Errors
/// When `gravity` is no program for Linux, or the hub can't be written.
pub(crate) fn publish(
    hub: &Hub,
    versions: &Versions,
    planet: &Planet,
    gravity: &Path,
) -> Result<Published> {
    check_elf(gravity)?;
    let (os, architecture) = versions.platform.split_once('/').context("platform")?;
    let rootfs = hub.put_file(&planet.tar(), LAYER, &planet.digest, planet.size)?;
    let (digest, size) = file::digest_file(gravity)?;
    let program = hub.put_copy(
        gravity,
        "application/vnd.gravitational.gravity.v1",
        &digest,
        size,
    )?;
    let sbom = std::fs::read(planet.sbom()).with_context(|| planet.sbom().display().to_string())?;
    let sbom = hub.put(&sbom, "application/vnd.cyclonedx+json")?;
    let components: Vec<Value> = versions
        .components
        .iter()
        .map(|c| json!({ "name": c.name, "version": c.version, "license": c.license }))
        .collect();
    let config = serde_json::to_vec(&json!({
        "version": versions.version,
        "planet_config_version": versions.planet_config_version,
        "product_versions": versions.product_versions,
        "platform": versions.platform,
        "components": components,
    }))?;
    let config = hub.put(&config, "application/vnd.gravitational.base.config.v1+json")?;
    let base = hub.put_manifest(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.gravitational.base.v1",
        "config": config,
        "layers": [rootfs.clone(), program, sbom],
    }))?;
    let config = serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": os,
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["/bin/bash"],
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": [planet.digest] },
    }))?;
    let config = hub.put(&config, "application/vnd.oci.image.config.v1+json")?;
    let image = hub.put_manifest(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": [rootfs],
    }))?;
    let platform = json!({ "architecture": architecture, "os": os });
    let changed = hub.name(vec![
        (
            format!("gravity:{}", versions.version),
            base.clone(),
            platform.clone(),
        ),
        (
            format!("planet:{}", versions.version),
            image.clone(),
            platform,
        ),
    ])?;
    let text = |descriptor: &Value| descriptor["digest"].as_str().unwrap_or_default().to_owned();
    Ok(Published {
        base: text(&base),
        planet: text(&image),
        changed,
    })
}

fn check_elf(path: &Path) -> Result<()> {
    let mut magic = [0; 4];
    let file = File::open(path).with_context(|| {
        format!(
            "{}: build it by `cargo build --release -p gravity`",
            path.display()
        )
    })?;
    let length = file.take(4).read(&mut magic)?;
    ensure!(
        length == 4 && magic == *b"\x7fELF",
        "{}: not a program for Linux (ELF)",
        path.display()
    );
    Ok(())
}

impl Hub {
    /// Opens the layout, which is made when there is none; waits while
    /// somebody else changes it.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let context = || format!("the hub {}", directory.display());
        std::fs::create_dir_all(directory.join("blobs/sha256")).with_context(context)?;
        let marker = directory.join("oci-layout");
        if !marker.exists() {
            file::write(&marker, r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        let lock = File::open(&marker).with_context(context)?;
        lock.lock().with_context(context)?;
        Ok(Self {
            directory: directory.to_owned(),
            _lock: lock,
        })
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.directory
            .join(digest.replace("sha256:", "blobs/sha256/"))
    }

    fn has(&self, digest: &str, size: u64) -> bool {
        std::fs::metadata(self.blob(digest)).is_ok_and(|metadata| metadata.len() == size)
    }

    fn put(&self, bytes: &[u8], media_type: &str) -> Result<Value> {
        let digest = file::digest(bytes);
        let size = bytes.len() as u64;
        if !self.has(&digest, size) {
            file::write(&self.blob(&digest), bytes)?;
        }
        Ok(descriptor(media_type, &digest, size))
    }

    /// A file that nobody changes: the hub's name is one more for it where
    /// that is possible.
    fn put_file(&self, from: &Path, media_type: &str, digest: &str, size: u64) -> Result<Value> {
        if !self.has(digest, size) {
            let to = self.blob(digest);
            let _ = std::fs::remove_file(&to);
            if std::fs::hard_link(from, &to).is_err() {
                return self.put_copy(from, media_type, digest, size);
            }
        }
        Ok(descriptor(media_type, digest, size))
    }

    fn put_copy(&self, from: &Path, media_type: &str, digest: &str, size: u64) -> Result<Value> {
        if !self.has(digest, size) {
            let to = self.blob(digest);
            let temporary = file::beside(&to);
            let result = std::fs::copy(from, &temporary)
                .and_then(|_| std::fs::set_permissions(&temporary, Permissions::from_mode(0o644)))
                .with_context(|| format!("{}: copy to the hub", from.display()))
                .and_then(|()| {
                    let found = file::digest_file(&temporary)?;
                    let expected = (digest.to_owned(), size);
                    ensure!(
                        found == expected,
                        "{} changed while it was read",
                        from.display()
                    );
                    std::fs::rename(&temporary, &to).with_context(|| to.display().to_string())
                });
            if result.is_err() {
                let _ = std::fs::remove_file(&temporary);
            }
            result?;
        }
        Ok(descriptor(media_type, digest, size))
    }

    fn put_manifest(&self, manifest: &Value) -> Result<Value> {
        let mut descriptor = self.put(&serde_json::to_vec(manifest)?, MANIFEST)?;
        if let Some(artifact) = manifest.get("artifactType") {
            descriptor["artifactType"] = artifact.clone();
        }
        Ok(descriptor)
    }

    /// Gives images their names, taken from whatever had them; blobs that
    /// only those had are removed. The result is whether anything changed.
    fn name(&self, images: Vec<(String, Value, Value)>) -> Result<bool> {
        let path = self.directory.join("index.json");
        let mut index = match path.exists() {
            true => read_json(&path)?,
            false => json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": [],
            }),
        };
        let before = index.clone();
        let entries = index["manifests"]
            .as_array_mut()
            .with_context(|| format!("{}: no list of manifests", path.display()))?;
        for (name, mut descriptor, platform) in images {
            descriptor["platform"] = platform;
            descriptor["annotations"] = json!({ NAME: name });
            match entries
                .iter_mut()
                .find(|entry| entry["annotations"][NAME] == name.as_str())
            {
                Some(entry) => *entry = descriptor,
                None => entries.push(descriptor),
            }
        }
        if index == before {
            return Ok(false);
        }
        let (old, new) = (self.reachable(&before), self.reachable(&index));
        file::write(&path, serde_json::to_vec_pretty(&index)?)?;
        for digest in old.difference(&new) {
            let _ = std::fs::remove_file(self.blob(digest));
        }
        Ok(true)
    }

    /// The digests that an index leads to.
    fn reachable(&self, index: &Value) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut open = vec![index.clone()];
        while let Some(document) = open.pop() {
            let list = |name: &str| document[name].as_array().cloned().unwrap_or_default();
            let children = list("manifests").into_iter().chain(list("layers"));
            for child in children.chain([document["config"].clone()]) {
                let Some(digest) = child["digest"].as_str().map(str::to_owned) else {
                    continue;
                };
                let media_type = child["mediaType"].as_str().unwrap_or_default();
                let nested = media_type.contains("manifest") || media_type.contains("index");
                if found.insert(digest.clone()) && nested {
                    open.extend(read_json(&self.blob(&digest)).ok());
                }
            }
        }
        found
    }
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

fn read_json(path: &Path) -> Result<Value> {
    let context = || path.display().to_string();
    let file = File::open(path).with_context(context)?;
    let mut bytes = Vec::new();
    file.take(MAX_JSON + 1)
        .read_to_end(&mut bytes)
        .with_context(context)?;
    ensure!(
        bytes.len() as u64 <= MAX_JSON,
        "{}: more than {MAX_JSON} bytes",
        path.display()
    );
    serde_json::from_slice(&bytes).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_move_to_new_images_and_only_what_nobody_names_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::open(dir.path()).unwrap();
        let image = |content: &str| {
            let layer = hub.put(content.as_bytes(), LAYER).unwrap();
            let shared = hub.put(b"shared", LAYER).unwrap();
            let config = hub
                .put(b"{}", "application/vnd.oci.image.config.v1+json")
                .unwrap();
            let manifest = json!({ "config": config, "layers": [layer, shared] });
            hub.put_manifest(&manifest).unwrap()
        };
        let platform = json!({ "os": "linux" });
        let name = |name: &str, content: &str| {
            hub.name(vec![(name.to_owned(), image(content), platform.clone())])
                .unwrap()
        };
        assert!(name("planet:1", "one"));
        assert!(name("planet:2", "two"));
        assert!(!name("planet:2", "two"));
        assert!(name("planet:1", "three"));
        let has = |content: &str| hub.blob(&file::digest(content.as_bytes())).exists();
        assert!(!has("one") && has("two") && has("three") && has("shared"));
        let index = read_json(&dir.path().join("index.json")).unwrap();
        let names: Vec<&str> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["annotations"][NAME].as_str().unwrap())
            .collect();
        assert_eq!(names, ["planet:1", "planet:2"]);
    }

    #[test]
    fn a_file_whose_content_is_not_what_was_said_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::open(&dir.path().join("hub")).unwrap();
        let path = dir.path().join("gravity");
        file::write(&path, "text").unwrap();
        assert!(
            check_elf(&path)
                .unwrap_err()
                .to_string()
                .contains("not a program")
        );
        let other = file::digest(b"elf");
        assert!(hub.put_copy(&path, LAYER, &other, 3).is_err());
        assert!(!hub.blob(&other).exists());
    }
}
