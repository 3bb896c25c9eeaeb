//! A container engine on this machine, over the Docker API.
//!
//! In: a socket and the name of an image. Out: the image as the engine exports
//! it. What it has unpacked before is not exported again.

use std::path::{Path, PathBuf};

use futures::StreamExt;
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use super::bundle::{Bundle, cached};
use super::{SourceError, blocking};
use crate::digest::Digest;
use crate::http::{Retry, body};
use crate::layout::{Layout, MAX_DOCUMENT};
use crate::progress::Progress;
use crate::reference::Reference;
use crate::registry::Pulled;

/// An export has headers and, for some engines, layers twice.
const SLACK: u64 = 1 << 30;

/// An engine that listens on a socket.
#[derive(Debug, Clone)]
pub struct Engine {
    socket: PathBuf,
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
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = reqwest::Client::builder()
            .unix_socket(socket)
            .read_timeout(Retry::default().idle)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| failed(socket, &error))?;
        Ok(Self {
            socket: socket.to_owned(),
            client,
            named: true,
        })
    }

    /// The engine that `DOCKER_HOST` names; else those of Docker and Podman at
    /// their usual places.
    ///
    /// # Errors
    /// When `DOCKER_HOST` names another kind of place.
    pub fn from_environment() -> Result<Vec<Self>, SourceError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::find(&variable)
    }

    fn find(variable: &dyn Fn(&str) -> Option<String>) -> Result<Vec<Self>, SourceError> {
        for name in ["DOCKER_HOST", "CONTAINER_HOST"] {
            let Some(value) = variable(name) else {
                continue;
            };
            return match value.strip_prefix("unix://") {
                Some(path) => Ok(vec![Self::new(Path::new(path))?]),
                None => Err(SourceError::Malformed {
                    place: name.into(),
                    reason: format!("`{value}` is not supported: only unix:///PATH is"),
                }),
            };
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
    pub fn socket(&self) -> &Path {
        &self.socket
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
                    tracing::debug!(socket = %self.socket.display(), reason, "no engine");
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            let bytes = body(answer, MAX_DOCUMENT, &self.url())
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
            let chunk = chunk.map_err(|error| failed(&self.socket, &error))?;
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
        let socket = self.socket.clone();
        blocking(move || {
            let exported = Bundle::open(temp.path())?.pull(&image, true, &layout, &progress)?;
            match exported {
                None if image.digest().is_none() => Err(SourceError::Engine {
                    socket,
                    reason: format!("the export of {image} holds other images"),
                }),
                exported => Ok(exported),
            }
        })
        .await
    }

    /// An answer; nothing where there is nothing.
    async fn get(&self, path: &str) -> Result<Option<Response>, SourceError> {
        let request = self.client.get(format!("http://localhost/{path}"));
        let answer = request
            .send()
            .await
            .map_err(|error| failed(&self.socket, &error))?;
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

    fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    fn error(&self, reason: String) -> SourceError {
        SourceError::Engine {
            socket: self.socket.clone(),
            reason,
        }
    }
}

fn failed(socket: &Path, error: &reqwest::Error) -> SourceError {
    SourceError::Engine {
        socket: socket.to_owned(),
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
                let sockets = engines.iter().map(|engine| engine.socket.clone());
                sockets.collect::<Vec<_>>()
            })
        };
        assert_eq!(
            find(&[
                ("DOCKER_HOST", "unix:///a.sock"),
                ("CONTAINER_HOST", "unix:///b.sock")
            ])
            .unwrap(),
            [PathBuf::from("/a.sock")]
        );
        assert_eq!(
            find(&[("CONTAINER_HOST", "unix:///b.sock")]).unwrap(),
            [PathBuf::from("/b.sock")]
        );
        let error = find(&[("DOCKER_HOST", "tcp://10.0.0.1:2375")]).unwrap_err();
        assert!(error.to_string().contains("only unix:///PATH"), "{error}");
    }
}
