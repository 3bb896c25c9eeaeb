//! Shell patterns of paths, and where programs are.
//!
//! In: a pattern such as `/data/disk-?`, and where its matches are to be seen.
//! Out: what is on the host now, and a target for each. `*`, `?` and `[...]`
//! match within one component and never a leading dot, as in a shell.

use std::path::{Path, PathBuf};

use glob::Pattern;

/// Where programs are looked for inside.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Checks a pattern without looking at the host.
///
/// # Errors
/// A text that says what is wrong with it.
pub fn check(pattern: &str) -> Result<(), String> {
    if !pattern.starts_with('/') {
        return Err(format!("{pattern}: the pattern must be absolute"));
    }
    if pattern.contains("**") {
        return Err(format!("{pattern}: \"**\" is not a pattern of a shell"));
    }
    Pattern::new(pattern)
        .map(drop)
        .map_err(|error| format!("{pattern}: {error}"))
}

/// What on the host matches, in alphabetical order. Nothing is not an error;
/// what can't be read is left out.
///
/// # Errors
/// A text, when it is no pattern or thousands of paths match.
pub fn matches(pattern: &str) -> Result<Vec<PathBuf>, String> {
    check(pattern)?;
    host::facts::matches(pattern)
}

/// The directory that all matches of a pattern are below.
pub fn prefix(pattern: &Path) -> PathBuf {
    pattern
        .components()
        .take_while(|component| !is_wild(component.as_os_str()))
        .collect()
}

/// Components of a path that are patterns.
fn wild(path: &Path) -> impl Iterator<Item = &std::ffi::OsStr> {
    path.components()
        .map(std::path::Component::as_os_str)
        .filter(|name| is_wild(name))
}

fn is_wild(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes()
        .iter()
        .any(|byte| b"*?[".contains(byte))
}

/// Checks that every match of `pattern` has a place below `target`: patterns in
/// `target` are those of `pattern`, in order.
pub(crate) fn check_target(pattern: &Path, target: &Path) -> Result<(), String> {
    if wild(target).next().is_none() || wild(pattern).eq(wild(target)) {
        return Ok(());
    }
    Err(format!(
        "{}: its patterns are not those of {}, in order",
        target.display(),
        pattern.display()
    ))
}

/// Where a match of `pattern` is seen: each pattern in `target` is what it
/// stands for; a target without patterns is the directory of the matches.
pub(crate) fn target_of(pattern: &Path, found: &Path, target: &Path) -> PathBuf {
    let mut values = pattern
        .components()
        .zip(found.components())
        .filter(|(pattern, _)| is_wild(pattern.as_os_str()))
        .map(|(_, found)| found.as_os_str());
    if wild(target).next().is_none() {
        return target.join(found.file_name().unwrap_or_default());
    }
    target
        .components()
        .map(std::path::Component::as_os_str)
        .map(|name| match is_wild(name) {
            true => values.next().unwrap_or(name),
            false => name,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for name in ["dir-abc", "dir-ab", "dir-abd", ".dir-abc", "dir-abcd"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        let find = |pattern: &str| {
            let found = matches(&format!("{}/{pattern}", root.display())).unwrap();
            found
                .iter()
                .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(find("dir-???"), ["dir-abc", "dir-abd"]);
        assert_eq!(find("*-ab"), ["dir-ab"]);
        assert_eq!(find("dir-ab[!c]"), ["dir-abd"]);
        assert_eq!(find("none-*"), Vec::<String>::new());
        for bad in ["dir-*", "/a/**/b", "/a[", "/***"] {
            assert!(matches(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_comes_before_a_pattern_is_certain() {
        for (pattern, expected) in [("/data/disk-?/x", "/data"), ("/*", "/"), ("/a/b", "/a/b")] {
            assert_eq!(prefix(pattern.as_ref()), Path::new(expected));
        }
    }

    #[test]
    fn every_match_has_its_own_target() {
        let target = |pattern: &str, found: &str, target: &str| {
            check_target(pattern.as_ref(), target.as_ref()).unwrap();
            target_of(pattern.as_ref(), found.as_ref(), target.as_ref())
        };
        assert_eq!(
            target("/path/dir-???", "/path/dir-abc", "/inside/dir-???"),
            Path::new("/inside/dir-abc")
        );
        assert_eq!(
            target("/a?/x/b*", "/a1/x/bcd", "/in/a?/b*/end"),
            Path::new("/in/a1/bcd/end")
        );
        assert_eq!(
            target("/lib/lib*.so", "/lib/libx.so", "/usr/lib"),
            Path::new("/usr/lib/libx.so")
        );
        let error = check_target("/a/dir-?".as_ref(), "/b/dir-*".as_ref()).unwrap_err();
        assert_eq!(
            error,
            "/b/dir-*: its patterns are not those of /a/dir-?, in order"
        );
        assert!(check_target("/a".as_ref(), "/b/*".as_ref()).is_err());
    }
}
