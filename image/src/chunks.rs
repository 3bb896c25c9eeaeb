//! Bytes that come in pieces, without copies between the stages.
//!
//! In: a blob of an image, or any reader. Out: chunks in order. A
//! [`BlobReader`] reports the end only after every frame's hash and the
//! digest of the whole were compared; whoever acts on single chunks before
//! must be ready to undo it.

use std::fmt;
use std::io::{self, Read};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::digest::{Hasher, sha256};
use crate::file::Window;
use crate::file::format::{Blob, Encoding};
use crate::ordered::{Ordered, threads_for};
use crate::{Error, Result};

/// Size in bytes of the pieces in which raw blobs and readers are read.
pub(crate) const CHUNK: usize = 1 << 20;

/// Buffers that are used again: fresh ones cost a page fault per 4 KiB.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    /// More are never in use at once by one pipeline.
    const KEEP: usize = 32;

    fn take(&self) -> Vec<u8> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    fn give(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < Self::KEEP {
            buffers.push(buffer);
        }
    }
}

/// A piece of a stream. Its buffer returns to its pool when the last owner
/// drops it.
pub struct Chunk {
    data: Vec<u8>,
    pool: Arc<Pool>,
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes)", self.data.len())
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.data));
    }
}

/// A stream of chunks.
pub trait Chunks: Send {
    /// The next piece, never empty; `None` after the last.
    ///
    /// # Errors
    /// When the source can't be read or is not what it should be. An error of
    /// this crate is inside the `io::Error`.
    fn next_chunk(&mut self) -> io::Result<Option<Arc<Chunk>>>;
}

/// Chunks of any reader.
#[derive(Debug)]
pub struct ReadChunks<R> {
    reader: R,
    pool: Arc<Pool>,
}

impl<R: Read + Send> ReadChunks<R> {
    /// Reads `reader` to its end.
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            pool: Arc::default(),
        }
    }
}

impl<R: Read + Send> Chunks for ReadChunks<R> {
    fn next_chunk(&mut self) -> io::Result<Option<Arc<Chunk>>> {
        let mut data = self.pool.take();
        (&mut self.reader)
            .take(CHUNK as u64)
            .read_to_end(&mut data)?;
        if data.is_empty() {
            return Ok(None);
        }
        Ok(Some(Arc::new(Chunk {
            data,
            pool: Arc::clone(&self.pool),
        })))
    }
}

/// What a worker needs to make chunk `i` of a blob.
struct Decoder {
    file: Arc<Window>,
    blob: Arc<Blob>,
    pool: Arc<Pool>,
    stored: Vec<u8>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decoder {
    fn decode(&mut self, job: usize) -> Result<Arc<Chunk>> {
        let blob = &self.blob;
        let what = || format!("piece {job} of blob {}", blob.digest);
        let read = |buffer: &mut Vec<u8>, offset: u64, length: usize| {
            buffer.resize(length, 0);
            self.file
                .read_exact_at(buffer, blob.offset + offset)
                .map_err(|error| Error::Document {
                    what: what(),
                    reason: format!("cannot be read from the image: {error}"),
                })
        };
        let mut data = self.pool.take();
        match blob.encoding {
            Encoding::Raw => {
                let offset = (job * CHUNK) as u64;
                let length = (blob.length - offset).min(CHUNK as u64) as usize;
                read(&mut data, offset, length)?;
            }
            Encoding::ZstdFrames => {
                let frame = blob.frames.get(job).ok_or_else(|| Error::Document {
                    what: what(),
                    reason: "is not in the index".into(),
                })?;
                read(&mut self.stored, frame.offset, frame.length as usize)?;
                decode_frame(
                    &mut self.zstd,
                    &self.stored,
                    frame.size,
                    &frame.hash,
                    &mut data,
                )
                .map_err(|reason| Error::Document {
                    what: what(),
                    reason,
                })?;
            }
        }
        Ok(Arc::new(Chunk {
            data,
            pool: Arc::clone(&self.pool),
        }))
    }
}

/// Compares the hash of a frame's stored bytes. An error is what is wrong, as a
/// fragment of a sentence.
pub(crate) fn check_hash(stored: &[u8], hash: &str) -> std::result::Result<(), String> {
    let actual = sha256(stored);
    match actual == hash {
        true => Ok(()),
        false => Err(format!("has hash {actual}, expected {hash}")),
    }
}

/// Compares the hash of the stored bytes, then decompresses them into `out`.
/// An error is what is wrong, as a fragment of a sentence.
pub(crate) fn decode_frame(
    zstd: &mut Option<zstd::bulk::Decompressor<'static>>,
    stored: &[u8],
    size: u32,
    hash: &str,
    out: &mut Vec<u8>,
) -> std::result::Result<(), String> {
    check_hash(stored, hash)?;
    let zstd = match zstd {
        Some(zstd) => zstd,
        None => zstd.insert(zstd::bulk::Decompressor::new().map_err(|e| e.to_string())?),
    };
    out.clear();
    out.reserve_exact(size as usize);
    // It writes no further than the capacity, which an index bounds.
    zstd.decompress_to_buffer(stored, out)
        .map_err(|e| format!("does not decompress: {e}"))?;
    if out.len() != size as usize {
        return Err(format!(
            "decompresses to {} bytes, expected {size}",
            out.len()
        ));
    }
    Ok(())
}

/// How many chunks a blob consists of.
fn pieces(blob: &Blob) -> usize {
    match blob.encoding {
        Encoding::Raw => blob.length.div_ceil(CHUNK as u64) as usize,
        Encoding::ZstdFrames => blob.frames.len(),
    }
}

enum Source {
    /// Small blobs: threads would cost more than they bring.
    Inline(Box<Decoder>, usize),
    Threads(Ordered<Result<Arc<Chunk>>>),
}

enum Whole {
    Inline(Hasher),
    Thread(SyncSender<Arc<Chunk>>, JoinHandle<String>),
    Done,
}

/// Verified content of one blob: read and decompressed ahead on threads.
///
/// Memory: a few chunks a thread. The end is told only after the digest of
/// the whole content was right.
pub struct BlobReader {
    blob: Arc<Blob>,
    source: Source,
    whole: Whole,
    /// Bytes given out.
    given: u64,
    /// For `Read`: the current chunk and what of it was read.
    current: Option<(Arc<Chunk>, usize)>,
}

impl fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobReader")
            .field("digest", &self.blob.digest)
            .finish_non_exhaustive()
    }
}

impl BlobReader {
    pub(crate) fn new(file: &Arc<Window>, blob: Arc<Blob>) -> Self {
        let pool = Arc::<Pool>::default();
        let decoder = || Decoder {
            file: Arc::clone(file),
            blob: Arc::clone(&blob),
            pool: Arc::clone(&pool),
            stored: Vec::new(),
            zstd: None,
        };
        let jobs = pieces(&blob);
        let (source, whole) = if jobs <= 1 {
            (
                Source::Inline(Box::new(decoder()), 0),
                Whole::Inline(Hasher::default()),
            )
        } else {
            let threads = threads_for(jobs);
            let ordered = Ordered::start(jobs, threads, || {
                let mut decoder = decoder();
                move |job| decoder.decode(job)
            });
            let (sender, receiver) = sync_channel::<Arc<Chunk>>(2);
            let thread = std::thread::spawn(move || {
                let mut hasher = Hasher::default();
                for chunk in receiver {
                    hasher.update(&chunk);
                }
                hasher.finish()
            });
            (Source::Threads(ordered), Whole::Thread(sender, thread))
        };
        Self {
            blob,
            source,
            whole,
            given: 0,
            current: None,
        }
    }

    fn next(&mut self) -> Result<Option<Arc<Chunk>>> {
        let chunk = match &mut self.source {
            Source::Inline(decoder, next) => {
                if *next < pieces(&self.blob) {
                    *next += 1;
                    Some(decoder.decode(*next - 1)?)
                } else {
                    None
                }
            }
            Source::Threads(ordered) => ordered.next().transpose()?,
        };
        if let Some(chunk) = chunk {
            match &mut self.whole {
                Whole::Inline(hasher) => hasher.update(&chunk),
                // It ends early only by a panic, which `join` below reports.
                Whole::Thread(sender, _) => drop(sender.send(Arc::clone(&chunk))),
                Whole::Done => {}
            }
            self.given += chunk.len() as u64;
            return Ok(Some(chunk));
        }
        let actual = match std::mem::replace(&mut self.whole, Whole::Done) {
            Whole::Inline(hasher) => hasher.finish(),
            Whole::Thread(sender, thread) => {
                drop(sender);
                thread.join().unwrap_or_default()
            }
            Whole::Done => return Ok(None),
        };
        let what = || format!("blob {}", self.blob.digest);
        if self.given != self.blob.size {
            let (expected, actual) = (self.blob.size, self.given);
            return Err(Error::WrongSize {
                what: what(),
                expected,
                actual,
            });
        }
        if actual != self.blob.digest {
            let expected = self.blob.digest.clone();
            return Err(Error::WrongDigest {
                what: what(),
                expected,
                actual,
            });
        }
        Ok(None)
    }
}

impl Chunks for BlobReader {
    fn next_chunk(&mut self) -> io::Result<Option<Arc<Chunk>>> {
        Ok(self.next()?)
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some((chunk, at)) = &mut self.current
                && *at < chunk.len()
            {
                let length = buffer.len().min(chunk.len() - *at);
                buffer[..length].copy_from_slice(&chunk[*at..*at + length]);
                *at += length;
                return Ok(length);
            }
            self.current = None;
            match self.next()? {
                Some(chunk) => self.current = Some((chunk, 0)),
                None => return Ok(0),
            }
        }
    }
}
