//! A tar archive whose entries are read where they lie.
//!
//! In: a file of unknown origin. Out: where the content of each entry is. Names
//! lead nowhere but into the archive: absolute ones, `..`, duplicates, devices,
//! sparse entries and links out are refused, as are extensions that would let
//! two readers see different files.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// More entries has no image.
const MAX_ENTRIES: usize = 100_000;
/// Most bytes of a name or an extension.
const MAX_EXTENSION: u64 = 64 << 10;
/// Links that are followed from one name.
const MAX_LINKS: usize = 8;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct BadArchive {
    path: PathBuf,
    reason: String,
}

/// An archive that was read through once.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    File {
        offset: u64,
        size: u64,
    },
    Directory,
    /// Name of another entry.
    Link(String),
}

/// What extensions say of the entry that follows.
#[derive(Default)]
struct Extension {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Archive {
    /// Reads all headers of the archive at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, BadArchive> {
        let bad = |reason: String| BadArchive {
            path: path.to_owned(),
            reason,
        };
        let file = File::open(path).map_err(|error| bad(error.to_string()))?;
        let length = file
            .metadata()
            .map_err(|error| bad(error.to_string()))?
            .len();
        let entries = walk(&file, length).map_err(bad)?;
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            entries,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file with offset and size of an entry's content.
    pub(crate) fn find(&self, name: &str) -> Option<(Arc<File>, u64, u64)> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match self.entries.get(name)? {
                Entry::File { offset, size } => {
                    return Some((Arc::clone(&self.file), *offset, *size));
                }
                Entry::Link(to) => name = to,
                Entry::Directory => return None,
            }
        }
        None
    }
}

fn walk(file: &File, length: u64) -> Result<BTreeMap<String, Entry>, String> {
    let mut entries = BTreeMap::new();
    let mut extension = Extension::default();
    let mut at = 0;
    let mut headers = 0;
    while at + BLOCK <= length {
        let mut block = [0; BLOCK as usize];
        file.read_exact_at(&mut block, at)
            .map_err(|error| error.to_string())?;
        if block.iter().all(|byte| *byte == 0) {
            break;
        }
        let header = Header::from_byte_slice(&block);
        if header.cksum().ok() != Some(checksum(&block)) {
            return Err(match headers {
                0 => "it is no tar archive; a compressed one must be unpacked first".into(),
                _ => format!("the header at byte {at} is damaged"),
            });
        }
        headers += 1;
        if headers > MAX_ENTRIES {
            return Err(format!("it has more than {MAX_ENTRIES} entries"));
        }
        let size = match extension.size {
            Some(size) => size,
            None => header.entry_size().map_err(|error| error.to_string())?,
        };
        let offset = at + BLOCK;
        let end = offset
            .checked_add(size)
            .filter(|end| *end <= length)
            .ok_or("it ends within an entry: it was cut")?;
        at = end.div_ceil(BLOCK).saturating_mul(BLOCK);
        let kind = header.entry_type();
        let text = |what: &str| {
            if size > MAX_EXTENSION {
                return Err(format!("{what} has {size} bytes"));
            }
            let mut bytes = vec![0; size as usize];
            file.read_exact_at(&mut bytes, offset)
                .map_err(|error| error.to_string())?;
            Ok(bytes)
        };
        match kind {
            EntryType::GNULongName => {
                extension.path = Some(utf8(trim(&text("a name")?))?);
                continue;
            }
            EntryType::GNULongLink => {
                extension.link = Some(utf8(trim(&text("a link")?))?);
                continue;
            }
            EntryType::XHeader => {
                read_pax(&text("an extended header")?, &mut extension, false)?;
                continue;
            }
            EntryType::XGlobalHeader => {
                read_pax(&text("an extended header")?, &mut extension, true)?;
                continue;
            }
            _ => {}
        }
        let extension = std::mem::take(&mut extension);
        let name = match extension.path {
            Some(path) => path,
            None => utf8(header.path_bytes())?,
        };
        let Some(clean) = normal("", &name).filter(|_| !name.starts_with('/')) else {
            return Err(format!("the entry `{}` leads out of it", shown(&name)));
        };
        if name.split('/').any(|part| part == "..") {
            return Err(format!("the entry `{}` leads out of it", shown(&name)));
        }
        let entry = match kind {
            EntryType::Regular | EntryType::Continuous => Entry::File { offset, size },
            EntryType::Directory => Entry::Directory,
            EntryType::Symlink | EntryType::Link => {
                let to = match extension.link {
                    Some(link) => link,
                    None => utf8(header.link_name_bytes().unwrap_or_default())?,
                };
                // A hard link counts from the archive's root.
                let from = match (kind, clean.rsplit_once('/')) {
                    (EntryType::Symlink, Some((dir, _))) => dir,
                    _ => "",
                };
                match normal(from, &to).filter(|_| !to.starts_with('/')) {
                    Some(to) => Entry::Link(to),
                    None => {
                        let (name, to) = (shown(&name), shown(&to));
                        return Err(format!("the link `{name}` leads out of it, to `{to}`"));
                    }
                }
            }
            EntryType::GNUSparse => {
                return Err(format!("the entry `{}` is sparse", shown(&name)));
            }
            other => {
                let (name, kind) = (shown(&name), other.as_byte() as char);
                return Err(format!(
                    "the entry `{name}` is a device or something else of type `{kind}`, no file"
                ));
            }
        };
        if clean.is_empty() {
            continue;
        }
        let again = entry == Entry::Directory;
        if let Some(before) = entries.insert(clean, entry)
            && !(again && before == Entry::Directory)
        {
            return Err(format!("the entry `{}` is there twice", shown(&name)));
        }
    }
    match headers {
        0 => Err("it is no tar archive, or an empty one".into()),
        _ => Ok(entries),
    }
}

/// Sum of all bytes, those of the sum itself counted as spaces.
fn checksum(block: &[u8; BLOCK as usize]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..])
}

/// Reads records of the form `LENGTH KEY=VALUE\n`.
fn read_pax(mut text: &[u8], extension: &mut Extension, global: bool) -> Result<(), String> {
    let malformed = || "an extended header is malformed".to_owned();
    while !text.is_empty() {
        let space = text
            .iter()
            .position(|byte| *byte == b' ')
            .ok_or_else(malformed)?;
        let length: usize = utf8(&text[..space])?.parse().map_err(|_| malformed())?;
        let record = text
            .get(space + 1..length)
            .and_then(|record| record.strip_suffix(b"\n"))
            .ok_or_else(malformed)?;
        text = &text[length..];
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(malformed)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.starts_with(b"GNU.sparse.") {
            return Err("it has a sparse entry".into());
        }
        match key {
            b"path" | b"linkpath" | b"size" if global => {
                let key = utf8(key)?;
                return Err(format!("it sets `{key}` for all entries at once"));
            }
            b"path" => extension.path = Some(utf8(value)?),
            b"linkpath" => extension.link = Some(utf8(value)?),
            b"size" => extension.size = Some(utf8(value)?.parse().map_err(|_| malformed())?),
            _ => {}
        }
    }
    Ok(())
}

fn trim(bytes: &[u8]) -> Vec<u8> {
    bytes
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default()
        .to_vec()
}

fn utf8(bytes: impl AsRef<[u8]>) -> Result<String, String> {
    String::from_utf8(bytes.as_ref().to_vec()).map_err(|_| "a name is not UTF-8".into())
}

fn shown(name: &str) -> String {
    name.chars().take(100).collect()
}

/// The path `name` as seen from the directory `from`, without `.` and `..`;
/// nothing when it leads out.
fn normal(from: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part if part.contains('\0') => return None,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: EntryType, name: &[u8], size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    fn entry(kind: EntryType, name: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes = header(kind, name.as_bytes(), content.len() as u64)
            .as_bytes()
            .to_vec();
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn link(kind: EntryType, name: &str, to: &str) -> Vec<u8> {
        let mut header = header(kind, name.as_bytes(), 0);
        header.as_mut_bytes()[157..157 + to.len()].copy_from_slice(to.as_bytes());
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn pax(key: &str, value: &str) -> Vec<u8> {
        let rest = format!(" {key}={value}\n");
        let length = rest.len() + 2;
        entry(
            EntryType::XHeader,
            "x",
            format!("{length}{rest}").as_bytes(),
        )
    }

    fn open(parts: &[Vec<u8>]) -> Result<Archive, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        host::atomic::write(file.path(), &parts.concat(), 0o600).unwrap();
        Archive::open(file.path()).map_err(|error| error.reason)
    }

    fn content(archive: &Archive, name: &str) -> Option<Vec<u8>> {
        let (file, offset, size) = archive.find(name)?;
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, offset).unwrap();
        Some(bytes)
    }

    #[test]
    fn entries_are_found_under_their_names() {
        let long = "d/".repeat(80) + "file";
        let archive = open(&[
            entry(EntryType::Directory, "blobs/", b""),
            entry(EntryType::Directory, "blobs/", b""),
            entry(EntryType::Regular, "./blobs/one", &[1; 700]),
            link(EntryType::Symlink, "x/layer", "../blobs/one"),
            link(EntryType::Link, "hard", "blobs/one"),
            link(EntryType::Symlink, "loop", "loop"),
            entry(
                EntryType::GNULongName,
                "././@LongLink",
                format!("{long}\0").as_bytes(),
            ),
            entry(EntryType::Regular, "cut", b"long"),
            pax("mtime", "1.5"),
            pax("path", "named"),
            entry(EntryType::Regular, "short", b"pax"),
            vec![0; 1024],
            b"garbage".to_vec(),
        ])
        .unwrap();
        assert_eq!(content(&archive, "blobs/one"), Some(vec![1; 700]));
        assert_eq!(content(&archive, "x/layer"), Some(vec![1; 700]));
        assert_eq!(content(&archive, "hard"), Some(vec![1; 700]));
        assert_eq!(content(&archive, &long), Some(b"long".to_vec()));
        assert_eq!(content(&archive, "named"), Some(b"pax".to_vec()));
        for name in ["blobs", "loop", "short", "none"] {
            assert_eq!(content(&archive, name), None);
        }
    }

    #[test]
    fn tricks_are_refused() {
        let file = |name: &str| entry(EntryType::Regular, name, b"x");
        let mut damaged = file("a");
        damaged[0] ^= 1;
        for (parts, why) in [
            (vec![file("../a")], "leads out"),
            (vec![file("a/../../b")], "leads out"),
            (vec![file("a/../b")], "leads out"),
            (vec![file("/etc/passwd")], "leads out"),
            (
                vec![link(EntryType::Symlink, "a", "/etc/passwd")],
                "leads out",
            ),
            (
                vec![link(EntryType::Symlink, "a/b", "../../c")],
                "leads out",
            ),
            (vec![link(EntryType::Link, "a/b", "../c")], "leads out"),
            (vec![entry(EntryType::Char, "a", b"")], "device"),
            (vec![entry(EntryType::Fifo, "a", b"")], "device"),
            (vec![file("a"), file("./a")], "twice"),
            (
                vec![file("a"), entry(EntryType::Directory, "a/", b"")],
                "twice",
            ),
            (vec![entry(EntryType::GNUSparse, "a", b"x")], "sparse"),
            (vec![pax("GNU.sparse.major", "1"), file("a")], "sparse"),
            (vec![pax("path", "../a"), file("a")], "leads out"),
            (vec![pax("size", "99999"), file("a")], "cut"),
            (
                vec![entry(EntryType::XHeader, "x", b"99 path=a\n"), file("a")],
                "malformed",
            ),
            (
                vec![entry(EntryType::XHeader, "x", b"0 path=a\n"), file("a")],
                "malformed",
            ),
            (
                vec![entry(EntryType::XGlobalHeader, "x", b"9 size=1\n")],
                "all entries",
            ),
            (
                vec![
                    header(EntryType::GNULongName, b"x", 1 << 40)
                        .as_bytes()
                        .to_vec(),
                ],
                "cut",
            ),
            (
                vec![
                    header(EntryType::Regular, b"a", 513).as_bytes().to_vec(),
                    vec![0; 512],
                ],
                "cut",
            ),
            (
                vec![entry(EntryType::GNULongName, "x", &[b'a'; 70_000])],
                "70000 bytes",
            ),
            (vec![file("a"), damaged.clone()], "damaged"),
            (vec![damaged], "no tar archive"),
            (vec![], "no tar archive"),
            (vec![vec![0; 1024]], "no tar archive"),
            (vec![vec![0x1f; 600]], "no tar archive"),
        ] {
            let error = open(&parts).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
    }
}
