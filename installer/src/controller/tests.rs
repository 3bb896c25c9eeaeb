use spec::{ImageRef, ServiceUser};

use super::*;

fn node(hostname: &str, address: &str, role: Role, pod_cidr: &str) -> NodeSpec {
    NodeSpec {
        id: Uuid::new_v4(),
        hostname: hostname.into(),
        advertise_addresses: vec![address.parse().unwrap()],
        profile: "web".into(),
        role,
        pod_cidrs: vec![pod_cidr.into()],
        labels: BTreeMap::new(),
        taints: Vec::new(),
        dns_listen: Vec::new(),
        state_dir: "/var/lib/gravity".into(),
    }
}

fn cluster() -> ClusterSpec {
    ClusterSpec {
        version: spec::VERSION,
        id: Uuid::nil(),
        name: "test".into(),
        image: ImageRef {
            name: "test".into(),
            version: "1.0.0".into(),
            digest: "sha256:0".into(),
            resources: "sha256:cc".into(),
        },
        flavor: None,
        service_user: ServiceUser {
            name: "planet".into(),
            uid: 1000,
            gid: 1000,
        },
        pod_cidrs: vec!["10.244.0.0/22".into()],
        service_cidrs: vec!["10.100.0.0/16".into()],
        vxlan_port: 8472,
        domain: "cluster.local".into(),
        dns_zones: Vec::new(),
        leaf_seconds: spec::care::LEAF_SECONDS,
        nodes: vec![node("one", "10.0.0.1", Role::Master, "10.244.0.0/24")],
    }
}

fn candidate(hostname: &str, address: &str) -> Candidate {
    Candidate {
        hostname: hostname.into(),
        advertise_addresses: vec![address.parse().unwrap()],
        profile: "web".into(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        state_dir: "/var/lib/gravity".into(),
        image: "sha256:0".into(),
    }
}

fn known(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn nodes_get_parts_of_the_pod_network_until_it_ends() {
    let mut cluster = cluster();
    for index in 2..=4_u8 {
        let joined = candidate(&format!("n{index}"), &format!("10.0.0.{index}"));
        take_in(&mut cluster, &joined, &known(&[])).unwrap();
    }
    let parts: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| &node.pod_cidrs[0])
        .collect();
    let expected = [
        "10.244.0.0/24",
        "10.244.1.0/24",
        "10.244.2.0/24",
        "10.244.3.0/24",
    ];
    assert_eq!(parts, expected);
    let before = cluster.clone();
    let refused = take_in(&mut cluster, &candidate("n5", "10.0.0.5"), &known(&[])).unwrap_err();
    assert!(refused.to_string().contains("no part left"), "{refused}");
    assert_eq!(cluster.nodes, before.nodes);

    // A part that is free again is given again.
    cluster.nodes.remove(2);
    take_in(&mut cluster, &candidate("n6", "10.0.0.6"), &known(&[])).unwrap();
    assert_eq!(cluster.nodes[3].pod_cidrs, ["10.244.2.0/24"]);
}

#[test]
fn names_and_addresses_are_one_nodes_and_a_lost_try_is_replaced() {
    let mut cluster = cluster();
    take_in(&mut cluster, &candidate("two", "10.0.0.2"), &known(&[])).unwrap();
    // Kubernetes never saw it.
    take_in(&mut cluster, &candidate("two", "10.0.0.2"), &known(&[])).unwrap();
    assert_eq!(cluster.nodes.len(), 2);
    for (hostname, address, word) in [
        ("two", "10.0.0.3", "remove two"),
        ("three", "10.0.0.2", "same address"),
        ("one", "10.0.0.4", "has a node one"),
        ("four", "10.0.0.1", "same address"),
        ("No", "10.0.0.5", "can't be a node's name"),
        ("a..b", "10.0.0.5", "can't be a node's name"),
    ] {
        let candidate = candidate(hostname, address);
        let refused = take_in(&mut cluster, &candidate, &known(&["two"])).unwrap_err();
        assert!(refused.to_string().contains(word), "{hostname}: {refused}");
    }
    let other = Candidate {
        image: "sha256:1".into(),
        ..candidate("five", "10.0.0.5")
    };
    let refused = take_in(&mut cluster, &other, &known(&[])).unwrap_err();
    assert!(refused.to_string().contains("another image"), "{refused}");
    assert_eq!(cluster.nodes.len(), 2);
}

#[test]
fn a_worker_gets_its_own_names_and_none_of_the_masters() {
    let worker = node("two", "10.0.0.2", Role::Worker, "10.244.1.0/24");
    let leaves = leaves(&worker, Duration::from_secs(3600));
    let names: Vec<_> = leaves.keys().map(String::as_str).collect();
    let expected = [
        "coredns.kubeconfig",
        "flannel.kubeconfig",
        "kube-proxy.kubeconfig",
        "kubelet",
        "kubelet.kubeconfig",
        "node",
        "registry",
        "registry-client",
    ];
    assert_eq!(names, expected);
    let (authority, kubelet) = &leaves["kubelet.kubeconfig"];
    assert_eq!(authority, "kubernetes-ca");
    assert_eq!(kubelet.common_name, "system:node:two");
    assert_eq!(kubelet.organizations, ["system:nodes"]);
    assert!(kubelet.client && !kubelet.server);
    let (authority, identity) = &leaves["node"];
    assert_eq!(authority, "rpc-ca");
    assert_eq!(identity.common_name, member_name(worker.id));
    let admin = |leaf: &Leaf| {
        leaf.organizations
            .iter()
            .any(|group| group == "system:masters")
    };
    assert!(leaves.values().all(|(authority, leaf)| {
        !admin(leaf) && authority != "etcd-ca" && authority != "front-proxy-ca"
    }));
}
