//! Tells the node who the cluster's masters are, as they come and go.

use planet::config::Probe;

use super::{Context, Definition, secret};

/// File inside with the addresses of all masters, JSON. It outlives restarts.
pub(crate) const MASTERS: &str = "/run/planet/host/masters.json";
/// File inside that exists once there was more than one master.
pub(crate) const SEVERAL_MASTERS: &str = "/run/planet/host/several-masters";
pub(crate) fn define(context: &Context<'_>) -> Definition {
    let command = [
        "/opt/gravity/bin/gravity",
        "masters",
        "--kubeconfig",
        &secret("kubelet.kubeconfig"),
    ];
    // The files are of the supervisor, which is root.
    let service = context.privileged("masters", command.map(String::from).into(), Probe::Started);
    Definition {
        service,
        files: Vec::new(),
        mounts: Vec::new(),
    }
}
