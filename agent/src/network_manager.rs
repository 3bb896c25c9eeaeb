//! NetworkManager, where the host has it, leaves the planet's interfaces alone: it
//! would give them addresses and routes of its own, or take theirs.
//!
//! In: its directory of configuration. Out: a file in it that names the
//! interfaces, in the journal of host changes. Always holds: an install never
//! fails because NetworkManager can't be told; it reads the file at its next start.

use std::path::{Path, PathBuf};

use event::Sink;
use host::causes::causes;
use host::changes::{Daemon, Journal};
use operation::PhaseError;

use crate::node::lasting;

/// There where NetworkManager is installed.
const DIRECTORY: &str = "/etc/NetworkManager";
/// Below it; a name that comes after those that begin with digits.
const FILE: &str = "conf.d/gravity.conf";
/// With `+=` what other files leave alone is left alone still.
const TEXT: &str = "\
# Interfaces of pods are Kubernetes' own. `gravity leave` removes this file.
[keyfile]
unmanaged-devices+=interface-name:cni0;interface-name:flannel*;interface-name:veth*
";

/// The file, where NetworkManager is installed.
pub(crate) fn file() -> Option<PathBuf> {
    file_in(Path::new(DIRECTORY))
}

fn file_in(directory: &Path) -> Option<PathBuf> {
    directory.is_dir().then(|| directory.join(FILE))
}

/// Has NetworkManager leave our interfaces alone.
///
/// # Errors
/// When the file can't be written.
pub(crate) fn leave_us_alone(changes: &mut Journal, sink: &dyn Sink) -> Result<(), PhaseError> {
    let Some(file) = file() else { return Ok(()) };
    write(changes, &file)?;
    if let Err(error) = changes.reload(Daemon::NetworkManager) {
        sink.warning(&causes(&error));
    }
    Ok(())
}

fn write(changes: &mut Journal, file: &Path) -> Result<(), PhaseError> {
    if let Some(directory) = file.parent() {
        changes.create_dir(directory, 0o755).map_err(lasting)?;
    }
    changes
        .write_configuration(Daemon::NetworkManager, file, TEXT.as_bytes())
        .map_err(lasting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_with_network_manager_gets_the_file() {
        let host = tempfile::tempdir().unwrap();
        let directory = host.path().join("NetworkManager");
        assert_eq!(file_in(&directory), None);
        std::fs::create_dir(&directory).unwrap();
        let file = file_in(&directory).unwrap();
        let mut changes = Journal::open(&host.path().join("changes")).unwrap();
        for _ in 0..2 {
            write(&mut changes, &file).unwrap();
        }
        let text = std::fs::read_to_string(&file).unwrap();
        for name in ["cni0", "flannel*", "veth*"] {
            assert!(text.contains(&format!("interface-name:{name}")), "{text}");
        }
        // The directory, that NetworkManager is told, the file.
        assert_eq!(changes.changes().count(), 3);
    }
}
