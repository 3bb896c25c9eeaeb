//! The license of an image that demands one.
//!
//! In: `--license`, or what a person answers; the authorities that the image
//! was built with. Out: a license that one of them has signed, for this image
//! and for today; or the reason why there is none, before anything is changed.

use std::path::Path;

use anyhow::Result;
use image::cluster::ClusterConfig;
use manifest::Manifest;
use pki::license::MAX_LICENSE;

use crate::commands::Session;

/// How often somebody may try to name a license.
const ATTEMPTS: usize = 3;

/// A license that is good for this install.
pub(super) struct License {
    /// As the vendor wrote it.
    pub(super) text: String,
    /// What it allows.
    pub(super) terms: spec::License,
}

/// The image takes no license, or not this one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WrongLicense {
    #[error("{0} demands no license; leave out --license")]
    NotDemanded(String),
    #[error(
        "{0} demands a license: give --license the file, or the text, that its vendor sent you; \
         nothing was changed"
    )]
    Missing(String),
    #[error("--license {path}: {reason}")]
    Unreadable { path: String, reason: String },
    #[error(
        "the license can't be used: {0}; ask the vendor of this image for another; nothing was \
         changed"
    )]
    Refused(#[from] pki::license::Refused),
    #[error(
        "{0} demands a license, but names nobody who may sign it: its vendor has to build it anew"
    )]
    NoAuthority(String),
}

/// The license that the command line names, and none where the image demands
/// none.
pub(super) fn given(
    value: Option<&str>,
    manifest: &Manifest,
    config: &ClusterConfig,
) -> Result<Option<License>, WrongLicense> {
    match (manifest.license.enabled, value) {
        (false, None) => Ok(None),
        (false, Some(_)) => Err(WrongLicense::NotDemanded(config.name.clone())),
        (true, None) => Ok(None),
        (true, Some(value)) => check(value, config).map(Some),
    }
}

/// Asks for the license that is missing.
pub(super) fn ask(session: &Session, config: &ClusterConfig) -> Result<License> {
    let console = &session.console;
    let name = &config.name;
    for _ in 0..ATTEMPTS {
        let question = format!("{name} demands a license. In which file is it?");
        let answer = match console.ask(&question, &[], None) {
            Err(console::PromptError::NotATerminal { .. }) => break,
            answer => answer?,
        };
        match check(answer.trim(), config) {
            Ok(license) => return Ok(license),
            Err(error) => console.error(&error),
        }
    }
    Err(WrongLicense::Missing(name.clone()).into())
}

fn check(value: &str, config: &ClusterConfig) -> Result<License, WrongLicense> {
    let Some(authorities) = &config.license_authorities else {
        return Err(WrongLicense::NoAuthority(config.name.clone()));
    };
    let text = match value.contains("-----BEGIN ") {
        true => value.to_owned(),
        false => read(Path::new(value))?,
    };
    let now = jiff::Timestamp::now().as_second();
    let terms = pki::license::license(&text, authorities, &config.name, now)?;
    Ok(License { text, terms })
}

fn read(path: &Path) -> Result<String, WrongLicense> {
    let text = host::bounded::string(path, MAX_LICENSE as u64);
    text.map_err(|error| WrongLicense::Unreadable {
        path: path.display().to_string(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use image::cluster::BaseReference;
    use pki::Authority;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn config(authorities: Option<&str>) -> ClusterConfig {
        ClusterConfig {
            version: image::cluster::CONFIG_VERSION,
            name: "shop".into(),
            image_version: "1.0.0".into(),
            description: String::new(),
            base: BaseReference {
                reference: String::new(),
                digest: String::new(),
            },
            planets: Default::default(),
            images: Vec::new(),
            license_authorities: authorities.map(Into::into),
            manifest: String::new(),
            resources: String::new(),
            archive: None,
        }
    }

    fn manifest(enabled: bool) -> Manifest {
        let text = format!(
            "metadata: {{name: shop, resourceVersion: 1.0.0}}\nlicense: {{enabled: {enabled}}}"
        );
        manifest::parse(&text, "app.yaml").unwrap()
    }

    #[test]
    fn a_license_comes_as_file_or_text_where_one_is_demanded() {
        let authority = Authority::generate("vendor", DAY).unwrap();
        let config = config(Some(authority.certificate_pem()));
        let text = authority.license("shop", "Acme", Some(2), DAY).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("license.pem");
        host::atomic::write(&path, text.as_bytes(), 0o600).unwrap();
        for value in [text.as_str(), path.to_str().unwrap()] {
            let license = given(Some(value), &manifest(true), &config)
                .unwrap()
                .unwrap();
            assert_eq!(
                (&*license.terms.holder, license.terms.max_nodes),
                ("Acme", Some(2))
            );
            assert_eq!(license.text, text);
        }
        assert!(given(None, &manifest(true), &config).unwrap().is_none());
        assert!(given(None, &manifest(false), &config).unwrap().is_none());
        let wrong = |value: &str, enabled, config: &ClusterConfig| {
            let error = given(Some(value), &manifest(enabled), config)
                .err()
                .unwrap();
            let code = crate::commands::exit_code(&anyhow::Error::from(error));
            assert_eq!(code, console::ExitCode::Usage);
        };
        wrong(&text, false, &config);
        wrong("/no/such/file", true, &config);
        wrong("/dev/null", true, &config);
        wrong("/dev/zero", true, &config);
        wrong(
            &authority.license("tool", "Acme", None, DAY).unwrap(),
            true,
            &config,
        );
        wrong(&text, true, &self::config(None));
        let other = Authority::generate("vendor", DAY).unwrap();
        wrong(&text, true, &self::config(Some(other.certificate_pem())));
    }
}
