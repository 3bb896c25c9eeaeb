//! Builds the base image: Kubernetes and its companions from source, on a
//! Debian root, published into a hub on this machine.
//!
//! In: a versions file, Go modules, Debian packages, the gravity program.
//! Out: the images `gravity:<version>` and `planet:<version>`. Every step's
//! result is cached outside the checkout under the hash of its inputs, so a
//! run that was interrupted goes on where it was, and one without changes
//! only looks.

mod assemble;
mod component;
mod file;
mod pause;
mod publish;
mod rootfs;
mod sbom;
mod tool;
mod tree;
mod versions;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use console::{Console, ExitCode, Format, render};
use event::Sink;
use oci::Layout;

use crate::assemble::Programs;
use crate::component::{Built, Workshop};
use crate::versions::Versions;

/// Builds the base image and publishes it into a hub on this machine.
#[derive(Debug, Parser)]
#[command(name = "make-base", version)]
struct Options {
    /// Version of the base image, the name of a file beside the components.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    base: String,
    /// Directory of the versions files. By default that of this program's source.
    #[arg(long)]
    source: Option<PathBuf>,
    /// Hub to publish into, a directory. By default the user's.
    #[arg(long, env = "GRAVITY_HUB")]
    hub: Option<PathBuf>,
    /// Where results are kept. By default the user's cache directory.
    #[arg(long, env = "GRAVITY_CACHE")]
    cache: Option<PathBuf>,
    /// The gravity program of the image.
    #[arg(
        long,
        default_value = "target/x86_64-unknown-linux-gnu/release/gravity"
    )]
    gravity: PathBuf,
    /// The planet-init program of the image. By default it is built.
    #[arg(long)]
    planet_init: Option<PathBuf>,
    /// The helm-shim program of the image. By default it is built.
    #[arg(long)]
    helm_shim: Option<PathBuf>,
    /// How many components are built at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Where Debian packages come from. The image does not name it.
    #[arg(long, env = "GRAVITY_DEBIAN_MIRROR", default_value = rootfs::MIRROR)]
    mirror: String,
    /// Installs the Debian packages anew, for updates of them.
    #[arg(long)]
    refresh: bool,
    /// Lists the components and whether they are built, and does nothing.
    #[arg(long)]
    list: bool,
    /// Builds kubeadm into this directory, and nothing else. Only benchmarks need it.
    #[arg(long, value_name = "DIR")]
    kubeadm: Option<PathBuf>,
    /// Copies the components' programs into this directory, builds those that are
    /// missing, and nothing else. Only tests need it.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

fn main() -> std::process::ExitCode {
    let options = Options::parse();
    let console = Console::new(Format::Auto);
    match run(&options, &console) {
        Ok(()) => ExitCode::Ok.into(),
        Err(error) => {
            console.error(error.as_ref());
            ExitCode::Failed.into()
        }
    }
}

fn run(options: &Options, console: &Console) -> Result<()> {
    let started = Instant::now();
    let source = options.source.clone().unwrap_or_else(|| {
        // cargo run sets it.
        std::env::var_os("CARGO_MANIFEST_DIR").map_or("planet/base".into(), PathBuf::from)
    });
    let versions = Versions::load(&source, &options.base)?;
    let cache = match &options.cache {
        Some(cache) => cache.clone(),
        None => oci::environment::cache_dir()
            .context("neither XDG_CACHE_HOME nor HOME is set")?
            .join("gravity"),
    };
    let cache = std::path::absolute(cache)?.join("base");
    let workshop = Workshop {
        source: &source,
        cache: &cache,
        jobs: options.jobs,
        sink: console,
    };
    if options.list {
        return list(&versions, &workshop, console);
    }
    let _lock = lock(&cache, console)?;
    if let Some(directory) = &options.kubeadm {
        return copy(&workshop.tools(&versions.components)?, directory, console);
    }
    if let Some(directory) = &options.programs {
        return copy(&workshop.build(&versions.components)?, directory, console);
    }
    let hub = match &options.hub {
        Some(hub) => hub.clone(),
        None => oci::hub::default_dir().context("no HOME: name the hub by --hub")?,
    };
    if hub.to_string_lossy().contains("://") {
        bail!(
            "--hub {}: must be a directory; push its images to a registry",
            hub.display()
        );
    }
    // Said at once, not after the long work.
    publish::check_elf(&options.gravity)?;
    let rootfs = rootfs::make(
        &versions.debian,
        &cache,
        &options.mirror,
        options.refresh,
        console,
    )?;
    let built = workshop.build(&versions.components)?;
    let own = |given: &Option<PathBuf>, package, name| match given {
        Some(path) => Ok(path.clone()),
        None => build(&source, package, name),
    };
    let programs = Programs {
        init: own(&options.planet_init, "gravity-planet-init", "planet-init")?,
        helm_shim: own(&options.helm_shim, "gravity-helm-shim", "helm-shim")?,
    };
    let mtime = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text
            .parse()
            .context("SOURCE_DATE_EPOCH: not a number of seconds")?,
        Err(_) => 0,
    };
    let planet = assemble::make(
        &versions, &rootfs, &built, &programs, &cache, mtime, console,
    )?;
    let hub_name = hub.display().to_string();
    let layout = Layout::open_or_create(&hub)?;
    let published = publish::publish(&layout, &versions, &planet, &options.gravity)?;
    let verb = if published.changed {
        "Published"
    } else {
        "Unchanged"
    };
    let version = &versions.version;
    console.info(&format!("{verb}: gravity:{version} {}", published.base));
    console.info(&format!("{verb}: planet:{version} {}", published.planet));
    console.info(&format!(
        "Hub {hub_name}, root filesystem {} ({}), {}",
        planet.tar().display(),
        render::bytes(planet.size),
        render::duration(started.elapsed())
    ));
    Ok(())
}

/// Keeps two runs from building the same twice.
fn lock(cache: &Path, sink: &dyn Sink) -> Result<File> {
    let context = || format!("the cache {}", cache.display());
    std::fs::create_dir_all(cache).with_context(context)?;
    let lock = File::create(cache.join("lock")).with_context(context)?;
    if lock.try_lock().is_err() {
        sink.info(&format!(
            "Waiting for another run that uses {}",
            cache.display()
        ));
        lock.lock().with_context(context)?;
    }
    sweep(cache);
    Ok(lock)
}

/// Removes what a run that was killed left half made.
fn sweep(cache: &Path) {
    let rooms = ["components", "planets", "rootfs"].map(|room| std::fs::read_dir(cache.join(room)));
    for entry in rooms.into_iter().flatten().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".tmp-") {
            let path = entry.path();
            let _ = if path.is_dir() {
                std::fs::remove_dir_all(path)
            } else {
                std::fs::remove_file(path)
            };
        }
    }
}

fn list(versions: &Versions, workshop: &Workshop<'_>, console: &Console) -> Result<()> {
    let mut rows = Vec::new();
    for component in &versions.components {
        let built = workshop.cached(component)?;
        let size = built.map(|built| built.files.iter().map(|file| file.size).sum());
        let programs: Vec<&str> = component
            .builds
            .iter()
            .map(|build| build.file_name())
            .collect();
        rows.push(vec![
            component.name.clone(),
            component.version.clone(),
            component.license.clone(),
            programs.join(" "),
            size.map_or("not built".into(), render::bytes),
        ]);
    }
    console.table(
        &["Component", "Version", "License", "Programs", "Size"],
        &rows,
    );
    Ok(())
}

/// Copies what was built into a directory, whatever its place in the image is.
fn copy(all: &[Built], directory: &Path, console: &Console) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    for built in all {
        for file in &built.files {
            let name = Path::new(&file.output).file_name();
            let to = directory.join(name.with_context(|| file.output.clone())?);
            let temporary = file::beside(&to);
            std::fs::copy(built.path(file), &temporary)
                .and_then(|_| std::fs::rename(&temporary, &to))
                .with_context(|| to.display().to_string())?;
            console.info(&format!("{}: {}", to.display(), render::bytes(file.size)));
        }
    }
    Ok(())
}

/// Builds a program in the workspace that `source` is part of.
fn build(source: &Path, package: &str, name: &str) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    command
        .current_dir(source)
        .args(["build", "--release", "-p", package]);
    command.arg("--message-format=json");
    let messages = tool::output(&mut command).context(package.to_owned())?;
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        if let Some(path) = message["executable"].as_str()
            && message["target"]["name"] == name
        {
            return Ok(path.into());
        }
    }
    bail!("cargo built no {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Options as clap::CommandFactory>::command().debug_assert();
        let options = Options::try_parse_from(["make-base", "--base", "6.1.0"]).unwrap();
        assert_eq!(options.base, "6.1.0");
    }
}
