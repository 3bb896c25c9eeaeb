//! What holds for any input: shared by tests and fuzz targets.
//!
//! In: bytes. Out: nothing, or a panic where something doesn't hold.

use std::io::Write;
use std::path::Path;

use event::Discard;
use gravity_image::cluster::ClusterImage;
use gravity_image::digest::sha256;
use gravity_image::file::Index;
use gravity_image::layer::Compression;
use gravity_image::unpack::{Devices, Limits, Options, unpack};
use gravity_image::{Chunks, Image, ReadChunks, Writer};

fn put(path: &Path, bytes: &[u8]) {
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(bytes).unwrap();
}

/// Any bytes as the file of an image: they are none, or all of it can be read.
pub(crate) fn image(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    put(&path, bytes);
    if let Ok(image) = Image::open(&path) {
        let damaged = !image.verify(&Discard).is_empty();
        let dest = dir.path().join("blob");
        for blob in image.blobs() {
            let read = image.extract(&blob.digest, &dest);
            assert!(read.is_ok() || damaged, "{read:?}");
        }
        cluster(image);
    }
}

/// Any text as an index: blobs are in the file, in order, and don't overlap.
pub(crate) fn index(text: &[u8], end: u64) {
    let Ok(index) = Index::parse(text, end) else {
        return;
    };
    let mut at = index.elf.size;
    for blob in &index.blobs {
        assert!(blob.offset >= at && blob.offset - at < 3 * 4096);
        at = blob.offset.checked_add(blob.length).unwrap();
        let frames: u64 = blob.frames.iter().map(|one| u64::from(one.length)).sum();
        assert!(blob.frames.is_empty() || frames == blob.length);
    }
    assert!(at <= end);
}

/// Any texts, separated by `---`, as the documents of an image, the root first.
/// `@N` stands for the digest of the Nth, counted from 0.
pub(crate) fn documents(text: &[u8]) {
    let mut documents: Vec<Vec<u8>> =
        text.split(|byte| *byte == b'\n')
            .fold(vec![Vec::new()], |mut documents, line| {
                match line == b"---" && documents.len() < 10 {
                    true => documents.push(Vec::new()),
                    false => documents.last_mut().unwrap().extend_from_slice(line),
                }
                documents
            });
    let dir = tempfile::tempdir().unwrap();
    let elf = dir.path().join("elf");
    put(&elf, b"elf");
    let path = dir.path().join("image");
    let mut writer = Writer::create(&path, &elf).unwrap();
    let mut root = String::new();
    for number in (0..documents.len()).rev() {
        let bytes = std::mem::take(&mut documents[number]);
        root = writer.add_blob_bytes(&bytes, "a/b").unwrap();
        let name = format!("@{number}");
        for earlier in &mut documents[..number] {
            *earlier = replace(earlier, name.as_bytes(), root.as_bytes());
        }
    }
    writer.finish(&root, "linux/amd64").unwrap();
    cluster(Image::open(&path).unwrap());
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with(from) {
            out.extend_from_slice(to);
            at += from.len();
        } else {
            out.push(text[at]);
            at += 1;
        }
    }
    out
}

/// Follows all references of a cluster image, if it is one.
fn cluster(image: Image) {
    let Ok(cluster) = ClusterImage::open(image) else {
        return;
    };
    let _ = (cluster.base(), cluster.manifest_yaml());
    let profiles: Vec<_> = cluster.config.planets.keys().cloned().collect();
    for profile in profiles.iter().map(String::as_str).chain([""]) {
        if let (Ok(planet), Ok(base)) = (cluster.planet(profile), cluster.base()) {
            assert_eq!(planet.layers[0].digest, base.rootfs);
        }
    }
    for one in &cluster.config.images {
        for blob in cluster.image_blobs(&one.digest).into_iter().flatten() {
            assert!(cluster.image.blob(&blob).is_some());
        }
    }
}

/// Small enough that any input ends soon.
fn bounded(mut options: Options) -> Options {
    options.devices = Devices::Skip;
    options.limits = Limits {
        entries: 1000,
        depth: 16,
        path: 512,
        bytes: 1 << 20,
    };
    options
}

/// Any bytes as a layer, after a byte that names its compression.
pub(crate) fn layer(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let compression = match kind {
        b'g' => Compression::Gzip,
        b'z' => Compression::Zstd,
        _ => Compression::None,
    };
    // A tar longer than its limit is refused at once: decoding is what is tried.
    for options in [Options::resources(), Options::rootfs()] {
        let mut tar = ReadChunks::new(compression.decode(bytes).unwrap());
        layers(&mut [&mut tar], &bounded(options));
    }
}

/// Layers, unpacked beside a file that must not change; what came out stays
/// inside, what failed leaves nothing.
pub(crate) fn layers(layers: &mut [&mut dyn Chunks], options: &Options) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    put(&outside.join("secret"), b"secret");
    let root = dir.path().join("root");
    let result = unpack(layers, &root, options, &Discard);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
    let links =
        std::os::unix::fs::MetadataExt::nlink(&std::fs::metadata(outside.join("secret")).unwrap());
    assert_eq!(links, 1);
    match &result {
        Ok(report) => {
            assert!(report.entries <= options.limits.entries);
            assert!(report.bytes <= options.limits.bytes);
            if options.confine_symlinks {
                confined(&root, &root);
            }
        }
        Err(_) => assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1),
    }
    result.is_ok()
}

/// No link below `dir` leads out of `root`.
fn confined(dir: &Path, root: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            confined(&path, root);
        } else if meta.is_symlink()
            && let Ok(target) = path.canonicalize()
        {
            let root = root.canonicalize().unwrap();
            assert!(target.starts_with(root), "{path:?} leads to {target:?}");
        }
    }
}

/// The limits that tests and targets use.
pub(crate) fn options(confined: bool) -> Options {
    bounded(match confined {
        true => Options::resources(),
        false => Options::rootfs(),
    })
}

/// A digest, for texts that must have one.
pub(crate) fn digest(text: &str) -> String {
    sha256(text.as_bytes())
}
