//! Container images of the sample application, of our own making.
//!
//! In: Debian's busybox and C library, so that names are resolved as in any
//! Debian image. Out: an OCI layout with the images [`IMAGES`], by the names
//! under which the sample asks for them. Always holds: the same packages give
//! the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use oci::spec::{Descriptor, MediaType};
use oci::{Digest, Layout};
use serde_json::json;
use tar::{Builder, EntryType, Header};

use crate::{file, process};

/// The images: with tools, a web server, a database that is a web server, one
/// that says what hooks are told, and one with nothing in it.
pub const IMAGES: [&str; 5] = [
    "quay.io/gravitational/debian-tall:stretch",
    "quay.io/gravitational/web:1.0.0",
    "docker.io/library/postgres:9.4.4",
    "docker.io/library/installer-hooks:latest",
    "quay.io/gravitational/empty:1.0.0",
];
/// What the web server says.
pub const PAGE: &str = "<!doctype html>\n<title>Sample</title>\n<h1>It works</h1>\n";
/// A file of a package is not larger than this.
const FILE_MAX: u64 = 16 << 20;
/// Packages, and what the images have of them: paths without the leading `./`.
const PACKAGES: [(&str, &[&str]); 2] = [
    ("busybox", &["bin/busybox"]),
    (
        "libc6",
        &[
            "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
            "lib/x86_64-linux-gnu/libc.so.6",
            "lib/x86_64-linux-gnu/libm.so.6",
            "lib/x86_64-linux-gnu/libresolv.so.2",
        ],
    ),
];

/// Writes the images into the layout `directory`, which is made where there is
/// none.
///
/// # Errors
/// When the busybox package can't be had or the layout can't be written.
pub fn make_images(directory: &Path) -> Result<()> {
    let files = PACKAGES
        .iter()
        .map(|(package, wanted)| package_files(package, wanted))
        .collect::<Result<Vec<_>>>()?
        .concat();
    let base = base_layer(&files, APPLETS.iter().copied())?;
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
    let [tall, web, postgres, hooks, empty] = IMAGES;
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
    let mut config = json!({
        "Entrypoint": serve, "Env": [PATH], "User": "65534:65534",
        "ExposedPorts": { "8080/tcp": {} },
    });
    put_image(&layout, web, &[&base, &page], &config)?;
    // As the real one: SIGTERM would have it wait for its clients.
    config["StopSignal"] = "SIGINT".into();
    put_image(&layout, postgres, &[&base, &page], &config)?;
    let say = "echo seeding $GRAVITY_CLUSTER_NAME, provider $GRAVITY_CLUSTER_PROVIDER, \
               flavor $GRAVITY_CLUSTER_FLAVOR, user $GRAVITY_SERVICE_USER";
    let config = json!({ "Cmd": ["/bin/sh", "-ec", say], "Env": [PATH] });
    put_image(&layout, hooks, &[&base], &config)?;
    let nothing = layer(|_| Ok(()))?;
    put_image(&layout, empty, &[&nothing], &json!({ "Env": [PATH] }))
}

/// A planet of the vendor's own, and the file that it has more.
const PLANET: &str = "custom-planet:1.0.0";
pub(crate) const PLANET_FILE: &str = "/opt/vendor/tool";

/// Makes a Hub anew in `directory`: what the user's has, and a planet with one file more.
pub(crate) fn make_hub(directory: &Path) -> Result<()> {
    let users = oci::hub::default_dir().context("there is no home")?;
    let blobs = Path::new("blobs/sha256");
    file::remove_directory(directory)?;
    file::make_directory(&directory.join(blobs))?;
    for name in ["index.json", "oci-layout"] {
        let from = users.join(name);
        fs::copy(&from, directory.join(name)).with_context(|| from.display().to_string())?;
    }
    let entries = users.join(blobs);
    for entry in fs::read_dir(&entries).with_context(|| entries.display().to_string())? {
        let entry = entry.context("reading the Hub")?;
        let to = directory.join(blobs).join(entry.file_name());
        // The cache may be on another disk.
        if fs::hard_link(entry.path(), &to).is_err() {
            fs::copy(entry.path(), &to).context("copying a blob of the Hub")?;
        }
    }
    let hub = Layout::open(directory)?;
    let base = hub.read_manifest(&hub.resolve("planet:6.0.0")?)?;
    let mut config: serde_json::Value =
        hub.read_json(&Digest::try_from(base.config().digest())?)?;
    let mut manifest = serde_json::to_value(&base).context("writing a manifest")?;
    let more = layer(|tar| {
        directories(tar, &["opt/vendor"])?;
        let path = PLANET_FILE.trim_start_matches('/');
        add(tar, path, EntryType::Regular, 0o755, PLANET.as_bytes())
    })?;
    let put = |bytes: &[u8], media_type: MediaType| hub.put_blob_bytes(bytes, media_type.as_ref());
    let ids = config["rootfs"]["diff_ids"].as_array_mut();
    ids.context("a planet without layers")?
        .push(more.diff_id.into());
    let layers = manifest["layers"].as_array_mut();
    layers
        .context("a planet without layers")?
        .push(json!(put(&more.compressed, MediaType::ImageLayerGzip)?));
    manifest["config"] = json!(put(&serde_json::to_vec(&config)?, MediaType::ImageConfig)?);
    let manifest = put(&serde_json::to_vec(&manifest)?, MediaType::ImageManifest)?;
    Ok(hub.tag(PLANET, manifest)?)
}

const PATH: &str = "PATH=/usr/local/bin:/usr/bin:/bin";

/// Files of a Debian package, from the cache or by apt-get.
fn package_files(package: &str, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let directory = file::cache()?.join("sample");
    file::make_directory(&directory)?;
    let _lock = file::lock(&directory.join("lock"))?;
    let content = directory.join(format!("{package}.tar"));
    if !content.is_file() {
        let download = directory.join("download");
        file::remove_directory(&download)?;
        file::make_directory(&download)?;
        let mut command = Command::new("apt-get");
        command.args([
            "download",
            "--quiet",
            "-o",
            "APT::Sandbox::User=root",
            package,
        ]);
        process::run(command.current_dir(&download))
            .context("after `apt-get update` it may be there")?;
        let archive = fs::read_dir(&download)
            .with_context(|| download.display().to_string())?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get downloaded no package")?;
        let mut command = Command::new("dpkg-deb");
        let tar = process::run(command.arg("--fsys-tarfile").arg(archive))?.stdout;
        file::write(&content, tar)?;
        file::remove_directory(&download)?;
    }
    let tar = fs::read(&content).with_context(|| content.display().to_string())?;
    find_files(&tar, wanted).with_context(|| format!("reading the package {package}"))
}

/// The files `wanted` of a package's tar, in that order.
fn find_files(tar: &[u8], wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(Cursor::new(tar)).entries()? {
        let entry = entry?;
        let path = entry.path()?.into_owned();
        let path = path
            .strip_prefix(".")
            .unwrap_or(&path)
            .to_string_lossy()
            .into_owned();
        if wanted.contains(&path.as_str()) && entry.header().entry_type().is_file() {
            ensure!(
                entry.size() <= FILE_MAX,
                "{path} has {} bytes",
                entry.size()
            );
            let mut content = Vec::new();
            entry.take(FILE_MAX).read_to_end(&mut content)?;
            found.insert(path, content);
        }
    }
    wanted
        .iter()
        .map(|path| {
            let content = found
                .remove(*path)
                .with_context(|| format!("there is no {path}"))?;
            Ok(((*path).to_owned(), content))
        })
        .collect()
}

/// Commands that the images have, all of busybox.
const APPLETS: &[&str] = &[
    "ash",
    "awk",
    "base64",
    "basename",
    "cat",
    "chmod",
    "chown",
    "cmp",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "dirname",
    "du",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "grep",
    "gunzip",
    "gzip",
    "head",
    "hostname",
    "httpd",
    "id",
    "ip",
    "kill",
    "less",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mktemp",
    "mount",
    "mv",
    "nc",
    "nslookup",
    "ping",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "sync",
    "tail",
    "tar",
    "tee",
    "test",
    "timeout",
    "touch",
    "tr",
    "true",
    "umount",
    "uname",
    "uniq",
    "vi",
    "wc",
    "wget",
    "which",
    "whoami",
    "xargs",
    "yes",
];

/// A root filesystem of these files and links to busybox.
fn base_layer<'a>(
    files: &[(String, Vec<u8>)],
    applets: impl Iterator<Item = &'a str>,
) -> Result<Layer> {
    layer(|tar| {
        directories(
            tar,
            &[
                "bin",
                "etc",
                "lib",
                "lib/x86_64-linux-gnu",
                "lib64",
                "proc",
                "root",
            ],
        )?;
        directories(
            tar,
            &["sys", "usr", "usr/bin", "usr/local", "usr/local/bin"],
        )?;
        directories(tar, &["var", "var/lib"])?;
        add(tar, "tmp/", EntryType::Directory, 0o1777, &[])?;
        for (path, content) in files {
            add(tar, path, EntryType::Regular, 0o755, content)?;
        }
        link(
            tar,
            "lib64/ld-linux-x86-64.so.2",
            "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        )?;
        for applet in applets {
            link(tar, &format!("bin/{applet}"), "busybox")?;
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
        )?;
        add(
            tar,
            "etc/nsswitch.conf",
            EntryType::Regular,
            0o644,
            b"hosts: files dns\n",
        )
    })
}

fn link(tar: &mut Builder<Vec<u8>>, path: &str, target: &str) -> std::io::Result<()> {
    let mut header = header(EntryType::Symlink, 0o777);
    header.set_size(0);
    tar.append_link(&mut header, path, target)
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
        diff_id: Digest::of(&tar).to_string(),
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
    layout.tag(name, manifest)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_give_the_same_layer() {
        let files = [("bin/busybox".to_owned(), b"program".to_vec())];
        let make = || base_layer(&files, ["sh", "wget"].into_iter()).unwrap();
        let first = make();
        assert_eq!(first.compressed, make().compressed);
        let text = uncompressed(&first);
        assert_eq!(first.diff_id, Digest::of(&text).as_str());
        assert_eq!(find_files(&text, &["bin/busybox"]).unwrap(), files);
        // A link is no file.
        assert!(find_files(&text, &["bin/sh"]).is_err());
    }

    #[test]
    fn a_package_without_the_file_is_refused() {
        let other = layer(|tar| add(tar, "./bin/sh", EntryType::Regular, 0o755, b"x")).unwrap();
        assert!(find_files(&uncompressed(&other), &["bin/busybox"]).is_err());
        assert_eq!(
            find_files(&uncompressed(&other), &["bin/sh"])
                .unwrap()
                .len(),
            1
        );
        assert!(find_files(b"no tar", &["bin/sh"]).is_err());
    }

    fn uncompressed(layer: &Layer) -> Vec<u8> {
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(layer.compressed.as_slice())
            .read_to_end(&mut text)
            .unwrap();
        text
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
