//! Honest layers come out as they went in; hostile ones do not come out.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use event::Discard;
use tar::{EntryType, Header};

use super::*;
use crate::ReadChunks;

#[derive(Default)]
struct Layer(Vec<u8>);

impl Layer {
    /// Writes names as they are, which the tar crate's builder would refuse.
    fn entry(mut self, kind: EntryType, path: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, "", 0o644, content)
    }

    fn dir(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", 0o755, b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, 0o777, b"")
    }

    fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, 0o644, b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..8)
                .map(|d| rest + d)
                .find(|n| n.to_string().len() + rest == *n)
                .unwrap();
            bytes.extend_from_slice(format!("{length} {key}=").as_bytes());
            bytes.extend_from_slice(value);
            bytes.push(b'\n');
        }
        self.entry(EntryType::XHeader, "pax", "", 0o644, &bytes)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn apply(layers: &[Vec<u8>], options: &Options) -> Result<(tempfile::TempDir, Report)> {
    let dir = tempfile::tempdir().unwrap();
    // What a hostile layer would like to change.
    std::fs::create_dir(dir.path().join("outside")).unwrap();
    std::fs::File::create(dir.path().join("outside/secret")).unwrap();
    let mut readers: Vec<_> = layers
        .iter()
        .map(|bytes| ReadChunks::new(bytes.as_slice()))
        .collect();
    let mut chunks: Vec<&mut dyn Chunks> = readers
        .iter_mut()
        .map(|reader| reader as &mut dyn Chunks)
        .collect();
    let result = unpack(&mut chunks, &dir.path().join("root"), options, &Discard);
    let outside: Vec<_> = std::fs::read_dir(dir.path().join("outside"))
        .unwrap()
        .collect();
    assert_eq!(outside.len(), 1);
    let secret = std::fs::metadata(dir.path().join("outside/secret")).unwrap();
    assert_eq!((secret.len(), secret.nlink()), (0, 1));
    if result.is_err() {
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["outside"], "nothing is left behind");
    }
    result.map(|report| (dir, report))
}

fn refused(layer: Layer, options: &Options) -> String {
    match apply(&[layer.end()], options) {
        Ok(_) => panic!("was unpacked"),
        Err(error @ (Error::Layer { .. } | Error::TooLarge { .. })) => error.to_string(),
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
    }
}

#[test]
fn honest_layers_come_out() {
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let layer = Layer::default()
        .dir("./")
        .dir("usr/")
        .entry(EntryType::Directory, "usr/locked", "", 0o500, b"")
        .file("usr/locked/big", &big)
        .file("usr/empty", b"")
        .entry(EntryType::Regular, "usr/suid", "", 0o4755, b"s")
        .symlink("bin", "usr/bin")
        .symlink("etc/mtab", "/proc/mounts")
        .hardlink("usr/same", "usr/locked/big")
        .pax(&[
            ("path", "long/".repeat(40).as_bytes()),
            ("mtime", b"12.5"),
            ("uid", b"0"),
        ])
        .dir("x")
        .entry(EntryType::Char, "dev/null", "", 0o666, b"")
        .entry(EntryType::Fifo, "run/pipe", "", 0o600, b"");
    let (dir, report) = apply(&[layer.end()], &Options::rootfs()).unwrap();
    let at = |name: &str| dir.path().join("root").join(name);
    assert_eq!(std::fs::read(at("usr/locked/big")).unwrap(), big);
    assert_eq!(
        report,
        Report {
            entries: 12,
            bytes: 3_000_001,
            skipped_devices: 1
        }
    );
    let meta = |name: &str| std::fs::symlink_metadata(at(name)).unwrap();
    assert_eq!(meta("usr/same").ino(), meta("usr/locked/big").ino());
    assert_eq!(meta("usr/locked").permissions().mode() & 0o7777, 0o500);
    for name in ["usr/locked", "usr/locked/big", "usr/empty", "bin", "usr"] {
        assert_eq!(meta(name).mtime(), 1_000_000_000, "{name}");
    }
    let long = meta(&"long/".repeat(40));
    assert_eq!((long.mtime(), long.mtime_nsec()), (12, 500_000_000));
    assert_eq!(
        std::fs::read_link(at("etc/mtab")).unwrap(),
        Path::new("/proc/mounts")
    );
    assert!(!at("dev/null").exists());
    if rustix::process::geteuid().is_root() {
        assert_eq!(meta("usr/suid").permissions().mode() & 0o7777, 0o755);
    }
    let again = unpack(
        &mut [],
        &dir.path().join("root"),
        &Options::rootfs(),
        &Discard,
    );
    assert!(matches!(again, Err(Error::Exists { .. })));
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let lower = Layer::default()
        .file("a/gone", b"1")
        .file("a/kept", b"1")
        .file("opaque/old", b"1")
        .file("opaque/deep/old", b"1")
        .file("file", b"1")
        .dir("becomes-file/with")
        .file(".wh.ignored", b"")
        .end();
    let upper = Layer::default()
        .file("a/.wh.gone", b"")
        .file("a/.wh.never-there", b"")
        .file("nowhere/.wh.x", b"")
        .file("opaque/deep/new", b"2")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"2")
        .dir("file")
        .file("file/now-a-directory", b"2")
        .file("becomes-file", b"2")
        .end();
    let (dir, _) = apply(&[lower, upper], &Options::rootfs()).unwrap();
    let there = |name: &str| dir.path().join("root").join(name).exists();
    for name in [
        "a/kept",
        "opaque/new",
        "opaque/deep/new",
        "file/now-a-directory",
        "becomes-file",
    ] {
        assert!(there(name), "{name}");
    }
    for name in [
        "a/gone",
        "opaque/old",
        "opaque/deep/old",
        "becomes-file/with",
        "ignored",
    ] {
        assert!(!there(name), "{name}");
    }
    assert!(!there("a/.wh.gone") && !there("opaque/.wh..wh..opq"));
}

#[test]
fn compressed_layers_go_on_top_of_the_base() {
    let base = Layer::default()
        .dir("etc")
        .file("etc/old", b"1")
        .file("etc/kept", b"1")
        .end();
    let upper = Layer::default()
        .file("etc/.wh.old", b"")
        .file("usr/bin/tree", b"2")
        .end();
    let top = Layer::default()
        .file("usr/.wh..wh..opq", b"")
        .file("usr/bin/jq", b"3")
        .end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &upper).unwrap();
    let upper = gzip.finish().unwrap();
    let top = zstd::encode_all(&top[..], 3).unwrap();
    let decode = |bytes: &[u8], compression: crate::layer::Compression| {
        let mut tar = Vec::new();
        let mut reader = compression.decode(bytes).unwrap();
        std::io::Read::read_to_end(&mut reader, &mut tar).unwrap();
        tar
    };
    let layers = [
        base,
        decode(&upper, crate::layer::Compression::Gzip),
        decode(&top, crate::layer::Compression::Zstd),
    ];
    let (dir, _) = apply(&layers, &Options::rootfs()).unwrap();
    let there = |name: &str| dir.path().join("root").join(name).exists();
    assert!(there("etc/kept") && there("usr/bin/jq"));
    assert!(!there("etc/old") && !there("usr/bin/tree"));
}

#[test]
fn what_is_no_file_has_no_content_whatever_its_header_says() {
    // As every other reader has it: what follows is the next header.
    let mut layer = Layer::default()
        .entry(EntryType::Directory, "d", "", 0o755, &[0; 512])
        .0;
    layer.truncate(512);
    let layer = Layer(layer).file("d/f", b"1");
    let (dir, report) = apply(&[layer.end()], &Options::resources()).unwrap();
    assert!(dir.path().join("root/d/f").exists());
    assert_eq!((report.entries, report.bytes), (2, 1));
}

#[test]
fn hostile_names_are_refused() {
    let rootfs = Options::rootfs();
    for path in [
        "/etc/passwd",
        "../outside/x",
        "a/../../outside/x",
        "..",
        "a/..",
    ] {
        for kind in [
            EntryType::Regular,
            EntryType::Directory,
            EntryType::Symlink,
            EntryType::Fifo,
        ] {
            let error = refused(Layer::default().entry(kind, path, "x", 0o644, b""), &rootfs);
            assert!(
                error.contains("absolute") || error.contains(".."),
                "{error}"
            );
        }
    }
    refused(
        Layer::default().pax(&[("path", b"../x")]).file("x", b""),
        &rootfs,
    );
    refused(
        Layer::default().pax(&[("path", b"a\0b")]).file("x", b""),
        &rootfs,
    );
    refused(
        Layer::default()
            .pax(&[("path", &[b'a'; 5000])])
            .file("x", b""),
        &rootfs,
    );
    refused(
        Layer::default()
            .pax(&[("path", &b"a/".repeat(200))])
            .file("x", b""),
        &rootfs,
    );
    refused(Layer::default().file(".", b"the root itself"), &rootfs);
}

#[test]
fn nothing_is_written_through_a_link() {
    let rootfs = Options::rootfs();
    for target in ["../outside", "/tmp", ".", "usr"] {
        let error = refused(
            Layer::default()
                .dir("usr")
                .symlink("out", target)
                .file("out/secret", b"owned"),
            &rootfs,
        );
        assert!(error.contains("`out` on its way is a link"), "{error}");
    }
    // The link itself is replaced, not what it points to.
    let layer = Layer::default()
        .symlink("f", "../outside/secret")
        .file("f", b"mine");
    let (dir, _) = apply(&[layer.end()], &rootfs).unwrap();
    assert!(dir.path().join("root/f").metadata().unwrap().is_file());
    // A directory that becomes a link after it was opened.
    refused(
        Layer::default()
            .file("d/a", b"1")
            .symlink("d", "../outside")
            .file("d/secret", b"2"),
        &rootfs,
    );
    // Whiteouts don't follow either.
    let lower = Layer::default().symlink("out", "../outside").end();
    let upper = Layer::default().file("out/.wh.secret", b"").end();
    assert!(apply(&[lower, upper], &rootfs).is_err());
}

#[test]
fn hostile_links_are_refused() {
    let rootfs = Options::rootfs();
    for target in ["../outside/secret", "/etc/passwd", "none", "", "."] {
        refused(Layer::default().hardlink("h", target), &rootfs);
    }
    refused(
        Layer::default()
            .symlink("out", "../outside")
            .hardlink("h", "out/secret"),
        &rootfs,
    );
    refused(Layer::default().dir("d").hardlink("h", "d"), &rootfs);
    refused(Layer::default().file("h", b"").hardlink("h", "h"), &rootfs);

    let resources = Options::resources();
    for target in ["/etc/passwd", "../x", "a/../../x", "d/.."] {
        let error = refused(Layer::default().symlink("l", target), &resources);
        assert!(error.contains("out of the directory"), "{error}");
    }
    let layer = Layer::default()
        .symlink("a/b/ok", "../../c")
        .symlink("self", ".");
    assert!(apply(&[layer.end()], &resources).is_ok());
}

#[test]
fn devices_attributes_and_strange_entries() {
    let device = || Layer::default().entry(EntryType::Char, "null", "", 0o666, b"");
    let error = refused(device(), &Options::resources());
    assert!(error.contains("device"), "{error}");
    let layer = || Layer::default().pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")]);
    refused(layer().file("x", b""), &Options::rootfs());
    refused(
        Layer::default()
            .pax(&[("GNU.sparse.major", b"1")])
            .file("x", b""),
        &Options::rootfs(),
    );
    refused(
        Layer::default().entry(EntryType::GNUSparse, "x", "", 0, b""),
        &Options::rootfs(),
    );
    refused(
        Layer::default().entry(EntryType::XGlobalHeader, "x", "", 0, b"9 path=x\n"),
        &Options::rootfs(),
    );
    refused(
        Layer::default().entry(EntryType::XHeader, "x", "", 0, b"99999 a=b\n"),
        &Options::rootfs(),
    );
    let layer = Layer::default().entry(EntryType::Regular, "suid", "", 0o6755, b"");
    let (dir, _) = apply(&[layer.end()], &Options::resources()).unwrap();
    let mode = dir
        .path()
        .join("root/suid")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn everything_is_bounded() {
    let mut options = Options::rootfs();
    options.limits.bytes = 1000;
    let error = refused(
        Layer::default().file("a", &[1; 600]).file("b", &[1; 600]),
        &options,
    );
    assert!(error.contains("1200"), "{error}");
    options.limits.entries = 3;
    refused(
        Layer::default()
            .file("a", b"")
            .file("b", b"")
            .file("c", b"")
            .file("d", b""),
        &options,
    );
    // What follows the end is read for its digest, but not for ever.
    options.limits.entries = 1;
    let mut endless = Layer::default().file("a", b"").end();
    endless.resize(1 << 20, 0);
    let error = apply(&[endless], &options).unwrap_err().to_string();
    assert!(error.contains("with all headers"), "{error}");
    // An extended header that claims to be huge is not allocated.
    let mut layer = Layer::default()
        .entry(EntryType::XHeader, "x", "", 0, b"")
        .0;
    layer[124..136].copy_from_slice(b"77777777777\0");
    let sum: u32 = layer[..148]
        .iter()
        .chain(&layer[156..512])
        .map(|b| u32::from(*b))
        .sum();
    layer[148..156].copy_from_slice(format!("{:06o}\0 ", sum + 256).as_bytes());
    assert!(matches!(
        apply(&[layer], &options),
        Err(Error::TooLarge { .. })
    ));
}

#[test]
fn a_cut_or_flipped_tar_is_refused() {
    let bytes = Layer::default().file("a", &[7; 2000]).file("b", b"x").end();
    for length in [1, 511, 513, 1500, 2560 + 100] {
        assert!(
            apply(&[bytes[..length].to_vec()], &Options::rootfs()).is_err(),
            "{length}"
        );
    }
    for at in [0, 100, 124, 150, 300] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        assert!(apply(&[bytes], &Options::rootfs()).is_err(), "{at}");
    }
    // A source that fails at its very end, as one with a wrong digest does.
    struct Fails;
    impl std::io::Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("wrong digest"))
        }
    }
    let bytes = Layer::default().file("a", b"x").end();
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("root");
    let mut chunks = ReadChunks::new(std::io::Read::chain(bytes.as_slice(), Fails));
    assert!(unpack(&mut [&mut chunks], &dest, &Options::rootfs(), &Discard).is_err());
    assert!(!dest.exists());
}

#[test]
fn leftovers_are_replaced_and_two_at_once_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("root");
    let temp = dir.path().join(".partial-root");
    std::fs::create_dir_all(temp.join("rest/of")).unwrap();
    let held = claim(&temp, &dest).unwrap();
    assert!(!temp.join("rest").exists());
    assert!(matches!(
        unpack(&mut [], &dest, &Options::rootfs(), &Discard),
        Err(Error::Busy { .. })
    ));
    drop(held);
    unpack(&mut [], &dest, &Options::rootfs(), &Discard).unwrap();
    assert!(dest.is_dir() && !temp.exists());
}
