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
        let found = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..threads_for(parts.len()) {
                scope.spawn(|| {
                    while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let length = self.check(part, &found);
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

    /// Checks one part; returns its length.
    fn check(&self, part: &Part<'_>, found: &Mutex<Vec<Damage>>) -> u64 {
        let report = |part: String, offset: u64, length: u64, problem: String| {
            let damage = Damage {
                part,
                offset,
                length,
                problem,
            };
            found
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(damage);
        };
        let read = |offset: u64, length: u64| {
            let mut bytes = vec![0; length as usize];
            self.file()
                .read_exact_at(&mut bytes, offset)
                .map(|()| bytes)
        };
        let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
        match part {
            Part::Elf => {
                let elf = self.elf();
                let problem = match Hasher::of_range(self.file(), 0, elf.size) {
                    Ok(digest) if digest == elf.digest => None,
                    Ok(digest) => Some(format!("has digest {digest}, expected {}", elf.digest)),
                    Err(error) => Some(unreadable(error)),
                };
                if let Some(problem) = problem {
                    report("the gravity program".into(), 0, elf.size, problem);
                }
                elf.size
            }
            Part::Head => {
                let offset = align(self.elf().size);
                let problem = match read(offset, PAGE) {
                    Ok(bytes) if bytes == head_page(self.elf().size) => None,
                    Ok(_) => Some("differs from what every image has there".into()),
                    Err(error) => Some(unreadable(error)),
                };
                if let Some(problem) = problem {
                    report("the head page".into(), offset, PAGE, problem);
                }
                PAGE
            }
            Part::Padding(from, to) => {
                let problem = match read(*from, to - from) {
                    Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => None,
                    Ok(_) => Some("is not zero".into()),
                    Err(error) => Some(unreadable(error)),
                };
                if let Some(problem) = problem {
                    report("padding".into(), *from, to - from, problem);
                }
                to - from
            }
            Part::Blob(blob) => {
                match blob.frames[..] {
                    [] => {
                        let digest = Hasher::of_range(self.file(), blob.offset, blob.length);
                        let problem = match digest {
                            Ok(digest) if digest == blob.digest => None,
                            Ok(digest) => Some(format!("has digest {digest}")),
                            Err(error) => Some(unreadable(error)),
                        };
                        if let Some(problem) = problem {
                            report(name(blob), blob.offset, blob.length, problem);
                        }
                    }
                    [..] => self.check_frames(blob, &report),
                }
                blob.length
            }
            Part::Frames(blob, frames) => {
                let mut length = 0;
                for frame in *frames {
                    let offset = blob.offset + frame.offset;
                    let stored = u64::from(frame.length);
                    length += stored;
                    let problem = match read(offset, stored) {
                        Ok(bytes) if sha256(&bytes) == frame.hash => continue,
                        Ok(_) => "is not what was written".into(),
                        Err(error) => unreadable(error),
                    };
                    report(
                        format!("a frame of {}", name(blob)),
                        offset,
                        stored,
                        problem,
                    );
                }
                length
            }
            Part::End => {
                // Read again: it may have changed since the image was opened.
                let footer = self.footer();
                let (offset, length) = (footer.index_offset, footer.index_length);
                let problem = match read(offset, length) {
                    Ok(bytes) if index_hash(&bytes) == footer.index_digest => None,
                    Ok(_) => Some("its sha256 is not the one in the footer".into()),
                    Err(error) => Some(unreadable(error)),
                };
                if let Some(problem) = problem {
                    report("the index".into(), offset, length, problem);
                }
                let problem = match read(offset + length, FOOTER as u64) {
                    Ok(bytes) if bytes == footer.to_bytes() => None,
                    Ok(_) => Some("changed since the image was opened".into()),
                    Err(error) => Some(unreadable(error)),
                };
                if let Some(problem) = problem {
                    report("the footer".into(), offset + length, FOOTER as u64, problem);
                }
                length + FOOTER as u64
            }
        }
    }

    fn check_frames(&self, blob: &Blob, report: &dyn Fn(String, u64, u64, String)) {
        let mut zstd = None;
        let mut out = Vec::new();
        let mut stored = Vec::new();
        let mut hasher = Hasher::default();
        let mut sound = true;
        for (number, frame) in blob.frames.iter().enumerate() {
            stored.resize(frame.length as usize, 0);
            let result = match self
                .file()
                .read_exact_at(&mut stored, blob.offset + frame.offset)
            {
                Ok(()) if blob.encoding == Encoding::Raw => {
                    std::mem::swap(&mut out, &mut stored);
                    check_hash(&out, &frame.hash)
                }
                Ok(()) => decode_frame(&mut zstd, &stored, frame.size, &frame.hash, &mut out),
                Err(error) => Err(format!("cannot be read: {error}")),
            };
            match result {
                Ok(()) => hasher.update(&out),
                Err(problem) => {
                    sound = false;
                    let part = format!("frame {number} of {}", name(blob));
                    let length = u64::from(frame.length);
                    report(part, blob.offset + frame.offset, length, problem);
                }
            }
        }
        // With a bad frame the whole differs too: one report is enough.
        if sound {
            let digest = hasher.finish();
            if digest != blob.digest {
                let problem = format!("its frames together have digest {digest}");
                report(name(blob), blob.offset, blob.length, problem);
            }
        }
    }
}

fn name(blob: &Blob) -> String {
    format!("blob {} ({})", blob.digest, blob.media_type)
}
