//! `tele export`: the content of a cluster image as an OCI layout; and the
//! archives in which an image of the hub leaves it.
//!
//! In: a cluster image, or an image in a layout. Out: a directory in OCI image
//! layout that other tools read, with every part under its name; or an archive
//! for `docker load`, `podman load` or `FROM oci-archive:`. What is written was
//! compared with its digest; the result appears whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use console::Console;
use console::render::bytes;
use image::cluster::ClusterImage;
use image::layer::Compression;
use oci::hub::Entry;
use oci::layout::REF_NAME;
use oci::spec::{Descriptor, ImageConfiguration, ImageManifest};
use oci::{Digest, Layout};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::inspect::open;
use crate::unfinished::{Directory, Overwrite};

/// What to export.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The cluster image: the executable, or the archive with it.
    pub(crate) file: PathBuf,
    /// The new directory, in OCI image layout.
    #[arg(long, value_name = "DIR")]
    pub(crate) oci: PathBuf,
}

/// Archives of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Archive {
    /// An OCI layout in a tar.
    OciArchive,
    /// What `docker save` writes.
    DockerArchive,
}

pub(crate) fn run(arguments: &Export, console: &Console) -> Result<()> {
    let cluster = open(&arguments.file)?;
    let runtime = Runtime::new().context("cannot start the runtime")?;
    let size = to_layout(&cluster, &arguments.oci, &runtime)?;
    console.print(&format!(
        "{}: {} images, {}",
        arguments.oci.display(),
        cluster.index.manifests().len(),
        bytes(size)
    ));
    Ok(())
}

/// Writes all blobs and an index that names every manifest; returns the bytes.
fn to_layout(cluster: &ClusterImage, dir: &Path, runtime: &Runtime) -> Result<u64> {
    if dir.symlink_metadata().is_ok() {
        bail!("{} exists already: name a new directory", dir.display());
    }
    let work = Directory::beside(dir, runtime)?;
    let layout = Layout::open_or_create(work.path())?;
    let mut written = 0;
    for blob in cluster.image.blobs() {
        let digest: Digest = blob.digest.parse()?;
        cluster
            .image
            .extract(&blob.digest, &layout.blob_path(&digest))?;
        written += blob.size;
    }
    // The base refers to the program, which is no blob of the file.
    let elf = cluster.image.elf();
    let program = layout.blob_path(&elf.digest.parse()?);
    cluster.image.extract_elf(&program)?;
    written += elf.size;
    for descriptor in cluster.index.manifests() {
        layout.tag(&name(cluster, descriptor), descriptor.clone())?;
    }
    // Made private, as all temporary directories are.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(work.path(), mode)?;
    work.persist(dir)?;
    Ok(written)
}

/// The name of a manifest: its own, the base's or the cluster's.
fn name(cluster: &ClusterImage, descriptor: &Descriptor) -> String {
    let annotations = descriptor.annotations().as_ref();
    if let Some(name) = annotations.and_then(|all| all.get(REF_NAME)) {
        return name.clone();
    }
    let config = &cluster.config;
    match descriptor.digest().as_ref() == config.base.digest {
        true => config.base.reference.clone(),
        false => format!("{}:{}", config.name, config.image_version),
    }
}

/// Writes a container image, whose blobs are in `layout`, to a new file at
/// `path`; it is made in `work`.
///
/// # Errors
/// When the image is damaged, or the file can't be written.
pub(crate) fn image_archive(
    name: &str,
    image: &Entry,
    layout: &Layout,
    format: Archive,
    work: &Directory,
    path: &Path,
    overwrite: Overwrite,
) -> Result<()> {
    let mut temp = work.file()?;
    let mut tar = tar::Builder::new(BufWriter::new(temp.as_file_mut()));
    match format {
        Archive::OciArchive => oci_archive(name, image, layout, &mut tar)?,
        Archive::DockerArchive => docker_archive(name, &image.manifest, layout, work, &mut tar)?,
    }
    let what = || format!("cannot write {}", path.display());
    tar.into_inner()?.flush().with_context(what)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    temp.as_file().set_permissions(mode).with_context(what)?;
    overwrite.persist(temp, path)
}

fn oci_archive<W: Write>(
    name: &str,
    image: &Entry,
    layout: &Layout,
    tar: &mut tar::Builder<W>,
) -> Result<()> {
    let mut named = image.descriptor.clone();
    named.set_annotations(Some([(REF_NAME.to_owned(), name.to_owned())].into()));
    let index = json!({"schemaVersion": 2, "manifests": [named]});
    put(tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    put(tar, "index.json", index.to_string().as_bytes())?;
    let digest = Digest::of(&image.bytes);
    put(tar, &format!("blobs/sha256/{}", digest.hex()), &image.bytes)?;
    let mut done = vec![digest];
    let config = std::iter::once(image.manifest.config());
    for part in config.chain(image.manifest.layers()) {
        let digest = Digest::try_from(part.digest())?;
        if !done.contains(&digest) {
            let name = format!("blobs/sha256/{}", digest.hex());
            put_file(tar, &name, &layout.blob_path(&digest), &digest)?;
            done.push(digest);
        }
    }
    Ok(())
}

fn docker_archive<W: Write>(
    name: &str,
    manifest: &ImageManifest,
    layout: &Layout,
    work: &Directory,
    tar: &mut tar::Builder<W>,
) -> Result<()> {
    let config = Digest::try_from(manifest.config().digest())?;
    let configuration: ImageConfiguration = layout.read_json(&config)?;
    let contents = configuration.rootfs().diff_ids();
    if contents.len() != manifest.layers().len() {
        bail!("{name}: its manifest and its config have different numbers of layers");
    }
    let mut layers = Vec::new();
    for (layer, content) in manifest.layers().iter().zip(contents) {
        let content: Digest = content.parse()?;
        let file = format!("{}.tar", content.hex());
        if !layers.contains(&file) {
            let path = layout.blob_path(&Digest::try_from(layer.digest())?);
            match Compression::of(layer.media_type().as_ref())? {
                Compression::None => put_file(tar, &file, &path, &content)?,
                compression => {
                    let mut plain = work.file()?;
                    let from = File::open(&path).with_context(|| path.display().to_string())?;
                    std::io::copy(&mut compression.decode(from)?, &mut plain)
                        .with_context(|| format!("cannot decompress {}", path.display()))?;
                    put_file(tar, &file, plain.path(), &content)?;
                }
            }
        }
        layers.push(file);
    }
    let file = format!("{}.json", config.hex());
    put_file(tar, &file, &layout.blob_path(&config), &config)?;
    let list = json!([{"Config": file, "RepoTags": [name], "Layers": layers}]);
    put(tar, "manifest.json", list.to_string().as_bytes())
}

fn put<W: Write>(tar: &mut tar::Builder<W>, name: &str, content: &[u8]) -> Result<()> {
    Ok(tar.append_data(&mut header(content.len() as u64), name, content)?)
}

/// Adds a file that must have this digest.
fn put_file<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    path: &Path,
    digest: &Digest,
) -> Result<()> {
    oci::layout::verify_file(path, digest)?;
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let size = file.metadata()?.len();
    Ok(tar.append_data(&mut header(size), name, file)?)
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(tar::EntryType::Regular);
    header
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;
    use crate::build::PARTIAL;
    use crate::build::tests::{Vendor, gzip_of};

    #[test]
    fn every_part_has_its_name_and_its_digest() {
        let vendor = Vendor::new();
        let path = vendor.build("shop.tar", &Default::default()).unwrap();
        let cluster = open(&path).unwrap();
        let dir = vendor.at("exported");
        // Of an export that was killed, and of a command that runs.
        let left = vendor.at(".tele-partial-left");
        std::fs::create_dir_all(left.join("blobs")).unwrap();
        let runtime = Runtime::new().unwrap();
        let other = Directory::beside(&dir, &runtime).unwrap();
        to_layout(&cluster, &dir, &runtime).unwrap();
        assert!(!left.exists() && other.path().exists());
        drop(other);
        let layout = Layout::open(&dir).unwrap();
        let tags = layout.tags().unwrap();
        let names: Vec<_> = tags.iter().map(|(name, _)| name.clone()).collect();
        let image = &cluster.config.images[0];
        assert_eq!(names, ["gravity:6.0.0", &image.reference, "shop:1.0.0"]);
        for (name, descriptor) in tags {
            let manifest = layout.read_manifest(&descriptor).unwrap();
            for part in manifest.layers().iter().chain([manifest.config()]) {
                let digest = Digest::try_from(part.digest()).unwrap();
                assert!(layout.has_blob(&digest, part.size()), "{name}: {digest}");
                oci::layout::verify_file(&layout.blob_path(&digest), &digest).unwrap();
            }
        }
        let again = to_layout(&cluster, &dir, &runtime).unwrap_err().to_string();
        assert!(again.contains("exists already"), "{again}");
        let left = std::fs::read_dir(vendor.at("")).unwrap();
        let names = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(names.into_iter().all(|name| !name.starts_with(PARTIAL)));
    }

    fn members(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        entries.collect()
    }

    #[test]
    fn an_image_leaves_the_hub_in_either_archive() {
        let vendor = Vendor::new();
        let hub = Layout::open(vendor.at("hub")).unwrap();
        let own = gzip_of(b"package");
        // The lowest layer of this one is not what its config says.
        let content = Digest::of(b"package");
        vendor.planet("planet:6.0.0", b"rootfs", &own, &content);
        let path = vendor.at("planet.tar");
        let write = |format, overwrite| {
            let opened = oci::hub::Hub::Directory(hub.clone());
            let runtime = tokio::runtime::Runtime::new()?;
            let entry = runtime.block_on(opened.entry("planet", "6.0.0"))?;
            let work = Directory::beside(&path, &runtime)?;
            image_archive(
                "planet:6.0.0",
                &entry,
                &hub,
                format,
                &work,
                &path,
                overwrite,
            )
        };
        write(Archive::OciArchive, Overwrite::Refuse).unwrap();
        let files = members(&path);
        let index: serde_json::Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let name = &index["manifests"][0]["annotations"][REF_NAME];
        assert_eq!(name, "planet:6.0.0");
        for (name, content) in &files {
            if let Some(hex) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(Digest::of(content).hex(), hex);
            }
        }
        assert_eq!(files.len(), 6);
        let again = write(Archive::OciArchive, Overwrite::Refuse);
        assert!(again.is_err(), "it is there");
        // Its first layer is no gzip.
        assert!(write(Archive::DockerArchive, Overwrite::Replace).is_err());
        assert_eq!(members(&path), files);

        vendor.planet_on(
            "planet:6.0.0",
            &gzip_of(b"rootfs"),
            b"rootfs",
            &own,
            &content,
        );
        write(Archive::DockerArchive, Overwrite::Replace).unwrap();
        let files = members(&path);
        let list: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(list[0]["RepoTags"], serde_json::json!(["planet:6.0.0"]));
        let layers: Vec<_> = list[0]["Layers"].as_array().unwrap().iter().collect();
        let contents = layers
            .into_iter()
            .map(|name| files[name.as_str().unwrap()].clone());
        assert_eq!(contents.collect::<Vec<_>>(), [b"rootfs", &b"package"[..]]);
        assert!(files.contains_key(list[0]["Config"].as_str().unwrap()));
    }
}
