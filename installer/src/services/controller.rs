//! The controller that nodes join and leave by.

use std::net::SocketAddr;

use planet::config::Probe;
use spec::layout::PLANET_SECRETS;

use super::{Context, Definition, config, images};
use crate::hooks::NodeHooks;

/// The hooks that it runs.
const HOOKS: &str = "node-hooks.json";

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let listen = SocketAddr::new(context.address(), spec::CONTROLLER_PORT);
    let listen_text = listen.to_string();
    let arguments = [
        "controller",
        "--listen",
        &listen_text,
        "--secrets",
        PLANET_SECRETS,
        "--hooks",
        &config(HOOKS),
    ];
    let hooks = NodeHooks::of(context.cluster, context.hooks);
    let hooks = serde_json::json!(hooks);
    // It signs with the keys of the authorities, which are root's.
    let mut service = context.own("controller", &arguments, Probe::Tcp { address: listen });
    service.requires = vec!["kube-apiserver".into()];
    Definition {
        service,
        files: vec![context.file(HOOKS, format!("{hooks:#}\n"))],
        mounts: images::mounts(context).into(),
    }
}
