//! An image whose bytes come from elsewhere, in pieces.
//!
//! In: the end of the file, which says what all pieces must be, then the
//! pieces in any order. Out: the file, and meanwhile what has come of it, for
//! others. What has come is seen by its hash, so whoever is cut off goes on with
//! the same file. Until a blob has come it is zero, and reading it tells so:
//! digests are compared as ever.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::SeekFrom;

use super::copy::copy;
use super::format::{Blob, FOOTER, Footer, Index, align, head_page};
use super::read::Image;
use crate::digest::{Hasher, sha256};
use crate::{Error, Result};

/// A stretch of a blob, as it is stored, that comes at once and is checked alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Which one of all of the image.
    pub number: usize,
    /// The blob.
    pub digest: String,
    /// Where in the stored blob it begins.
    pub offset: u64,
    /// How long it is in bytes, at most those of the longest frame.
    pub length: u64,
    /// Digest of its bytes.
    pub hash: String,
}

/// The pieces of a blob; `first` is the number of the first one.
fn pieces(blob: &Blob, first: usize) -> Vec<Piece> {
    let piece = |number, offset, length, hash: &str| Piece {
        number,
        digest: blob.digest.clone(),
        offset,
        length,
        hash: hash.to_owned(),
    };
    match blob.frames[..] {
        [] if blob.length == 0 => Vec::new(),
        // The digest of a small raw one is that of its bytes.
        [] => vec![piece(first, 0, blob.length, &blob.digest)],
        [..] => (first..)
            .zip(&blob.frames)
            .map(|(number, one)| piece(number, one.offset, u64::from(one.length), &one.hash))
            .collect(),
    }
}

/// An image that is being put together.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    file: File,
    image: Image,
    /// All of them, by number.
    pieces: Vec<Piece>,
    /// Number of the first piece of each blob.
    firsts: HashMap<String, usize>,
    /// Which pieces are known to have come, by number.
    come: Vec<AtomicBool>,
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
        let (mut all, mut firsts) = (Vec::new(), HashMap::new());
        for blob in image.blobs() {
            firsts.insert(blob.digest.clone(), all.len());
            all.extend(pieces(blob, all.len()));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            image,
            firsts,
            come: all.iter().map(|_| AtomicBool::new(false)).collect(),
            pieces: all,
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
        for (piece, come) in self.pieces.iter().zip(&self.come) {
            let blob = self.blob(&piece.digest)?;
            if blob.size > max || come.load(Ordering::Acquire) {
                continue;
            }
            let hash = self.hash(blob.offset + piece.offset, piece.length)?;
            match hash.as_ref() == Some(&piece.hash) {
                true => come.store(true, Ordering::Release),
                false => missing.push(piece.clone()),
            }
        }
        Ok(missing)
    }

    fn hash(&self, at: u64, length: u64) -> Result<Option<String>> {
        let written = match rustix::fs::seek(&self.file, SeekFrom::Hole(at)) {
            Ok(hole) => hole >= at + length,
            // A filesystem that knows no holes.
            Err(rustix::io::Errno::INVAL) => true,
            Err(error) => return Err(Error::io("read", &self.path, error.into())),
        };
        if !written {
            return Ok(None);
        }
        let hash = Hasher::of_range(&self.file, at, length);
        hash.map(Some).map_err(Error::at("read", &self.path))
    }

    /// Takes the bytes of a piece.
    ///
    /// # Errors
    /// [`Error::WrongDigest`] when they are not what it says, or why they can't be
    /// written.
    pub fn put(&self, piece: &Piece, bytes: &[u8]) -> Result<()> {
        let actual = sha256(bytes);
        if actual != piece.hash {
            return Err(Error::WrongDigest {
                what: format!("a piece of blob {}", piece.digest),
                expected: piece.hash.clone(),
                actual,
            });
        }
        let blob = self.blob(&piece.digest)?;
        blob.check_range(piece.offset, bytes.len() as u64)?;
        self.file
            .write_all_at(bytes, blob.offset + piece.offset)
            .map_err(Error::at("write", &self.path))?;
        if let Some(come) = self.come.get(piece.number) {
            come.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Which pieces have come: eight to a byte, the first in its lowest bit.
    pub fn have(&self) -> Vec<u8> {
        let byte = |eight: &[AtomicBool]| {
            let bits = eight.iter().enumerate();
            bits.fold(0, |byte, (bit, come)| {
                byte | u8::from(come.load(Ordering::Acquire)) << bit
            })
        };
        self.come.chunks(8).map(byte).collect()
    }

    /// `length` bytes of a blob as it is stored, from `offset` on; none where not
    /// all of them have come.
    ///
    /// # Errors
    /// [`Error::MissingBlob`], [`Error::OutOfRange`], or why it can't be read.
    pub fn read(&self, digest: &str, offset: u64, length: usize) -> Result<Option<Vec<u8>>> {
        self.blob(digest)?.check_range(offset, length as u64)?;
        let end = offset + length as u64;
        let first = self.firsts.get(digest).copied().unwrap_or(usize::MAX);
        let of_blob = self.pieces.iter().zip(&self.come).skip(first);
        let missing = of_blob
            .take_while(|(piece, _)| piece.digest == digest && piece.offset < end)
            .any(|(piece, come)| {
                piece.offset + piece.length > offset && !come.load(Ordering::Acquire)
            });
        match missing {
            true => Ok(None),
            false => self.image.read_stored(digest, offset, length).map(Some),
        }
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
