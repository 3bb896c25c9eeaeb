//! Which authorities, certificates and kubeconfigs a master has.
//!
//! In: cluster and node. Out: a [`Secrets`] payload: names and rights, no keys.
//! Kubernetes, etcd, the front proxy and the registry trust authorities of
//! their own, so that a key of one opens nothing of another.

use std::net::IpAddr;

use spec::phase::{Certificate, Kubeconfig, Secrets};

use crate::services::Context;

/// User of the API server towards kubelets; the RBAC objects give it its right.
pub(crate) const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";
/// User of CoreDNS.
pub(crate) const COREDNS: &str = "system:coredns";
/// User of flannel.
pub(crate) const FLANNEL: &str = "system:flannel";

/// Makes the payload for a master.
pub(crate) fn secrets(context: &Context<'_>) -> Secrets {
    let node = &context.node.hostname;
    let address = context.address();
    let local: IpAddr = std::net::Ipv4Addr::LOCALHOST.into();
    let leader = spec::LEADER_ADDRESS;
    let leader_name = spec::LEADER_NAME.to_owned();
    let domain = &context.cluster.domain;
    let mut api_addresses = vec![address, leader, local];
    api_addresses.extend(crate::network::first_address(context.service_cidr()));
    let api_names = [
        "kubernetes".to_owned(),
        "kubernetes.default".into(),
        "kubernetes.default.svc".into(),
        format!("kubernetes.default.svc.{domain}"),
        leader_name.clone(),
        node.clone(),
        "localhost".into(),
    ];
    let server =
        |name: &str, authority: &str, names: &[String], addresses: &[IpAddr]| Certificate {
            name: name.into(),
            authority: authority.into(),
            common_name: node.clone(),
            organizations: Vec::new(),
            dns_names: names.to_vec(),
            ip_addresses: addresses.to_vec(),
            server: true,
            client: false,
            root_only: false,
        };
    let client = |name: &str, authority: &str, user: &str| Certificate {
        name: name.into(),
        authority: authority.into(),
        common_name: user.into(),
        organizations: Vec::new(),
        dns_names: Vec::new(),
        ip_addresses: Vec::new(),
        server: false,
        client: true,
        root_only: false,
    };
    let certificates = vec![
        Certificate {
            client: true,
            ..server(
                "etcd",
                "etcd-ca",
                std::slice::from_ref(node),
                &[address, local],
            )
        },
        Certificate {
            client: true,
            ..server(
                "etcd-peer",
                "etcd-ca",
                std::slice::from_ref(node),
                &[address],
            )
        },
        client("etcd-client", "etcd-ca", "kube-apiserver"),
        server("apiserver", "kubernetes-ca", &api_names, &api_addresses),
        client("apiserver-kubelet-client", "kubernetes-ca", KUBELET_CLIENT),
        client("front-proxy-client", "front-proxy-ca", "front-proxy-client"),
        Certificate {
            root_only: true,
            ..server(
                "kubelet",
                "kubernetes-ca",
                std::slice::from_ref(node),
                &[address],
            )
        },
        server(
            "registry",
            "registry-ca",
            &[leader_name, node.clone()],
            &[leader, address],
        ),
        Certificate {
            root_only: true,
            ..client("registry-client", "registry-ca", node)
        },
    ];
    let kubeconfig = |name: &str, user: &str, groups: &[&str], root_only| Kubeconfig {
        name: name.into(),
        common_name: user.into(),
        organizations: groups.iter().map(|group| (*group).into()).collect(),
        server: crate::api_url(),
        root_only,
    };
    // These two need the API server of their own version, as kubeadm has it; and
    // the controller manager ends when it loses the API while it starts, which
    // through the balancer it would with every restart of the supervisor.
    let at_home = |made: Kubeconfig| Kubeconfig {
        server: crate::local_api_url(address),
        ..made
    };
    let kubeconfigs = vec![
        kubeconfig("admin", "kubernetes-admin", &["system:masters"], true),
        at_home(kubeconfig(
            "controller-manager",
            "system:kube-controller-manager",
            &[],
            false,
        )),
        at_home(kubeconfig("scheduler", "system:kube-scheduler", &[], false)),
        kubeconfig(
            "kubelet",
            &format!("system:node:{node}"),
            &["system:nodes"],
            true,
        ),
        kubeconfig("kube-proxy", "system:kube-proxy", &[], true),
        kubeconfig("flannel", FLANNEL, &[], true),
        kubeconfig("coredns", COREDNS, &[], false),
    ];
    let authorities = [
        ("kubernetes-ca", "kubernetes"),
        ("etcd-ca", "etcd"),
        ("front-proxy-ca", "front-proxy"),
        ("registry-ca", "registry"),
    ];
    Secrets {
        user: context.cluster.service_user.clone(),
        authorities: authorities
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
    }
}
