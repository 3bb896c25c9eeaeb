//! What can go wrong with the planet.

use std::path::{Path, PathBuf};

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the planet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file, directory or mount of the planet could not be used.
    #[error("{action} {path}: {source}", path = path.display())]
    File {
        /// What was tried, such as `write`.
        action: &'static str,
        /// Of what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The kernel refused something that has no path.
    #[error("{action}: {source}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The configuration can't be used.
    #[error("planet configuration {path}: {reason}", path = path.display())]
    Config {
        /// File it came from.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The machine's cgroups can't be used.
    #[error("cgroups: {0}")]
    Cgroup(String),
    /// The container could not be made; the text comes from its first process.
    #[error("start the planet: {0}")]
    Start(String),
    /// The container ended by itself.
    #[error("the planet ended: {0}")]
    Ended(String),
    /// Another process holds the planet.
    #[error("the planet runs already (lock {path} is held)", path = .0.display())]
    Running(PathBuf),
    /// No planet runs on this machine.
    #[error("the planet does not run: {0}")]
    NotRunning(String),
    /// The supervisor answered something that is not understood, or refused.
    #[error("the planet's supervisor: {0}")]
    Protocol(String),
    /// Services did not become ready in time.
    #[error(
        "not ready after {seconds} s: {services}; their logs are in the planet's log directory"
    )]
    NotReady {
        /// How long it was waited, in seconds.
        seconds: u64,
        /// The services, each with its state and last error.
        services: String,
    },
    /// The supervisor never answered: it is what doesn't run, not its services.
    #[error(
        "the planet's supervisor has not answered at {socket} within {seconds} s; \
         `journalctl -u gravity`, or planet.log in the log directory, says why",
        socket = socket.display()
    )]
    NoAnswer {
        /// How long it was waited, in seconds.
        seconds: u64,
        /// Where it was expected.
        socket: PathBuf,
    },
}

/// Adds what was tried to an error of the system.
pub(crate) trait Context<T> {
    /// Adds the action and the path.
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
    /// Adds the action.
    fn on(self, action: &'static str) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Context<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|error| Error::File {
            action,
            path: path.as_ref().to_owned(),
            source: error.into(),
        })
    }

    fn on(self, action: &'static str) -> Result<T> {
        self.map_err(|error| Error::Kernel {
            action,
            source: error.into(),
        })
    }
}
