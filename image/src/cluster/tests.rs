//! A cluster image is written and its parts are found again.

use std::io::Write;

use super::*;
use crate::{Encoding, digest::sha256};

fn put(dir: &std::path::Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::File::create(&path)
        .unwrap()
        .write_all(bytes)
        .unwrap();
    path
}

fn add(writer: &mut Writer, bytes: &[u8], media_type: &str) -> Descriptor {
    let digest = writer.add_blob_bytes(bytes, media_type).unwrap();
    descriptor(&digest, bytes.len() as u64, media_type).unwrap()
}

fn image_of(
    writer: &mut Writer,
    artifact: Option<&str>,
    config: Descriptor,
    layers: Vec<Descriptor>,
) -> Descriptor {
    let mut builder = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers);
    if let Some(artifact) = artifact {
        builder = builder.artifact_type(MediaType::from(artifact));
    }
    let manifest = builder.build().unwrap();
    write_json(writer, &manifest, MediaType::ImageManifest.as_ref())
        .unwrap()
        .0
}

/// Writes a whole cluster; `change` may spoil its config.
fn build(dir: &std::path::Path, change: impl FnOnce(&mut ClusterConfig)) -> Result<ClusterImage> {
    let path = dir.join("image");
    let mut writer = Writer::create(&path, &put(dir, "elf", b"elf")).unwrap();
    let rootfs = put(dir, "rootfs", b"rootfs");
    let digest = sha256(b"rootfs");
    writer
        .add_blob_file(&rootfs, &digest, LAYER_TAR, Encoding::Raw)
        .unwrap();
    let rootfs = descriptor(&digest, 6, LAYER_TAR).unwrap();
    let lowest = rootfs.clone();
    let elf = add(&mut writer, b"elf", GRAVITY_ELF);
    let base = BaseConfig {
        version: "6.0.0".into(),
        planet_config_version: 1,
        product_versions: ">=6.0.0, <7.0.0".into(),
        platform: "linux/amd64".into(),
        components: vec![Component {
            name: "etcd".into(),
            version: "v3.6.8".into(),
            license: Some("Apache-2.0".into()),
        }],
    };
    let (base, _) = write_json(&mut writer, &base, BASE_CONFIG).unwrap();
    let base = image_of(&mut writer, Some(BASE_ARTIFACT), base, vec![rootfs, elf]);
    let config = add(&mut writer, b"{}", MediaType::ImageConfig.as_ref());
    let layer = add(&mut writer, b"layer", MediaType::ImageLayerGzip.as_ref());
    let app = image_of(&mut writer, None, config, vec![layer.clone(), layer]);
    let config = add(&mut writer, b"{}", MediaType::ImageConfig.as_ref());
    let own = add(&mut writer, b"own", MediaType::ImageLayerZstd.as_ref());
    let planet = image_of(&mut writer, None, config, vec![lowest, own]);
    let manifest = add(&mut writer, b"kind: Cluster\n", MANIFEST_YAML);
    let resources = add(&mut writer, b"tar", LAYER_TAR);
    let mut config = ClusterConfig {
        version: CONFIG_VERSION,
        name: "telekube".into(),
        image_version: "1.0.0".into(),
        description: String::new(),
        base: BaseReference {
            reference: "gravity:6.0.0".into(),
            digest: base.digest().to_string(),
        },
        planets: BTreeMap::from([("db".into(), planet.digest().to_string())]),
        images: vec![ApplicationImage {
            reference: "leader.telekube.local:5000/app:1".into(),
            source: "quay.io/app:1".into(),
            digest: app.digest().to_string(),
            index: None,
        }],
        license_authorities: None,
        manifest: manifest.digest().to_string(),
        resources: resources.digest().to_string(),
        archive: None,
    };
    change(&mut config);
    let root = write_root(
        &mut writer,
        &config,
        vec![manifest, resources],
        base,
        vec![app, planet],
    )?;
    writer.finish(&root, "linux/amd64").unwrap();
    ClusterImage::open(Image::open(path).unwrap())
}

#[test]
fn a_cluster_is_found_from_its_root() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = build(dir.path(), |_| {}).unwrap();
    assert_eq!(cluster.config.name, "telekube");
    assert_eq!(cluster.manifest_yaml().unwrap(), "kind: Cluster\n");
    let base = cluster.base().unwrap();
    assert_eq!(base.config.components[0].name, "etcd");
    assert_eq!(base.rootfs, sha256(b"rootfs"));
    assert_eq!(base.gravity, sha256(b"elf"));
    let digest = &cluster.config.images[0].digest;
    let blobs = cluster.image_blobs(digest).unwrap();
    assert_eq!(blobs, [digest.clone(), sha256(b"{}"), sha256(b"layer")]);
    assert_eq!(cluster.index.manifests().len(), 4);
    let again = tempfile::tempdir().unwrap();
    build(again.path(), |_| {}).unwrap();
    let bytes = |dir: &tempfile::TempDir| std::fs::read(dir.path().join("image")).unwrap();
    assert!(bytes(&dir) == bytes(&again));
}

#[test]
fn each_profile_has_a_planet() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = build(dir.path(), |_| {}).unwrap();
    let layers = |profile: &str| {
        let layers = cluster.planet(profile).unwrap().layers.into_iter();
        layers
            .map(|layer| (layer.digest, layer.media_type))
            .collect::<Vec<_>>()
    };
    let rootfs = (sha256(b"rootfs"), LAYER_TAR.to_owned());
    let own = (sha256(b"own"), MediaType::ImageLayerZstd.to_string());
    assert_eq!(layers("web"), std::slice::from_ref(&rootfs));
    assert_eq!(layers("db"), [rootfs, own]);
    assert_eq!(cluster.planet("web").unwrap().digest, sha256(b"rootfs"));
    // An image that isn't made of the base.
    let cluster = build(dir.path(), |config| {
        let app = config.images[0].digest.clone();
        config.planets.insert("db".into(), app);
    });
    let error = cluster.unwrap().planet("db").unwrap_err().to_string();
    assert!(error.contains("does not begin with the base's"), "{error}");
}

#[test]
fn a_cluster_that_is_not_whole_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = build(dir.path(), |config| config.version = 2)
        .unwrap_err()
        .to_string();
    assert!(error.contains("version 2"), "{error}");
    let missing = |change: fn(&mut ClusterConfig)| {
        matches!(build(dir.path(), change), Err(Error::MissingBlob { .. }))
    };
    assert!(missing(|config| config.images[0].digest = sha256(b"?")));
    assert!(missing(|config| config.resources = sha256(b"?")));
    let mut writer =
        Writer::create(dir.path().join("other"), &put(dir.path(), "elf", b"elf")).unwrap();
    let root = writer
        .add_blob_bytes(b"{\"schemaVersion\":2,\"manifests\":[]}", "a/b")
        .unwrap();
    writer.finish(&root, "linux/amd64").unwrap();
    let image = Image::open(dir.path().join("other")).unwrap();
    let error = ClusterImage::open(image).unwrap_err().to_string();
    assert!(error.contains("lists no cluster"), "{error}");
}

#[test]
fn the_config_says_what_an_archive_has_behind_the_image() {
    use crate::file::archive::{MODE, NAME, Rest, header, padding};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.tar");
    let archived = |archive: Option<Rest>, time: u64, rest: &[u8]| {
        build(dir.path(), |config| config.archive = archive).unwrap();
        let image = std::fs::read(dir.path().join("image")).unwrap();
        let length = image.len() as u64;
        let first = header(NAME, length, MODE, time).unwrap();
        let zeros = vec![0; padding(length) as usize];
        let whole = [&first.as_bytes()[..], &image, &zeros, rest].concat();
        let mut file = std::fs::File::create(&path).unwrap();
        std::io::Write::write_all(&mut file, &whole).unwrap();
        let cluster = ClusterImage::open(Image::open(&path).unwrap()).unwrap();
        assert!(cluster.image.is_archived());
        let alone = dir.path().join("alone");
        cluster.image.extract_image(&alone).unwrap();
        assert!(std::fs::read(&alone).unwrap() == image);
        let mode = std::os::unix::fs::MetadataExt::mode(&alone.metadata().unwrap());
        assert_eq!(mode & 0o7777, MODE);
        let found = cluster.verify_archive();
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let known = Rest::of(b"rest");
    assert_eq!(archived(Some(known.clone()), 0, b"rest"), [""; 0]);
    assert_eq!(
        archived(Some(known.clone()), 1_700_000_000, b"rest"),
        [""; 0]
    );
    for (rest, problem) in [
        (&b"res"[..], "is missing"),
        (b"tser", "expected sha256:"),
        (b"rest!", "was added"),
    ] {
        let found = archived(Some(known.clone()), 0, rest);
        assert!(found.len() == 1 && found[0].contains(problem), "{found:?}");
    }
    let endless = Rest {
        size: u64::MAX,
        ..known
    };
    assert!(archived(Some(endless), 0, b"rest")[0].ends_with("is missing"));
    // One of before.
    assert_eq!(archived(None, 0, b"anything"), [""; 0]);
    let alone = build(dir.path(), |_| {}).unwrap();
    assert_eq!(alone.verify_archive(), []);
}
