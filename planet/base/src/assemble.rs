//! Puts the planet's root filesystem together.
//!
//! In: the Debian tar, built components, programs of ours. Out: [`Planet`]: one tar
//! in the cache and its bill of materials, under the hash of what they are
//! made of. Nothing in it depends on the machine that made it.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use console::render;
use event::Sink;
use serde::{Deserialize, Serialize};

use crate::component::Built;
use crate::rootfs::{self, Rootfs};
use crate::tree::Tree;
use crate::versions::Versions;
use crate::{file, pause, sbom};

/// Part of the hash: raise it when the way of assembling changes.
const FORMAT: u32 = 1;

/// Assembled root filesystems that the cache keeps.
const KEPT: usize = 3;

/// Longest /var/lib/dpkg/status that is read, bytes.
const MAX_STATUS: u64 = 16 << 20;

/// Largest program of ours, bytes.
const MAX_PROGRAM: u64 = 64 << 20;

/// Programs of ours.
pub(crate) struct Programs {
    /// PID 1 of the planet, and the pause container.
    pub(crate) init: PathBuf,
    /// `helm` of hooks.
    pub(crate) helm_shim: PathBuf,
}

/// The planet's root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Planet {
    /// Digest of the tar.
    pub(crate) digest: String,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// Where tar and bill of materials are.
    #[serde(skip)]
    directory: PathBuf,
}

impl Planet {
    /// The tar.
    pub(crate) fn tar(&self) -> PathBuf {
        self.directory.join("rootfs.tar")
    }

    /// The bill of materials.
    pub(crate) fn sbom(&self) -> PathBuf {
        self.directory.join("sbom.cdx.json")
    }
}

/// Makes the root filesystem, or finds it in the cache.
///
/// # Errors
/// When a part is missing or is not what it was when it was made.
pub(crate) fn make(
    versions: &Versions,
    rootfs: &Rootfs,
    built: &[Built],
    programs: &Programs,
    cache: &Path,
    mtime: u64,
    sink: &dyn Sink,
) -> Result<Planet> {
    let (init, helm_shim) = (read(&programs.init)?, read(&programs.helm_shim)?);
    let links: Vec<_> = versions
        .components
        .iter()
        .map(|c| (&c.name, &c.version, &c.license, &c.links))
        .collect();
    let inputs = serde_json::to_vec(&(
        FORMAT,
        &versions.version,
        &versions.debian,
        rootfs,
        built,
        links,
        file::digest(&init),
        file::digest(&helm_shim),
        mtime,
    ))?;
    let hash = oci::Digest::of(&inputs).hex().to_owned();
    let all = cache.join("planets");
    let directory = all.join(&hash);
    if let Some(found) = find(&directory) {
        return Ok(found);
    }
    sink.step("Putting the root filesystem together");
    let started = Instant::now();
    let temporary = all.join(format!(".tmp-{hash}"));
    for old in [&directory, &temporary] {
        if old.exists() {
            std::fs::remove_dir_all(old).with_context(|| old.display().to_string())?;
        }
    }
    std::fs::create_dir_all(&temporary).with_context(|| temporary.display().to_string())?;
    let mut tree = Tree::read(&rootfs.path)?;
    let packages = sbom::debian_packages(&String::from_utf8_lossy(
        &tree.content("var/lib/dpkg/status", MAX_STATUS)?,
    ));
    let sbom = sbom::make(versions, built, &packages)?;
    fill(&mut tree, versions, built, &sbom)?;
    tree.bytes(
        "usr/local/share/planet/pause.tar",
        0o644,
        pause::archive(&init)?,
    )?;
    tree.bytes("usr/local/bin/planet-init", 0o755, init)?;
    tree.bytes("usr/local/bin/helm-shim", 0o755, helm_shim)?;
    let (digest, size) = tree.write(&temporary.join("rootfs.tar"), mtime)?;
    file::write(&temporary.join("sbom.cdx.json"), &sbom)?;
    let mut planet = Planet {
        digest,
        size,
        directory: directory.clone(),
    };
    file::write(&temporary.join("planet.json"), serde_json::to_vec(&planet)?)?;
    std::fs::rename(&temporary, &directory).with_context(|| directory.display().to_string())?;
    planet.directory = directory;
    sink.info(&format!(
        "Root filesystem: {} in {}",
        render::bytes(size),
        render::duration(started.elapsed())
    ));
    prune(&all, &planet.directory);
    Ok(planet)
}

fn read(program: &Path) -> Result<Vec<u8>> {
    let context = || program.display().to_string();
    let size = std::fs::metadata(program).with_context(context)?.len();
    ensure!(
        size <= MAX_PROGRAM,
        "{}: {size} bytes, more than {MAX_PROGRAM}",
        program.display()
    );
    std::fs::read(program).with_context(context)
}

fn find(directory: &Path) -> Option<Planet> {
    let text = std::fs::read(directory.join("planet.json")).ok()?;
    let mut planet: Planet = serde_json::from_slice(&text).ok()?;
    planet.directory = directory.to_owned();
    let size = std::fs::metadata(planet.tar()).ok()?.len();
    (size == planet.size && planet.sbom().exists()).then_some(planet)
}

/// Removes all but the newest; a hub has its own name for what it serves.
fn prune(all: &Path, current: &Path) {
    let mut old: Vec<(SystemTime, PathBuf)> = std::fs::read_dir(all)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path != current)
        .filter_map(|path| Some((std::fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    old.sort();
    let surplus = (old.len() + 1).saturating_sub(KEPT);
    for (_, path) in old.into_iter().take(surplus) {
        let _ = std::fs::remove_dir_all(path);
    }
}

fn fill(tree: &mut Tree, versions: &Versions, built: &[Built], sbom: &[u8]) -> Result<()> {
    tree.retain(kept);
    for directory in ["dev", "opt/cni/bin", "proc", "run", "sys", "var/log"] {
        tree.directory(directory, 0o755)?;
    }
    for directory in ["tmp", "var/tmp"] {
        tree.directory(directory, 0o1777)?;
    }
    // What the machine that built it would have left there.
    let suite = &versions.debian.suite;
    tree.bytes(
        "etc/apt/sources.list",
        0o644,
        rootfs::sources(suite, rootfs::MIRROR),
    )?;
    tree.bytes("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n")?;
    for file in ["etc/hostname", "etc/machine-id", "etc/resolv.conf"] {
        tree.bytes(file, 0o644, "")?;
    }
    for (component, built) in versions.components.iter().zip(built) {
        ensure!(
            component.name == built.name,
            "{} in place of {}",
            built.name,
            component.name
        );
        for file in &built.files {
            let path = file.output.trim_start_matches('/');
            tree.file(path, 0o755, &built.path(file), &file.digest, file.size)?;
        }
        for (path, target) in &component.links {
            tree.symlink(path.trim_start_matches('/'), target)?;
        }
    }
    tree.bytes("usr/local/share/planet/sbom.cdx.json", 0o644, sbom)
}

/// Whether a path of the Debian root goes into the image: not what another
/// run would make otherwise, nor what packages can be had without.
fn kept(path: &str) -> bool {
    let below = |directory: &str| {
        path.strip_prefix(directory)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    let volatile = ["dev", "proc", "run", "sys", "tmp", "var/tmp"]
        .iter()
        .any(|d| below(d));
    let apt = (below("var/lib/apt/lists") || below("var/cache/apt/archives"))
        && !path.ends_with("/partial");
    let cache = below("var/cache/ldconfig")
        || path.ends_with(".pyc")
        || path.ends_with("/__pycache__")
        || path.ends_with("/pkgcache.bin")
        || path.ends_with("/srcpkgcache.bin");
    let backup = (below("var/cache/debconf") || below("var/lib/dpkg")) && path.ends_with("-old")
        || matches!(
            path,
            "etc/passwd-" | "etc/group-" | "etc/shadow-" | "etc/gshadow-"
        );
    let log = below("var/log") && path.ends_with(".log");
    let sources = below("etc/apt/sources.list.d");
    !(volatile || apt || cache || backup || log || sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_keeps_what_it_needs_and_nothing_of_the_build_stays() {
        for path in [
            "var/lib/apt/lists",
            "var/lib/apt/lists/partial",
            "var/cache/apt/archives/partial",
            "var/lib/dpkg/status",
            "etc/apt/trusted.gpg.d/debian-archive-bookworm-stable.asc",
            "tmp",
            "dev",
            "var/log/apt",
            "usr/bin/apt",
        ] {
            assert!(kept(path), "{path}");
        }
        for path in [
            "var/lib/apt/lists/lock",
            "var/lib/apt/lists/deb.debian.org_debian_dists_bookworm_InRelease",
            "var/cache/apt/archives/kmod_30_amd64.deb",
            "var/cache/apt/pkgcache.bin",
            "var/cache/ldconfig/aux-cache",
            "var/lib/dpkg/status-old",
            "var/log/dpkg.log",
            "var/log/apt/history.log",
            "etc/passwd-",
            "etc/apt/sources.list.d/0000mirror.list",
            "usr/lib/python3.11/__pycache__/os.cpython-311.pyc",
            "dev/null",
            "tmp/x",
        ] {
            assert!(!kept(path), "{path}");
        }
    }
}
