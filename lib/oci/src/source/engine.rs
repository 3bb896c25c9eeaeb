//! A container engine, over the Docker API.
//!
//! In: a socket, or an address with perhaps certificates, and the name of an
//! image. Out: the image as the engine exports
//! it. What it has unpacked before is not exported again.

use std::path::{Path, PathBuf};

use futures::StreamExt;
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use super::bundle::{Bundle, cached};
use super::{SourceError, blocking};
use crate::certificates::read;
use crate::digest::Digest;
use crate::http::{CONNECT_TIMEOUT, Retry, body};
use crate::layout::{Layout, MAX_DOCUMENT};
use crate::reference::Reference;
use crate::registry::Pulled;
use event::Progress;

/// An export has headers and, for some engines, layers twice.
const SLACK: u64 = 1 << 30;

/// Ports of engines without and with TLS.
const PORTS: [u16; 2] = [2375, 2376];

/// An engine that listens on a socket or at an address.
#[derive(Debug, Clone)]
pub struct Engine {
    /// What a person calls it.
    place: String,
    /// What requests begin with.
    base: String,
    client: reqwest::Client,
    /// Whether the user has named it: then it has to answer.
    named: bool,
}

/// What an engine says of an image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    #[serde(default)]
    size: u64,
    /// What registries call it.
    #[serde(default)]
    repo_digests: Option<Vec<String>>,
}

impl Engine {
    /// An engine that listens on the unix socket `socket`.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn new(socket: &Path) -> Result<Self, SourceError> {
        let builder = reqwest::Client::builder().unix_socket(socket);
        Self::with(
            builder,
            socket.display().to_string(),
            "http://localhost".into(),
        )
    }

    /// An engine at `tcp://HOST[:PORT]`: with TLS where there is a directory with
    /// its authority, `ca.pem`, and what it knows us by, `cert.pem` and `key.pem`.
    ///
    /// # Errors
    /// When it is no such address, or a certificate can't be used.
    pub fn at(address: &str, certificates: Option<&Path>) -> Result<Self, SourceError> {
        let malformed = |reason: String| SourceError::Malformed {
            // It may have a password in it.
            place: "the engine's address".into(),
            reason,
        };
        let scheme = if certificates.is_some() {
            "https"
        } else {
            "http"
        };
        let rest = address.strip_prefix("tcp://").unwrap_or_default();
        let url = reqwest::Url::parse(&format!("{scheme}://{rest}"));
        let url = url.ok().filter(|url| {
            let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
            plain && url.username().is_empty() && url.password().is_none()
        });
        let host = url.as_ref().and_then(reqwest::Url::host_str);
        let Some((url, host)) = url.as_ref().zip(host) else {
            return Err(malformed("it is not tcp://HOST:PORT".into()));
        };
        let usual = PORTS[usize::from(certificates.is_some())];
        let base = format!("{scheme}://{host}:{}", url.port().unwrap_or(usual));
        let mut builder = reqwest::Client::builder().no_proxy();
        if let Some(directory) = certificates {
            let (authorities, identity) = ours(directory).map_err(malformed)?;
            builder = builder
                .https_only(true)
                .tls_certs_only(authorities)
                .identity(identity);
        }
        Self::with(builder, address.to_owned(), base)
    }

    fn with(
        builder: reqwest::ClientBuilder,
        place: String,
        base: String,
    ) -> Result<Self, SourceError> {
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = builder
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(Retry::default().idle)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| failed(&place, &error))?;
        Ok(Self {
            place,
            base,
            client,
            named: true,
        })
    }

    /// The engine that `DOCKER_HOST` names, over TLS where `DOCKER_TLS_VERIFY` is
    /// set, with the certificates of `DOCKER_CERT_PATH`; else that of
    /// `CONTAINER_HOST`; else those of Docker and Podman at their usual places.
    ///
    /// # Errors
    /// When a variable names another kind of place, or certificates can't be
    /// used.
    pub fn from_environment() -> Result<Vec<Self>, SourceError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::find(&variable)
    }

    fn find(variable: &dyn Fn(&str) -> Option<String>) -> Result<Vec<Self>, SourceError> {
        for name in ["DOCKER_HOST", "CONTAINER_HOST"] {
            let Some(value) = variable(name) else {
                continue;
            };
            if let Some(path) = value.strip_prefix("unix://") {
                return Ok(vec![Self::new(Path::new(path))?]);
            }
            if value.starts_with("tcp://") {
                let verified = name == "DOCKER_HOST" && variable("DOCKER_TLS_VERIFY").is_some();
                let certificates = || {
                    let named = variable("DOCKER_CERT_PATH").map(PathBuf::from);
                    named.or_else(|| Some(Path::new(&variable("HOME")?).join(".docker")))
                };
                let directory = certificates().filter(|_| verified);
                if verified && directory.is_none() {
                    return Err(SourceError::Malformed {
                        place: "DOCKER_TLS_VERIFY".into(),
                        reason: "there are no certificates: DOCKER_CERT_PATH names their directory"
                            .into(),
                    });
                }
                return Ok(vec![Self::at(&value, directory.as_deref())?]);
            }
            return Err(SourceError::Malformed {
                place: name.into(),
                reason: format!(
                    "`{value}` is not supported: only unix:///PATH and tcp://HOST:PORT are"
                ),
            });
        }
        let user = variable("XDG_RUNTIME_DIR");
        let usual = [
            Some("/var/run/docker.sock".to_owned()),
            user.map(|dir| format!("{dir}/podman/podman.sock")),
            Some("/run/podman/podman.sock".to_owned()),
        ];
        usual
            .into_iter()
            .flatten()
            .filter(|path| is_socket(Path::new(path)))
            .map(|path| {
                Ok(Self {
                    named: false,
                    ..Self::new(Path::new(&path))?
                })
            })
            .collect()
    }

    /// Where it listens.
    pub fn place(&self) -> &str {
        &self.place
    }

    pub(crate) async fn pull(
        &self,
        image: &Reference,
        layout: &Layout,
        progress: &Progress,
    ) -> Result<Option<Pulled>, SourceError> {
        for name in image.local_names() {
            let answer = match self.get(&format!("images/{name}/json")).await {
                Ok(Some(answer)) => answer,
                Ok(None) => continue,
                // A socket that a stopped engine, or one of another user, left.
                Err(SourceError::Engine { reason, .. }) if !self.named => {
                    tracing::debug!(place = self.place, reason, "no engine");
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            let bytes = body(answer, MAX_DOCUMENT, &self.place)
                .await
                .map_err(|error| self.error(error.to_string()))?;
            let inspected: Inspected =
                serde_json::from_slice(&bytes).map_err(|error| self.error(error.to_string()))?;
            let id: Option<Digest> = match inspected.id.contains(':') {
                true => inspected.id.parse().ok(),
                false => format!("sha256:{}", inspected.id).parse().ok(),
            };
            if let Some(id) = &id
                && let Some(pulled) = cached(id, image, layout)?
            {
                return Ok(Some(pulled));
            }
            // The registry's own manifest is meant: an export has another.
            if let Some(digest) = image.digest()
                && (inspected.repo_digests.iter().flatten())
                    .any(|known| known.ends_with(&format!("@{digest}")))
            {
                return Ok(None);
            }
            return self
                .export(&name, inspected.size, image, layout, progress)
                .await;
        }
        Ok(None)
    }

    async fn export(
        &self,
        name: &str,
        size: u64,
        image: &Reference,
        layout: &Layout,
        progress: &Progress,
    ) -> Result<Option<Pulled>, SourceError> {
        let Some(answer) = self.get(&format!("images/{name}/get")).await? else {
            return Ok(None);
        };
        let limit = size.saturating_mul(2).saturating_add(SLACK);
        let temp = layout.temp()?;
        let unwritable = |source| crate::layout::LayoutError::Io {
            action: "write",
            path: temp.path().to_owned(),
            source,
        };
        let copy = temp.as_file().try_clone().map_err(unwritable)?;
        let mut file = tokio::fs::File::from_std(copy);
        let mut written = 0;
        let mut stream = answer.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| failed(&self.place, &error))?;
            written += chunk.len() as u64;
            if written > limit {
                return Err(self.error(format!(
                    "the export of {name} has more than {limit} bytes, its size is {size}"
                )));
            }
            file.write_all(&chunk).await.map_err(unwritable)?;
        }
        file.flush().await.map_err(unwritable)?;
        let (image, layout, progress) = (image.clone(), layout.clone(), progress.clone());
        let place = self.place.clone();
        blocking(move || {
            let exported = Bundle::open(temp.path())?.pull(&image, true, &layout, &progress)?;
            match exported {
                None if image.digest().is_none() => Err(SourceError::Engine {
                    place,
                    reason: format!("the export of {image} holds other images"),
                }),
                exported => Ok(exported),
            }
        })
        .await
    }

    /// An answer; nothing where there is nothing.
    async fn get(&self, path: &str) -> Result<Option<Response>, SourceError> {
        let request = self.client.get(format!("{}/{path}", self.base));
        let answer = request
            .send()
            .await
            .map_err(|error| failed(&self.place, &error))?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(answer)),
            status => {
                let text = body(answer, 4096, path).await.unwrap_or_default();
                let text: String = String::from_utf8_lossy(&text).chars().take(200).collect();
                Err(self.error(format!("answered {status}: {}", text.trim())))
            }
        }
    }

    fn error(&self, reason: String) -> SourceError {
        SourceError::Engine {
            place: self.place.clone(),
            reason,
        }
    }
}

/// Whom we trust and what we show, as Docker keeps it.
fn ours(directory: &Path) -> Result<(Vec<reqwest::Certificate>, reqwest::Identity), String> {
    let file = |name: &str| read(&directory.join(name));
    let shown = |name: &str| directory.join(name).display().to_string();
    let authorities = reqwest::Certificate::from_pem_bundle(&file("ca.pem")?)
        .map_err(|_| format!("{} is no certificate", shown("ca.pem")))?;
    let pem = [file("cert.pem")?, b"\n".to_vec(), file("key.pem")?].concat();
    // What is wrong with a key is not told: it may be quoted.
    let identity = reqwest::Identity::from_pem(&pem)
        .map_err(|_| format!("{} and {} are no pair", shown("cert.pem"), shown("key.pem")))?;
    Ok((authorities, identity))
}

fn failed(place: &str, error: &reqwest::Error) -> SourceError {
    SourceError::Engine {
        place: place.to_owned(),
        reason: crate::http::chain(error),
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_engine_is_the_only_one() {
        let find = |set: &'static [(&str, &str)]| {
            let variable = move |name: &str| {
                let found = set.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            Engine::find(&variable).map(|engines| {
                let bases = engines
                    .iter()
                    .map(|engine| (engine.place.clone(), engine.base.clone()));
                bases.collect::<Vec<_>>()
            })
        };
        let unix = |path: &str| vec![(path.to_owned(), "http://localhost".to_owned())];
        assert_eq!(
            find(&[
                ("DOCKER_HOST", "unix:///a.sock"),
                ("CONTAINER_HOST", "unix:///b.sock")
            ])
            .unwrap(),
            unix("/a.sock")
        );
        assert_eq!(
            find(&[("CONTAINER_HOST", "unix:///b.sock")]).unwrap(),
            unix("/b.sock")
        );
        let tcp = |address: &str, base: &str| vec![(address.to_owned(), base.to_owned())];
        assert_eq!(
            find(&[("DOCKER_HOST", "tcp://10.0.0.1:4243")]).unwrap(),
            tcp("tcp://10.0.0.1:4243", "http://10.0.0.1:4243")
        );
        assert_eq!(
            find(&[("CONTAINER_HOST", "tcp://[::1]")]).unwrap(),
            tcp("tcp://[::1]", "http://[::1]:2375")
        );
        for (value, reason) in [
            ("ssh://me@there", "only unix:///PATH"),
            ("tcp://", "not tcp://HOST:PORT"),
            ("tcp://me:secret@there:1", "not tcp://HOST:PORT"),
            ("tcp://there:1/path", "not tcp://HOST:PORT"),
        ] {
            let value = String::from(value);
            let variable = |name: &str| (name == "DOCKER_HOST").then(|| value.clone());
            let error = Engine::find(&variable).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
        // With TLS nothing goes without it.
        let verified = [("DOCKER_HOST", "tcp://there"), ("DOCKER_TLS_VERIFY", "1")];
        let variable = move |name: &str| {
            let found = verified.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let error = Engine::find(&variable).unwrap_err().to_string();
        assert!(error.contains("there are no certificates"), "{error}");
    }
}
