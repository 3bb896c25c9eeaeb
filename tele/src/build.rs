//! `tele build`: from an Image Manifest to a cluster image.
//!
//! In: the manifest, what lies beside it, the hub, registries. Out: one file,
//! with the same bytes for the same input; or an error and no file at all.
//! Each step is a module of its own and hands its result to the next.

pub(crate) mod base;
pub(crate) mod charts;
pub(crate) mod images;
pub(crate) mod manifest;
pub(crate) mod output;
pub(crate) mod planet;
pub(crate) mod resources;
pub(crate) mod yaml;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use console::Console;
use event::Sink;
use image::cluster::{BaseReference, CONFIG_VERSION, ClusterConfig};
use oci::{Client, Credentials, Hub, Layout, Progress, Registries, Retry};

use crate::cli::Build;
use output::Output;

/// Prefix of everything unfinished.
pub(crate) const PARTIAL: &str = ".partial-";

pub(crate) fn run(arguments: &Build, console: &Arc<Console>) -> Result<()> {
    let started = Instant::now();
    let output = Output::choose(
        arguments.output.as_deref(),
        &std::env::current_dir()?,
        arguments.overwrite,
    )?;
    let state = state_dir(arguments.state_dir.as_ref())?;
    let (registries, credentials) = (
        Registries::from_environment()?,
        Credentials::from_environment(),
    );
    let client = Client::new(
        registries,
        credentials,
        usize::from(arguments.parallel),
        Retry::default(),
    );
    // What a registry holds is fetched to where a directory would be.
    let (hub, remote) = match arguments.hub.open(&client, false)? {
        Hub::Directory(hub) => (hub, None),
        remote => (Layout::open_or_create(state.join("hub"))?, Some(remote)),
    };
    let helm = std::env::var_os("HELM")
        .filter(|value| !value.is_empty())
        .unwrap_or_else(|| "helm".into());
    let job = Job {
        path: &arguments.path,
        state: &state,
        hub: &hub,
        remote: remote.as_ref(),
        chart_options: charts::Options {
            helm: &helm,
            set: &arguments.set,
            values: &arguments.values,
        },
        client: &client,
        parallel: usize::from(arguments.parallel),
    };
    let sink: Arc<dyn Sink> = console.clone();
    let size = job.build(&output, &sink)?;
    console.print(&format!(
        "{}: {}, built in {:.1} s",
        output.path().display(),
        ::manifest::Bytes(size).human(),
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// What a build works with.
pub(crate) struct Job<'a> {
    /// The manifest or its directory.
    pub(crate) path: &'a Path,
    /// What is kept between builds.
    pub(crate) state: &'a Path,
    pub(crate) hub: &'a Layout,
    /// The registry that fills `hub`.
    pub(crate) remote: Option<&'a Hub>,
    pub(crate) chart_options: charts::Options<'a>,
    pub(crate) client: &'a Client,
    pub(crate) parallel: usize,
}

impl Job<'_> {
    /// Builds; returns the size of the file in bytes.
    pub(crate) fn build(&self, output: &Output, sink: &Arc<dyn Sink>) -> Result<u64> {
        let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
        let source = manifest::Source::find(self.path)?;
        let mut manifest = source.parse()?;
        let (name, version) = (
            manifest.metadata.name.clone(),
            manifest.metadata.resource_version.to_string(),
        );
        sink.step(&format!(
            "Building cluster image {name} {version} from {}",
            source.file.display()
        ));
        manifest::complete(&mut manifest, &source, &runtime, self.client)?;
        for warning in manifest.retired() {
            sink.warning(&warning.to_string());
        }

        sink.step("Selecting base image");
        let mut wanted = manifest.base_image.clone();
        if let Some(remote) = self.remote {
            let progress = Progress::new("base image", sink.clone());
            let fetch = base::fetch(remote, wanted.as_ref(), self.hub, &progress);
            wanted = Some(runtime.block_on(fetch)?);
        }
        let base = base::select(self.hub, wanted.as_ref())?;
        sink.info(&format!(
            "Base image {} ({})",
            base.reference,
            base.describe()
        ));

        let work = output.begin(&runtime)?;
        let cache = Layout::open_or_create(self.state.join("images"))?;
        let encoded = image::encode::Cache::open(self.state.join("encoded"))?;

        let planets = runtime.block_on(planet::select(
            &manifest,
            &base,
            self.hub,
            &cache,
            self.client,
            sink,
        ))?;

        sink.step("Discovering container images");
        let mut skip = resources::Skip::new(&source, output, self.state);
        let mut found = resources::discover(&source, &mut skip, sink.as_ref())?;
        let helm = charts::Helm::new(&self.chart_options, base.kubernetes(), work.dir());
        for chart in found.charts.clone() {
            let shown = source.shown(&chart);
            sink.info(&format!("Rendering chart {}", shown.display()));
            for image in helm.images(&source.dir.join(&chart), &shown)? {
                found.images.add(image);
            }
        }
        for (hook, job) in &mut manifest.hooks {
            let place = format!("{}: hooks.{hook}.job", source.file.display());
            let scanned = images::scan(job, &place)?;
            *job = scanned.rewrite(job)?;
            scanned
                .images
                .into_iter()
                .for_each(|image| found.images.add(image));
        }
        let wanted = found.images.resolve(sink.as_ref())?;

        sink.step(&format!("Pulling {} container images", wanted.len()));
        let pulled = runtime.block_on(images::pull(
            &wanted,
            self.client,
            &cache,
            self.parallel,
            sink,
        ))?;

        sink.step("Packing resources");
        let staged = resources::stage(&source, &skip, &found.rewritten, work.dir())?;
        let tar = work.dir().join("resources.tar");
        let file = std::fs::File::create(&tar)
            .with_context(|| format!("cannot create {}", tar.display()))?;
        let packed = image::pack::pack_dir(&staged, &[], epoch()?, std::io::BufWriter::new(file))?;

        sink.step(&format!(
            "Saving cluster image to {}",
            output.path().display()
        ));
        let config = ClusterConfig {
            version: CONFIG_VERSION,
            name,
            image_version: version,
            description: manifest.metadata.description.clone().unwrap_or_default(),
            base: BaseReference {
                reference: base.reference.clone(),
                digest: base.digest.to_string(),
            },
            planets: planets
                .iter()
                .flat_map(planet::Planet::of_profiles)
                .collect(),
            images: pulled
                .iter()
                .map(|image| image.application.clone())
                .collect(),
            // Both are known when they are written.
            manifest: String::new(),
            resources: packed.digest.clone(),
        };
        let resolved = manifest
            .to_json()
            .context("cannot write the resolved manifest")?;
        let content = output::Content {
            config,
            resolved: &resolved,
            resources: (&tar, &packed),
            base: &base,
            images: &pulled,
            planets: &planets,
        };
        let executable = output::write_image(
            &content,
            self.hub,
            &cache,
            encoded,
            &work.dir().join("gravity"),
        )?;
        work.finish(output, &executable, &source, epoch()?)
    }
}

/// `--state-dir`, or a directory in the user's cache.
pub(crate) fn state_dir(named: Option<&PathBuf>) -> Result<PathBuf> {
    if let Some(dir) = named {
        return std::path::absolute(dir).with_context(|| format!("cannot use {}", dir.display()));
    }
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache =
        variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    match cache {
        Some(cache) => Ok(cache.join("gravity/tele")),
        None => bail!(
            "there is no home directory for what is kept between builds: name one with --state-dir"
        ),
    }
}

/// The time of everything that must have one, in seconds since 1970.
fn epoch() -> Result<u64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("SOURCE_DATE_EPOCH is `{text}`, not a number of seconds")),
        Err(_) => Ok(0),
    }
}

#[cfg(test)]
pub(crate) mod tests;
