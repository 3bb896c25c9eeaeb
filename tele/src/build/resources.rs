//! The cluster's resources: all that lies beside the manifest.
//!
//! In: the manifest's directory. Out: its charts, the images of its objects,
//! the files that name them otherwise in the cluster; and a copy of the
//! directory with those files, ready to be packed. The output, unfinished
//! output, cluster images of former builds and the state directory are no
//! resources.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use event::Sink;
use walkdir::{DirEntry, WalkDir};

use super::PARTIAL;
use super::images::{Images, scan};
use super::manifest::Source;
use super::output::Output;

/// Most bytes of a file that may hold objects.
const MAX_FILE: u64 = 16 << 20;

/// What is not a resource, by absolute path.
#[derive(Debug)]
pub(crate) struct Skip(Vec<PathBuf>);

impl Skip {
    pub(crate) fn new(source: &Source, output: &Output, state: &Path) -> Self {
        let root = source.dir.canonicalize().unwrap_or_default();
        let mut paths: Vec<PathBuf> = [output.path(), state]
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
    /// Directories of charts, below the manifest's.
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

/// Looks through the manifest's directory, charts aside. What turns out to be
/// no resource is added to `skip`.
pub(crate) fn discover(source: &Source, skip: &mut Skip, sink: &dyn Sink) -> Result<Found> {
    let root = root(source)?;
    let manifest = canonical(&source.file);
    let mut found = Found::default();
    let mut entries = WalkDir::new(&root).sort_by_file_name().into_iter();
    while let Some(entry) = entries.next() {
        let entry = entry.context("cannot read the resources")?;
        let path = entry.path();
        let relative = path.strip_prefix(&root).unwrap_or(path).to_owned();
        let shown = source.shown(&relative);
        if entry.depth() > 0 && skip.skips(&entry) {
            if entry.file_type().is_dir() {
                entries.skip_current_dir();
            }
            continue;
        }
        if entry.file_type().is_dir() {
            let chart = path.join("Chart.yaml").is_file();
            if chart {
                found.charts.push(relative);
            }
            if chart || entry.file_name() == ".git" {
                entries.skip_current_dir();
            }
            continue;
        }
        if !entry.file_type().is_file() || manifest.as_deref() == Some(path) {
            continue;
        }
        if is_cluster_image(path) {
            sink.info(&format!(
                "{} is a cluster image and is left out",
                shown.display()
            ));
            skip.0.push(path.to_owned());
            continue;
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("yaml" | "yml") => look_into(path, &shown, relative, false, &mut found, sink)?,
            Some("json") => look_into(path, &shown, relative, true, &mut found, sink)?,
            Some("tgz") => sink.warning(&format!(
                "{}: charts in archives are not looked into by this release yet: unpack it if it is one",
                shown.display()
            )),
            _ => {}
        }
    }
    Ok(found)
}

fn look_into(
    path: &Path,
    shown: &Path,
    relative: PathBuf,
    json: bool,
    found: &mut Found,
    sink: &dyn Sink,
) -> Result<()> {
    let place = shown.display().to_string();
    let size = std::fs::metadata(path)
        .with_context(|| format!("cannot read {place}"))?
        .len();
    if size > MAX_FILE {
        sink.warning(&format!(
            "{place} is not looked into: it has {size} bytes, the limit is {MAX_FILE}"
        ));
        return Ok(());
    }
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {place}"))?;
    let Ok(text) = String::from_utf8(bytes) else {
        sink.warning(&format!("{place} is not looked into: it is not UTF-8 text"));
        return Ok(());
    };
    // JSON may be indented by tabs, which YAML forbids; as many bytes stay.
    let parsed = if json {
        scan(&text.replace('\t', " "), &place)
    } else {
        scan(&text, &place)
    };
    let scanned = match parsed {
        Ok(scanned) => scanned,
        // Templates of other tools lie beside objects; objects must be readable.
        Err(error) if text.contains("apiVersion") && text.contains("kind") => return Err(error),
        Err(error) => {
            sink.warning(&format!("{error:#}; it is taken as it is"));
            return Ok(());
        }
    };
    let rewritten = scanned.rewrite(&text)?;
    if rewritten != text {
        found.rewritten.insert(relative, rewritten);
    }
    scanned
        .images
        .into_iter()
        .for_each(|image| found.images.add(image));
    Ok(())
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
    // Last, as a directory may forbid to write to it; the work directory must
    // be removable, so that the owner keeps his rights.
    for (directory, mode) in directories.into_iter().rev() {
        std::fs::set_permissions(&directory, Permissions::from_mode(mode | 0o700))
            .with_context(|| format!("cannot write {}", directory.display()))?;
    }
    Ok(staged)
}
