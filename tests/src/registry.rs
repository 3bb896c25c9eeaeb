//! A registry on the loopback that stands for quay.io.
//!
//! In: an OCI layout. Out: its images served by the real registry, and a
//! registries.conf that leads there, until [`Registry`] is dropped.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use oci::Layout;

use crate::{file, process};

/// How long the registry may take to answer.
const START: Duration = Duration::from_secs(20);

/// A registry that runs.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    address: SocketAddr,
}

impl Registry {
    /// Starts a registry that keeps its images in `directory`.
    ///
    /// # Errors
    /// When it is not built, or does not answer.
    pub fn start(directory: &Path) -> Result<Self> {
        file::make_directory(directory)?;
        // The port is free a moment later too, most probably.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .context("finding a free port")?;
        let config = directory.join("config.json");
        let text = serde_json::json!({
            "version": 0.1,
            "log": { "level": "warn", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": directory.join("data") } },
            "http": { "addr": address.to_string() },
        });
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
        let mut registry = Self { child, address };
        let answers = process::wait_until(START, || {
            TcpStream::connect(address).is_ok() || !matches!(registry.child.try_wait(), Ok(None))
        });
        if !answers || !matches!(registry.child.try_wait(), Ok(None)) {
            let log = file::read(&directory.join("log"))?;
            bail!("the registry did not start: {}", log.trim());
        }
        Ok(registry)
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

    /// Writes a registries.conf by which images of quay.io come from here.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_mirrors(&self, path: &Path) -> Result<()> {
        let text = format!(
            "[[registry]]\nprefix = \"quay.io\"\nlocation = \"quay.io\"\n\n\
             [[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
            self.address
        );
        file::write(path, text)
    }

    /// Host and port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that `make base` built: in `$GRAVITY_COMPONENTS`, else the newest
/// of the cache.
///
/// # Errors
/// When there is none.
pub fn component(name: &str) -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("GRAVITY_COMPONENTS") {
        let path = Path::new(&directory).join(name);
        if path.is_file() {
            return Ok(path);
        }
        bail!("{} does not exist", path.display());
    }
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
