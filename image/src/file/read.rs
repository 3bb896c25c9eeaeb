//! Opening an image and reading its blobs.
//!
//! In: a file of unknown origin. Out: verified bytes. Opening reads the end of
//! the file only, whatever its size; every blob is verified as it is read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::archive;
use super::format::{
    Blob, FOOT_MAGIC, FOOTER, Footer, HEAD_MAGIC, Index, MAX_INDEX, NoFooter, PAGE, VERSION, align,
    index_hash,
};
use crate::chunks::{BlobReader, CHUNK, Chunks};
use crate::digest::{self, Hasher};
use crate::{Error, Result};

/// How much the first read takes from the end: footer and most indices.
const TAIL: u64 = 256 << 10;
/// How far back a footer is sought when something was appended.
const SEEK_BACK: u64 = 64 << 20;
/// How far a head page is sought: no program is longer.
const SEEK_HEAD: u64 = 1 << 30;

/// The file that an image is, or is part of: offsets count from the image's
/// first byte.
#[derive(Debug)]
pub(crate) struct Window {
    pub(super) file: File,
    pub(super) start: u64,
}

impl FileExt for Window {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.start.checked_add(offset) {
            Some(offset) => self.file.read_at(buffer, offset),
            None => Ok(0),
        }
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// An open cluster image. Cheap to clone; usable from many threads.
#[derive(Debug, Clone)]
pub struct Image(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: Arc<Window>,
    length: u64,
    /// Length of the file that the image is part of.
    whole: u64,
    footer: Footer,
    platform: String,
    root: String,
    elf: super::format::Elf,
    blobs: Vec<Arc<Blob>>,
    by_digest: HashMap<String, usize>,
}

impl Image {
    /// Opens the image at `path`, or that in the archive at `path` of which it
    /// is the first entry: footer and index are read and checked, no blob is.
    ///
    /// # Errors
    /// [`Error::NotAnImage`], [`Error::Truncated`], [`Error::Appended`],
    /// [`Error::Damaged`] or [`Error::Version`] tell why it is unusable.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::at("open", path))?;
        Self::from_file(file, path)
    }

    /// Opens the image that the running program is part of, also when its
    /// file was moved or replaced since.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn open_self() -> Result<Self> {
        let path = Path::new("/proc/self/exe");
        let file = File::open(path).map_err(Error::at("open", path))?;
        // For messages: the name that the user knows.
        let name = std::fs::read_link(path).unwrap_or_else(|_| path.to_owned());
        Self::from_file(file, &name)
    }

    pub(super) fn from_file(file: File, path: &Path) -> Result<Self> {
        let meta = file.metadata().map_err(Error::at("read", path))?;
        let whole = meta.len();
        if !meta.is_file() {
            return Err(Error::NotAnImage {
                path: path.to_owned(),
                length: whole,
            });
        }
        let (start, length) = match archived(&file, whole).map_err(Error::at("read", path))? {
            Some(size) if size > whole - archive::BLOCK => {
                return Err(Error::Truncated {
                    path: path.to_owned(),
                    length: whole,
                    expected: archive::BLOCK.checked_add(size),
                });
            }
            Some(size) => (archive::BLOCK, size),
            None => (0, whole),
        };
        let file = Window { file, start };
        let read = |offset: u64, length: u64| -> Result<Vec<u8>> {
            let mut bytes = vec![0; length as usize];
            file.read_exact_at(&mut bytes, offset)
                .map_err(Error::at("read", path))?;
            Ok(bytes)
        };
        let tail_offset = length.saturating_sub(TAIL);
        let tail = read(tail_offset, length - tail_offset)?;
        let footer = match Footer::parse(&tail[tail.len().saturating_sub(FOOTER)..]) {
            Ok(footer) => footer,
            Err(reason) => return Err(diagnose(&file, path, length, &reason)),
        };
        let damaged = |part: &str, problem: String| Error::Damaged {
            path: path.to_owned(),
            part: part.into(),
            problem,
        };
        if footer.total > length {
            let expected = Some(footer.total);
            return Err(Error::Truncated {
                path: path.to_owned(),
                length,
                expected,
            });
        }
        if footer.total < length {
            let problem = format!("{} bytes were inserted", length - footer.total);
            return Err(damaged("file", problem));
        }
        if footer.index_length > MAX_INDEX {
            let what = format!("the index of {}", path.display());
            let (size, limit) = (footer.index_length, MAX_INDEX);
            return Err(Error::TooLarge { what, size, limit });
        }
        let end = footer.index_offset.checked_add(footer.index_length);
        if end.and_then(|end| end.checked_add(FOOTER as u64)) != Some(length) {
            return Err(damaged("footer", "the index is not where it says".into()));
        }
        let text = if footer.index_offset >= tail_offset {
            let from = (footer.index_offset - tail_offset) as usize;
            tail[from..tail.len() - FOOTER].to_vec()
        } else {
            read(footer.index_offset, footer.index_length)?
        };
        if index_hash(&text) != footer.index_digest {
            return Err(damaged(
                "index",
                "its sha256 is not the one in the footer".into(),
            ));
        }
        let index = Index::parse(&text, footer.index_offset)
            .map_err(|problem| damaged("index", problem))?;
        let by_digest = index
            .blobs
            .iter()
            .enumerate()
            .map(|(i, b)| (b.digest.clone(), i))
            .collect();
        Ok(Self(Arc::new(Inner {
            path: path.to_owned(),
            file: Arc::new(file),
            length,
            whole,
            footer,
            platform: index.platform,
            root: index.root,
            elf: index.elf,
            blobs: index.blobs.into_iter().map(Arc::new).collect(),
            by_digest,
        })))
    }

    /// Name of the file, for messages.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Length of the image in bytes.
    pub fn length(&self) -> u64 {
        self.0.length
    }

    /// Where the image begins in its file: 0, or behind an archive's header.
    pub(super) fn start(&self) -> u64 {
        self.0.file.start
    }

    /// Length of the file, of which the image may be a part.
    pub(super) fn whole(&self) -> u64 {
        self.0.whole
    }

    /// Digest of the blob that leads to all others.
    pub fn root(&self) -> &str {
        &self.0.root
    }

    /// What the program and the base run on, such as `linux/amd64`.
    pub fn platform(&self) -> &str {
        &self.0.platform
    }

    /// Digest and size of the program alone.
    pub fn elf(&self) -> &super::format::Elf {
        &self.0.elf
    }

    /// All blobs in the order in which they lie in the file.
    pub fn blobs(&self) -> impl ExactSizeIterator<Item = &Blob> {
        self.0.blobs.iter().map(Arc::as_ref)
    }

    /// The blob with this digest.
    pub fn blob(&self, digest: &str) -> Option<&Blob> {
        self.0
            .by_digest
            .get(digest)
            .and_then(|i| self.0.blobs.get(*i))
            .map(Arc::as_ref)
    }

    pub(super) fn file(&self) -> &Window {
        &self.0.file
    }

    pub(super) fn footer(&self) -> &Footer {
        &self.0.footer
    }

    /// The content of a blob, verified: an error comes instead of the end when
    /// it is not what its digest says.
    ///
    /// # Errors
    /// [`Error::MissingBlob`].
    pub fn reader(&self, digest: &str) -> Result<BlobReader> {
        let blob = self
            .0
            .by_digest
            .get(digest)
            .and_then(|i| self.0.blobs.get(*i));
        let blob = blob.ok_or_else(|| Error::MissingBlob {
            digest: digest.into(),
        })?;
        Ok(BlobReader::new(&self.0.file, Arc::clone(blob)))
    }

    /// The whole content of a blob of at most `max` bytes, verified.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::MissingBlob`], or what is wrong with it.
    pub fn read_blob_bytes(&self, digest: &str, max: u64) -> Result<Vec<u8>> {
        let mut reader = self.reader(digest)?;
        let size = self.blob(digest).map_or(0, |blob| blob.size);
        if size > max {
            return Err(Error::TooLarge {
                what: format!("blob {digest}"),
                size,
                limit: max,
            });
        }
        let mut bytes = Vec::with_capacity(size as usize);
        reader
            .read_to_end(&mut bytes)
            .map_err(|e| self.read_error(e))?;
        Ok(bytes)
    }

    /// Writes the content of a blob to `dest`, which appears only when all of
    /// it was right, and stays when the machine ends right after. Who is killed
    /// leaves a file beside it whose name begins with `.partial-`.
    ///
    /// # Errors
    /// What is wrong with the blob, or why `dest` can't be written.
    pub fn extract(&self, digest: &str, dest: &Path) -> Result<()> {
        let mut reader = self.reader(digest)?;
        write_new(dest, 0o644, |out| {
            while let Some(chunk) = reader.next_chunk().map_err(|e| self.read_error(e))? {
                out.write_all(&chunk).map_err(Error::at("write", dest))?;
            }
            Ok(())
        })
    }

    /// Writes the program alone to `dest`, mode 0755, as [`Image::extract`]
    /// does.
    ///
    /// # Errors
    /// As [`Image::extract`].
    pub fn extract_elf(&self, dest: &Path) -> Result<()> {
        let elf = self.elf();
        write_new(dest, 0o755, |out| {
            let mut hasher = Hasher::default();
            let mut buffer = vec![0; CHUNK];
            let mut at = 0;
            while at < elf.size {
                let length = (elf.size - at).min(CHUNK as u64) as usize;
                let piece = &mut buffer[..length];
                self.0
                    .file
                    .read_exact_at(piece, at)
                    .map_err(|e| self.read_error(e))?;
                hasher.update(piece);
                out.write_all(piece).map_err(Error::at("write", dest))?;
                at += length as u64;
            }
            let actual = hasher.finish();
            if actual != elf.digest {
                let what = "the program in the image".into();
                return Err(Error::WrongDigest {
                    what,
                    expected: elf.digest.clone(),
                    actual,
                });
            }
            Ok(())
        })
    }

    fn read_error(&self, error: io::Error) -> Error {
        let inner = Error::io("read", self.path(), error);
        match inner {
            Error::Document {
                what: part,
                reason: problem,
            } => Error::Damaged {
                path: self.path().to_owned(),
                part,
                problem,
            },
            Error::WrongDigest {
                what: part,
                expected,
                actual,
            } => Error::Damaged {
                path: self.path().to_owned(),
                part,
                problem: format!("has digest {actual}, expected {expected}"),
            },
            other => other,
        }
    }
}

/// Size of the first entry, where the file is an archive that begins with an
/// image.
fn archived(file: &File, length: u64) -> io::Result<Option<u64>> {
    let mut block = [0; archive::BLOCK as usize];
    if length < archive::BLOCK {
        return Ok(None);
    }
    file.read_exact_at(&mut block, 0)?;
    if !block.starts_with(b"gravity\0") || block[257..262] != *b"ustar" {
        return Ok(None);
    }
    let header = tar::Header::from_byte_slice(&block);
    Ok(header.entry_size().ok())
}

/// Writes a file that appears at `dest` whole or not at all, also when the
/// machine ends right after.
pub(super) fn write_new(
    dest: &Path,
    mode: u32,
    fill: impl FnOnce(&mut File) -> Result<()>,
) -> Result<()> {
    let parent = match dest.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut temp = tempfile::Builder::new()
        .prefix(crate::PARTIAL)
        .tempfile_in(parent)
        .map_err(Error::at("create a file in", parent))?;
    fill(temp.as_file_mut())?;
    let mode = std::fs::Permissions::from_mode(mode);
    temp.as_file()
        .set_permissions(mode)
        .map_err(Error::at("set the mode of", dest))?;
    temp.as_file().sync_all().map_err(Error::at("sync", dest))?;
    temp.persist(dest)
        .map_err(|error| Error::io("write", dest, error.error))?;
    match File::open(parent).and_then(|directory| directory.sync_all()) {
        // Some filesystems, such as shared folders, can't do it for directories.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
        synced => synced.map_err(Error::at("sync", parent)),
    }
}

/// Tells why the end of the file is no footer.
fn diagnose(file: &Window, path: &Path, length: u64, reason: &NoFooter) -> Error {
    let path = path.to_owned();
    match reason {
        NoFooter::Version(version) => {
            return Error::Version {
                path,
                version: *version,
                supported: VERSION,
            };
        }
        NoFooter::Damaged => {
            let problem = "its sha256 is not the one it carries".into();
            return Error::Damaged {
                path,
                part: "footer".into(),
                problem,
            };
        }
        NoFooter::Absent => {}
    }
    if let Some(extra) = appended(file, length) {
        return Error::Appended { path, extra };
    }
    if has_head(file, length) || elf_is_cut(file, length) {
        return Error::Truncated {
            path,
            length,
            expected: None,
        };
    }
    Error::NotAnImage { path, length }
}

/// How many bytes follow a footer that is whole.
fn appended(file: &Window, length: u64) -> Option<u64> {
    let floor = length.saturating_sub(SEEK_BACK);
    let mut end = length;
    let mut buffer = vec![0; CHUNK + FOOTER];
    while end > floor {
        let begin = end.saturating_sub(CHUNK as u64).max(floor);
        // Overlaps the window after it, so no footer hides on the border.
        let stop = (end + FOOTER as u64).min(length);
        let window = buffer.get_mut(..(stop - begin) as usize)?;
        file.read_exact_at(window, begin).ok()?;
        let mut from = 0;
        while let Some(at) = window[from..]
            .iter()
            .position(|byte| *byte == FOOT_MAGIC[0])
        {
            let at = from + at;
            from = at + 1;
            let Some(candidate) = window.get(at..at + FOOTER) else {
                break;
            };
            let footer_end = begin + (at + FOOTER) as u64;
            if candidate.starts_with(FOOT_MAGIC)
                && Footer::parse(candidate).is_ok_and(|footer| footer.total == footer_end)
            {
                return Some(length - footer_end);
            }
        }
        end = begin;
    }
    None
}

/// Whether a head page is where it should be behind a program.
fn has_head(file: &Window, length: u64) -> bool {
    let mut head = [0; 28];
    (0..length.min(SEEK_HEAD))
        .step_by(PAGE as usize)
        .any(|offset| {
            if file.read_exact_at(&mut head, offset).is_err() || !head.starts_with(HEAD_MAGIC) {
                return false;
            }
            let mut size = [0; 8];
            size.copy_from_slice(&head[20..28]);
            align(u64::from_le_bytes(size)) == offset
        })
}

/// Whether the file is a 64-bit program whose section headers lie beyond its
/// end.
fn elf_is_cut(file: &Window, length: u64) -> bool {
    let mut header = [0; 64];
    if file.read_exact_at(&mut header, 0).is_err() || !header.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let mut offset = [0; 8];
    offset.copy_from_slice(&header[40..48]);
    let half = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    u64::from_le_bytes(offset).saturating_add(half(58) * half(60)) > length
}

impl digest::Hasher {
    /// Hashes `length` bytes at `offset` of `file`.
    pub(crate) fn of_range(file: &impl FileExt, offset: u64, length: u64) -> io::Result<String> {
        Self::of_range_in(file, offset, length, &mut Vec::new())
    }

    /// The same with a buffer that is used again.
    pub(crate) fn of_range_in(
        file: &impl FileExt,
        offset: u64,
        length: u64,
        buffer: &mut Vec<u8>,
    ) -> io::Result<String> {
        /// Stays in a core's cache between read and hash.
        const PIECE: u64 = 128 << 10;
        let mut hasher = Self::default();
        let mut at = 0;
        while at < length {
            buffer.resize((length - at).min(PIECE) as usize, 0);
            file.read_exact_at(buffer, offset + at)?;
            hasher.update(buffer);
            at += buffer.len() as u64;
        }
        Ok(hasher.finish())
    }
}
