//! Certificates for single registries: the directories `certs.d`.
//!
//! In: a host. Out: the authorities that its certificate may be signed by
//! besides the system's, and the certificate that we show it. Layout as other
//! container tools read it: `HOST:PORT/*.crt`, `*.cert` with `*.key`.

use std::path::{Path, PathBuf};

use crate::environment;

const MAX_SIZE: u64 = 1 << 20;

/// Where certificates of registries are.
#[derive(Debug, Clone, Default)]
pub struct Certificates {
    dirs: Vec<PathBuf>,
}

/// What there is for one host.
#[derive(Debug)]
pub(crate) struct ForHost {
    pub(crate) authorities: Vec<reqwest::Certificate>,
    pub(crate) identity: Option<reqwest::Identity>,
}

impl Certificates {
    /// The user's `containers/certs.d`, then that of the system, then Docker's.
    pub fn from_environment() -> Self {
        let system = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
        Self {
            dirs: environment::config_dir()
                .map(|config| config.join("containers/certs.d"))
                .into_iter()
                .chain(system)
                .collect(),
        }
    }

    /// What there is for a host; nothing for most.
    ///
    /// # Errors
    /// What is wrong with a file, which is named.
    pub(crate) fn of(&self, host: &str) -> Result<Option<ForHost>, String> {
        if host.is_empty() || host.contains('/') || host.starts_with('.') {
            return Ok(None);
        }
        let Some(dir) = self
            .dirs
            .iter()
            .map(|dir| dir.join(host))
            .find(|dir| dir.is_dir())
        else {
            return Ok(None);
        };
        let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
            .map_err(|error| format!("{}: {error}", dir.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        files.sort();
        let mut found = ForHost {
            authorities: Vec::new(),
            identity: None,
        };
        for path in files {
            let malformed = |error: reqwest::Error| {
                let why = std::error::Error::source(&error)
                    .map_or_else(|| error.to_string(), ToString::to_string);
                format!("{} is no certificate: {why}", path.display())
            };
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => {
                    let bundle = reqwest::Certificate::from_pem_bundle(&read(&path)?);
                    found.authorities.extend(bundle.map_err(malformed)?);
                }
                Some("cert") => {
                    let mut pem = read(&path)?;
                    pem.push(b'\n');
                    pem.extend(read(&path.with_extension("key"))?);
                    // What is wrong with a key is not told: it may be quoted.
                    let identity = reqwest::Identity::from_pem(&pem).map_err(|_| {
                        format!("{} and the .key beside it are no pair", path.display())
                    })?;
                    found.identity = Some(identity);
                }
                _ => {}
            }
        }
        Ok(Some(found))
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    host::bounded::bytes(path, MAX_SIZE).map_err(|error| format!("{}: {error}", path.display()))
}
