//! Charts: rendered by the real helm to find their images.
//!
//! In: a directory with Chart.yaml. Out: the images of what `helm template`
//! makes of it, with default values and those of the command line. The chart's
//! own files are not changed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use host::command::Cmd;
use manifest::yaml::Node;

use super::images::{Named, scan};
use super::yaml::documents;

const TIMEOUT: Duration = Duration::from_secs(300);
/// Most bytes that a chart may render to.
const MAX_OUTPUT: usize = 64 << 20;

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

    /// The images of a chart; `shown` is its name in messages.
    pub(crate) fn images(&self, chart: &Path, shown: &Path) -> Result<Vec<Named>> {
        if is_library(&chart.join("Chart.yaml"))? {
            return Ok(Vec::new());
        }
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
        for value in self.options.set {
            helm = helm.args(["--set", value]);
        }
        for file in self.options.values {
            helm = helm.arg("--values").arg(file);
        }
        let output = match helm.run() {
            Err(host::command::CommandError::NotInstalled { .. }) => bail!(
                "{what}: there is no helm ({}): put helm 3 into PATH, or name it by the variable HELM",
                self.options.helm.display()
            ),
            result => result?,
        };
        let scanned = scan(&output.stdout, &shown.display().to_string())?;
        // Lines of the rendered text mean nothing to a reader: name the template.
        let template = |line: usize| {
            let before: Vec<&str> = output.stdout.lines().take(line).collect();
            before
                .iter()
                .rev()
                .find_map(|line| line.strip_prefix("# Source: "))
                .map(str::to_owned)
        };
        let named = |image: Named| {
            let line = image
                .place
                .rsplit(':')
                .next()
                .and_then(|line| line.parse().ok());
            let place = line
                .and_then(template)
                .map(|file| format!("{} ({file})", shown.display()));
            Named {
                place: place.unwrap_or(image.place),
                ..image
            }
        };
        Ok(scanned.images.into_iter().map(named).collect())
    }
}

/// A library chart holds nothing to render.
fn is_library(file: &Path) -> Result<bool> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let documents = documents(&text)
        .map_err(|error| anyhow::anyhow!("{}: not valid YAML: {error}", file.display()))?;
    Ok(documents
        .first()
        .and_then(|chart| chart.get("type"))
        .and_then(Node::text)
        == Some("library"))
}
