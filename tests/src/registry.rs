//! A registry on the loopback that stands for quay.io and docker.io.
//!
//! In: an OCI layout. Out: its images served by the real registry, and a
//! registries.conf that leads there, until [`Registry`] is dropped.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use oci::Layout;
use pki::{Authority, Leaf};

use crate::{file, process};

/// How long the registry may take to answer.
const START: Duration = Duration::from_secs(20);

/// Who may use a secure registry.
pub const USER: &str = "vendor";
/// With which password.
pub const PASSWORD: &str = "sesame street";
/// The same as the registry wants it: bcrypt of the least cost. It takes it as
/// a token, too.
const HTPASSWD: &str = "vendor:$2b$04$aAbopwg3B.BiVi9MKZaiSOVJLVDLIrUl/w2LCV0pT8b/j4HPDicB6\n\
                        token:$2b$04$aAbopwg3B.BiVi9MKZaiSOVJLVDLIrUl/w2LCV0pT8b/j4HPDicB6\n";

/// A registry that runs.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    address: SocketAddr,
    data: PathBuf,
}

impl Registry {
    /// Starts a registry that keeps its images in `directory`.
    ///
    /// # Errors
    /// When it is not built, or does not answer.
    pub fn start(directory: &Path) -> Result<Self> {
        file::make_directory(directory)?;
        Self::serve(directory, free_address()?, &serde_json::json!({}))
    }

    /// The same over TLS, for [`USER`] with [`PASSWORD`] alone. What clients
    /// have to know of its authority is in `directory/certs.d`.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn start_secure(directory: &Path) -> Result<Self> {
        let address = free_address()?;
        let day = Duration::from_secs(86400);
        let authority = Authority::generate("registry", day)?;
        let issued = authority.issue(&Leaf {
            server: true,
            ip_addresses: vec![address.ip()],
            ..Leaf::client("registry", &[], day)
        })?;
        let known = directory.join("certs.d").join(address.to_string());
        file::make_directory(&known)?;
        file::write(&known.join("ca.crt"), authority.certificate_pem())?;
        let (certificate, key) = (directory.join("tls.crt"), directory.join("tls.key"));
        file::write(&certificate, issued.certificate_pem)?;
        file::write(&key, issued.key_pem)?;
        let htpasswd = directory.join("htpasswd");
        file::write(&htpasswd, HTPASSWD)?;
        let security = serde_json::json!({
            "tls": { "certificate": certificate, "key": key },
            "auth": { "htpasswd": { "realm": "tests", "path": htpasswd } },
        });
        Self::serve(directory, address, &security)
    }

    fn serve(directory: &Path, address: SocketAddr, security: &serde_json::Value) -> Result<Self> {
        let config = directory.join("config.json");
        let data = directory.join("data");
        let mut text = serde_json::json!({
            "version": 0.1,
            "log": { "level": "warn", "accesslog": { "disabled": true } },
            "storage": {
                "filesystem": { "rootdirectory": data },
                "delete": { "enabled": true },
            },
            "http": { "addr": address.to_string() },
        });
        if let Some(tls) = security.get("tls") {
            text["http"]["tls"] = tls.clone();
        }
        if let Some(auth) = security.get("auth") {
            text["auth"] = auth.clone();
        }
        file::write(&config, serde_json::to_vec(&text)?)?;
        let log = directory.join("log");
        let log = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
        let child = Command::new(component("registry")?)
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting the registry")?;
        let mut registry = Self {
            child,
            address,
            data,
        };
        let answers = process::wait_until(START, || {
            TcpStream::connect(address).is_ok() || !matches!(registry.child.try_wait(), Ok(None))
        });
        if !answers || !matches!(registry.child.try_wait(), Ok(None)) {
            let log = file::read(&directory.join("log"))?;
            bail!("the registry did not start: {}", log.trim());
        }
        Ok(registry)
    }

    /// How many bytes all blobs take.
    #[must_use]
    pub fn stored(&self) -> u64 {
        walkdir::WalkDir::new(self.data.join("docker/registry/v2/blobs"))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .filter(std::fs::Metadata::is_file)
            .map(|meta| meta.len())
            .sum()
    }

    /// Copies all images of a layout into it, by skopeo.
    ///
    /// # Errors
    /// When one can't be copied.
    pub fn push(&self, layout: &Path) -> Result<()> {
        for (name, _) in Layout::open(layout)?.tags()? {
            let (_, path) = name
                .split_once('/')
                .with_context(|| format!("{name} has no host"))?;
            let mut command = Command::new("skopeo");
            command.args([
                "copy",
                "--quiet",
                "--preserve-digests",
                "--dest-tls-verify=false",
            ]);
            command
                .arg("--insecure-policy")
                .arg(format!("oci:{}:{name}", layout.display()));
            process::run(command.arg(format!("docker://{}/{path}", self.address)))?;
        }
        Ok(())
    }

    /// Writes a registries.conf by which images of quay.io and docker.io come
    /// from here.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_mirrors(&self, path: &Path) -> Result<()> {
        let mirror = |host| {
            format!(
                "[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\n\n\
                 [[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n\n",
                self.address
            )
        };
        let text = ["quay.io", "docker.io"].map(mirror).concat();
        file::write(path, text)
    }

    /// Host and port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The port is free a moment later too, most probably.
fn free_address() -> Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .context("finding a free port")
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The `tele` program: `$GRAVITY_TELE`, else that beside the program that runs.
///
/// # Errors
/// When it is not built.
pub fn tele() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("GRAVITY_TELE") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("finding this program")?;
    // Tests are in `deps` below the programs.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|path| path.join("tele"))
        .find(|path| path.is_file())
        .with_context(|| format!("no tele program beside {}; build it", own.display()))
}

/// A program that `make base` built, the newest of the cache.
///
/// # Errors
/// When there is none.
pub fn component(name: &str) -> Result<PathBuf> {
    let all = file::cache()?.join("base/components");
    std::fs::read_dir(&all)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("root/usr/local/bin").join(name))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .with_context(|| {
            format!(
                "{name} is not built, in {}; `make base` does it",
                all.display()
            )
        })
}
