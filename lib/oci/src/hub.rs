//! Where base images come from: the hub's directory.
//!
//! In: the environment. Out: a path. The hub is a directory in OCI image
//! layout, so that nothing has to run.

use std::path::PathBuf;

/// The hub when no flag names one: `GRAVITY_HUB`, or `gravity/hub` in the
/// user's data directory. Nothing when the user has no home either.
pub fn default_dir() -> Option<PathBuf> {
    choose(|name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    })
}

fn choose(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("GRAVITY_HUB")
        .or_else(|| variable("XDG_DATA_HOME").map(|data| data.join("gravity/hub")))
        .or_else(|| variable("HOME").map(|home| home.join(".local/share/gravity/hub")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_variable_wins() {
        let with = |set: &[(&str, &str)]| {
            choose(|name| {
                set.iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, v)| PathBuf::from(v))
            })
        };
        assert_eq!(with(&[]), None);
        assert_eq!(
            with(&[("HOME", "/h")]),
            Some("/h/.local/share/gravity/hub".into())
        );
        assert_eq!(
            with(&[("HOME", "/h"), ("XDG_DATA_HOME", "/d")]),
            Some("/d/gravity/hub".into())
        );
        assert_eq!(
            with(&[("GRAVITY_HUB", "/g"), ("XDG_DATA_HOME", "/d")]),
            Some("/g".into())
        );
    }
}
