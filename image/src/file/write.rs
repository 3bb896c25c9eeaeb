//! Writing an image.
//!
//! In: the program and blobs with their digests. Out: a file that appears at
//! its name whole or not at all, with the same bytes for the same inputs.
//! Raw blobs are read back and hashed on other threads, whole and in frames, while
//! the next ones are copied, so [`Writer::finish`] fails if one is not what its
//! digest says. What
//! the cache gives was verified when it entered and is only copied.
//!
//! The file is not synced: a build that loses power is run again, and an image
//! that was cut says so when it is opened.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::copy::copy;
use super::format::{
    Blob, Elf, Encoding, Footer, Frame, Index, MAX_FRAME, MAX_INDEX, align, head_page, index_hash,
};
use crate::digest::{Hasher, check, sha256};
use crate::encode::Cache;
use crate::{Error, Result};

/// Threads that hash: blobs are independent.
const HASHERS: usize = 2;

/// A part that another thread hashes.
struct Job {
    what: String,
    offset: u64,
    length: u64,
    /// The digest it must have; the ELF's is not known before.
    expected: Option<String>,
}

/// What a thread that hashes has found.
#[derive(Debug, Default)]
struct Hashed {
    /// Digest of the ELF, if it was this thread that hashed it.
    elf: Option<String>,
    /// Frames of raw blobs, by digest.
    frames: HashMap<String, Vec<Frame>>,
}

/// An image that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Of the image, in bytes.
    pub length: u64,
    /// Digest of the program at its beginning.
    pub elf: String,
}

/// An image that is being written. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    temp: tempfile::NamedTempFile,
    file: Arc<File>,
    /// Where in the file the image begins; all other positions count from it.
    start: u64,
    position: u64,
    elf_size: u64,
    blobs: Vec<Blob>,
    seen: HashSet<String>,
    cache: Option<Cache>,
    jobs: Option<Sender<Job>>,
    hashing: Vec<JoinHandle<Result<Hashed>>>,
}

impl Writer {
    /// Begins an image that will be at `path`, with the program at `elf`. A
    /// file beside `path` holds it until [`Writer::finish`].
    ///
    /// # Errors
    /// When either can't be opened.
    pub fn create(path: impl Into<PathBuf>, elf: &Path) -> Result<Self> {
        Self::create_after(path, elf, 0)
    }

    /// The same, with room for `start` bytes before the image, for whoever
    /// puts it into an archive without copying it.
    ///
    /// # Errors
    /// When either can't be opened.
    pub fn create_after(path: impl Into<PathBuf>, elf: &Path, start: u64) -> Result<Self> {
        let path = path.into();
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let temp = tempfile::Builder::new()
            .prefix(crate::PARTIAL)
            .tempfile_in(parent)
            .map_err(Error::at("create a file in", parent))?;
        let file = Arc::new(
            temp.as_file()
                .try_clone()
                .map_err(Error::at("open", &path))?,
        );
        let (sender, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let hashing = (0..HASHERS)
            .map(|_| {
                let (file, receiver) = (Arc::clone(&file), Arc::clone(&receiver));
                std::thread::spawn(move || hash(&file, &receiver))
            })
            .collect();
        let mut writer = Self {
            path,
            temp,
            file,
            start,
            position: 0,
            elf_size: 0,
            blobs: Vec::new(),
            seen: HashSet::new(),
            cache: None,
            jobs: Some(sender),
            hashing,
        };
        let source = File::open(elf).map_err(Error::at("open", elf))?;
        writer.elf_size = writer.copy(&source, elf)?;
        let length = writer.elf_size;
        writer.check_later(Job {
            what: elf.display().to_string(),
            offset: 0,
            length,
            expected: None,
        });
        writer.position = align(writer.position);
        writer.put(&head_page(length))?;
        Ok(writer)
    }

    /// Where blobs with [`Encoding::ZstdFrames`] are compressed. Needed before
    /// the first such blob.
    #[must_use]
    pub fn with_cache(mut self, cache: Cache) -> Self {
        self.cache = Some(cache);
        self
    }

    /// Adds the blob whose content is the file at `path`. One that is there
    /// already is not added again.
    ///
    /// # Errors
    /// When it can't be read, or is not what `digest` says: a raw blob's
    /// digest is told by [`Writer::finish`] at the latest.
    pub fn add_blob_file(
        &mut self,
        path: &Path,
        digest: &str,
        media_type: &str,
        encoding: Encoding,
    ) -> Result<()> {
        check(digest)?;
        if self.seen.contains(digest) {
            return Ok(());
        }
        let (source, size, frames) = match encoding {
            Encoding::Raw => {
                let source = File::open(path).map_err(Error::at("open", path))?;
                let size = source.metadata().map_err(Error::at("read", path))?.len();
                (source, size, Vec::new())
            }
            Encoding::ZstdFrames => {
                let cache = self.cache.as_ref().ok_or_else(|| Error::Document {
                    what: format!("blob {digest}"),
                    reason: "the writer has no cache to compress it in".into(),
                })?;
                let encoded = cache.encode(path, digest)?;
                let path = &encoded.path;
                let source = File::open(path).map_err(Error::at("open", path))?;
                (source, encoded.size, encoded.frames)
            }
        };
        let offset = align(self.position);
        self.position = offset;
        let length = self.copy(&source, path)?;
        if encoding == Encoding::Raw {
            let (what, expected) = (path.display().to_string(), Some(digest.to_owned()));
            self.check_later(Job {
                what,
                offset,
                length,
                expected,
            });
        }
        self.push(Blob {
            digest: digest.to_owned(),
            size,
            media_type: media_type.to_owned(),
            encoding,
            offset,
            length,
            frames,
        });
        Ok(())
    }

    /// Adds a small blob; returns its digest.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn add_blob_bytes(&mut self, bytes: &[u8], media_type: &str) -> Result<String> {
        let digest = sha256(bytes);
        if !self.seen.contains(&digest) {
            let offset = align(self.position);
            self.position = offset;
            self.put(bytes)?;
            let size = bytes.len() as u64;
            self.push(Blob {
                digest: digest.clone(),
                size,
                media_type: media_type.to_owned(),
                encoding: Encoding::Raw,
                offset,
                length: size,
                frames: Vec::new(),
            });
        }
        Ok(digest)
    }

    /// Completes the image: index, footer, mode 0755, its name. Returns its
    /// length and the digest of the program.
    ///
    /// # Errors
    /// [`Error::WrongDigest`] when a blob was not what was said.
    pub fn finish(mut self, root: &str, platform: &str) -> Result<Written> {
        drop(self.jobs.take());
        let mut digest = String::new();
        let mut frames = HashMap::new();
        for thread in self.hashing.drain(..) {
            match thread.join() {
                Ok(hashed) => {
                    let hashed = hashed?;
                    digest = hashed.elf.unwrap_or(digest);
                    frames.extend(hashed.frames);
                }
                Err(_) => {
                    let error = std::io::Error::other("a hashing thread ended early");
                    return Err(Error::io("write", &self.path, error));
                }
            }
        }
        for blob in &mut self.blobs {
            if let Some(frames) = frames.remove(&blob.digest) {
                blob.frames = frames;
            }
        }
        let index = Index {
            platform: platform.into(),
            elf: Elf {
                digest: digest.clone(),
                size: self.elf_size,
            },
            root: root.into(),
            blobs: std::mem::take(&mut self.blobs),
        };
        let text = serde_json::to_vec(&index)
            .map_err(|e| Error::io("write", &self.path, std::io::Error::other(e)))?;
        if text.len() as u64 > MAX_INDEX {
            let what = format!("the index of {}", self.path.display());
            return Err(Error::TooLarge {
                what,
                size: text.len() as u64,
                limit: MAX_INDEX,
            });
        }
        let index_offset = align(self.position);
        // What no reader would open is not written.
        Index::parse(&text, index_offset).map_err(|reason| Error::Document {
            what: format!("the index of {}", self.path.display()),
            reason,
        })?;
        self.position = index_offset;
        self.put(&text)?;
        let footer = Footer {
            index_offset,
            index_length: text.len() as u64,
            total: self.position + super::format::FOOTER as u64,
            index_digest: index_hash(&text),
        };
        self.put(&footer.to_bytes())?;
        let mode = std::fs::Permissions::from_mode(0o755);
        self.file
            .set_permissions(mode)
            .map_err(Error::at("set the mode of", &self.path))?;
        let path = self.path;
        self.temp
            .persist(&path)
            .map_err(|e| Error::io("write", &path, e.error))?;
        Ok(Written {
            length: footer.total,
            elf: digest,
        })
    }

    fn push(&mut self, blob: Blob) {
        self.seen.insert(blob.digest.clone());
        self.blobs.push(blob);
    }

    fn check_later(&self, mut job: Job) {
        job.offset += self.start;
        if let Some(jobs) = &self.jobs {
            // It ends early only with an error, which `finish` returns.
            let _ = jobs.send(job);
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, self.start + self.position)
            .map_err(Error::at("write", &self.path))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Copies all of `source` to the current position.
    fn copy(&mut self, source: &File, name: &Path) -> Result<u64> {
        let to = self.start + self.position;
        let copied = copy(source, 0, &self.file, to, u64::MAX).map_err(Error::at("copy", name))?;
        self.position += copied;
        Ok(copied)
    }
}

/// Hashes what was written and compares.
fn hash(file: &File, jobs: &Mutex<Receiver<Job>>) -> Result<Hashed> {
    let mut hashed = Hashed::default();
    let mut buffer = Vec::new();
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else {
            return Ok(hashed);
        };
        let (actual, frames) = hash_one(file, &job, &mut buffer)
            .map_err(Error::at("read back", Path::new(&job.what)))?;
        match job.expected {
            Some(expected) if expected != actual => {
                return Err(Error::WrongDigest {
                    what: job.what,
                    expected,
                    actual,
                });
            }
            Some(digest) => drop(hashed.frames.insert(digest, frames)),
            None => hashed.elf = Some(actual),
        }
    }
}

/// The digest of what a job is about, and its frames where it is a large blob.
fn hash_one(file: &File, job: &Job, buffer: &mut Vec<u8>) -> std::io::Result<(String, Vec<Frame>)> {
    let mut hasher = Hasher::default();
    let mut frames = Vec::new();
    let has_frames = job.expected.is_some() && job.length > u64::from(MAX_FRAME);
    for offset in (0..job.length).step_by(MAX_FRAME as usize) {
        let length = (job.length - offset).min(u64::from(MAX_FRAME)) as u32;
        buffer.resize(length as usize, 0);
        file.read_exact_at(buffer, job.offset + offset)?;
        hasher.update(buffer);
        if has_frames {
            frames.push(Frame {
                offset,
                length,
                size: length,
                hash: sha256(buffer),
            });
        }
    }
    Ok((hasher.finish(), frames))
}
