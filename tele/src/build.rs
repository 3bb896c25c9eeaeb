//! `tele build`: from an Image Manifest to a cluster image.
//!
//! In: the manifest, what lies beside it, the hub, registries. Out: one file,
//! with the same bytes for the same input; or an error and no file at all.
//! Each step is a module of its own and hands its result to the next.

pub(crate) mod base;
pub(crate) mod charts;
pub(crate) mod environment;
pub(crate) mod images;
pub(crate) mod lock;
pub(crate) mod manifest;
pub(crate) mod output;
pub(crate) mod planet;
pub(crate) mod resources;
pub(crate) mod state;
pub(crate) mod yaml;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use ::manifest::{BaseImage, HookName, Location};
use anyhow::{Context, Result, bail};
use console::Console;
use console::render::bytes;
use event::Sink;
use image::cluster::{BaseReference, CONFIG_VERSION, ClusterConfig};
use oci::{Client, Hub, Layout, Progress, Registries, Retry, Source};
use serde::Serialize;

use crate::cli::Build;
use crate::license;
use environment::Environment;
use output::Output;

/// Prefix of the directory with everything unfinished, beside the output.
pub(crate) const PARTIAL: &str = ".tele-partial-";

pub(crate) fn run(arguments: &Build, console: &Arc<Console>) -> Result<()> {
    let started = Instant::now();
    let output = Output::choose(
        arguments.output.as_deref(),
        &std::env::current_dir()?,
        arguments.overwrite.into(),
    )?;
    let state = state_dir(arguments.state_dir.as_ref())?;
    let (registries, credentials) = (Registries::from_environment()?, arguments.hub.credentials());
    let parallel = arguments.transfers();
    let mut sources: Vec<_> = arguments.images.iter().map(Source::files).collect();
    if !arguments.pull {
        sources.extend(Source::from_environment()?);
    }
    let client = Client::new(registries, credentials, parallel, Retry::default());
    let client = client.with_sources(sources);
    // What a registry holds is fetched to where a directory would be.
    let (hub, remote) = match arguments.hub.open(&client, false)? {
        Hub::Directory(hub) => (hub, None),
        remote => (Layout::open_or_create(state.join("hub"))?, Some(remote)),
    };
    let helm = oci::environment::path("HELM").unwrap_or_else(|| "helm".into());
    let license_authority = oci::environment::path(license::DIRECTORY);
    let job = Job {
        path: &arguments.path,
        state: &state,
        hub: &hub,
        remote: remote.as_ref(),
        base: wanted_base(arguments)?,
        chart_options: charts::Options {
            helm: helm.as_os_str(),
            set: &arguments.set,
            values: &arguments.values,
        },
        selection: resources::Selection::new(&arguments.glob, &arguments.ignore)?,
        replacements: images::Replacements::parse(&arguments.set_image)?,
        license_ca: arguments.license_ca(),
        license_authority: license_authority.as_deref(),
        environment: arguments.env.read()?,
        locked: arguments.locked,
        client: &client,
        parallel,
    };
    let sink: Arc<dyn Sink> = console.clone();
    let built = job.build(&output, &sink)?;
    if console.is_json() {
        console.print_json(&built)?;
    } else {
        console.print(&format!(
            "{}: {}, built in {:.1} s",
            output.path().display(),
            bytes(built.size),
            started.elapsed().as_secs_f64()
        ));
    }
    Ok(())
}

/// The base image that the command line asks for. A cluster image depends on
/// nothing else.
fn wanted_base(arguments: &Build) -> Result<Option<BaseImage>> {
    let mut wanted = arguments.with_base_image.clone();
    for dependency in &arguments.set_dep {
        let name = dependency.strip_prefix("gravitational.io/");
        let base: BaseImage = name.unwrap_or(dependency).parse().with_context(|| {
            format!("--set-dep {dependency}: the only dependency of a cluster image is its base")
        })?;
        if let Some(other) = wanted.as_ref().filter(|other| **other != base) {
            bail!("two base images are asked for, {other} and {base}: name one");
        }
        wanted = Some(base);
    }
    Ok(wanted)
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
    /// In place of the manifest's.
    pub(crate) base: Option<BaseImage>,
    pub(crate) chart_options: charts::Options<'a>,
    pub(crate) selection: resources::Selection,
    pub(crate) replacements: images::Replacements,
    /// Certificates of those who sign licenses.
    pub(crate) license_ca: Option<PathBuf>,
    /// Directory of the authority that signs them otherwise.
    pub(crate) license_authority: Option<&'a Path>,
    /// What is replaced in the manifest.
    pub(crate) environment: Environment,
    /// Whether images are those of the lock file.
    pub(crate) locked: bool,
    pub(crate) client: &'a Client,
    pub(crate) parallel: usize,
}

/// What was built.
#[derive(Debug, Serialize)]
pub(crate) struct Built {
    pub(crate) output: PathBuf,
    /// Of the output, in bytes.
    pub(crate) size: u64,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) base: BaseReference,
    pub(crate) images: Vec<image::cluster::ApplicationImage>,
}

impl Job<'_> {
    /// Builds the output.
    pub(crate) fn build(&self, output: &Output, sink: &Arc<dyn Sink>) -> Result<Built> {
        let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
        let source = manifest::Source::find(self.path)?
            .with_values(&self.chart_options)?
            .with(&self.environment)?;
        let mut manifest = source.parse()?;
        let (name, version) = (
            manifest.metadata.name.clone(),
            manifest.metadata.resource_version.to_string(),
        );
        sink.step(&format!(
            "Building cluster image {name} {version} from {}",
            match source.generated {
                Some(_) => format!("the chart {}", source.shown(Path::new("")).display()),
                None => source.file.display().to_string(),
            }
        ));
        let lock = lock::path(&source.file);
        let locked = match self.locked {
            true => lock::Locked::demand(&lock)?,
            false => lock::check_ours(&lock).map(|()| lock::Locked::default())?,
        };
        let hook_places: Vec<_> = manifest
            .hooks
            .iter()
            .map(|(hook, job)| hook_place(&source, *hook, job))
            .collect();
        manifest::complete(&mut manifest, &source, &runtime, self.client)?;
        for warning in manifest.retired() {
            sink.warning(&warning.to_string());
        }

        let license_authorities = match manifest.license.enabled {
            true => Some(license::packed(
                self.license_ca.as_deref(),
                self.license_authority,
                sink.as_ref(),
            )?),
            false => None,
        };

        // Before anything is fetched to it.
        let state = state::State::open(self.state)?;
        sink.step("Selecting base image");
        let wanted = self.base.clone().or_else(|| manifest.base_image.clone());
        let mut wanted = locked.base(wanted);
        if let Some(remote) = self.remote
            && !locked.has_base(self.hub, wanted.as_ref())
        {
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
        let encoded = image::encode::Cache::open(state.encoded())?;
        let step = Step {
            job: self,
            output,
            source: &source,
            base: &base,
            lock: &lock,
            locked: &locked,
            cache: Layout::open_or_create(state.images())?,
            work: work.dir(),
            runtime: &runtime,
            sink,
        };
        let (image, start) = (work.image(), output.start());
        let rest = output::rest(&source, epoch()?)?;
        let (written, built, planets, vendored) = std::thread::scope(|scope| {
            let begun =
                scope.spawn(|| output::begin_image(&image, start, &base, self.hub, encoded));
            let found = step.discover(&mut manifest, &hook_places)?;
            let places = planet::Places {
                remote: self.remote,
                hub: self.hub,
                client: self.client,
                cache: &step.cache,
                locked: &locked,
            };
            let planets = runtime.block_on(planet::select(&manifest, &base, &places, sink))?;
            let vendored = step.pull(&found)?;
            sink.step("Packing resources");
            let (tar, packed) = step.pack(&found)?;
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
                images: vendored
                    .iter()
                    .map(|image| image.application.clone())
                    .collect(),
                license_authorities,
                // Both are known when they are written.
                manifest: String::new(),
                resources: packed.digest.clone(),
                archive: Some(image::file::archive::Rest::of(&rest)),
            };
            let resolved = manifest
                .to_json()
                .context("cannot write the resolved manifest")?;
            let built = Built {
                output: output.path().to_owned(),
                size: 0,
                name: config.name.clone(),
                version: config.image_version.clone(),
                base: config.base.clone(),
                images: config.images.clone(),
            };
            let content = output::Content {
                config,
                resolved: &resolved,
                resources: (&tar, &packed),
                base: &base,
                images: &vendored,
                planets: &planets,
            };
            let writer = match begun.join() {
                Ok(writer) => writer?,
                Err(_) => bail!("writing the base image ended early"),
            };
            let written = output::write_image(writer, &content, self.hub, &step.cache)?;
            Ok((written, built, planets, vendored))
        })?;
        let size = work.finish(output, &written, &rest, epoch()?)?;
        if !self.locked {
            lock::write(&lock, &base, &planets, &vendored, sink.as_ref())?;
        }
        Ok(Built { size, ..built })
    }
}

/// What the steps of a build share.
struct Step<'a> {
    job: &'a Job<'a>,
    output: &'a Output,
    source: &'a manifest::Source,
    base: &'a base::Base,
    lock: &'a Path,
    locked: &'a lock::Locked,
    cache: Layout,
    work: &'a Path,
    runtime: &'a tokio::runtime::Runtime,
    sink: &'a Arc<dyn Sink>,
}

/// What is to be packed.
struct Discovered {
    /// Copy of the resources.
    staged: PathBuf,
    wanted: Vec<images::Wanted>,
}

impl Step<'_> {
    /// Finds all images and renames those of resources and hooks.
    fn discover(
        &self,
        manifest: &mut ::manifest::Manifest,
        hook_places: &[String],
    ) -> Result<Discovered> {
        let (job, source) = (self.job, self.source);
        self.sink.step("Discovering container images");
        let mut skip = resources::Skip::new(source, self.output, job.state, self.lock);
        let discovery = resources::Discovery {
            source,
            selection: &job.selection,
            replacements: &job.replacements,
            sink: self.sink.as_ref(),
        };
        let mut found = discovery.run(&mut skip)?;
        let staged = resources::stage(source, &skip, &found.rewritten, self.work)?;
        // What is packed is rendered: no output lies in it.
        let charts: Vec<_> = found
            .charts
            .iter()
            .map(|chart| (staged.join(chart), source.shown(chart)))
            .collect();
        for (_, shown) in &charts {
            self.sink
                .info(&format!("Rendering chart {}", shown.display()));
        }
        let helm = charts::Helm::new(&job.chart_options, self.base.kubernetes(), self.work);
        for images in helm.all_images(&charts)? {
            let images = job.replacements.apply(images);
            images.into_iter().for_each(|image| found.images.add(image));
        }
        for (text, place) in manifest.hooks.values_mut().zip(hook_places) {
            let scanned = images::scan(text, place)?;
            *text = scanned.rewrite(text, &job.replacements)?;
            let images = scanned.into_rewritten(&job.replacements);
            images.into_iter().for_each(|image| found.images.add(image));
        }
        let wanted = (found.images).resolve(&job.replacements, self.sink.as_ref())?;
        let planets = planet::named(manifest);
        self.locked.check(self.base, planets.keys(), &wanted)?;
        Ok(Discovered { staged, wanted })
    }

    fn pull(&self, found: &Discovered) -> Result<Vec<images::Vendored>> {
        let wanted = &found.wanted;
        self.sink
            .step(&format!("Pulling {} container images", wanted.len()));
        self.runtime.block_on(images::pull(
            wanted,
            self.locked,
            self.job.client,
            &self.cache,
            self.job.parallel,
            self.sink,
        ))
    }

    fn pack(&self, found: &Discovered) -> Result<(PathBuf, image::pack::Packed)> {
        let tar = self.work.join("resources.tar");
        let file = std::fs::File::create(&tar)
            .with_context(|| format!("cannot create {}", tar.display()))?;
        let out = std::io::BufWriter::new(file);
        let packed = image::pack::pack_dir(&found.staged, &[], epoch()?, out)
            .with_context(|| format!("what lies beside {}", self.source.file.display()))?;
        Ok((tar, packed))
    }
}

/// Where the text of a hook's job is, in messages.
fn hook_place(source: &manifest::Source, hook: HookName, job: &str) -> String {
    match Location::of(job) {
        Some(Location::File(path)) => source.shown(&path).display().to_string(),
        Some(Location::Web(address)) => address,
        None => format!("{}: hooks.{hook}.job", source.file.display()),
    }
}

/// `--state-dir`, or a directory in the user's cache.
pub(crate) fn state_dir(named: Option<&PathBuf>) -> Result<PathBuf> {
    if let Some(dir) = named {
        return std::path::absolute(dir).with_context(|| format!("cannot use {}", dir.display()));
    }
    match oci::environment::cache_dir() {
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
