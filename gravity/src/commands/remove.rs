//! `gravity remove`: takes another node out of the cluster.

use anyhow::{Result, bail};
use console::ExitCode;
use event::Sink;
use installer::controller::{self, Removal, RemovalError};
use installer::hooks::NodeHooks;
use spec::{ClusterSpec, NodeSpec};

use super::{Session, require_root};
use crate::cli::Remove;

pub(crate) async fn run(session: &Session, arguments: &Remove) -> Result<ExitCode> {
    require_root()?;
    let client = session.administrator().await?;
    let cluster = controller::description(&client).await?;
    let known = find(&cluster, &arguments.node);
    let node = known.map_or(&arguments.node, |known| &known.hostname);
    if session
        .own_node(&cluster)
        .is_ok_and(|own| own.hostname == *node)
    {
        bail!("{node} is this node; `gravity leave` takes it out of the cluster");
    }
    if known.is_none() && !client.has_node(node).await? {
        let names: Vec<_> = cluster
            .nodes
            .iter()
            .map(|node| node.hostname.as_str())
            .collect();
        bail!(
            "the cluster has no node {node}; it has {}",
            names.join(", ")
        );
    }
    let question = format!("Remove {node} from the cluster and move its pods elsewhere?");
    session.go_on(arguments.confirm, &question)?;
    session.console.step(&format!("Removing {node}"));
    let hooks = NodeHooks::of(&cluster, &session.manifest()?.hooks);
    let removal = Removal {
        client: &client,
        etcd: &session.etcd()?,
        hooks: &hooks,
        force: arguments.force,
    };
    let removed = removal.run(node, session.console.clone()).await;
    removed.map_err(|error| {
        let remedy = match error {
            RemovalError::Forcible(_) => "; --force goes on without its pods and the first hook",
            RemovalError::Refused(_) => "",
        };
        anyhow::Error::from(error).context(format!("remove {node}{remedy}"))
    })?;
    session.console.info(&format!(
        "{node} is removed; `gravity leave --force` on it takes everything of ours off"
    ));
    Ok(ExitCode::Ok)
}

/// A node by its name or one of its addresses.
fn find<'a>(cluster: &'a ClusterSpec, wanted: &str) -> Option<&'a NodeSpec> {
    let mut nodes = cluster.nodes.iter();
    let named = nodes.find(|node| node.hostname == wanted);
    named.or_else(|| {
        let address = wanted.parse().ok()?;
        let mut nodes = cluster.nodes.iter();
        nodes.find(|node| node.advertise_addresses.contains(&address))
    })
}

#[cfg(test)]
mod tests {
    use spec::{Role, sample};

    use super::*;

    #[test]
    fn a_node_is_found_by_its_name_and_by_its_address() {
        let node = |name: &str, address: &str| {
            sample::node(
                name,
                address.parse().unwrap(),
                Role::Worker,
                "10.244.0.0/24",
            )
        };
        let mut cluster = sample::cluster();
        // Whatever its host is called.
        cluster.nodes = vec![node("one", "10.0.0.1"), node("10.0.0.1", "10.0.0.2")];
        for (wanted, found) in [
            ("one", Some("one")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("10.0.0.2", Some("10.0.0.1")),
            ("10.0.0.3", None),
            ("two", None),
        ] {
            let node = find(&cluster, wanted).map(|node| node.hostname.as_str());
            assert_eq!(node, found, "{wanted}");
        }
    }
}
