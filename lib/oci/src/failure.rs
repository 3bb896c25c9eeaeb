//! Why an image can't be pulled.
//!
//! In: what registries answered. Out: messages that name the address, what
//! was measured and, where there is one, the remedy.

use crate::digest::Digest;
use crate::layout::LayoutError;
use crate::registries::RegistriesError;

/// What went wrong at one address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The registry wants a login, or another one.
    #[error(
        "{url}: access denied ({status}): {looked_at}: run `skopeo login` or `docker login`, or check the name"
    )]
    Denied {
        /// The address.
        url: String,
        /// HTTP status.
        status: u16,
        /// Which credentials files were looked at, and what they hold.
        looked_at: String,
    },
    /// The registry has no such thing.
    #[error("{url}: not found (404)")]
    NotFound {
        /// The address.
        url: String,
    },
    /// Any other refusal.
    #[error("{url}: answered {status}{}{}", text(body), after(*.tries))]
    Status {
        /// The address.
        url: String,
        /// HTTP status.
        status: u16,
        /// Beginning of what it said.
        body: String,
        /// How long it wants to be left alone.
        retry_after: Option<std::time::Duration>,
        /// How often it was tried.
        tries: u32,
    },
    /// No answer, or it broke off.
    #[error("{url}: {reason}{}", after(*.tries))]
    Transport {
        /// The address.
        url: String,
        /// Why.
        reason: String,
        /// How often it was tried.
        tries: u32,
    },
    /// The content ended early.
    #[error("{url}: the content ended after {got} of {expected} bytes{}", after(*.tries))]
    Short {
        /// The address.
        url: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that were announced.
        expected: u64,
        /// How often it was tried.
        tries: u32,
    },
    /// The content is another one.
    #[error(
        "{url}: the content has digest {actual}, expected {expected}: the registry or something on the way to it is damaged"
    )]
    WrongDigest {
        /// The address.
        url: String,
        /// What it should have.
        expected: Digest,
        /// What it has.
        actual: Digest,
    },
    /// More bytes than there may be.
    #[error("{url}: the content is larger than {limit} bytes")]
    TooLarge {
        /// The address.
        url: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The answer makes no sense.
    #[error("{url}: {reason}")]
    Malformed {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This machine can't do it.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl Failure {
    /// Whether another try may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            Self::Transport { .. } | Self::Short { .. } => true,
            _ => false,
        }
    }

    /// How long the other end wants to be left alone.
    pub(crate) fn retry_after(&self) -> Option<std::time::Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(crate) fn tried(mut self, times: u32) -> Self {
        match &mut self {
            Self::Status { tries, .. }
            | Self::Transport { tries, .. }
            | Self::Short { tries, .. } => *tries = times,
            _ => {}
        }
        self
    }
}

fn after(tries: u32) -> String {
    match tries {
        0 | 1 => String::new(),
        tries => format!(" (tried {tries} times)"),
    }
}

fn text(body: &str) -> String {
    match body.is_empty() {
        true => String::new(),
        false => format!(": {body}"),
    }
}

/// Why an image can't be pulled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// No place had it.
    #[error("cannot pull {image}: {}", all(failures))]
    Failed {
        /// The image.
        image: String,
        /// What went wrong at each place, in the order in which they were asked.
        failures: Vec<Failure>,
    },
    /// It is there, but nothing that a cluster can run.
    #[error("cannot use {image}: {reason}")]
    Unsuitable {
        /// The image.
        image: String,
        /// Why.
        reason: String,
    },
    /// A place on this machine failed.
    #[error("cannot take {image} from {place}")]
    Source {
        /// The image.
        image: String,
        /// The place.
        place: String,
        /// Why.
        source: Box<crate::source::SourceError>,
    },
    /// The rules forbid it.
    #[error("cannot pull {image}")]
    Registries {
        /// The image.
        image: String,
        /// Why.
        source: RegistriesError,
    },
    /// The cache can't be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

fn all(failures: &[Failure]) -> String {
    failures
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; then ")
}
