//! Whatever the bytes: an answer, never a panic, nothing outside, nothing left.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

#[path = "hostile/checks.rs"]
mod checks;

use std::path::PathBuf;

use gravity_image::{Chunks, ReadChunks};
use proptest::prelude::*;
use tar::{EntryType, Header};

/// One entry of a tar, made of few names so that they meet each other.
#[derive(Debug, Clone)]
struct Entry {
    kind: EntryType,
    path: String,
    link: String,
    content: Vec<u8>,
    /// What the header says instead of the content's length.
    size: Option<u64>,
}

fn path() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "c",
        "a",
        "b",
        "c",
        ".",
        "..",
        "",
        ".wh.a",
        ".wh.b",
        ".wh..wh..opq",
    ]);
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", "..", "..", "outside", "secret", "."]);
    let absolute = prop::sample::select(vec!["", "", "", "/"]);
    (absolute, prop::collection::vec(part, 0..4))
        .prop_map(|(root, parts)| root.to_owned() + &parts.join("/"))
}

fn entry() -> impl Strategy<Value = Entry> {
    let kind = prop::sample::select(vec![
        EntryType::Regular,
        EntryType::Directory,
        EntryType::Directory,
        EntryType::Symlink,
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Link,
        EntryType::Fifo,
        EntryType::Char,
    ]);
    let size = prop::option::weighted(0.02, any::<u64>());
    (
        kind,
        path(),
        target(),
        prop::collection::vec(any::<u8>(), 0..600),
        size,
    )
        .prop_map(|(kind, path, link, content, size)| Entry {
            content: if kind.is_file() { content } else { Vec::new() },
            kind,
            path,
            link,
            size,
        })
}

fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Vec::new();
    for entry in entries {
        let mut header = Header::new_gnu();
        let bytes = header.as_mut_bytes();
        bytes[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        bytes[157..157 + entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(entry.size.unwrap_or(entry.content.len() as u64));
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(&entry.content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn unpacked(tars: &[Vec<u8>], confined: bool) -> bool {
    let mut readers: Vec<_> = tars
        .iter()
        .map(|tar| ReadChunks::new(tar.as_slice()))
        .collect();
    let mut layers: Vec<&mut dyn Chunks> = Vec::new();
    for reader in &mut readers {
        layers.push(reader);
    }
    checks::layers(&mut layers, &checks::options(confined))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_stay_inside(
        layers in prop::collection::vec(prop::collection::vec(entry(), 0..8), 1..3),
        confined in any::<bool>(),
    ) {
        let tars: Vec<_> = layers.iter().map(|entries| tar_of(entries)).collect();
        unpacked(&tars, confined);
    }

    #[test]
    fn spoiled_layers_stay_inside(
        entries in prop::collection::vec(entry(), 1..6),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        kind in prop::sample::select(vec![b'-', b'g', b'z']),
    ) {
        let mut tar = vec![kind];
        tar.extend(tar_of(&entries));
        for (at, byte) in flips {
            let at = at.index(tar.len() - 1) + 1;
            tar[at] = byte;
        }
        tar.truncate(cut.index(tar.len()) + 1);
        checks::layer(&tar);
    }

    #[test]
    fn noise_is_no_image(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        checks::image(&bytes);
        checks::index(&bytes, 1 << 20);
        checks::layer(&bytes);
    }
}

#[test]
fn a_hard_link_does_not_move_a_symbolic_one() {
    let entry = |kind, path: &str, link: &str| Entry {
        kind,
        path: path.into(),
        link: link.into(),
        content: Vec::new(),
        size: None,
    };
    // Inside where it is, outside where the hard link would be.
    let entries = [
        entry(EntryType::Symlink, "a/b/link", "../../outside"),
        entry(EntryType::Link, "link", "a/b/link"),
    ];
    assert!(!unpacked(&[tar_of(&entries)], true));
    assert!(unpacked(&[tar_of(&entries[..1])], true));
}

/// What fuzzing starts from, and what it has found.
#[test]
fn the_corpora_hold() {
    let corpora = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    type Check = (&'static str, fn(&[u8]));
    let checks: [Check; 4] = [
        ("image", checks::image),
        ("index", |bytes| checks::index(bytes, 1 << 20)),
        ("documents", checks::documents),
        ("layer", checks::layer),
    ];
    for (name, check) in checks {
        let mut count = 0;
        for entry in std::fs::read_dir(corpora.join(name)).unwrap() {
            check(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 3, "{count} files in the corpus {name}");
    }
}

/// An index as long as the file allows, whose blobs are where they may not be.
#[test]
fn numbers_at_the_edge_do_not_overflow() {
    let digest = checks::digest("x");
    for number in [
        "0",
        "1",
        "4095",
        "18446744073709551615",
        "18446744073709547520",
        "-1",
        "1e30",
        "0.5",
    ] {
        for end in [0, 4096, 1 << 20, u64::MAX, u64::MAX - 4095] {
            let text = format!(
                r#"{{"platform":"","elf":{{"digest":"{digest}","size":{number}}},"root":"{digest}","blobs":[
                {{"digest":"{digest}","size":{number},"mediaType":"","encoding":"raw","offset":{number},"length":{number}}}]}}"#
            );
            checks::index(text.as_bytes(), end);
        }
    }
}
