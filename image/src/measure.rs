//! Measurements on real content, run by hand:
//! `GRAVITY_MEASURE_TAR=rootfs.tar cargo test --release -p gravity-image -- --ignored --nocapture measure`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use event::Discard;

use crate::encode::Cache;
use crate::unpack::{Options, unpack};
use crate::{Chunks, Encoding, Image, ReadChunks, Writer, digest};

fn median(mut run: impl FnMut() -> Duration) -> f64 {
    let mut times: Vec<_> = (0..5).map(|_| run()).collect();
    times.sort();
    times[2].as_secs_f64()
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
#[expect(clippy::print_stderr, reason = "its output is the purpose")]
fn measure() {
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
            eprintln!("  copied the raw blob in {:?}", start.elapsed());
        }
        let root = writer.add_blob_bytes(b"root", "a/root").unwrap();
        writer.finish(&root, "linux/amd64").unwrap();
    };
    eprintln!("cold build {:?}", timed(build));
    let warm = median(|| timed(build));
    let (image, copy) = (at("image"), at("copy"));
    let cp = format!("cp --reflink=never {} {}", image.display(), copy.display());
    let copied = median(|| {
        let _ = std::fs::remove_file(&copy);
        timed(|| sh(&cp))
    });
    eprintln!(
        "warm build {warm:.3} s, cp {copied:.3} s, ratio {:.2}",
        warm / copied
    );
    let open = median(|| timed(|| drop(Image::open(&image).unwrap())));
    eprintln!("open {:.3} ms", open * 1e3);
    eprintln!(
        "verify {:?}",
        timed(|| assert_eq!(Image::open(&image).unwrap().verify(&Discard).unwrap(), []))
    );
    let opened = Image::open(&image).unwrap();
    eprintln!(
        "decode and hash alone {:?}",
        timed(|| {
            let mut reader = opened.reader(&sum).unwrap();
            while reader.next_chunk().unwrap().is_some() {}
        })
    );
    let root = at("root");
    let fresh = || {
        let _ = std::fs::remove_dir_all(&root);
        sh("sync");
    };
    let ours = median(|| {
        fresh();
        timed(|| {
            let mut reader = opened.reader(&sum).unwrap();
            unpack(&mut [&mut reader], &root, &Options::rootfs(), &Discard).unwrap();
        })
    });
    let plain = median(|| {
        fresh();
        timed(|| {
            let mut reader = ReadChunks::new(std::fs::File::open(&tar).unwrap());
            unpack(&mut [&mut reader], &root, &Options::rootfs(), &Discard).unwrap();
        })
    });
    eprintln!("unpack {ours:.3} s (from an uncompressed tar {plain:.3} s)");
    let packed = at("rootfs.tar.zst");
    sh(&format!(
        "zstd -q -3 -T0 {} -o {}",
        tar.display(),
        packed.display()
    ));
    let (root, packed) = (root.display(), packed.display());
    let theirs = median(|| {
        fresh();
        timed(|| {
            sh(&format!(
                "mkdir {root}; tar --zstd -xf {packed} -C {root}; sync -f {root}"
            ))
        })
    });
    eprintln!(
        "tar --zstd -x and sync {theirs:.3} s, ratio {:.2}",
        ours / theirs
    );
}
