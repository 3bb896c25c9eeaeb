//! Reads a tar without copying the files' content.
//!
//! In: chunks of unknown origin. Out: entries with every name and number
//! bounded, and their content as slices of the chunks. ustar, GNU long names
//! and pax are understood; sparse files are refused by name.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::chunks::{Chunk, Chunks};
use crate::{Error, Result};

const BLOCK: usize = 512;
/// Most bytes of a pax header or long name.
const MAX_EXTENSION: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
    Fifo,
    Device,
}

/// One entry. Names are as in the tar: not safe yet.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

/// The reader.
pub(crate) struct TarStream<'a> {
    source: &'a mut dyn Chunks,
    chunk: Option<Arc<Chunk>>,
    at: usize,
    /// Content of the current entry that was not taken.
    content: u64,
    /// Padding after it.
    padding: u64,
    /// Bytes that came.
    read: u64,
    /// Bytes that may come.
    max: u64,
}

/// Why a layer is not unpacked: its entry, and what is wrong with that.
pub(crate) fn refuse(entry: &[u8], reason: impl Into<String>) -> Error {
    Error::Layer {
        entry: String::from_utf8_lossy(entry).into_owned(),
        reason: reason.into(),
    }
}

impl<'a> TarStream<'a> {
    /// Reads at most `max` bytes of `source`, so that what compresses to
    /// nothing ends too.
    pub(crate) fn new(source: &'a mut dyn Chunks, max: u64) -> Self {
        Self {
            source,
            chunk: None,
            at: 0,
            content: 0,
            padding: 0,
            read: 0,
            max,
        }
    }

    /// At most `max` bytes as a slice of a chunk; `None` at the end.
    fn slice(&mut self, max: u64) -> Result<Option<(Arc<Chunk>, Range<usize>)>> {
        loop {
            if let Some(chunk) = &self.chunk
                && self.at < chunk.len()
            {
                let length = ((chunk.len() - self.at) as u64).min(max) as usize;
                let range = self.at..self.at + length;
                self.at = range.end;
                return Ok(Some((Arc::clone(chunk), range)));
            }
            self.at = 0;
            // Dropped before the next is asked for: its buffer is free again.
            self.chunk = None;
            self.chunk = self
                .source
                .next_chunk()
                .map_err(|e| Error::io("read", std::path::Path::new("the layer"), e))?;
            let Some(chunk) = &self.chunk else {
                return Ok(None);
            };
            self.read = self.read.saturating_add(chunk.len() as u64);
            if self.read > self.max {
                return Err(Error::TooLarge {
                    what: "a layer, decompressed and with all headers,".into(),
                    size: self.read,
                    limit: self.max,
                });
            }
        }
    }

    /// Exactly `out.len()` bytes, or `false` at a clean end.
    fn fill(&mut self, out: &mut [u8]) -> Result<bool> {
        let mut done = 0;
        while done < out.len() {
            match self.slice((out.len() - done) as u64)? {
                Some((chunk, range)) => {
                    out[done..done + range.len()].copy_from_slice(&chunk[range.clone()]);
                    done += range.len();
                }
                None if done == 0 => return Ok(false),
                None => return Err(cut()),
            }
        }
        Ok(true)
    }

    fn skip(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            match self.slice(length)? {
                Some((_, range)) => length -= range.len() as u64,
                None => return Err(cut()),
            }
        }
        Ok(())
    }

    /// The next piece of the current entry's content; `None` after the last.
    pub(crate) fn content(&mut self) -> Result<Option<(Arc<Chunk>, Range<usize>)>> {
        if self.content == 0 {
            return Ok(None);
        }
        match self.slice(self.content)? {
            Some((chunk, range)) => {
                self.content -= range.len() as u64;
                Ok(Some((chunk, range)))
            }
            None => Err(cut()),
        }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            let what = "an extended header of the tar".into();
            return Err(Error::TooLarge {
                what,
                size,
                limit: MAX_EXTENSION,
            });
        }
        let mut bytes = vec![0; size as usize];
        if !self.fill(&mut bytes)? && size > 0 {
            return Err(cut());
        }
        self.skip(padding(size))?;
        Ok(bytes)
    }

    /// The next entry. After the last one the source was read to its end, so
    /// that its digest was compared.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>> {
        let rest = self.content.saturating_add(self.padding);
        self.content = 0;
        self.padding = 0;
        self.skip(rest)?;
        let mut long_path = None;
        let mut long_link = None;
        let mut pax = BTreeMap::new();
        loop {
            let mut header = tar::Header::new_old();
            if !self.fill(header.as_mut_bytes())? {
                return Ok(None);
            }
            if header.as_bytes().iter().all(|byte| *byte == 0) {
                while self.slice(u64::MAX)?.is_some() {}
                return Ok(None);
            }
            let raw_path = header.path_bytes().into_owned();
            let bad = |_| {
                refuse(
                    &raw_path,
                    "the tar header holds something that is no number",
                )
            };
            if checksum(header.as_bytes()) != header.cksum().map_err(bad)? {
                return Err(refuse(&raw_path, "the checksum of the tar header is wrong"));
            }
            let size = header.entry_size().map_err(bad)?;
            let byte = header.entry_type().as_byte();
            let kind = match byte {
                b'x' => {
                    parse_pax(&self.extension(size)?, &mut pax)
                        .ok_or_else(|| refuse(&raw_path, "the pax header is malformed"))?;
                    continue;
                }
                b'g' => {
                    let mut global = BTreeMap::new();
                    parse_pax(&self.extension(size)?, &mut global)
                        .ok_or_else(|| refuse(&raw_path, "the global pax header is malformed"))?;
                    // `git archive` writes a comment; all else would change entries.
                    if let Some(key) = global.keys().find(|key| *key != "comment") {
                        let reason = format!("a global pax header sets `{key}`");
                        return Err(refuse(&raw_path, reason));
                    }
                    continue;
                }
                b'L' => {
                    long_path = Some(without_nul(self.extension(size)?));
                    continue;
                }
                b'K' => {
                    long_link = Some(without_nul(self.extension(size)?));
                    continue;
                }
                b'0' | b'\0' | b'7' => Kind::File,
                b'1' => Kind::Hardlink,
                b'2' => Kind::Symlink,
                b'3' | b'4' => Kind::Device,
                b'5' => Kind::Directory,
                b'6' => Kind::Fifo,
                b'S' => return Err(refuse(&raw_path, "sparse files are not supported")),
                other => {
                    let reason = format!(
                        "entries of type `{}` are not supported",
                        other.escape_ascii()
                    );
                    return Err(refuse(&raw_path, reason));
                }
            };
            let link = header
                .link_name_bytes()
                .map(|name| name.into_owned())
                .unwrap_or_default();
            let mut entry = Entry {
                path: long_path.take().unwrap_or(raw_path.clone()),
                link: long_link.take().unwrap_or(link),
                kind,
                mode: header.mode().map_err(bad)? & 0o7777,
                uid: u32::try_from(header.uid().map_err(bad)?)
                    .map_err(|_| refuse(&raw_path, "the owner's number is too large"))?,
                gid: u32::try_from(header.gid().map_err(bad)?)
                    .map_err(|_| refuse(&raw_path, "the group's number is too large"))?,
                mtime: (i64::try_from(header.mtime().map_err(bad)?).unwrap_or(0), 0),
                size,
                xattrs: Vec::new(),
            };
            apply_pax(&mut entry, pax)?;
            // Old tars mark directories by a slash alone.
            if entry.kind == Kind::File && byte != b'7' && entry.path.ends_with(b"/") {
                entry.kind = Kind::Directory;
            }
            // Nothing else has content, whatever size its header tells: a hard
            // link's is that of the file, a directory's once was a quota.
            if entry.kind != Kind::File {
                entry.size = 0;
            }
            self.content = entry.size;
            self.padding = padding(self.content);
            return Ok(Some(entry));
        }
    }
}

fn cut() -> Error {
    Error::Layer {
        entry: "the layer".into(),
        reason: "the tar ends in the middle of an entry".into(),
    }
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

fn checksum(header: &[u8; BLOCK]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    sum(&header[..148]) + 8 * u32::from(b' ') + sum(&header[156..])
}

fn without_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// Records `<length> <key>=<value>\n`.
fn parse_pax(mut bytes: &[u8], out: &mut BTreeMap<String, Vec<u8>>) -> Option<()> {
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let key = std::str::from_utf8(&record[..equals]).ok()?;
        out.insert(key.to_owned(), record[equals + 1..].to_vec());
        bytes = &bytes[length..];
    }
    Some(())
}

fn apply_pax(entry: &mut Entry, pax: BTreeMap<String, Vec<u8>>) -> Result<()> {
    for (key, value) in pax {
        let path = entry.path.clone();
        let bad = || refuse(&path, format!("the pax header's `{key}` is malformed"));
        let text = || std::str::from_utf8(&value).map_err(|_| bad());
        match key.as_str() {
            "path" => entry.path = value,
            "linkpath" => entry.link = value,
            "size" => entry.size = text()?.parse().map_err(|_| bad())?,
            "uid" => entry.uid = text()?.parse().map_err(|_| bad())?,
            "gid" => entry.gid = text()?.parse().map_err(|_| bad())?,
            "mtime" => entry.mtime = parse_time(text()?).ok_or_else(bad)?,
            _ if key.starts_with("GNU.sparse") => {
                return Err(refuse(&entry.path, "sparse files are not supported"));
            }
            _ => {
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    entry.xattrs.push((name.to_owned(), value));
                }
                // The rest (atime, ctime, names of owners, comments) is not kept.
            }
        }
    }
    Ok(())
}

/// `seconds[.fraction]`, possibly negative.
fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}
