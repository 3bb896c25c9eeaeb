//! A directory in OCI image layout: blobs by digest, tags in `index.json`.
//!
//! In: content and names. Out: content that has its digest. A blob has its
//! name only when it is complete and was verified; the index is replaced as a
//! whole while a lock is held, so several processes may write to one layout.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, DescriptorBuilder, ImageIndex, ImageManifest, MediaType};
use serde::de::DeserializeOwned;

use crate::digest::{self, BadDigest, Digest, Hasher};

/// Annotation that holds a tag.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Most bytes of a document: an index, a manifest, a config. Registries take
/// manifests of at most 4 MiB.
pub const MAX_DOCUMENT: u64 = 4 << 20;

const MARKER: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// What is wrong with a layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The operating system refused something.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// Verb, such as `open`.
        action: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no layout.
    #[error("{} is not an OCI image layout: it has no file oci-layout", path.display())]
    NotALayout {
        /// The directory.
        path: PathBuf,
    },
    /// A document is not what it must be.
    #[error("{}: {reason}", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No image has this tag.
    #[error("{} holds no image `{reference}`; it holds {}", path.display(), list(known))]
    NoSuchImage {
        /// The directory.
        path: PathBuf,
        /// What was looked for.
        reference: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The content is not there.
    #[error("{} holds no blob {digest}", path.display())]
    MissingBlob {
        /// The directory.
        path: PathBuf,
        /// The digest.
        digest: Digest,
    },
    /// Content and digest differ.
    #[error("{}: the content has digest {actual}, expected {expected}: remove the file, so that it is fetched again", path.display())]
    WrongDigest {
        /// The file.
        path: PathBuf,
        /// What it should have.
        expected: Digest,
        /// What it has.
        actual: Digest,
    },
    /// More bytes than anything real has.
    #[error("{}: {size} bytes are more than the limit of {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A digest is malformed.
    #[error(transparent)]
    Digest(#[from] BadDigest),
}

fn list(known: &[String]) -> String {
    match known {
        [] => "no images".into(),
        known => known.join(", "),
    }
}

type Result<T, E = LayoutError> = std::result::Result<T, E>;

fn at<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> LayoutError {
    move |source| LayoutError::Io {
        action,
        path: path.to_owned(),
        source: source.into(),
    }
}

/// A layout on this machine.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Opens a layout.
    ///
    /// # Errors
    /// [`LayoutError::NotALayout`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        match dir.join("oci-layout").is_file() {
            true => Ok(Self { dir }),
            false => Err(LayoutError::NotALayout { path: dir }),
        }
    }

    /// Opens a layout, which is made where there is none.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn open_or_create(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(at("create", &blobs))?;
        let layout = Self { dir };
        if !layout.dir.join("oci-layout").is_file() {
            let _lock = layout.lock()?;
            layout.replace("oci-layout", MARKER.as_bytes())?;
        }
        Ok(layout)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the blob is, or would be.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// Whether the blob is there, in full length.
    pub fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        std::fs::metadata(self.blob_path(digest))
            .is_ok_and(|meta| meta.is_file() && meta.len() == size)
    }

    /// Reads a blob of at most `max` bytes and verifies it.
    ///
    /// # Errors
    /// When it is missing, too large or has another digest.
    pub fn read_blob(&self, digest: &Digest, max: u64) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let bytes = match read_bounded(&path, max)? {
            Some(bytes) => bytes,
            None => {
                return Err(LayoutError::MissingBlob {
                    path: self.dir.clone(),
                    digest: digest.clone(),
                });
            }
        };
        let actual = Digest::of(&bytes);
        match actual == *digest {
            true => Ok(bytes),
            false => Err(LayoutError::WrongDigest {
                path,
                expected: digest.clone(),
                actual,
            }),
        }
    }

    /// Reads a JSON document by its descriptor.
    ///
    /// # Errors
    /// As [`Layout::read_blob`], or when it is not such a document.
    pub fn read_json<T: DeserializeOwned>(&self, digest: &Digest) -> Result<T> {
        let bytes = self.read_blob(digest, MAX_DOCUMENT)?;
        serde_json::from_slice(&bytes).map_err(|e| LayoutError::Document {
            path: self.blob_path(digest),
            reason: e.to_string(),
        })
    }

    /// Reads an image manifest.
    ///
    /// # Errors
    /// As [`Layout::read_json`].
    pub fn read_manifest(&self, descriptor: &Descriptor) -> Result<ImageManifest> {
        self.read_json(&Digest::try_from(descriptor.digest())?)
    }

    /// Adds a blob.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn put_blob_bytes(&self, bytes: &[u8], media_type: &str) -> Result<Descriptor> {
        let mut blob = self.begin_blob()?;
        blob.write_all(bytes).map_err(at("write to", &self.dir))?;
        blob.finish(media_type)
    }

    /// Adds the content of a file. The file is copied.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub fn put_blob_file(&self, path: &Path, media_type: &str) -> Result<Descriptor> {
        let mut file = File::open(path).map_err(at("open", path))?;
        let mut blob = self.begin_blob()?;
        io::copy(&mut file, &mut blob).map_err(at("copy", path))?;
        blob.finish(media_type)
    }

    /// Begins a blob whose digest is known only at its end.
    ///
    /// # Errors
    /// When no file can be made.
    pub fn begin_blob(&self) -> Result<BlobWriter<'_>> {
        let dir = self.dir.join("blobs/sha256");
        let temp = tempfile::Builder::new()
            .prefix(".partial-")
            .tempfile_in(&dir)
            .map_err(at("create a file in", &dir))?;
        Ok(BlobWriter {
            layout: self,
            temp,
            hasher: Hasher::default(),
        })
    }

    /// A file of this filesystem without a name in the layout.
    pub(crate) fn temp(&self) -> Result<tempfile::NamedTempFile> {
        tempfile::Builder::new()
            .prefix(".partial-")
            .tempfile_in(&self.dir)
            .map_err(at("create a file in", &self.dir))
    }

    /// A directory of this filesystem, which goes away with its value.
    pub(crate) fn temp_dir(&self) -> Result<tempfile::TempDir> {
        tempfile::Builder::new()
            .prefix(".partial-")
            .tempdir_in(&self.dir)
            .map_err(at("create a directory in", &self.dir))
    }

    /// Moves in a file of this filesystem whose digest the caller has computed.
    ///
    /// # Errors
    /// When it can't be renamed.
    pub fn adopt_verified(&self, path: &Path, digest: &Digest) -> Result<()> {
        let to = self.blob_path(digest);
        std::fs::rename(path, &to).map_err(at("move a file to", &to))
    }

    /// Gives an image a tag, which it takes from any other image.
    ///
    /// # Errors
    /// When the index is malformed or can't be written.
    pub fn tag(&self, reference: &str, mut descriptor: Descriptor) -> Result<()> {
        let _lock = self.lock()?;
        let index = self.index()?;
        let mut annotations = descriptor.annotations().clone().unwrap_or_default();
        annotations.insert(REF_NAME.into(), reference.into());
        descriptor.set_annotations(Some(annotations));
        let mut manifests: Vec<Descriptor> = index
            .manifests()
            .iter()
            .filter(|d| name_of(d) != Some(reference))
            .cloned()
            .collect();
        manifests.push(descriptor);
        self.write_index(index, manifests)
    }

    /// Takes a tag away, and all blobs that it alone led to.
    ///
    /// # Errors
    /// [`LayoutError::NoSuchImage`]; or why something can't be removed.
    pub fn remove(&self, reference: &str) -> Result<()> {
        // Whoever adds an image holds this while its blobs have no tag.
        let guard = self.open_lock(".keep")?;
        guard.lock().map_err(at("lock", &self.dir))?;
        let _lock = self.lock()?;
        let removed = self.resolve(reference)?;
        let index = self.index()?;
        let rest: Vec<Descriptor> = index
            .manifests()
            .iter()
            .filter(|d| name_of(d) != Some(reference))
            .cloned()
            .collect();
        let (mut gone, mut kept) = (HashSet::new(), HashSet::new());
        crate::hub::reach(self, &removed, &mut gone);
        for descriptor in &rest {
            crate::hub::reach(self, descriptor, &mut kept);
        }
        self.write_index(index, rest)?;
        for digest in gone.difference(&kept) {
            let path = self.blob_path(digest);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(at("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// While this is held, no blob is removed.
    ///
    /// # Errors
    /// When it can't be had.
    pub fn keep(&self) -> Result<File> {
        let file = self.open_lock(".keep")?;
        file.lock_shared().map_err(at("lock", &self.dir))?;
        Ok(file)
    }

    fn write_index(&self, mut index: ImageIndex, mut manifests: Vec<Descriptor>) -> Result<()> {
        manifests.sort_by(|a, b| {
            (name_of(a), a.digest().as_ref()).cmp(&(name_of(b), b.digest().as_ref()))
        });
        index.set_manifests(manifests);
        // Annotations are a hash map; as a value they have one order.
        let text = serde_json::to_value(&index)
            .and_then(|mut value| {
                value.sort_all_objects();
                serde_json::to_vec_pretty(&value)
            })
            .map_err(|e| LayoutError::Document {
                path: self.index_path(),
                reason: e.to_string(),
            })?;
        self.replace("index.json", &text)
    }

    /// The image with this tag.
    ///
    /// # Errors
    /// [`LayoutError::NoSuchImage`] tells what there is.
    pub fn resolve(&self, reference: &str) -> Result<Descriptor> {
        let index = self.index()?;
        if let Some(found) = index
            .manifests()
            .iter()
            .find(|d| name_of(d) == Some(reference))
        {
            return Ok(found.clone());
        }
        let known = index
            .manifests()
            .iter()
            .filter_map(name_of)
            .map(Into::into)
            .collect();
        Err(LayoutError::NoSuchImage {
            path: self.dir.clone(),
            reference: reference.into(),
            known,
        })
    }

    /// All tags with what they name, by name.
    ///
    /// # Errors
    /// When the index is malformed.
    pub fn tags(&self) -> Result<Vec<(String, Descriptor)>> {
        let mut tags: Vec<_> = self
            .index()?
            .manifests()
            .iter()
            .filter_map(|d| Some((name_of(d)?.to_owned(), d.clone())))
            .collect();
        tags.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(tags)
    }

    fn index_path(&self) -> PathBuf {
        self.dir.join("index.json")
    }

    fn index(&self) -> Result<ImageIndex> {
        let path = self.index_path();
        match read_bounded(&path, MAX_DOCUMENT)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| LayoutError::Document {
                path,
                reason: e.to_string(),
            }),
            None => {
                let mut index = ImageIndex::default();
                index.set_media_type(Some(MediaType::ImageIndex));
                Ok(index)
            }
        }
    }

    fn lock(&self) -> Result<File> {
        let file = self.open_lock(".lock")?;
        file.lock().map_err(at("lock", &self.dir))?;
        Ok(file)
    }

    fn open_lock(&self, name: &str) -> Result<File> {
        let path = self.dir.join(name);
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(at("open", &path))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        host::atomic::write(&path, bytes, 0o644).map_err(|e| LayoutError::Io {
            action: "write",
            path,
            source: e.source,
        })
    }
}

/// A blob that is being written. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct BlobWriter<'a> {
    layout: &'a Layout,
    temp: tempfile::NamedTempFile,
    hasher: Hasher,
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.temp.as_file_mut().write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temp.as_file_mut().flush()
    }
}

impl BlobWriter<'_> {
    /// Number of bytes so far.
    pub fn written(&self) -> u64 {
        self.hasher.size()
    }

    /// Forgets all bytes so far.
    ///
    /// # Errors
    /// When the file can't be shortened.
    pub fn reset(&mut self) -> io::Result<()> {
        self.hasher = Hasher::default();
        self.temp.as_file().set_len(0)?;
        self.temp.as_file_mut().rewind()
    }

    /// Gives the blob its name.
    ///
    /// # Errors
    /// When it can't be moved.
    pub fn finish(self, media_type: &str) -> Result<Descriptor> {
        let size = self.hasher.size();
        let (digest, temp) = (self.hasher.finish(), self.temp);
        persist(self.layout, temp, &digest)?;
        descriptor(digest, size, media_type)
    }

    /// Gives the blob its name if it is what was expected; otherwise returns
    /// the digest that it has.
    ///
    /// # Errors
    /// When it can't be moved.
    pub(crate) fn finish_as(self, expected: &Digest) -> Result<Result<(), Digest>> {
        let (actual, temp) = (self.hasher.finish(), self.temp);
        if actual != *expected {
            return Ok(Err(actual));
        }
        persist(self.layout, temp, expected).map(Ok)
    }
}

fn persist(layout: &Layout, temp: tempfile::NamedTempFile, digest: &Digest) -> Result<()> {
    let path = layout.blob_path(digest);
    temp.as_file().sync_data().map_err(at("write", &path))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    temp.as_file()
        .set_permissions(mode)
        .map_err(at("write", &path))?;
    match temp.persist(&path) {
        Ok(_) => Ok(()),
        Err(e) => Err(LayoutError::Io {
            action: "write",
            path,
            source: e.error,
        }),
    }
}

/// A descriptor of content with this digest and size in bytes.
///
/// # Errors
/// Never for a valid media type.
pub fn descriptor(digest: Digest, size: u64, media_type: &str) -> Result<Descriptor> {
    DescriptorBuilder::default()
        .media_type(MediaType::from(media_type))
        .digest(digest)
        .size(size)
        .build()
        .map_err(|e| LayoutError::Document {
            path: "descriptor".into(),
            reason: e.to_string(),
        })
}

fn name_of(descriptor: &Descriptor) -> Option<&str> {
    descriptor
        .annotations()
        .as_ref()?
        .get(REF_NAME)
        .map(String::as_str)
}

/// The content of a file, or nothing where there is none.
fn read_bounded(path: &Path, max: u64) -> Result<Option<Vec<u8>>> {
    match host::bounded::bytes(path, max) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(LayoutError::TooLarge {
            path: path.into(),
            size: std::fs::metadata(path).map_or(max + 1, |meta| meta.len()),
            limit: max,
        }),
        Err(error) => Err(at("read", path)(error)),
    }
}

/// Hashes the file of a blob.
///
/// # Errors
/// When it can't be read or has another digest.
pub fn verify_file(path: &Path, expected: &Digest) -> Result<()> {
    let mut file = File::open(path).map_err(at("open", path))?;
    let (actual, _) = digest::copy(&mut file, &mut io::sink()).map_err(at("read", path))?;
    match actual == *expected {
        true => Ok(()),
        false => Err(LayoutError::WrongDigest {
            path: path.into(),
            expected: expected.clone(),
            actual,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

    fn layout() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open_or_create(dir.path().join("hub")).unwrap();
        (dir, layout)
    }

    #[test]
    fn blobs_come_back_and_damage_is_found() {
        let (dir, layout) = layout();
        assert!(matches!(
            Layout::open(dir.path()),
            Err(LayoutError::NotALayout { .. })
        ));
        Layout::open(layout.dir()).unwrap();
        let bytes = layout.put_blob_bytes(b"content", TYPE).unwrap();
        let path = dir.path().join("file");
        std::io::Write::write_all(&mut File::create(&path).unwrap(), b"content").unwrap();
        assert_eq!(layout.put_blob_file(&path, TYPE).unwrap(), bytes);
        let digest = Digest::try_from(bytes.digest()).unwrap();
        assert_eq!(layout.read_blob(&digest, 7).unwrap(), b"content");
        assert!(layout.has_blob(&digest, 7) && !layout.has_blob(&digest, 8));
        assert!(matches!(
            layout.read_blob(&digest, 6),
            Err(LayoutError::TooLarge {
                size: 7,
                limit: 6,
                ..
            })
        ));
        let missing = Digest::of(b"other");
        assert!(matches!(
            layout.read_blob(&missing, 9),
            Err(LayoutError::MissingBlob { .. })
        ));
        std::io::Write::write_all(
            &mut File::create(layout.blob_path(&digest)).unwrap(),
            b"damaged",
        )
        .unwrap();
        assert!(matches!(
            layout.read_blob(&digest, 7),
            Err(LayoutError::WrongDigest { .. })
        ));
        assert!(verify_file(&layout.blob_path(&digest), &digest).is_err());
        // Nothing but blobs is left.
        assert_eq!(
            std::fs::read_dir(layout.dir().join("blobs/sha256"))
                .unwrap()
                .count(),
            1
        );
    }

    #[test]
    fn a_tag_moves_and_unknown_ones_are_told() {
        let (_dir, layout) = layout();
        let one = layout.put_blob_bytes(b"{}", TYPE).unwrap();
        let two = layout.put_blob_bytes(b"[]", TYPE).unwrap();
        assert!(
            layout
                .resolve("gravity:6.0.0")
                .unwrap_err()
                .to_string()
                .ends_with("it holds no images")
        );
        layout.tag("planet:6.0.0", two.clone()).unwrap();
        layout.tag("gravity:6.0.0", one).unwrap();
        layout.tag("gravity:6.0.0", two.clone()).unwrap();
        assert_eq!(
            layout.resolve("gravity:6.0.0").unwrap().digest(),
            two.digest()
        );
        let names: Vec<_> = layout
            .tags()
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["gravity:6.0.0", "planet:6.0.0"]);
        let error = layout.resolve("gravity:7.0.0").unwrap_err().to_string();
        assert!(
            error.ends_with("`gravity:7.0.0`; it holds gravity:6.0.0, planet:6.0.0"),
            "{error}"
        );
    }

    #[test]
    fn concurrent_tags_are_all_kept() {
        let (_dir, layout) = layout();
        let image = layout.put_blob_bytes(b"{}", TYPE).unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (layout, image) = (&layout, image.clone());
                scope.spawn(move || layout.tag(&format!("image:{n}"), image).unwrap());
            }
        });
        assert_eq!(layout.tags().unwrap().len(), 8);
    }

    #[test]
    fn a_malformed_index_is_named() {
        let (_dir, layout) = layout();
        host::atomic::write(&layout.dir().join("index.json"), b"{", 0o644).unwrap();
        assert!(
            layout
                .tags()
                .unwrap_err()
                .to_string()
                .contains("index.json")
        );
    }
}
