//! Gives our own services their rights in Kubernetes.
//!
//! It runs once at each start of the planet, before the services that need the
//! rights: they would otherwise be refused and try again ever more seldom.

use planet::config::Probe;

use super::{Context, Definition, config, program, secret};

/// Name of the service, for those that require it.
pub(crate) const NAME: &str = "rbac";

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let command = [
        &program("kubectl"),
        "--kubeconfig",
        &secret("admin.kubeconfig"),
        "apply",
        "--server-side",
        "--force-conflicts",
        "--filename",
        &config("rbac.json"),
    ]
    .map(ToString::to_string);
    let mut service = context.privileged(NAME, command.into(), Probe::Started);
    service.oneshot = true;
    service.requires = vec!["kube-apiserver".into()];
    let list = serde_json::json!({
        "apiVersion": "v1", "kind": "List", "items": crate::addons::rbac(),
    });
    let files = vec![context.file("rbac.json", format!("{list:#}\n"))];
    Definition {
        files,
        ..service.into()
    }
}
