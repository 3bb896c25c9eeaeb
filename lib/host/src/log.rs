//! An append-only file of checksummed JSON lines.
//!
//! In: records that serde can write. Out: the same records after any crash, but
//! for the last one where its write didn't end. The first line names format and
//! version. A line is `{"crc32":"<8 hex digits>","record":<JSON>}`; the checksum
//! is of the record's bytes as they stand. Only the last line may be damaged
//! (it is dropped when the file is opened for writing); damage elsewhere is an
//! error, as what follows can't be trusted. One writer at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bounded;

/// How often a lock that somebody holds is tried again.
const LOCK_TRIES: usize = 10;
/// Wait between these tries.
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// Largest log that is read, in bytes.
const MAX_LOG: u64 = 256 << 20;

/// Why a log can't be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// A line before the last is damaged.
    #[error("line {line} of {path} is damaged: {what}; restore the file from a backup")]
    Damaged {
        /// The log.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// It is of another kind or of a later program.
    #[error("{path} is `{found}`, expected `{expected}`; use the version of gravity that wrote it")]
    Format {
        /// The log.
        path: PathBuf,
        /// Format and version of the file.
        found: String,
        /// Format and version that are known.
        expected: String,
    },
    /// Somebody else writes to it.
    #[error("{path} is in use by another process; wait for its end")]
    Busy {
        /// The log.
        path: PathBuf,
    },
    /// The file can't be read or written.
    #[error("{what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The log.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A record that JSON can't hold.
    #[error("write a record to {path}")]
    Record {
        /// The log.
        path: PathBuf,
        /// What serde said.
        source: serde_json::Error,
    },
}

/// Name and version of what a log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Name, such as `gravity.operation.journal`.
    pub name: &'static str,
    /// Version of the records.
    pub version: u32,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
}

/// A log that is open for appending.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    /// Bytes that are whole records; what lies behind was torn.
    length: u64,
}

/// Records of a log, and how many bytes of it are whole.
struct Parsed<R> {
    records: Vec<R>,
    length: u64,
}

impl Log {
    /// Opens a log for appending, and reads what it holds. A missing one is
    /// made, with its directories; a torn last record is cut off.
    ///
    /// # Errors
    /// When it is damaged, of another format, or open elsewhere.
    pub fn open<R: DeserializeOwned>(
        path: &Path,
        format: Format,
    ) -> Result<(Self, Vec<R>), LogError> {
        let io = |what| {
            move |source| LogError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let directory = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(directory).map_err(io("create the directory of"))?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(io("open"))?;
        // A program that is about to start holds all that its parent had open.
        let mut tries = 0..LOCK_TRIES;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if tries.next().is_some() => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(LogError::Busy {
                        path: path.to_owned(),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
            }
        }
        let bytes = bounded::bytes(path, MAX_LOG).map_err(io("read"))?;
        let Parsed { records, length } = parse(path, &bytes, format)?;
        let mut log = Self {
            path: path.to_owned(),
            file,
            length,
        };
        log.cut().map_err(io("truncate"))?;
        if length == 0 {
            log.append(&Header {
                format: format.name.into(),
                version: format.version,
            })?;
            crate::atomic::sync_directory(directory).map_err(io("sync the directory of"))?;
        }
        Ok((log, records))
    }

    /// Reads a log that somebody may be writing to. A missing one is empty.
    ///
    /// # Errors
    /// When it is damaged or of another format.
    pub fn read<R: DeserializeOwned>(path: &Path, format: Format) -> Result<Vec<R>, LogError> {
        match bounded::bytes(path, MAX_LOG) {
            Ok(bytes) => Ok(parse(path, &bytes, format)?.records),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(LogError::Io {
                what: "read",
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Appends a record. It is on disk when this returns.
    ///
    /// # Errors
    /// When the disk is full or fails; the log is as before then.
    pub fn append<R: Serialize>(&mut self, record: &R) -> Result<(), LogError> {
        self.append_all(std::slice::from_ref(record))
    }

    /// Appends records with one wait for the disk: all are on it when this returns,
    /// and of a crash meanwhile only the first ones may be left.
    ///
    /// # Errors
    /// When the disk is full or fails; the log is as before then.
    pub fn append_all<R: Serialize>(&mut self, records: &[R]) -> Result<(), LogError> {
        let mut lines = String::new();
        for record in records {
            let json = serde_json::to_string(record).map_err(|source| LogError::Record {
                path: self.path.clone(),
                source,
            })?;
            lines += &line(&json);
        }
        if let Err(source) = self.write(lines.as_bytes()) {
            // Half a record would be damage once another one follows it.
            drop(self.cut());
            return Err(LogError::Io {
                what: "append to",
                path: self.path.clone(),
                source,
            });
        }
        self.length += lines.len() as u64;
        Ok(())
    }

    fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        // An earlier cut may have failed with the disk that failed the write.
        self.cut()?;
        self.file.write_all(lines)?;
        self.file.sync_data()
    }

    fn cut(&mut self) -> std::io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length))?;
        Ok(())
    }
}

const PREFIX: &str = "{\"crc32\":\"";
const MIDDLE: &str = "\",\"record\":";

fn line(json: &str) -> String {
    format!(
        "{PREFIX}{:08x}{MIDDLE}{json}}}\n",
        crc32fast::hash(json.as_bytes())
    )
}

/// The record in a line without its line break.
fn record(line: &[u8]) -> Result<&[u8], &'static str> {
    let rest = line
        .strip_prefix(PREFIX.as_bytes())
        .ok_or("it is no record")?;
    let (checksum, rest) = rest.split_at_checked(8).ok_or("it is cut off")?;
    let rest = rest
        .strip_prefix(MIDDLE.as_bytes())
        .ok_or("it is no record")?;
    let json = rest.strip_suffix(b"}").ok_or("it is cut off")?;
    match format!("{:08x}", crc32fast::hash(json)).as_bytes() == checksum {
        true => Ok(json),
        false => Err("its checksum is wrong"),
    }
}

fn parse<R: DeserializeOwned>(
    path: &Path,
    bytes: &[u8],
    format: Format,
) -> Result<Parsed<R>, LogError> {
    let mut parsed = Parsed {
        records: Vec::new(),
        length: 0,
    };
    let mut rest = bytes;
    let mut number = 0;
    while !rest.is_empty() {
        number += 1;
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            break;
        };
        let (line, after) = rest.split_at(end + 1);
        let damaged = |what: String| LogError::Damaged {
            path: path.to_owned(),
            line: number,
            what,
        };
        let json = match record(&line[..end]) {
            Ok(json) => json,
            // The last write before a loss of power.
            Err(_) if after.is_empty() => break,
            Err(what) => return Err(damaged(what.into())),
        };
        if number == 1 {
            let header: Header =
                serde_json::from_slice(json).map_err(|e| damaged(e.to_string()))?;
            if header.format != format.name || header.version > format.version {
                return Err(LogError::Format {
                    path: path.to_owned(),
                    found: format!("{} {}", header.format, header.version),
                    expected: format!("{} {}", format.name, format.version),
                });
            }
        } else {
            parsed
                .records
                .push(serde_json::from_slice(json).map_err(|e| damaged(e.to_string()))?);
        }
        parsed.length += line.len() as u64;
        rest = after;
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Format = Format {
        name: "test.log",
        version: 1,
    };

    fn filled(path: &Path) -> Vec<u8> {
        let (mut log, records) = Log::open::<String>(path, FORMAT).unwrap();
        assert!(records.is_empty());
        log.append(&"one").unwrap();
        log.append_all(&["two\nlines", "three"]).unwrap();
        log.append_all::<String>(&[]).unwrap();
        std::fs::read(path).unwrap()
    }

    fn put(path: &Path, bytes: &[u8]) {
        crate::atomic::write(path, bytes, 0o600).unwrap();
    }

    #[test]
    fn lines_are_json_and_one_writer_holds_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/log");
        let bytes = filled(&path);
        for line in String::from_utf8(bytes).unwrap().lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(value["record"].is_string() || value["record"]["format"] == "test.log");
        }
        let (_log, records) = Log::open::<String>(&path, FORMAT).unwrap();
        assert_eq!(records, ["one", "two\nlines", "three"]);
        assert!(matches!(
            Log::open::<String>(&path, FORMAT),
            Err(LogError::Busy { .. })
        ));
        assert_eq!(Log::read::<String>(&path, FORMAT).unwrap().len(), 3);
    }

    #[test]
    fn a_file_cut_anywhere_gives_a_prefix_and_can_be_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let bytes = filled(&path);
        for cut in 0..bytes.len() {
            put(&path, &bytes[..cut]);
            let (mut log, records) = Log::open::<String>(&path, FORMAT).unwrap();
            assert!(
                ["one", "two\nlines", "three"]
                    .iter()
                    .zip(&records)
                    .all(|(a, b)| a == b)
            );
            assert!(records.len() < 3);
            log.append(&"new").unwrap();
            drop(log);
            let again = Log::read::<String>(&path, FORMAT).unwrap();
            assert_eq!(again.len(), records.len() + 1);
            assert_eq!(again.last().unwrap(), "new");
        }
    }

    #[test]
    fn every_flipped_byte_before_the_last_record_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let bytes = filled(&path);
        let last = bytes[..bytes.len() - 1]
            .iter()
            .rposition(|b| *b == b'\n')
            .unwrap();
        for index in 0..last {
            let mut damaged = bytes.clone();
            damaged[index] ^= 0x20;
            put(&path, &damaged);
            let result = Log::read::<String>(&path, FORMAT);
            assert!(
                matches!(result, Err(LogError::Damaged { .. })),
                "{index}: {result:?}"
            );
        }
    }

    #[test]
    fn other_formats_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        put(
            &path,
            line(r#"{"format":"test.log","version":2}"#).as_bytes(),
        );
        let error = Log::read::<String>(&path, FORMAT).unwrap_err().to_string();
        assert!(
            error.contains("`test.log 2`, expected `test.log 1`"),
            "{error}"
        );
    }
}
