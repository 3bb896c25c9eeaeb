//! Where registries are: mirrors and locations of `registries.conf`, and the
//! certificates for single ones.
//!
//! In: the file in its version 2, as other container tools read it. Out: for
//! an image the places to ask, in order. Rules of `registries.conf.d` replace
//! those with the same prefix.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::certificates::Certificates;
use crate::environment;
use crate::reference::{DOCKER_HUB, Reference};

const MAX_SIZE: u64 = 1 << 20;

/// The rules. Without any, each registry is asked itself, over TLS.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    rules: Vec<Rule>,
    certificates: Certificates,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Rule {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<PullFromMirror>,
}

/// Which images a mirror is asked for.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFromMirror {
    All,
    DigestOnly,
    TagOnly,
}

#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    registry: Vec<Rule>,
    /// Version 1 has this table.
    registries: Option<toml::Value>,
}

/// A place to ask for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and optional port.
    pub host: String,
    /// Repository there.
    pub repository: String,
    /// Whether an unverified certificate or plain HTTP will do.
    pub insecure: bool,
}

/// Why the rules can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    /// The file can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it must be.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A rule forbids the image.
    #[error(
        "registries.conf blocks `{prefix}`: remove `blocked` from its rule or take another image"
    )]
    Blocked {
        /// Prefix of the rule.
        prefix: String,
    },
}

impl Registries {
    /// Reads the user's rules: `CONTAINERS_REGISTRIES_CONF`, else
    /// `~/.config/containers/registries.conf`, else
    /// `/etc/containers/registries.conf`; and the directory with the same name
    /// and `.d` behind it. No file means no rules.
    ///
    /// # Errors
    /// When a file can't be read or is malformed.
    pub fn from_environment() -> Result<Self, RegistriesError> {
        let certificates = Certificates::from_environment();
        if let Some(path) = environment::path("CONTAINERS_REGISTRIES_CONF") {
            return Ok(Self::load(&[path])?.with_certificates(certificates));
        }
        let config = environment::config_dir();
        let user = config.map(|config| config.join("containers/registries.conf"));
        let system = PathBuf::from("/etc/containers/registries.conf");
        let main = user.filter(|path| path.exists()).unwrap_or(system);
        let mut files: Vec<PathBuf> = if main.exists() {
            vec![main.clone()]
        } else {
            Vec::new()
        };
        let mut drop_ins: Vec<PathBuf> = std::fs::read_dir(main.with_extension("conf.d"))
            .map(|entries| {
                entries
                    .filter_map(|entry| Some(entry.ok()?.path()))
                    .collect()
            })
            .unwrap_or_default();
        drop_ins.retain(|path| {
            path.extension()
                .is_some_and(|extension| extension == "conf")
        });
        drop_ins.sort();
        files.extend(drop_ins);
        Ok(Self::load(&files)?.with_certificates(certificates))
    }

    /// The same rules with these certificates for single registries.
    fn with_certificates(mut self, certificates: Certificates) -> Self {
        self.certificates = certificates;
        self
    }

    pub(crate) fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// Reads files; a rule of a later one replaces that with the same prefix.
    ///
    /// # Errors
    /// When a file can't be read or is malformed.
    pub fn load(files: &[PathBuf]) -> Result<Self, RegistriesError> {
        let mut all = Self::default();
        for path in files {
            let text = host::bounded::string(path, MAX_SIZE);
            let text = text.map_err(|source| RegistriesError::Read {
                path: path.clone(),
                source,
            })?;
            all.add(&text, path)?;
        }
        Ok(all)
    }

    /// Reads rules from text.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn parse(text: &str) -> Result<Self, RegistriesError> {
        let mut all = Self::default();
        all.add(text, Path::new("registries.conf"))?;
        Ok(all)
    }

    fn add(&mut self, text: &str, path: &Path) -> Result<(), RegistriesError> {
        let malformed = |reason: String| RegistriesError::Malformed {
            path: path.into(),
            reason,
        };
        let document: Document =
            toml::from_str(text).map_err(|e| malformed(e.to_string().trim_end().to_owned()))?;
        if document.registries.is_some() {
            let reason = "it has version 1 of the format, with [registries]; write version 2, with [[registry]]";
            return Err(malformed(reason.into()));
        }
        for rule in document.registry {
            let Some(prefix) = rule.prefix.clone().or_else(|| rule.location.clone()) else {
                return Err(malformed(
                    "a [[registry]] has neither prefix nor location".into(),
                ));
            };
            if rule.prefix.as_deref().is_some_and(|p| !p.starts_with("*."))
                && rule.location.as_deref() == Some("")
            {
                return Err(malformed(format!("the location of `{prefix}` is empty")));
            }
            self.rules
                .retain(|other| other.prefix.as_deref() != Some(prefix.as_str()));
            self.rules.push(Rule {
                prefix: Some(prefix),
                ..rule
            });
        }
        Ok(())
    }

    /// Where to ask for an image: mirrors first, then the registry itself.
    ///
    /// # Errors
    /// [`RegistriesError::Blocked`].
    pub fn endpoints(&self, image: &Reference) -> Result<Vec<Endpoint>, RegistriesError> {
        let name = format!("{}/{}", image.registry(), image.repository());
        let itself = endpoint(&name, false);
        let best = self
            .rules
            .iter()
            .filter_map(|rule| Some((matched(rule.prefix.as_deref()?, &name)?, rule)))
            .max_by_key(|(length, _)| *length);
        let Some((length, rule)) = best else {
            return Ok(vec![itself]);
        };
        if rule.blocked {
            return Err(RegistriesError::Blocked {
                prefix: rule.prefix.clone().unwrap_or_default(),
            });
        }
        let rest = &name[length..];
        let pinned = image.digest().is_some();
        let wanted = |mirror: &&Mirror| match mirror.pull_from_mirror {
            Some(PullFromMirror::DigestOnly) => pinned,
            Some(PullFromMirror::TagOnly) => !pinned,
            Some(PullFromMirror::All) | None => pinned || !rule.mirror_by_digest_only,
        };
        let mut places: Vec<Endpoint> = rule
            .mirror
            .iter()
            .filter(wanted)
            .map(|mirror| endpoint(&format!("{}{rest}", mirror.location), mirror.insecure))
            .collect();
        places.push(match &rule.location {
            Some(location) => endpoint(&format!("{location}{rest}"), rule.insecure),
            None => Endpoint {
                insecure: rule.insecure,
                ..itself
            },
        });
        Ok(places)
    }
}

/// How many bytes of `name` the prefix covers.
fn matched(prefix: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = name.split('/').next()?;
        return (domain.starts_with('.') && host.ends_with(domain)).then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
}

fn endpoint(name: &str, insecure: bool) -> Endpoint {
    let (host, repository) = name.split_once('/').unwrap_or((name, ""));
    // Docker Hub's name is not its address.
    let host = if host == DOCKER_HUB {
        "registry-1.docker.io"
    } else {
        host
    };
    Endpoint {
        host: host.into(),
        repository: repository.into(),
        insecure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(conf: &str, image: &str) -> Vec<String> {
        let places = Registries::parse(conf)
            .unwrap()
            .endpoints(&image.parse().unwrap())
            .unwrap();
        places
            .into_iter()
            .map(|e| {
                format!(
                    "{}{}/{}",
                    if e.insecure { "!" } else { "" },
                    e.host,
                    e.repository
                )
            })
            .collect()
    }

    const MIRROR: &str = r#"
        unqualified-search-registries = ["docker.io"]
        [[registry]]
        prefix = "quay.io"
        location = "quay.io"
        [[registry.mirror]]
        location = "127.0.0.1:5000/quay"
        insecure = true
        [[registry.mirror]]
        location = "mirror.example.com"
        pull-from-mirror = "digest-only"
        [[registry]]
        prefix = "quay.io/internal"
        location = "10.0.0.1/other"
        insecure = true
        [[registry]]
        location = "docker.io"
        blocked = true
        [[registry]]
        prefix = "*.example.com"
        insecure = true
    "#;

    #[test]
    fn mirrors_come_first_and_the_longest_prefix_counts() {
        assert_eq!(
            places("", "postgres:1"),
            ["registry-1.docker.io/library/postgres"]
        );
        assert_eq!(
            places(MIRROR, "quay.io/a/b:1"),
            ["!127.0.0.1:5000/quay/a/b", "quay.io/a/b"]
        );
        let pinned = format!("quay.io/a@{}", crate::Digest::of(b""));
        assert_eq!(
            places(MIRROR, &pinned),
            [
                "!127.0.0.1:5000/quay/a",
                "mirror.example.com/a",
                "quay.io/a"
            ]
        );
        assert_eq!(
            places(MIRROR, "quay.io/internal/x:1"),
            ["!10.0.0.1/other/x"]
        );
        assert_eq!(places(MIRROR, "quay.io/internals/x:1").len(), 2);
        assert_eq!(places(MIRROR, "a.example.com/x:1"), ["!a.example.com/x"]);
        let blocked = Registries::parse(MIRROR)
            .unwrap()
            .endpoints(&"nginx".parse().unwrap());
        assert!(blocked.unwrap_err().to_string().contains("docker.io"));
    }

    #[test]
    fn what_is_malformed_says_why() {
        for (text, why) in [
            ("[registries.search]\nregistries = []", "version 1"),
            (
                "[[registry]]\ninsecure = true",
                "neither prefix nor location",
            ),
            ("[[registry]\n", "line 1"),
            ("[[registry]]\nprefix = 1", "prefix"),
            (
                "[[registry]]\nlocation = 'a'\n[[registry.mirror]]\nlocation = 'b'\npull-from-mirror = 'x'",
                "tag-only",
            ),
        ] {
            let error = Registries::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn later_files_replace_rules() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            host::atomic::write(&path, text.as_bytes(), 0o644).unwrap();
            path
        };
        let one = put("one", "[[registry]]\nprefix = 'a.io'\nlocation = 'x.io'");
        let two = put("two", "[[registry]]\nprefix = 'a.io'\nlocation = 'y.io'");
        let all = Registries::load(&[one, two]).unwrap();
        assert_eq!(
            all.endpoints(&"a.io/b".parse().unwrap()).unwrap()[0].host,
            "y.io"
        );
        assert!(Registries::load(&[dir.path().join("none")]).is_err());
    }
}
