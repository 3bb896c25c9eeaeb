//! What tests of all crates begin with.
//!
//! In: what tells nodes apart. Out: a small cluster and its nodes, of which a test says
//! only what it is about. Always holds: nothing else calls it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use uuid::Uuid;

use crate::{ClusterSpec, ImageRef, NodeSpec, PodNetwork, Role, ServiceSettings, ServiceUser};

/// A cluster without nodes.
pub fn cluster() -> ClusterSpec {
    ClusterSpec {
        version: crate::VERSION,
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
        pod_cidrs: vec!["10.244.0.0/16".into()],
        service_cidrs: vec!["10.100.0.0/16".into()],
        pod_network: PodNetwork::Vxlan,
        vxlan_port: 8472,
        domain: "cluster.local".into(),
        dns_zones: Vec::new(),
        license: None,
        leaf_seconds: crate::care::LEAF_SECONDS,
        settings: ServiceSettings::default(),
        nodes: Vec::new(),
    }
}

/// A node with no identity yet.
pub fn node(hostname: &str, address: IpAddr, role: Role, pod_cidr: &str) -> NodeSpec {
    NodeSpec {
        id: Uuid::nil(),
        hostname: hostname.into(),
        advertise_addresses: vec![address],
        profile: "web".into(),
        role,
        pod_cidrs: vec![pod_cidr.into()],
        labels: BTreeMap::new(),
        taints: Vec::new(),
        dns_listen: Vec::new(),
        state_dir: crate::DEFAULT_STATE_DIR.into(),
        leaving: false,
        machine: String::new(),
        taken_in: None,
    }
}
