//! What has happened to phases, on disk.
//!
//! In: a phase and its new state. Out: the same after any crash, but for a last
//! record whose write didn't end: nothing was done on its strength. One writer
//! at a time; readers at any time.

use std::path::{Path, PathBuf};

use host::log::{Format, Log, LogError};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::State;

const FORMAT: Format = Format {
    name: "gravity.operation.journal",
    version: 1,
};

/// One change of a leaf's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Number of the record, from 1 without gaps.
    pub sequence: u64,
    /// Id of the phase.
    pub phase: String,
    /// Its state from now on.
    pub state: State,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When.
    pub time: Timestamp,
}

/// Why a journal can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The file is damaged, in use, or can't be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A record is missing.
    #[error(
        "{path} is damaged: record {expected} is followed by {found}; restore the file from a backup"
    )]
    Gap {
        /// The journal.
        path: PathBuf,
        /// Number of the last good record.
        expected: u64,
        /// Number of the record behind it.
        found: u64,
    },
}

/// A journal that is open for appending.
#[derive(Debug)]
pub struct Journal {
    log: Log,
    records: Vec<Record>,
}

impl Journal {
    /// Opens the journal at `path`; a missing one is made, with its
    /// directories.
    ///
    /// # Errors
    /// When it is damaged or another process has it open.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let (log, records) = Log::open(path, FORMAT)?;
        check(path, &records)?;
        Ok(Self { log, records })
    }

    /// Reads a journal that somebody may be writing to. A missing one is empty.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn read(path: &Path) -> Result<Vec<Record>, JournalError> {
        let records = Log::read(path, FORMAT)?;
        check(path, &records)?;
        Ok(records)
    }

    /// Appends a record for each change of a phase's state, with why it failed. All
    /// are on disk when this returns.
    ///
    /// # Errors
    /// When the disk is full or fails; then there is none of them.
    pub fn append(
        &mut self,
        changes: &[(&str, State, Option<String>)],
    ) -> Result<(), JournalError> {
        let time = Timestamp::now();
        let record =
            |(sequence, (phase, state, error)): (u64, &(&str, State, Option<String>))| Record {
                sequence,
                phase: (*phase).to_owned(),
                state: *state,
                error: error.clone(),
                time,
            };
        let next = self.records.len() as u64 + 1;
        let records: Vec<_> = (next..).zip(changes).map(record).collect();
        self.log.append_all(&records)?;
        self.records.extend(records);
        Ok(())
    }

    /// All records, in order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The last recorded state of a phase.
    pub fn last_state(&self, phase: &str) -> Option<State> {
        self.records
            .iter()
            .rev()
            .find(|record| record.phase == phase)
            .map(|record| record.state)
    }
}

fn check(path: &Path, records: &[Record]) -> Result<(), JournalError> {
    for (expected, record) in (1..).zip(records) {
        if record.sequence != expected {
            return Err(JournalError::Gap {
                path: path.to_owned(),
                expected: expected - 1,
                found: record.sequence,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A journal as version 6.0.0 wrote it. It must be readable for ever.
    const VERSION_1: &str = include_str!("../fixtures/journal-1");

    #[test]
    fn a_journal_of_version_1_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        host::atomic::write(&path, VERSION_1.as_bytes(), 0o600).unwrap();
        let records = Journal::read(&path).unwrap();
        let short: Vec<_> = records
            .iter()
            .map(|r| (r.phase.as_str(), r.state))
            .collect();
        assert_eq!(
            short,
            [
                ("/init/node-1", State::InProgress),
                ("/init/node-1", State::Completed),
                ("/planet", State::InProgress),
                ("/planet", State::Failed),
                ("/planet", State::RolledBack),
            ]
        );
        assert_eq!(
            records[3].error.as_deref(),
            Some("no space left: 3 MB, expected 2 GB")
        );
        assert_eq!(
            records[0].time.to_string(),
            "2026-11-22T15:04:05.000000006Z"
        );
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.last_state("/planet"), Some(State::RolledBack));
        assert_eq!(journal.last_state("/other"), None);
        let changes = [
            ("/planet", State::InProgress, None),
            ("/other", State::Failed, Some("no space".to_owned())),
        ];
        journal.append(&changes).unwrap();
        let last = journal.records().last().unwrap();
        assert_eq!((last.sequence, &*last.phase), (7, "/other"));
        assert_eq!(journal.last_state("/planet"), Some(State::InProgress));
        // What was there is not rewritten.
        drop(journal);
        assert!(
            std::fs::read_to_string(&path)
                .unwrap()
                .starts_with(VERSION_1)
        );
    }

    #[test]
    fn a_missing_record_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let mut lines: Vec<&str> = VERSION_1.lines().collect();
        lines.remove(2);
        let text = lines.join("\n") + "\n";
        host::atomic::write(&path, text.as_bytes(), 0o600).unwrap();
        let error = Journal::read(&path).unwrap_err().to_string();
        assert!(error.contains("record 1 is followed by 3"), "{error}");
    }
}
