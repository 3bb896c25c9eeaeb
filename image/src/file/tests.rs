//! Round trips, and every kind of damage.

use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use event::Discard;

use super::format::{FOOTER, Footer, Index};
use super::*;
use crate::digest::sha256;
use crate::encode::Cache;
use crate::{Chunks, Error};

/// Bytes that compress a little and repeat nowhere exactly.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|i| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if i % 3 == 0 { b'x' } else { state as u8 }
        })
        .collect()
}

fn put(path: &Path, bytes: &[u8]) {
    std::fs::File::create(path)
        .unwrap()
        .write_all(bytes)
        .unwrap();
}

struct Sample {
    dir: tempfile::TempDir,
    path: PathBuf,
    root: String,
    raw: Vec<u8>,
    tar: Vec<u8>,
}

fn build(dir: &Path, name: &str, raw: &[u8], tar: &[u8]) -> (PathBuf, String) {
    let elf = dir.join("elf");
    put(&elf, &noise(10_000, 3));
    put(&dir.join("raw"), raw);
    put(&dir.join("tar"), tar);
    let path = dir.join(name);
    let cache = Cache::open(dir.join("cache")).unwrap();
    let mut writer = Writer::create(&path, &elf).unwrap().with_cache(cache);
    let root = writer
        .add_blob_bytes(b"{\"root\":true}", "application/json")
        .unwrap();
    for _ in 0..2 {
        // The second time they are there already.
        writer
            .add_blob_file(&dir.join("raw"), &sha256(raw), "a/raw", Encoding::Raw)
            .unwrap();
        writer
            .add_blob_file(
                &dir.join("tar"),
                &sha256(tar),
                "a/tar",
                Encoding::ZstdFrames,
            )
            .unwrap();
    }
    writer.add_blob_bytes(b"", "a/empty").unwrap();
    let written = writer.finish(&root, "linux/amd64").unwrap();
    assert_eq!(written.length, std::fs::metadata(&path).unwrap().len());
    (path, root)
}

fn sample(raw: usize, tar: usize) -> Sample {
    let dir = tempfile::tempdir().unwrap();
    let (raw, tar) = (noise(raw, 1), noise(tar, 2));
    let (path, root) = build(dir.path(), "image", &raw, &tar);
    Sample {
        dir,
        path,
        root,
        raw,
        tar,
    }
}

#[test]
fn what_was_written_is_read() {
    let s = sample(3_000_001, 2_500_000);
    let image = Image::open(&s.path).unwrap();
    assert_eq!(image.root(), s.root);
    assert_eq!(image.platform(), "linux/amd64");
    assert_eq!(image.blobs().len(), 4);
    assert!(image.blobs().all(|blob| blob.offset % 4096 == 0));
    let stored = image.blob(&sha256(&s.tar)).unwrap();
    assert_eq!(stored.frames.len(), 3);
    assert!(stored.length < stored.size);
    assert_eq!(
        image.read_blob_bytes(&s.root, 100).unwrap(),
        b"{\"root\":true}"
    );
    for content in [&s.raw, &s.tar, &Vec::new()] {
        let digest = sha256(content);
        let mut bytes = Vec::new();
        image
            .reader(&digest)
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        assert_eq!(&bytes, content);
        let dest = s.dir.path().join("out");
        image.extract(&digest, &dest).unwrap();
        assert_eq!(&std::fs::read(&dest).unwrap(), content);
    }
    let dest = s.dir.path().join("gravity");
    image.extract_elf(&dest).unwrap();
    assert_eq!(std::fs::read(&dest).unwrap(), noise(10_000, 3));
    for path in [&dest, &s.path] {
        assert_eq!(
            std::fs::metadata(path).unwrap().permissions().mode() & 0o7777,
            0o755
        );
    }
    assert_eq!(image.verify(&Discard), []);
    assert_eq!(image.verify_stored(&Discard), []);
    // Stopping in the middle must not hang.
    let mut reader = image.reader(&sha256(&s.raw)).unwrap();
    assert!(reader.next_chunk().unwrap().is_some());
    drop(reader);
    assert!(matches!(
        image.read_blob_bytes(&sha256(&s.raw), 9),
        Err(Error::TooLarge { .. })
    ));
    assert!(matches!(
        image.reader(&sha256(b"?")),
        Err(Error::MissingBlob { .. })
    ));
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let s = sample(70_000, 1_200_000);
    let cold = std::fs::read(&s.path).unwrap();
    let (warm, _) = build(s.dir.path(), "warm", &s.raw, &s.tar);
    assert_eq!(std::fs::read(warm).unwrap(), cold);
    std::fs::remove_dir_all(s.dir.path().join("cache")).unwrap();
    let (again, _) = build(s.dir.path(), "again", &s.raw, &s.tar);
    assert_eq!(std::fs::read(again).unwrap(), cold);
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_image_after_other_bytes_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    put(&at("elf"), b"elf");
    put(&at("blob"), &[7; 10_000]);
    let write = |name: &str, start| {
        let mut writer = Writer::create_after(at(name), &at("elf"), start).unwrap();
        let digest = sha256(&[7; 10_000]);
        writer
            .add_blob_file(&at("blob"), &digest, "a/b", Encoding::Raw)
            .unwrap();
        let written = writer.finish(&digest, "linux/amd64").unwrap();
        assert_eq!(written.elf, sha256(b"elf"));
        let bytes = std::fs::read(at(name)).unwrap();
        assert_eq!(bytes.len() as u64, start + written.length);
        bytes
    };
    let (alone, after) = (write("alone", 0), write("after", 512));
    assert!(after[..512] == [0; 512] && after[512..] == alone);
}

#[test]
fn a_wrong_digest_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    put(&at("elf"), b"elf");
    put(&at("blob"), b"blob");
    let before = names(dir.path());
    let wrong = sha256(b"other");
    let mut writer = Writer::create(at("image"), &at("elf")).unwrap();
    writer
        .add_blob_file(&at("blob"), &wrong, "a/b", Encoding::Raw)
        .unwrap();
    let error = writer.finish(&wrong, "linux/amd64").unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    assert_eq!(names(dir.path()), before);

    let mut writer = Writer::create(at("image"), &at("elf")).unwrap();
    assert!(
        writer
            .add_blob_file(&at("blob"), "sha256:../x", "a/b", Encoding::Raw)
            .is_err()
    );
    assert!(
        writer
            .add_blob_file(&at("none"), &wrong, "a/b", Encoding::Raw)
            .is_err()
    );
    writer.add_blob_bytes(b"x", "a/b").unwrap();
    drop(writer);
    assert_eq!(names(dir.path()), before);

    // A root that is not there is never written.
    let writer = Writer::create(at("image"), &at("elf")).unwrap();
    assert!(matches!(
        writer.finish(&wrong, "linux/amd64"),
        Err(Error::Document { .. })
    ));
    assert_eq!(names(dir.path()), before);

    let cache = Cache::open(at("cache")).unwrap();
    let error = cache.encode(&at("blob"), &wrong).unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    assert_eq!(names(&at("cache")), Vec::<String>::new());
}

#[test]
fn a_rotten_cache_is_found() {
    let s = sample(1000, 1_500_000);
    let cache = s.dir.path().join("cache");
    let frames = names(&cache)
        .into_iter()
        .find(|name| name.ends_with(".frames"))
        .unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(cache.join(frames))
        .unwrap();
    file.write_all_at(b"!!!!", 777).unwrap();
    let cache = Cache::open(cache).unwrap();
    let mut writer = Writer::create(s.dir.path().join("new"), &s.dir.path().join("elf"))
        .unwrap()
        .with_cache(cache);
    let digest = sha256(&s.tar);
    writer
        .add_blob_file(
            &s.dir.path().join("tar"),
            &digest,
            "a/b",
            Encoding::ZstdFrames,
        )
        .unwrap();
    writer.finish(&digest, "linux/amd64").unwrap();
    let image = Image::open(s.dir.path().join("new")).unwrap();
    let damage = image.verify(&Discard);
    assert_eq!(damage.len(), 1);
    assert!(damage[0].part.contains("frame 0"), "{}", damage[0]);
    assert!(image.extract(&digest, &s.dir.path().join("out")).is_err());
}

#[test]
fn what_is_wrong_with_a_file_is_told_apart() {
    let s = sample(50_000, 50_000);
    let whole = std::fs::read(&s.path).unwrap();
    let length = whole.len();
    let path = s.dir.path().join("broken");
    let open = |bytes: &[u8]| {
        put(&path, bytes);
        Image::open(&path).unwrap_err()
    };
    for cut in [
        1,
        FOOTER - 1,
        FOOTER,
        FOOTER + 1,
        length / 2,
        length - 12_288 - 4096,
    ] {
        let error = open(&whole[..length - cut]);
        assert!(matches!(error, Error::Truncated { .. }), "{cut}: {error}");
        assert!(error.to_string().contains("copy the file again"), "{error}");
    }
    for extra in [1usize, 127, 128, 129, 5000, 3 << 20] {
        let mut bytes = whole.clone();
        bytes.resize(length + extra, b'\n');
        match open(&bytes) {
            Error::Appended { extra: told, .. } => assert_eq!(told, extra as u64),
            error => panic!("{extra}: {error}"),
        }
    }
    let mut bytes = whole.clone();
    bytes.drain(20_000..21_000);
    assert!(matches!(
        open(&bytes),
        Error::Truncated {
            expected: Some(_),
            ..
        }
    ));
    let mut bytes = whole.clone();
    bytes.splice(20_000..20_000, [0; 10]);
    assert!(matches!(open(&bytes), Error::Damaged { .. }));
    for text in [b"".as_slice(), b"#!/bin/sh\n", &noise(100_000, 9)] {
        assert!(matches!(open(text), Error::NotAnImage { .. }));
    }
    // A program that holds no image, and the same one cut.
    let program = std::fs::read("/proc/self/exe").unwrap();
    assert!(matches!(open(&program), Error::NotAnImage { .. }));
    assert!(matches!(
        open(&program[..program.len() / 2]),
        Error::Truncated { .. }
    ));
    assert!(matches!(Image::open_self(), Err(Error::NotAnImage { .. })));
    assert!(matches!(
        Image::open(s.dir.path()),
        Err(Error::NotAnImage { .. })
    ));
    assert!(matches!(
        Image::open(s.dir.path().join("none")),
        Err(Error::Io { .. })
    ));

    let mut earlier = whole.clone();
    earlier[length - FOOTER + 16] = 1;
    let sum = ring::digest::digest(
        &ring::digest::SHA256,
        &earlier[length - FOOTER..length - 32],
    );
    earlier[length - 32..].copy_from_slice(sum.as_ref());
    assert!(matches!(open(&earlier), Error::Version { version: 1, .. }));
}

#[test]
fn every_flipped_byte_is_found() {
    let s = sample(30_000, 1_100_000);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&s.path)
        .unwrap();
    let length = file.metadata().unwrap().len();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut offsets: Vec<u64> = (0..300)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 16) % length
        })
        .collect();
    // And the places where it is easy to forget one.
    offsets.extend([0, 9_999, 10_000, 12_287, 12_288, 12_315, 12_320, 16_383]);
    offsets.extend(length - 200..length);
    for offset in offsets {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        let flipped = byte[0] ^ (1 << (offset % 8));
        file.write_all_at(&[flipped], offset).unwrap();
        match Image::open(&s.path) {
            Err(Error::Damaged { .. }) => {}
            Err(error) => panic!("{offset}: {error}"),
            Ok(image) => {
                assert!(!image.verify_stored(&Discard).is_empty(), "{offset}");
                let damage = image.verify(&Discard);
                assert_eq!(damage.len(), 1, "{offset}: {damage:?}");
                let range = damage[0].offset..damage[0].offset + damage[0].length;
                assert!(range.contains(&offset), "{offset}: {}", damage[0]);
                // Whoever reads the blob finds it too.
                if let Some(blob) = image
                    .blobs()
                    .find(|b| (b.offset..b.offset + b.length).contains(&offset))
                {
                    let dest = s.dir.path().join("extracted");
                    assert!(image.extract(&blob.digest, &dest).is_err(), "{offset}");
                    assert!(!dest.exists());
                }
            }
        }
        file.write_all_at(&byte, offset).unwrap();
    }
    assert_eq!(Image::open(&s.path).unwrap().verify(&Discard), []);
}

#[test]
fn an_impossible_index_is_refused() {
    let s = sample(5_000_000, 1_100_000);
    let image = Image::open(&s.path).unwrap();
    let end = image.footer().index_offset;
    let index = Index {
        platform: image.platform().into(),
        elf: image.elf().clone(),
        root: image.root().into(),
        blobs: image.blobs().cloned().collect(),
    };
    let parse = |index: &Index| Index::parse(&serde_json::to_vec(index).unwrap(), end);
    assert_eq!(parse(&index).unwrap(), index);
    type Breakage = (&'static str, fn(&mut Index));
    let breakages: [Breakage; 15] = [
        ("overlap", |i| i.blobs[2].offset = i.blobs[1].offset),
        ("huge length", |i| i.blobs[1].length = u64::MAX),
        ("huge offset", |i| i.blobs[1].offset = u64::MAX - 4095),
        ("size of a raw blob", |i| i.blobs[1].size += 1),
        ("twice", |i| i.blobs[2].digest = i.blobs[1].digest.clone()),
        ("no root", |i| i.root = sha256(b"none")),
        ("digest", |i| i.blobs[1].digest = "sha256:x".into()),
        ("huge frame", |i| i.blobs[2].frames[0].size = u32::MAX),
        ("empty frame", |i| i.blobs[2].frames[0].length = 0),
        ("frame hash", |i| i.blobs[2].frames[0].hash = String::new()),
        ("missing frame", |i| drop(i.blobs[2].frames.pop())),
        ("raw without frames", |i| i.blobs[1].frames.clear()),
        ("raw of other sizes", |i| {
            i.blobs[1].frames[0].size -= 1;
            i.blobs[1].frames[1].size += 1;
        }),
        ("a small one with frames", |i| {
            let frame = i.blobs[2].frames[0].clone();
            i.blobs[0].frames.push(frame);
        }),
        ("elf", |i| i.elf.size = u64::MAX),
    ];
    for (what, breakage) in breakages {
        let mut broken = index.clone();
        breakage(&mut broken);
        assert!(parse(&broken).is_err(), "{what}");
    }
    let text = serde_json::to_string(&index)
        .unwrap()
        .replace("zstd-frames", "lz4");
    let error = Index::parse(text.as_bytes(), end).unwrap_err();
    assert!(
        error.contains("lz4") && error.contains("not known"),
        "{error}"
    );
    assert!(Index::parse(b"{}", end).is_err());
}

/// The file with another index under a footer that is right about it.
fn resealed(image: &[u8], index: &[u8], change: impl Fn(&mut super::format::Footer)) -> Vec<u8> {
    let start = Footer::parse(&image[image.len() - FOOTER..])
        .unwrap()
        .index_offset;
    let mut bytes = image[..start as usize].to_vec();
    bytes.extend_from_slice(index);
    let mut footer = Footer {
        index_offset: start,
        index_length: index.len() as u64,
        total: (bytes.len() + FOOTER) as u64,
        index_digest: super::format::index_hash(index),
    };
    change(&mut footer);
    bytes.extend_from_slice(&footer.to_bytes());
    bytes
}

/// Replaces each value of a document in turn.
fn spoiled(value: &serde_json::Value, found: &mut dyn FnMut(serde_json::Value)) {
    use serde_json::{Value, json};
    let hostile = [
        json!(0),
        json!(-1),
        json!(4095),
        json!(u64::MAX),
        json!(u64::MAX - 4095),
        json!(i64::MAX),
        json!(1e30),
        json!(""),
        json!("sha256:../../../../etc/passwd"),
        json!([[[]]]),
        json!({}),
        Value::Null,
    ];
    hostile.into_iter().for_each(&mut *found);
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                spoiled(inner, &mut |changed| {
                    let mut map = map.clone();
                    map.insert(key.clone(), changed);
                    found(Value::Object(map));
                });
            }
        }
        Value::Array(items) => {
            for at in 0..items.len() {
                spoiled(&items[at], &mut |changed| {
                    let mut items = items.clone();
                    items[at] = changed;
                    found(Value::Array(items));
                });
            }
        }
        _ => {}
    }
}

#[test]
fn a_hostile_index_under_a_right_footer_harms_nothing() {
    let s = sample(9_000, 1_100_000);
    let bytes = std::fs::read(&s.path).unwrap();
    let footer = Footer::parse(&bytes[bytes.len() - FOOTER..]).unwrap();
    let text = &bytes[footer.index_offset as usize..bytes.len() - FOOTER];
    let index: serde_json::Value = serde_json::from_slice(text).unwrap();
    let path = s.dir.path().join("hostile");
    let mut tried = 0;
    spoiled(&index, &mut |changed| {
        tried += 1;
        let text = serde_json::to_vec(&changed).unwrap();
        // Most are refused by the index alone; the file is written for the rest.
        if Index::parse(&text, footer.index_offset).is_err() {
            return;
        }
        put(&path, &resealed(&bytes, &text, |_| ()));
        let image = Image::open(&path).unwrap();
        let damaged = !image.verify(&Discard).is_empty();
        for blob in image.blobs() {
            let read = image.extract(&blob.digest, &s.dir.path().join("out"));
            assert!(read.is_ok() || damaged, "{changed}");
        }
    });
    assert!(tried > 300, "{tried}");
    // Brackets that nest without end, and the same within a value.
    for text in [
        "[".repeat(1 << 20),
        format!("{{\"platform\":{}", "[".repeat(1 << 20)),
    ] {
        put(&path, &resealed(&bytes, text.as_bytes(), |_| ()));
        let error = Image::open(&path).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
}

#[test]
fn a_hostile_footer_is_refused_before_anything_is_allocated() {
    let s = sample(10, 10);
    let bytes = std::fs::read(&s.path).unwrap();
    let footer = Footer::parse(&bytes[bytes.len() - FOOTER..]).unwrap();
    let text = bytes[footer.index_offset as usize..bytes.len() - FOOTER].to_vec();
    let path = s.dir.path().join("hostile");
    let edges = [
        0,
        1,
        127,
        4096,
        1 << 40,
        i64::MAX as u64,
        u64::MAX - 128,
        u64::MAX,
    ];
    for edge in edges {
        let changes: [&dyn Fn(&mut Footer); 4] = [
            &|footer| footer.index_offset = edge,
            &|footer| footer.index_length = edge,
            &|footer| footer.total = edge,
            // The sum is right, modulo 2^64.
            &|footer| {
                let end = footer.index_offset + footer.index_length;
                footer.index_offset = edge;
                footer.index_length = end.wrapping_sub(edge);
            },
        ];
        for change in changes {
            put(&path, &resealed(&bytes, &text, change));
            let error = Image::open(&path).unwrap_err();
            assert!(
                error.is_damage() || matches!(error, Error::TooLarge { .. }),
                "{error}"
            );
        }
    }
}

#[test]
fn frames_that_say_something_else_than_the_digest_are_found() {
    // A writer that lies: sound frames under another digest.
    let s = sample(10, 1_100_000);
    let mut blob = Image::open(&s.path)
        .unwrap()
        .blob(&sha256(&s.tar))
        .unwrap()
        .clone();
    blob.digest = sha256(b"something else");
    let file = std::sync::Arc::new(read::Window {
        file: std::fs::File::open(&s.path).unwrap(),
        start: 0,
    });
    let mut reader = crate::BlobReader::new(&file, std::sync::Arc::new(blob));
    let error = std::io::copy(&mut reader, &mut std::io::sink()).unwrap_err();
    assert!(error.to_string().contains("expected"), "{error}");
}

/// The image as the first entry of an archive, with another behind it.
fn archive(image: &Path, path: &Path) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("gravity", std::fs::read(image).unwrap()),
        ("README", b"text".to_vec()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        archive
            .append_data(&mut header, name, bytes.as_slice())
            .unwrap();
    }
    let bytes = archive.into_inner().unwrap();
    put(path, &bytes);
    bytes
}

#[test]
fn an_image_in_an_archive_is_opened_and_a_cut_one_told() {
    let sample = sample(9_000, 3_000_000);
    let path = sample.dir.path().join("image.tar");
    let bytes = archive(&sample.path, &path);
    let image = Image::open(&path).unwrap();
    assert_eq!(image.verify(&Discard), []);
    let dest = sample.dir.path().join("out");
    image.extract_elf(&dest).unwrap();
    assert_eq!(std::fs::read(&dest).unwrap(), noise(10_000, 3));
    image.extract(&sha256(&sample.tar), &dest).unwrap();
    assert_eq!(std::fs::read(&dest).unwrap(), sample.tar);
    put(&path, &bytes[..100_000]);
    assert!(matches!(Image::open(&path), Err(Error::Truncated { .. })));
}

#[test]
fn the_parts_and_zeros_are_the_file() {
    let sample = sample(9_000, 3_000_000);
    let tar = sample.dir.path().join("image.tar");
    archive(&sample.path, &tar);
    for path in [&sample.path, &tar] {
        let whole = std::fs::read(path).unwrap();
        let mut again = vec![0; whole.len()];
        let parts = Image::open(path).unwrap().parts().unwrap();
        for part in &parts {
            let range = part.offset as usize..(part.offset + part.length) as usize;
            assert_eq!(sha256(&whole[range.clone()]), part.digest);
            again[range.clone()].copy_from_slice(&whole[range]);
        }
        assert!(again == whole);
        assert!(parts.iter().any(|part| part.media_type == "a/tar+zstd"));
        assert!(parts.iter().any(|part| part.digest == sha256(&sample.raw)));
    }
}

/// Gives a partial image all that it misses, as `image` has it.
fn complete(partial: &Partial, image: &Image) {
    for piece in partial.missing(u64::MAX).unwrap() {
        let bytes = image
            .read_stored(&piece.digest, piece.offset, piece.length as usize)
            .unwrap();
        partial.put(&piece, &bytes).unwrap();
    }
}

#[test]
fn an_image_that_came_in_pieces_is_the_same_file_and_goes_on_where_it_was_cut_off() {
    let s = sample(9_000_001, 2_500_000);
    let image = Image::open(&s.path).unwrap();
    let (end, path) = (image.end().unwrap(), s.dir.path().join("partial"));
    let partial = Partial::open(&path, &end, &s.root).unwrap();
    let missing = partial.missing(u64::MAX).unwrap();
    // Root, three frames of the raw one and of the other; the empty one is there.
    assert_eq!(missing.len(), 7, "{missing:?}");
    assert_eq!(partial.missing(100).unwrap().len(), 1);
    assert_eq!(partial.have(), [0]);
    let piece = &missing[2];
    assert_eq!((piece.number, &piece.digest), (2, &sha256(&s.raw)));
    let wrong = vec![1; piece.length as usize];
    let refused = partial.put(piece, &wrong);
    assert!(matches!(refused, Err(Error::WrongDigest { .. })));
    let foreign = partial.put_elf(&s.path);
    assert!(matches!(foreign, Err(Error::WrongDigest { .. })));
    partial.put_elf(&s.dir.path().join("elf")).unwrap();

    // Cut off: what has come is seen, and others can have it.
    let at = piece.offset as usize;
    let bytes = &s.raw[at..at + piece.length as usize];
    partial.put(piece, bytes).unwrap();
    let read =
        |partial: &Partial, offset, length| partial.read(&piece.digest, offset, length).unwrap();
    for cut_off in [false, true] {
        let again = Partial::open(&path, &end, &s.root).unwrap();
        let partial = if cut_off { &again } else { &partial };
        assert_eq!(partial.missing(u64::MAX).unwrap().len(), 6);
        assert_eq!(partial.have(), [0b100]);
        assert_eq!(read(partial, piece.offset, bytes.len()).unwrap(), bytes);
        assert_eq!(read(partial, piece.offset + 1, 2).unwrap(), bytes[1..3]);
        assert_eq!(read(partial, piece.offset - 1, 2), None);
        assert_eq!(read(partial, piece.offset + 1, bytes.len()), None);
        assert_eq!(read(partial, 0, 9_000_001), None);
        for (digest, offset, length) in [
            (&*piece.digest, 9_000_000, 2),
            (&*piece.digest, u64::MAX, 1),
            (&*sha256(b"unknown"), 0, 1),
        ] {
            partial.read(digest, offset, length).unwrap_err();
        }
    }
    complete(&partial, &image);
    assert_eq!(partial.have(), [0b111_1111]);
    assert_eq!(read(&partial, 0, 9_000_001).unwrap(), s.raw);
    partial.sync().unwrap();
    assert_eq!(
        std::fs::read(&path).unwrap(),
        std::fs::read(&s.path).unwrap()
    );
    drop(partial);

    // A byte that has changed meanwhile is seen.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let blob = image.blob(&sha256(&s.raw)).unwrap();
    file.write_all_at(b"!", blob.offset + 7).unwrap();
    let partial = Partial::open(&path, &end, &s.root).unwrap();
    let missing = partial.missing(u64::MAX).unwrap();
    assert_eq!((missing.len(), missing[0].offset), (1, 0));
    drop(partial);
    // Another image in its place begins anew.
    let (other, root) = build(s.dir.path(), "other", b"raw", b"tar");
    let end = Image::open(&other).unwrap().end().unwrap();
    let refused = Partial::open(&path, &end, &sha256(&s.raw));
    assert!(matches!(refused, Err(Error::WrongDigest { .. })));
    let partial = Partial::open(&path, &end, &root).unwrap();
    assert_eq!(partial.missing(u64::MAX).unwrap().len(), 3);
}

#[test]
fn an_end_that_is_none_is_refused() {
    let s = sample(5000, 5000);
    let end = Image::open(&s.path).unwrap().end().unwrap();
    let mut flipped = end.clone();
    flipped[0] ^= 1;
    for wrong in [&end[1..], &end[..end.len() - 1], &flipped, b"", &[0; 4096]] {
        let refused = Partial::nameless(wrong, &s.root);
        assert!(refused.is_err(), "{} bytes", wrong.len());
    }
    Partial::nameless(&end, &s.root).unwrap();
}

#[test]
fn ranges_beyond_a_blob_are_refused() {
    let s = sample(5000, 3_000_000);
    let image = Image::open(&s.path).unwrap();
    let raw = sha256(&s.raw);
    assert_eq!(image.read_stored(&raw, 10, 20).unwrap(), s.raw[10..30]);
    assert_eq!(image.read_stored(&raw, 5000, 0).unwrap(), b"");
    for (offset, length) in [(0, 5001), (5000, 1), (u64::MAX, 1), (1, usize::MAX)] {
        let refused = image.read_stored(&raw, offset, length);
        assert!(
            matches!(refused, Err(Error::OutOfRange { .. })),
            "{offset} {length}"
        );
    }
    let unknown = image.read_stored(&sha256(b"unknown"), 0, 1);
    assert!(matches!(unknown, Err(Error::MissingBlob { .. })));
    // Of a compressed blob it is the stored bytes that count.
    let tar = image.blob(&sha256(&s.tar)).unwrap();
    assert!(image.read_stored(&tar.digest, tar.length, 1).is_err());
}

#[test]
fn a_copy_without_what_is_elsewhere_is_filled_again() {
    let s = sample(3_000_001, 2_500_000);
    let image = Image::open(&s.path).unwrap();
    let dest = s.dir.path().join("kept");
    let raw = sha256(&s.raw);
    image.keep(&dest, |blob| blob.digest == raw).unwrap();
    let kept = Image::open(&dest).unwrap();
    assert_eq!(kept.index_digest(), image.index_digest());
    let damage = kept.verify(&Discard);
    assert_eq!(damage.len(), 1, "{damage:?}");
    assert!(damage[0].part.contains(&raw));
    let blob = kept.blob(&raw).unwrap();
    kept.restore(blob, &s.dir.path().join("raw")).unwrap();
    assert_eq!(
        std::fs::read(&dest).unwrap(),
        std::fs::read(&s.path).unwrap()
    );
    kept.release(|blob| blob.digest == raw).unwrap();
    assert_eq!(std::fs::metadata(&dest).unwrap().len(), image.length());
    assert_eq!(kept.verify(&Discard).len(), 1);
    let short = kept.restore(blob, &s.dir.path().join("elf"));
    assert!(matches!(short, Err(Error::WrongSize { .. })));
}
