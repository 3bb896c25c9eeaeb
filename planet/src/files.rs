//! Files of the planet: whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Context, Error, Result};

/// No file that the planet reads is larger.
const MAX_SIZE: u64 = 16 << 20;

/// Writes a file by renaming a complete one to its name. A link at `path` is
/// replaced, never followed.
pub(crate) fn write(path: &Path, content: &[u8], mode: u32, uid: u32, gid: u32) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).at("create", directory)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = directory.join(name);
    drop(fs::remove_file(&part));
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .at("create", &part)?;
    file.write_all(content).at("write", &part)?;
    chown(&part, Some(uid), Some(gid)).at("change the owner of", &part)?;
    file.set_permissions(Permissions::from_mode(mode))
        .at("change the mode of", &part)?;
    fs::rename(&part, path).at("write", path)
}

/// Writes a value as JSON, root's alone.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let content = serde_json::to_vec(value)
        .map_err(std::io::Error::from)
        .at("write", path)?;
    write(path, &content, 0o600, 0, 0)
}

/// Reads a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let content = host::bounded::bytes(path, MAX_SIZE).at("read", path)?;
    serde_json::from_slice(&content).map_err(|error| Error::Config {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_replaced_and_its_target_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (
            directory.path().join("target"),
            directory.path().join("link"),
        );
        fs::File::create(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let (uid, gid) = (
            nix::unistd::getuid().as_raw(),
            nix::unistd::getgid().as_raw(),
        );
        write(&link, b"new", 0o640, uid, gid).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"");
        assert_eq!(fs::read(&link).unwrap(), b"new");
        let metadata = fs::symlink_metadata(&link).unwrap();
        assert!(metadata.is_file());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn damaged_json_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::File::create(&path).unwrap().write_all(b"{").unwrap();
        let error = read_json::<serde_json::Value>(&path).unwrap_err();
        assert!(error.to_string().contains("config.json"), "{error}");
    }
}
