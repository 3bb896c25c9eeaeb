//! `gravity remove`: takes another node out of the cluster.

use anyhow::{Result, bail};
use console::ExitCode;
use event::Sink;
use installer::controller::{self, Removal, RemovalError};
use installer::hooks::NodeHooks;

use super::{Session, require_root};
use crate::cli::Remove;

pub(crate) async fn run(session: &Session, arguments: &Remove) -> Result<ExitCode> {
    require_root()?;
    let client = session.administrator().await?;
    let node = &arguments.node;
    let cluster = controller::description(&client).await?;
    if session
        .own_node(&cluster)
        .is_ok_and(|own| own.hostname == *node)
    {
        bail!("{node} is this node; `gravity leave` takes it out of the cluster");
    }
    let known = cluster.nodes.iter().any(|known| known.hostname == *node);
    if !known && !client.has_node(node).await? {
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
