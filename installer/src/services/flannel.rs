//! The overlay network between nodes.

use planet::config::Probe;

use super::{Context, Definition, command, config, secret};

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let settings = serde_json::json!({
        "Network": context.pod_cidr(),
        "EnableNFTables": true,
        "Backend": { "Type": "vxlan", "Port": context.cluster.vxlan_port },
    });
    let command = command(
        "flanneld",
        &[
            ("kube-subnet-mgr", "true".into()),
            ("kubeconfig-file", secret("flannel.kubeconfig")),
            ("net-config-path", config("flannel.json")),
            ("iface", context.address().to_string()),
            ("ip-masq", "true".into()),
        ],
    );
    let ready = Probe::File {
        path: "/run/flannel/subnet.env".into(),
    };
    let mut service = context.privileged("flannel", command, ready);
    service.requires = vec![super::rbac::NAME.into()];
    service
        .env
        .insert("NODE_NAME".into(), context.node.hostname.clone());
    let files = vec![context.file("flannel.json", format!("{settings:#}\n"))];
    Definition {
        service,
        files,
        mounts: Vec::new(),
    }
}
