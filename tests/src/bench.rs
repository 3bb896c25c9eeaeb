//! Ratios against peers, measured side by side in one run.
//!
//! In: a cluster image, or the sample that is built here. Out: a table with a
//! row a target, as text and as JSON. Always holds: ours and the peer's take
//! turns, as other work on the machine comes and goes, and medians are
//! compared; a part that fails or lacks something says so in its row and the
//! others go on; nodes and files of the benchmark are removed at its end.

mod agents;
mod build;
mod cluster;
mod disk;
mod distribute;
mod floor;
mod idle;
mod image;
mod join;
mod kubeadm;
mod large;
mod registry;
mod start;

pub use agents::{Simulate, simulate};

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use ::image::Image;
use ::image::cluster::ClusterImage;
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use console::Console;
use event::Sink;
use serde::Serialize;

use crate::scenario::Setup;
use crate::{file, node};

/// What to measure and on what.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Measurements of each; their median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=25))]
    runs: u16,
    /// Use this cluster image instead of building the sample.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Flavor to install; the sample's has one, of one node.
    #[arg(long, value_name = "NAME")]
    flavor: Option<String>,
    /// Write the results there too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Directory of the sample application.
    #[arg(long, default_value = "tests/sample")]
    sample: PathBuf,
    /// The kubeadm program; the one among the base's components otherwise.
    #[arg(long)]
    kubeadm: Option<PathBuf>,
    /// Only these parts; all but `agents`, `distribute`, `idle` and `large` otherwise.
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Part>,
    /// How long to look on for `idle`.
    #[arg(long, default_value_t = 10, value_name = "MINUTES")]
    idle_minutes: u16,
    /// Simulated agents, and nodes.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(100..=4000))]
    agents: u16,
    /// Size of the image that nodes get at one moment.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(8..=10_000))]
    megabytes: u64,
    /// Size of the large image.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    gigabytes: u16,
    /// Run a command and print its time in microseconds and the most memory
    /// that it had, in KiB.
    #[arg(hide = true, last = true)]
    command: Vec<OsString>,
}

/// A part that can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Install against starting the same programs by hand, and kubeadm.
    Install,
    /// A second node against kubeadm's.
    Join,
    /// Start of a command on a large image.
    Start,
    /// Local checks against kubeadm's.
    Check,
    /// The disk test against fio.
    Disk,
    /// Unpacking the planet's root filesystem.
    Unpack,
    /// Filling the cluster registry.
    Registry,
    /// Building with a warm cache.
    Build,
    /// A plan with a thousand agents, a cluster that a thousand nodes join; minutes.
    Agents,
    /// An image of a gigabyte to many nodes at one moment; minutes, and seventeen
    /// times its size on the disk.
    Distribute,
    /// What gravity's processes cost where nothing happens; minutes.
    Idle,
    /// Building, pushing and pulling an image of gigabytes; minutes, and three
    /// times its size on the disk.
    Large,
}

/// What is to be reached.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Target {
    /// Ours by the peer's is at most this.
    Ratio(f64),
    /// Ours is at most this, whatever the peer's is.
    Most(f64),
    /// Neither is more than so many times the other.
    Within(f64),
}

/// One line of the result.
#[derive(Debug, Clone, Serialize)]
struct Row {
    what: String,
    against: String,
    unit: &'static str,
    ours: Vec<f64>,
    peer: Vec<f64>,
    target: Option<Target>,
    /// Why there are no numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
}

impl Row {
    fn new(what: &str, against: &str, unit: &'static str, target: Option<Target>) -> Self {
        Self {
            what: what.to_owned(),
            against: against.to_owned(),
            unit,
            ours: Vec::new(),
            peer: Vec::new(),
            target,
            missing: None,
        }
    }

    fn missing(mut self, why: impl Into<String>) -> Self {
        self.missing = Some(why.into());
        self
    }

    /// Remembers the first thing that went wrong.
    fn note(&mut self, why: &str) {
        self.missing.get_or_insert_with(|| why.to_owned());
    }

    fn ratio(&self) -> Option<f64> {
        Some(median(&self.ours)? / median(&self.peer)?)
    }

    fn is_met(&self) -> Option<bool> {
        Some(match self.target? {
            Target::Ratio(most) => self.ratio()? <= most,
            Target::Most(most) => median(&self.ours)? <= most,
            Target::Within(most) => self.ratio()?.max(1.0 / self.ratio()?) <= most,
        })
    }

    fn cells(&self) -> Vec<String> {
        let value = |all: &[f64]| {
            median(all).map_or_else(|| "-".into(), |v| format!("{v:.2} {}", self.unit))
        };
        vec![
            self.what.clone(),
            value(&self.ours),
            self.against.clone(),
            value(&self.peer),
            self.ratio()
                .map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
            match self.target {
                Some(Target::Ratio(most)) => format!("<= {most} x"),
                Some(Target::Most(most)) => format!("<= {most} {}", self.unit),
                Some(Target::Within(most)) => format!("within {most} x"),
                None => "-".into(),
            },
            match (self.is_met(), &self.missing) {
                (Some(true), _) => "met",
                (Some(false), _) => "missed",
                (None, Some(_)) => "not measured",
                (None, None) => "-",
            }
            .into(),
        ]
    }
}

/// The middle one; of an even number the mean of both in the middle.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    match sorted.len() % 2 {
        1 => Some(upper),
        _ => Some(f64::midpoint(upper, *sorted.get(sorted.len() / 2 - 1)?)),
    }
}

/// Where a part finds things, all made before anything is timed.
struct Bench<'a> {
    options: &'a Options,
    console: &'a Console,
    /// The cluster image's file.
    file: PathBuf,
    cluster: ClusterImage,
    flavor: Option<String>,
    directory: Directory,
}

/// The benchmark's files, removed with it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self> {
        let path = file::cache()?.join("bench");
        file::remove_directory(&path)?;
        file::make_directory(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = file::remove_directory(&self.0);
    }
}

impl Bench<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.0.join(name)
    }

    fn rounds(&self) -> std::ops::RangeInclusive<u16> {
        1..=self.options.runs
    }

    /// The planet's root filesystem as a tar, as it is in the hub.
    fn rootfs(&self) -> Result<PathBuf> {
        let path = self.path("rootfs.tar");
        if !path.exists() {
            let layer = self.cluster.base()?.rootfs;
            self.cluster.image.extract(&layer, &path)?;
        }
        Ok(path)
    }
}

/// What is written as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    image: &'a Path,
    image_bytes: u64,
    runs: u16,
    debug_build: bool,
    rows: &'a [Row],
    /// Seconds of each phase of the installs.
    phases: &'a [cluster::PhaseTime],
}

/// Measures and prints.
///
/// # Errors
/// When there is no image to measure with or the results can't be written.
/// Missed targets are no error: the table says so.
pub fn run(options: &Options, console: &Console) -> Result<()> {
    if !options.command.is_empty() {
        return start::measure(&options.command, console);
    }
    node::require_root()?;
    let directory = Directory::new()?;
    let built = options.image.is_none();
    let setup = Setup {
        image: options.image.clone(),
        ..Setup::new(&options.sample)
    };
    let path = setup.image(console)?;
    let path = path
        .canonicalize()
        .with_context(|| path.display().to_string())?;
    let opened = Image::open(&path)?;
    let bench = Bench {
        options,
        console,
        file: path,
        cluster: ClusterImage::open(opened)?,
        flavor: options
            .flavor
            .clone()
            .or_else(|| built.then(|| "one".to_owned())),
        directory,
    };
    if cfg!(debug_assertions) {
        console.warning("This is a debug build: unpacking is slower than it is");
    }
    let (mut rows, mut phases) = (Vec::new(), Vec::new());
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    if wanted(Part::Start) {
        rows.extend(start::rows(&bench));
    }
    if wanted(Part::Check) {
        rows.extend(kubeadm::checks(&bench));
    }
    if wanted(Part::Disk) {
        rows.extend(disk::rows(&bench));
    }
    if wanted(Part::Unpack) {
        rows.push(image::unpack(&bench));
    }
    if wanted(Part::Install) {
        let (more, times) = cluster::rows(&bench);
        rows.extend(more);
        phases = times;
    }
    if wanted(Part::Join) {
        rows.push(join::row(&bench));
    }
    if wanted(Part::Registry) {
        rows.push(registry::row(&bench, &phases));
    }
    if wanted(Part::Build) {
        rows.push(build::row(&bench, &setup));
    }
    if options.only.contains(&Part::Agents) {
        rows.extend(agents::rows(&bench, &setup, options.agents));
    }
    if options.only.contains(&Part::Distribute) {
        rows.extend(distribute::rows(&bench, options.megabytes));
    }
    if options.only.contains(&Part::Idle) {
        rows.extend(idle::rows(&bench, options.idle_minutes));
    }
    if options.only.contains(&Part::Large) {
        rows.extend(large::rows(&bench, options.gigabytes));
    }
    let header = ["What", "Ours", "Against", "Peer", "Ratio", "Target", ""];
    let cells: Vec<_> = rows.iter().map(Row::cells).collect();
    if !phases.is_empty() {
        let cells: Vec<_> = phases.iter().map(cluster::PhaseTime::cells).collect();
        console.table(&["Phase of install", "Starts", "Takes"], &cells);
        console.print("");
    }
    console.table(&header, &cells);
    for row in &rows {
        if let Some(why) = &row.missing {
            console.warning(&format!("{} against {}: {why}", row.what, row.against));
        }
    }
    if let Some(path) = &options.json {
        let report = Report {
            image: &bench.file,
            image_bytes: bench.cluster.image.length(),
            runs: options.runs,
            debug_build: cfg!(debug_assertions),
            rows: &rows,
            phases: &phases,
        };
        file::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    ensure!(
        rows.iter().any(|row| !row.ours.is_empty()),
        "nothing could be measured"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn a_row_says_whether_its_target_is_met() {
        let mut row = Row::new("ours", "theirs", "s", Some(Target::Ratio(1.5)));
        assert_eq!(row.is_met(), None);
        row.ours = vec![3.0];
        assert_eq!(row.is_met(), None, "without a peer there is no ratio");
        row.peer = vec![2.0];
        assert_eq!(row.is_met(), Some(true));
        row.peer = vec![1.9];
        assert_eq!(row.is_met(), Some(false));
        row.target = Some(Target::Most(3.0));
        assert_eq!(row.is_met(), Some(true));
        row.target = Some(Target::Most(2.9));
        assert_eq!(row.is_met(), Some(false));
    }
}
