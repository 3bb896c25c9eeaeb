//! Measurements on real content, run by hand:
//! `GRAVITY_MEASURE_TAR=rootfs.tar cargo test --release -p gravity-image -- --ignored --nocapture measure_build`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use event::Discard;

use crate::encode::Cache;
use crate::unpack::{Options, unpack};
use crate::{Chunks, Encoding, Image, Writer, digest};

/// Runs both by turns, as other work on the machine comes and goes; returns
/// the medians in seconds and prints all.
fn compare(ours: impl Fn() -> Duration, theirs: impl Fn() -> Duration) -> (f64, f64) {
    let mut times: Vec<_> = (0..5).map(|_| (ours(), theirs())).collect();
    say(&format!("  all: {times:.2?}"));
    times.sort_by_key(|(ours, _)| *ours);
    let ours = times[2].0.as_secs_f64();
    times.sort_by_key(|(_, theirs)| *theirs);
    (ours, times[2].1.as_secs_f64())
}

#[expect(clippy::print_stderr, reason = "its output is the purpose")]
fn say(line: &str) {
    eprintln!("{line}");
}

fn sh(script: &str) {
    assert!(
        Command::new("bash")
            .args(["-ec", script])
            .status()
            .unwrap()
            .success()
    );
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

#[test]
#[ignore = "takes a minute and a large tar"]
fn measure_build_and_unpack() {
    run(true);
}

#[test]
#[ignore = "takes a minute and a large tar"]
fn measure_unpack() {
    run(false);
}

fn run(build_too: bool) {
    let tar = PathBuf::from(std::env::var_os("GRAVITY_MEASURE_TAR").expect("GRAVITY_MEASURE_TAR"));
    let dir = tempfile::tempdir_in(tar.parent().unwrap_or(Path::new("."))).unwrap();
    let at = |name: &str| dir.path().join(name);
    let content = std::fs::File::open(&tar).unwrap();
    let sum = digest::Hasher::of_range(&content, 0, content.metadata().unwrap().len()).unwrap();
    let build = || {
        let cache = Cache::open(at("cache")).unwrap();
        let mut writer = Writer::create(at("image"), Path::new("/proc/self/exe"))
            .unwrap()
            .with_cache(cache);
        writer
            .add_blob_file(&tar, &sum, "a/tar", Encoding::ZstdFrames)
            .unwrap();
        if let Some(raw) = std::env::var_os("GRAVITY_MEASURE_RAW") {
            let path = PathBuf::from(raw);
            let file = std::fs::File::open(&path).unwrap();
            let sum = digest::Hasher::of_range(&file, 0, file.metadata().unwrap().len()).unwrap();
            let start = Instant::now();
            writer
                .add_blob_file(&path, &sum, "a/raw", Encoding::Raw)
                .unwrap();
            say(&format!("  copied the raw blob in {:?}", start.elapsed()));
        }
        let root = writer.add_blob_bytes(b"root", "a/root").unwrap();
        writer.finish(&root, "linux/amd64").unwrap();
    };
    say(&format!("cold build {:?}", timed(build)));
    let image = at("image");
    if build_too {
        let copy = at("copy");
        let cp = format!("cp --reflink=never {} {}", image.display(), copy.display());
        let (ours, theirs) = compare(
            || {
                // Replacing a file costs what the filesystem does for it.
                let _ = std::fs::remove_file(&image);
                timed(build)
            },
            || {
                let _ = std::fs::remove_file(&copy);
                timed(|| sh(&cp))
            },
        );
        say(&format!(
            "warm build {ours:.3} s, cp {theirs:.3} s, ratio {:.2}",
            ours / theirs
        ));
    }
    say(&format!(
        "open {:?}",
        timed(|| drop(Image::open(&image).unwrap()))
    ));
    let opened = Image::open(&image).unwrap();
    say(&format!(
        "verify {:?}",
        timed(|| assert_eq!(opened.verify(&Discard).unwrap(), []))
    ));
    let decode = timed(|| {
        let mut reader = opened.reader(&sum).unwrap();
        while reader.next_chunk().unwrap().is_some() {}
    });
    say(&format!("decode and hash alone {decode:?}"));

    let packed = at("rootfs.tar.zst");
    sh(&format!(
        "zstd -q -3 -T0 {} -o {}",
        tar.display(),
        packed.display()
    ));
    // A new place each time: ext4 is slow to use inodes again that were freed
    // just now, which an installation never does.
    let number = std::cell::Cell::new(0);
    let fresh = || {
        sh("sync");
        number.set(number.get() + 1);
        at(&format!("root-{}", number.get()))
    };
    let (ours, theirs) = compare(
        || {
            let root = fresh();
            timed(|| {
                let mut reader = opened.reader(&sum).unwrap();
                unpack(&mut [&mut reader], &root, &Options::rootfs(), &Discard).unwrap();
            })
        },
        || {
            let (root, packed) = (fresh(), packed.display());
            let root = root.display();
            let command =
                format!("mkdir {root}; tar --zstd -xf {packed} -C {root}; sync -f {root}");
            timed(|| sh(&command))
        },
    );
    say(&format!(
        "unpack {ours:.3} s, tar --zstd -x and sync {theirs:.3} s, ratio {:.2}",
        ours / theirs
    ));
}
