//! The cluster image: blobs, index, the self-extracting file, safe unpack.
//!
//! - [`file`]: the format of the file, [`Writer`] and [`Image`];
//! - [`encode`]: how uncompressed blobs are compressed, and the cache of that;
//! - [`cluster`]: what the blobs of a cluster image mean;
//! - [`layer`]: the tar in a layer, whatever compresses it;
//! - [`unpack`]: tar layers to a directory, trusting nothing in them;
//! - [`pack`]: a directory to a tar with the same bytes every time.
//!
//! Nothing here uses the network. All that is read is bounded, and its digest
//! is compared before success is said.

mod chunks;
pub mod cluster;
pub mod digest;
pub mod encode;
mod error;
pub mod file;
pub mod layer;
mod ordered;
pub mod pack;
mod tarstream;
pub mod unpack;

pub use chunks::{BlobReader, Chunk, Chunks, ReadChunks};
pub use error::{Error, Result};
pub use file::{Blob, Damage, Encoding, Image, Part, Partial, Piece, Writer, Written};

/// What the names of unfinished files and directories begin with.
pub const PARTIAL: &str = ".partial-";
