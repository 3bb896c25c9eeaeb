//! Where images are besides registries: layouts and archives that the user
//! names, a local engine, the storage of `podman` and `buildah`.
//!
//! In: the name of an image. Out: the image in a [`Layout`], or nothing where a
//! place doesn't have it. Places are asked in the order in which they are
//! given; [`crate::Client::pull`] asks registries last.
//!
//! An engine has unpacked its images and no longer has their manifests. A name
//! that is pinned to a digest is taken from there only if the manifest that
//! follows from its content has that digest, as after a build from there.

pub(crate) mod archive;
pub(crate) mod bundle;
pub mod engine;
pub mod storage;

use std::path::{Path, PathBuf};

use crate::layout::{Layout, LayoutError};
use crate::reference::Reference;
use crate::registry::Pulled;
use event::Progress;

pub use archive::BadArchive;
pub use engine::Engine;
pub use storage::Storage;

/// A place where images may be.
#[derive(Debug, Clone)]
pub enum Source {
    /// A directory in OCI layout, an archive of one, or an archive as `docker
    /// save` writes it.
    Files(PathBuf),
    /// An engine on this machine.
    Engine(Engine),
    /// The storage of `podman` and `buildah`.
    Storage(Storage),
}

/// Why a place can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// An archive is not what it must be.
    #[error("cannot use the archive")]
    Archive(#[from] BadArchive),
    /// Its content is not what it must be.
    #[error("{place}: {reason}")]
    Malformed {
        /// File, directory or variable.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The engine doesn't answer as it must.
    #[error("the engine at {place}: {reason}")]
    Engine {
        /// Where it listens.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A program failed.
    #[error(transparent)]
    Command(#[from] host::command::CommandError),
    /// The image is nothing that a cluster can run.
    #[error(transparent)]
    Unsuitable(Box<crate::PullError>),
    /// The cache can't be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl From<crate::PullError> for SourceError {
    fn from(error: crate::PullError) -> Self {
        Self::Unsuitable(Box::new(error))
    }
}

impl Source {
    /// The places of this machine: engines, then the storage.
    ///
    /// # Errors
    /// When a variable names a place that can't be used.
    pub fn from_environment() -> Result<Vec<Self>, SourceError> {
        let engines = Engine::from_environment()?.into_iter().map(Self::Engine);
        let storage = Storage::from_environment().map(Self::Storage);
        Ok(engines.chain(storage).collect())
    }

    /// A directory or an archive.
    pub fn files(path: impl AsRef<Path>) -> Self {
        Self::Files(path.as_ref().to_owned())
    }

    /// What a person calls it.
    pub fn describe(&self) -> String {
        match self {
            Self::Files(path) => path.display().to_string(),
            Self::Engine(engine) => format!("the engine at {}", engine.place()),
            Self::Storage(storage) => format!("the storage of {}", storage.tool()),
        }
    }

    /// Has an image in `layout`; nothing when it isn't here.
    ///
    /// # Errors
    /// When the place can't be used, or what it has can't.
    pub async fn pull(
        &self,
        image: &Reference,
        layout: &Layout,
        progress: &Progress,
    ) -> Result<Option<Pulled>, SourceError> {
        match self {
            Self::Engine(engine) => engine.pull(image, layout, progress).await,
            Self::Storage(storage) => storage.pull(image, layout, progress).await,
            Self::Files(path) => {
                let (path, image) = (path.clone(), image.clone());
                let (layout, progress) = (layout.clone(), progress.clone());
                blocking(move || {
                    bundle::Bundle::open(&path)?.pull(&image, false, &layout, &progress)
                })
                .await
            }
        }
    }
}

/// Work that waits for the disk, on a thread for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(SourceError::Malformed {
            place: "a thread".into(),
            reason: error.to_string(),
        }),
    }
}
