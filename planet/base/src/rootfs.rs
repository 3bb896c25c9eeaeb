//! The Debian part of the root filesystem, by mmdebstrap.
//!
//! In: a release and a package list. Out: a tar in the cache, under the hash
//! of both, which is made once. Which mirror it came from has no influence on
//! the image: see [`crate::assemble`], which writes the sources of apt.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use console::render;
use event::Sink;
use serde::{Deserialize, Serialize};

use crate::versions::Debian;
use crate::{file, tool};

/// Part of the hash: raise it when the way of making the tar changes.
const FORMAT: u32 = 1;

/// The host that every Debian knows.
pub(crate) const MIRROR: &str = "http://deb.debian.org";

/// Files of packages that no node needs; licences stay.
const EXCLUDE: [&str; 6] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// A tar of Debian packages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rootfs {
    /// Where it is.
    #[serde(skip)]
    pub(crate) path: PathBuf,
    /// Its digest.
    pub(crate) digest: String,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// The lines of apt's sources.list for a release.
pub(crate) fn sources(suite: &str, mirror: &str) -> String {
    format!(
        "deb {mirror}/debian {suite} main\n\
         deb {mirror}/debian {suite}-updates main\n\
         deb {mirror}/debian-security {suite}-security main\n"
    )
}

/// The tar of `debian`: from the cache, unless it is to be made anew.
///
/// # Errors
/// When mmdebstrap is missing or fails.
pub(crate) fn make(
    debian: &Debian,
    cache: &Path,
    mirror: &str,
    anew: bool,
    sink: &dyn Sink,
) -> Result<Rootfs> {
    let directory = cache.join("rootfs");
    let inputs = serde_json::to_vec(&(FORMAT, debian, EXCLUDE))?;
    let hash = oci::Digest::of(&inputs).hex().to_owned();
    let path = directory.join(format!("{hash}.tar"));
    let note = directory.join(format!("{hash}.json"));
    if !anew && let Some(found) = find(&path, &note) {
        return Ok(found);
    }
    sink.step(&format!(
        "Making a Debian {} root filesystem with {} packages and what they need, about 2m",
        debian.suite,
        debian.packages.len()
    ));
    let started = Instant::now();
    for directory in [&directory, &cache.join("logs")] {
        std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    let log = cache.join("logs/rootfs.log");
    file::write(&log, "")?;
    let temporary = file::beside(&path);
    let mut command = Command::new("mmdebstrap");
    // Times of files and of /etc/shadow.
    command.env("SOURCE_DATE_EPOCH", "0");
    command.args(["--variant=minbase", "--architectures=amd64", "--format=tar"]);
    command.arg("--skip=output/dev");
    // Without them usrmerge and with it all of perl would be installed.
    command.arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr");
    command.arg(format!(
        "--include=usr-is-merged,{}",
        debian.packages.join(",")
    ));
    command.args(EXCLUDE.map(|line| format!("--dpkgopt={line}")));
    command.arg(&debian.suite).arg(&temporary);
    command.args(sources(&debian.suite, mirror).lines());
    let result = tool::run(&mut command, &log);
    if let Err(error) = result {
        let _ = std::fs::remove_file(&temporary);
        return Err(error.context("the Debian root filesystem"));
    }
    let (digest, size) = file::digest_file(&temporary)?;
    std::fs::rename(&temporary, &path).with_context(|| path.display().to_string())?;
    let made = Rootfs { path, digest, size };
    file::write(&note, serde_json::to_vec(&made)?)?;
    sink.info(&format!(
        "Debian {}: {} in {}",
        debian.suite,
        render::bytes(size),
        render::duration(started.elapsed())
    ));
    Ok(made)
}

fn find(path: &Path, note: &Path) -> Option<Rootfs> {
    let mut found: Rootfs = serde_json::from_slice(&std::fs::read(note).ok()?).ok()?;
    found.path = path.to_owned();
    let size = std::fs::metadata(path).ok()?.len();
    (size == found.size).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_cache_holds_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let debian = Debian {
            suite: "bookworm".into(),
            packages: vec!["kmod".into()],
        };
        let inputs = serde_json::to_vec(&(FORMAT, &debian, EXCLUDE)).unwrap();
        let hash = oci::Digest::of(&inputs).hex().to_owned();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        let path = dir.path().join(format!("rootfs/{hash}.tar"));
        let made = Rootfs {
            path: path.clone(),
            digest: file::digest(b"tar"),
            size: 3,
        };
        file::write(&path, "tar").unwrap();
        let note = path.with_extension("json");
        file::write(&note, serde_json::to_vec(&made).unwrap()).unwrap();
        let found = make(&debian, dir.path(), MIRROR, false, &event::Discard).unwrap();
        assert_eq!(found, made);
        file::write(&path, "longer").unwrap();
        assert_eq!(find(&path, &note), None);
    }

    #[test]
    fn security_updates_are_among_the_sources() {
        let text = sources("bookworm", MIRROR);
        assert!(
            text.contains("deb http://deb.debian.org/debian-security bookworm-security main\n")
        );
        assert_eq!(text.lines().count(), 3);
    }
}
