//! Container images of the sample application, of our own making.
//!
//! In: Debian's static busybox. Out: an OCI layout with the images
//! [`IMAGES`], by the names under which the sample asks for them. Always
//! holds: the same busybox gives the same bytes.

use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder};
use oci::Layout;
use oci::spec::{Descriptor, MediaType};
use serde_json::json;
use tar::{Builder, EntryType, Header};

use crate::{file, process};

/// Host and path of the sample's images.
pub const REPOSITORY: &str = "quay.io/gravitational";
/// The images: name below [`REPOSITORY`] with tag.
pub const IMAGES: [&str; 2] = ["debian-tall:stretch", "web:1.0.0"];
/// What the web server says.
pub const PAGE: &str = "<!doctype html>\n<title>Sample</title>\n<h1>It works</h1>\n";
/// A program is not larger than this.
const BUSYBOX_MAX: u64 = 16 << 20;

/// Writes the images into the layout `directory`, which is made where there is
/// none.
///
/// # Errors
/// When the busybox package can't be had or the layout can't be written.
pub fn make_images(directory: &Path) -> Result<()> {
    let busybox = busybox()?;
    let applets = process::text(Command::new(&busybox).arg("--list"))?;
    let program = std::fs::read(&busybox).with_context(|| busybox.display().to_string())?;
    let base = base_layer(&program, applets.lines())?;
    let page = layer(|tar| {
        directories(tar, &["srv", "srv/www"])?;
        add(
            tar,
            "srv/www/index.html",
            EntryType::Regular,
            0o644,
            PAGE.as_bytes(),
        )
    })?;
    let layout = Layout::open_or_create(directory)?;
    let [tall, web] = IMAGES;
    put_image(
        &layout,
        tall,
        &[&base],
        &json!({ "Cmd": ["/bin/sh"], "Env": [PATH] }),
    )?;
    let serve = [
        "/bin/busybox",
        "httpd",
        "-f",
        "-p",
        "8080",
        "-h",
        "/srv/www",
    ];
    let config = json!({
        "Entrypoint": serve, "Env": [PATH], "User": "65534:65534",
        "ExposedPorts": { "8080/tcp": {} },
    });
    put_image(&layout, web, &[&base, &page], &config)
}

const PATH: &str = "PATH=/usr/local/bin:/usr/bin:/bin";

/// Debian's busybox-static, from the cache or by apt-get.
fn busybox() -> Result<PathBuf> {
    let directory = file::cache()?.join("sample");
    let program = directory.join("busybox");
    if program.is_file() {
        return Ok(program);
    }
    file::make_directory(&directory)?;
    let _lock = file::lock(&directory.join("lock"))?;
    let download = directory.join("download");
    file::remove_directory(&download)?;
    file::make_directory(&download)?;
    let mut command = Command::new("apt-get");
    command.args([
        "download",
        "--quiet",
        "-o",
        "APT::Sandbox::User=root",
        "busybox-static",
    ]);
    process::run(command.current_dir(&download))
        .context("after `apt-get update` it may be there")?;
    let package = std::fs::read_dir(&download)
        .with_context(|| download.display().to_string())?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded no package")?;
    let mut command = Command::new("dpkg-deb");
    let content = process::run(command.arg("--fsys-tarfile").arg(package))?.stdout;
    file::write(&program, find_program(&content)?)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).with_context(|| program.display().to_string())?;
    file::remove_directory(&download)?;
    Ok(program)
}

/// The program in a package's tar.
fn find_program(content: &[u8]) -> Result<Vec<u8>> {
    let mut archive = tar::Archive::new(Cursor::new(content));
    for entry in archive.entries().context("reading the busybox package")? {
        let entry = entry.context("reading the busybox package")?;
        let path = entry
            .path()
            .context("reading the busybox package")?
            .into_owned();
        if path.ends_with("bin/busybox") && entry.header().entry_type().is_file() {
            if entry.size() > BUSYBOX_MAX {
                bail!(
                    "busybox has {} bytes, more than {BUSYBOX_MAX}",
                    entry.size()
                );
            }
            let mut program = Vec::new();
            entry
                .take(BUSYBOX_MAX)
                .read_to_end(&mut program)
                .context("reading busybox")?;
            return Ok(program);
        }
    }
    bail!("the busybox package has no busybox")
}

/// A root filesystem of nothing but busybox.
fn base_layer<'a>(program: &[u8], applets: impl Iterator<Item = &'a str>) -> Result<Layer> {
    layer(|tar| {
        directories(
            tar,
            &[
                "bin",
                "etc",
                "proc",
                "root",
                "sys",
                "usr",
                "usr/bin",
                "usr/local",
            ],
        )?;
        directories(tar, &["usr/local/bin", "var", "var/lib"])?;
        add(tar, "tmp/", EntryType::Directory, 0o1777, &[])?;
        add(tar, "bin/busybox", EntryType::Regular, 0o755, program)?;
        for applet in applets.filter(|applet| *applet != "busybox") {
            let mut header = header(EntryType::Symlink, 0o777);
            header.set_size(0);
            tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
        add(
            tar,
            "etc/passwd",
            EntryType::Regular,
            0o644,
            passwd.as_bytes(),
        )?;
        let group = "root:x:0:\nnogroup:x:65534:\n";
        add(
            tar,
            "etc/group",
            EntryType::Regular,
            0o644,
            group.as_bytes(),
        )
    })
}

/// A layer: compressed as registries have them, and the digest of its tar.
struct Layer {
    compressed: Vec<u8>,
    diff_id: String,
}

fn layer(fill: impl FnOnce(&mut Builder<Vec<u8>>) -> std::io::Result<()>) -> Result<Layer> {
    let mut builder = Builder::new(Vec::new());
    fill(&mut builder).context("making a layer")?;
    let tar = builder.into_inner().context("making a layer")?;
    // No name, no time: the same input gives the same bytes.
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::default());
    let compressed = gzip.write_all(&tar).and_then(|()| gzip.finish());
    let compressed = compressed.context("compressing a layer")?;
    Ok(Layer {
        compressed,
        diff_id: format!("sha256:{}", file::sha256(&tar)),
    })
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn add(
    tar: &mut Builder<Vec<u8>>,
    path: &str,
    kind: EntryType,
    mode: u32,
    content: &[u8],
) -> std::io::Result<()> {
    let mut header = header(kind, mode);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content)
}

fn directories(tar: &mut Builder<Vec<u8>>, paths: &[&str]) -> std::io::Result<()> {
    paths
        .iter()
        .try_for_each(|path| add(tar, &format!("{path}/"), EntryType::Directory, 0o755, &[]))
}

fn put_image(
    layout: &Layout,
    name: &str,
    layers: &[&Layer],
    config: &serde_json::Value,
) -> Result<()> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let config = json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let put = |bytes: &[u8], media_type: MediaType| {
        layout
            .put_blob_bytes(bytes, media_type.as_ref())
            .map_err(anyhow::Error::from)
    };
    let config = put(&serde_json::to_vec(&config)?, MediaType::ImageConfig)?;
    let layers = layers
        .iter()
        .map(|layer| put(&layer.compressed, MediaType::ImageLayerGzip))
        .collect::<Result<Vec<Descriptor>>>()?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::ImageManifest.as_ref(),
        "config": config,
        "layers": layers,
    });
    let manifest = put(&serde_json::to_vec(&manifest)?, MediaType::ImageManifest)?;
    layout.tag(&format!("{REPOSITORY}/{name}"), manifest)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_program_gives_the_same_layer() {
        let make = || base_layer(b"program", ["sh", "busybox", "wget"].into_iter()).unwrap();
        let first = make();
        assert_eq!(first.compressed, make().compressed);
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(first.compressed.as_slice())
            .read_to_end(&mut text)
            .unwrap();
        assert_eq!(first.diff_id, format!("sha256:{}", file::sha256(&text)));
        let mut archive = tar::Archive::new(text.as_slice());
        let paths: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert!(paths.contains(&"bin/sh".to_owned()));
        assert_eq!(
            paths.iter().filter(|path| *path == "bin/busybox").count(),
            1
        );
        assert_eq!(find_program(&text).unwrap(), b"program");
    }

    #[test]
    fn a_package_without_the_program_is_refused() {
        let other = layer(|tar| add(tar, "bin/sh", EntryType::Regular, 0o755, b"x")).unwrap();
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(other.compressed.as_slice())
            .read_to_end(&mut text)
            .unwrap();
        assert!(find_program(&text).is_err());
        assert!(find_program(b"no tar").is_err());
    }

    #[test]
    fn an_image_is_found_by_the_name_that_the_sample_uses() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open_or_create(dir.path()).unwrap();
        let base = layer(|tar| add(tar, "a", EntryType::Regular, 0o644, b"a")).unwrap();
        put_image(&layout, IMAGES[0], &[&base], &json!({})).unwrap();
        let found = layout
            .resolve("quay.io/gravitational/debian-tall:stretch")
            .unwrap();
        let manifest = layout.read_manifest(&found).unwrap();
        assert_eq!(manifest.layers()[0].size(), base.compressed.len() as u64);
    }
}
