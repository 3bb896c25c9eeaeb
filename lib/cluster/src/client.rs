//! The client, its errors, and what is retried.
//!
//! In: a kubeconfig. Out: a [`Client`]. A request that failed for a reason that
//! passes (connection refused, an overloaded or starting API server) is made
//! again with growing pauses until a deadline; any other failure is told at
//! once. Proxies of the environment are never used: the API is on this host.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::Status as ApiStatus;
use kube::{Api, Config};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

/// Largest kubeconfig that is read, in bytes.
const MAX_KUBECONFIG: u64 = 1 << 20;

/// Longest time that a single request may take.
const REQUEST: Duration = Duration::from_secs(15);

/// How long a request is tried again where nobody said otherwise.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Objects asked for at a time.
const PAGE: u32 = 500;

/// Most objects that a list may have.
const MAX_OBJECTS: usize = 20_000;

/// Why something could not be done in Kubernetes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig can't be read.
    #[error("reading kubeconfig {path}")]
    Read {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The kubeconfig isn't one.
    #[error("invalid kubeconfig")]
    Kubeconfig(#[source] Box<KubeconfigError>),
    /// Objects aren't YAML.
    #[error("invalid Kubernetes objects: {0}")]
    Yaml(String),
    /// An object lacks what every object has.
    #[error("Kubernetes object {object} has no {field}")]
    Incomplete {
        /// Which one, as far as is known.
        object: String,
        /// The missing field.
        field: &'static str,
    },
    /// The API server doesn't know a kind.
    #[error("{object}: the cluster has no kind \"{kind}\" in \"{api_version}\"")]
    UnknownKind {
        /// Which object.
        object: String,
        /// Its kind.
        kind: String,
        /// Its group and version.
        api_version: String,
    },
    /// A node exists with another pod network, which Kubernetes never changes.
    #[error("node {name} exists with pod network {actual:?} instead of {wanted:?}")]
    PodNetwork {
        /// The node.
        name: String,
        /// What it has.
        actual: Vec<String>,
        /// What it should have.
        wanted: Vec<String>,
    },
    /// The node didn't become ready in time.
    #[error("node {name} is not ready after {seconds} s: {state}")]
    NotReady {
        /// The node.
        name: String,
        /// How long was waited.
        seconds: u64,
        /// What its Ready condition says.
        state: String,
    },
    /// Pods didn't leave a node in time.
    #[error("pods are left on node {node} after {seconds} s: {}", .pods.join(", "))]
    NotDrained {
        /// The node.
        node: String,
        /// How long was waited.
        seconds: u64,
        /// What is left, `namespace/name`.
        pods: Vec<String>,
    },
    /// A list is longer than any that we can have made.
    #[error("more than {MAX_OBJECTS} objects while {0}")]
    TooMany(String),
    /// A request took too long.
    #[error("{what}: no answer within {seconds} s")]
    NoAnswer {
        /// What was being done.
        what: String,
        /// How long was waited.
        seconds: u64,
    },
    /// A request failed.
    // Not a source: kube's errors print whole objects.
    #[error("{what}: {}", short(cause))]
    Request {
        /// What was being done.
        what: String,
        /// What the API or the connection said.
        cause: Box<kube::Error>,
    },
}

/// A connection to the API of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Client(pub(crate) kube::Client);

impl Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    /// A client by the kubeconfig file at `path`. Nothing is sent yet.
    ///
    /// # Errors
    /// When the file can't be read or isn't a kubeconfig.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Read {
            path: path.into(),
            source,
        };
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_KUBECONFIG + 1).read_to_string(&mut text))
            .map_err(failed)?;
        if text.len() as u64 > MAX_KUBECONFIG {
            return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
        }
        Self::from_kubeconfig(&text).await
    }

    /// A client by the text of a kubeconfig. Nothing is sent yet.
    ///
    /// # Errors
    /// When the text isn't a kubeconfig.
    pub async fn from_kubeconfig(text: &str) -> Result<Self, Error> {
        let invalid = |error| Error::Kubeconfig(Box::new(error));
        // kube refuses to choose between providers; a second call is harmless.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let kubeconfig = Kubeconfig::from_yaml(text).map_err(invalid)?;
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .map_err(invalid)?;
        config.proxy_url = None;
        config.connect_timeout = Some(Duration::from_secs(5));
        let client = kube::Client::try_from(config)
            .map_err(|source| request("preparing the connection to Kubernetes", source))?;
        Ok(Self(client))
    }

    /// Waits until the API server says that it is ready.
    ///
    /// # Errors
    /// When it isn't within `deadline`, or refuses us.
    pub async fn wait_api(&self, deadline: Duration) -> Result<(), Error> {
        retry("waiting for the Kubernetes API", deadline, || async {
            let get = http_get("/readyz")?;
            self.0.request_text(get).await.map(drop)
        })
        .await
    }

    /// All objects of a kind that `params` selects, page by page.
    pub(crate) async fn list<K>(
        &self,
        what: &str,
        api: &Api<K>,
        params: ListParams,
    ) -> Result<Vec<K>, Error>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let mut params = params.limit(PAGE);
        let mut all = Vec::new();
        loop {
            let page = retry(what, DEADLINE, || api.list(&params)).await?;
            all.extend(page.items);
            if all.len() > MAX_OBJECTS {
                return Err(Error::TooMany(what.into()));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(all),
            }
        }
    }
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>, kube::Error> {
    http::Request::get(path)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)
}

pub(crate) fn request(what: &str, cause: kube::Error) -> Error {
    Error::Request {
        what: what.into(),
        cause: Box::new(cause),
    }
}

/// What the API said, with its reason; or the first cause of a connection's
/// failure.
fn short(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        let message = match (status.message.trim(), &status.details) {
            ("", Some(details)) => format!("{} \"{}\"", details.kind, details.name),
            (message, _) => message.to_owned(),
        };
        return match (message.is_empty(), status.reason.as_str()) {
            (true, "") => format!("status {}", status.code),
            (true, reason) => reason.to_owned(),
            (false, "") => message,
            (false, reason) => format!("{message} ({reason})"),
        };
    }
    let mut last: &dyn StdError = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// Makes a request until it succeeds, fails for good, or `deadline` has
/// passed; the last failure is told. The request must be one that can be made
/// twice.
pub(crate) async fn retry<T, F, R>(what: &str, deadline: Duration, make: F) -> Result<T, Error>
where
    F: Fn() -> R,
    R: Future<Output = Result<T, kube::Error>>,
{
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(50);
    loop {
        let error = match timeout(REQUEST, make()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if !is_transient(&error) => return Err(request(what, error)),
            Ok(Err(error)) => request(what, error),
            Err(_) => Error::NoAnswer {
                what: what.into(),
                seconds: REQUEST.as_secs(),
            },
        };
        if Instant::now() + pause >= end {
            return Err(error);
        }
        tracing::debug!(what, error = ?error, "trying again");
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// Whether the same request may succeed later without anybody's help.
pub(crate) fn is_transient(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => is_transient_status(status),
        kube::Error::HyperError(_) | kube::Error::ReadEvents(_) => true,
        kube::Error::Service(source) => !is_distrust(&**source),
        _ => false,
    }
}

pub(crate) fn is_transient_status(status: &ApiStatus) -> bool {
    // The API server's answer to a field of the wrong type in a server-side apply.
    if status
        .message
        .starts_with("failed to create typed patch object")
    {
        return false;
    }
    matches!(status.code, 408 | 429 | 500 | 502 | 503 | 504)
        || matches!(status.reason.as_str(), "Timeout" | "ServerTimeout" | "TooManyRequests")
        // A namespace of the system that the API server is about to make.
        || (status.code == 404
            && status.details.as_ref().is_some_and(|d| {
                d.kind == "namespaces" && d.name.starts_with("kube-")
            }))
}

/// Whether the server's certificate, or ours, is at fault: time mends neither.
fn is_distrust(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // An I/O error's source is that of its inner error: look inside.
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        let inner = inner.map(|inner| inner as &(dyn StdError + 'static));
        for error in [Some(error), inner].into_iter().flatten() {
            if let Some(error) = error.downcast_ref::<rustls::Error>() {
                return matches!(
                    error,
                    rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_)
                );
            }
        }
        next = inner.or_else(|| error.source());
    }
    false
}

/// Whether the API said that an object doesn't exist.
pub(crate) fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether the API said that an object exists already.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether the object of a request was there; that it was not is no failure.
pub(crate) fn unless_missing<T>(answer: Result<T, kube::Error>) -> Result<bool, kube::Error> {
    match answer {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a request made its object; that it is there already is no failure.
pub(crate) fn unless_there<T>(answer: Result<T, kube::Error>) -> Result<bool, kube::Error> {
    match answer {
        Ok(_) => Ok(true),
        Err(error) if is_conflict(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn api(code: u16) -> kube::Error {
        kube::Error::Api(ApiStatus::failure("no", "Reason").with_code(code).boxed())
    }

    #[test]
    fn what_passes_is_told_from_what_stays() {
        for code in [429, 500, 503] {
            assert!(is_transient(&api(code)), "{code}");
        }
        for code in [400, 401, 403, 404, 409, 422] {
            assert!(!is_transient(&api(code)), "{code}");
        }
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert!(is_transient(&kube::Error::Service(Box::new(refused))));
        let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let distrust = std::io::Error::other(expired);
        assert!(!is_transient(&kube::Error::Service(Box::new(distrust))));
    }

    #[test]
    fn errors_are_short_and_name_the_reason() {
        let status = ApiStatus::failure("jobs.batch \"x\" is forbidden: no", "Forbidden");
        let status = status
            .with_code(403)
            .with_details(kube::core::response::StatusDetails {
                name: "x".into(),
                group: "batch".into(),
                kind: "jobs".into(),
                uid: "1".into(),
                causes: Vec::new(),
                retry_after_seconds: 0,
            });
        let error = request("creating Job \"x\"", kube::Error::Api(status.boxed()));
        assert_eq!(
            error.to_string(),
            "creating Job \"x\": jobs.batch \"x\" is forbidden: no (Forbidden)"
        );
        assert!(error.source().is_none());
        let bare = kube::Error::Api(ApiStatus::failure("", "").with_code(418).boxed());
        assert_eq!(short(&bare), "status 418");
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let outer = std::io::Error::other(refused);
        let error = kube::Error::Service(Box::new(outer));
        assert_eq!(short(&error), "connection refused");
    }

    #[tokio::test]
    async fn requests_are_made_again_until_the_deadline() {
        let deadline = Duration::from_millis(500);
        let count = AtomicU32::new(0);
        let result = retry("asking", deadline, || async {
            match count.fetch_add(1, Ordering::Relaxed) {
                0..2 => Err(api(503)),
                n => Ok(n),
            }
        });
        assert_eq!(result.await.unwrap(), 2);
        let start = Instant::now();
        let result = retry("asking", Duration::ZERO, || async {
            Err::<(), _>(api(503))
        });
        assert!(matches!(result.await, Err(Error::Request { .. })));
        count.store(0, Ordering::Relaxed);
        let result = retry("asking", deadline, || async {
            count.fetch_add(1, Ordering::Relaxed);
            Err::<(), _>(api(403))
        });
        assert!(result.await.is_err());
        assert_eq!(count.load(Ordering::Relaxed), 1);
        assert!(start.elapsed() < deadline);
    }

    #[tokio::test]
    async fn bad_kubeconfigs_are_refused() {
        let missing = Client::connect(Path::new("/nonexistent/kubeconfig"))
            .await
            .unwrap_err();
        assert_eq!(
            missing.to_string(),
            "reading kubeconfig /nonexistent/kubeconfig"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MAX_KUBECONFIG + 1).unwrap();
        let large = Client::connect(file.path()).await.unwrap_err();
        assert!(matches!(large, Error::Read { .. }), "{large:?}");
        for text in ["", "{}", "clusters: 7", "a: ["] {
            let error = Client::from_kubeconfig(text).await.unwrap_err();
            assert!(matches!(error, Error::Kubeconfig(_)), "{text}");
        }
    }
}
