//! The node that phases are executed on.
//!
//! In: the state directory. Out: where things are, the journal of changes to
//! the host, a connection to the planet and to Kubernetes.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event::Sink;
use host::causes::causes;
use host::changes::Journal;
use operation::PhaseError;
use pki::tls::{Identity, Trust};
use rpc::controller::{Refusal, Session};
use spec::layout::Layout;

/// A node and the journal of what was changed on it.
#[derive(Debug, Clone)]
pub struct Node {
    layout: Layout,
    changes: Arc<Mutex<Journal>>,
    /// Who changes it: operation and phase.
    scope: Option<String>,
}

impl Node {
    /// Opens the node whose state is in `layout`.
    ///
    /// # Errors
    /// When the journal of changes is damaged or can't be written.
    pub fn open(layout: Layout) -> Result<Self, PhaseError> {
        let changes = Journal::open(&layout.host_changes()).map_err(lasting)?;
        Ok(Self {
            layout,
            changes: Arc::new(Mutex::new(changes)),
            scope: None,
        })
    }

    /// The same node, changed by one phase of an operation.
    pub(crate) fn within(&self, operation: &str, phase: &str) -> Self {
        Self {
            scope: Some(format!("{operation}{phase}")),
            ..self.clone()
        }
    }

    /// Takes back what the phase has changed on the host; tells what is left.
    pub(crate) fn undo_changes(&self, sink: &dyn Sink) {
        let Some(scope) = &self.scope else { return };
        for left in self.changes().undo_scope(scope).left {
            sink.warning(&format!("left {}: {}", left.what, left.why));
        }
    }

    /// Where things are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The journal of changes to the host; whatever touches the host goes
    /// through it.
    pub fn changes(&self) -> MutexGuard<'_, Journal> {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.within(self.scope.as_deref());
        changes
    }

    /// Connects to Kubernetes as administrator.
    pub(crate) async fn kubernetes(&self) -> Result<cluster::Client, PhaseError> {
        self.kubernetes_as("admin").await
    }

    /// Connects to Kubernetes with one of the node's kubeconfigs.
    pub(crate) async fn kubernetes_as(&self, name: &str) -> Result<cluster::Client, PhaseError> {
        let name = format!("{name}.kubeconfig");
        cluster::Client::connect(&self.layout.planet_secrets().join(name))
            .await
            .map_err(transient)
    }

    /// The planet's control socket.
    pub(crate) fn planet(&self) -> planet::client::Client {
        planet::client::Client::new(&self.layout.planet_socket())
    }
}

/// A failure that trying again may mend.
pub(crate) fn transient(error: impl std::error::Error + 'static) -> PhaseError {
    PhaseError::transient(causes(&error))
}

/// A failure that stays until somebody does something.
pub(crate) fn lasting(error: impl std::error::Error + 'static) -> PhaseError {
    PhaseError::lasting(causes(&error))
}

/// What a controller did not do.
pub(crate) fn of_controller(error: rpc::controller::Error) -> PhaseError {
    match error {
        rpc::controller::Error::Refused(Refusal::Refused(_)) => lasting(error),
        _ => transient(error),
    }
}

/// A failure to do something with a file.
pub(crate) fn file(what: &str, path: &Path) -> impl Fn(std::io::Error) -> PhaseError + Copy {
    move |error| PhaseError::lasting(format!("{what} {}: {error}", path.display()))
}

/// Removes a file, where there is one.
pub(crate) fn remove_file(path: &Path) -> Result<(), PhaseError> {
    gone(path, std::fs::remove_file(path))
}

/// Removes a directory with all that is in it, where there is one.
pub(crate) fn remove_directory(path: &Path) -> Result<(), PhaseError> {
    gone(path, std::fs::remove_dir_all(path))
}

fn gone(path: &Path, removed: std::io::Result<()>) -> Result<(), PhaseError> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// What is in a directory; nothing where there is none.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>, PhaseError> {
    let failed = file("read", directory);
    match std::fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
            .collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Removes the files of a directory whose names begin so: what somebody was making there
/// who was killed. Each try names its own, so that none uses up another's.
pub(crate) fn remove_beginning(directory: &Path, prefix: &str) -> Result<(), PhaseError> {
    for path in entries(directory)? {
        let name = path.file_name().unwrap_or_default();
        if name.as_encoded_bytes().starts_with(prefix.as_bytes()) {
            remove_file(&path)?;
        }
    }
    Ok(())
}

/// Makes all durable that was done on the filesystem of `path`, names included.
pub(crate) fn sync_filesystem(path: &Path) -> Result<(), PhaseError> {
    std::fs::File::open(path)
        .and_then(|opened| Ok(nix::unistd::syncfs(opened)?))
        .map_err(file("sync", path))
}

/// Where controllers are, as the planet has come to know while it ran.
fn masters(layout: &Layout) -> Vec<SocketAddr> {
    let read = std::fs::read(layout.masters()).unwrap_or_default();
    let addresses: Vec<std::net::IpAddr> = serde_json::from_slice(&read).unwrap_or_default();
    let at = |address| SocketAddr::new(address, spec::CONTROLLER_PORT);
    addresses.into_iter().map(at).collect()
}

/// How long a controller that was ended may take to be back: longer than the supervisor
/// waits, at most 38 s, before it starts once more what ends again and again.
const PATIENCE: Duration = Duration::from_secs(45);
/// Between one try to reach one and the next.
const PAUSE: Duration = Duration::from_secs(1);

/// Opens a session of this node, a member, with a controller of its cluster. Where
/// none answers they are asked again for a while.
///
/// # Errors
/// When the node's identity can't be read or no controller answers.
pub async fn session(layout: &Layout, controllers: &[SocketAddr]) -> Result<Session, PhaseError> {
    let read = |path: &Path| std::fs::read_to_string(path).map_err(file("read", path));
    let identity = Identity {
        certificate_pem: read(&layout.node_certificate())?,
        key_pem: read(&layout.node_key())?,
    };
    let trust = Trust::Authority(read(&layout.rpc_authority())?);
    // The masters may be others since then.
    let mut now = masters(layout);
    now.extend(controllers);
    open(&now, &trust, &identity, PATIENCE)
        .await
        .map_err(transient)
}

async fn open(
    controllers: &[SocketAddr],
    trust: &Trust,
    identity: &Identity,
    patience: Duration,
) -> Result<Session, rpc::controller::Error> {
    let deadline = Instant::now() + patience;
    loop {
        match Session::open(controllers, trust, Some(identity)).await {
            Err(rpc::controller::Error::Connect { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_controller_that_does_not_answer_is_asked_again() {
        let hour = Duration::from_secs(3600);
        let authority = pki::Authority::generate("rpc", hour).unwrap();
        let leaf = pki::Leaf::client("node", &[], hour);
        let issued = authority.issue(&leaf).unwrap();
        let identity = Identity {
            certificate_pem: issued.certificate_pem,
            key_pem: issued.key_pem,
        };
        let trust = Trust::Authority(authority.certificate_pem().into());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = [listener.local_addr().unwrap()];
        let ends_all = async {
            let mut tries = 0;
            while listener.accept().await.is_ok() {
                tries += 1;
                if tries == 2 {
                    break;
                }
            }
        };
        let opening = open(&address, &trust, &identity, 5 * PAUSE);
        tokio::select! {
            () = ends_all => {}
            opened = opening => panic!("it was not asked again: {opened:?}"),
        }
        let once = open(&address, &trust, &identity, Duration::ZERO);
        tokio::select! {
            _ = async { while listener.accept().await.is_ok() {} } => {}
            opened = once => assert!(opened.is_err()),
        }
    }
}
