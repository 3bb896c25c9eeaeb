//! The Image Manifest of a build: found, read, completed.
//!
//! In: a path. Out: a manifest without URIs that this release can build; or
//! everything that is wrong with it at once.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use manifest::{Diagnostic, Location, MAX_CONTENT, Manifest, Severity, Uri};
use oci::Client;
use tokio::runtime::Runtime;

use super::environment::{Environment, variable};

/// Names of a manifest in a directory.
const NAMES: [&str; 2] = ["app.yaml", "manifest.yaml"];

/// The manifest is not what it must be. The diagnostics are printed one by one.
#[derive(Debug, thiserror::Error)]
#[error("{} in {}: nothing was built", count(diagnostics.len()), file.display())]
pub(crate) struct Rejected {
    file: PathBuf,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

fn count(errors: usize) -> String {
    match errors {
        1 => "1 error".into(),
        errors => format!("{errors} errors"),
    }
}

/// Where the manifest and the resources are.
#[derive(Debug)]
pub(crate) struct Source {
    /// The manifest, as the user would name it.
    pub(crate) file: PathBuf,
    /// Its directory: the resources.
    pub(crate) dir: PathBuf,
    /// The manifest that was made for a chart; there is no file then.
    pub(crate) generated: Option<String>,
    /// Files of values that its hook installs that chart with.
    pub(crate) values: Vec<PathBuf>,
    /// The manifest with its variables replaced, where that was asked for.
    replaced: Option<String>,
}

impl Source {
    /// Finds the manifest at `path`, or in the directory that it names.
    pub(crate) fn find(path: &Path) -> Result<Self> {
        let meta =
            std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        if !meta.is_dir() {
            let parent = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            return Ok(Self {
                file: path.into(),
                dir: parent.unwrap_or(Path::new(".")).into(),
                generated: None,
                values: Vec::new(),
                replaced: None,
            });
        }
        let there: Vec<PathBuf> = NAMES
            .iter()
            .map(|name| path.join(name))
            .filter(|file| file.is_file())
            .collect();
        match there.as_slice() {
            [file] => Ok(Self {
                file: plain(file),
                dir: path.into(),
                generated: None,
                values: Vec::new(),
                replaced: None,
            }),
            [] if path.join("Chart.yaml").is_file() => Ok(Self {
                file: plain(&path.join(NAMES[0])),
                dir: path.into(),
                generated: Some(super::charts::manifest_for(path, 0)?),
                values: Vec::new(),
                replaced: None,
            }),
            [] => bail!(
                "{} holds neither app.yaml nor manifest.yaml: name the Image Manifest",
                path.display()
            ),
            _ => bail!(
                "{} holds app.yaml and manifest.yaml: name the one to build",
                path.display()
            ),
        }
    }

    /// A path below the directory, as the user would name it.
    pub(crate) fn shown(&self, relative: &Path) -> PathBuf {
        let shown = plain(&self.dir.join(relative));
        match shown.as_os_str().is_empty() {
            true => ".".into(),
            false => shown,
        }
    }

    /// With the values of the build, where the manifest was made for a chart: what is
    /// installed is what was rendered.
    pub(crate) fn with_values(mut self, options: &super::charts::Options<'_>) -> Result<Self> {
        if self.generated.is_some() {
            if let Some(set) = options.set.first() {
                // Helm would take it for more than the values of the install.
                bail!(
                    "--set {set}: a chart alone is installed with files of values: write one, and \
                     name it with --values, or add an app.yaml"
                );
            }
            self.values = options.values.to_vec();
            let manifest = super::charts::manifest_for(&self.dir, self.values.len())?;
            self.generated = Some(manifest);
        }
        Ok(self)
    }

    /// With variables replaced in the manifest. Its file stays as it is.
    pub(crate) fn with(mut self, environment: &Environment) -> Result<Self> {
        if !environment.is_empty() {
            let text = environment.apply(&self.text()?, &variable)?;
            self.replaced = Some(text);
        }
        Ok(self)
    }

    /// The manifest's bytes, whatever they are.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        if let Some(text) = self.replaced.as_ref().or(self.generated.as_ref()) {
            return Ok(text.clone().into_bytes());
        }
        let shown = self.file.display();
        read(&self.file, manifest::MAX_SIZE)
            .map_err(|message| anyhow::anyhow!("cannot read {shown}: {message}"))
    }

    /// The text of a manifest that was parsed.
    pub(crate) fn text(&self) -> Result<String> {
        let what = || format!("cannot read {}", self.file.display());
        String::from_utf8(self.bytes()?).with_context(what)
    }

    pub(crate) fn parse(&self) -> Result<Manifest> {
        let name = self.file.display().to_string();
        manifest::parse_bytes(&self.bytes()?, &name)
            .map_err(|diagnostics| self.rejected(diagnostics).into())
    }

    fn rejected(&self, diagnostics: Vec<Diagnostic>) -> Rejected {
        Rejected {
            file: self.file.clone(),
            diagnostics,
        }
    }
}

/// Without a leading `./`.
fn plain(path: &Path) -> PathBuf {
    path.strip_prefix(".")
        .map_or_else(|_| path.into(), PathBuf::from)
}

/// Replaces URIs by what they stand for and refuses what is not supported.
pub(crate) fn complete(
    manifest: &mut Manifest,
    source: &Source,
    runtime: &Runtime,
    client: &Client,
) -> Result<()> {
    let mut found = manifest.inline(&mut |uri| {
        let bytes = match &uri.location {
            Location::File(path) => read(&source.dir.join(path), MAX_CONTENT)?,
            Location::Web(url) => runtime
                .block_on(client.fetch(url, MAX_CONTENT as u64))
                .map_err(|error| error.to_string())?,
        };
        content(uri, bytes)
    });
    found.extend(check(manifest)?);
    match found.is_empty() {
        true => Ok(()),
        false => Err(source.rejected(found).into()),
    }
}

/// What is wrong with a resolved manifest for this release.
pub(crate) fn check(manifest: &Manifest) -> Result<Vec<Diagnostic>> {
    let mut found = manifest.unsupported();
    found.extend(logo(manifest));
    found.extend(hooks(manifest));
    // What is read of the image's documents is enough for it.
    const { assert!(manifest::MAX_SIZE as u64 <= image::cluster::MAX_DOCUMENT) };
    let size = manifest
        .to_json()
        .context("cannot write the resolved manifest")?
        .len();
    if size > manifest::MAX_SIZE {
        let max = manifest::MAX_SIZE;
        let message = format!(
            "with all that its URIs lead to the manifest has {size} bytes; at most {max} are read"
        );
        let help = "leave texts among the resources, beside the manifest".to_owned();
        found.push(manifest.finding(Severity::Error, "", "too-large", message, Some(help)));
    }
    Ok(found)
}

/// Hooks that are written out must be Jobs, or they would fail at the customer's.
fn hooks(manifest: &Manifest) -> impl Iterator<Item = Diagnostic> {
    let written = manifest.hooks.iter();
    let written = written.filter(|(_, job)| Location::of(job).is_none());
    written.filter_map(|(hook, job)| {
        let error = cluster::hooks::parse(&hook.to_string(), job).err()?;
        let field = format!("hooks.{hook}.job");
        let help = "write a Kubernetes Job (apiVersion: batch/v1, kind: Job) or its URI";
        let (message, help) = (error.to_string(), Some(help.to_owned()));
        Some(manifest.finding(Severity::Error, &field, "invalid-value", message, help))
    })
}

/// A logo that is written out must be an image, as one that is fetched.
fn logo(manifest: &Manifest) -> Option<Diagnostic> {
    let url = manifest.logo.as_deref()?;
    if !url.starts_with("data:") {
        return None;
    }
    let good = data_url(url).is_some_and(|(kind, bytes)| image_type(&bytes) == Some(kind));
    let message = "`logo`: the data URL holds no image of its type".to_owned();
    let help = "write data:image/png;base64,... or the URI of a PNG, JPEG, GIF, WebP or SVG image";
    let finding = || {
        manifest.finding(
            Severity::Error,
            "logo",
            "invalid-value",
            message,
            Some(help.into()),
        )
    };
    (!good).then(finding)
}

/// Media type and content of a data URL in base64.
pub(crate) fn data_url(url: &str) -> Option<(&str, Vec<u8>)> {
    let (kind, text) = url.strip_prefix("data:")?.split_once(";base64,")?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text);
    Some((kind, bytes.ok()?))
}

/// What the manifest gets in place of a URI.
pub(crate) fn content(uri: &Uri, bytes: Vec<u8>) -> Result<String, String> {
    if uri.image {
        let kind =
            image_type(&bytes).ok_or("it is neither a PNG, JPEG, GIF, WebP nor SVG image")?;
        let text = base64::engine::general_purpose::STANDARD.encode(bytes);
        return Ok(format!("data:{kind};base64,{text}"));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".into())
}

/// Reads a file of at most `max` bytes.
pub(crate) fn read(path: &Path, max: usize) -> Result<Vec<u8>, String> {
    let text = |error: std::io::Error| error.to_string();
    // Before it is opened: that of a pipe would wait.
    if !std::fs::metadata(path).map_err(text)?.is_file() {
        return Err("it is not a file".into());
    }
    host::bounded::bytes(path, max as u64).map_err(text)
}

fn image_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Some("image/webp"),
        _ => {
            let text = std::str::from_utf8(bytes).ok()?.trim_start();
            (text.starts_with('<') && text.contains("<svg")).then_some("image/svg+xml")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str| host::atomic::write(&dir.path().join(name), b"x", 0o644).unwrap();
        let error = Source::find(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("neither app.yaml nor manifest.yaml"),
            "{error}"
        );
        put("manifest.yaml");
        assert_eq!(
            Source::find(dir.path()).unwrap().file,
            dir.path().join("manifest.yaml")
        );
        put("app.yaml");
        assert!(
            Source::find(dir.path())
                .unwrap_err()
                .to_string()
                .contains("name the one to build")
        );
        let source = Source::find(&dir.path().join("app.yaml")).unwrap();
        assert_eq!(source.dir, dir.path());
        assert_eq!(
            Source::find(Path::new("Cargo.toml")).unwrap().dir,
            Path::new(".")
        );
        assert!(Source::find(&dir.path().join("none")).is_err());
    }

    #[test]
    fn images_are_told_from_other_content() {
        assert_eq!(image_type(b"\x89PNG\r\n"), Some("image/png"));
        assert_eq!(
            image_type(b"<?xml version=\"1.0\"?><svg/>"),
            Some("image/svg+xml")
        );
        assert_eq!(image_type(b"<html>"), None);
        assert_eq!(image_type(b""), None);
    }
}
