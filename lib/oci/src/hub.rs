//! The hub: where base images and cluster images are kept.
//!
//! In: a directory in OCI image layout, or the address of a registry. Out:
//! what images there are, and their content, verified. An image is a manifest
//! and blobs by digest, so a second version moves only what the first doesn't
//! have.
//!
//! Names and versions become repositories and tags by [`repository`] and
//! [`tag`], the same way in a directory as in a registry.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use oci_spec::image::{Descriptor, ImageManifest, MediaType};
use tokio::sync::OnceCell;

use crate::digest::{BadDigest, Digest};
use crate::environment;
use crate::failure::Failure;
use crate::layout::{Layout, LayoutError, descriptor};
use crate::part::Part;
use crate::push::{Arrival, Content};
use crate::reference::{BadReference, Reference};
use crate::registries::{Endpoint, RegistriesError};
use crate::registry::{Client, Content as Parsed, Document};
use event::Progress;

/// Smallest blob that is looked for in other repositories, in bytes: asking
/// costs more than sending a smaller one.
const WORTH_MOUNTING: u64 = 1 << 20;
/// Most repositories in which a blob is looked for.
const SIBLINGS: usize = 16;
/// Questions at a time.
const QUESTIONS: usize = 16;

/// Where base images and cluster images are kept.
#[derive(Debug, Clone)]
pub enum Hub {
    /// On this machine.
    Directory(Layout),
    /// In a registry.
    Registry(Remote),
}

/// Repositories below one path of a registry.
#[derive(Debug, Clone)]
pub struct Remote {
    client: Client,
    host: String,
    /// Path before each name, with a slash behind it; or nothing.
    prefix: String,
    insecure: bool,
}

/// An image of the hub, of which the manifest was read.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its manifest, with the artifact type.
    pub descriptor: Descriptor,
    /// The bytes of the manifest.
    pub bytes: Vec<u8>,
    /// The manifest.
    pub manifest: ImageManifest,
}

/// How many blobs, and bytes of them, came to be in the hub in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// What was there, in bytes.
    pub present: u64,
    /// What another repository had, in bytes.
    pub mounted: u64,
    /// What was sent, in bytes.
    pub sent: u64,
}

/// Why the hub can't do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// There is no place to look for it.
    #[error("there is no home directory to look for the hub in: name it with --hub")]
    NoHome,
    /// The address makes no sense.
    #[error("`{address}` is no hub: {reason}")]
    BadAddress {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
    /// The name can't be that of a repository.
    #[error("`{name}` cannot be a name in a hub")]
    BadName {
        /// The name.
        name: String,
        /// Why.
        source: BadReference,
    },
    /// It is there with another content.
    #[error(
        "the hub has another {name}:{tag} already, with digest {digest}: give the image a new version, or replace it with -f"
    )]
    Exists {
        /// The name.
        name: String,
        /// The version.
        tag: String,
        /// What is there.
        digest: Digest,
    },
    /// It is no image of one platform.
    #[error("{name}:{tag} is an index of several images, not an image")]
    NotAnImage {
        /// The name.
        name: String,
        /// The version.
        tag: String,
    },
    /// The registry doesn't say what it has.
    #[error("{host} does not list its repositories: name one, as in `tele ls NAME`")]
    NoCatalog {
        /// The registry.
        host: String,
        /// What it said.
        source: Box<Failure>,
    },
    /// The registry doesn't remove anything.
    #[error(
        "{host} does not remove images: allow it there (for the distribution registry with storage.delete.enabled), or remove the image with the registry's own tools"
    )]
    NoDelete {
        /// The registry.
        host: String,
        /// What it said.
        source: Box<Failure>,
    },
    /// The rules forbid it.
    #[error("cannot use the hub")]
    Registries(#[from] RegistriesError),
    /// A registry failed.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// A blob can't be had.
    #[error(transparent)]
    Pull(#[from] crate::PullError),
    /// A directory failed.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A digest is malformed.
    #[error(transparent)]
    Digest(#[from] BadDigest),
}

type Result<T, E = HubError> = std::result::Result<T, E>;

/// The hub when no flag names one: `GRAVITY_HUB`, or [`user_dir`].
pub fn default_dir() -> Option<PathBuf> {
    environment::path("GRAVITY_HUB").or_else(user_dir)
}

/// The user's own hub: `gravity/hub` in the user's data directory. Nothing when
/// the user has no home either.
pub fn user_dir() -> Option<PathBuf> {
    environment::data_dir().map(|data| data.join("gravity/hub"))
}

/// The repository of a name: its lower case.
pub fn repository(name: &str) -> String {
    name.to_ascii_lowercase()
}

/// The tag of a version. A tag can't hold the `+` of build metadata; `_`, which
/// no version holds, stands for it.
pub fn tag(version: &str) -> String {
    version.replace('+', "_")
}

/// The version of a tag.
pub fn version(tag: &str) -> String {
    tag.replace('_', "+")
}

impl Hub {
    /// The hub at `location`: a directory, `https://HOST[/PATH]`, or
    /// `http://HOST[/PATH]`, which need not be encrypted. `create` makes a
    /// directory that is not there.
    ///
    /// # Errors
    /// When the address is malformed, or no layout is there.
    pub fn open(location: Option<&str>, client: &Client, create: bool) -> Result<Self> {
        let dir = match location {
            Some(location) if location.contains("://") => {
                let (scheme, rest) = location.split_once("://").unwrap_or_default();
                match scheme {
                    "http" | "https" | "oci" | "docker" => {
                        return Remote::new(rest, scheme == "http", client, location)
                            .map(Self::Registry);
                    }
                    "file" => PathBuf::from(rest),
                    _ => {
                        return Err(HubError::BadAddress {
                            address: without_login(location),
                            reason: "it is neither a directory nor https://HOST[/PATH]".into(),
                        });
                    }
                }
            }
            Some(location) => PathBuf::from(location),
            None => default_dir().ok_or(HubError::NoHome)?,
        };
        Ok(Self::Directory(match create {
            true => Layout::open_or_create(dir)?,
            false => Layout::open(dir)?,
        }))
    }

    /// What a person calls it.
    pub fn describe(&self) -> String {
        match self {
            Self::Directory(layout) => layout.dir().display().to_string(),
            Self::Registry(remote) => format!("{}/{}", remote.host, remote.prefix)
                .trim_end_matches('/')
                .to_owned(),
        }
    }

    /// The names of all images.
    ///
    /// # Errors
    /// [`HubError::NoCatalog`] when the registry doesn't tell them.
    pub async fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self {
            Self::Directory(layout) => layout
                .tags()?
                .iter()
                .filter_map(|(reference, _)| Some(reference.rsplit_once(':')?.0.to_owned()))
                .collect(),
            Self::Registry(remote) => remote.names().await?,
        };
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The tags of a name; none when there is no such image.
    ///
    /// # Errors
    /// When the hub can't be read.
    pub async fn tags(&self, name: &str) -> Result<Vec<String>> {
        match self {
            Self::Directory(layout) => Ok(layout
                .tags()?
                .into_iter()
                .filter_map(|(reference, _)| {
                    let (image, tag) = reference.rsplit_once(':')?;
                    (image == repository(name)).then(|| tag.to_owned())
                })
                .collect()),
            Self::Registry(remote) => Ok(remote.client.tags(&remote.place(name)?).await?),
        }
    }

    /// Reads the manifest of an image.
    ///
    /// # Errors
    /// When it is not there, or not an image.
    pub async fn entry(&self, name: &str, tag: &str) -> Result<Entry> {
        let document = match self {
            Self::Directory(layout) => {
                let descriptor = layout.resolve(&format!("{}:{tag}", repository(name)))?;
                let digest = Digest::try_from(descriptor.digest())?;
                let bytes = layout.read_blob(&digest, crate::layout::MAX_DOCUMENT)?;
                crate::registry::read(bytes, None).map_err(|reason| LayoutError::Document {
                    path: layout.blob_path(&digest),
                    reason,
                })?
            }
            Self::Registry(remote) => {
                remote
                    .client
                    .manifest(&remote.place(name)?, tag, None)
                    .await?
            }
        };
        let Document {
            bytes,
            digest,
            media_type,
            content: Parsed::Image(manifest),
        } = document
        else {
            let (name, tag) = (name.to_owned(), tag.to_owned());
            return Err(HubError::NotAnImage { name, tag });
        };
        let mut descriptor = descriptor(digest, bytes.len() as u64, &media_type)?;
        descriptor.set_artifact_type(manifest.artifact_type().clone());
        Ok(Entry {
            descriptor,
            bytes,
            manifest: *manifest,
        })
    }

    /// Has these blobs of an image in a layout, which is returned: a directory's
    /// own, else `cache`, with those fetched that it lacks.
    ///
    /// # Errors
    /// When one can't be had.
    pub async fn fetch(
        &self,
        name: &str,
        blobs: &[Descriptor],
        cache: &Layout,
        progress: &Progress,
    ) -> Result<Layout> {
        let remote = match self {
            Self::Directory(layout) => {
                for blob in blobs {
                    let digest = Digest::try_from(blob.digest())?;
                    if !layout.has_blob(&digest, blob.size()) {
                        let path = layout.dir().to_owned();
                        return Err(LayoutError::MissingBlob { path, digest }.into());
                    }
                }
                return Ok(layout.clone());
            }
            Self::Registry(remote) => remote,
        };
        let places = [remote.place(name)?];
        let unique: BTreeMap<Digest, u64> = blobs
            .iter()
            .map(|blob| Ok((Digest::try_from(blob.digest())?, blob.size())))
            .collect::<Result<_, BadDigest>>()?;
        progress.expect(unique.values().sum());
        let (client, places) = (&remote.client, &places);
        stream::iter(unique)
            .map(|(digest, size)| async move {
                client
                    .blob(name, &digest, size, places, cache, progress)
                    .await
            })
            .buffer_unordered(64)
            .try_collect::<()>()
            .await?;
        Ok(cache.clone())
    }

    /// Keeps an image: the blobs that its manifest refers to, then the manifest.
    /// One that is there with the same digest is left as it is.
    ///
    /// # Errors
    /// [`HubError::Exists`], unless `replace`; or why it can't be kept.
    pub async fn push(
        &self,
        name: &str,
        tag: &str,
        manifest: (&[u8], &Descriptor),
        contents: &[Content],
        replace: bool,
        progress: &Progress,
    ) -> Result<Moved> {
        let ours = Digest::try_from(manifest.1.digest())?;
        if !replace && self.tags(name).await?.iter().any(|other| other == tag) {
            let there = Digest::try_from(self.entry(name, tag).await?.descriptor.digest())?;
            if there != ours {
                let (name, tag) = (repository(name), tag.to_owned());
                return Err(HubError::Exists {
                    name,
                    tag,
                    digest: there,
                });
            }
        }
        let unique: BTreeMap<&Digest, &Content> = contents
            .iter()
            .map(|content| (&content.digest, content))
            .collect();
        progress.expect(unique.values().map(|content| content.size).sum());
        match self {
            Self::Directory(layout) => {
                let _shared = layout.keep()?;
                let mut moved = Moved::default();
                for content in unique.into_values() {
                    let arrival = put(layout, content)?;
                    moved.count(arrival, content.size);
                    progress.add(content.size);
                }
                layout.put_blob_bytes(manifest.0, manifest.1.media_type().as_ref())?;
                let reference = format!("{}:{tag}", repository(name));
                layout.tag(&reference, manifest.1.clone())?;
                Ok(moved)
            }
            Self::Registry(remote) => {
                let place = remote.place(name)?;
                let siblings = OnceCell::new();
                let (place, siblings) = (&place, &siblings);
                let moved = stream::iter(unique.into_values())
                    .map(|content| async move {
                        let arrival = remote.put(place, content, siblings, progress).await?;
                        Ok::<_, HubError>((arrival, content.size))
                    })
                    .buffer_unordered(QUESTIONS)
                    .try_fold(Moved::default(), |mut moved, (arrival, size)| async move {
                        moved.count(arrival, size);
                        Ok(moved)
                    })
                    .await?;
                let kind = manifest.1.media_type().as_ref();
                remote
                    .client
                    .put_manifest(place, tag, manifest.0, kind)
                    .await?;
                Ok(moved)
            }
        }
    }

    /// Removes a version. A directory also loses what nothing else needs;
    /// registries do that when they collect their garbage.
    ///
    /// # Errors
    /// When it is not there, or the registry removes nothing.
    pub async fn remove(&self, name: &str, tag: &str) -> Result<()> {
        match self {
            Self::Directory(layout) => Ok(layout.remove(&format!("{}:{tag}", repository(name)))?),
            Self::Registry(remote) => {
                let place = remote.place(name)?;
                match remote.client.delete_tag(&place, tag).await {
                    Err(
                        source @ Failure::Status {
                            status: 400 | 405, ..
                        },
                    ) => Err(HubError::NoDelete {
                        host: place.host,
                        source: Box::new(source),
                    }),
                    other => Ok(other?),
                }
            }
        }
    }
}

/// An address as it may be shown: without a name and a password before its host.
fn without_login(address: &str) -> String {
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), address),
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let login = authority.rfind('@').map_or(0, |at| at + 1);
    format!("{scheme}{}", &rest[login..])
}

impl Moved {
    fn count(&mut self, arrival: Arrival, size: u64) {
        *match arrival {
            Arrival::Present => &mut self.present,
            Arrival::Mounted => &mut self.mounted,
            Arrival::Sent => &mut self.sent,
        } += size;
    }
}

impl Remote {
    fn new(rest: &str, plain: bool, client: &Client, address: &str) -> Result<Self> {
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = match path.trim_matches('/') {
            "" => String::new(),
            path => format!("{path}/"),
        };
        // Any name tells whether host and path are well-formed.
        let probe = format!("{host}/{prefix}x");
        let parsed = probe.parse::<Reference>().ok();
        if parsed.is_none_or(|parsed| parsed.registry() != host) {
            return Err(HubError::BadAddress {
                address: without_login(address),
                reason: "a registry is a host name with a dot or a port, and a path in lower \
                         case; `tele login` takes names and passwords"
                    .into(),
            });
        }
        Ok(Self {
            client: client.clone(),
            host: host.into(),
            prefix,
            insecure: plain,
        })
    }

    /// The repository of a name, with what registries.conf says of its host.
    fn place(&self, name: &str) -> Result<Endpoint> {
        let text = format!("{}/{}{}", self.host, self.prefix, repository(name));
        let reference: Reference = text.parse().map_err(|source| HubError::BadName {
            name: name.into(),
            source,
        })?;
        let mut places = self.client.0.registries.endpoints(&reference)?;
        let itself = places.pop().unwrap_or(Endpoint {
            host: self.host.clone(),
            repository: reference.repository().into(),
            insecure: false,
        });
        Ok(Endpoint {
            insecure: itself.insecure || self.insecure,
            ..itself
        })
    }

    /// Asks whether the registry lets us in.
    ///
    /// # Errors
    /// [`Failure::Denied`] when it doesn't.
    pub async fn greet(&self) -> Result<()> {
        Ok(self.client.greet(&self.place("x")?).await?)
    }

    async fn names(&self) -> Result<Vec<String>> {
        let place = self.place("x")?;
        let root = place.repository.strip_suffix('x').unwrap_or_default();
        match self.client.catalog(&place).await {
            Ok(all) => Ok(all
                .iter()
                .filter_map(|name| name.strip_prefix(root).map(Into::into))
                .collect()),
            Err(
                source @ (Failure::NotFound { .. }
                | Failure::Denied { .. }
                | Failure::Malformed { .. }
                | Failure::Status {
                    status: 400..=499, ..
                }),
            ) => Err(HubError::NoCatalog {
                host: self.host.clone(),
                source: Box::new(source),
            }),
            Err(other) => Err(other.into()),
        }
    }

    /// Has a blob in a repository by the cheapest means.
    async fn put(
        &self,
        place: &Endpoint,
        content: &Content,
        siblings: &OnceCell<Vec<Endpoint>>,
        progress: &Progress,
    ) -> Result<Arrival> {
        if self.client.has(place, &content.digest).await? {
            progress.add(content.size);
            return Ok(Arrival::Present);
        }
        let mut from = None;
        if content.size >= WORTH_MOUNTING {
            let others = siblings.get_or_init(|| self.siblings(place)).await;
            for other in others {
                // It only saves bytes: who may not look there sends them.
                if matches!(self.client.has(other, &content.digest).await, Ok(true)) {
                    from = Some(other.repository.as_str());
                    break;
                }
            }
        }
        Ok(self.client.send(place, content, from, progress).await?)
    }

    /// Other repositories of the hub.
    async fn siblings(&self, place: &Endpoint) -> Vec<Endpoint> {
        let names = self.names().await.unwrap_or_default();
        names
            .iter()
            .filter_map(|name| self.place(name).ok())
            .filter(|other| other.repository != place.repository)
            .take(SIBLINGS)
            .collect()
    }
}

/// Copies a part of a file into a layout.
fn put(layout: &Layout, content: &Content) -> Result<Arrival> {
    if layout.has_blob(&content.digest, content.size) {
        return Ok(Arrival::Present);
    }
    let failed = |action| {
        let path = content.path.clone();
        move |source| LayoutError::Io {
            action,
            path,
            source,
        }
    };
    let file = File::open(&content.path).map_err(failed("open"))?;
    let mut blob = layout.begin_blob()?;
    let mut part = Part::new(Arc::new(file), content.offset, content.size);
    std::io::copy(&mut part, &mut blob).map_err(failed("copy"))?;
    match blob.finish_as(&content.digest)? {
        Ok(()) => Ok(Arrival::Sent),
        Err(actual) => Err(LayoutError::WrongDigest {
            path: content.path.clone(),
            expected: content.digest.clone(),
            actual,
        }
        .into()),
    }
}

/// Everything that a manifest leads to, itself included.
pub(crate) fn reach(layout: &Layout, descriptor: &Descriptor, found: &mut HashSet<Digest>) {
    let Ok(digest) = Digest::try_from(descriptor.digest()) else {
        return;
    };
    if !found.insert(digest.clone()) {
        return;
    }
    let is_document = matches!(
        descriptor.media_type(),
        MediaType::ImageManifest | MediaType::ImageIndex
    ) || descriptor
        .media_type()
        .as_ref()
        .starts_with("application/vnd.docker.distribution.manifest.");
    let Some(bytes) = is_document
        .then(|| layout.read_blob(&digest, crate::layout::MAX_DOCUMENT).ok())
        .flatten()
    else {
        return;
    };
    match crate::registry::read(bytes, None).map(|document| document.content) {
        Ok(Parsed::Index(index)) => {
            for descriptor in index.manifests() {
                reach(layout, descriptor, found);
            }
        }
        Ok(Parsed::Image(manifest)) => {
            for blob in std::iter::once(manifest.config()).chain(manifest.layers()) {
                reach(layout, blob, found);
            }
        }
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Credentials, Registries, Retry};

    #[test]
    fn an_address_is_shown_without_its_password() {
        let location = "https://ci:s3cret@word@h.example.io/team";
        let error = Hub::open(Some(location), &client(), false).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains("`https://h.example.io/team` is no hub"),
            "{shown}"
        );
        assert!(!shown.contains("cret"), "{shown}");
        assert_eq!(without_login("h.io/a@b"), "h.io/a@b");
    }

    fn client() -> Client {
        let rules = "[[registry]]\nlocation = 'lab.io:5000'\ninsecure = true";
        let registries = Registries::parse(rules).unwrap();
        Client::new(registries, Credentials::default(), 1, Retry::default())
    }

    #[test]
    fn addresses_lead_to_repositories() {
        let place = |address: &str, name: &str| {
            let Hub::Registry(remote) = Hub::open(Some(address), &client(), false)? else {
                panic!("{address} is a directory");
            };
            remote.place(name)
        };
        for (address, name, host, repository, insecure) in [
            ("https://h.io", "MyCluster", "h.io", "mycluster", false),
            ("https://h.io:443/a/b/", "x", "h.io:443", "a/b/x", false),
            ("http://127.0.0.1:5000", "x", "127.0.0.1:5000", "x", true),
            ("oci://lab.io:5000", "x", "lab.io:5000", "x", true),
        ] {
            let place = place(address, name).unwrap();
            assert_eq!(
                (
                    place.host.as_str(),
                    place.repository.as_str(),
                    place.insecure
                ),
                (host, repository, insecure)
            );
        }
        for (address, name) in [
            ("https://", "x"),
            ("https://h.io/UPPER", "x"),
            ("https://user:password@h.io", "x"),
            ("ftp://h.io", "x"),
            ("https://h.io", "../x"),
            ("https://h.io", "x?y"),
        ] {
            assert!(place(address, name).is_err(), "{address} {name}");
        }
    }

    #[test]
    fn a_version_is_a_tag_and_back() {
        for (text, expected) in [("1.2.3", "1.2.3"), ("1.2.3-a.1+b", "1.2.3-a.1_b")] {
            assert_eq!(tag(text), expected);
            assert_eq!(version(expected), text);
            assert!(format!("x:{expected}").parse::<Reference>().is_ok());
        }
    }
}
