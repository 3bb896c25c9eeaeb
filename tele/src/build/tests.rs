//! Whole builds, with a hub and a cache of their own and without a network.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, PoisonError};

use event::Memory;
use image::Image;
use image::cluster::{BASE_ARTIFACT, BASE_CONFIG, ClusterImage, GRAVITY_ELF, LAYER_TAR};
use oci::{Credentials, Digest};
use serde_json::json;

use super::resources::Selection;
use super::*;
use crate::unfinished::Overwrite;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const APP: &str = "\
apiVersion: cluster.gravitational.io/v2
kind: Cluster
metadata: {name: shop, resourceVersion: 1.0.0}
installer: {eula: {source: file://eula.txt}}
hooks:
  install:
    job: |
      apiVersion: batch/v1
      kind: Job
      metadata: {name: install}
      spec:
        template:
          spec:
            containers:
              - {name: hook, image: \"IMAGE\"} # kept
            restartPolicy: Never
";
const OBJECT: &str = "\
# A pod
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  containers:
    - name: a
      image:  IMAGE
";

/// A vendor's machine.
pub(crate) struct Vendor {
    dir: tempfile::TempDir,
    /// An image that is in the cache, pinned.
    image: String,
    digest: Digest,
    /// What is built.
    app: PathBuf,
    helm: PathBuf,
    /// The hub, where it is a registry.
    remote: Option<Hub>,
}

fn put(path: &Path, text: &str, mode: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    host::atomic::write(path, text.as_bytes(), mode).unwrap();
}

/// Nothing is asked that isn't on this machine.
fn client() -> Client {
    let rules = "[[registry]]\nlocation = 'docker.io'\nblocked = true";
    let retry = Retry {
        tries: 1,
        ..Retry::default()
    };
    let registries = Registries::parse(rules).unwrap();
    Client::new(registries, Credentials::default(), 2, retry)
}

/// A registry with the images of a layout below `team/`.
#[derive(Clone)]
struct Registry {
    layout: Layout,
    /// Paths that it was asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    /// Begins to serve at the address that is returned.
    fn start(layout: Layout) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::default();
        let registry = Self { layout, asked };
        let serving = registry.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let registry = serving.clone();
                // Who asks may go at any time.
                std::thread::spawn(move || registry.serve(stream).ok());
            }
        });
        (registry, address)
    }

    fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut asked)
    }

    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut greeting = [0];
        stream.peek(&mut greeting)?;
        if greeting == [0x16] {
            // TLS: who asks tries without it then.
            return Ok(());
        }
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        while lines
            .next()
            .transpose()?
            .is_some_and(|line| !line.is_empty())
        {}
        let body = self.body(&path);
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(path);
        drop(asked);
        let (status, body) = body.map_or((404, b"{}".to_vec()), |body| (200, body));
        let size = body.len();
        write!(
            stream,
            "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n"
        )?;
        stream.write_all(&body)
    }

    fn body(&self, path: &str) -> Option<Vec<u8>> {
        let path = path.strip_prefix("/v2/team/")?;
        if let Some((name, _)) = path.split_once("/tags/list") {
            let tags = self.layout.tags().ok()?;
            let tags = tags.iter().filter_map(|(reference, _)| {
                let (other, tag) = reference.split_once(':')?;
                (other == name).then_some(tag)
            });
            let tags: Vec<_> = tags.collect();
            return Some(json!({ "tags": tags }).to_string().into_bytes());
        }
        let (path, wanted) = path.rsplit_once('/')?;
        let digest = wanted.parse().or_else(|_| {
            let name = path.strip_suffix("/manifests").unwrap_or(path);
            let found = self.layout.resolve(&format!("{name}:{wanted}"));
            Digest::try_from(found.map_err(drop)?.digest()).map_err(drop)
        });
        self.layout.read_blob(&digest.ok()?, 1 << 20).ok()
    }
}

impl Vendor {
    /// The same with the hub in a registry.
    fn with_registry() -> (Self, Registry) {
        let vendor = Self::new();
        let (registry, address) = Registry::start(Layout::open(vendor.at("hub")).unwrap());
        let remote = Hub::open(Some(&format!("http://{address}/team")), &client(), false);
        let remote = Some(remote.unwrap());
        (Self { remote, ..vendor }, registry)
    }

    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hub = Layout::open_or_create(dir.path().join("hub")).unwrap();
        let config = json!({
            "version": "6.0.0", "planet_config_version": 1, "product_versions": ">=6.0.0, <7.0.0",
            "platform": "linux/amd64", "components": [{"name": "kubernetes", "version": "v1.37.2"}],
        });
        let config = hub
            .put_blob_bytes(config.to_string().as_bytes(), BASE_CONFIG)
            .unwrap();
        let rootfs = hub
            .put_blob_bytes(&b"rootfs".repeat(1000), LAYER_TAR)
            .unwrap();
        let elf = hub.put_blob_bytes(b"\x7fELF program", GRAVITY_ELF).unwrap();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BASE_ARTIFACT,
            "config": config, "layers": [rootfs, elf],
        });
        let base = hub
            .put_blob_bytes(manifest.to_string().as_bytes(), MANIFEST)
            .unwrap();
        hub.tag("gravity:6.0.0", base.clone()).unwrap();
        hub.tag("gravity:5.9.0", base).unwrap();

        let cache = Layout::open_or_create(dir.path().join("state/images")).unwrap();
        let config = br#"{"os":"linux","architecture":"amd64"}"#;
        let config = cache
            .put_blob_bytes(config, "application/vnd.oci.image.config.v1+json")
            .unwrap();
        let layer = cache
            .put_blob_bytes(b"layer", "application/vnd.oci.image.layer.v1.tar+gzip")
            .unwrap();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
        });
        let manifest = cache
            .put_blob_bytes(manifest.to_string().as_bytes(), MANIFEST)
            .unwrap();
        let digest = Digest::try_from(manifest.digest()).unwrap();
        let vendor = Self {
            image: format!("quay.io/team/app@{digest}"),
            digest,
            app: dir.path().join("app"),
            helm: dir.path().join("helm"),
            remote: None,
            dir,
        };
        vendor.put("app.yaml", APP);
        vendor.put("eula.txt", "be nice");
        vendor.put("resources/pod.yaml", OBJECT);
        vendor.put("resources/notes.txt", "image: IMAGE\n");
        vendor.put(
            "charts/example/Chart.yaml",
            "apiVersion: v2\nname: example\nversion: 0.1.0\n",
        );
        vendor.put("charts/example/templates/pod.yaml", OBJECT);
        // Stands for helm, which needs a cluster's base image to be built.
        let helm = "#!/bin/sh\n[ -e \"$4/broken\" ] && { echo 'Error: parse error at (broken:1)' >&2; exit 1; }\n\
            echo '# Source: example/templates/pod.yaml'; cat \"$4/templates/pod.yaml\"\n";
        put(&vendor.at("helm"), helm, 0o755);
        vendor
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn put(&self, name: &str, text: &str) {
        put(
            &self.at("app").join(name),
            &text.replace("IMAGE", &self.image),
            0o644,
        );
    }

    pub(crate) fn build(&self, name: &str, sink: &Arc<Memory>) -> Result<PathBuf> {
        self.build_as(name, sink, |_| {})
    }

    /// Builds with other options.
    fn build_as(
        &self,
        name: &str,
        sink: &Arc<Memory>,
        change: impl FnOnce(&mut Job<'_>),
    ) -> Result<PathBuf> {
        let path = self.at(name);
        let state = self.at("state");
        let hub = match &self.remote {
            Some(_) => Layout::open_or_create(state.join("hub")).unwrap(),
            None => Layout::open(self.at("hub")).unwrap(),
        };
        let client = client();
        let licenses = self.at("licenses");
        let mut job = Job {
            path: &self.app,
            state: &state,
            hub: &hub,
            remote: self.remote.as_ref(),
            base: None,
            chart_options: charts::Options {
                helm: self.helm.as_os_str(),
                set: &[],
                values: &[],
            },
            selection: resources::Selection::new(&[], &[]).unwrap(),
            replacements: images::Replacements::default(),
            license_ca: None,
            license_authority: Some(&licenses),
            environment: Environment::default(),
            locked: false,
            client: &client,
            parallel: 2,
        };
        change(&mut job);
        let output = Output::choose(Some(&path), Path::new("/"), Overwrite::Replace)?;
        let sink: Arc<dyn Sink> = sink.clone();
        job.build(&output, &sink)?;
        Ok(path)
    }

    /// Builds what must fail; returns why. No file may be left.
    fn error(&self) -> String {
        let error = self.build("app/out.tar", &Arc::default()).unwrap_err();
        let left: Vec<_> = walkdir::WalkDir::new(self.at("app"))
            .into_iter()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(PARTIAL) || name == "out.tar")
            .collect();
        assert_eq!(left, [""; 0]);
        match error.downcast_ref::<manifest::Rejected>() {
            Some(rejected) => rejected
                .diagnostics
                .iter()
                .map(|d| format!("{d}\n"))
                .collect(),
            None => format!("{error:#}"),
        }
    }
}

#[test]
fn variables_are_replaced_where_that_is_asked_for() {
    let vendor = Vendor::new();
    let app = APP.replace("1.0.0", "${SHOP_VERSION}");
    let app = app.replace("# kept", "# ${KEPT}");
    vendor.put("app.yaml", &app);
    assert!(vendor.error().contains("error["));
    let sink = Arc::new(Memory::default());
    let environment = Environment::new(&["SHOP_VERSION=1.2.3".to_owned()], &|_| None).unwrap();
    let path = vendor
        .build_as("shop.tar", &sink, |job| job.environment = environment)
        .unwrap();
    let cluster = ClusterImage::open(Image::open(&path).unwrap()).unwrap();
    assert_eq!(cluster.config.image_version, "1.2.3");
    assert!(cluster.manifest_yaml().unwrap().contains("${KEPT}"));
    let missing = Environment::new(&[String::new()], &|_| None).unwrap();
    let failed = vendor.build_as("none.tar", &sink, |job| job.environment = missing);
    assert!(
        failed
            .unwrap_err()
            .to_string()
            .contains("has no KEPT, SHOP_VERSION")
    );
}

#[test]
fn logo_and_authority_of_licenses_are_in_the_image() {
    let vendor = Vendor::new();
    let with = |more: &str| vendor.put("app.yaml", &format!("{APP}{more}"));
    let logo = "data:image/svg+xml;base64,PHN2Zy8+";
    vendor.put("logo.svg", "<svg/>");
    with("logo: file://logo.svg\nlicense: {enabled: true}\n");
    let sink = Arc::new(Memory::default());
    let path = vendor.build("shop.tar", &sink).unwrap();
    let cluster = ClusterImage::open(Image::open(&path).unwrap()).unwrap();
    let authority = std::fs::read_to_string(vendor.at("licenses/authority.crt")).unwrap();
    assert_eq!(cluster.config.license_authorities, Some(authority.clone()));
    let inspection = crate::inspect::Inspection::of(&cluster).unwrap();
    assert_eq!(inspection.manifest["logo"], logo);
    let shown = inspection.logo.unwrap();
    assert_eq!((&*shown.media_type, shown.size), ("image/svg+xml", 6));
    assert_eq!(inspection.license_authorities.len(), 1);
    // Another's, and none where none is demanded.
    let other = pki::Authority::generate("other", std::time::Duration::from_secs(9999)).unwrap();
    let file = vendor.at("ca.crt");
    host::atomic::write(&file, other.certificate_pem().as_bytes(), 0o644).unwrap();
    let path = vendor
        .build_as("other.tar", &sink, |job| job.license_ca = Some(file))
        .unwrap();
    let cluster = ClusterImage::open(Image::open(&path).unwrap()).unwrap();
    let packed = cluster.config.license_authorities;
    assert_eq!(packed.as_deref(), Some(other.certificate_pem()));
    with(&format!("logo: url('{logo}')\n"));
    let path = vendor.build("free.tar", &sink).unwrap();
    let cluster = ClusterImage::open(Image::open(&path).unwrap()).unwrap();
    assert_eq!(cluster.config.license_authorities, None);
    let inspection = crate::inspect::Inspection::of(&cluster).unwrap();
    assert_eq!(inspection.manifest["logo"], logo);
    for wrong in [
        "data:image/png;base64,PHN2Zy8+",
        "data:image/png;base64,!",
        "data:image/png,x",
    ] {
        with(&format!("logo: \"{wrong}\"\n"));
        assert!(vendor.error().contains("`logo`"), "{wrong}");
    }
    vendor.put("logo.svg", "<html/>");
    with("logo: file://logo.svg\n");
    assert!(vendor.error().contains("neither a PNG"));
}

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

impl Vendor {
    /// Puts a planet image into the hub: its lowest layer, recompressed as
    /// Buildah does, and one of its own whose content has this digest.
    pub(crate) fn planet(&self, name: &str, lowest: &[u8], own: &[u8], content: &Digest) {
        self.planet_on(name, b"recompressed", lowest, own, content);
    }

    /// The same with the blob of its lowest layer.
    pub(crate) fn planet_on(
        &self,
        name: &str,
        blob: &[u8],
        lowest: &[u8],
        own: &[u8],
        content: &Digest,
    ) {
        let hub = Layout::open(self.at("hub")).unwrap();
        let put = |bytes: &[u8], kind: &str| hub.put_blob_bytes(bytes, kind).unwrap();
        let config = json!({
            "os": "linux", "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(lowest).as_str(), content.as_str()]},
        });
        let kind = "application/vnd.oci.image.config.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": put(config.to_string().as_bytes(), kind),
            "layers": [put(blob, GZIP), put(own, GZIP)],
        });
        let manifest = put(manifest.to_string().as_bytes(), MANIFEST);
        hub.tag(name, manifest).unwrap();
    }
}

#[test]
fn a_planet_of_ones_own_adds_its_layers() {
    let vendor = Vendor::new();
    let base = b"rootfs".repeat(1000);
    let own = gzip_of(b"package");
    // As Buildah names an image without a registry.
    let content = Digest::of(b"package");
    vendor.planet("localhost/custom-planet:1.0.0", &base, &own, &content);
    let profiles = |image: &str| {
        let profiles = format!(
            "nodeProfiles:\n- {{name: worker, systemOptions: {{baseImage: '{image}'}}}}\n- {{name: db}}\n"
        );
        vendor.put("app.yaml", &format!("{APP}{profiles}"));
    };
    profiles("custom-planet:1.0.0");
    let path = vendor.build("shop", &Arc::default()).unwrap();
    let image = Image::open(path).unwrap();
    assert_eq!(image.verify(&event::Discard), []);
    let cluster = ClusterImage::open(image.clone()).unwrap();
    let layers = |profile: &str| -> Vec<String> {
        let planet = cluster.planet(profile).unwrap();
        planet
            .layers
            .into_iter()
            .map(|layer| layer.digest)
            .collect()
    };
    let (rootfs, own) = (Digest::of(&base).to_string(), Digest::of(&own).to_string());
    assert_eq!(layers("worker"), [rootfs.clone(), own]);
    assert_eq!(layers("db"), [rootfs]);
    assert!(image.blob(Digest::of(b"recompressed").as_str()).is_none());
    // All that its manifest names is there.
    cluster
        .image_blobs(&cluster.config.planets["worker"])
        .unwrap();

    let error = |name: &str| {
        profiles(name);
        vendor.error()
    };
    let text = error("custom-planet:latest");
    assert!(text.contains("not a semantic version"), "{text}");
    vendor.planet("old:1.0.0", b"another base", b"", &content);
    let text = error("old:1.0.0");
    assert!(
        text.contains("does not descend from") && text.contains("FROM planet:6.0.0"),
        "{text}"
    );
    vendor.planet("bad:1.0.0", &base, b"no gzip", &content);
    let text = error("bad:1.0.0");
    assert!(text.contains("does not decompress"), "{text}");
    vendor.planet("lies:1.0.0", &base, &gzip_of(b"other"), &content);
    let text = error("lies:1.0.0");
    assert!(text.contains("its config says"), "{text}");
}

#[test]
fn a_registry_that_is_the_hub_is_asked_for_a_planet() {
    let (vendor, registry) = Vendor::with_registry();
    let (base, own) = (b"rootfs".repeat(1000), gzip_of(b"package"));
    for name in ["custom-planet:1.0.0", "localhost/other:1.0.0"] {
        vendor.planet(name, &base, &own, &Digest::of(b"package"));
    }
    let with = |image: &str| {
        let options = format!("systemOptions: {{baseImage: '{image}'}}\n");
        vendor.put("app.yaml", &format!("{APP}{options}"));
    };
    for name in ["custom-planet:1.0.0", "other:1.0.0"] {
        with(name);
        let path = vendor.build("shop", &Arc::default()).unwrap();
        let image = Image::open(path).unwrap();
        assert_eq!(image.verify(&event::Discard), []);
        let cluster = ClusterImage::open(image).unwrap();
        let layers = cluster.planet("").unwrap().layers;
        let layers: Vec<_> = layers.into_iter().map(|layer| layer.digest).collect();
        assert_eq!(
            layers,
            [Digest::of(&base), Digest::of(&own)].map(|d| d.to_string())
        );
    }
    // The base's root filesystem is there already.
    let copy = Digest::of(b"recompressed").to_string();
    assert!(!registry.asked().iter().any(|path| path.ends_with(&copy)));

    with("missing:1.0.0");
    let error = vendor.error();
    let hub = vendor.remote.as_ref().unwrap().describe();
    assert!(
        error.contains(&format!("the hub {hub} does not hold it either"))
            && error.contains("`tele push missing:1.0.0 --from DIR`"),
        "{error}"
    );
    // What it has and can't give is not looked for elsewhere.
    let index = json!({"schemaVersion": 2, "manifests": []}).to_string();
    let index = registry.layout.put_blob_bytes(index.as_bytes(), "index");
    registry.layout.tag("index:1.0.0", index.unwrap()).unwrap();
    with("index:1.0.0");
    let error = vendor.error();
    assert!(
        error.contains(&format!("cannot take index:1.0.0 from the hub {hub}")),
        "{error}"
    );
}

pub(crate) fn gzip_of(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, bytes).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn a_build_holds_everything_and_is_the_same_again() {
    let vendor = Vendor::new();
    let sink = Arc::new(Memory::default());
    let path = vendor.build("app/shop.run", &sink).unwrap();
    let warnings = sink
        .events()
        .into_iter()
        .filter(|e| matches!(e, event::Event::Warning { .. }))
        .count();
    assert_eq!(warnings, 0);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o755);
    let first = std::fs::read(&path).unwrap();
    let image = Image::open(&path).unwrap();
    assert_eq!(image.verify(&event::Discard), []);
    let cluster = ClusterImage::open(image.clone()).unwrap();
    let config = &cluster.config;
    assert_eq!(
        (config.name.as_str(), config.image_version.as_str()),
        ("shop", "1.0.0")
    );
    // No base was asked for: the newest.
    assert_eq!(config.base.reference, "gravity:6.0.0");
    let [application] = config.images.as_slice() else {
        panic!("{:?}", config.images)
    };
    let renamed = format!("leader.telekube.local:5000/team/app@{}", vendor.digest);
    assert_eq!(application.reference, renamed);
    assert_eq!(application.source, vendor.image);
    assert_eq!(cluster.image_blobs(&application.digest).unwrap().len(), 3);
    let elf = image.elf().digest.clone();
    assert_eq!(cluster.base().unwrap().gravity, elf);

    let manifest = ::manifest::parse(&cluster.manifest_yaml().unwrap(), "resolved").unwrap();
    assert_eq!(manifest.eula(), Some("be nice"));
    let job = manifest.hooks.values().next().unwrap();
    assert!(
        job.contains(&format!("image: \"{renamed}\"}} # kept")),
        "{job}"
    );

    let tar = image.read_blob_bytes(&config.resources, 1 << 20).unwrap();
    let mut files = std::collections::BTreeMap::new();
    for entry in tar::Archive::new(tar.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
        files.insert(entry.path().unwrap().to_string_lossy().into_owned(), text);
    }
    assert_eq!(
        files["resources/pod.yaml"],
        OBJECT.replace("IMAGE", &renamed)
    );
    // Charts and other files stay as they are; the output is none of them.
    assert_eq!(
        files["charts/example/templates/pod.yaml"],
        OBJECT.replace("IMAGE", &vendor.image)
    );
    assert_eq!(
        files["resources/notes.txt"],
        format!("image: {}\n", vendor.image)
    );
    assert_eq!(files["app.yaml"], APP.replace("IMAGE", &vendor.image));
    assert!(!files.contains_key("shop.run"), "{:?}", files.keys());
    assert!(!files.contains_key("app.lock"), "{:?}", files.keys());

    // Other builds beside the first give the same bytes, and are no resources.
    vendor.build("app/shop.run", &sink).unwrap();
    vendor.build("app/shop.tar", &sink).unwrap();
    let again = vendor.build("app/again.run", &sink).unwrap();
    assert!(std::fs::read(&path).unwrap() == first);
    assert!(std::fs::read(&again).unwrap() == first);
}

#[test]
fn a_tar_holds_the_executable_and_scripts() {
    let vendor = Vendor::new();
    let path = vendor.build("shop.tar", &Arc::default()).unwrap();
    let alone = std::fs::read(vendor.build("shop", &Arc::default()).unwrap()).unwrap();
    let mut names = Vec::new();
    for entry in tar::Archive::new(std::fs::File::open(path).unwrap())
        .entries()
        .unwrap()
    {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        names.push(format!("{name} {:o}", entry.header().mode().unwrap()));
        if name == "gravity" {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            assert!(bytes == alone);
        }
    }
    let expected = [
        "gravity 755",
        "app.yaml 644",
        "README 644",
        "install 755",
        "run_preflight_checks 755",
    ];
    assert_eq!(names, expected);
}

#[test]
fn what_is_wrong_is_named_and_nothing_is_left() {
    let vendor = Vendor::new();
    vendor.put("charts/example/broken", "");
    let error = vendor.error();
    assert!(
        error.contains("render the chart") && error.contains("charts/example"),
        "{error}"
    );
    assert!(error.contains("parse error at (broken:1)"), "{error}");
    std::fs::remove_file(vendor.at("app/charts/example/broken")).unwrap();

    vendor.put("bad.yaml", "apiVersion: v1\nkind: Pod\nspec: [\n");
    assert!(
        vendor.error().contains("bad.yaml: not valid YAML: line"),
        "{}",
        vendor.error()
    );
    vendor.put(
        "bad.yaml",
        "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: A B\n",
    );
    assert!(
        vendor
            .error()
            .contains("bad.yaml:5: `A B` is not the name of an image"),
        "{}",
        vendor.error()
    );
    std::fs::remove_file(vendor.at("app/bad.yaml")).unwrap();

    std::fs::remove_file(vendor.at("app/eula.txt")).unwrap();
    vendor.put(
        "app.yaml",
        &format!("{APP}storage: {{openebs: {{enabled: true}}}}\n"),
    );
    let error = vendor.error();
    assert!(
        error.contains("installer.eula.source") && error.contains("storage.openebs.enabled"),
        "{error}"
    );
    vendor.put("eula.txt", "be nice");

    vendor.put("app.yaml", &APP.replace("containers:", "containrs:"));
    let error = vendor.error();
    assert!(
        error.contains("no field spec.template.spec.containrs"),
        "{error}"
    );

    vendor.put("app.yaml", &format!("baseImage: gravity:6.1.0\n{APP}"));
    let error = vendor.error();
    assert!(
        error.contains("no image `gravity:6.1.0`; it holds gravity:5.9.0, gravity:6.0.0"),
        "{error}"
    );

    // A rotten cache does not get into an image.
    vendor.put("app.yaml", APP);
    let layer = vendor
        .at("state/images/blobs/sha256")
        .join(Digest::of(b"layer").hex());
    put(&layer, "LAYER", 0o644);
    let error = vendor.error();
    assert!(
        error.contains(Digest::of(b"layer").hex()) && error.contains("remove the file"),
        "{error}"
    );

    let program = vendor
        .at("hub/blobs/sha256")
        .join(Digest::of(b"\x7fELF program").hex());
    put(&layer, "layer", 0o644);
    put(&program, "\x7fELF PROGRAM", 0o644);
    let error = vendor.error();
    assert!(error.contains("make the base image again"), "{error}");
}

#[test]
fn the_lock_file_holds_names_to_digests() {
    let vendor = Vendor::new();
    let sink = Arc::new(Memory::default());
    vendor.build("shop", &sink).unwrap();
    let lock = vendor.at("app/app.lock");
    let text = std::fs::read_to_string(&lock).unwrap();
    // What is pinned can't change.
    assert!(text.contains("\"gravity:6.0.0\": \"sha256:"), "{text}");
    assert!(text.contains("\"images\": {}"), "{text}");

    // A tag is taken from the cache when the lock says which image it is.
    let mut vendor = vendor;
    let name = "quay.io/team/app:1";
    vendor.image = name.into();
    for file in ["resources/pod.yaml", "charts/example/templates/pod.yaml"] {
        vendor.put(file, OBJECT);
    }
    vendor.put("app.yaml", APP);
    let locked = |vendor: &Vendor| {
        let built = vendor.build_as("shop", &sink, |job| job.locked = true);
        built.map_err(|error| format!("{error:#}"))
    };
    let error = locked(&vendor).unwrap_err();
    assert!(
        error.contains("app.lock does not fit: it lacks quay.io/team/app:1"),
        "{error}"
    );
    let with = |image: &str, digest: &str| {
        let images = format!("\"images\": {{\"{image}\": \"{digest}\"}}");
        let text = text.replace("\"images\": {}", &images);
        put(&lock, &text, 0o644);
    };
    let digest = vendor.digest.to_string();
    with(name, &digest);
    let cluster = Image::open(locked(&vendor).unwrap()).unwrap();
    let cluster = ClusterImage::open(cluster).unwrap();
    let image = &cluster.config.images[0];
    assert_eq!(image.reference, "leader.telekube.local:5000/team/app:1");
    assert_eq!((image.source.as_str(), &image.digest), (name, &digest));

    with("quay.io/other:1", &digest);
    let error = locked(&vendor).unwrap_err();
    assert!(
        error.contains("it lacks quay.io/team/app:1; quay.io/other:1 is not used any more"),
        "{error}"
    );
    put(&lock, &text.replace("6.0.0", "5.9.0"), 0o644);
    let error = vendor.build_as("shop", &sink, |job| {
        job.locked = true;
        job.base = Some("gravity:6.0.0".parse().unwrap());
    });
    let error = format!("{:#}", error.unwrap_err());
    assert!(
        error.contains("it lacks the base image gravity:6.0.0"),
        "{error}"
    );
    for bad in [
        "",
        "yarn lockfile v1",
        "[]",
        "{\"version\": 3}",
        "{\"version\": 1, \"base\": 1}",
    ] {
        put(&lock, bad, 0o644);
        assert!(locked(&vendor).unwrap_err().contains("lock file"), "{bad}");
        // A file of something else is not replaced.
        assert!(vendor.error().contains("move it away"), "{bad}");
        assert_eq!(std::fs::read_to_string(&lock).unwrap(), bad);
    }
    std::fs::remove_file(&lock).unwrap();
    assert!(
        locked(&vendor)
            .unwrap_err()
            .contains("there is no lock file")
    );
}

impl Vendor {
    /// Names a planet image that consists of the base and this, and builds.
    fn lock_planet(&self, own: &[u8]) -> Result<ClusterImage> {
        let options = "systemOptions: {baseImage: 'custom-planet:1.0.0'}\n";
        self.put("app.yaml", &format!("{APP}{options}"));
        self.move_planet(own);
        self.build_planet(false)
    }

    fn move_planet(&self, own: &[u8]) {
        let base = b"rootfs".repeat(1000);
        self.planet(
            "custom-planet:1.0.0",
            &base,
            &gzip_of(own),
            &Digest::of(own),
        );
    }

    fn build_planet(&self, locked: bool) -> Result<ClusterImage> {
        let path = self.build_as("shop", &Arc::default(), |job| job.locked = locked)?;
        Ok(ClusterImage::open(Image::open(path)?)?)
    }
}

/// Whether the image's planet has this on top of the base.
fn has_planet(cluster: &ClusterImage, own: &[u8]) -> bool {
    let layers = cluster.planet("").unwrap().layers;
    layers[1].digest == Digest::of(&gzip_of(own)).to_string()
}

#[test]
fn the_lock_file_holds_planets_to_digests() {
    let vendor = Vendor::new();
    let lock = vendor.at("app/app.lock");
    let read = || std::fs::read_to_string(&lock).unwrap();
    assert!(has_planet(&vendor.lock_planet(b"one").unwrap(), b"one"));
    let hub = Layout::open(vendor.at("hub")).unwrap();
    let one = hub.resolve("custom-planet:1.0.0").unwrap();
    let one = Digest::try_from(one.digest()).unwrap();
    let text = read();
    assert!(
        text.contains(&format!("\"custom-planet:1.0.0\": \"{one}\"")),
        "{text}"
    );

    vendor.move_planet(b"two");
    assert!(has_planet(&vendor.build_planet(true).unwrap(), b"one"));
    assert_eq!(read(), text);
    std::fs::remove_file(hub.blob_path(&one)).unwrap();
    let failed = || format!("{:#}", vendor.build_planet(true).unwrap_err());
    let error = failed();
    assert!(
        error.contains(&format!("with the digest {one} either")),
        "{error}"
    );
    assert!(has_planet(&vendor.build_planet(false).unwrap(), b"two"));

    // A lock file of version 1 serves where there is no planet.
    let plain = Vendor::new();
    plain.build("shop", &Arc::default()).unwrap();
    let text = std::fs::read_to_string(plain.at("app/app.lock")).unwrap();
    assert!(
        text.contains("\"version\": 2") && text.contains("  \"planets\": {},\n"),
        "{text}"
    );
    let first = text.replace("\"version\": 2", "\"version\": 1");
    let first = first.replace("  \"planets\": {},\n", "");
    put(&plain.at("app/app.lock"), &first, 0o644);
    plain.build_planet(true).unwrap();
    put(&lock, &first, 0o644);
    let error = failed();
    assert!(
        error.contains("app.lock does not fit: it lacks custom-planet:1.0.0"),
        "{error}"
    );
    let other = read().replace(
        "\"images\"",
        &format!("\"planets\": {{\"a:1.0.0\": \"{one}\"}}, \"images\""),
    );
    put(&lock, &other, 0o644);
    assert!(
        failed().contains("a:1.0.0 is not used any more"),
        "{}",
        failed()
    );
}

#[test]
fn a_locked_build_takes_the_locked_base_and_asks_no_registry() {
    let (vendor, registry) = Vendor::with_registry();
    let first = vendor.lock_planet(b"one").unwrap();
    assert_eq!(first.config.base.reference, "gravity:6.0.0");
    // What is published later changes nothing.
    vendor.move_planet(b"two");
    let hub = &registry.layout;
    let base = hub.resolve("gravity:6.0.0").unwrap();
    hub.tag("gravity:6.1.0", base).unwrap();
    registry.asked();
    let built = vendor.build_planet(true).unwrap();
    assert_eq!(registry.asked(), [""; 0]);
    assert_eq!(built.config.base.reference, "gravity:6.0.0");
    assert!(has_planet(&built, b"one"));
    // Nor is it asked for what once came from elsewhere.
    let name = "quay.io/team/planet:1.0.0";
    vendor.planet(
        name,
        &b"rootfs".repeat(1000),
        &gzip_of(b"one"),
        &Digest::of(b"one"),
    );
    let planet = hub.resolve(name).unwrap();
    for blob in std::fs::read_dir(vendor.at("hub/blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        let to = vendor
            .at("state/images/blobs/sha256")
            .join(blob.file_name());
        std::fs::copy(blob.path(), to).unwrap();
    }
    hub.tag(name, hub.resolve("custom-planet:1.0.0").unwrap())
        .unwrap();
    let (app, lock) = (vendor.at("app/app.yaml"), vendor.at("app/app.lock"));
    let texts = [&app, &lock].map(|file| std::fs::read_to_string(file).unwrap());
    put(&app, &texts[0].replace("custom-planet:1.0.0", name), 0o644);
    let (old, new) = texts[1].split_once("\"custom-planet:1.0.0\": \"").unwrap();
    let rest = new.split_once('"').unwrap().1;
    put(
        &lock,
        &format!("{old}\"{name}\": \"{}\"{rest}", planet.digest()),
        0o644,
    );
    assert!(has_planet(&vendor.build_planet(true).unwrap(), b"one"));
    assert_eq!(registry.asked(), [""; 0]);
    put(&app, &texts[0], 0o644);
    put(&lock, &texts[1], 0o644);
    // Elsewhere both are fetched.
    std::fs::remove_dir_all(vendor.at("state/hub")).unwrap();
    let built = vendor.build_planet(true).unwrap();
    assert_eq!(built.config.base.reference, "gravity:6.0.0");
    assert!(has_planet(&built, b"one"));
    assert_ne!(registry.asked(), [""; 0]);
    let built = vendor.build_planet(false).unwrap();
    assert_eq!(built.config.base.reference, "gravity:6.1.0");
    assert!(has_planet(&built, b"two"));
    // A version that is asked for has the last word.
    let built = vendor.build_as("shop", &Arc::default(), |job| {
        job.locked = true;
        job.base = Some("gravity:6.0.0".parse().unwrap());
    });
    let error = format!("{:#}", built.unwrap_err());
    assert!(
        error.contains("it lacks the base image gravity:6.0.0"),
        "{error}"
    );
}

#[test]
fn options_choose_what_is_looked_into() {
    let vendor = Vendor::new();
    let sink = Arc::new(Memory::default());
    let all = Selection::new(&[], &[]).unwrap();
    assert!(all.takes(Path::new("a.yml")) && all.takes(Path::new("a/b/c.json")));
    assert!(!all.takes(Path::new("a.txt")));
    assert!(Selection::new(&["[".into()], &[]).is_err());
    assert!(Selection::new(&[], &["(".into()]).is_err());
    let some = Selection::new(&["deploy/*.yaml".into()], &["/x[.]yaml$".into()]).unwrap();
    assert!(some.takes(Path::new("deploy/a.yaml")));
    assert!(!some.takes(Path::new("deploy/x.yaml")) && !some.takes(Path::new("deploy/b/a.yaml")));

    vendor.put("bad.yaml", "apiVersion: v1\nkind: Pod\nspec: [\n");
    vendor.put("charts/example/broken", "");
    let path = vendor.build_as("shop", &sink, |job| {
        job.selection = Selection::new(&[], &["/bad".into(), "^/charts/example$".into()]).unwrap();
        job.base = Some("gravity:5.9.0".parse().unwrap());
    });
    let cluster = ClusterImage::open(Image::open(path.unwrap()).unwrap()).unwrap();
    assert_eq!(cluster.config.base.reference, "gravity:5.9.0");
    let image = cluster.config.resources.clone();
    let tar = cluster.image.read_blob_bytes(&image, 1 << 20).unwrap();
    let packed = tar::Archive::new(tar.as_slice())
        .entries()
        .unwrap()
        .any(|entry| entry.unwrap().path().unwrap() == Path::new("bad.yaml"));
    assert!(packed);
}

#[test]
fn objects_in_a_chart_are_found_where_helm_does_not_render() {
    let vendor = Vendor::new();
    let tool = vendor.image.replace("team/app", "team/tool");
    let set = "apiVersion: cluster.gravitational.io/v1beta1\nkind: ImageSet\nspec: {images: [{image: TOOL}]}\n";
    let part = "apiVersion: v1\nkind: Pod\n{{ toYaml .Values.part }}\n";
    // Beside the manifest itself, and in charts below.
    vendor.put("Chart.yaml", "apiVersion: v2\nname: shop\nversion: 1.0.0\n");
    vendor.put("values.yaml", "image: {{{\n");
    vendor.put("resources.yaml", OBJECT);
    vendor.put("images.yaml", &set.replace("TOOL", &tool));
    vendor.put("files/part.yaml", part);
    vendor.put(
        "files/named.yaml",
        &OBJECT.replace("IMAGE", "\"{{ .Values.image }}\""),
    );
    vendor.put(
        "deploy/other/Chart.yaml",
        "apiVersion: v2\nname: other\nversion: 1.0.0\n",
    );
    vendor.put("deploy/other/jobs/job.yaml", OBJECT);
    vendor.put(
        "deploy/other/charts/sub/Chart.yaml",
        "apiVersion: v2\nname: sub\nversion: 1.0.0\n",
    );
    for chart in [
        "",
        "charts/example/",
        "deploy/other/",
        "deploy/other/charts/sub/",
    ] {
        vendor.put(&format!("{chart}templates/pod.yaml"), OBJECT);
        vendor.put(&format!("{chart}templates/part.yaml"), part);
        vendor.put(&format!("{chart}crds/pod.yaml"), OBJECT);
    }
    let sink = Arc::new(Memory::default());
    let path = vendor.build("shop", &sink).unwrap();
    let events: Vec<_> = sink.events().iter().map(|e| format!("{e:?}")).collect();
    let count = |text: &str| events.iter().filter(|event| event.contains(text)).count();
    // Subcharts are rendered by the charts that they belong to.
    assert_eq!(count("Rendering chart"), 2, "{events:?}");
    for file in ["values.yaml", "files/part.yaml", "files/named.yaml"] {
        assert_eq!(count(&format!("{file}: ")), 1, "{events:?}");
    }
    assert_eq!(count("Warning"), 3, "{events:?}");
    let cluster = ClusterImage::open(Image::open(&path).unwrap()).unwrap();
    let sources: Vec<_> = cluster
        .config
        .images
        .iter()
        .map(|i| i.source.as_str())
        .collect();
    assert_eq!(sources, [&vendor.image, &tool]);
    let tar = cluster
        .image
        .read_blob_bytes(&cluster.config.resources, 1 << 20)
        .unwrap();
    let mut rewritten = Vec::new();
    for entry in tar::Archive::new(tar.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
        if text.contains("leader.telekube.local") {
            rewritten.push(entry.path().unwrap().display().to_string());
        }
    }
    rewritten.sort();
    let expected = [
        "deploy/other/jobs/job.yaml",
        "images.yaml",
        "resources.yaml",
        "resources/pod.yaml",
    ];
    assert_eq!(rewritten, expected);
    // What is no template must be readable, as elsewhere.
    vendor.put("files/bad.yaml", "apiVersion: v1\nkind: Pod\nspec: [\n");
    let error = vendor.error();
    assert!(error.contains("files/bad.yaml: not valid YAML"), "{error}");
}

#[test]
fn a_chart_alone_is_installed_by_a_hook_of_its_own() {
    let mut vendor = Vendor::new();
    let chart = vendor.at("app/charts/example");
    put(&chart.join("old.run"), "", 0o755);
    std::fs::copy(
        vendor.build("old.run", &Arc::default()).unwrap(),
        chart.join("old.run"),
    )
    .unwrap();
    let sink = Arc::new(Memory::default());
    // Helm reads all files of a chart: an image that was built must be none.
    vendor.helm = vendor.at("strict-helm");
    let script = "#!/bin/sh\nls -A \"$4\" >&2; [ -e \"$4/old.run\" ] && exit 1; cat \"$4/templates/pod.yaml\"\n";
    put(&vendor.helm, script, 0o755);
    vendor.app = chart.clone();
    let path = vendor.build("app/charts/example/new.run", &sink);
    let cluster = ClusterImage::open(Image::open(path.unwrap()).unwrap()).unwrap();
    assert_eq!(
        (
            cluster.config.name.as_str(),
            cluster.config.image_version.as_str()
        ),
        ("example", "0.1.0")
    );
    assert_eq!(cluster.config.images.len(), 1);
    let job_of = |cluster: &ClusterImage| {
        let text = cluster.manifest_yaml().unwrap();
        let manifest = ::manifest::parse(&text, "resolved").unwrap();
        manifest.hooks.values().next().unwrap().clone()
    };
    let job = job_of(&cluster);
    assert!(
        job.contains("\"example\",\"/var/lib/gravity/resources\""),
        "{job}"
    );
    let of_install = "\"--values=/var/lib/gravity/helm/values.yaml\"]";
    assert!(job.contains(of_install), "{job}");
    let names_of = |cluster: &ClusterImage| {
        let resources = &cluster.config.resources;
        let tar = cluster.image.read_blob_bytes(resources, 1 << 20).unwrap();
        let mut names: Vec<_> = tar::Archive::new(tar.as_slice())
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        names.sort();
        names
    };
    assert_eq!(
        names_of(&cluster),
        ["Chart.yaml", "app.yaml", "templates", "templates/pod.yaml"]
    );

    // What was rendered is installed, unless the install says otherwise.
    let values: &'static [PathBuf] = vec![vendor.at("values.yaml")].leak();
    put(&values[0], "replicas: 2\n", 0o644);
    let path = vendor.build_as("app/charts/example/new.run", &sink, |job| {
        job.chart_options.values = values;
    });
    let cluster = ClusterImage::open(Image::open(path.unwrap()).unwrap()).unwrap();
    let job = job_of(&cluster);
    let both = format!("\"--values=/var/lib/gravity/resources/.tele-values/0.yaml\",{of_install}");
    assert!(job.contains(&both), "{job}");
    let names = names_of(&cluster);
    assert!(
        names.contains(&".tele-values/0.yaml".to_owned()),
        "{names:?}"
    );
    let set: &'static [String] = vec!["replicas=2".to_owned()].leak();
    let refused = vendor.build_as("app/charts/example/new.run", &sink, |job| {
        job.chart_options.set = set;
    });
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("name it with --values"), "{error}");

    for (text, wanted) in [
        (
            "name: a\nversion: 1.0.0\ntype: library\n",
            "installs nothing",
        ),
        ("name: a\n", "no name or no version"),
        ("name: a.b\nversion: 1.0.0\n", "not a name"),
        ("name: a\nversion: one\n", "not of the form"),
    ] {
        put(&chart.join("Chart.yaml"), text, 0o644);
        let error = manifest::Source::find(&chart).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}
