//! A vendor's machine in small: a registry that has every image, a hub with a
//! base image of a few bytes, and the `tele` program.
//!
//! In: a directory. Out: builds that take a moment. Always holds: all images
//! are the same small one, whatever they are called.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::{Context, Result};
use image::cluster::{BASE_ARTIFACT, BASE_CONFIG, GRAVITY_ELF, LAYER_TAR};
use oci::{Digest, Layout};
use serde_json::json;

use crate::file;
use crate::registry::tele;
use crate::said::last_json;

/// Registries whose images come from here.
const HOSTS: [&str; 6] = [
    "docker.io",
    "quay.io",
    "ghcr.io",
    "gcr.io",
    "registry.k8s.io",
    "registry.acme.io:8443",
];
const LAYER: &str = "a layer\n";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The documents of the one image: config, manifest, index.
fn documents() -> [String; 3] {
    let digest = |text: &str| Digest::of(text.as_bytes());
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        digest(LAYER)
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{}","size":{}}}]}}"#,
        digest(&config),
        config.len(),
        digest(LAYER),
        LAYER.len()
    );
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{MANIFEST}","digest":"sha256:{}","size":7,"platform":{{"os":"linux","architecture":"arm64"}}}},{{"mediaType":"{MANIFEST}","digest":"{}","size":{},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
        "0".repeat(64),
        digest(&manifest),
        manifest.len()
    );
    [config, manifest, index]
}

/// What the threads of the registry share.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<Held>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Held {
    closed: bool,
    waiting: usize,
}

/// A registry on the loopback that has an index of every name. It serves until
/// the program ends.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    gate: Arc<Gate>,
}

impl Registry {
    /// Starts it.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start() -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("finding a free port")?;
        let address = listener.local_addr().context("finding a free port")?;
        let gate = Arc::new(Gate::default());
        let shared = Arc::clone(&gate);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let gate = Arc::clone(&shared);
                // A client that goes away is no matter.
                std::thread::spawn(move || drop(answer(stream, &gate)));
            }
        });
        Ok(Self { address, gate })
    }

    /// From now on layers are begun and not completed.
    pub fn hold(&self) {
        self.held().closed = true;
    }

    /// Waits until so many transfers are held.
    pub fn wait_for_held(&self, transfers: usize) {
        let mut held = self.held();
        while held.waiting < transfers {
            held = self
                .gate
                .changed
                .wait(held)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets all go on.
    pub fn release(&self) {
        self.held().closed = false;
        self.gate.changed.notify_all();
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.gate
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(mut stream: TcpStream, gate: &Gate) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (kind, wanted) = path.rsplit_once('/').unwrap_or_default();
    let [config, manifest, index] = documents();
    let is = |text: &str| wanted == Digest::of(text.as_bytes()).as_str();
    let found = if kind.ends_with("/manifests") {
        match () {
            () if is(&manifest) => Some((manifest, MANIFEST)),
            () if is(&index) || !wanted.starts_with("sha256:") => Some((index, INDEX)),
            () => None,
        }
    } else if kind.ends_with("/blobs") {
        let blobs = [config, LAYER.to_owned()];
        blobs
            .into_iter()
            .find(|blob| is(blob))
            .map(|blob| (blob, "application/octet-stream"))
    } else {
        None
    };
    let Some((body, media_type)) = found else {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    let mut body = body.as_bytes();
    if body == LAYER.as_bytes() {
        let (first, rest) = body.split_at(3);
        stream.write_all(first)?;
        body = rest;
        let mut held = gate.state.lock().unwrap_or_else(PoisonError::into_inner);
        held.waiting += 1;
        gate.changed.notify_all();
        while held.closed {
            held = gate
                .changed
                .wait(held)
                .unwrap_or_else(PoisonError::into_inner);
        }
        held.waiting -= 1;
    }
    stream.write_all(body)
}

/// Where a vendor builds.
#[derive(Debug)]
pub struct Vendor {
    /// Everything is in here: `state`, `hub`, and what a test adds.
    pub directory: PathBuf,
    /// What serves the images.
    pub registry: Registry,
    tele: PathBuf,
}

impl Vendor {
    /// Prepares `directory`, which exists.
    ///
    /// # Errors
    /// When the hub can't be written or tele is not built.
    pub fn new(directory: &Path) -> Result<Self> {
        let registry = Registry::start()?;
        let mirrors: String = HOSTS
            .iter()
            .map(|host| {
                format!(
                    "[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\n\n\
                     [[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n\n",
                    registry.address
                )
            })
            .collect();
        file::write(&directory.join("registries.conf"), mirrors)?;
        let hub = Layout::open_or_create(directory.join("hub"))?;
        let config = json!({
            "version": "6.0.0", "planet_config_version": 1, "product_versions": ">=6.0.0, <7.0.0",
            "platform": "linux/amd64", "components": [{"name": "kubernetes", "version": "v1.37.2"}],
        });
        let config = hub.put_blob_bytes(config.to_string().as_bytes(), BASE_CONFIG)?;
        let rootfs = hub.put_blob_bytes(&b"rootfs".repeat(50_000), LAYER_TAR)?;
        let elf = hub.put_blob_bytes(b"\x7fELF program", GRAVITY_ELF)?;
        let base = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BASE_ARTIFACT,
            "config": config, "layers": [rootfs, elf],
        });
        let base = hub.put_blob_bytes(base.to_string().as_bytes(), MANIFEST)?;
        hub.tag("gravity:6.0.0", base)?;
        Ok(Self {
            directory: directory.to_owned(),
            registry,
            tele: tele()?,
        })
    }

    /// Adds an application: the directory `name` with a manifest.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn app(&self, name: &str) -> Result<PathBuf> {
        let app = self.directory.join(name);
        file::make_directory(&app)?;
        let manifest = "apiVersion: cluster.gravitational.io/v2\nkind: Cluster\n\
             metadata: {name: app, resourceVersion: 1.0.0}\n";
        file::write(&app.join("app.yaml"), manifest)?;
        Ok(app)
    }

    /// `tele build`, which keeps its state here and tells what it does in JSON.
    #[must_use]
    pub fn build(&self, app: &Path, output: &Path) -> Command {
        let mut command = Command::new(&self.tele);
        command
            .args(["build", "--overwrite", "--pull", "--format=json", "-o"])
            .arg(output)
            .arg("--state-dir")
            .arg(self.directory.join("state"))
            .arg("--hub")
            .arg(self.directory.join("hub"))
            .arg(app)
            .env_remove("TELE_FLAGS")
            .env_remove("SOURCE_DATE_EPOCH")
            .env(
                "CONTAINERS_REGISTRIES_CONF",
                self.directory.join("registries.conf"),
            );
        command
    }
}

/// The sources of all images in what `tele build --format json` wrote.
///
/// # Errors
/// When that is something else.
pub fn images(output: &str) -> Result<BTreeSet<String>> {
    let result = last_json(output)?;
    let images = result.get("images").and_then(|images| images.as_array());
    let sources = images
        .context("the result has no images")?
        .iter()
        .filter_map(|image| Some(image.get("source")?.as_str()?.to_owned()));
    Ok(sources.collect())
}
