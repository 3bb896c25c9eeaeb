//! The Kubernetes controllers.

use planet::config::Probe;

use super::{Context, Definition, control_plane_command, secret};

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let kubeconfig = secret("controller-manager.kubeconfig");
    let command = |several: bool| {
        control_plane_command(
            context,
            "kube-controller-manager",
            &[
                ("bind-address", "127.0.0.1".into()),
                ("kubeconfig", kubeconfig.clone()),
                ("authentication-kubeconfig", kubeconfig.clone()),
                ("authorization-kubeconfig", kubeconfig.clone()),
                // One master has nobody to wait for.
                ("leader-elect", several.to_string()),
                // The plan gives each node its part of the pod network.
                ("allocate-node-cidrs", "false".into()),
                ("cluster-signing-cert-file", secret("kubernetes-ca.crt")),
                ("cluster-signing-key-file", secret("kubernetes-ca.key")),
                ("root-ca-file", secret("kubernetes-ca.crt")),
                (
                    "service-account-private-key-file",
                    secret("service-account.key"),
                ),
                ("use-service-account-credentials", "true".into()),
                ("profiling", "false".into()),
                ("v", "1".into()),
            ],
        )
    };
    let ready = Probe::Http {
        url: "https://127.0.0.1:10257/healthz".into(),
    };
    let mut service = context.by_masters(command, |command| {
        context.unprivileged("kube-controller-manager", command, ready)
    });
    service.requires = vec!["kube-apiserver".into()];
    Definition {
        service,
        files: Vec::new(),
        mounts: Vec::new(),
    }
}
