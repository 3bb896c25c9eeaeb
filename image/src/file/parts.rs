//! The parts of which the file of an image consists.
//!
//! In: an open image. Out: every stretch of its file that is not padding, in
//! order. Whoever has the parts and their offsets has the file: what lies
//! between them is zero. A part with the same content is the same part in
//! another version of the image, so only what changed has to be moved.

use super::format::{Encoding, PAGE, align};
use super::read::Image;
use crate::cluster::GRAVITY_ELF;
use crate::digest::Hasher;
use crate::{Error, Result};

/// Media type of parts that hold the others together: head page, index and
/// footer; what an archive has before and behind the image.
pub const STRUCTURE: &str = "application/vnd.gravitational.cluster.file.part.v1";

/// A stretch of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where it begins in the file.
    pub offset: u64,
    /// How long it is in bytes, never 0.
    pub length: u64,
    /// What it is as it is stored.
    pub media_type: String,
    /// Digest of the stored bytes.
    pub digest: String,
}

impl Image {
    /// The parts of the file, in order. They are hashed; what padding there is
    /// between them, [`Image::verify_stored`] checks.
    ///
    /// # Errors
    /// When the file can't be read, or a part is not what the index says.
    pub fn parts(&self) -> Result<Vec<Part>> {
        let file = &self.file().file;
        let start = self.start();
        let mut parts = Vec::new();
        let mut buffer = Vec::new();
        let mut add = |offset: u64, length: u64, media_type: String, digest: Option<&str>| {
            if length == 0 {
                return Ok(());
            }
            let actual = Hasher::of_range_in(file, offset, length, &mut buffer)
                .map_err(Error::at("read", self.path()))?;
            match digest {
                Some(digest) if digest != actual => Err(Error::Damaged {
                    path: self.path().to_owned(),
                    part: media_type,
                    problem: format!("has digest {actual}, expected {digest}"),
                }),
                _ => {
                    parts.push(Part {
                        offset,
                        length,
                        media_type,
                        digest: actual,
                    });
                    Ok(())
                }
            }
        };
        let elf = self.elf();
        add(0, start, STRUCTURE.into(), None)?;
        add(start, elf.size, GRAVITY_ELF.into(), Some(&elf.digest))?;
        add(start + align(elf.size), PAGE, STRUCTURE.into(), None)?;
        for blob in self.blobs() {
            let (media_type, digest) = match blob.encoding {
                Encoding::Raw => (blob.media_type.clone(), Some(blob.digest.as_str())),
                // Frames in a row are one stream of zstd.
                Encoding::ZstdFrames => (format!("{}+zstd", blob.media_type), None),
            };
            add(start + blob.offset, blob.length, media_type, digest)?;
        }
        let index = self.footer().index_offset;
        add(start + index, self.length() - index, STRUCTURE.into(), None)?;
        let end = start + self.length();
        add(end, self.whole() - end, STRUCTURE.into(), None)?;
        Ok(parts)
    }
}
