//! How uncompressed blobs are compressed, and the cache of that.
//!
//! In: a file and its digest. Out: independent zstd frames of at most 1 MiB of
//! content, made in parallel; the same content, level and zstd version give
//! the same bytes.
//!
//! The cache directory belongs to the user who builds, with mode 0700, and is
//! trusted: content is verified against its digest when it enters, files appear
//! whole or not at all, and a warm build only copies them (hashing would take
//! longer than that). A disk that rots is found by [`crate::Image::verify`] and
//! by whoever reads the blob; remove the directory then.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::{self, Hasher, sha256};
use crate::file::format::{Frame, check_frames};
use crate::ordered::{Ordered, threads_for};
use crate::{Error, Result};

/// Level of zstd: more costs build time that the size does not pay back.
const LEVEL: i32 = 3;
/// Content bytes of a frame. Small ones stay in a core's cache between
/// decompression and use, and lose about 1 % of the ratio to 4 MiB.
const FRAME: usize = 1 << 20;
/// Most bytes of an entry's description.
const MAX_ENTRY: u64 = 16 << 20;

/// A directory of compressed blobs.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
    level: i32,
}

/// A compressed blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoded {
    /// Digest of the content.
    pub digest: String,
    /// Size of the content in bytes.
    pub size: u64,
    /// Size compressed, in bytes.
    pub length: u64,
    /// The frames, of which the file at [`Encoded::path`] consists.
    pub frames: Vec<Frame>,
    /// File with the compressed bytes.
    #[serde(skip)]
    pub path: PathBuf,
}

impl Cache {
    /// Opens or makes the cache at `dir`.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(Error::at("create", &dir))?;
        Ok(Self { dir, level: LEVEL })
    }

    /// Compresses the file at `path`, or finds what was compressed before.
    ///
    /// # Errors
    /// [`Error::WrongDigest`] when the file is not what `digest` says.
    pub fn encode(&self, path: &Path, digest: &str) -> Result<Encoded> {
        let hex = digest::check(digest)?;
        // Another version of zstd may give other bytes.
        let zstd = zstd::zstd_safe::version_number();
        let name = format!("{hex}-zstd{zstd}-level{}", self.level);
        let data = self.dir.join(format!("{name}.frames"));
        let entry = self.dir.join(format!("{name}.json"));
        if let Some(encoded) = load(&entry, &data, digest) {
            return Ok(encoded);
        }
        let mut temp = self.temp()?;
        let mut encoded = compress(path, digest, self.level, temp.as_file_mut())?;
        temp.persist(&data)
            .map_err(|e| Error::io("write", &data, e.error))?;
        let text = serde_json::to_vec(&encoded)
            .map_err(|e| Error::io("write", &entry, std::io::Error::other(e)))?;
        // Written last: the entry exists only when its data does.
        let mut temp = self.temp()?;
        temp.write_all(&text).map_err(Error::at("write", &entry))?;
        temp.persist(&entry)
            .map_err(|e| Error::io("write", &entry, e.error))?;
        encoded.path = data;
        Ok(encoded)
    }

    fn temp(&self) -> Result<tempfile::NamedTempFile> {
        tempfile::Builder::new()
            .prefix(crate::PARTIAL)
            .tempfile_in(&self.dir)
            .map_err(Error::at("create a file in", &self.dir))
    }
}

/// An entry that is whole; any other is made again.
fn load(entry: &Path, data: &Path, digest: &str) -> Option<Encoded> {
    if std::fs::metadata(entry).ok()?.len() > MAX_ENTRY {
        return None;
    }
    let mut encoded: Encoded = serde_json::from_slice(&std::fs::read(entry).ok()?).ok()?;
    check_frames(&encoded.frames, encoded.length, encoded.size).ok()?;
    let whole = encoded.digest == digest
        && std::fs::metadata(data).is_ok_and(|meta| meta.len() == encoded.length);
    encoded.path = data.to_owned();
    whole.then_some(encoded)
}

/// Compresses the file at `path` into `out`.
fn compress(path: &Path, digest: &str, level: i32, out: &mut File) -> Result<Encoded> {
    let file = Arc::new(File::open(path).map_err(Error::at("open", path))?);
    let size = file.metadata().map_err(Error::at("read", path))?.len();
    let jobs = size.div_ceil(FRAME as u64) as usize;
    let ordered = Ordered::start(jobs, threads_for(jobs), || {
        let file = Arc::clone(&file);
        let mut compressor = None;
        move |job: usize| -> std::io::Result<(Vec<u8>, Vec<u8>, String)> {
            let offset = (job * FRAME) as u64;
            let mut content = vec![0; (size - offset).min(FRAME as u64) as usize];
            file.read_exact_at(&mut content, offset)?;
            let compressor = match &mut compressor {
                Some(compressor) => compressor,
                None => compressor.insert(zstd::bulk::Compressor::new(level)?),
            };
            let stored = compressor.compress(&content)?;
            let hash = sha256(&stored);
            Ok((content, stored, hash))
        }
    });
    let mut hasher = Hasher::default();
    let mut frames = Vec::with_capacity(jobs);
    let mut length = 0;
    for result in ordered {
        let (content, stored, hash) = result.map_err(Error::at("compress", path))?;
        hasher.update(&content);
        out.write_all(&stored)
            .map_err(Error::at("write the compressed form of", path))?;
        frames.push(Frame {
            offset: length,
            length: stored.len() as u32,
            size: content.len() as u32,
            hash,
        });
        length += stored.len() as u64;
    }
    let actual = hasher.finish();
    if actual != digest {
        let (what, expected) = (path.display().to_string(), digest.to_owned());
        return Err(Error::WrongDigest {
            what,
            expected,
            actual,
        });
    }
    Ok(Encoded {
        digest: actual,
        size,
        length,
        frames,
        path: PathBuf::new(),
    })
}
