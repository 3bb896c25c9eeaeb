//! Files: where caches lie, atomic writes, locks.
//!
//! In: paths. Out: whole files or none.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

/// Where made things are kept between runs: `$GRAVITY_CACHE`, else the
/// directory `gravity` in `$XDG_CACHE_HOME` or `~/.cache`.
///
/// # Errors
/// When neither that nor `$HOME` is set.
pub fn cache() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("GRAVITY_CACHE") {
        return Ok(path.into());
    }
    if let Some(path) = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        return Ok(Path::new(&path).join("gravity"));
    }
    let home = std::env::var_os("HOME").context("neither GRAVITY_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/gravity"))
}

/// Makes a directory and those above it.
///
/// # Errors
/// With the path.
pub fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))
}

/// Writes a whole file: beside its place first, then it gets its name.
///
/// # Errors
/// With the path.
pub fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".tmp-{}-{name}", std::process::id()));
    let result = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes.as_ref()))
        .and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result.with_context(|| format!("writing {}", path.display()))
}

/// Text of a file.
///
/// # Errors
/// With the path.
pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Removes a directory with all that is in it, if it is there.
///
/// # Errors
/// With the path.
pub fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Waits for the lock file `path` and holds it until the result is dropped.
///
/// # Errors
/// When the file can't be made or locked.
pub fn lock(path: &Path) -> Result<Flock<File>> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("locking {}", path.display()))
}
