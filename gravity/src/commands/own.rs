//! This node, as it became one of its cluster, and what its host has become since.
//!
//! In: what is stored on the node, the host's name and addresses. Out: the node's
//! own place in the cluster; what no longer fits it, with what to do. A name is
//! what people see; a node is known by its identity.

use std::net::IpAddr;

use anyhow::{Context, Result};
use spec::layout::Layout;
use spec::{ClusterSpec, NodeSpec};

use super::planet;

/// This node, as it was when it became one of its cluster.
pub(crate) fn node(layout: &Layout) -> Result<NodeSpec> {
    let path = layout.cluster();
    let json = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let cluster: ClusterSpec =
        serde_json::from_slice(&json).with_context(|| format!("read {}", path.display()))?;
    // The planet keeps the name that the host had then.
    let name = planet::config(layout)?.hostname;
    let mut nodes = cluster.nodes.into_iter();
    nodes
        .find(|node| node.hostname == name)
        .with_context(|| format!("{} has no node {name}", path.display()))
}

/// Name of the host, as nodes are called.
pub(crate) fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().context("get the host's name")?;
    Ok(name.to_string_lossy().to_lowercase())
}

/// Addresses of the host's interfaces that are up.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let addresses = host::facts::addresses().into_iter();
    addresses.map(|address| address.address).collect()
}

/// What to do where the host is called `name` and the node otherwise.
pub(crate) fn renamed(node: &NodeSpec, name: &str) -> Option<String> {
    (node.hostname != name).then(|| {
        format!(
            "this host was called {was} when it became a node, and is called {name} now: the \
             cluster knows it as {was} for ever; rename it back",
            was = node.hostname
        )
    })
}

/// What to do where the host no longer has the node's address.
pub(crate) fn lost_address(node: &NodeSpec, here: &[IpAddr]) -> Option<String> {
    let address = node.address()?;
    (!here.contains(&address)).then(|| {
        format!(
            "this node is known to its cluster as {address}, and no interface that is up has that \
             address: give it back. To get another one a node has to leave, with `gravity leave`, \
             and to join again"
        )
    })
}

#[cfg(test)]
mod tests {
    use spec::{Role, sample};

    use super::*;

    /// A cluster with nodes of these names.
    fn cluster(names: &[&str]) -> ClusterSpec {
        let node = |(number, name): (u8, &&str)| NodeSpec {
            id: uuid::Uuid::from_u128(number.into()),
            ..sample::node(
                name,
                [10, 0, 0, number].into(),
                Role::Worker,
                "10.244.0.0/24",
            )
        };
        ClusterSpec {
            nodes: (0..).zip(names).map(node).collect(),
            ..sample::cluster()
        }
    }

    #[test]
    fn a_node_is_itself_whatever_its_host_is_called() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        let write = |path: &std::path::Path, json: serde_json::Value| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            host::atomic::write(path, json.to_string().as_bytes(), 0o644).unwrap();
        };
        let both = serde_json::to_value(cluster(&["one", "two"])).unwrap();
        write(&layout.cluster(), both);
        assert!(node(&layout).is_err(), "it has no planet");
        let planet = serde_json::json!({
            "version": 1, "hostname": "two", "rootfs": "/r", "overlay": "/o", "mounts": [],
            "files": [], "link_local_addresses": [], "balancers": [], "sysctls": {},
            "services": [],
        });
        write(&layout.planet_config(), planet);
        assert_eq!(node(&layout).unwrap().id, uuid::Uuid::from_u128(1));
    }

    #[test]
    fn a_host_that_has_changed_is_told_of() {
        let cluster = cluster(&["one"]);
        let node = &cluster.nodes[0];
        assert_eq!(renamed(node, "one"), None);
        let told = renamed(node, "other").unwrap();
        assert!(told.contains("was called one") && told.contains("is called other now"));
        let addresses = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        assert_eq!(
            lost_address(node, &addresses(&["127.0.0.1", "10.0.0.0"])),
            None
        );
        let told = lost_address(node, &addresses(&["127.0.0.1", "10.0.0.1"])).unwrap();
        assert!(
            told.contains("10.0.0.0") && told.contains("give it back"),
            "{told}"
        );
    }
}
