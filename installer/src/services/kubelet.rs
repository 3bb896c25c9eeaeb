//! The Kubernetes node agent.

use planet::config::{Mount, Probe};

use super::{Context, Definition, choose, command, config, secret};

const DATA: &str = "/var/lib/kubelet";

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let mut command = command(
        "kubelet",
        &[
            ("config", config("kubelet.yaml")),
            ("kubeconfig", secret("kubelet.kubeconfig")),
            ("hostname-override", context.node.hostname.clone()),
            ("node-ip", context.address().to_string()),
            ("v", "1".into()),
        ],
    );
    choose(&mut command, &context.options.kubelet);
    let ready = Probe::Http {
        url: "http://127.0.0.1:10248/healthz".into(),
    };
    let mut service = context.privileged("kubelet", command, ready);
    service.requires = vec!["containerd".into(), "kube-apiserver".into()];
    Definition {
        service,
        files: vec![context.file("kubelet.yaml", settings(context))],
        mounts: vec![Mount {
            recursive: true,
            ..context.data("kubelet", DATA)
        }],
    }
}

fn settings(context: &Context<'_>) -> String {
    let oom_score = if context.facts.can_lower_oom_score {
        -999
    } else {
        0
    };
    let mut settings = serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": secret("kubernetes-ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": secret("kubelet.crt"),
        "tlsPrivateKeyFile": secret("kubelet.key"),
        "address": context.address().to_string(),
        "readOnlyPort": 0,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        // The planet has a cgroup tree of its own, which no systemd manages.
        "cgroupDriver": "cgroupfs",
        "enforceNodeAllocatable": [],
        // Hosts with cgroup v1 are supported as long as Kubernetes runs there.
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": [spec::LEADER_ADDRESS.to_string()],
        "clusterDomain": context.cluster.domain,
        "resolvConf": planet::names::RESOLV_CONF,
        "hairpinMode": "hairpin-veth",
        // kube-proxy has no need of kubelet's iptables chains.
        "makeIPTablesUtilChains": false,
        "serializeImagePulls": false,
        // Off: it removes every unused image where other data fill that share of the disk,
        // every five minutes. Eviction removes them when room is short.
        "imageGCHighThresholdPercent": 100,
        // Absolute, not percent: a large disk that is mostly full has room. What is not
        // here is not looked at: one of these takes the place of all defaults.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1Gi",
            "imagefs.available": "1Gi",
            "nodefs.inodesFree": "1%",
            "imagefs.inodesFree": "1%",
            // Of what the kernel has for all that runs on the machine, which is counted
            // with it: the smaller of `pid_max` and `threads-max`.
            "pid.available": "5%",
        },
        // Of 5 minutes, after room was made on a disk, the pods of a hook's Job, which
        // go to such a node all the same, would not leave one of their tries.
        "evictionPressureTransitionPeriod": "1m",
        "oomScoreAdj": oom_score,
        "containerLogMaxSize": "20Mi",
        "containerLogMaxFiles": 3,
    });
    let chosen = &context.cluster.settings;
    for (field, value) in &chosen.kubelet {
        settings[field] = value.clone();
    }
    // Those of its own fields are for kubelets alone.
    for (gate, is_on) in &chosen.feature_gates {
        if settings["featureGates"][gate].is_null() {
            settings["featureGates"][gate] = (*is_on).into();
        }
    }
    format!("{settings:#}\n")
}
