//! Which authorities, certificates and kubeconfigs a node has.
//!
//! In: cluster and node. Out: a [`Secrets`] payload: names and rights, no keys.
//! Kubernetes, etcd, the front proxy and the registry trust authorities of
//! their own, so that a key of one opens nothing of another.

use std::net::IpAddr;

use spec::phase::{Certificate, Kubeconfig, Secrets};
use spec::{ClusterSpec, KUBERNETES_AUTHORITY, NodeSpec, RPC_AUTHORITY, Role};

use crate::services::Context;

/// User of the API server towards kubelets; the RBAC objects give it its right.
pub(crate) const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";
/// User of CoreDNS.
pub(crate) const COREDNS: &str = "system:coredns";
/// Certificate of the controller.
pub(crate) const CONTROLLER_CERTIFICATE: &str = "controller";
/// Certificate of the one that gives the cluster image away on workers.
pub(crate) const IMAGES_CERTIFICATE: &str = "images";

/// Authorities by name, with what their common names end in.
const AUTHORITIES: &[(&str, &str)] = &[
    (KUBERNETES_AUTHORITY, "kubernetes"),
    ("etcd-ca", "etcd"),
    ("front-proxy-ca", "front-proxy"),
    ("registry-ca", "registry"),
    (RPC_AUTHORITY, "rpc"),
];

/// Authorities whose certificates, not keys, a worker has.
const WORKER_AUTHORITIES: &[&str] = &[KUBERNETES_AUTHORITY, "registry-ca", RPC_AUTHORITY];

/// What a node asks the controller for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requested {
    pub(crate) certificates: Vec<Certificate>,
    pub(crate) kubeconfigs: Vec<Kubeconfig>,
}

/// Certificates and kubeconfigs of a worker.
fn of_worker(node: &NodeSpec) -> Requested {
    let mut requested = of_every(node);
    let name = &node.hostname;
    requested.certificates.push(server(
        IMAGES_CERTIFICATE,
        RPC_AUTHORITY,
        name,
        &[name],
        &[address(node)],
    ));
    requested
}

/// Certificates and kubeconfigs that every node has.
fn of_every(node: &NodeSpec) -> Requested {
    let address = address(node);
    let name = &node.hostname;
    Requested {
        certificates: vec![
            Certificate {
                root_only: true,
                ..server("kubelet", KUBERNETES_AUTHORITY, name, &[name], &[address])
            },
            server(
                "registry",
                "registry-ca",
                name,
                &[spec::LEADER_NAME, name],
                &[spec::LEADER_ADDRESS, address],
            ),
            Certificate {
                root_only: true,
                ..client("registry-client", "registry-ca", name)
            },
        ],
        kubeconfigs: vec![
            kubeconfig(
                "kubelet",
                &format!("system:node:{name}"),
                &["system:nodes"],
                true,
            ),
            kubeconfig("kube-proxy", "system:kube-proxy", &[], true),
            kubeconfig("coredns", COREDNS, &[], false),
        ],
    }
}

/// Files with the keys that all masters share: those of the authorities, and what
/// Kubernetes signs tokens and encrypts Secrets with.
pub(crate) fn cluster_keys() -> Vec<String> {
    let authorities = AUTHORITIES.iter().map(|(name, _)| format!("{name}.key"));
    let others = [
        "service-account.key",
        "service-account.pub",
        "encryption.yaml",
    ];
    authorities.chain(others.map(String::from)).collect()
}

/// Authorities whose certificates a node has.
pub(crate) fn authorities(role: Role) -> Vec<&'static str> {
    match role {
        Role::Master => AUTHORITIES.iter().map(|(name, _)| *name).collect(),
        Role::Worker => WORKER_AUTHORITIES.to_vec(),
    }
}

/// What a node has by its place in the cluster.
pub(crate) fn requested(cluster: &ClusterSpec, node: &NodeSpec) -> Requested {
    match node.role {
        Role::Master => of_master(cluster, node),
        Role::Worker => of_worker(node),
    }
}

/// Makes the payload for the first master, which makes the authorities.
pub(crate) fn secrets(context: &Context<'_>) -> Secrets {
    let Requested {
        certificates,
        kubeconfigs,
    } = of_master(context.cluster, context.node);
    Secrets {
        user: context.cluster.service_user.clone(),
        authorities: AUTHORITIES
            .iter()
            .map(|(name, subject)| {
                (
                    (*name).to_owned(),
                    format!("{} {subject}", context.cluster.name),
                )
            })
            .collect(),
        certificates,
        kubeconfigs,
        leaf_seconds: context.cluster.leaf_seconds,
    }
}

/// Certificates and kubeconfigs of a master.
fn of_master(cluster: &ClusterSpec, node: &NodeSpec) -> Requested {
    let of_every_node = of_every(node);
    let address = address(node);
    let node = &node.hostname;
    let local: IpAddr = std::net::Ipv4Addr::LOCALHOST.into();
    let leader = spec::LEADER_ADDRESS;
    let service_domain = format!("kubernetes.default.svc.{}", cluster.domain);
    let mut api_addresses = vec![address, leader, local];
    // The `kubernetes` Service has the first address.
    let services = cluster.service_cidrs.first();
    let services = services.and_then(|cidr| cidr.parse::<ipnet::IpNet>().ok());
    api_addresses.extend(services.and_then(|services| services.hosts().next()));
    let api_names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        &service_domain,
        spec::LEADER_NAME,
        node,
        "localhost",
    ];
    let Requested {
        mut certificates,
        mut kubeconfigs,
    } = of_every_node;
    certificates.extend([
        Certificate {
            client: true,
            ..server("etcd", "etcd-ca", node, &[node], &[address, local])
        },
        Certificate {
            client: true,
            ..server("etcd-peer", "etcd-ca", node, &[node], &[address])
        },
        client("etcd-client", "etcd-ca", "kube-apiserver"),
        server(
            "apiserver",
            KUBERNETES_AUTHORITY,
            node,
            &api_names,
            &api_addresses,
        ),
        client(
            "apiserver-kubelet-client",
            KUBERNETES_AUTHORITY,
            KUBELET_CLIENT,
        ),
        client("front-proxy-client", "front-proxy-ca", "front-proxy-client"),
        Certificate {
            root_only: true,
            ..server(
                CONTROLLER_CERTIFICATE,
                RPC_AUTHORITY,
                node,
                &[node],
                &[address, leader, local],
            )
        },
    ]);
    // These two need the API server of their own version, as kubeadm has it; and
    // the controller manager ends when it loses the API while it starts, which
    // through the balancer it would with every restart of the supervisor.
    let at_home = |made: Kubeconfig| Kubeconfig {
        server: crate::local_api_url(address),
        ..made
    };
    kubeconfigs.extend([
        kubeconfig("admin", "kubernetes-admin", &["system:masters"], true),
        at_home(kubeconfig(
            "controller-manager",
            "system:kube-controller-manager",
            &[],
            false,
        )),
        at_home(kubeconfig("scheduler", "system:kube-scheduler", &[], false)),
    ]);
    Requested {
        certificates,
        kubeconfigs,
    }
}

fn address(node: &NodeSpec) -> IpAddr {
    node.address().unwrap_or(spec::LEADER_ADDRESS)
}

fn server(
    name: &str,
    authority: &str,
    node: &str,
    dns_names: &[&str],
    addresses: &[IpAddr],
) -> Certificate {
    Certificate {
        name: name.into(),
        authority: authority.into(),
        common_name: node.into(),
        organizations: Vec::new(),
        dns_names: dns_names.iter().map(|name| (*name).into()).collect(),
        ip_addresses: addresses.to_vec(),
        server: true,
        client: false,
        root_only: false,
    }
}

fn client(name: &str, authority: &str, user: &str) -> Certificate {
    Certificate {
        name: name.into(),
        authority: authority.into(),
        common_name: user.into(),
        organizations: Vec::new(),
        dns_names: Vec::new(),
        ip_addresses: Vec::new(),
        server: false,
        client: true,
        root_only: false,
    }
}

fn kubeconfig(name: &str, user: &str, groups: &[&str], root_only: bool) -> Kubeconfig {
    Kubeconfig {
        name: name.into(),
        common_name: user.into(),
        organizations: groups.iter().map(|group| (*group).into()).collect(),
        server: crate::api_url(),
        root_only,
    }
}
