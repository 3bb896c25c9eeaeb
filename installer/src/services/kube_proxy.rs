//! The Kubernetes service proxy.

use planet::config::Probe;

use super::{Context, Definition, command, config, secret};

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let settings = serde_json::json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": secret("kube-proxy.kubeconfig") },
        // One table of its own, which leaves no trace once it is deleted.
        "mode": "nftables",
        "clusterCIDR": context.pod_cidr(),
        "hostnameOverride": context.node.hostname,
        "bindAddress": context.address().to_string(),
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        // The connection table is the host's business: 0 leaves it alone.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "oomScoreAdj": 0,
        "featureGates": context.cluster.settings.feature_gates,
    });
    let command = command(
        "kube-proxy",
        &[("config", config("kube-proxy.yaml")), ("v", "1".into())],
    );
    let ready = Probe::Http {
        url: "http://127.0.0.1:10256/livez".into(),
    };
    let mut service = context.privileged("kube-proxy", command, ready);
    service.requires = vec!["kube-apiserver".into()];
    // It makes them whole only once an hour, or at its start.
    service.tables = vec!["ip kube-proxy".into(), "ip6 kube-proxy".into()];
    let files = vec![context.file("kube-proxy.yaml", format!("{settings:#}\n"))];
    Definition {
        files,
        ..service.into()
    }
}
