//! Runs the status hook every minute, on the node that holds the Lease.
//!
//! There is one only where the manifest has the hook.

use manifest::HookName;
use planet::config::Probe;

use super::{Context, Definition, config, secret};

const NAME: &str = "status-hook";

pub(crate) fn define(context: &Context<'_>) -> Option<Definition> {
    let job = context.hooks.get(&HookName::Status)?;
    let hook = crate::hooks::hook(context.cluster, HookName::Status, job, NAME);
    let hook = serde_json::json!(hook);
    let arguments = [
        "hook",
        "watch",
        "--kubeconfig",
        &secret("admin.kubeconfig"),
        "--node",
        &context.node.hostname,
        &config("status-hook.json"),
    ];
    let mut service = context.own(NAME, &arguments, Probe::Started);
    service.requires = vec!["kube-apiserver".into()];
    Some(Definition {
        files: vec![context.file("status-hook.json", format!("{hook:#}\n"))],
        ..service.into()
    })
}
