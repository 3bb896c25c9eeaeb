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

/// Where the user's programs keep what can be made again: `XDG_CACHE_HOME`, else
/// `~/.cache`.
pub fn cache_dir() -> Option<PathBuf> {
    path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")))
}

/// Where the user's programs keep their data: `XDG_DATA_HOME`, else
/// `~/.local/share`.
pub fn data_dir() -> Option<PathBuf> {
    path("XDG_DATA_HOME").or_else(|| path("HOME").map(|home| home.join(".local/share")))
}
