//! Kernel parameters.
//!
//! In: a name such as `net.ipv4.ip_forward`. Out: its value, and a new one.
//! As with `sysctl(8)`, a name with a slash is taken as a path, so that
//! interfaces with a dot in their name can be meant.

use std::io::{Error, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::bounded;

const ROOT: &str = "/proc/sys";

/// A kernel parameter can't be read or set.
#[derive(Debug, thiserror::Error)]
#[error("{what} kernel parameter {name}")]
pub struct SysctlError {
    what: &'static str,
    name: String,
    source: Error,
}

impl SysctlError {
    /// Whether the kernel has no such parameter.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == ErrorKind::NotFound
    }
}

/// Value of a parameter, without the line break.
///
/// # Errors
/// When the kernel has none of that name.
pub fn get(name: &str) -> Result<String, SysctlError> {
    path(name)
        .and_then(|path| bounded::text(&path))
        .map(|text| text.trim_end().to_owned())
        .map_err(|source| SysctlError {
            what: "read",
            name: name.to_owned(),
            source,
        })
}

/// Sets a parameter until the next boot.
///
/// # Errors
/// When the kernel has none of that name, or refuses the value.
pub fn set(name: &str, value: &str) -> Result<(), SysctlError> {
    path(name)
        .and_then(|path| std::fs::File::options().write(true).open(path))
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| SysctlError {
            what: "set",
            name: name.to_owned(),
            source,
        })
}

/// Whether two spellings are one value: the kernel separates by tabs what is
/// written with blanks.
pub fn same(one: &str, other: &str) -> bool {
    one.split_whitespace().eq(other.split_whitespace())
}

fn path(name: &str) -> Result<PathBuf, Error> {
    let relative = match name.contains('/') {
        true => name.to_owned(),
        false => name.replace('.', "/"),
    };
    let bad = relative
        .split('/')
        .any(|part| part.is_empty() || part == "." || part == "..");
    match bad {
        true => Err(Error::new(
            ErrorKind::InvalidInput,
            "not a name of a kernel parameter",
        )),
        false => Ok(Path::new(ROOT).join(relative)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_below_the_root() {
        let path = |name| path(name).ok();
        assert_eq!(
            path("vm.swappiness").unwrap(),
            Path::new("/proc/sys/vm/swappiness")
        );
        let dotted = path("net/ipv4/conf/eth0.1/rp_filter").unwrap();
        assert_eq!(
            dotted,
            Path::new("/proc/sys/net/ipv4/conf/eth0.1/rp_filter")
        );
        for bad in ["", "..", "net/../../etc/passwd", "/etc/passwd", "a..b"] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn values_are_read_and_compared() {
        assert!(!get("kernel.ostype").unwrap().ends_with('\n'));
        assert!(get("kernel.no_such_thing").unwrap_err().is_missing());
        assert!(same("1024\t65535", "1024 65535\n") && !same("1", "11"));
    }
}
