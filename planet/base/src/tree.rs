//! A root filesystem as data, and the tar that it becomes.
//!
//! In: the tar of a Debian root, files of components, bytes, links. Out: one
//! uncompressed tar. The same tree gives the same bytes: names are sorted,
//! times are one given time, owners are numbers, a hard link follows its file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tar::{Archive, Builder, EntryType, Header};

use crate::file::{self, Hashing};

/// Most entries that are read from a tar.
const MAX_ENTRIES: usize = 1_000_000;

/// A root filesystem: path without a leading slash to what is there.
#[derive(Debug, Default)]
pub(crate) struct Tree(BTreeMap<String, Node>);

#[derive(Debug, Clone)]
struct Node {
    mode: u32,
    uid: u64,
    gid: u64,
    /// PAX records that are kept, such as file capabilities.
    attributes: Vec<(String, Vec<u8>)>,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Directory,
    Symlink(String),
    /// The same file as the one of this path.
    Hardlink(String),
    Bytes(Vec<u8>),
    File {
        path: PathBuf,
        size: u64,
        digest: String,
    },
    Part {
        tar: PathBuf,
        offset: u64,
        size: u64,
    },
}

impl Tree {
    /// What a tar holds, but for device nodes: those are made where the tree
    /// is used.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Self::read_entries(path).with_context(|| path.display().to_string())
    }

    fn read_entries(path: &Path) -> Result<Self> {
        let mut tree = Self::default();
        let mut archive = Archive::new(BufReader::new(File::open(path)?));
        for entry in archive.entries_with_seek()? {
            let mut entry = entry?;
            let name = text(&entry.path_bytes())?;
            let Some(name) = clean(&name)? else { continue };
            ensure!(
                tree.0.len() < MAX_ENTRIES,
                "more than {MAX_ENTRIES} entries"
            );
            let mut attributes = Vec::new();
            if let Some(extensions) = entry.pax_extensions()? {
                for extension in extensions {
                    let extension = extension?;
                    let key = extension.key().context("name of a PAX record")?;
                    if key.starts_with("SCHILY.xattr.") {
                        attributes.push((key.to_owned(), extension.value_bytes().to_vec()));
                    }
                }
            }
            let link = || -> Result<String> {
                text(
                    &entry
                        .link_name_bytes()
                        .with_context(|| format!("{name}: no target"))?,
                )
            };
            let header = entry.header();
            let content = match header.entry_type() {
                EntryType::Directory => Content::Directory,
                EntryType::Regular => Content::Part {
                    tar: path.to_owned(),
                    offset: entry.raw_file_position(),
                    size: entry.size(),
                },
                EntryType::Symlink => Content::Symlink(link()?),
                EntryType::Link => {
                    let target = link()?;
                    Content::Hardlink(clean(&target)?.context("hard link to the root")?)
                }
                EntryType::Char | EntryType::Block | EntryType::Fifo => continue,
                other => bail!("{name}: entry of type {other:?} is not known"),
            };
            let node = Node {
                mode: header.mode()? & 0o7777,
                uid: header.uid()?,
                gid: header.gid()?,
                attributes,
                content,
            };
            tree.0.insert(name, node);
        }
        Ok(tree)
    }

    /// Keeps only the paths that `keep` wants.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|path, _| keep(path));
    }

    /// A directory and those above it, owned by root.
    pub(crate) fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        match self.0.get_mut(path) {
            Some(node) if matches!(node.content, Content::Directory) => node.mode = mode,
            Some(_) => bail!("/{path} is not a directory"),
            None => self.put(path, mode, Content::Directory)?,
        }
        Ok(())
    }

    /// A file with these bytes.
    pub(crate) fn bytes(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Result<()> {
        self.put(path, mode, Content::Bytes(bytes.into()))
    }

    /// A copy of a file whose digest and size are known; [`Tree::write`]
    /// fails when it does not have them.
    pub(crate) fn file(
        &mut self,
        path: &str,
        mode: u32,
        from: &Path,
        digest: &str,
        size: u64,
    ) -> Result<()> {
        let content = Content::File {
            path: from.to_owned(),
            size,
            digest: digest.to_owned(),
        };
        self.put(path, mode, content)
    }

    /// A symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.put(path, 0o777, Content::Symlink(target.to_owned()))
    }

    fn put(&mut self, path: &str, mode: u32, content: Content) -> Result<()> {
        let parents: Vec<&str> = path.match_indices('/').map(|(at, _)| &path[..at]).collect();
        for parent in parents {
            match self.0.get(parent) {
                Some(node) => ensure!(
                    matches!(node.content, Content::Directory),
                    "/{path}: /{parent} is not a directory"
                ),
                None => {
                    self.0
                        .insert(parent.to_owned(), Node::root(0o755, Content::Directory));
                }
            }
        }
        self.0.insert(path.to_owned(), Node::root(mode, content));
        Ok(())
    }

    /// The bytes of a file, at most `limit` of them.
    pub(crate) fn content(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        let node = self
            .0
            .get(path)
            .with_context(|| format!("/{path} does not exist"))?;
        let (mut reader, size): (Box<dyn Read>, u64) = match &node.content {
            Content::Bytes(bytes) => return Ok(bytes.clone()),
            Content::Part { tar, offset, size } => (part(tar, *offset, *size)?, *size),
            _ => bail!("/{path} is not a file"),
        };
        ensure!(size <= limit, "/{path}: {size} bytes, more than {limit}");
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes the tar, every time being `mtime` (seconds since 1970); the
    /// result is its digest and size.
    pub(crate) fn write(mut self, to: &Path, mtime: u64) -> Result<(String, u64)> {
        self.turn_hardlinks()?;
        let context = || to.display().to_string();
        let file = File::create(to).with_context(context)?;
        let hashing = Hashing::new(file);
        let mut builder = Builder::new(BufWriter::with_capacity(file::CHUNK, hashing));
        for (path, node) in &self.0 {
            node.append(&mut builder, path, mtime)
                .with_context(|| format!("/{path}"))?;
        }
        let mut writer = builder.into_inner().with_context(context)?;
        writer.flush().with_context(context)?;
        let hashing = writer.into_inner().map_err(|error| error.into_error())?;
        Ok(hashing.finish())
    }

    /// Makes the first of several names of a file the file, the others links.
    fn turn_hardlinks(&mut self) -> Result<()> {
        let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (path, node) in &self.0 {
            if let Content::Hardlink(target) = &node.content {
                groups.entry(target.clone()).or_default().push(path.clone());
            }
        }
        for (target, names) in groups {
            let node = self.0.get(&target).cloned();
            let node =
                node.with_context(|| format!("/{target}: links to it, but it is not there"))?;
            // `names` is sorted, as the tree is.
            let Some(first) = names.first().filter(|first| **first < target).cloned() else {
                continue;
            };
            for name in names.iter().chain([&target]) {
                let mut link = node.clone();
                link.content = Content::Hardlink(first.clone());
                self.0.insert(name.clone(), link);
            }
            self.0.insert(first, node);
        }
        Ok(())
    }
}

impl Node {
    fn root(mode: u32, content: Content) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            attributes: Vec::new(),
            content,
        }
    }

    fn append(&self, builder: &mut Builder<impl Write>, path: &str, mtime: u64) -> Result<()> {
        if !self.attributes.is_empty() {
            let records = self
                .attributes
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_slice()));
            builder.append_pax_extensions(records)?;
        }
        let mut header = Header::new_gnu();
        header.set_mode(self.mode);
        header.set_uid(self.uid);
        header.set_gid(self.gid);
        header.set_mtime(mtime);
        header.set_size(0);
        header.set_entry_type(EntryType::Regular);
        match &self.content {
            Content::Directory => {
                header.set_entry_type(EntryType::Directory);
                builder.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            Content::Symlink(target) => {
                header.set_entry_type(EntryType::Symlink);
                builder.append_link(&mut header, path, target)?;
            }
            Content::Hardlink(target) => {
                header.set_entry_type(EntryType::Link);
                builder.append_link(&mut header, path, target)?;
            }
            Content::Bytes(bytes) => {
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, path, bytes.as_slice())?;
            }
            Content::Part { tar, offset, size } => {
                header.set_size(*size);
                builder.append_data(&mut header, path, part(tar, *offset, *size)?)?;
            }
            Content::File {
                path: from,
                size,
                digest,
            } => {
                header.set_size(*size);
                let file = File::open(from).with_context(|| from.display().to_string())?;
                let mut hashing = Hashing::new(file);
                builder.append_data(&mut header, path, (&mut hashing).take(*size))?;
                let (found, length) = hashing.finish();
                ensure!(
                    found == *digest && length == *size,
                    "{} is {found} with {length} bytes, expected {digest} with {size}: \
                     remove its directory, and it will be built again",
                    from.display()
                );
            }
        }
        Ok(())
    }
}

fn part(tar: &Path, offset: u64, size: u64) -> Result<Box<dyn Read>> {
    let mut file = File::open(tar).with_context(|| tar.display().to_string())?;
    file.seek(SeekFrom::Start(offset))?;
    Ok(Box::new(file.take(size)))
}

fn text(bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes);
    text.map(str::to_owned)
        .with_context(|| format!("{}: not UTF-8", bytes.escape_ascii()))
}

/// A name of a tar as a path of the tree; none for the root itself.
fn clean(name: &str) -> Result<Option<String>> {
    let parts: Vec<&str> = name
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    ensure!(!parts.contains(&".."), "{name:?} leads out of the tree");
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian(dir: &Path, reversed: bool) -> PathBuf {
        let path = dir.join(if reversed { "b.tar" } else { "a.tar" });
        let mut builder = Builder::new(File::create(&path).unwrap());
        let mut add = |name: &str, kind: EntryType, data: &str, target: Option<&str>| {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_uid(42);
            header.set_gid(0);
            header.set_mtime(if reversed { 12345 } else { 99 });
            header.set_size(data.len() as u64);
            match target {
                Some(target) => builder.append_link(&mut header, name, target).unwrap(),
                None => builder
                    .append_data(&mut header, name, data.as_bytes())
                    .unwrap(),
            }
        };
        let long = format!("./usr/{}/x", "long".repeat(40));
        let mut entries = vec![
            ("./usr/bin/perl", EntryType::Regular, "perl", None),
            (
                "./usr/bin/aperl",
                EntryType::Link,
                "",
                Some("./usr/bin/perl"),
            ),
            (
                "./usr/bin/zperl",
                EntryType::Link,
                "",
                Some("./usr/bin/perl"),
            ),
            ("./bin", EntryType::Symlink, "", Some("usr/bin")),
            ("./dev/null", EntryType::Char, "", None),
            (long.as_str(), EntryType::Regular, "deep", None),
        ];
        if reversed {
            entries.reverse();
        }
        for (name, kind, data, target) in entries {
            add(name, kind, data, target);
        }
        builder.into_inner().unwrap();
        path
    }

    fn list(path: &Path) -> Vec<(String, EntryType, u64, u64)> {
        let mut archive = Archive::new(File::open(path).unwrap());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            (
                text(&entry.path_bytes()).unwrap(),
                header.entry_type(),
                header.uid().unwrap(),
                header.mtime().unwrap(),
            )
        });
        entries.collect()
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes_whatever_the_order_and_the_times() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        file::write(&program, "program").unwrap();
        let make = |reversed: bool| {
            let mut tree = Tree::read(&debian(dir.path(), reversed)).unwrap();
            let digest = file::digest(b"program");
            tree.file("opt/cni/bin/bridge", 0o755, &program, &digest, 7)
                .unwrap();
            tree.symlink("usr/local/bin/kubelet", "kubernetes").unwrap();
            tree.directory("tmp", 0o1777).unwrap();
            let to = dir.path().join("out.tar");
            let result = tree.write(&to, 7).unwrap();
            assert_eq!(result, file::digest_file(&to).unwrap());
            (result, list(&to))
        };
        let (first, entries) = make(false);
        assert_eq!(first, make(true).0);
        let names: Vec<&str> = entries.iter().map(|e| e.0.trim_end_matches('/')).collect();
        assert!(names.is_sorted(), "{names:?}");
        assert!(!names.iter().any(|name| name.contains("null")));
        assert!(entries.iter().all(|e| e.3 == 7));
        let kind = |name: &str| entries.iter().find(|e| e.0 == name).unwrap().1;
        assert_eq!(kind("usr/bin/aperl"), EntryType::Regular);
        assert_eq!(kind("usr/bin/perl"), EntryType::Link);
        assert_eq!(kind("usr/bin/zperl"), EntryType::Link);
        assert_eq!(kind("opt/cni/"), EntryType::Directory);
        let perl = entries.iter().find(|e| e.0 == "usr/bin/aperl").unwrap();
        assert_eq!(perl.2, 42);
    }

    #[test]
    fn a_changed_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        file::write(&program, "damaged").unwrap();
        let mut tree = Tree::default();
        tree.file("a", 0o755, &program, &file::digest(b"program"), 7)
            .unwrap();
        let error = tree.write(&dir.path().join("out.tar"), 0).unwrap_err();
        assert!(
            format!("{error:#}").contains("program is sha256:"),
            "{error:#}"
        );
    }

    #[test]
    fn nothing_is_put_below_a_link_and_nothing_leaves_the_tree() {
        let mut tree = Tree::default();
        tree.symlink("bin", "usr/bin").unwrap();
        assert!(tree.bytes("bin/sh", 0o755, "x").is_err());
        assert!(clean("a/../../b").is_err());
        assert_eq!(clean("./").unwrap(), None);
        assert_eq!(clean("./a/b/").unwrap(), Some("a/b".into()));
    }
}
