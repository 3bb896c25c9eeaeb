//! Charts: rendered by the real helm to find their images.
//!
//! In: a directory with Chart.yaml, or an archive of one. Out: the images of
//! what `helm template` makes of it, with default values and those of the
//! command line, CRDs and tests included; and those that annotations in
//! Chart.yaml name. The chart's own files are not changed.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use event::Discard;
use flate2::read::GzDecoder;
use host::command::Cmd;
use image::{ReadChunks, unpack};
use manifest::yaml::Node;
use spec::layout::PLANET_RESOURCES;

use super::images::{ANNOTATION, Named, listed, scan};
use super::yaml::documents;

const TIMEOUT: Duration = Duration::from_secs(300);
/// Most bytes that a chart may render to.
const MAX_OUTPUT: usize = 64 << 20;
/// Most bytes of a Chart.yaml.
const MAX_CHART: u64 = 1 << 20;
/// Most bytes of an archive of charts, unpacked, and most entries.
const ARCHIVE_BYTES: u64 = 256 << 20;
const ARCHIVE_ENTRIES: usize = 50_000;
/// Archives within archives of charts that are followed.
const MAX_DEPTH: usize = 4;
/// Most times that one chart is rendered.
const MAX_RENDERINGS: usize = 32;
/// Annotation in Chart.yaml with further values that the chart is used with: a
/// rendering a line, of files beside Chart.yaml.
const VALUES: &str = "cluster.gravitational.io/values";
/// Annotation in Chart.yaml with images, as Artifact Hub defines it.
const HUB_IMAGES: &str = "artifacthub.io/images";

/// Where they see the values of the install; without any it is an empty mapping.
const INSTALL_VALUES: &str = "/var/lib/gravity/helm/values.yaml";
/// Directory among the resources with the values of a build of a chart alone.
pub(crate) const BUILD_VALUES: &str = ".tele-values";

/// Hooks of a cluster that was made for a chart alone, with the arguments of
/// helm; NAME is the chart's name.
const HOOKS: [(&str, &[&str]); 1] = [(
    "install",
    &[
        "upgrade",
        "--install",
        "NAME",
        PLANET_RESOURCES,
        "--namespace=default",
    ],
)];

/// What the command line says about charts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options<'a> {
    /// The program: a path, or a name to look for in PATH.
    pub(crate) helm: &'a OsStr,
    pub(crate) set: &'a [String],
    pub(crate) values: &'a [PathBuf],
}

/// Renders charts.
#[derive(Debug)]
pub(crate) struct Helm<'a> {
    options: &'a Options<'a>,
    /// Of the base image: charts may ask for it.
    kubernetes: Option<&'a str>,
    /// Keeps helm off the user's files, so that they can't change the result.
    home: PathBuf,
}

impl<'a> Helm<'a> {
    pub(crate) fn new(options: &'a Options<'a>, kubernetes: Option<&'a str>, work: &Path) -> Self {
        Self {
            options,
            kubernetes,
            home: work.join("helm"),
        }
    }

    /// The images of charts, in their order: several are rendered at a time.
    /// A chart comes with its name in messages.
    pub(crate) fn all_images(&self, charts: &[(PathBuf, PathBuf)]) -> Result<Vec<Vec<Named>>> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        let work = || {
            while let Some((chart, shown)) = charts.get(next.fetch_add(1, Ordering::Relaxed)) {
                let images = self.images(chart, shown);
                let failed = images.is_err();
                let mut done = done
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                done.push((shown, images));
                if failed {
                    // The others need not begin.
                    next.store(charts.len(), Ordering::Relaxed);
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads.min(charts.len()) {
                scope.spawn(work);
            }
        });
        let mut done = done
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        done.sort_by_key(|(shown, _)| *shown);
        done.into_iter().map(|(_, images)| images).collect()
    }

    /// The images of a chart; `shown` is its name in messages.
    fn images(&self, chart: &Path, shown: &Path) -> Result<Vec<Named>> {
        let described = Description::read(chart, shown)?;
        if described.has_renderings && !chart.is_dir() {
            // Helm reads values beside a chart from a directory only.
            let unpacked = self.unpack(chart, shown)?;
            return self.images(&own_chart(unpacked.path(), shown)?, shown);
        }
        let mut all = described.images;
        // A library holds nothing to render.
        if !described.library {
            for values in std::iter::once(Vec::new()).chain(described.renderings) {
                all.extend(self.render(chart, shown, &values)?);
            }
        }
        Ok(all)
    }

    /// An archive's content, in a directory of a directory that goes with the
    /// result.
    fn unpack(&self, archive: &Path, shown: &Path) -> Result<tempfile::TempDir> {
        let what = || format!("unpack {}", shown.display());
        std::fs::create_dir_all(&self.home).with_context(what)?;
        let directory = tempfile::tempdir_in(&self.home).with_context(what)?;
        let file = std::fs::File::open(archive).with_context(what)?;
        let mut chunks = ReadChunks::new(GzDecoder::new(file));
        let options = unpack::Options {
            limits: unpack::Limits {
                entries: ARCHIVE_ENTRIES as u64,
                bytes: ARCHIVE_BYTES,
                ..unpack::Options::resources().limits
            },
            ..unpack::Options::resources()
        };
        let target = directory.path().join("chart");
        unpack::unpack(&mut [&mut chunks], &target, &options, &Discard).with_context(what)?;
        Ok(directory)
    }

    /// Renders a chart once, with further values.
    fn render(&self, chart: &Path, shown: &Path, values: &[PathBuf]) -> Result<Vec<Named>> {
        let what = format!("render the chart {}", shown.display());
        let mut helm = Cmd::new(self.options.helm)
            .describe(&what)
            .timeout(TIMEOUT)
            .max_output(MAX_OUTPUT);
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm = helm.env(name, &self.home);
        }
        helm = helm
            .args(["template", "gravity", "--include-crds"])
            .arg(chart);
        if let Some(version) = self.kubernetes {
            helm = helm.args(["--kube-version", version]);
        }
        // The command line has the last word.
        for file in values.iter().chain(self.options.values) {
            helm = helm.arg("--values").arg(file);
        }
        for value in self.options.set {
            helm = helm.args(["--set", value]);
        }
        let output = match helm.run() {
            Err(host::command::CommandError::NotInstalled { .. }) => bail!(
                "{what}: there is no helm ({}): put helm 3 into PATH, or name it by the variable HELM",
                self.options.helm.display()
            ),
            result => result.with_context(|| {
                format!(
                    "{}: values that it demands are given by --set or --values, \
                     missing dependencies are fetched by `helm dependency build`, --ignore leaves it out",
                    shown.display()
                )
            })?,
        };
        let scanned = scan(&output.stdout, &shown.display().to_string())?;
        let templates = Templates::of(&output.stdout);
        let named = |image: Named| {
            let line = image.place.rsplit(':').next();
            let line = line.and_then(|line| line.parse().ok());
            let template = line.and_then(|line| templates.at(line));
            let place = template.map(|template| format!("{} ({template})", shown.display()));
            Named {
                place: place.unwrap_or(image.place),
                ..image
            }
        };
        let all = scanned.images.into_iter().chain(scanned.annotated);
        Ok(all.map(named).collect())
    }
}

/// The chart that was unpacked into the only directory of `unpacked`.
fn own_chart(unpacked: &Path, shown: &Path) -> Result<PathBuf> {
    let entries = walkdir::WalkDir::new(unpacked).min_depth(2).max_depth(2);
    let mut charts = entries
        .into_iter()
        .flatten()
        .map(walkdir::DirEntry::into_path);
    charts
        .find(|path| path.join("Chart.yaml").is_file())
        .with_context(|| format!("{} holds no chart", shown.display()))
}

/// Which template each line of a rendered text comes from: the lines mean
/// nothing to a reader.
struct Templates<'a>(Vec<(usize, &'a str)>);

impl<'a> Templates<'a> {
    fn of(text: &'a str) -> Self {
        let lines = text.lines().zip(1..);
        let sources = lines.filter_map(|(line, number)| {
            let template = line.strip_prefix("# Source: ")?;
            Some((number, template))
        });
        Self(sources.collect())
    }

    fn at(&self, line: usize) -> Option<&'a str> {
        let after = self.0.partition_point(|(number, _)| *number <= line);
        Some(self.0.get(after.checked_sub(1)?)?.1)
    }
}

/// Name of one of the files in [`BUILD_VALUES`].
pub(crate) fn build_values(index: usize) -> String {
    format!("{BUILD_VALUES}/{index}.yaml")
}

/// The Image Manifest of a cluster with nothing but the chart in `directory`, which is
/// installed with that many files of values of the build, and then those of the install.
pub(crate) fn manifest_for(directory: &Path, values: usize) -> Result<String> {
    let about = Description::of(directory, directory)?;
    let shown = directory.join("Chart.yaml");
    let shown = shown.display();
    if about.library {
        bail!("{shown}: a library chart installs nothing: add an app.yaml");
    }
    let (name, version) = match (about.name, about.version) {
        (Some(name), Some(version)) => (name, version),
        _ => bail!("{shown}: it has no name or no version"),
    };
    if !name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
        bail!(
            "{shown}: `{name}` is not a name of letters, digits and - that a cluster could have: add an app.yaml"
        );
    }
    if let Err(error) = semver::Version::parse(&version) {
        bail!("{shown}: the version `{version}` is not of the form 1.2.3: {error}");
    }
    let image = format!("{}/{}", super::images::registry(), super::images::PAUSE);
    let mut text = format!(
        "# Made by tele for the chart {name}.\n\
         apiVersion: cluster.gravitational.io/v2\n\
         kind: Cluster\n\
         metadata:\n\
         \x20 name: {name}\n\
         \x20 resourceVersion: {version}\n\
         hooks:\n"
    );
    for (hook, command) in HOOKS {
        let values = (0..values)
            .map(|index| format!("{PLANET_RESOURCES}/{}", build_values(index)))
            .chain([INSTALL_VALUES.to_owned()]);
        let command: Vec<String> = std::iter::once("/usr/local/bin/helm".to_owned())
            .chain(command.iter().map(|word| word.replace("NAME", &name)))
            .chain(values.map(|file| format!("--values={file}")))
            .collect();
        let command = serde_json::to_string(&command).context("cannot write a manifest")?;
        // Every container gets helm: the image needs nothing in it.
        text.push_str(&format!(
            "\x20 {hook}:\n\
             \x20   job: |\n\
             \x20     apiVersion: batch/v1\n\
             \x20     kind: Job\n\
             \x20     metadata: {{name: {hook}}}\n\
             \x20     spec:\n\
             \x20       backoffLimit: 2\n\
             \x20       template:\n\
             \x20         spec:\n\
             \x20           restartPolicy: Never\n\
             \x20           containers:\n\
             \x20             - name: helm\n\
             \x20               image: {image}\n\
             \x20               command: {command}\n"
        ));
    }
    Ok(text)
}

/// One Chart.yaml of an archive.
struct Part {
    about: Description,
    /// Whether it is the archive's own, and of no dependency.
    top: bool,
}

/// Every Chart.yaml in an archive of `helm package`, and in those within.
fn in_archive(file: impl Read, shown: &Path, depth: usize) -> Result<Vec<Part>> {
    let name = shown.display();
    if depth > MAX_DEPTH {
        bail!("{name}: charts nest more than {MAX_DEPTH} archives deep");
    }
    let what = || format!("cannot read {name}");
    let content = GzDecoder::new(file).take(ARCHIVE_BYTES);
    let mut archive = tar::Archive::new(content);
    let mut found = Vec::new();
    for (count, entry) in archive.entries().with_context(what)?.enumerate() {
        let mut entry = entry.with_context(what)?;
        if count >= ARCHIVE_ENTRIES {
            bail!("{name} has more than {ARCHIVE_ENTRIES} entries");
        }
        let path = entry.path().with_context(what)?.into_owned();
        let parts: Vec<_> = path.iter().filter_map(|part| part.to_str()).collect();
        // NAME, then perhaps charts/NAME, any number of times.
        let chart = |parts: &[&str]| {
            parts.len() % 2 == 1
                && parts
                    .iter()
                    .skip(1)
                    .step_by(2)
                    .all(|part| *part == "charts")
        };
        let below = shown.join(&path);
        match parts.as_slice() {
            [above @ .., "Chart.yaml"] if chart(above) => {
                let size = entry.size();
                if size > MAX_CHART {
                    bail!(
                        "{} has {size} bytes, the limit is {MAX_CHART}",
                        below.display()
                    );
                }
                let mut text = String::new();
                entry.read_to_string(&mut text).with_context(what)?;
                found.push(Part {
                    about: Description::parse(&text, &below.display().to_string(), None)?,
                    top: depth == 0 && above.len() == 1,
                });
            }
            [above @ .., "charts", archive] if chart(above) && archive.ends_with(".tgz") => {
                found.extend(in_archive(
                    Box::new(&mut entry) as Box<dyn Read>,
                    &below,
                    depth + 1,
                )?);
            }
            _ => {}
        }
    }
    Ok(found)
}

/// What Chart.yaml says.
#[derive(Debug, Default)]
struct Description {
    name: Option<String>,
    version: Option<String>,
    library: bool,
    /// Images that annotations name.
    images: Vec<Named>,
    /// Whether further renderings are asked for.
    has_renderings: bool,
    /// Files of values for each of them.
    renderings: Vec<Vec<PathBuf>>,
}

impl Description {
    /// Reads that of a chart and the annotated images of its dependencies,
    /// directories and archives alike.
    fn read(chart: &Path, shown: &Path) -> Result<Self> {
        if !chart.is_dir() {
            return Self::archived(chart, shown);
        }
        let mut described = Self::of(chart, shown)?;
        let dependencies = chart.join("charts");
        if dependencies.is_dir() {
            let entries = walkdir::WalkDir::new(&dependencies).sort_by_file_name();
            for entry in entries {
                let entry = entry.with_context(|| format!("cannot read {}", shown.display()))?;
                let below = entry.path().strip_prefix(chart).unwrap_or(entry.path());
                let shown = shown.join(below);
                if entry.file_type().is_dir() && entry.path().join("Chart.yaml").is_file() {
                    let dependency = Self::of(entry.path(), &shown)?;
                    described.images.extend(dependency.images);
                }
                let packed = entry.path().extension() == Some("tgz".as_ref())
                    && entry.path().parent().and_then(Path::file_name) == Some("charts".as_ref());
                if entry.file_type().is_file() && packed {
                    let file = std::fs::File::open(entry.path());
                    let file = file.with_context(|| format!("cannot read {}", shown.display()))?;
                    let parts = in_archive(file, &shown, 0)?;
                    described
                        .images
                        .extend(parts.into_iter().flat_map(|part| part.about.images));
                }
            }
        }
        Ok(described)
    }

    /// Reads that of a chart in an archive, with those of its dependencies.
    fn archived(chart: &Path, shown: &Path) -> Result<Self> {
        let what = || format!("cannot read {}", shown.display());
        let file = std::fs::File::open(chart).with_context(what)?;
        let mut described = Self::default();
        for part in in_archive(file, shown, 0)? {
            if part.top {
                let images = std::mem::take(&mut described.images);
                described = part.about;
                described.images.extend(images);
            } else {
                described.images.extend(part.about.images);
            }
        }
        Ok(described)
    }

    fn of(chart: &Path, shown: &Path) -> Result<Self> {
        let file = chart.join("Chart.yaml");
        let shown = shown.join("Chart.yaml").display().to_string();
        let what = || format!("cannot read {shown}");
        let size = std::fs::metadata(&file).with_context(what)?.len();
        if size > MAX_CHART {
            bail!("{shown} has {size} bytes, the limit is {MAX_CHART}");
        }
        let text = std::fs::read_to_string(&file).with_context(what)?;
        Self::parse(&text, &shown, Some(chart))
    }

    /// `shown` is the file in messages; `chart` its directory, where there is
    /// one.
    fn parse(text: &str, shown: &str, chart: Option<&Path>) -> Result<Self> {
        let documents =
            documents(text).map_err(|error| anyhow::anyhow!("{shown}: not valid YAML: {error}"))?;
        let Some(about) = documents.first() else {
            return Ok(Self::default());
        };
        let annotation = |name: &str| {
            let node = about.get("annotations")?.get(name)?;
            Some((node.text()?, format!("{shown}:{}", node.at.line)))
        };
        let field = |name| about.get(name).and_then(Node::text).map(str::to_owned);
        let mut described = Self {
            name: field("name"),
            version: field("version"),
            library: about.get("type").and_then(Node::text) == Some("library"),
            ..Self::default()
        };
        let mut add = |name: &str, place: &str| {
            described.images.push(Named {
                name: name.into(),
                source: None,
                place: place.into(),
            });
        };
        if let Some((names, place)) = annotation(ANNOTATION) {
            listed(names).for_each(|name| add(name, &place));
        }
        if let Some((list, place)) = annotation(HUB_IMAGES) {
            let list = super::yaml::documents(list).map_err(|error| {
                anyhow::anyhow!("{place}: {HUB_IMAGES} is not valid YAML: {error}")
            })?;
            for item in list.first().map(Node::items).unwrap_or_default() {
                let Some(name) = item.get("image").and_then(Node::text) else {
                    bail!("{place}: {HUB_IMAGES} is not a list of `image: NAME`");
                };
                add(name, &place);
            }
        }
        described.has_renderings = annotation(VALUES).is_some();
        if let Some(((text, place), chart)) = annotation(VALUES).zip(chart) {
            for line in text.lines() {
                let mut files = Vec::new();
                for name in listed(line) {
                    let path = chart.join(name);
                    if !path.is_file() {
                        bail!("{place}: {VALUES} names {name}, which is no file beside Chart.yaml");
                    }
                    files.push(path);
                }
                if !files.is_empty() {
                    described.renderings.push(files);
                }
            }
            if described.renderings.len() > MAX_RENDERINGS {
                bail!(
                    "{place}: {VALUES} has {} lines; a chart is rendered at most {MAX_RENDERINGS} times",
                    described.renderings.len()
                );
            }
        }
        Ok(described)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(files: &[(&str, &[u8])]) -> Vec<u8> {
        let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut tar = tar::Builder::new(gzip);
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, *content).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    fn about(name: &str, annotation: &str) -> Vec<u8> {
        let text = format!("name: {name}\nversion: 1.0.0\nannotations:\n  {annotation}\n");
        text.into_bytes()
    }

    fn images(name: &str) -> Vec<u8> {
        about(name, &format!("{ANNOTATION}: quay.io/{name}:1"))
    }

    fn names(described: &Description) -> Vec<&str> {
        let names = described.images.iter();
        names.map(|image| image.name.as_str()).collect()
    }

    #[test]
    fn annotations_are_read_in_archives_and_in_archives_within() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            host::atomic::write(&path, content, 0o644).unwrap();
            path
        };
        let leaf = packed(&[("leaf/Chart.yaml", &images("leaf"))]);
        let middle = packed(&[
            ("middle/Chart.yaml", &images("middle")),
            ("middle/charts/leaf-1.0.0.tgz", &leaf),
            ("middle/templates/Chart.yaml", &images("none")),
        ]);
        let whole = packed(&[
            ("top/charts/plain/Chart.yaml", &images("plain")),
            ("top/charts/middle-1.0.0.tgz", &middle),
            ("top/Chart.yaml", &images("top")),
            ("top/files/other.tgz", b"no archive"),
        ]);
        let path = put("top.tgz", &whole);
        let read = |path: &Path| Description::read(path, Path::new("shown"));
        let found = read(&path).unwrap();
        assert_eq!(found.name.as_deref(), Some("top"));
        let wanted = [
            "quay.io/top:1",
            "quay.io/plain:1",
            "quay.io/middle:1",
            "quay.io/leaf:1",
        ];
        assert_eq!(names(&found), wanted);
        assert!(
            found.images[3]
                .place
                .starts_with("shown/top/charts/middle-1.0.0.tgz/middle")
        );

        // A directory with a packed dependency, as `helm dependency build` leaves it.
        put("chart/Chart.yaml", &images("chart"));
        put("chart/charts/middle-1.0.0.tgz", &middle);
        put("chart/files/x.tgz", b"no archive");
        let found = read(&dir.path().join("chart")).unwrap();
        assert_eq!(
            names(&found),
            ["quay.io/chart:1", "quay.io/middle:1", "quay.io/leaf:1"]
        );

        let values = packed(&[("a/Chart.yaml", &about("a", &format!("{VALUES}: more.yaml")))]);
        assert!(read(&put("values.tgz", &values)).unwrap().has_renderings);
        let mut nested = leaf;
        for _ in 0..=MAX_DEPTH {
            nested = packed(&[("a/charts/b.tgz", &nested)]);
        }
        let error = format!("{:#}", read(&put("nested.tgz", &nested)).unwrap_err());
        assert!(error.contains("nest more than"), "{error}");
        let large = packed(&[("a/Chart.yaml", &vec![b'#'; MAX_CHART as usize + 1])]);
        assert!(read(&put("large.tgz", &large)).is_err());
        assert!(read(&put("cut.tgz", &whole[..whole.len() / 2])).is_err());
    }
}
