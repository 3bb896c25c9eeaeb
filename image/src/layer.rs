//! Layers of container images as they come: plain, gzip or zstd.
//!
//! In: a blob and its media type. Out: the tar in it. The end is told only
//! after all of the blob was read, so that its digest was compared; memory is
//! bounded whatever the blob says.

use std::io::{BufReader, Read};

use crate::chunks::{Chunks, ReadChunks};
use crate::{Error, Image, Result};

/// Largest window of a zstd stream, as a power of two: what every decoder
/// supports by default (RFC 8878 asks for 8 MiB, the tool has 128).
const ZSTD_WINDOW_LOG: u32 = 27;
/// How much is read from a compressed blob at once.
const BUFFER: usize = 128 << 10;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// What the media type of a layer says.
    ///
    /// # Errors
    /// [`Error::Document`] when it is no layer that is carried along: another
    /// compression, or a layer that may not be distributed.
    pub fn of(media_type: &str) -> Result<Self> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Self::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Self::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Self::Zstd),
            other => Err(Error::Document {
                what: "a layer".into(),
                reason: format!(
                    "is of the media type `{other}`; tar, tar with gzip and tar with zstd are supported"
                ),
            }),
        }
    }

    /// The tar in `reader`.
    ///
    /// # Errors
    /// When the decompressor can't be set up.
    pub fn decode<'a>(self, reader: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
        let setup = Error::at("decompress", std::path::Path::new("a layer"));
        Ok(match self {
            Self::None => Box::new(reader),
            Self::Gzip => {
                let reader = BufReader::with_capacity(BUFFER, reader);
                Box::new(flate2::bufread::MultiGzDecoder::new(reader))
            }
            Self::Zstd => {
                let reader = BufReader::with_capacity(BUFFER, reader);
                let mut decoder = zstd::Decoder::with_buffer(reader).map_err(setup)?;
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG)
                    .map_err(Error::at("decompress", std::path::Path::new("a layer")))?;
                Box::new(decoder)
            }
        })
    }
}

/// The tar of a layer that `image` holds, for [`crate::unpack::unpack`].
///
/// # Errors
/// [`Error::MissingBlob`], or that the media type is not supported.
pub fn open(image: &Image, digest: &str, media_type: &str) -> Result<Box<dyn Chunks>> {
    let blob = image.reader(digest)?;
    Ok(match Compression::of(media_type)? {
        // Its chunks go to the writers without a copy.
        Compression::None => Box::new(blob),
        compression => Box::new(ReadChunks::new(compression.decode(blob)?)),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn all(compression: Compression, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let reader = compression.decode(bytes).unwrap();
        reader.take(1 << 20).read_to_end(&mut out).map(|_| out)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn each_compression_comes_back_and_members_add_up() {
        let text = b"layer".repeat(100);
        let zstd = zstd::encode_all(&text[..], 1).unwrap();
        assert_eq!(all(Compression::None, &text).unwrap(), text);
        assert_eq!(all(Compression::Gzip, &gzip(&text)).unwrap(), text);
        assert_eq!(all(Compression::Zstd, &zstd).unwrap(), text);
        let twice = text.repeat(2);
        assert_eq!(
            all(Compression::Gzip, &gzip(&text).repeat(2)).unwrap(),
            twice
        );
        assert_eq!(all(Compression::Zstd, &zstd.repeat(2)).unwrap(), twice);
    }

    #[test]
    fn what_is_cut_changed_or_followed_by_something_is_an_error() {
        let text = b"layer".repeat(100);
        let zstd = zstd::encode_all(&text[..], 1).unwrap();
        for (compression, good) in [(Compression::Gzip, gzip(&text)), (Compression::Zstd, zstd)] {
            let mut followed = good.clone();
            followed.extend_from_slice(b"something");
            assert!(all(compression, &followed).is_err(), "{compression:?}");
            assert!(all(compression, &good[..good.len() - 3]).is_err());
            assert!(all(compression, &text).is_err());
        }
        // Asks for a window of 2 GiB.
        let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
        assert!(all(Compression::Zstd, &window).is_err());
    }

    #[test]
    fn media_types_are_known_or_refused() {
        for (kind, compression) in [
            ("application/vnd.oci.image.layer.v1.tar", Compression::None),
            (
                "application/vnd.oci.image.layer.v1.tar+zstd",
                Compression::Zstd,
            ),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                Compression::Gzip,
            ),
        ] {
            assert_eq!(Compression::of(kind).unwrap(), compression);
        }
        for kind in [
            "",
            "application/vnd.oci.image.layer.v1.tar+bzip2",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+encrypted",
        ] {
            assert!(Compression::of(kind).is_err(), "{kind}");
        }
    }
}
