//! The archive in which an image may be the first file.
//!
//! In: what comes behind the image. Out: the headers of a tar around it; or what
//! of such a tar is not what was built. No digest of the image covers the archive,
//! so the cluster's config says what follows the image.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::copy::copy;
use super::read::{Image, write_new};
use super::verify::Damage;
use crate::digest::{Hasher, sha256};
use crate::{Error, Result};

/// Bytes of a block of a tar, and of a header.
pub const BLOCK: u64 = 512;
/// Name of the image in the archive.
pub const NAME: &str = "gravity";
/// Its mode.
pub const MODE: u32 = 0o755;

/// All that an archive has behind the image, from the next block on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    /// In bytes.
    pub size: u64,
    /// Digest of it.
    pub digest: String,
}

impl Rest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            size: bytes.len() as u64,
            digest: sha256(bytes),
        }
    }
}

/// The header of a file in the archive; `time` in seconds since 1970.
///
/// # Errors
/// When the name doesn't fit.
pub fn header(name: &str, size: u64, mode: u32, time: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(header)
}

/// How many bytes fill the last block of `size` bytes.
pub fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

impl Image {
    /// Whether the image is the first file of an archive.
    pub fn is_archived(&self) -> bool {
        self.start() > 0
    }

    /// Writes the image alone to `dest`, mode 0755, as [`Image::extract`] does. Its
    /// bytes are not compared: [`Image::verify`] does that.
    ///
    /// # Errors
    /// When the file became shorter, or `dest` can't be written.
    pub fn extract_image(&self, dest: &Path) -> Result<()> {
        write_new(dest, MODE, |out| {
            let length = self.length();
            let copied = copy(&self.file().file, self.start(), out, 0, length)
                .map_err(Error::at("write", dest))?;
            if copied < length {
                return Err(Error::Truncated {
                    path: self.path().to_owned(),
                    length: copied,
                    expected: Some(length),
                });
            }
            Ok(())
        })
    }

    /// Compares what an archive has around the image with what was built. Only the
    /// header can be where nothing is known of the rest.
    pub(crate) fn verify_archive(&self, rest: Option<&Rest>) -> Vec<Damage> {
        let mut found = Vec::new();
        if !self.is_archived() {
            return found;
        }
        let mut report = |part: &str, offset: u64, length: u64, problem: String| {
            found.push(Damage {
                part: part.into(),
                offset,
                length,
                problem,
            });
        };
        let file = &self.file().file;
        let mut block = [0; BLOCK as usize];
        let read = file.read_exact_at(&mut block, 0);
        if read.is_err() || !is_header(&block, self.length()) {
            let problem = "is not what was built".into();
            report("the header of the archive", 0, BLOCK, problem);
        }
        let Some(rest) = rest else {
            return found;
        };
        let part = "the archive behind the image";
        let end = self.start() + self.length();
        let begin = end + padding(end);
        let (whole, wanted) = (self.whole(), begin.saturating_add(rest.size));
        if whole < wanted {
            report(part, whole, wanted - whole, "is missing".into());
            return found;
        }
        let zero = Hasher::of_range(file, end, begin - end);
        if zero.ok() != Some(sha256(&vec![0; (begin - end) as usize])) {
            report("padding", end, begin - end, "is not zero".into());
        }
        match Hasher::of_range(file, begin, rest.size) {
            Ok(digest) if digest == rest.digest => {}
            Ok(digest) => {
                let problem = format!("has digest {digest}, expected {}", rest.digest);
                report(part, begin, rest.size, problem);
            }
            Err(error) => {
                let problem = format!("cannot be read: {error}");
                report(part, begin, rest.size, problem);
            }
        }
        if whole > wanted {
            report(part, wanted, whole - wanted, "was added".into());
        }
        found
    }
}

/// Whether the block is the header of an image of this length, of whatever time.
fn is_header(block: &[u8; BLOCK as usize], length: u64) -> bool {
    let time = tar::Header::from_byte_slice(block).mtime();
    let expected = time.and_then(|time| header(NAME, length, MODE, time));
    expected.is_ok_and(|expected| expected.as_bytes() == block)
}
