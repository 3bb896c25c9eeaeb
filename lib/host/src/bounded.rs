//! Reading files that somebody else wrote.
//!
//! In: a path and a limit. Out: at most that many bytes, else an error.

use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Largest file of the kernel or of `/etc` that is read, in bytes.
pub(crate) const MAX_TEXT: u64 = 16 << 20;

/// Reads a file of at most `limit` bytes. Files of `/proc` say a size of 0, so
/// the size is found out by reading.
///
/// # Errors
/// When it can't be read; of kind `FileTooLarge` when it is larger.
pub fn bytes(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(limit + 1)
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(Error::new(
            ErrorKind::FileTooLarge,
            format!("larger than {limit} bytes"),
        )),
        false => Ok(bytes),
    }
}

/// Reads a file of UTF-8 of at most `limit` bytes.
///
/// # Errors
/// As [`bytes`] has them, and when it is not UTF-8.
pub fn string(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(bytes(path, limit)?).map_err(Error::other)
}

/// Reads a file of text; bytes that are not UTF-8 are replaced.
pub(crate) fn text(path: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&bytes(path, MAX_TEXT)?).into_owned())
}
