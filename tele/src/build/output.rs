//! The file that a build makes.
//!
//! In: everything that the cluster image holds. Out: the executable, or a tar
//! with it, which is written at its place there and copied no second time. All
//! unfinished files lie in one directory beside the output, which is removed
//! however the build ends, after a kill by the next one; the output has its
//! name only when it is complete.

use std::fs::Permissions;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use image::cluster::{self, BASE_ARTIFACT, ClusterConfig, LAYER_TAR, MANIFEST_YAML};
use image::encode::Cache;
use image::file::archive::{self, BLOCK, header, padding};
use image::pack::Packed;
use image::{Encoding, Writer, Written};
use oci::layout::{MAX_DOCUMENT, REF_NAME};
use oci::spec::{Descriptor, MediaType};
use oci::{Digest, Layout};
use tokio::runtime::Runtime;

use super::base::Base;
use super::images::Vendored;
use super::manifest::Source;
use super::planet::Planet;
use crate::unfinished::{Directory, Overwrite};

const PLATFORM: &str = "linux/amd64";
/// An uncompressed layer as Docker calls it.
const DOCKER_TAR: &str = "application/vnd.docker.image.rootfs.diff.tar";

const README: &str = "\
This archive holds a Kubernetes cluster with its applications. It needs no
internet access. Unpack it on the first node, become root, and run

    ./run_preflight_checks    to see whether the machine is fit
    ./install                 to install the cluster

`./gravity --help` tells more. The program needs nothing else of this archive.
";

/// Extensions of compressed archives, which are not made.
const PACKED: [&str; 9] = [
    "gz", "tgz", "zst", "tzst", "xz", "txz", "bz2", "tbz2", "zip",
];

/// Where the result goes.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    overwrite: Overwrite,
}

impl Output {
    /// The named output, else the current directory's name with `.tar`.
    pub(crate) fn choose(
        named: Option<&Path>,
        current: &Path,
        overwrite: Overwrite,
    ) -> Result<Self> {
        let path = match (named, current.file_name()) {
            (Some(path), _) => path.to_owned(),
            (None, Some(name)) => {
                let mut name = name.to_owned();
                name.push(".tar");
                name.into()
            }
            (None, None) => {
                bail!("the current directory has no name to give to the output: name one with -o")
            }
        };
        let output = Self { path, overwrite };
        if let Some(extension) = output.path.extension()
            && PACKED.iter().any(|packed| extension == *packed)
        {
            bail!(
                "{} would be no .{}: what is in a cluster image is compressed already; name it .tar",
                output.path.display(),
                extension.display()
            );
        }
        if output.path.file_name().is_none() || output.path.is_dir() {
            bail!(
                "{} is a directory: name a file with -o",
                output.path.display()
            );
        }
        let parent = output.parent();
        if !parent.is_dir() {
            bail!(
                "there is no directory {} to write {} to: make it first",
                parent.display(),
                output.path.display()
            );
        }
        output.overwrite.check(&output.path)?;
        Ok(output)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn parent(&self) -> &Path {
        let parent = self
            .path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        parent.unwrap_or(Path::new("."))
    }

    fn is_tar(&self) -> bool {
        self.path
            .extension()
            .is_some_and(|extension| extension == "tar")
    }

    /// Makes the directory for unfinished files, which goes away with the
    /// result and when the build is interrupted. Those that killed builds left
    /// are removed.
    pub(crate) fn begin(&self, runtime: &Runtime) -> Result<Work> {
        Directory::beside(&self.path, runtime).map(Work)
    }

    /// How many bytes come before the image.
    pub(crate) fn start(&self) -> u64 {
        if self.is_tar() { BLOCK } else { 0 }
    }
}

/// The directory of one build.
#[derive(Debug)]
pub(crate) struct Work(Directory);

impl Work {
    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    /// Where the image is written to.
    pub(crate) fn image(&self) -> PathBuf {
        self.dir().join("image")
    }

    /// Completes what was written to [`Work::image`] and gives it its name;
    /// returns its size in bytes.
    pub(crate) fn finish(
        self,
        output: &Output,
        written: &Written,
        rest: &[u8],
        time: u64,
    ) -> Result<u64> {
        let image = self.image();
        if output.is_tar() {
            complete_tar(&image, written, rest, time).context("cannot write the archive")?;
        }
        output.overwrite.check(&output.path)?;
        let what = || format!("cannot write {}", output.path.display());
        let size = std::fs::metadata(&image).with_context(what)?.len();
        std::fs::rename(&image, &output.path).with_context(what)?;
        Ok(size)
    }
}

/// Makes a tar of a file that begins with room for a header and the program.
fn complete_tar(path: &Path, written: &Written, rest: &[u8], time: u64) -> Result<()> {
    let mut out = std::fs::OpenOptions::new().write(true).open(path)?;
    let first = header(archive::NAME, written.length, archive::MODE, time)?;
    out.write_all(first.as_bytes())?;
    out.seek(SeekFrom::Start(BLOCK + written.length))?;
    out.write_all(&vec![0; padding(written.length) as usize])?;
    out.write_all(rest)?;
    out.set_permissions(Permissions::from_mode(0o644))?;
    Ok(())
}

/// What a tar has behind the program.
pub(crate) fn rest(source: &Source, time: u64) -> Result<Vec<u8>> {
    let script = |command: &str| {
        format!("#!/bin/sh\nset -e\ncd \"$(dirname \"$0\")\"\nexec ./gravity {command} \"$@\"\n")
    };
    let mut out = Vec::new();
    for (name, text, mode) in [
        ("app.yaml", source.text()?, 0o644),
        ("README", README.to_owned(), 0o644),
        ("install", script("install"), 0o755),
        ("run_preflight_checks", script("check"), 0o755),
    ] {
        let size = text.len() as u64;
        out.extend(header(name, size, mode, time)?.as_bytes());
        out.extend(text.as_bytes());
        out.resize(out.len() + padding(size) as usize, 0);
    }
    out.resize(out.len() + 2 * BLOCK as usize, 0);
    Ok(out)
}

/// What goes into the image.
#[derive(Debug)]
pub(crate) struct Content<'a> {
    /// All but the digest of the manifest.
    pub(crate) config: ClusterConfig,
    pub(crate) resolved: &'a str,
    pub(crate) resources: (&'a Path, &'a Packed),
    pub(crate) base: &'a Base,
    pub(crate) images: &'a [Vendored],
    pub(crate) planets: &'a [Planet],
}

/// Begins an image of which nothing is known yet but its base: that is most of
/// it, and is written while images are searched and pulled.
pub(crate) fn begin_image(
    path: &Path,
    start: u64,
    base: &Base,
    hub: &Layout,
    encoded: Cache,
) -> Result<Writer> {
    let program = hub.blob_path(&base.gravity);
    let mut writer = Writer::create_after(path, &program, start)?.with_cache(encoded);
    copy_document(&mut writer, hub, &base.descriptor)?;
    copy_document(&mut writer, hub, base.manifest.config())?;
    for layer in base.manifest.layers() {
        // The program is there already: the file begins with it.
        if layer.digest().as_ref() != base.gravity.as_str() {
            copy(&mut writer, hub, layer)?;
        }
    }
    Ok(writer)
}

/// Writes all that follows the base.
pub(crate) fn write_image(
    mut writer: Writer,
    content: &Content<'_>,
    hub: &Layout,
    cache: &Layout,
) -> Result<Written> {
    let base = content.base;
    let mut config = content.config.clone();
    config.manifest = writer.add_blob_bytes(content.resolved.as_bytes(), MANIFEST_YAML)?;
    let manifest = cluster::descriptor(
        &config.manifest,
        content.resolved.len() as u64,
        MANIFEST_YAML,
    )?;
    let (tar, packed) = content.resources;
    writer.add_blob_file(tar, &packed.digest, LAYER_TAR, Encoding::ZstdFrames)?;
    let resources = cluster::descriptor(&packed.digest, packed.size, LAYER_TAR)?;

    let mut manifests = Vec::new();
    let mut indexes = Vec::new();
    for image in content.images {
        copy_document(&mut writer, cache, &image.pulled.manifest)?;
        copy_document(&mut writer, cache, &image.pulled.config)?;
        for layer in &image.pulled.layers {
            copy(&mut writer, cache, layer)?;
        }
        if let (Some(_), Some(digest)) = (&image.application.index, &image.pulled.index) {
            let bytes = cache.read_blob(digest, MAX_DOCUMENT)?;
            let index = MediaType::ImageIndex;
            writer.add_blob_bytes(&bytes, index.as_ref())?;
            indexes.push(cluster::descriptor(
                digest.as_str(),
                bytes.len() as u64,
                index.as_ref(),
            )?);
        }
        let mut descriptor = image.pulled.manifest.clone();
        let name = [(REF_NAME.to_owned(), image.application.reference.clone())];
        descriptor.set_annotations(Some(name.into()));
        manifests.push(descriptor);
    }
    for planet in content.planets {
        writer.add_blob_bytes(&planet.manifest, planet.descriptor.media_type().as_ref())?;
        copy_document(&mut writer, &planet.layout, &planet.config)?;
        for layer in &planet.layers {
            copy(&mut writer, &planet.layout, layer)?;
        }
        let mut descriptor = planet.descriptor.clone();
        let name = [(REF_NAME.to_owned(), planet.name.clone())];
        descriptor.set_annotations(Some(name.into()));
        manifests.push(descriptor);
    }
    let mut base_descriptor = base.descriptor.clone();
    base_descriptor.set_artifact_type(Some(MediaType::from(BASE_ARTIFACT)));
    let root = cluster::write_root(
        &mut writer,
        &config,
        [vec![manifest, resources], indexes].concat(),
        base_descriptor,
        manifests,
    )?;
    let written = writer.finish(&root, PLATFORM).context(
        "a blob was damaged since it was fetched: remove the file that is named, then build again",
    )?;
    // The writer has hashed the program while it copied it.
    if written.elf != base.gravity.as_str() {
        bail!(
            "{} has digest {}, expected {}: make the base image again",
            hub.blob_path(&base.gravity).display(),
            written.elf,
            base.gravity
        );
    }
    Ok(written)
}

fn copy_document(writer: &mut Writer, layout: &Layout, descriptor: &Descriptor) -> Result<()> {
    let bytes = layout.read_blob(&Digest::try_from(descriptor.digest())?, MAX_DOCUMENT)?;
    writer.add_blob_bytes(&bytes, descriptor.media_type().as_ref())?;
    Ok(())
}

fn copy(writer: &mut Writer, layout: &Layout, descriptor: &Descriptor) -> Result<()> {
    let path = layout.blob_path(&Digest::try_from(descriptor.digest())?);
    let kind = descriptor.media_type().as_ref();
    // Compressed ones keep their bytes as they are.
    let encoding = if matches!(kind, LAYER_TAR | DOCKER_TAR) {
        Encoding::ZstdFrames
    } else {
        Encoding::Raw
    };
    writer.add_blob_file(&path, descriptor.digest().as_ref(), kind, encoding)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_is_chosen_before_any_work() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let choose =
            |named: &Path, overwrite| Output::choose(Some(named), Path::new("/x"), overwrite);
        let (refuse, replace) = (Overwrite::Refuse, Overwrite::Replace);
        assert!(choose(&at("a.tar"), refuse).unwrap().is_tar());
        assert!(!choose(&at("a.run"), refuse).unwrap().is_tar());
        assert!(!choose(&at("shop-1.2.3"), refuse).unwrap().is_tar());
        for name in ["a.tar.gz", "a.tgz", "a.tar.zst", "a.zip"] {
            let error = choose(&at(name), refuse).unwrap_err().to_string();
            assert!(error.contains("name it .tar"), "{error}");
        }
        host::atomic::write(&at("a.tar"), b"", 0o644).unwrap();
        let error = choose(&at("a.tar"), refuse).unwrap_err().to_string();
        assert!(
            error.contains("exists already: replace it with -f"),
            "{error}"
        );
        choose(&at("a.tar"), replace).unwrap();
        assert!(choose(dir.path(), replace).is_err());
        assert!(
            choose(&at("none/a.tar"), replace)
                .unwrap_err()
                .to_string()
                .contains("no directory")
        );
        let output = Output::choose(None, Path::new("/srv/my-app"), refuse).unwrap();
        assert_eq!(output.path(), Path::new("my-app.tar"));
        assert!(Output::choose(None, Path::new("/"), refuse).is_err());
    }
}
