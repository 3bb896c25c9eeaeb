//! Reads every byte of an image and names what is damaged.
//!
//! In: an open image. Out: a list of [`Damage`], empty when the file is what
//! was written. Program, padding, head page, every frame, every blob's digest,
//! index and footer are compared; parts are read in parallel.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use event::{Event, Sink, Unit};

use super::format::{Blob, Encoding, FOOTER, Frame, PAGE, align, head_page, index_hash};
use super::read::Image;
use crate::chunks::{check_hash, decode_frame};
use crate::digest::{Hasher, sha256};
use crate::ordered::threads_for;

/// A part of the file that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Which part, such as `frame 3 of blob sha256:...`.
    pub part: String,
    /// Where it begins in the file.
    pub offset: u64,
    /// How long it is in bytes.
    pub length: u64,
    /// What is wrong with it.
    pub problem: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let last = (self.offset + self.length).saturating_sub(1);
        write!(
            f,
            "{} (bytes {} to {last}): {}",
            self.part, self.offset, self.problem
        )
    }
}

/// Frames that one thread checks before it takes others.
const FRAMES_AT_A_TIME: usize = 16;

enum Part<'a> {
    Elf,
    Head,
    Blob(&'a Blob),
    /// Frames of a blob as they are stored.
    Frames(&'a Blob, &'a [Frame]),
    Padding(u64, u64),
    End,
}

impl Image {
    /// Compares every byte of the file with what was written, and the content of
    /// compressed blobs with their digests. Damage to the end of the file is
    /// found by [`Image::open`] already. What can't be read is damage.
    pub fn verify(&self, sink: &dyn Sink) -> Vec<Damage> {
        self.examine(sink, |blob, parts| parts.push(Part::Blob(blob)))
    }

    /// Compares every byte of the file with what was written. Whoever reads a
    /// compressed blob checks its content: here it is not decompressed, so that
    /// an install begins sooner. What can't be read is damage.
    pub fn verify_stored(&self, sink: &dyn Sink) -> Vec<Damage> {
        self.examine(sink, |blob, parts| match blob.frames[..] {
            [] => parts.push(Part::Blob(blob)),
            [..] => {
                let groups = blob.frames.chunks(FRAMES_AT_A_TIME);
                parts.extend(groups.map(|frames| Part::Frames(blob, frames)));
            }
        })
    }

    fn examine<'a>(
        &'a self,
        sink: &dyn Sink,
        split: impl Fn(&'a Blob, &mut Vec<Part<'a>>),
    ) -> Vec<Damage> {
        let mut parts = vec![Part::Elf, Part::Head];
        let mut at = self.elf().size;
        if align(at) > at {
            parts.push(Part::Padding(at, align(at)));
        }
        at = align(at) + PAGE;
        for blob in self.blobs() {
            split(blob, &mut parts);
            at = blob.offset + blob.length;
            if align(at) > at {
                parts.push(Part::Padding(at, align(at)));
            }
        }
        debug_assert_eq!(align(at), self.footer().index_offset);
        parts.push(Part::End);

        let next = AtomicUsize::new(0);
        let done = AtomicU64::new(0);
        let found: Mutex<Vec<Damage>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..threads_for(parts.len()) {
                scope.spawn(|| {
                    while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let (length, damage) = self.check(part);
                        found
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .extend(damage);
                        let done = done.fetch_add(length, Ordering::Relaxed) + length;
                        sink.emit(Event::Progress {
                            task: "verify".into(),
                            done,
                            total: Some(self.length()),
                            unit: Unit::Bytes,
                        });
                    }
                });
            }
        });
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_by_key(|damage| damage.offset);
        found
    }

    /// Checks one part; returns its length and what of it is damaged.
    fn check(&self, part: &Part<'_>) -> (u64, Vec<Damage>) {
        let read = |offset: u64, length: u64| {
            let mut bytes = vec![0; length as usize];
            self.file()
                .read_exact_at(&mut bytes, offset)
                .map(|()| bytes)
        };
        match part {
            Part::Elf => {
                let elf = self.elf();
                let digest = Hasher::of_range(self.file(), 0, elf.size);
                let damage = found("the gravity program", 0, elf.size, digest, |digest| {
                    let expected = &elf.digest;
                    (digest != *expected)
                        .then(|| format!("has digest {digest}, expected {expected}"))
                });
                (elf.size, Vec::from_iter(damage))
            }
            Part::Head => {
                let offset = align(self.elf().size);
                let damage = found("the head page", offset, PAGE, read(offset, PAGE), |bytes| {
                    (bytes != head_page(self.elf().size))
                        .then(|| "differs from what every image has there".into())
                });
                (PAGE, Vec::from_iter(damage))
            }
            Part::Padding(from, to) => {
                let length = to - from;
                let damage = found("padding", *from, length, read(*from, length), |bytes| {
                    bytes
                        .iter()
                        .any(|byte| *byte != 0)
                        .then(|| "is not zero".into())
                });
                (length, Vec::from_iter(damage))
            }
            Part::Blob(blob) => {
                let damage = match blob.frames[..] {
                    [] => {
                        let digest = Hasher::of_range(self.file(), blob.offset, blob.length);
                        let wrong = |digest: String| {
                            (digest != blob.digest).then(|| format!("has digest {digest}"))
                        };
                        let damage = found(name(blob), blob.offset, blob.length, digest, wrong);
                        Vec::from_iter(damage)
                    }
                    [..] => self.check_frames(blob),
                };
                (blob.length, damage)
            }
            Part::Frames(blob, frames) => {
                let mut length = 0;
                let mut damage = Vec::new();
                for frame in *frames {
                    let offset = blob.offset + frame.offset;
                    let stored = u64::from(frame.length);
                    length += stored;
                    let part = format!("a frame of {}", name(blob));
                    let wrong = |bytes: Vec<u8>| {
                        (sha256(&bytes) != frame.hash).then(|| "is not what was written".into())
                    };
                    damage.extend(found(part, offset, stored, read(offset, stored), wrong));
                }
                (length, damage)
            }
            Part::End => {
                // Read again: it may have changed since the image was opened.
                let footer = self.footer();
                let (offset, length) = (footer.index_offset, footer.index_length);
                let index = found("the index", offset, length, read(offset, length), |bytes| {
                    (index_hash(&bytes) != footer.index_digest)
                        .then(|| "its sha256 is not the one in the footer".into())
                });
                let (offset, size) = (offset + length, FOOTER as u64);
                let end = found("the footer", offset, size, read(offset, size), |bytes| {
                    (bytes != footer.to_bytes())
                        .then(|| "changed since the image was opened".into())
                });
                (length + size, index.into_iter().chain(end).collect())
            }
        }
    }

    fn check_frames(&self, blob: &Blob) -> Vec<Damage> {
        let mut damage = Vec::new();
        let mut zstd = None;
        let mut out = Vec::new();
        let mut stored = Vec::new();
        let mut hasher = Hasher::default();
        for (number, frame) in blob.frames.iter().enumerate() {
            let offset = blob.offset + frame.offset;
            stored.resize(frame.length as usize, 0);
            let read = self.file().read_exact_at(&mut stored, offset);
            let part = format!("frame {number} of {}", name(blob));
            let bad = found(part, offset, u64::from(frame.length), read, |()| {
                let sound = match blob.encoding {
                    Encoding::Raw => {
                        std::mem::swap(&mut out, &mut stored);
                        check_hash(&out, &frame.hash)
                    }
                    Encoding::ZstdFrames => {
                        decode_frame(&mut zstd, &stored, frame.size, &frame.hash, &mut out)
                    }
                };
                sound.err()
            });
            match bad {
                None => hasher.update(&out),
                Some(bad) => damage.push(bad),
            }
        }
        // With a bad frame the whole differs too: one report is enough.
        if damage.is_empty() {
            let whole = Ok(hasher.finish());
            let wrong = |digest: String| {
                (digest != blob.digest).then(|| format!("its frames together have digest {digest}"))
            };
            damage.extend(found(name(blob), blob.offset, blob.length, whole, wrong));
        }
        damage
    }
}

/// The damage of a part that can't be read, or that `wrong` finds something wrong with.
fn found<T>(
    part: impl Into<String>,
    offset: u64,
    length: u64,
    result: std::io::Result<T>,
    wrong: impl FnOnce(T) -> Option<String>,
) -> Option<Damage> {
    let problem = match result {
        Ok(read) => wrong(read)?,
        Err(error) => format!("cannot be read: {error}"),
    };
    Some(Damage {
        part: part.into(),
        offset,
        length,
        problem,
    })
}

fn name(blob: &Blob) -> String {
    format!("blob {} ({})", blob.digest, blob.media_type)
}
