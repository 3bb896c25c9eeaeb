//! Pulls images from registries into a layout.
//!
//! In: the name of an image. Out: its manifest, config and layers as blobs of
//! a [`Layout`]. An index is resolved to linux/amd64. A blob is there when its
//! digest was verified; one that broke off goes on where it stopped.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, Os};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::failure::{Failure, PullError};
use crate::http::{Http, Retry, Tries, body, transport};
use crate::layout::{Layout, MAX_DOCUMENT, descriptor};
use crate::reference::Reference;
use crate::registries::{Endpoint, Registries};
use crate::source::Source;
use event::Progress;

/// Most layers of an image; the kernel mounts no more than 500.
const MAX_LAYERS: usize = 500;

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Pulls images. Clones share connections, tokens and limits.
#[derive(Debug, Clone)]
pub struct Client(pub(crate) Arc<Inner>, Arc<[Source]>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) http: Http,
    pub(crate) registries: Registries,
    pub(crate) retry: Retry,
    /// Transfers at a time.
    pub(crate) transfers: Semaphore,
    /// Held by who transfers the blob, so that an image that shares it waits.
    blobs: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// An image in a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Its manifest.
    pub manifest: Descriptor,
    /// Its config.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
    /// Digest of the index that led to the manifest, where there was one.
    pub index: Option<Digest>,
}

/// A manifest or an index with its bytes.
pub(crate) struct Document {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) content: Content,
}

pub(crate) enum Content {
    Index(Box<ImageIndex>),
    Image(Box<ImageManifest>),
}

impl Client {
    /// A client with the user's mirrors and logins that makes at most
    /// `parallel` transfers at a time.
    pub fn new(
        registries: Registries,
        credentials: Credentials,
        parallel: usize,
        retry: Retry,
    ) -> Self {
        let inner = Inner {
            http: Http::new(credentials, registries.certificates().clone(), retry.idle),
            registries,
            retry,
            transfers: Semaphore::new(parallel.clamp(1, 64)),
            blobs: Mutex::default(),
        };
        Self(Arc::new(inner), Arc::default())
    }

    /// The same client that asks these places first.
    #[must_use]
    pub fn with_sources(mut self, sources: impl IntoIterator<Item = Source>) -> Self {
        self.1 = sources.into_iter().collect();
        self
    }

    /// Fetches a web address, at most `max` bytes.
    ///
    /// # Errors
    /// When it can't be had.
    pub async fn fetch(&self, url: &str, max: u64) -> Result<Vec<u8>, Failure> {
        let mut tries = Tries::new(self.0.retry);
        loop {
            match self.0.http.fetch(url, max).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => tries.next(failure).await?,
            }
        }
    }

    /// Pulls an image into `layout`, from the first source that has it, else from
    /// its registry. What is there already is not transferred; an image that is pinned to a digest and whole needs no network.
    ///
    /// # Errors
    /// [`PullError`] says what went wrong at every place that was asked.
    pub async fn pull(
        &self,
        image: &Reference,
        layout: &Layout,
        progress: &Progress,
    ) -> Result<Pulled, PullError> {
        let name = image.to_string();
        for source in self.1.iter() {
            match source.pull(image, layout, progress).await {
                Ok(Some(pulled)) => return Ok(pulled),
                Ok(None) => {}
                Err(error) => {
                    return Err(PullError::Source {
                        image: name,
                        place: source.describe(),
                        source: Box::new(error),
                    });
                }
            }
        }
        let mut places =
            (self.0.registries.endpoints(image)).map_err(|source| PullError::Registries {
                image: name.clone(),
                source,
            })?;
        let unsuitable = |reason: String| PullError::Unsuitable {
            image: name.clone(),
            reason,
        };
        let mut document = self
            .find(&name, image.wanted(), image.digest(), &mut places, layout)
            .await?;
        let mut index = None;
        if let Content::Index(list) = &document.content {
            let chosen = choose(list).map_err(unsuitable)?;
            index = Some(document.digest.clone());
            document = self
                .find(&name, chosen.as_str(), Some(&chosen), &mut places, layout)
                .await?;
        }
        let Content::Image(manifest) = &document.content else {
            return Err(unsuitable(
                "its index lists another index for linux/amd64".into(),
            ));
        };
        fits(manifest).map_err(unsuitable)?;
        let mut wanted: Vec<&Descriptor> = vec![manifest.config()];
        for layer in manifest.layers() {
            if !wanted.iter().any(|other| other.digest() == layer.digest()) {
                wanted.push(layer);
            }
        }
        let digests = wanted.iter().map(|blob| Digest::try_from(blob.digest()));
        let digests: Vec<Digest> = digests
            .collect::<Result<_, _>>()
            .map_err(|error| unsuitable(error.to_string()))?;
        progress.expect(wanted.iter().map(|blob| blob.size()).sum());
        let transfers = wanted
            .iter()
            .zip(&digests)
            .map(|(blob, digest)| self.blob(&name, digest, blob.size(), &places, layout, progress));
        futures::future::try_join_all(transfers).await?;
        complete(&name, &document, index, layout)
    }

    /// A manifest, from the layout where it is pinned and there; the place
    /// that had it comes first for all that follows.
    async fn find(
        &self,
        name: &str,
        wanted: &str,
        pinned: Option<&Digest>,
        places: &mut [Endpoint],
        layout: &Layout,
    ) -> Result<Document, PullError> {
        if let Some(digest) = pinned
            && let Ok(bytes) = layout.read_blob(digest, MAX_DOCUMENT)
        {
            let unsuitable = |reason| PullError::Unsuitable {
                image: name.to_owned(),
                reason,
            };
            return read(bytes, None).map_err(unsuitable);
        }
        let mut failures = Vec::new();
        for place in 0..places.len() {
            match self.manifest(&places[place], wanted, pinned).await {
                Ok(document) => {
                    if !layout.has_blob(&document.digest, document.bytes.len() as u64) {
                        layout.put_blob_bytes(&document.bytes, &document.media_type)?;
                    }
                    places[..=place].rotate_right(1);
                    return Ok(document);
                }
                Err(failure) => failures.push(failure),
            }
        }
        Err(PullError::Failed {
            image: name.to_owned(),
            failures,
        })
    }

    pub(crate) async fn manifest(
        &self,
        place: &Endpoint,
        wanted: &str,
        pinned: Option<&Digest>,
    ) -> Result<Document, Failure> {
        let mut tries = Tries::new(self.0.retry);
        loop {
            match self.manifest_once(place, wanted, pinned).await {
                Ok(document) => return Ok(document),
                Err(failure) => tries.next(failure).await?,
            }
        }
    }

    async fn manifest_once(
        &self,
        place: &Endpoint,
        wanted: &str,
        pinned: Option<&Digest>,
    ) -> Result<Document, Failure> {
        let response = self
            .0
            .http
            .get(place, &format!("manifests/{wanted}"), Some(ACCEPT), 0)
            .await?;
        let url = response.url().to_string();
        let header = |name| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(
                value
                    .split(';')
                    .next()
                    .unwrap_or_default()
                    .trim()
                    .to_owned(),
            )
        };
        let (kind, told) = (
            header(CONTENT_TYPE.as_str()),
            header("docker-content-digest"),
        );
        let bytes = body(response, MAX_DOCUMENT, &url).await?;
        let document = read(bytes, kind).map_err(|reason| Failure::Malformed {
            url: url.clone(),
            reason,
        })?;
        let told = told.and_then(|digest| digest.parse().ok());
        match pinned.cloned().or(told) {
            Some(expected) if expected != document.digest => Err(Failure::WrongDigest {
                url,
                expected,
                actual: document.digest,
            }),
            _ => Ok(document),
        }
    }

    pub(crate) async fn blob(
        &self,
        name: &str,
        digest: &Digest,
        size: u64,
        places: &[Endpoint],
        layout: &Layout,
        progress: &Progress,
    ) -> Result<(), PullError> {
        let turn = {
            let mut blobs = self.0.blobs.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(blobs.entry(digest.clone()).or_default())
        };
        let _turn = turn.lock().await;
        if layout.has_blob(digest, size) {
            progress.add(size);
            return Ok(());
        }
        let _permit = self.0.transfers.acquire().await;
        let mut failures = Vec::new();
        for place in places {
            match self.blob_from(place, digest, size, layout, progress).await {
                Ok(()) => return Ok(()),
                Err(Failure::Layout(error)) => return Err(error.into()),
                Err(failure) => failures.push(failure),
            }
        }
        Err(PullError::Failed {
            image: name.to_owned(),
            failures,
        })
    }

    async fn blob_from(
        &self,
        place: &Endpoint,
        digest: &Digest,
        size: u64,
        layout: &Layout,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let mut tries = Tries::new(self.0.retry);
        let mut blob = layout.begin_blob()?;
        let write = |source| crate::layout::LayoutError::Io {
            action: "write",
            path: layout.blob_path(digest),
            source,
        };
        let url = loop {
            // A piece that is whole is not asked for: no range lies behind it.
            let result = self
                .0
                .http
                .get(place, &format!("blobs/{digest}"), None, blob.written())
                .await;
            let failure = match result {
                Ok(mut response) => {
                    let url = response.url().to_string();
                    let goes_on = response.status() == StatusCode::PARTIAL_CONTENT
                        && begins_at(response.headers().get(CONTENT_RANGE)) == Some(blob.written());
                    if blob.written() > 0 && !goes_on {
                        progress.take_back(blob.written());
                        blob.reset().map_err(write)?;
                    }
                    let end = loop {
                        match response.chunk().await {
                            Ok(Some(chunk)) if blob.written() + chunk.len() as u64 > size => {
                                progress.take_back(blob.written());
                                return Err(Failure::TooLarge { url, limit: size });
                            }
                            Ok(Some(chunk)) => {
                                blob.write_all(&chunk).map_err(write)?;
                                progress.add(chunk.len() as u64);
                            }
                            Ok(None) => break None,
                            Err(error) => break Some(transport(&url, &error)),
                        }
                    };
                    if blob.written() == size {
                        break url;
                    }
                    let got = blob.written();
                    tracing::debug!(url, got, size, ?end, "broke off");
                    Failure::Short {
                        url,
                        got,
                        expected: size,
                        tries: 1,
                    }
                }
                Err(failure) => failure,
            };
            if let Err(failure) = tries.next(failure).await {
                progress.take_back(blob.written());
                return Err(failure);
            }
        };
        match blob.finish_as(digest)? {
            Ok(()) => Ok(()),
            Err(actual) => {
                progress.take_back(size);
                Err(Failure::WrongDigest {
                    url,
                    expected: digest.clone(),
                    actual,
                })
            }
        }
    }
}

fn fits(manifest: &ImageManifest) -> Result<(), String> {
    match manifest.layers().len() {
        0..=MAX_LAYERS => Ok(()),
        n => Err(format!("it has {n} layers; at most {MAX_LAYERS} are run")),
    }
}

/// An image of which all blobs are in the layout, if a cluster can run it.
pub(crate) fn complete(
    name: &str,
    document: &Document,
    index: Option<Digest>,
    layout: &Layout,
) -> Result<Pulled, PullError> {
    let unsuitable = |reason: String| PullError::Unsuitable {
        image: name.to_owned(),
        reason,
    };
    let Content::Image(manifest) = &document.content else {
        return Err(unsuitable("it is an index".into()));
    };
    fits(manifest).map_err(unsuitable)?;
    let digest = Digest::try_from(manifest.config().digest());
    let config: Value =
        layout.read_json(&digest.map_err(|error| unsuitable(error.to_string()))?)?;
    for (field, only) in [("os", "linux"), ("architecture", "amd64")] {
        if let Some(other) = config
            .get(field)
            .and_then(Value::as_str)
            .filter(|value| *value != only)
        {
            return Err(unsuitable(format!(
                "its {field} is {other}; only {only} is supported"
            )));
        }
    }
    let size = document.bytes.len() as u64;
    Ok(Pulled {
        manifest: descriptor(document.digest.clone(), size, &document.media_type)?,
        config: manifest.config().clone(),
        layers: manifest.layers().clone(),
        index,
    })
}

/// First byte of `bytes 5-9/10`.
fn begins_at(range: Option<&reqwest::header::HeaderValue>) -> Option<u64> {
    range?
        .to_str()
        .ok()?
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .parse()
        .ok()
}

/// What a manifest says it is; its fields must agree.
pub(crate) fn read(bytes: Vec<u8>, kind: Option<String>) -> Result<Document, String> {
    let malformed = |error: serde_json::Error| format!("the manifest is malformed: {error}");
    let value: Value = serde_json::from_slice(&bytes).map_err(malformed)?;
    if value.get("schemaVersion").and_then(Value::as_u64) == Some(1) {
        return Err(
            "the manifest has Docker's version 1, which is not supported: push the image again"
                .into(),
        );
    }
    let has = |field: &str| value.get(field).is_some();
    let content = match (has("manifests"), has("layers")) {
        (true, false) => Content::Index(serde_json::from_slice(&bytes).map_err(malformed)?),
        (false, true) => Content::Image(serde_json::from_slice(&bytes).map_err(malformed)?),
        _ => return Err("it is neither an image manifest nor an index".into()),
    };
    let usual = match content {
        Content::Index(_) => "application/vnd.oci.image.index.v1+json",
        Content::Image(_) => "application/vnd.oci.image.manifest.v1+json",
    };
    let told = value
        .get("mediaType")
        .and_then(Value::as_str)
        .map(str::to_owned);
    let kind = kind.filter(|kind| ACCEPT.contains(kind.as_str()) && !kind.is_empty());
    let media_type = told.or(kind).unwrap_or_else(|| usual.into());
    Ok(Document {
        digest: Digest::of(&bytes),
        media_type,
        bytes,
        content,
    })
}

/// The entry for linux/amd64; the plain variant where there are several.
pub(crate) fn choose(index: &ImageIndex) -> Result<Digest, String> {
    let platform = |d: &Descriptor| {
        d.platform()
            .as_ref()
            .map(|p| format!("{}/{}", p.os(), p.architecture()))
    };
    let fitting = index.manifests().iter().filter(|descriptor| {
        descriptor
            .platform()
            .as_ref()
            .is_some_and(|p| *p.os() == Os::Linux && *p.architecture() == Arch::Amd64)
    });
    let chosen =
        fitting.min_by_key(|d| d.platform().as_ref().is_some_and(|p| p.variant().is_some()));
    match chosen {
        Some(descriptor) => {
            Digest::try_from(descriptor.digest()).map_err(|error| error.to_string())
        }
        None => {
            let mut there: Vec<String> = index.manifests().iter().filter_map(platform).collect();
            there.dedup();
            Err(format!(
                "it is not there for linux/amd64, only for {}",
                there.join(", ")
            ))
        }
    }
}
