//! Parts of the cluster image, from nodes that have it to nodes that join.
//!
//! In: [`Images`], which a controller, or [`serve`] on a worker, offers at the
//! same port. Out: a [`Session`] that reads from one of them. It answers nodes
//! of the cluster and those that a controller has admitted, known by their
//! certificates. It changes nothing; what is read, kept in memory and waited
//! for is bounded. Whoever reads compares digests: here they are not.

mod client;
mod server;

pub use client::Session;
pub use server::serve;
pub(crate) use server::service;

use crate::controller::Refusal;

/// Version of this protocol. Both sides must speak the same.
pub const PROTOCOL: u32 = 1;

/// Longest range in bytes: the longest frame of an image.
pub const MAX_RANGE: usize = 4 << 20;

/// Common name in the certificate of a node that a controller has admitted to the
/// image and to measuring the way to other nodes, and to nothing else.
pub const ADMITTED: &str = "joining";

/// Bytes of one message.
const PIECE: usize = 256 << 10;
/// Largest message in bytes, with what the encoding adds.
const MAX_MESSAGE: usize = PIECE + 1024;

/// A range of a blob as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Digest of the index of the image that is meant.
    pub image: String,
    /// The blob.
    pub digest: String,
    /// Where it begins.
    pub offset: u64,
    /// How many bytes, at most [`MAX_RANGE`].
    pub length: usize,
}

/// What a node has of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Have {
    /// The whole.
    All,
    /// Some pieces: a bit for each, the first one the lowest of the first byte.
    Pieces(Vec<u8>),
}

impl Have {
    /// Whether the piece of this number is there.
    pub fn has(&self, piece: usize) -> bool {
        match self {
            Self::All => true,
            Self::Pieces(bits) => bits
                .get(piece / 8)
                .is_some_and(|byte| byte >> (piece % 8) & 1 == 1),
        }
    }
}

/// Who has the image, or gets it. The calls may block for as long as a disk takes.
pub trait Images: Send + Sync + 'static {
    /// The end of the file: index and footer.
    ///
    /// # Errors
    /// When the image is not here.
    fn end(&self) -> Result<Vec<u8>, Refusal>;

    /// What there is of the image whose index has this digest.
    ///
    /// # Errors
    /// When it is another image.
    fn have(&self, image: &str) -> Result<Have, Refusal>;

    /// The bytes of a range.
    ///
    /// # Errors
    /// When there is no such image, blob or range, or not yet.
    fn read(&self, range: &Range) -> Result<Vec<u8>, Refusal>;
}

#[cfg(test)]
pub(crate) mod tests;
