//! The cluster image, for nodes that join.
//!
//! In: what a node keeps of the image: a file, with holes where the store of
//! blobs has what was there; or what it has got of one so far. Out: ranges of it,
//! over [`rpc::images`]: by the controller on masters, by [`run`] on workers, by
//! [`Coming`] on nodes that join.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};

use host::facts::{HostFacts, Interest};
use image::{Encoding, Image, Partial};
use pki::tls::{Identity, ServerConfig};
use rpc::controller::Refusal;
use rpc::images::{Have, Images, Range};
use rpc::peer::Here;
use spec::RPC_AUTHORITY;
use spec::layout::{Layout, PLANET_STATE};
use tokio::net::TcpListener;

use crate::controller::{Error, read};
use crate::secrets::IMAGES_CERTIFICATE;

/// The image that a node keeps.
#[derive(Debug)]
pub struct Kept {
    layout: Layout,
    image: OnceLock<Image>,
}

impl Kept {
    /// That of the state directory of a layout.
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            image: OnceLock::new(),
        }
    }

    /// That of this node, as its planet sees it.
    pub(crate) fn inside() -> Self {
        Self::new(Layout::new(PLANET_STATE))
    }

    /// It may come after this began.
    fn image(&self) -> Result<&Image, Refusal> {
        if let Some(image) = self.image.get() {
            return Ok(image);
        }
        let image = Image::open(self.layout.cluster_image()).map_err(|error| {
            tracing::info!(%error, "asked for the cluster image, which is not here");
            Refusal::NotNow("it does not have the cluster image".into())
        })?;
        Ok(self.image.get_or_init(|| image))
    }
}

impl Images for Kept {
    fn end(&self) -> Result<Vec<u8>, Refusal> {
        let end = self.image()?.end();
        end.map_err(|error| Refusal::NotNow(error.to_string()))
    }

    fn have(&self, image: &str) -> Result<Have, Refusal> {
        same(self.image()?, image).map(|()| Have::All)
    }

    fn read(&self, range: &Range) -> Result<Vec<u8>, Refusal> {
        let image = self.image()?;
        same(image, &range.image)?;
        let stored = image
            .blob(&range.digest)
            .filter(|blob| blob.encoding == Encoding::Raw);
        if let Some(blob) = stored {
            blob.check_range(range.offset, range.length as u64)
                .map_err(refuse)?;
            if let Ok(bytes) = read_at(&self.layout.blob(&blob.digest), range) {
                return Ok(bytes);
            }
        }
        image
            .read_stored(&range.digest, range.offset, range.length)
            .map_err(refuse)
    }
}

/// Whether an image is the one whose index has this digest.
fn same(image: &Image, index: &str) -> Result<(), Refusal> {
    match image.index_digest() == index {
        true => Ok(()),
        false => Err(Refusal::Refused("it has another image".into())),
    }
}

fn refuse(error: image::Error) -> Refusal {
    Refusal::Refused(error.to_string())
}

/// An image that this node is getting: while it does, others can have what has
/// come.
#[derive(Debug)]
pub struct Coming(Weak<Partial>);

impl Coming {
    /// Gives of it until it is dropped elsewhere.
    pub fn new(partial: &Arc<Partial>) -> Self {
        Self(Arc::downgrade(partial))
    }

    fn partial(&self) -> Result<Arc<Partial>, Refusal> {
        let gone = || Refusal::NotNow("it goes on to other things".into());
        self.0.upgrade().ok_or_else(gone)
    }
}

impl Images for Coming {
    fn end(&self) -> Result<Vec<u8>, Refusal> {
        self.partial()?.image().end().map_err(refuse)
    }

    fn have(&self, image: &str) -> Result<Have, Refusal> {
        let partial = self.partial()?;
        same(partial.image(), image).map(|()| Have::Pieces(partial.have()))
    }

    fn read(&self, range: &Range) -> Result<Vec<u8>, Refusal> {
        let partial = self.partial()?;
        same(partial.image(), &range.image)?;
        let read = partial.read(&range.digest, range.offset, range.length);
        read.map_err(refuse)?
            .ok_or_else(|| Refusal::NotNow("it has not got that yet".into()))
    }
}

fn read_at(path: &Path, range: &Range) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = vec![0; range.length];
    file.read_exact_at(&mut bytes, range.offset)?;
    Ok(bytes)
}

/// Gives the image away at `listen` until `stop` comes back, and answers who measures
/// the way to this node. `secrets` holds a certificate and the authority of nodes.
///
/// # Errors
/// When it can't begin or go on.
pub async fn run(
    listen: SocketAddr,
    secrets: &Path,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let (listener, tls) = self::listen(listen, secrets, IMAGES_CERTIFICATE).await?;
    let here = Here::of(&HostFacts::collect(&Interest::default())).in_cluster();
    let kept = Arc::new(Kept::inside());
    Ok(rpc::images::serve(listener, tls, kept, Some(here), stop).await?)
}

/// Listens at `address` for nodes, with one of the certificates in `secrets`.
pub(crate) async fn listen(
    address: SocketAddr,
    secrets: &Path,
    certificate: &str,
) -> Result<(TcpListener, Arc<ServerConfig>), Error> {
    let text = |name: String| read(&secrets.join(name));
    let authority = text(format!("{RPC_AUTHORITY}.crt"))?;
    let identity = Identity {
        // Who comes with a token knows the authority only by its digest.
        certificate_pem: text(format!("{certificate}.crt"))? + &authority,
        key_pem: text(format!("{certificate}.key"))?,
    };
    let tls = pki::tls::server(&identity, &authority)?;
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|source| Error::Listen { address, source })?;
    Ok((listener, tls))
}

#[cfg(test)]
mod tests {
    use image::Writer;

    use super::*;

    #[test]
    fn ranges_come_from_the_store_or_the_file_and_others_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        let kept = Kept::new(layout.clone());
        let missing = kept.end().unwrap_err();
        assert!(matches!(missing, Refusal::NotNow(_)), "{missing}");

        let elf = directory.path().join("elf");
        host::atomic::write(&elf, b"program", 0o755).unwrap();
        let built = directory.path().join("file");
        let mut writer = Writer::create(&built, &elf).unwrap();
        let root = writer.add_blob_bytes(b"the root", "a/b").unwrap();
        let stored = writer.add_blob_bytes(b"a large layer", "a/b").unwrap();
        writer.finish(&root, "linux/amd64").unwrap();
        std::fs::create_dir_all(layout.image()).unwrap();
        let image = Image::open(&built).unwrap();
        image
            .keep(&layout.cluster_image(), |blob| blob.digest == stored)
            .unwrap();
        let blob = layout.blob(&stored);
        std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
        host::atomic::write(&blob, b"a large layer", 0o644).unwrap();

        let range = |digest: &str, offset, length| Range {
            image: image.index_digest(),
            digest: digest.into(),
            offset,
            length,
        };
        assert_eq!(kept.end().unwrap(), image.end().unwrap());
        assert_eq!(kept.have(&image.index_digest()), Ok(Have::All));
        kept.have(&stored).unwrap_err();
        assert_eq!(kept.read(&range(&root, 4, 4)).unwrap(), b"root");
        assert_eq!(kept.read(&range(&stored, 2, 5)).unwrap(), b"large");
        let unknown = image::digest::sha256(b"unknown");
        for (digest, offset, length) in [
            (&*root, 4, 5),
            (&stored, 13, 1),
            (&stored, u64::MAX, 2),
            (&root, 0, usize::MAX),
            (&unknown, 0, 1),
            ("sha256:../../../etc/shadow", 0, 1),
        ] {
            let refused = kept.read(&range(digest, offset, length)).unwrap_err();
            assert!(matches!(refused, Refusal::Refused(_)), "{refused}");
        }
        let other = Range {
            image: unknown,
            ..range(&root, 0, 1)
        };
        kept.read(&other).unwrap_err();

        // One that comes gives what has come.
        let partial = Partial::nameless(&image.end().unwrap(), &root).unwrap();
        let first = partial.missing(u64::MAX).unwrap().remove(0);
        partial.put(&first, b"the root").unwrap();
        let partial = Arc::new(partial);
        let coming = Coming::new(&partial);
        assert_eq!(coming.end().unwrap(), image.end().unwrap());
        let have = coming.have(&image.index_digest()).unwrap();
        assert_eq!([0, 1].map(|number| have.has(number)), [true, false]);
        assert_eq!(coming.read(&range(&root, 4, 4)).unwrap(), b"root");
        let missing = coming.read(&range(&stored, 0, 1)).unwrap_err();
        assert!(matches!(missing, Refusal::NotNow(_)), "{missing}");
        coming.have(&stored).unwrap_err();
        coming.read(&other).unwrap_err();
        drop(partial);
        coming.read(&range(&root, 4, 4)).unwrap_err();
    }
}
