//! The Debian that nodes run, by mmdebstrap.
//!
//! In: a package list. Out: a directory in the cache, under the hash of what
//! it was made from, made once and never written to again.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use event::Sink;

use crate::{file, process};

/// Part of the hash: raise it when the way of making it changes.
const FORMAT: u32 = 1;
/// Release of Debian that machines run, and nodes that are not of another one.
pub const SUITE: &str = "bookworm";
/// Says that /bin is a part of /usr.
const IS_MERGED: &str = "usr-is-merged";
/// What a plain server has beyond the minimum.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "curl",
    "iproute2",
    "iptables",
    "kmod",
    "nftables",
    "passwd",
    "procps",
    IS_MERGED,
    "util-linux",
];

/// The root filesystem of nodes with a release of Debian; made, which takes half a
/// minute to two, when the cache does not have it.
///
/// # Errors
/// When mmdebstrap is missing or fails.
pub fn node_root(suite: &str, sink: &dyn Sink) -> Result<PathBuf> {
    node_root_with(suite, &[], sink)
}

/// The same with more packages.
///
/// # Errors
/// See [`node_root`].
pub(crate) fn node_root_with(
    suite: &str,
    more: &[&'static str],
    sink: &dyn Sink,
) -> Result<PathBuf> {
    // Debian 11 doesn't have it: its /bin is a directory of its own.
    let is_there = |package: &&str| suite != "bullseye" || *package != IS_MERGED;
    let packages = PACKAGES.iter().copied().filter(is_there);
    let packages: Vec<_> = packages.chain(more.iter().copied()).collect();
    let hash = oci::Digest::of(format!("{FORMAT} {suite} {packages:?}").as_bytes());
    let directory = file::cache()?.join("node-root");
    let path = directory.join(&hash.hex()[..16]);
    if path.is_dir() {
        return Ok(path);
    }
    file::make_directory(&directory)?;
    let _lock = file::lock(&directory.join("lock"))?;
    if path.is_dir() {
        return Ok(path);
    }
    sink.step(&format!(
        "Making the root filesystem of test nodes with Debian {suite}, about 1m"
    ));
    let temporary = directory.join(".tmp");
    file::remove_directory(&temporary)?;
    debootstrap(suite, &temporary, "directory", &packages)?;
    std::fs::rename(&temporary, &path)
        .with_context(|| format!("renaming {}", temporary.display()))?;
    Ok(path)
}

/// Runs mmdebstrap.
pub(crate) fn debootstrap(
    suite: &str,
    target: &Path,
    format: &str,
    packages: &[&str],
) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=minbase", "--architectures=amd64", "--quiet"]);
    command
        .arg(format!("--format={format}"))
        .arg(format!("--include={}", packages.join(",")));
    // Without it usrmerge and with it all of perl would be installed.
    if packages.contains(&IS_MERGED) {
        command.arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr");
    }
    command.args(
        [
            "path-exclude=/usr/share/man/*",
            "path-exclude=/usr/share/locale/*",
        ]
        .map(|option| format!("--dpkgopt={option}")),
    );
    command.arg(suite).arg(target);
    process::run(&mut command)
        .map(drop)
        .context("mmdebstrap, see tests/setup.sh")
}
