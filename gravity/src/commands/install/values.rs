//! `--values` and `--set`: what the customer gives to the application.
//!
//! In: files and pairs in the syntax of Helm. Out: one mapping, as the Helm of
//! the image merges it; or what is wrong with them, before anything is changed.
//! Nothing is written on the host: values may be secrets, and Helm reads them,
//! and is itself, in memory.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::Compression;
use host::command::{Cmd, CommandError};
use image::Image;
use image::layer;
use installer::install::Rootfs;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Most files of `--values`.
const MAX_FILES: usize = 64;
/// Most bytes of all of it, and of what it becomes: what a Secret can hold.
const MAX_BYTES: usize = 1 << 20;
/// Helm, in the planet.
const HELM: &str = "usr/local/bin/helm";
/// Larger ones are none.
const MAX_HELM: u64 = 1 << 30;
/// What Helm must not find: configuration, plugins and clusters of the user.
const NOWHERE: &str = "/nonexistent";
/// A chart that shows its values. In base64 they can't be taken for an object.
const CHART: [(&str, &str); 2] = [
    (
        "values/Chart.yaml",
        "apiVersion: v2\nname: values\nversion: 1.0.0\n",
    ),
    (
        "values/templates/values.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: values}\ndata:\n  \
         values: {{ .Values | toYaml | b64enc }}\n",
    ),
];
/// Before them, on their line.
const SHOWN: &str = "  values: ";

/// What was given can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WrongValues {
    #[error("--values {}: {reason}; nothing was changed", path.display())]
    File { path: PathBuf, reason: String },
    #[error("there are more than {MAX_FILES} files of --values: put their content into fewer")]
    Files,
    // It may be a secret: it is not repeated.
    #[error("--set number {0} has no \"=\": give KEY=VALUE, such as --set database.size=3")]
    Pair(usize),
    #[error(
        "--values and --set have more than {MAX_BYTES} bytes in all, and no more can be kept: \
         leave out what the application doesn't read"
    )]
    Long,
    #[error("Helm can't merge --values and --set: {0}; nothing was changed")]
    Refused(String),
}

/// Values as they were given.
pub(super) struct Values {
    files: Vec<(PathBuf, String)>,
    set: Vec<String>,
}

impl Values {
    /// Reads the files; `None` where nothing was given.
    pub(super) fn given(paths: &[PathBuf], set: &[String]) -> Result<Option<Self>, WrongValues> {
        if paths.is_empty() && set.is_empty() {
            return Ok(None);
        }
        if paths.len() > MAX_FILES {
            return Err(WrongValues::Files);
        }
        if let Some(index) = set.iter().position(|pair| !pair.contains('=')) {
            return Err(WrongValues::Pair(index + 1));
        }
        let mut left = MAX_BYTES;
        let mut take = |bytes: usize| {
            left = left.checked_sub(bytes).ok_or(WrongValues::Long)?;
            Ok(())
        };
        set.iter().try_for_each(|pair| take(pair.len()))?;
        let mut files = Vec::new();
        for path in paths {
            let text = read(path)?;
            take(text.len())?;
            files.push((path.clone(), text));
        }
        Ok(Some(Self {
            files,
            set: set.to_vec(),
        }))
    }

    /// All as one mapping, YAML, by the Helm in `planet`.
    pub(super) fn merge(&self, image: &Image, planet: &Rootfs) -> Result<String> {
        let helm = find_helm(image, planet)?;
        let chart = in_memory("chart", &chart()?)?;
        let mut files = Vec::new();
        for (path, text) in &self.files {
            let file = in_memory("values", text.as_bytes())?;
            files.push((path, file));
        }
        let mut command = Cmd::new(path_of(&helm))
            .describe("merge --values and --set")
            .args(["template", "values", &path_of(&chart)]);
        for name in [
            "HELM_CACHE_HOME",
            "HELM_CONFIG_HOME",
            "HELM_DATA_HOME",
            "HELM_PLUGINS",
            "KUBECONFIG",
        ] {
            command = command.env(name, NOWHERE);
        }
        for (_, file) in &files {
            command = command.arg(format!("--values={}", path_of(file)));
        }
        for pair in &self.set {
            command = command.arg(format!("--set={pair}"));
        }
        match command.run() {
            Ok(output) => shown(&output.stdout),
            Err(CommandError::Failed { stderr, .. }) => {
                let mut reason = stderr.trim().trim_start_matches("Error: ").to_owned();
                for (path, file) in &files {
                    reason = reason.replace(&path_of(file), &path.display().to_string());
                }
                Err(WrongValues::Refused(reason).into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A file of values: a mapping, or nothing.
fn read(path: &Path) -> Result<String, WrongValues> {
    let wrong = |reason: String| WrongValues::File {
        path: path.to_owned(),
        reason,
    };
    let text = host::bounded::string(path, MAX_BYTES as u64);
    let text = text.map_err(|error| match error.kind() {
        ErrorKind::FileTooLarge => WrongValues::Long,
        _ => wrong(error.to_string()),
    })?;
    let value: serde_json::Value = serde_saphyr::from_str(&text)
        // What is around the place may be a secret.
        .map_err(|error| wrong(format!("not YAML: {}", error.without_snippet())))?;
    match value {
        serde_json::Value::Object(_) | serde_json::Value::Null => Ok(text),
        _ => Err(wrong(
            "it holds no mapping: write values as \"key: value\"".into(),
        )),
    }
}

/// The values that the chart shows.
fn shown(rendered: &str) -> Result<String> {
    use base64::Engine;
    let line = rendered.lines().find_map(|line| line.strip_prefix(SHOWN));
    let line = line.context("Helm shows no values")?;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(line)
        .context("read the values that Helm shows")?;
    if bytes.len() >= MAX_BYTES {
        return Err(WrongValues::Long.into());
    }
    let mut yaml = String::from_utf8(bytes).context("read the values that Helm shows")?;
    yaml.push('\n');
    Ok(yaml)
}

fn chart() -> Result<Vec<u8>> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    for (name, text) in CHART {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, text.as_bytes())
            .context("make a chart")?;
    }
    let gzip = tar.into_inner().context("make a chart")?;
    gzip.finish().context("make a chart")
}

/// Helm as the planet has it: the uppermost layer that holds it counts. Each
/// frame of the image is verified as it is read.
fn find_helm(image: &Image, planet: &Rootfs) -> Result<File> {
    for layer in planet.layers.iter().rev() {
        let blob = image.reader(&layer.digest)?;
        let tar = layer::Compression::of(&layer.media_type)?.decode(blob)?;
        if let Some(helm) = helm_of(tar).context("read Helm from the planet")? {
            return Ok(helm);
        }
    }
    bail!("the planet of the image has no /{HELM}, which merges --values and --set: build it anew")
}

/// Helm of one layer.
fn helm_of(tar: impl Read) -> Result<Option<File>> {
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        let path = entry.path()?;
        let named = path.strip_prefix("./").unwrap_or(&path) == Path::new(HELM);
        if named && entry.header().entry_type().is_file() && entry.size() <= MAX_HELM {
            let mut helm = program()?;
            std::io::copy(&mut entry, &mut helm)?;
            return Ok(Some(helm));
        }
    }
    Ok(None)
}

/// A file in memory that can be executed, whatever `noexec` filesystems the host
/// has.
fn program() -> Result<File> {
    // Not yet among nix's flags; kernels before 6.3 don't know it, nor need it.
    let executable = MFdFlags::MFD_CLOEXEC | MFdFlags::from_bits_retain(0x10);
    let made = match memfd_create("helm", executable) {
        Err(Errno::EINVAL) => memfd_create("helm", MFdFlags::MFD_CLOEXEC),
        made => made,
    };
    let file = made.context(
        "execute Helm in memory, to merge --values and --set; the kernel parameter \
         vm.memfd_noexec must not be 2",
    )?;
    Ok(file.into())
}

fn in_memory(name: &str, bytes: &[u8]) -> Result<File> {
    let made = memfd_create(name, MFdFlags::MFD_CLOEXEC).context("make a file in memory")?;
    let mut file = File::from(made);
    file.write_all(bytes).context("write a file in memory")?;
    Ok(file)
}

/// By which a child opens a file of ours.
fn path_of(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(paths: &[PathBuf], set: &[&str]) -> String {
        let set: Vec<_> = set.iter().map(ToString::to_string).collect();
        match Values::given(paths, &set) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{paths:?} {set:?}"),
        }
    }

    #[test]
    fn only_mappings_and_pairs_are_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("values.yaml");
        let write = |text: &str| host::atomic::write(&path, text.as_bytes(), 0o600).unwrap();
        let paths = [path.clone()];
        assert!(Values::given(&[], &[]).unwrap().is_none());
        for good in [
            "",
            "# none\n",
            "a: null\nb: [1]\nyes: {c: &d e, f: *d}\n1: 2\n",
            "a: &x {b: 1}\nc: {<<: *x, d: 2}\nh: 0x1F\nt: 2020-01-01\ns: \"k\\u00e4se\"\r\n",
        ] {
            write(good);
            let values = Values::given(&paths, &["a.b={x,y}".into()])
                .unwrap()
                .unwrap();
            assert_eq!(values.files[0].1, good);
            assert_eq!(values.set, ["a.b={x,y}"]);
        }
        for (text, reason) in [
            ("- a\n", "holds no mapping"),
            ("text\n", "holds no mapping"),
            ("a: [hunter2\n", "not YAML: "),
            ("a: 1\n---\nb: 2\n", "not YAML: "),
            ("a: 1\na: 2\n", "not YAML: "),
        ] {
            write(text);
            let error = wrong(&paths, &[]);
            assert!(
                error.contains("values.yaml") && error.contains(reason),
                "{error}"
            );
            assert!(
                !error.contains("hunter2") && !error.contains('\n'),
                "{error}"
            );
        }
        let error = wrong(&[directory.path().join("none")], &[]);
        assert!(error.contains("none: No such file"), "{error}");
        let error = wrong(&[], &["a=1", "hunter2"]);
        assert!(error.starts_with("--set number 2 has no"), "{error}");
        assert!(!error.contains("hunter2"));
    }

    #[test]
    fn what_a_secret_cant_hold_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("values.yaml");
        let text = format!("a: {}\n", "x".repeat(MAX_BYTES - 10));
        host::atomic::write(&path, text.as_bytes(), 0o600).unwrap();
        let one = [path.clone()];
        assert!(Values::given(&one, &["a=1".into()]).unwrap().is_some());
        assert!(wrong(&one, &["abc=1234"]).contains("1048576 bytes"));
        assert!(wrong(&[path.clone(), path.clone()], &[]).contains("1048576 bytes"));
        assert!(wrong(&vec![path; MAX_FILES + 1], &[]).contains("more than 64 files"));
        let long = base64_of(&"x".repeat(MAX_BYTES));
        let error = shown(&format!("data:\n  values: {long}\n")).unwrap_err();
        assert!(error.is::<WrongValues>(), "{error}");
    }

    fn base64_of(text: &str) -> String {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    #[test]
    fn values_are_taken_from_what_the_chart_shows() {
        let rendered = format!("---\ndata:\n  values: {}\n", base64_of("a: 1"));
        assert_eq!(shown(&rendered).unwrap(), "a: 1\n");
        assert!(shown("data:\n").is_err());
        assert!(shown("  values: ?\n").is_err());
        assert!(CHART[1].1.contains(SHOWN));
    }

    #[test]
    fn helm_is_taken_from_a_layer_and_executed() {
        let shell = std::fs::read("/bin/sh").unwrap();
        let layer = |name: &str| {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(shell.len() as u64);
            header.set_mode(0o755);
            let mut other = header.clone();
            tar.append_data(&mut other, "usr/local/bin/helm-shim", &shell[..])
                .unwrap();
            tar.append_data(&mut header, name, &shell[..]).unwrap();
            tar.into_inner().unwrap()
        };
        for name in [HELM, "./usr/local/bin/helm"] {
            let helm = helm_of(&layer(name)[..]).unwrap().unwrap();
            let output = Cmd::new(path_of(&helm)).args(["-c", "echo here"]);
            assert_eq!(output.run().unwrap().stdout, "here\n");
        }
        assert!(helm_of(&layer("usr/bin/helm")[..]).unwrap().is_none());
        assert!(helm_of(&layer(HELM)[..1 << 16]).is_err());
    }
}
