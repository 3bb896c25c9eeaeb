//! The cluster image file, format version 2.
//!
//! ```text
//! ELF | 0 | head page | blob | 0 | blob | 0 | ... | index | footer
//! ```
//!
//! - The ELF is the `gravity` program, so the file can be started.
//! - The head page is the first page boundary after the ELF: magic, version
//!   (u32), length of the ELF (u64), zeros. It only tells a truncated image
//!   from a program that never held one.
//! - Each blob begins on a page boundary (4096), zeros before it. A blob is
//!   stored once.
//! - The index is JSON ([`format::Index`]).
//! - The footer is 128 bytes: magic (16), version (u32), footer's length
//!   (u32), index offset (u64), index length (u64), length of the file (u64),
//!   sha256 of the index (32), zeros (16), sha256 of the footer so far (32).
//!   Numbers are little-endian. Its length, magic, version and own hash stay
//!   where they are in every later version.
//!
//! The same inputs give the same bytes.

pub mod archive;
mod copy;
pub mod format;
mod partial;
mod parts;
mod read;
mod stored;
mod verify;
mod write;

pub use format::{Blob, Encoding, Frame, Index};
pub use partial::{Partial, Piece};
pub use parts::{Part, STRUCTURE};
pub use read::Image;
pub(crate) use read::Window;
pub use verify::Damage;
pub use write::{Writer, Written};

#[cfg(test)]
mod tests;
