//! Where everything is on a node.
//!
//! In: the state directory. Out: the paths below it, the same in every program.

use std::path::{Path, PathBuf};

use crate::RPC_AUTHORITY;

/// The state directory and what lies in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout(PathBuf);

impl Layout {
    /// Layout below `state_dir`.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self(state_dir.into())
    }

    /// The state directory itself.
    pub fn state_dir(&self) -> &Path {
        &self.0
    }

    /// Programs, root's: mounted into the planet at `/opt/gravity/bin`.
    pub fn programs(&self) -> PathBuf {
        self.0.join("bin")
    }

    /// The `gravity` program.
    pub fn gravity(&self) -> PathBuf {
        self.programs().join("gravity")
    }

    /// Blobs by digest, as they are: `sha256/<hex>`.
    pub fn blobs(&self) -> PathBuf {
        self.0.join("store/blobs")
    }

    /// One blob. `digest` is `sha256:<hex>`.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.blobs().join(digest.replacen(':', "/", 1))
    }

    /// Holds [`Layout::cluster_image`].
    pub fn image(&self) -> PathBuf {
        self.0.join("image")
    }

    /// The cluster image as other nodes get it: the file, with holes where large
    /// blobs are among [`Layout::blobs`].
    pub fn cluster_image(&self) -> PathBuf {
        self.image().join("cluster")
    }

    /// Unpacked root filesystem of the planet. `digest` stands for all of it.
    pub fn rootfs(&self, digest: &str) -> PathBuf {
        self.0.join("planet/rootfs").join(hex(digest))
    }

    /// Writable layer of the planet.
    pub fn overlay(&self) -> PathBuf {
        self.0.join("planet/overlay")
    }

    /// What the planet runs.
    pub fn planet_config(&self) -> PathBuf {
        self.0.join("planet/config.json")
    }

    /// Sockets that planet and host share.
    pub fn planet_run(&self) -> PathBuf {
        self.0.join("planet/run")
    }

    /// Socket of the planet's supervisor.
    pub fn planet_socket(&self) -> PathBuf {
        self.planet_run().join("planet.sock")
    }

    /// Addresses of the cluster's masters, as the planet has come to know.
    pub fn masters(&self) -> PathBuf {
        self.planet_run().join("masters.json")
    }

    /// Logs of the planet's services.
    pub fn logs(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Data of one service, such as `etcd`.
    pub fn service(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Snapshots of etcd, root's alone (0700).
    pub fn etcd_snapshots(&self) -> PathBuf {
        self.0.join("etcd-snapshots")
    }

    /// Cluster resources. `digest` is of their tar.
    pub fn resources(&self, digest: &str) -> PathBuf {
        self.0.join("resources").join(hex(digest))
    }

    /// Secrets, root's alone (0700).
    pub fn secrets(&self) -> PathBuf {
        self.0.join("secrets")
    }

    /// Secrets that the planet sees at [`PLANET_SECRETS`].
    pub fn planet_secrets(&self) -> PathBuf {
        self.secrets().join("planet")
    }

    /// Kubeconfig of the administrator.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.planet_secrets().join("admin.kubeconfig")
    }

    /// Kubeconfig of the node's own kubelet.
    pub fn kubelet_kubeconfig(&self) -> PathBuf {
        self.planet_secrets().join("kubelet.kubeconfig")
    }

    /// Certificate by which the cluster knows this node; its key lies beside it.
    pub fn node_certificate(&self) -> PathBuf {
        self.secrets().join("node.crt")
    }

    /// Key of [`Layout::node_certificate`].
    pub fn node_key(&self) -> PathBuf {
        self.secrets().join("node.key")
    }

    /// Certificate of the authority that controllers and nodes are known by.
    pub fn rpc_authority(&self) -> PathBuf {
        self.planet_secrets().join(format!("{RPC_AUTHORITY}.crt"))
    }

    /// Operations, a directory each.
    pub fn operations(&self) -> PathBuf {
        self.0.join("operations")
    }

    /// What is known of the cluster.
    pub fn cluster(&self) -> PathBuf {
        self.0.join("cluster.json")
    }

    /// The resolved manifest of the installed cluster image.
    pub fn manifest(&self) -> PathBuf {
        self.0.join("manifest.yaml")
    }

    /// Names and versions of the components of the base image.
    pub fn components(&self) -> PathBuf {
        self.0.join("components.json")
    }

    /// Exists from the moment on when the application is uninstalled: what is
    /// left of a `leave` is the host's part.
    pub fn leaving(&self) -> PathBuf {
        self.0.join("leaving")
    }

    /// The journal of changes to the host.
    pub fn host_changes(&self) -> PathBuf {
        self.0.join("host-changes")
    }

    /// Socket of the agent.
    pub fn agent_socket(&self) -> PathBuf {
        self.0.join("agent.sock")
    }

    /// Held by the agent as long as it lives.
    pub fn agent_lock(&self) -> PathBuf {
        self.0.join("agent.lock")
    }

    /// Socket of the process that runs an operation: what it tells.
    pub fn operation_socket(&self) -> PathBuf {
        self.0.join("operation.sock")
    }

    /// Held by the process that runs an operation.
    pub fn operation_lock(&self) -> PathBuf {
        self.0.join("operation.lock")
    }
}

/// Where the planet sees [`Layout::planet_secrets`].
pub const PLANET_SECRETS: &str = "/var/state";

/// Where the planet sees [`Layout::image`] and [`Layout::blobs`], as below a
/// state directory.
pub const PLANET_STATE: &str = "/var/lib/planet/state";

/// Where the planet sees all resources, and hooks their own.
pub const PLANET_RESOURCES: &str = "/var/lib/gravity/resources";

fn hex(digest: &str) -> &str {
    digest.split_once(':').map_or(digest, |(_, hex)| hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_become_paths_without_colons() {
        let layout = Layout::new("/x");
        assert_eq!(
            layout.blob("sha256:ab"),
            Path::new("/x/store/blobs/sha256/ab")
        );
        assert_eq!(layout.rootfs("sha256:ab"), Path::new("/x/planet/rootfs/ab"));
    }
}
