//! The cluster's resources: all that lies beside the manifest.
//!
//! In: the manifest's directory. Out: its charts, the images of its objects,
//! the files that name them otherwise in the cluster; and a copy of the
//! directory with those files, ready to be packed. The output, unfinished
//! output, cluster images of former builds, the state directory and the lock
//! file are no resources; all else keeps its name, mode and links.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use event::Sink;
use flate2::read::GzDecoder;
use manifest::MAX_CONTENT;
use regex::Regex;
use walkdir::{DirEntry, WalkDir};

use super::PARTIAL;
use super::charts::{BUILD_VALUES, build_values};
use super::images::{Images, Replacements, scan};
use super::manifest::{Source, read};
use super::output::Output;

/// Most bytes of a file that may hold objects.
const MAX_FILE: u64 = 16 << 20;
/// Files at the beginning of an archive of which one is the Chart.yaml of a
/// chart, and the most bytes of them that are read. Helm packs it first.
const CHART_ENTRIES: usize = 64;
const CHART_BYTES: u64 = 16 << 20;
/// Where images are looked for unless `--glob` says otherwise.
const GLOBS: [&str; 3] = ["**/*.yaml", "**/*.yml", "**/*.json"];

/// Directories of a chart that helm renders.
const RENDERED: [&str; 3] = ["templates", "crds", "charts"];

/// Which files are looked into; all are packed.
#[derive(Debug)]
pub(crate) struct Selection {
    globs: Vec<glob::Pattern>,
    ignored: Vec<Regex>,
}

impl Selection {
    /// Takes `--glob` and `--ignore`.
    pub(crate) fn new(globs: &[String], ignored: &[String]) -> Result<Self> {
        let mut selection = Self {
            globs: Vec::new(),
            ignored: Vec::new(),
        };
        for pattern in globs {
            let parsed = glob::Pattern::new(pattern);
            selection.globs.push(
                parsed.with_context(|| {
                    format!("--glob {pattern} is not a pattern such as **/*.yaml")
                })?,
            );
        }
        if globs.is_empty() {
            let default = GLOBS
                .iter()
                .filter_map(|glob| glob::Pattern::new(glob).ok());
            selection.globs.extend(default);
        }
        for pattern in ignored {
            let parsed = Regex::new(pattern);
            selection.ignored.push(
                parsed
                    .with_context(|| format!("--ignore {pattern} is not a regular expression"))?,
            );
        }
        Ok(selection)
    }

    fn ignores(&self, relative: &Path) -> bool {
        let path = format!("/{}", relative.display());
        self.ignored.iter().any(|pattern| pattern.is_match(&path))
    }

    pub(crate) fn takes(&self, relative: &Path) -> bool {
        let options = glob::MatchOptions {
            require_literal_separator: true,
            ..glob::MatchOptions::default()
        };
        let mut globs = self.globs.iter();
        globs.any(|glob| glob.matches_path_with(relative, options)) && !self.ignores(relative)
    }
}

/// What is not a resource, by absolute path.
#[derive(Debug)]
pub(crate) struct Skip(Vec<PathBuf>);

impl Skip {
    pub(crate) fn new(source: &Source, output: &Output, state: &Path, lock: &Path) -> Self {
        let root = source.dir.canonicalize().unwrap_or_default();
        let mut paths: Vec<PathBuf> = [output.path(), state, lock]
            .iter()
            .filter_map(|path| canonical(path))
            .filter(|path| *path != root)
            .collect();
        paths.dedup();
        Self(paths)
    }

    fn skips(&self, entry: &DirEntry) -> bool {
        let name = entry.file_name().to_string_lossy();
        name.starts_with(PARTIAL) || self.0.iter().any(|path| path == entry.path())
    }
}

/// The path without links, also where its last part does not exist.
fn canonical(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    path.canonicalize()
        .ok()
        .or_else(|| Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?)))
}

/// What was found beside the manifest.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Directories and archives of charts, below the manifest's directory.
    pub(crate) charts: Vec<PathBuf>,
    pub(crate) images: Images,
    /// New content of files, by path below the manifest's directory.
    pub(crate) rewritten: BTreeMap<PathBuf, String>,
}

fn root(source: &Source) -> Result<PathBuf> {
    source
        .dir
        .canonicalize()
        .with_context(|| format!("cannot read {}", source.dir.display()))
}

/// Whether the file is what a build makes, under whatever name. Its output
/// lies among the resources by default, and would be packed into the next.
fn is_cluster_image(path: &Path) -> bool {
    let mut block = [0; 512];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut block));
    if read.is_err() {
        return false;
    }
    let header = tar::Header::from_byte_slice(&block);
    let archive = header.as_gnu().is_some() && header.path_bytes() == b"gravity".as_slice();
    archive || (block.starts_with(b"\x7fELF") && image::Image::open(path).is_ok())
}

/// Whether the file is a chart as `helm package` makes it.
fn is_chart_archive(path: &Path) -> bool {
    let Ok(file) = std::fs::File::open(path) else {
        return false;
    };
    let mut archive = tar::Archive::new(GzDecoder::new(file).take(CHART_BYTES));
    let Ok(entries) = archive.entries() else {
        return false;
    };
    let mut entries = entries.take(CHART_ENTRIES).map_while(Result::ok);
    entries.any(|entry| {
        let path = entry.path_bytes();
        let mut parts = path.split(|byte| *byte == b'/');
        let chart = parts.nth(1) == Some(b"Chart.yaml");
        chart && parts.next().is_none()
    })
}

/// How the manifest's directory is looked through.
pub(crate) struct Discovery<'a> {
    pub(crate) source: &'a Source,
    pub(crate) selection: &'a Selection,
    pub(crate) replacements: &'a Replacements,
    pub(crate) sink: &'a dyn Sink,
}

impl Discovery<'_> {
    /// Looks through the manifest's directory, aside from what helm renders.
    /// What turns out to be no resource is added to `skip`.
    pub(crate) fn run(&self, skip: &mut Skip) -> Result<Found> {
        let root = root(self.source)?;
        let manifest = canonical(&self.source.file);
        let mut found = Found::default();
        // Those that the entry lies in, the innermost last.
        let mut charts: Vec<PathBuf> = Vec::new();
        let mut entries = WalkDir::new(&root).sort_by_file_name().into_iter();
        while let Some(entry) = entries.next() {
            let entry = entry.context("cannot read the resources")?;
            let path = entry.path();
            let relative = path.strip_prefix(&root).unwrap_or(path).to_owned();
            if entry.depth() > 0 && skip.skips(&entry) {
                if entry.file_type().is_dir() {
                    entries.skip_current_dir();
                }
                continue;
            }
            charts.retain(|chart| path.starts_with(chart));
            let in_chart = charts
                .last()
                .and_then(|chart| path.strip_prefix(chart).ok());
            let rendered = in_chart
                .and_then(|path| path.iter().next())
                .is_some_and(|first| RENDERED.iter().any(|name| first == *name));
            if entry.file_type().is_dir() {
                if entry.file_name() == ".git" {
                    entries.skip_current_dir();
                } else if !rendered && path.join("Chart.yaml").is_file() {
                    charts.push(path.to_owned());
                    if !self.selection.ignores(&relative) {
                        found.charts.push(relative);
                    }
                }
                continue;
            }
            if !entry.file_type().is_file() || manifest.as_deref() == Some(path) {
                continue;
            }
            if is_cluster_image(path) {
                self.sink.info(&format!(
                    "{} is a cluster image and is left out",
                    self.source.shown(&relative).display()
                ));
                skip.0.push(path.to_owned());
            } else if rendered {
                // Its images are found in what helm makes of it.
            } else if path.extension().is_some_and(|extension| extension == "tgz") {
                if !self.selection.ignores(&relative) && is_chart_archive(path) {
                    found.charts.push(relative);
                }
            } else if self.selection.takes(&relative) {
                self.look_into(path, relative, in_chart.is_some(), &mut found)?;
            }
        }
        Ok(found)
    }

    fn look_into(
        &self,
        path: &Path,
        relative: PathBuf,
        in_chart: bool,
        found: &mut Found,
    ) -> Result<()> {
        let place = self.source.shown(&relative).display().to_string();
        let bytes = match host::bounded::bytes(path, MAX_FILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
                self.sink
                    .warning(&format!("{place} is not looked into: it is {error}"));
                return Ok(());
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {place}")),
        };
        let Ok(text) = String::from_utf8(bytes) else {
            self.sink
                .warning(&format!("{place} is not looked into: it is not UTF-8 text"));
            return Ok(());
        };
        // JSON may be indented by tabs, which YAML forbids; as many bytes stay.
        let json = path
            .extension()
            .is_some_and(|extension| extension == "json");
        let parsed = if json {
            scan(&text.replace('\t', " "), &place)
        } else {
            scan(&text, &place)
        };
        // A chart's templates may read its other files as templates, too.
        let parsed = parsed.and_then(|scanned| match in_chart && scanned.is_template() {
            true => bail!("{place}: a template names an image"),
            false => Ok(scanned),
        });
        let scanned = match parsed {
            Ok(scanned) => scanned,
            // Templates of other tools lie beside objects; objects must be readable.
            Err(error)
                if !(in_chart && text.contains("{{"))
                    && text.contains("apiVersion")
                    && text.contains("kind") =>
            {
                return Err(error.context(format!(
                    "cannot look for images in {place}: --ignore leaves it out"
                )));
            }
            Err(error) => {
                self.sink
                    .warning(&format!("{error:#}; it is taken as it is"));
                return Ok(());
            }
        };
        let rewritten = scanned.rewrite(&text, self.replacements)?;
        if rewritten != text {
            found.rewritten.insert(relative, rewritten);
        }
        let images = scanned.into_rewritten(self.replacements);
        images.into_iter().for_each(|image| found.images.add(image));
        Ok(())
    }
}

/// Copies the resources, by hard links where the file system can, with the
/// rewritten files in place of theirs; returns the directory.
pub(crate) fn stage(
    source: &Source,
    skip: &Skip,
    rewritten: &BTreeMap<PathBuf, String>,
    work: &Path,
) -> Result<PathBuf> {
    let root = root(source)?;
    let staged = work.join("resources");
    let mut directories = Vec::new();
    let walk = WalkDir::new(&root).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|entry| entry.depth() == 0 || !skip.skips(entry)) {
        let entry = entry.context("cannot read the resources")?;
        let relative = entry.path().strip_prefix(&root).unwrap_or(entry.path());
        let shown = source.shown(relative);
        let what = || format!("cannot pack {}", shown.display());
        let to = if entry.depth() == 0 {
            staged.clone()
        } else {
            staged.join(relative)
        };
        let kind = entry.file_type();
        let mode = entry.metadata().with_context(what)?.permissions().mode() & 0o777;
        if kind.is_dir() {
            std::fs::create_dir(&to).with_context(what)?;
            directories.push((to, mode));
        } else if kind.is_symlink() {
            let target = std::fs::read_link(entry.path()).with_context(what)?;
            std::os::unix::fs::symlink(target, &to).with_context(what)?;
        } else if let Some(text) = rewritten.get(relative) {
            host::atomic::write(&to, text.as_bytes(), mode).with_context(what)?;
        } else if kind.is_file() {
            let linked = std::fs::hard_link(entry.path(), &to);
            linked
                .or_else(|_| std::fs::copy(entry.path(), &to).map(drop))
                .with_context(what)?;
        } else {
            bail!(
                "{}: it is neither a file, a directory nor a symbolic link",
                what()
            );
        }
    }
    if let Some(generated) = &source.generated {
        let name = source.file.file_name().unwrap_or_default();
        host::atomic::write(&staged.join(name), generated.as_bytes(), 0o644)
            .context("cannot pack the generated manifest")?;
    }
    if !source.values.is_empty() {
        let directory = staged.join(BUILD_VALUES);
        std::fs::create_dir(&directory)
            .with_context(|| format!("cannot pack values as {BUILD_VALUES}"))?;
    }
    for (index, file) in source.values.iter().enumerate() {
        let bytes = read(file, MAX_CONTENT)
            .map_err(|message| anyhow!("cannot pack {}: {message}", file.display()))?;
        host::atomic::write(&staged.join(build_values(index)), &bytes, 0o644)
            .with_context(|| format!("cannot pack {}", file.display()))?;
    }
    // Last, as a directory may forbid to write to it; the work directory must
    // be removable, so that the owner keeps his rights.
    for (directory, mode) in directories.into_iter().rev() {
        std::fs::set_permissions(&directory, Permissions::from_mode(mode | 0o700))
            .with_context(|| format!("cannot write {}", directory.display()))?;
    }
    Ok(staged)
}
