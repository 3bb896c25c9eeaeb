//! The stored bytes of an image, for those who put the same file together.
//!
//! In: an open image. Out: ranges of its blobs as they lie in the file, and
//! its end, which says what all others must be. A copy on the same node may
//! leave out what is elsewhere on it: there the file has holes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::FallocateFlags;

use super::copy::copy;
use super::format::{Blob, FOOTER, PAGE, align};
use super::read::{Image, write_new};
use crate::{Error, Result, digest};

impl Image {
    /// Index and footer, which end the file.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn end(&self) -> Result<Vec<u8>> {
        // Bounded when the image was opened.
        let mut bytes = vec![0; self.footer().index_length as usize + FOOTER];
        self.file()
            .read_exact_at(&mut bytes, self.footer().index_offset)
            .map_err(Error::at("read", self.path()))?;
        Ok(bytes)
    }

    /// Digest of the index: files with the same one have the same bytes.
    pub fn index_digest(&self) -> String {
        digest::text(&self.footer().index_digest)
    }

    /// `length` bytes of a blob as it is stored, from `offset` on.
    ///
    /// # Errors
    /// [`Error::MissingBlob`], [`Error::OutOfRange`], or why it can't be read.
    pub fn read_stored(&self, digest: &str, offset: u64, length: usize) -> Result<Vec<u8>> {
        let blob = self.blob(digest).ok_or_else(|| Error::MissingBlob {
            digest: digest.into(),
        })?;
        blob.check_range(offset, length as u64)?;
        let mut bytes = vec![0; length];
        self.file()
            .read_exact_at(&mut bytes, blob.offset + offset)
            .map_err(Error::at("read", self.path()))?;
        Ok(bytes)
    }

    /// Writes the image to `dest`, which appears whole or not at all, with holes
    /// in place of the blobs that are `elsewhere`.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub fn keep(&self, dest: &Path, elsewhere: impl Fn(&Blob) -> bool) -> Result<()> {
        write_new(dest, 0o644, |out| {
            out.set_len(self.length())
                .map_err(Error::at("write", dest))?;
            let part = |offset: u64, length: u64| {
                let from = self.start() + offset;
                let copied = copy(&self.file().file, from, out, offset, length);
                match copied.map_err(Error::at("copy", self.path()))? == length {
                    true => Ok(()),
                    false => Err(Error::Truncated {
                        path: self.path().to_owned(),
                        length: offset,
                        expected: Some(self.length()),
                    }),
                }
            };
            part(0, align(self.elf().size) + PAGE)?;
            for blob in self.blobs().filter(|blob| !elsewhere(blob)) {
                part(blob.offset, blob.length)?;
            }
            let index = self.footer().index_offset;
            part(index, self.length() - index)
        })
    }

    /// Gives the room of blobs that are `elsewhere` back, where the filesystem
    /// can: the file gets holes.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn release(&self, elsewhere: impl Fn(&Blob) -> bool) -> Result<()> {
        let file = self.writable()?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for blob in self.blobs().filter(|blob| elsewhere(blob)) {
            // To keep it twice is no error.
            let _ = rustix::fs::fallocate(&file, flags, blob.offset, blob.length);
        }
        Ok(())
    }

    /// Fills the hole of a raw blob with its content, which is the file `from`.
    ///
    /// # Errors
    /// When either can't be read or written.
    pub fn restore(&self, blob: &Blob, from: &Path) -> Result<()> {
        let source = File::open(from).map_err(Error::at("open", from))?;
        let file = self.writable()?;
        let copied =
            copy(&source, 0, &file, blob.offset, blob.length).map_err(Error::at("copy", from))?;
        match copied == blob.length {
            true => Ok(()),
            false => Err(Error::WrongSize {
                what: from.display().to_string(),
                expected: blob.length,
                actual: copied,
            }),
        }
    }

    fn writable(&self) -> Result<File> {
        let opened = File::options().write(true).open(self.path());
        opened.map_err(Error::at("open", self.path()))
    }
}

impl Blob {
    /// Whether the blob, as it is stored, has this range.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok(()),
            _ => Err(Error::OutOfRange {
                digest: self.digest.clone(),
                offset,
                length,
                size: self.length,
            }),
        }
    }
}
