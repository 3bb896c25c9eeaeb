//! Values that are URIs.
//!
//! In: a manifest as its author wrote it. Out: the same with the texts that the
//! URIs stand for. Fetching is the caller's: nothing here reads or connects.

use std::path::{Path, PathBuf};

use crate::types::Manifest;
use crate::{Diagnostic, Severity, validate};

/// Largest content of a URI, in bytes. A Kubernetes object, such as a job, may
/// have no more either.
pub const MAX_CONTENT: usize = 1 << 20;

/// Fields whose text may be empty.
const OPTIONAL: [&str; 2] = ["releaseNotes", "installer.flavors.description"];

/// A field of which the value is a URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// Path of the field, such as `hooks.install.job`.
    pub field: String,
    /// Whether the value is to become an image as a data URL rather than text.
    pub image: bool,
    /// What to fetch.
    pub location: Location,
}

/// What a URI leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A file; a relative path is below the manifest's directory.
    File(PathBuf),
    /// A web address, with its scheme.
    Web(String),
}

impl Location {
    /// Reads a value; `None` where it is no URI but the text itself.
    pub fn of(value: &str) -> Option<Self> {
        let value = value.trim();
        if value.contains('\n') {
            return None;
        }
        if let Some(path) = value.strip_prefix("file://") {
            return Some(Self::File(Path::new(path).to_owned()));
        }
        let web = value.starts_with("http://") || value.starts_with("https://");
        // Text that only begins with an address is text.
        (web && !value.contains(char::is_whitespace)).then(|| Self::Web(value.to_owned()))
    }
}

impl Manifest {
    /// A finding at the value of a field, such as `hooks.install.job`.
    pub fn finding(
        &self,
        severity: Severity,
        field: &str,
        code: &'static str,
        message: String,
        help: Option<String>,
    ) -> Diagnostic {
        let found = self.source.at_value(field, code, message, help);
        Diagnostic { severity, ..found }
    }

    /// Replaces every URI by what `fetch` gives for it, then checks what came.
    /// Where `fetch` fails its message is reported at the field, which keeps
    /// its value.
    ///
    /// An image must come as a data URL.
    pub fn inline(
        &mut self,
        fetch: &mut dyn FnMut(&Uri) -> Result<String, String>,
    ) -> Vec<Diagnostic> {
        let mut failed = Vec::new();
        for (field, value) in self.slots() {
            let Some(uri) = uri(&field, value) else {
                continue;
            };
            match fetch(&uri) {
                Ok(text) if text.trim().is_empty() && !OPTIONAL.contains(&&*field) => {
                    failed.push((uri, "it is empty".into()));
                }
                Ok(text) => *value = text,
                Err(message) => failed.push((uri, message)),
            }
        }
        let report = |(uri, message): (Uri, String)| {
            let what = match &uri.location {
                Location::File(path) => path.display().to_string(),
                Location::Web(address) => address.clone(),
            };
            let message = format!("`{}`: can't fetch {what}: {message}", uri.field);
            self.source
                .at_value(&uri.field, "fetch-failed", message, None)
        };
        let mut found: Vec<_> = failed.into_iter().map(report).collect();
        found.extend(validate::validate(self));
        found
    }

    /// Fields that may be URIs, with their paths.
    fn slots(&mut self) -> Vec<(String, &mut String)> {
        let mut slots = Vec::new();
        slots.extend(
            self.release_notes
                .as_mut()
                .map(|value| ("releaseNotes".to_owned(), value)),
        );
        slots.extend(self.logo.as_mut().map(|value| ("logo".to_owned(), value)));
        let terraform = &mut self.providers.aws.terraform;
        let path = "providers.aws.terraform";
        slots.extend(
            terraform
                .script
                .as_mut()
                .map(|value| (format!("{path}.script"), value)),
        );
        slots.extend(
            terraform
                .instance_script
                .as_mut()
                .map(|value| (format!("{path}.instanceScript"), value)),
        );
        slots.extend(
            self.installer
                .eula
                .as_mut()
                .map(|eula| ("installer.eula.source".to_owned(), &mut eula.source)),
        );
        let flavors = self
            .installer
            .flavors
            .as_mut()
            .and_then(|flavors| flavors.description.as_mut());
        slots.extend(flavors.map(|value| ("installer.flavors.description".to_owned(), value)));
        for (profile, node) in self.node_profiles.iter_mut().enumerate() {
            let scripts =
                node.requirements
                    .custom_checks
                    .iter_mut()
                    .enumerate()
                    .map(|(check, value)| {
                        let path = format!(
                            "nodeProfiles[{profile}].requirements.customChecks[{check}].script"
                        );
                        (path, &mut value.script)
                    });
            slots.extend(scripts);
        }
        slots.extend(
            self.hooks
                .iter_mut()
                .map(|(hook, job)| (format!("hooks.{hook}.job"), job)),
        );
        slots
    }
}

fn uri(field: &str, value: &str) -> Option<Uri> {
    Some(Uri {
        field: field.to_owned(),
        image: field == "logo",
        location: Location::of(value)?,
    })
}
