//! What can go wrong with an image, a layer or a directory.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with what was found and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// Verb, such as `open`.
        action: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing of the file looks like a cluster image.
    #[error(
        "{} is not a cluster image ({length} bytes, no image in them): name the file that `tele build` wrote",
        path.display()
    )]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
    },
    /// The end of the file is missing.
    #[error(
        "{} is truncated: it ends after {length} bytes{}: copy the file again and compare its sha256 with the original's",
        path.display(),
        expected.map(|n| format!(" of {n}")).unwrap_or_default()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
        /// What it should be, where known.
        expected: Option<u64>,
    },
    /// Something follows the image.
    #[error(
        "{} has {extra} bytes after the end of the image: copy the file again and compare its sha256 with the original's",
        path.display()
    )]
    Appended {
        /// The file.
        path: PathBuf,
        /// How many bytes too many.
        extra: u64,
    },
    /// Bytes differ from what was written.
    #[error(
        "{} is damaged: {part}: {problem}: copy the file again and compare its sha256 with the original's",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part of it.
        part: String,
        /// What is wrong there.
        problem: String,
    },
    /// A later product wrote the image.
    #[error(
        "{} has image format version {version}, this program reads version {supported}: use the program inside that file",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Version of the file.
        version: u32,
        /// Version of this program.
        supported: u32,
    },
    /// Something is larger than anything real.
    #[error("{what} is {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The image holds no such blob.
    #[error("the image holds no blob {digest}")]
    MissingBlob {
        /// Its digest.
        digest: String,
    },
    /// A blob ends before.
    #[error("blob {digest} has {size} bytes, none of {length} from {offset} on")]
    OutOfRange {
        /// Its digest.
        digest: String,
        /// Where the range begins.
        offset: u64,
        /// How long it is in bytes.
        length: u64,
        /// How many bytes the blob has as it is stored.
        size: u64,
    },
    /// The text is no digest.
    #[error("`{digest}` is not a digest of the form sha256:<64 hex digits>")]
    BadDigest {
        /// What was given.
        digest: String,
    },
    /// Content and digest differ.
    #[error("{what} has digest {actual}, expected {expected}")]
    WrongDigest {
        /// What was read.
        what: String,
        /// The digest it should have.
        expected: String,
        /// The digest it has.
        actual: String,
    },
    /// Content and size differ.
    #[error("{what} has {actual} bytes, expected {expected}")]
    WrongSize {
        /// What was read.
        what: String,
        /// The size it should have, in bytes.
        expected: u64,
        /// The size it has, in bytes.
        actual: u64,
    },
    /// A document in the image does not say what it must.
    #[error("{what}: {reason}")]
    Document {
        /// Which document.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A tar that must not be unpacked.
    #[error("refused to unpack `{entry}`: {reason}")]
    Layer {
        /// Path in the tar.
        entry: String,
        /// Why.
        reason: String,
    },
    /// A directory that can't be packed.
    #[error("cannot pack {}: {reason}", path.display())]
    Pack {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another process unpacks to the same place.
    #[error("another process is unpacking to {}: wait until it has ended", path.display())]
    Busy {
        /// Where to.
        path: PathBuf,
    },
    /// The place is taken.
    #[error("{} exists already: remove it first", path.display())]
    Exists {
        /// Where to.
        path: PathBuf,
    },
}

impl Error {
    /// Whether the image file itself is broken: not one, cut, grown or changed.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::NotAnImage { .. }
                | Self::Truncated { .. }
                | Self::Appended { .. }
                | Self::Damaged { .. }
                | Self::MissingBlob { .. }
                | Self::WrongDigest { .. }
                | Self::WrongSize { .. }
        )
    }

    /// Wraps `source`, unless it carries an error of this crate: then that.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.downcast::<Self>() {
            Ok(inner) => inner,
            Err(source) => Self::Io {
                action,
                path: path.to_owned(),
                source,
            },
        }
    }

    /// For `map_err`.
    pub(crate) fn at<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::io(action, path, source.into())
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}
