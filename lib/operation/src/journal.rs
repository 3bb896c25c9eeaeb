//! The journal of an operation.
//!
//! In: changes of phases. Out: a file of one checksummed JSON record a line,
//! on disk before `append` returns. A last line that was torn by a crash is
//! cut off; damage before it is an error, as nobody knows what stood there.
//! One process writes at a time.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::State;

/// Largest journal that is read, in bytes: thousands of nodes.
const MAX_LENGTH: u64 = 256 << 20;

/// A change of a phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Counts from 1.
    pub sequence: u64,
    /// Identity of the phase.
    pub phase: String,
    /// Its new state.
    pub state: State,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When, in seconds since 1970.
    pub time: u64,
}

/// Why a journal can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The file can't be opened, read or written.
    #[error("{what} the journal {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Another process writes it.
    #[error("another process writes the journal {0}")]
    Busy(PathBuf),
    /// A record is not what was written.
    #[error("the journal {path} is damaged at line {line}; restore it, or take the node back with `gravity leave --force`")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counts from 1.
        line: usize,
    },
}

/// A journal that is open for writing.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Flock<File>,
    records: Vec<Record>,
}

impl Journal {
    /// Opens the journal, or makes an empty one.
    ///
    /// # Errors
    /// When another process has it open, or it is damaged.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let failed = |what| move |source| JournalError::File { what, path: path.to_owned(), source };
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(failed("open"))?;
        let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| JournalError::Busy(path.to_owned()))?;
        let text = read(&mut file, path)?;
        let (records, good) = parse(&text, path)?;
        file.set_len(good).map_err(failed("cut"))?;
        file.seek(SeekFrom::Start(good)).map_err(failed("write"))?;
        file.sync_all().map_err(failed("write"))?;
        Ok(Self { path: path.to_owned(), file, records })
    }

    /// Reads the records of a journal that others may write. There are none
    /// where there is no file.
    ///
    /// # Errors
    /// When it can't be read or is damaged.
    pub fn read(path: &Path) -> Result<Vec<Record>, JournalError> {
        match File::open(path) {
            Ok(mut file) => Ok(parse(&read(&mut file, path)?, path)?.0),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(JournalError::File { what: "open", path: path.to_owned(), source }),
        }
    }

    /// Records a change. It is on disk when this returns.
    ///
    /// # Errors
    /// When it can't be written, such as on a full disk; the journal is then as
    /// it was.
    pub fn append(
        &mut self,
        phase: &str,
        state: State,
        error: Option<String>,
    ) -> Result<(), JournalError> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let record = Record {
            sequence: self.records.len() as u64 + 1,
            phase: phase.to_owned(),
            state,
            error,
            time: now.map_or(0, |time| time.as_secs()),
        };
        let failed = |source| JournalError::File { what: "write", path: self.path.clone(), source };
        let line = line(&record).map_err(failed)?;
        let start = self.file.stream_position().map_err(failed)?;
        if let Err(error) = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data()) {
            // Half a record would be taken for damage once another follows.
            drop(self.file.set_len(start));
            drop(self.file.seek(SeekFrom::Start(start)));
            return Err(failed(error));
        }
        self.records.push(record);
        Ok(())
    }

    /// All records, oldest first.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The last state that was recorded of a phase.
    pub fn last_state(&self, phase: &str) -> Option<State> {
        self.records.iter().rev().find(|record| record.phase == phase).map(|record| record.state)
    }
}

/// A line: checksum, space, JSON.
fn line(record: &Record) -> std::io::Result<String> {
    let json = serde_json::to_string(record)?;
    Ok(format!("{} {json}\n", checksum(&json)))
}

/// First 8 bytes of the SHA-256, as hexadecimal digits.
fn checksum(json: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, json.as_bytes());
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn read(file: &mut File, path: &Path) -> Result<String, JournalError> {
    let mut bytes = Vec::new();
    file.take(MAX_LENGTH)
        .read_to_end(&mut bytes)
        .map_err(|source| JournalError::File { what: "read", path: path.to_owned(), source })?;
    // A torn write may end within a character.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The records, and how many bytes of the text are good.
fn parse(text: &str, path: &Path) -> Result<(Vec<Record>, u64), JournalError> {
    let mut records: Vec<Record> = Vec::new();
    let mut good = 0;
    let mut lines = text.split_inclusive('\n').enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let record = line.strip_suffix('\n').and_then(|line| {
            let (sum, json) = line.split_once(' ')?;
            (checksum(json) == sum).then(|| serde_json::from_str::<Record>(json).ok())?
        });
        match record {
            Some(record) if record.sequence == records.len() as u64 + 1 => {
                records.push(record);
                good += line.len() as u64;
            }
            // Torn by a crash: only the last line can be.
            None if lines.peek().is_none() => break,
            _ => return Err(JournalError::Damaged { path: path.to_owned(), line: number + 1 }),
        }
    }
    Ok((records, good))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let mut journal = Journal::open(&path).unwrap();
        journal.append("/a", State::InProgress, None).unwrap();
        journal.append("/a", State::Failed, Some("no\nspace".into())).unwrap();
        (directory, path)
    }

    #[test]
    fn a_torn_last_record_is_cut_off_wherever_it_was_torn() {
        let (_directory, path) = written();
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for length in first..whole.len() {
            host::atomic::write(&path, &whole[..length], 0o600).unwrap();
            let mut journal = Journal::open(&path).unwrap();
            assert_eq!(journal.records().len(), 1, "{length}");
            journal.append("/b", State::Completed, None).unwrap();
            drop(journal);
            assert_eq!(Journal::read(&path).unwrap()[1].phase, "/b");
        }
    }

    #[test]
    fn a_flipped_byte_before_the_end_is_damage() {
        let (_directory, path) = written();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[30] ^= 1;
        host::atomic::write(&path, &bytes, 0o600).unwrap();
        assert!(matches!(Journal::open(&path), Err(JournalError::Damaged { line: 1, .. })));
        assert!(matches!(Journal::read(&path), Err(JournalError::Damaged { line: 1, .. })));
    }

    #[test]
    fn one_process_writes_at_a_time() {
        let (_directory, path) = written();
        let _first = Journal::open(&path).unwrap();
        assert!(matches!(Journal::open(&path), Err(JournalError::Busy(_))));
        assert_eq!(Journal::read(&path).unwrap().len(), 2);
    }

    /// Journals of format version 1 stay readable.
    #[test]
    fn version_1_is_read() {
        let text = concat!(
            r#"c1dac4f9a5ab8e10 {"sequence":1,"phase":"/a","state":"completed","time":7}"#,
            "\n"
        );
        let json = text.split_once(' ').unwrap().1.trim_end();
        let fixed = format!("{} {json}\n", checksum(json));
        let (records, _) = parse(&fixed, Path::new("x")).unwrap();
        assert_eq!(records[0].state, State::Completed);
    }
}
