//! Files: digests, atomic writes, the cache's lock.
//!
//! In: paths and bytes. Out: whole files or none: whatever has its final name
//! is complete. Digests are `sha256:` and 64 hexadecimal digits.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use oci::Digest;
use oci::digest::Hasher;

/// Bytes that are written at once.
pub(crate) const CHUNK: usize = 1 << 20;

/// The digest of `bytes`.
pub(crate) fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// Hashes and counts what passes to the writer or from the reader `inner`.
pub(crate) struct Hashing<T> {
    inner: T,
    hasher: Hasher,
}

impl<T> Hashing<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self {
            inner,
            hasher: Hasher::default(),
        }
    }

    /// The digest and the count of bytes.
    pub(crate) fn finish(self) -> (String, u64) {
        let count = self.hasher.size();
        (self.hasher.finish().to_string(), count)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Digest and size of a file.
pub(crate) fn digest_file(path: &Path) -> Result<(String, u64)> {
    let context = || path.display().to_string();
    let mut file = File::open(path).with_context(context)?;
    let (digest, size) = oci::digest::copy(&mut file, &mut io::sink()).with_context(context)?;
    Ok((digest.to_string(), size))
}

/// Writes a whole file, which others may read.
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    Ok(host::atomic::write(path, bytes.as_ref(), 0o644)?)
}

/// The name under which the content of `path` is made, by whoever holds the
/// lock of its directory. What a killed run left there is overwritten.
pub(crate) fn beside(path: &Path) -> std::path::PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".tmp-{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(digest_file(&path).unwrap(), (digest(b"two"), 3));
        assert_eq!(
            digest(b""),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
