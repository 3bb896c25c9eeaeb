//! An image whose bytes come from elsewhere, in pieces.
//!
//! In: the end of the file, which says what all pieces must be, then the
//! pieces in any order. Out: the file. What has come is seen by its hash, so
//! whoever is cut off goes on with the same file. Until a blob has come it is
//! zero, and reading it tells so: digests are compared as ever.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;

use super::copy::copy;
use super::format::{Blob, Encoding, FOOTER, Footer, Index, PAGE, align, head_page};
use super::read::Image;
use crate::digest::{Hasher, sha256};
use crate::{Error, Result};

/// No filesystem has larger blocks.
const BLOCK: u64 = 64 << 10;

/// A stretch of a blob, as it is stored, that has not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The blob.
    pub digest: String,
    /// Where in the stored blob it begins.
    pub offset: u64,
    /// How long it is in bytes.
    pub length: u64,
    /// Digest of its bytes. A piece without one goes to the end of a raw blob,
    /// and is checked with it.
    pub hash: Option<String>,
}

/// An image that is being put together.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    file: File,
    image: Image,
}

impl Partial {
    /// Begins an image at `path`, or goes on with the one that is there if it
    /// has the same `end`: [`Image::end`] as somebody else sent it. `root` is
    /// what the image must be.
    ///
    /// # Errors
    /// When the end is none of an image, or of another one, or the file can't be
    /// written.
    pub fn open(path: &Path, end: &[u8], root: &str) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::at("open", path))?;
        Self::begin(file, path, end, root)
    }

    /// Begins an image that has no name and goes when it is dropped.
    ///
    /// # Errors
    /// As [`Partial::open`].
    pub fn nameless(end: &[u8], root: &str) -> Result<Self> {
        let directory = std::env::temp_dir();
        let file = tempfile::tempfile().map_err(Error::at("create a file in", &directory))?;
        Self::begin(file, Path::new("the cluster's image"), end, root)
    }

    fn begin(file: File, path: &Path, end: &[u8], root: &str) -> Result<Self> {
        let wrong = |reason: &str| Error::Document {
            what: "the end of the cluster's image".into(),
            reason: reason.into(),
        };
        let tail = end.len().checked_sub(FOOTER).and_then(|at| end.get(at..));
        let footer = tail.and_then(|tail| Footer::parse(tail).ok());
        let footer = footer.ok_or_else(|| wrong("has no footer of this version"))?;
        // What a footer says of the whole, opening compares.
        if footer.index_length != (end.len() - FOOTER) as u64 {
            return Err(wrong("is not as long as it says"));
        }
        let at = footer.index_offset;
        let text = end.get(..end.len() - FOOTER).unwrap_or_default();
        // Before what is there is given up for it.
        let index = Index::parse(text, at).map_err(|reason| wrong(&reason))?;
        if index.root != root {
            return Err(Error::WrongDigest {
                what: "the cluster's image".into(),
                expected: root.into(),
                actual: index.root,
            });
        }
        let write = Error::at("write", path);
        let prepared = (|| {
            let mut there = vec![0; end.len()];
            let same = file.metadata()?.len() == footer.total
                && file.read_exact_at(&mut there, at).is_ok()
                && there == end;
            if !same {
                file.set_len(0)?;
                file.set_len(footer.total)?;
                file.write_all_at(end, at)?;
            }
            file.try_clone()
        })();
        let image = Image::from_file(prepared.map_err(write)?, path)?;
        let elf = image.elf().size;
        file.write_all_at(&head_page(elf), align(elf))
            .map_err(Error::at("write", path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            image,
        })
    }

    /// The image, of which what has come can be read.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Takes the program.
    ///
    /// # Errors
    /// [`Error::WrongDigest`] when it is not that of the image.
    pub fn put_elf(&self, program: &Path) -> Result<()> {
        let elf = self.image.elf();
        let source = File::open(program).map_err(Error::at("open", program))?;
        let length = source.metadata().map_err(Error::at("read", program))?.len();
        let actual = Hasher::of_range(&source, 0, length).map_err(Error::at("read", program))?;
        if actual != elf.digest {
            return Err(Error::WrongDigest {
                what: program.display().to_string(),
                expected: elf.digest.clone(),
                actual,
            });
        }
        copy(&source, 0, &self.file, 0, length).map_err(Error::at("copy", program))?;
        Ok(())
    }

    /// What has not come of the blobs with at most `max` bytes.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn missing(&self, max: u64) -> Result<Vec<Piece>> {
        let mut missing = Vec::new();
        for blob in self.image.blobs().filter(|blob| blob.size <= max) {
            match blob.encoding {
                Encoding::Raw => missing.extend(self.missing_raw(blob)?),
                Encoding::ZstdFrames => {
                    for frame in &blob.frames {
                        let length = u64::from(frame.length);
                        let at = blob.offset + frame.offset;
                        if self.hash(at, length)?.as_ref() != Some(&frame.hash) {
                            missing.push(Piece {
                                digest: blob.digest.clone(),
                                offset: frame.offset,
                                length,
                                hash: Some(frame.hash.clone()),
                            });
                        }
                    }
                }
            }
        }
        Ok(missing)
    }

    /// Raw blobs come from their beginning to their end.
    fn missing_raw(&self, blob: &Blob) -> Result<Option<Piece>> {
        let mut written = self.written(blob.offset)?.min(blob.length);
        if written == blob.length {
            if self.is_whole(&blob.digest)? {
                return Ok(None);
            }
            written = 0;
        }
        // Of its last block it can't be told how much has come.
        let offset = written.saturating_sub(BLOCK) / PAGE * PAGE;
        Ok(Some(Piece {
            digest: blob.digest.clone(),
            offset,
            length: blob.length - offset,
            hash: None,
        }))
    }

    /// How many bytes from `at` on were ever written.
    fn written(&self, at: u64) -> Result<u64> {
        match rustix::fs::seek(&self.file, SeekFrom::Hole(at)) {
            Ok(hole) => Ok(hole.saturating_sub(at)),
            // A filesystem that knows no holes.
            Err(rustix::io::Errno::INVAL) => Ok(self.image.length() - at),
            Err(error) => Err(Error::io("read", &self.path, error.into())),
        }
    }

    fn hash(&self, at: u64, length: u64) -> Result<Option<String>> {
        if self.written(at)? < length {
            return Ok(None);
        }
        let hash = Hasher::of_range(&self.file, at, length);
        hash.map(Some).map_err(Error::at("read", &self.path))
    }

    /// Whether all of a raw blob has come, and is right.
    ///
    /// # Errors
    /// [`Error::MissingBlob`], or when the file can't be read.
    pub fn is_whole(&self, digest: &str) -> Result<bool> {
        let blob = self.blob(digest)?;
        let hash = Hasher::of_range(&self.file, blob.offset, blob.length);
        Ok(hash.map_err(Error::at("read", &self.path))? == blob.digest)
    }

    /// Takes bytes of a blob as it is stored.
    ///
    /// # Errors
    /// [`Error::WrongDigest`] when they have a `hash` and are not what it says,
    /// [`Error::OutOfRange`], or why they can't be written.
    pub fn put(&self, digest: &str, offset: u64, bytes: &[u8], hash: Option<&str>) -> Result<()> {
        let blob = self.blob(digest)?;
        blob.check_range(offset, bytes.len() as u64)?;
        if let Some(expected) = hash {
            let actual = sha256(bytes);
            if actual != expected {
                return Err(Error::WrongDigest {
                    what: format!("a frame of blob {digest}"),
                    expected: expected.into(),
                    actual,
                });
            }
        }
        self.file
            .write_all_at(bytes, blob.offset + offset)
            .map_err(Error::at("write", &self.path))
    }

    fn blob(&self, digest: &str) -> Result<&Blob> {
        self.image.blob(digest).ok_or_else(|| Error::MissingBlob {
            digest: digest.into(),
        })
    }

    /// Puts what has come on the disk, for all to read.
    ///
    /// # Errors
    /// When that fails.
    pub fn sync(&self) -> Result<()> {
        let mode = std::fs::Permissions::from_mode(0o644);
        let readable = self.file.set_permissions(mode);
        let synced = readable.and_then(|()| self.file.sync_all());
        synced.map_err(Error::at("write", &self.path))
    }
}
