//! Places that the user's environment names.
//!
//! In: variables. Out: paths; an empty variable is as one that is not set.

use std::path::PathBuf;

/// The path in a variable.
pub fn path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// Where the user's programs have their configuration: `XDG_CONFIG_HOME`, else
/// `~/.config`.
pub fn config_dir() -> Option<PathBuf> {
    path("XDG_CONFIG_HOME").or_else(|| path("HOME").map(|home| home.join(".config")))
}
