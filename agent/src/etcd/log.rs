//! The end of a member's write-ahead log.
//!
//! In: the log of an etcd that doesn't run. Out: the same log, with one record
//! more which says that all of its entries are committed. A member counts as
//! committed only what it has been told of, and is told after who has asked is
//! answered: of a cluster that is lost all that it holds must count. Always
//! holds: a log that is damaged is left as it is.
//!
//! The format is etcd's (`server/storage/wal`): frames of a length and a
//! `walpb.Record` in multiples of 8 bytes, each with a CRC-32C over the data of
//! all records before it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crc32c::crc32c_append;
use operation::PhaseError;

use crate::node::file;

/// Largest file that is read: etcd cuts them at 64 MB, after a write of at most
/// some more.
const MAX_FILE: u64 = 512 << 20;
/// Bytes of a frame's length.
const FRAME: usize = 8;
/// The first file of a log, and how much of it holds what a first start writes: less
/// than a kilobyte.
const FIRST_FILE: &str = "0000000000000000-0000000000000000.wal";
const FIRST_RECORDS: u64 = 64 << 10;
/// Disks write whole sectors.
const SECTOR: usize = 512;
/// Types of records.
const ENTRY: u64 = 2;
const STATE: u64 = 3;
const CRC: u64 = 4;
const SNAPSHOT: u64 = 5;

/// A log whose records can't be read.
#[derive(Debug, PartialEq, Eq)]
struct Damaged {
    offset: usize,
}

/// What `raftpb.HardState` holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct HardState {
    term: u64,
    vote: u64,
    commit: u64,
}

/// Where a file of the log ends, and what was last.
#[derive(Debug, PartialEq, Eq)]
struct End {
    offset: usize,
    crc: u32,
    /// Index of the last entry.
    index: u64,
    /// Its term.
    term: u64,
    state: HardState,
}

/// Counts all entries of the log in `directory` as committed. Returns the index
/// of the last one.
///
/// # Errors
/// When the log can't be read or written, or is damaged.
pub(super) fn commit_all(directory: &Path) -> Result<u64, PhaseError> {
    let (path, first) = last_file(directory)?;
    let failed = file("read", &path);
    let mut log = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    if log.metadata().map_err(failed)?.len() > MAX_FILE {
        return Err(unreadable(&path, "it is too large"));
    }
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes).map_err(failed)?;
    let end = read(&bytes, first.saturating_sub(1)).map_err(|damaged| {
        unreadable(
            &path,
            &format!("the record at {} is damaged", damaged.offset),
        )
    })?;
    if end.index <= end.state.commit {
        return Ok(end.state.commit);
    }
    let state = HardState {
        term: end.state.term.max(end.term),
        commit: end.index,
        ..end.state
    };
    let failed = file("write", &path);
    // What comes after the end was never written as a whole.
    log.set_len(end.offset as u64).map_err(failed)?;
    log.seek(SeekFrom::Start(end.offset as u64))
        .and_then(|_| log.write_all(&frame(STATE, &state.encode(), end.crc).0))
        .and_then(|()| log.sync_all())
        .map_err(failed)?;
    Ok(end.index)
}

/// Whether the log in `directory` is of a first start that was cut off. etcd writes its
/// first members when its log is there already; one whose log says of none that it is
/// committed finds itself in no cluster, and waits for an election for ever. A log that is
/// damaged is none of these.
///
/// # Errors
/// When it can't be read.
pub(super) fn is_unborn(directory: &Path) -> std::io::Result<bool> {
    let mut logs = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        logs.extend(
            name.to_str()
                .filter(|name| numbers(name).is_some())
                .map(ToOwned::to_owned),
        );
    }
    if logs != [FIRST_FILE] {
        return Ok(false);
    }
    let mut bytes = Vec::new();
    File::open(directory.join(FIRST_FILE))?
        .take(FIRST_RECORDS)
        .read_to_end(&mut bytes)?;
    Ok(read(&bytes, 0).is_ok_and(|end| end.state.commit == 0))
}

fn unreadable(path: &Path, why: &str) -> PhaseError {
    PhaseError::lasting(format!(
        "{}: {why}; recover from a snapshot instead: `gravity etcd snapshots` lists those of this \
         node",
        path.display()
    ))
}

/// The youngest file, and the index of the first entry that may be in it: its
/// name holds both.
fn last_file(directory: &Path) -> Result<(PathBuf, u64), PhaseError> {
    let failed = file("read", directory);
    let mut last = None;
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        last = last.max(name.to_str().and_then(numbers));
    }
    let (sequence, index) = last.ok_or_else(|| unreadable(directory, "there is no log"))?;
    Ok((
        directory.join(format!("{sequence:016x}-{index:016x}.wal")),
        index,
    ))
}

fn numbers(name: &str) -> Option<(u64, u64)> {
    let (sequence, index) = name.strip_suffix(".wal")?.split_once('-')?;
    let number = |hex: &str| match hex.len() {
        16 => u64::from_str_radix(hex, 16).ok(),
        _ => None,
    };
    Some((number(sequence)?, number(index)?))
}

/// Finds the end of a file; `before` is the last index of the files before it.
fn read(bytes: &[u8], before: u64) -> Result<End, Damaged> {
    let mut end = End {
        offset: 0,
        crc: 0,
        index: before,
        term: 0,
        state: HardState::default(),
    };
    while let Some((record, data, next)) = framed(bytes, end.offset) {
        let damaged = Damaged { offset: end.offset };
        let read = Record::decode(record);
        let Some(record) = read.filter(|record| record.follows(end.crc)) else {
            // Of the last write only some sectors may have reached the disk.
            return match is_torn(data, end.offset + FRAME) {
                true => Ok(end),
                false => Err(damaged),
            };
        };
        end.crc = record.crc;
        let mut fields = Fields(record.data);
        match record.kind {
            ENTRY => {
                (end.term, end.index) = (0, 0);
                for field in &mut fields {
                    match field {
                        Field::Number(2, term) => end.term = term,
                        Field::Number(3, index) => end.index = index,
                        _ => {}
                    }
                }
            }
            STATE => {
                end.state = HardState::default();
                for field in &mut fields {
                    match field {
                        Field::Number(1, term) => end.state.term = term,
                        Field::Number(2, vote) => end.state.vote = vote,
                        Field::Number(3, commit) => end.state.commit = commit,
                        _ => {}
                    }
                }
            }
            SNAPSHOT => {
                for field in &mut fields {
                    if let Field::Number(1, index) = field {
                        end.index = end.index.max(index);
                    }
                }
            }
            _ => fields.0 = &[],
        }
        if !fields.0.is_empty() {
            return Err(damaged);
        }
        end.offset = next;
    }
    Ok(end)
}

/// The record at an offset, the same with what fills it up, and where the next
/// one is. `None` at the end.
fn framed(bytes: &[u8], offset: usize) -> Option<(&[u8], &[u8], usize)> {
    let length = bytes.get(offset..)?.first_chunk::<FRAME>()?;
    let length = u64::from_le_bytes(*length);
    let size = usize::try_from(length & (u64::MAX >> 8)).ok()?;
    let fill = match length >> 63 {
        1 => usize::try_from(length >> 56 & 7).ok()?,
        _ => 0,
    };
    let begin = offset + FRAME;
    let next = begin.checked_add(size)?.checked_add(fill)?;
    // The file is made with zeros in it.
    let data = bytes.get(begin..next).filter(|_| length != 0)?;
    Some((&data[..size], data, next))
}

/// Whether a sector of what begins at an offset was never written.
fn is_torn(data: &[u8], offset: usize) -> bool {
    let first = (SECTOR - offset % SECTOR).min(data.len());
    let (first, rest) = data.split_at(first);
    let mut sectors = std::iter::once(first).chain(rest.chunks(SECTOR));
    sectors.any(|sector| sector.iter().all(|byte| *byte == 0))
}

/// A record's frame, and the CRC at its end.
fn frame(kind: u64, data: &[u8], before: u32) -> (Vec<u8>, u32) {
    let crc = match kind {
        CRC => before,
        _ => crc32c_append(before, data),
    };
    let mut record = Vec::new();
    put(&mut record, 1, kind);
    put(&mut record, 2, u64::from(crc));
    record.push(3 << 3 | 2);
    varint(&mut record, data.len() as u64);
    record.extend_from_slice(data);
    let fill = record.len().next_multiple_of(8) - record.len();
    let mut length = record.len() as u64;
    if fill > 0 {
        length |= (0x80 | fill as u64) << 56;
    }
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend(record);
    frame.resize(frame.len() + fill, 0);
    (frame, crc)
}

impl HardState {
    fn encode(self) -> Vec<u8> {
        let mut data = Vec::new();
        put(&mut data, 1, self.term);
        put(&mut data, 2, self.vote);
        put(&mut data, 3, self.commit);
        data
    }
}

#[derive(Debug)]
struct Record<'a> {
    kind: u64,
    crc: u32,
    data: &'a [u8],
}

impl<'a> Record<'a> {
    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (mut kind, mut crc, mut data) = (0, 0, &[][..]);
        let mut fields = Fields(bytes);
        for field in &mut fields {
            match field {
                Field::Number(1, number) => kind = number,
                Field::Number(2, number) => crc = u32::try_from(number).ok()?,
                Field::Bytes(3, bytes) => data = bytes,
                _ => {}
            }
        }
        fields.0.is_empty().then_some(Self { kind, crc, data })
    }

    /// Whether it comes after records of that CRC. A file begins with the one of
    /// the file before it.
    fn follows(&self, before: u32) -> bool {
        match self.kind {
            CRC => before == 0 || self.crc == before,
            _ => self.crc == crc32c_append(before, self.data),
        }
    }
}

/// A field of a message of Protocol Buffers, of the two kinds that occur.
enum Field<'a> {
    Number(u64, u64),
    Bytes(u64, &'a [u8]),
}

/// The fields of a message. What can't be read is left over.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut rest = self.0;
        let tag = take(&mut rest)?;
        let field = match tag & 7 {
            0 => Field::Number(tag >> 3, take(&mut rest)?),
            2 => {
                let length = usize::try_from(take(&mut rest)?).ok()?;
                let (bytes, after) = rest.split_at_checked(length)?;
                rest = after;
                Field::Bytes(tag >> 3, bytes)
            }
            _ => return None,
        };
        self.0 = rest;
        Some(field)
    }
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn put(bytes: &mut Vec<u8>, field: u8, number: u64) {
    bytes.push(field << 3);
    varint(bytes, number);
}

fn varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log: its bytes so far and their CRC.
    struct Log(Vec<u8>, u32);

    impl Log {
        fn begun(crc: u32) -> Self {
            Self(Vec::new(), crc)
                .with(CRC, &[])
                .with(1, b"metadata")
                .with(SNAPSHOT, &[8, 0, 16, 0])
        }

        fn with(mut self, kind: u64, data: &[u8]) -> Self {
            let (bytes, crc) = frame(kind, data, self.1);
            self.0.extend(bytes);
            self.1 = crc;
            self
        }

        fn entry(self, term: u64, index: u64) -> Self {
            let mut data = Vec::new();
            put(&mut data, 1, 0);
            put(&mut data, 2, term);
            put(&mut data, 3, index);
            data.extend([4 << 3 | 2, 3, 1, 2, 3]);
            self.with(ENTRY, &data)
        }

        fn state(self, term: u64, vote: u64, commit: u64) -> Self {
            let state = HardState { term, vote, commit };
            self.with(STATE, &state.encode())
        }

        /// As a directory; the file has room for more.
        fn kept(&self, torn: &[u8]) -> tempfile::TempDir {
            let directory = tempfile::tempdir().unwrap();
            let mut bytes = self.0.clone();
            bytes.extend(torn);
            bytes.resize(bytes.len() + 4096, 0);
            for (name, bytes) in [
                ("0000000000000000-0000000000000000.wal", &b"older"[..]),
                ("0000000000000002-0000000000000006.wal", &bytes),
                ("1.tmp", b"next"),
                ("0000000000000009-0000000000000009.wal.broken", b"x"),
            ] {
                host::atomic::write(&directory.path().join(name), bytes, 0o600).unwrap();
            }
            directory
        }
    }

    fn end(directory: &tempfile::TempDir) -> End {
        let (path, first) = last_file(directory.path()).unwrap();
        read(&std::fs::read(path).unwrap(), first - 1).unwrap()
    }

    #[test]
    fn a_first_start_that_was_cut_off_has_committed_nothing() {
        let unborn = |log: &Log, name: &str| {
            let directory = tempfile::tempdir().unwrap();
            let mut bytes = log.0.clone();
            bytes.resize(bytes.len() + 4096, 0);
            for (name, bytes) in [("1.tmp", &b"next"[..]), (name, &bytes)] {
                host::atomic::write(&directory.path().join(name), bytes, 0o600).unwrap();
            }
            is_unborn(directory.path()).unwrap()
        };
        let begun = || Log::begun(0);
        for log in [
            begun(),
            begun().entry(1, 1),
            begun().entry(1, 1).state(1, 0, 0),
        ] {
            assert!(unborn(&log, FIRST_FILE));
            assert!(!unborn(&log, "0000000000000001-0000000000000001.wal"));
        }
        let whole = begun().entry(1, 1).state(1, 0, 1);
        assert!(!unborn(&whole, FIRST_FILE));
        assert!(!unborn(&whole.state(2, 9, 1).entry(2, 2), FIRST_FILE));
        let mut damaged = begun();
        let words = damaged.0.windows(8).position(|bytes| bytes == b"metadata");
        damaged.0[words.unwrap()] ^= 1;
        assert!(!unborn(&damaged, FIRST_FILE));
        // One that goes on in another file has begun, whatever is in the first one.
        let directory = begun().kept(&[]);
        host::atomic::write(&directory.path().join(FIRST_FILE), &begun().0, 0o600).unwrap();
        assert!(!is_unborn(directory.path()).unwrap());
    }

    #[test]
    fn the_crc_is_castagnoli_s() {
        assert_eq!(crc32c_append(0, b"123456789"), 0xe306_9283);
        assert_eq!(
            crc32c_append(crc32c_append(0, b"1234"), b"56789"),
            0xe306_9283
        );
    }

    #[test]
    fn all_entries_count_as_committed_once() {
        let log = Log::begun(7).state(3, 9, 6).entry(3, 7).entry(4, 8);
        let directory = log.state(4, 0, 6).kept(&[]);
        for _ in 0..2 {
            assert_eq!(commit_all(directory.path()).unwrap(), 8);
            let state = HardState {
                term: 4,
                vote: 0,
                commit: 8,
            };
            assert_eq!(end(&directory).state, state);
        }
    }

    #[test]
    fn an_entry_that_took_the_place_of_others_is_the_last_one() {
        let log = Log::begun(0).state(2, 1, 6).entry(2, 7).entry(2, 8);
        let directory = log.entry(5, 7).kept(&[]);
        assert_eq!(commit_all(directory.path()).unwrap(), 7);
        assert_eq!(end(&directory).state.term, 5);
    }

    #[test]
    fn a_new_file_without_entries_goes_on_where_the_last_one_ended() {
        let directory = Log::begun(7).state(2, 1, 3).kept(&[]);
        assert_eq!(commit_all(directory.path()).unwrap(), 5);
        assert_eq!(end(&directory).state.commit, 5);
        let after_a_snapshot = Log::begun(7).with(SNAPSHOT, &[8, 90, 16, 2]);
        let directory = after_a_snapshot.state(2, 1, 90).kept(&[]);
        assert_eq!(commit_all(directory.path()).unwrap(), 90);
    }

    #[test]
    fn a_write_that_was_cut_off_is_left_out_and_damage_is_refused() {
        let good = || Log::begun(7).state(1, 1, 6).entry(1, 7);
        let (mut cut, _) = frame(ENTRY, &[1; 2000], good().1);
        cut[1500..].fill(0);
        let directory = good().kept(&cut);
        assert_eq!(commit_all(directory.path()).unwrap(), 7);
        assert_eq!(end(&directory).state.commit, 7);

        let mut log = good();
        let middle = log.0.len() - 4;
        log.0[middle] ^= 1;
        let directory = log.entry(1, 8).kept(&[]);
        let (path, _) = last_file(directory.path()).unwrap();
        let before = std::fs::read(&path).unwrap();
        let error = commit_all(directory.path()).unwrap_err();
        assert!(error.message.contains("damaged"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
        let none = tempfile::tempdir().unwrap();
        assert!(commit_all(none.path()).is_err());
    }

    #[test]
    fn anything_is_read_to_an_end() {
        for seed in 0..200_u8 {
            let noise: Vec<_> = (0..600_u32)
                .map(|n| crc32c_append(n, &[seed]).to_le_bytes()[0])
                .collect();
            let _ = read(&noise, 0);
            let mut framed = 90_u64.to_le_bytes().to_vec();
            framed.extend(&noise);
            let _ = read(&framed, 0);
        }
    }
}
