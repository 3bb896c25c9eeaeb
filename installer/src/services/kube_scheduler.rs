//! The Kubernetes scheduler.

use planet::config::Probe;

use super::{Context, Definition, control_plane_command, secret};

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let kubeconfig = secret("scheduler.kubeconfig");
    let command = |several: bool| {
        control_plane_command(
            context,
            "kube-scheduler",
            &[
                ("bind-address", "127.0.0.1".into()),
                ("kubeconfig", kubeconfig.clone()),
                ("authentication-kubeconfig", kubeconfig.clone()),
                ("authorization-kubeconfig", kubeconfig.clone()),
                // One master has nobody to wait for.
                ("leader-elect", several.to_string()),
                ("profiling", "false".into()),
                ("v", "1".into()),
            ],
        )
    };
    let ready = Probe::Http {
        url: "https://127.0.0.1:10259/healthz".into(),
    };
    let mut service = context.by_masters(command, |command| {
        context.unprivileged("kube-scheduler", command, ready)
    });
    service.requires = vec!["kube-apiserver".into()];
    Definition {
        service,
        files: Vec::new(),
        mounts: Vec::new(),
    }
}
