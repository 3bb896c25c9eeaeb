//! `tele lint`: all checks of a build that need no network and no images.
//!
//! In: a manifest or its directory. Out: everything that is wrong with the
//! manifest, with the files that it names, with the charts beside it; what this
//! release doesn't do; and warnings about arguments that are retired, and resources that
//! hooks name and that are not there. As text with the lines in question, or as JSON.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use console::render::Finding;
use console::{Console, ExitCode};
use manifest::{Diagnostic, Location, MAX_CONTENT, Manifest, Severity, Uri};
use serde::Serialize;
use spec::layout::PLANET_RESOURCES;
use walkdir::WalkDir;

use crate::build::environment::Environment;
use crate::build::manifest::{Source, check, content, read};
use crate::build::yaml::documents;
use crate::cli::{Env, Format};

/// Files and directories that are looked at.
const MAX_ENTRIES: usize = 100_000;

/// What to check.
#[derive(Debug, Args)]
pub(crate) struct Lint {
    /// The Image Manifest, or a directory with app.yaml or manifest.yaml.
    #[arg(default_value = ".")]
    pub(crate) path: PathBuf,
    /// How to show what is found.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) env: Env,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    diagnostics: &'a [Diagnostic],
}

pub(crate) fn run(arguments: &Lint, console: &Console) -> Result<ExitCode> {
    let found = arguments
        .env
        .read()
        .and_then(|environment| lint_with(&arguments.path, &environment));
    let found = found.unwrap_or_else(|error| {
        vec![Diagnostic {
            severity: Severity::Error,
            code: "unreadable",
            message: format!("{error:#}"),
            file: arguments.path.display().to_string(),
            line: 1,
            column: 1,
            help: None,
        }]
    });
    match arguments.format {
        Format::Json => console.print_json(&Report {
            diagnostics: &found,
        })?,
        Format::Text => show(&found, &arguments.path, console),
    }
    let errors = found.iter().any(|one| one.severity == Severity::Error);
    Ok(if errors {
        ExitCode::Failed
    } else {
        ExitCode::Ok
    })
}

fn show(found: &[Diagnostic], path: &Path, console: &Console) {
    let mut files: BTreeMap<&str, Option<String>> = BTreeMap::new();
    for one in found {
        let text = files.entry(&one.file).or_insert_with(|| {
            let bytes = read(Path::new(&one.file), manifest::MAX_SIZE).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        });
        let line = (text.as_deref()).and_then(|text| text.lines().nth(one.line - 1));
        console.finding(&Finding {
            warning: one.severity == Severity::Warning,
            code: one.code,
            message: &one.message,
            help: one.help.as_deref(),
            file: &one.file,
            line: one.line,
            column: one.column,
            text: line,
        });
        console.print("");
    }
    let count =
        |severity, word: &str| match found.iter().filter(|one| one.severity == severity).count() {
            1 => format!("1 {word}"),
            count => format!("{count} {word}s"),
        };
    let (errors, warnings) = (
        count(Severity::Error, "error"),
        count(Severity::Warning, "warning"),
    );
    console.print(&format!("{}: {errors}, {warnings}", path.display()));
}

/// All findings, by file and line.
fn lint_with(path: &Path, environment: &Environment) -> Result<Vec<Diagnostic>> {
    let source = Source::find(path)?.with(environment)?;
    let mut found = charts(&source)?;
    match manifest::parse_bytes(&source.bytes()?, &source.file.display().to_string()) {
        Err(errors) => found.extend(errors),
        Ok(mut manifest) => {
            found.extend(manifest.inline(&mut |uri| fetch(uri, &source)));
            found.extend(check(&manifest)?);
            found.extend(manifest.retired());
            found.extend(resources(&manifest, &source));
        }
    }
    found.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    Ok(found)
}

/// Files are read; web addresses stay, as there is no network.
fn fetch(uri: &Uri, source: &Source) -> Result<String, String> {
    match &uri.location {
        Location::File(path) => content(uri, read(&source.dir.join(path), MAX_CONTENT)?),
        Location::Web(url) => {
            let host = url.split("://").nth(1).unwrap_or_default();
            match host.split(['/', '?', '#']).next() {
                None | Some("") => Err("the address names no host".into()),
                Some(_) => Ok(url.clone()),
            }
        }
    }
}

/// The charts beside the manifest must be charts.
fn charts(source: &Source) -> Result<Vec<Diagnostic>> {
    let mut found = Vec::new();
    let walk = WalkDir::new(&source.dir).sort_by_file_name().into_iter();
    let entries = walk.filter_entry(|entry| entry.depth() == 0 || entry.file_name() != ".git");
    for entry in entries.take(MAX_ENTRIES) {
        let entry = entry.context("cannot read the resources")?;
        if entry.file_name() != "Chart.yaml" || !entry.path().is_file() {
            continue;
        }
        let relative = entry
            .path()
            .strip_prefix(&source.dir)
            .unwrap_or(entry.path());
        let file = source.shown(relative).display().to_string();
        found.extend(chart(entry.path(), file).err().map(|error| *error));
    }
    Ok(found)
}

fn chart(path: &Path, file: String) -> Result<(), Box<Diagnostic>> {
    let error = |line, column, message: String| {
        Box::new(Diagnostic {
            severity: Severity::Error,
            code: "invalid-chart",
            message,
            file: file.clone(),
            line,
            column,
            help: Some("a chart has apiVersion, name and version in its Chart.yaml".into()),
        })
    };
    let start = |message| error(1, 1, message);
    let bytes = read(path, MAX_CONTENT)
        .map_err(|message| start(format!("the chart can't be read: {message}")))?;
    let text = String::from_utf8(bytes).map_err(|_| start("the chart is not UTF-8 text".into()))?;
    let documents = documents(&text).map_err(|wrong| {
        error(
            wrong.at.line,
            wrong.at.column,
            format!("the chart is not YAML: {}", wrong.message),
        )
    })?;
    let [chart] = documents.as_slice() else {
        return Err(start(format!(
            "the chart has {} YAML documents, not one",
            documents.len()
        )));
    };
    let text = |field: &str| chart.get(field).and_then(|value| value.text());
    for field in ["apiVersion", "name", "version"] {
        if text(field).is_none() {
            return Err(start(format!("the chart has no `{field}`")));
        }
    }
    Ok(())
}

/// Resources that jobs name must be there. Scripts may make them as well, so
/// that it is only a warning.
fn resources(manifest: &Manifest, source: &Source) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (hook, job) in &manifest.hooks {
        for path in named(job) {
            if source.dir.join(&path).symlink_metadata().is_ok() {
                continue;
            }
            let field = format!("hooks.{hook}.job");
            let message = format!(
                "the job names {PLANET_RESOURCES}/{}, which is not beside the manifest",
                path.display()
            );
            let help = format!("add {}", source.shown(&path).display());
            found.push(manifest.finding(
                Severity::Warning,
                &field,
                "missing-resource",
                message,
                Some(help),
            ));
        }
    }
    found
}

/// Paths below the resources, up to the first part that a shell would expand.
fn named(job: &str) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for rest in job.split(&format!("{PLANET_RESOURCES}/")).skip(1) {
        let end = |c: char| !(c.is_alphanumeric() || "-_./@+".contains(c));
        let (path, after) = rest.split_at(rest.find(end).unwrap_or(rest.len()));
        let open = after.starts_with(['*', '?', '[', '{', '$', '%', '`', '\\', '(', '~']);
        let path = match open {
            true => path.rsplit_once('/').map_or("", |(parent, _)| parent),
            // The end of a sentence is not of the path.
            false => path.trim_end_matches(['.', '/']),
        };
        let path = PathBuf::from(path);
        let plain = path
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if plain && path.components().next().is_some() && !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lint(path: &Path) -> Result<Vec<Diagnostic>> {
        lint_with(path, &Environment::default())
    }

    const APP: &str = "\
metadata: {name: shop, resourceVersion: 1.0.0}
releaseNotesX: file://notes.html
";

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            host::atomic::write(&path, text.as_bytes(), 0o644).unwrap();
        }
        dir
    }

    /// Code, file and line of all findings.
    fn lines(dir: &tempfile::TempDir) -> Vec<(&'static str, String, usize)> {
        let found = lint(dir.path()).unwrap();
        let name = |one: &Diagnostic| {
            let path = Path::new(&one.file)
                .strip_prefix(dir.path())
                .unwrap()
                .to_owned();
            path.display().to_string()
        };
        found
            .iter()
            .map(|one| (one.code, name(one), one.line))
            .collect()
    }

    #[test]
    fn a_good_manifest_has_no_findings() {
        let app = "\
metadata: {name: shop, resourceVersion: 1.0.0}
installer: {eula: {source: file://eula.txt}}
hooks:
  install: {job: file://job.yaml}
";
        let job = "apiVersion: batch/v1\nkind: Job\nspec: {template: {spec: {containers: [{name: a, image: b, command: \
            [helm, install, /var/lib/gravity/resources/charts/a]}]}}}\n";
        let chart = "apiVersion: v2\nname: a\nversion: 1.0.0\n";
        let dir = dir(&[
            ("app.yaml", app),
            ("eula.txt", "ok"),
            ("job.yaml", job),
            ("charts/a/Chart.yaml", chart),
        ]);
        assert_eq!(lint(dir.path()).unwrap(), []);
        let missing = std::fs::rename(dir.path().join("charts"), dir.path().join("helm"));
        missing.unwrap();
        let found = lint(dir.path()).unwrap();
        assert_eq!(
            (found.len(), found[0].severity, found[0].line),
            (1, Severity::Warning, 4)
        );
        assert!(
            found[0].message.contains("charts/a, which is not beside"),
            "{found:?}"
        );
    }

    #[test]
    fn a_chart_alone_is_checked() {
        let dir = dir(&[("Chart.yaml", "apiVersion: v2\nname: a\nversion: 1.0.0\n")]);
        assert_eq!(lint(dir.path()).unwrap(), []);
    }

    #[test]
    fn everything_is_found_at_once() {
        let app = "\
metadata: {name: shop, resourceVersion: 1.0.0}
installer: {eula: {source: file://eula.txt}}
providers: {aws: {terraform: {script: \"https:///x\", instanceScript: \"https://example.com/x\"}}}
storage: {openebs: {enabled: true}}
hooks:
  install: {job: file://deployment.yaml}
  postInstall: {job: file://big.yaml}
";
        let dir = dir(&[
            ("app.yaml", app),
            ("deployment.yaml", "kind: Deployment\n"),
            ("big.yaml", &"#".repeat(MAX_CONTENT + 1)),
            ("charts/a/Chart.yaml", "name: a\nversion: [\n"),
            ("charts/b/Chart.yaml", "apiVersion: v2\nname: b\n"),
        ]);
        let at = |code, line| (code, "app.yaml".to_owned(), line);
        let expected = [
            at("fetch-failed", 2),
            at("not-supported", 3),
            at("fetch-failed", 3),
            at("not-supported", 3),
            at("not-supported", 4),
            at("invalid-value", 6),
            at("fetch-failed", 7),
            ("invalid-chart", "charts/a/Chart.yaml".to_owned(), 2),
            ("invalid-chart", "charts/b/Chart.yaml".to_owned(), 1),
        ];
        assert_eq!(lines(&dir), expected);
    }

    #[test]
    fn hooks_are_jobs_as_kubernetes_takes_them() {
        let app = "metadata: {name: shop, resourceVersion: 1.0.0}\nhooks: {install: {job: file://job.yaml}}\n";
        let good = "apiVersion: batch/v1\nkind: Job\n\
            spec: {template: {spec: {containers: [{name: a, image: b}]}}}\n";
        let found = |job: &str| lint(dir(&[("app.yaml", app), ("job.yaml", job)]).path()).unwrap();
        assert_eq!(found(good), []);
        for (right, wrong, wanted) in [
            ("containers", "containrs", "spec.template.spec.containrs"),
            ("batch/v1", "batch/v2", "not a batch/v1 Job"),
            ("image: b", "image: ''", "\"a\" has no image"),
        ] {
            let found = found(&good.replace(right, wrong));
            let [one] = &found[..] else {
                panic!("{found:?}");
            };
            assert!(one.message.contains(wanted), "{one}");
            assert_eq!((one.severity, one.line), (Severity::Error, 2));
        }
    }

    #[test]
    fn retired_arguments_are_warnings_as_in_a_build() {
        let app = "\
metadata: {name: shop, resourceVersion: 1.0.0}
systemOptions: {etcd: {args: [-debug]}}
nodeProfiles:
  - name: node
    systemOptions: {kubelet: {hairpinMode: promiscuous-bridge}}
";
        let dir = dir(&[("app.yaml", app)]);
        let at = |line| ("retired", "app.yaml".to_owned(), line);
        assert_eq!(lines(&dir), [at(2), at(5)]);
        let found = lint(dir.path()).unwrap();
        let warns = |one: &Diagnostic| one.severity == Severity::Warning;
        assert!(found.iter().all(warns), "{found:?}");
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        assert_eq!(
            lines(&dir(&[("app.yaml", APP)])),
            [("unknown-field", "app.yaml".to_owned(), 2)]
        );
        assert_eq!(
            lines(&dir(&[("app.yaml", "\u{7f}ELF")])),
            [("syntax", "app.yaml".to_owned(), 1)]
        );
        let big = lint(dir(&[("app.yaml", &" ".repeat(manifest::MAX_SIZE + 1))]).path());
        assert!(format!("{:#}", big.unwrap_err()).contains("larger than 8388608 bytes"));
        assert!(lint(dir(&[]).path()).is_err());
    }

    #[test]
    fn paths_end_where_a_shell_expands() {
        let paths = |text: &str| {
            named(text)
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
        };
        let job = "kubectl apply -f /var/lib/gravity/resources/a.yaml; ls /var/lib/gravity/resources/ \
            '/var/lib/gravity/resources/charts/b/' /var/lib/gravity/resources/c/*.yaml /var/lib/gravity/resources/$X \
            /var/lib/gravity/resources/../x /var/lib/gravity/resources/a.yaml.";
        assert_eq!(paths(job), ["a.yaml", "charts/b", "c"]);
    }

    #[test]
    fn json_has_every_key() {
        let found = lint(dir(&[("app.yaml", APP)]).path()).unwrap();
        let json = serde_json::to_value(Report {
            diagnostics: &found,
        })
        .unwrap();
        let keys: Vec<_> = json["diagnostics"][0].as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "severity", "code", "message", "file", "line", "column", "help"
            ]
        );
        assert_eq!(json["diagnostics"][0]["severity"], "error");
    }
}
