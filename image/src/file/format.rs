//! The index, head page and footer as data.
//!
//! In: bytes of unknown origin. Out: an [`Index`] of which every offset and
//! length was checked: parts lie in the file, in order, do not overlap, and
//! leave only padding between them.

use serde::{Deserialize, Serialize};

use crate::digest;

/// Version of the format that this program reads and writes. In version 1 raw
/// blobs had no frames.
pub const VERSION: u32 = 2;
/// Blobs begin at multiples of this.
pub const PAGE: u64 = 4096;
/// Most bytes that a frame holds, compressed or not.
pub const MAX_FRAME: u32 = 4 << 20;
/// Most bytes of an index: about 100,000 frames.
pub const MAX_INDEX: u64 = 16 << 20;
/// Length of the footer in bytes.
pub const FOOTER: usize = 128;
pub(crate) const HEAD_MAGIC: &[u8; 16] = b"\x89GRAVITY-HEAD\r\n\x1a";
pub(crate) const FOOT_MAGIC: &[u8; 16] = b"\x89GRAVITY-FOOT\r\n\x1a";

/// The next page boundary.
pub(crate) fn align(offset: u64) -> u64 {
    offset.div_ceil(PAGE).saturating_mul(PAGE)
}

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Index {
    /// What the program and the base run on, such as `linux/amd64`.
    pub platform: String,
    /// The program at the file's start.
    pub elf: Elf,
    /// Digest of the blob that leads to all others: an OCI image index.
    pub root: String,
    /// All blobs in the order of their offsets.
    pub blobs: Vec<Blob>,
}

/// The program at the file's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Elf {
    /// Digest of its bytes.
    pub digest: String,
    /// Its length in bytes.
    pub size: u64,
}

/// One blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Blob {
    /// Digest of the content, decompressed.
    pub digest: String,
    /// Size of the content in bytes, decompressed.
    pub size: u64,
    /// OCI media type of the content.
    pub media_type: String,
    /// How it is stored.
    pub encoding: Encoding,
    /// Where it begins in the file.
    pub offset: u64,
    /// How many bytes it takes in the file.
    pub length: u64,
    /// The parts of which it consists: of [`Encoding::ZstdFrames`], and of a raw
    /// blob of more than [`MAX_FRAME`] bytes. A smaller raw one is its only part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frames: Vec<Frame>,
}

/// How a blob is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Encoding {
    /// As it is.
    Raw,
    /// A sequence of independent zstd frames.
    ZstdFrames,
}

impl TryFrom<String> for Encoding {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "raw" => Ok(Self::Raw),
            "zstd-frames" => Ok(Self::ZstdFrames),
            _ => Err(format!(
                "encoding `{name}` is not known to this program: use the program inside that file"
            )),
        }
    }
}

impl From<Encoding> for String {
    fn from(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Raw => "raw".into(),
            Encoding::ZstdFrames => "zstd-frames".into(),
        }
    }
}

/// A part of a blob that can be fetched, checked and decompressed alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Frame {
    /// Where it begins in the stored blob.
    pub offset: u64,
    /// Stored bytes, at most [`MAX_FRAME`].
    pub length: u32,
    /// Decompressed bytes, at most [`MAX_FRAME`].
    pub size: u32,
    /// Digest of the stored bytes.
    pub hash: String,
}

/// Checks that frames make up a blob of `length` stored and `size` real bytes.
pub(crate) fn check_frames(frames: &[Frame], length: u64, size: u64) -> Result<(), String> {
    let (mut stored, mut real) = (0u64, 0u64);
    for (number, frame) in frames.iter().enumerate() {
        let sound = frame.offset == stored
            && (1..=MAX_FRAME).contains(&frame.length)
            && (1..=MAX_FRAME).contains(&frame.size)
            && digest::check(&frame.hash).is_ok();
        if !sound {
            return Err(format!("frame {number} is impossible"));
        }
        stored += u64::from(frame.length);
        real += u64::from(frame.size);
    }
    if stored != length || real != size {
        return Err("the frames do not add up to the blob".into());
    }
    Ok(())
}

impl Index {
    /// Reads an index that ends at `end` of the file.
    ///
    /// # Errors
    /// What is wrong, as a fragment of a sentence.
    pub fn parse(text: &[u8], end: u64) -> Result<Self, String> {
        let index: Self = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        digest::check(&index.elf.digest).map_err(|e| e.to_string())?;
        digest::check(&index.root).map_err(|e| e.to_string())?;
        if index.elf.size > end {
            return Err("the program is longer than the file".into());
        }
        // The first part after the ELF is the head page.
        let mut at = align(index.elf.size).saturating_add(PAGE);
        let mut seen = std::collections::HashSet::new();
        for blob in &index.blobs {
            let name = digest::check(&blob.digest).map_err(|e| e.to_string())?;
            let fail = |reason: &str| Err(format!("blob sha256:{name}: {reason}"));
            if !seen.insert(name) {
                return fail("is there twice");
            }
            if blob.offset != align(at) {
                return fail("is not where the blob before it ends");
            }
            at = match blob.offset.checked_add(blob.length) {
                Some(next) if next <= end => next,
                _ => return fail("reaches beyond the index"),
            };
            if blob.encoding == Encoding::Raw {
                let frames = &blob.frames;
                if blob.length != blob.size || frames.iter().any(|one| one.length != one.size) {
                    return fail("is raw, but its size and length differ");
                }
                if blob.length <= u64::from(MAX_FRAME) {
                    match frames.is_empty() {
                        true => continue,
                        false => return fail("is raw and small, but has frames"),
                    }
                }
            }
            if let Err(reason) = check_frames(&blob.frames, blob.length, blob.size) {
                return fail(&reason);
            }
        }
        if align(at) != end {
            return Err("the index does not follow the last blob".into());
        }
        if !index.blobs.iter().any(|blob| blob.digest == index.root) {
            return Err("the root blob is not there".into());
        }
        Ok(index)
    }
}

/// The page after the ELF.
pub(crate) fn head_page(elf_size: u64) -> Vec<u8> {
    let mut page = Vec::with_capacity(PAGE as usize);
    page.extend_from_slice(HEAD_MAGIC);
    page.extend_from_slice(&VERSION.to_le_bytes());
    page.extend_from_slice(&elf_size.to_le_bytes());
    page.resize(PAGE as usize, 0);
    page
}

/// The last bytes of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) index_offset: u64,
    pub(crate) index_length: u64,
    pub(crate) total: u64,
    /// Digest of the index.
    pub(crate) index_digest: [u8; 32],
}

/// Why bytes are no footer of this version.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoFooter {
    /// Nothing like it.
    Absent,
    /// It was one.
    Damaged,
    /// It is one, of another version.
    Version(u32),
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    out.copy_from_slice(digest.as_ref());
    out
}

/// The raw hash that the footer keeps of the index.
pub(crate) fn index_hash(index: &[u8]) -> [u8; 32] {
    hash(index)
}

impl Footer {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FOOTER);
        bytes.extend_from_slice(FOOT_MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(FOOTER as u32).to_le_bytes());
        bytes.extend_from_slice(&self.index_offset.to_le_bytes());
        bytes.extend_from_slice(&self.index_length.to_le_bytes());
        bytes.extend_from_slice(&self.total.to_le_bytes());
        bytes.extend_from_slice(&self.index_digest);
        bytes.resize(FOOTER - 32, 0);
        bytes.extend_from_slice(&hash(&bytes));
        bytes
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, NoFooter> {
        let Ok(bytes) = <&[u8; FOOTER]>::try_from(bytes) else {
            return Err(NoFooter::Absent);
        };
        // A flipped byte in the magic is damage, not absence.
        let alike = bytes.iter().zip(FOOT_MAGIC).filter(|(a, b)| a == b).count();
        if alike < 12 {
            return Err(NoFooter::Absent);
        }
        if hash(&bytes[..FOOTER - 32]) != bytes[FOOTER - 32..] || alike < 16 {
            return Err(NoFooter::Damaged);
        }
        let u32_at = |at: usize| {
            let mut number = [0; 4];
            number.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(number)
        };
        let u64_at = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(number)
        };
        if u32_at(16) != VERSION {
            return Err(NoFooter::Version(u32_at(16)));
        }
        let mut index_digest = [0; 32];
        index_digest.copy_from_slice(&bytes[48..80]);
        let footer = Self {
            index_offset: u64_at(24),
            index_length: u64_at(32),
            total: u64_at(40),
            index_digest,
        };
        // Bytes without a meaning must be as we write them.
        if footer.to_bytes() != bytes {
            Err(NoFooter::Damaged)
        } else {
            Ok(footer)
        }
    }
}
