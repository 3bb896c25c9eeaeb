//! Names of container images, as Docker reads them.
//!
//! In: text from a manifest or a chart. Out: a [`Reference`] with registry,
//! repository and a tag or digest, each well-formed; and the name under which
//! the cluster's own registry has the image.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// Registry of names that name none.
pub const DOCKER_HUB: &str = "docker.io";

const MAX_LENGTH: usize = 1024;
const MAX_NAME: usize = 255;

/// Name of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    /// Repository as it was written, without `library/`.
    written: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the name of an image: {reason}")]
pub struct BadReference {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// Host and port of the registry, such as `docker.io`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Repository in that registry, such as `library/postgres`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` where there is neither tag nor digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest, where the name is pinned to it.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What a registry is asked for: the digest, else the tag.
    pub fn wanted(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }

    /// The same image in the registry `host`: the path as it was written, with
    /// its tag and digest, behind another host. `postgres:9.4.4` becomes
    /// `HOST/postgres:9.4.4`.
    pub fn in_registry(&self, host: &str) -> String {
        format!("{host}/{}{}", self.written, self.suffix())
    }

    /// Names under which an engine may have the image; none without a tag, as an
    /// engine knows nothing else. A name without a registry is Docker Hub's for
    /// Docker; Podman keeps what was built here as `localhost/NAME`.
    pub(crate) fn local_names(&self) -> Vec<String> {
        let Some(tag) = &self.tag else {
            return Vec::new();
        };
        let mut names = vec![format!("{}/{}:{tag}", self.registry, self.repository)];
        if self.registry == DOCKER_HUB {
            names.push(format!("localhost/{}:{tag}", self.written));
        }
        names
    }

    /// Whether `other` has one of this image's local names.
    pub(crate) fn is_also(&self, other: &Self) -> bool {
        self.local_names().contains(&other.to_string())
    }

    fn suffix(&self) -> String {
        let tag = self
            .tag
            .as_ref()
            .map(|tag| format!(":{tag}"))
            .unwrap_or_default();
        let digest = self
            .digest
            .as_ref()
            .map(|digest| format!("@{digest}"))
            .unwrap_or_default();
        tag + &digest
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.repository, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = BadReference;

    fn from_str(text: &str) -> Result<Self, BadReference> {
        let bad = |reason| BadReference {
            text: text.chars().take(200).collect(),
            reason,
        };
        if text.is_empty() || text.len() > MAX_LENGTH {
            return Err(bad("it is empty or longer than 1024 bytes"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|_| bad("what follows @ is not sha256:<64 hex digits>"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (host, path) = split_host(rest);
        let (written, tag) = match path.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (path, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad("a tag is at most 128 letters, digits and any of _ . -"));
        }
        if !written.split('/').all(is_component) {
            return Err(bad(
                "a repository consists of lower-case letters and digits, separated by / . _ or -",
            ));
        }
        let registry = match host {
            Some("index.docker.io") | None => DOCKER_HUB,
            Some(host) if is_host(host) => host,
            Some(_) => return Err(bad("the registry is not a host name with an optional port")),
        };
        let repository = match registry == DOCKER_HUB && !written.contains('/') {
            true => format!("library/{written}"),
            false => written.to_owned(),
        };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(bad("registry and repository are longer than 255 bytes"));
        }
        let tag = tag.or(if digest.is_none() {
            Some("latest")
        } else {
            None
        });
        let (registry, written) = (registry.to_owned(), written.to_owned());
        Ok(Self {
            registry,
            repository,
            written,
            tag: tag.map(Into::into),
            digest,
        })
    }
}

/// The text that follows the registry's host, for rewriting a name without
/// touching the rest of it.
pub fn without_host(text: &str) -> &str {
    split_host(text).1
}

/// The first part is a host when it can't be part of a path.
fn split_host(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((host, path))
            if host.contains(['.', ':'])
                || host == "localhost"
                || host.contains(|c: char| c.is_ascii_uppercase()) =>
        {
            (Some(host), path)
        }
        _ => (None, text),
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((name, port)) if name.parse::<std::net::Ipv6Addr>().is_ok() => {
                ("v6", port.strip_prefix(':'))
            }
            _ => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let label = |label: &str| {
        let edge = |c: char| c.is_ascii_alphanumeric();
        label.starts_with(edge)
            && label.ends_with(edge)
            && label.chars().all(|c| edge(c) || c == '-')
    };
    name.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= 128
        && tag.starts_with(word)
        && tag.chars().all(|c| word(c) || c == '.' || c == '-')
}

/// Words of lower-case letters and digits, with `.`, `_`, `__` or any number
/// of `-` between them.
fn is_component(component: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    component.starts_with(word)
        && component.ends_with(word)
        && component
            .split(word)
            .filter(|s| !s.is_empty())
            .all(|separator| {
                matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
            })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "leader.telekube.local:5000";

    #[test]
    fn names_are_completed_and_keep_their_path_in_the_cluster() {
        let pinned = format!("quay.io/a/b:1@{}", Digest::of(b""));
        for (text, whole, cluster) in [
            (
                "postgres:9.4.4",
                "docker.io/library/postgres:9.4.4",
                "postgres:9.4.4",
            ),
            ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            (
                "index.docker.io/nginx:1",
                "docker.io/library/nginx:1",
                "nginx:1",
            ),
            (
                "docker.io/library/nginx:1",
                "docker.io/library/nginx:1",
                "library/nginx:1",
            ),
            (
                "bitnami/redis",
                "docker.io/bitnami/redis:latest",
                "bitnami/redis:latest",
            ),
            ("localhost/x:1", "localhost/x:1", "x:1"),
            (
                "127.0.0.1:5000/x__y/z-1.2:a_B.c",
                "127.0.0.1:5000/x__y/z-1.2:a_B.c",
                "x__y/z-1.2:a_B.c",
            ),
            ("[::1]:5000/x:1", "[::1]:5000/x:1", "x:1"),
            (
                pinned.as_str(),
                pinned.as_str(),
                pinned.trim_start_matches("quay.io/"),
            ),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), whole, "{text}");
            assert_eq!(
                reference.in_registry(HOST),
                format!("{HOST}/{cluster}"),
                "{text}"
            );
        }
        assert_eq!(without_host("quay.io/a:1"), "a:1");
        assert_eq!(without_host("a/b"), "a/b");
    }

    #[test]
    fn a_pinned_name_has_no_tag_of_its_own() {
        let reference: Reference = format!("a@{}", Digest::of(b"")).parse().unwrap();
        assert_eq!(reference.tag(), None);
        assert_eq!(reference.wanted(), Digest::of(b"").as_str());
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            " ",
            "A",
            "a b",
            "a:",
            "a:-x",
            "a//b",
            "/a",
            "a/",
            "a@sha256:12",
            "a..b",
            "_a",
            "{{ .Values.x }}:1",
            "$(IMAGE)",
            "-x.io/a",
            "quay.io:99999/a",
            "quay.io/",
            "../../etc/passwd",
            "[::1/a",
            "a___b",
            &"a".repeat(256),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_was_built_here_has_a_name_too() {
        let is_also = |one: &str, other: &str| {
            one.parse::<Reference>()
                .unwrap()
                .is_also(&other.parse().unwrap())
        };
        assert!(is_also("planet:1", "localhost/planet:1"));
        assert!(is_also("planet:1", "docker.io/library/planet:1"));
        assert!(!is_also("planet:1", "localhost/planet:2"));
        assert!(!is_also("quay.io/planet:1", "localhost/planet:1"));
        assert!(!is_also("planet:1", "quay.io/planet:1"));
    }
}
