//! The Kubernetes controllers.

use super::{Context, Definition, secret};

pub(crate) fn define(context: &Context<'_>) -> Definition {
    context.elected(
        "kube-controller-manager",
        "controller-manager.kubeconfig",
        10257,
        &[
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
        ],
    )
}
