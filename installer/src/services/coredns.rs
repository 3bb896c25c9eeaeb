//! Names: of services and pods, and of the world outside where there is one.

use std::collections::BTreeMap;

use ipnet::IpNet;
use planet::config::{Alternative, Probe};
use planet::names::UPSTREAM;
use spec::Role;

use super::{Context, Definition, config, program, secret};

/// Port of the readiness check, on loopback.
const READY_PORT: u16 = 8181;
/// Its configuration where nobody answers for the world outside, and where somebody does.
const ALONE: &str = "Corefile";
const FORWARDING: &str = "Corefile.forwarding";
/// Networks that the Internet has no way from (RFC 1918, 6598, 4193).
const PRIVATE: &str = "10.0.0.0/8 100.64.0.0/10 172.16.0.0/12 192.168.0.0/16 fc00::/7";

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let command = |file: &str| vec![program("coredns"), "-conf".into(), config(file)];
    let ready = Probe::Http {
        url: format!("http://127.0.0.1:{READY_PORT}/ready"),
    };
    let mut service = context.unprivileged("coredns", command(ALONE), ready);
    // It refuses to forward to a file that is missing.
    service.alternative = Some(Alternative {
        when: UPSTREAM.into(),
        command: command(FORWARDING),
    });
    service.requires = vec![super::rbac::NAME.into()];
    service.capabilities = vec!["CAP_NET_BIND_SERVICE".into()];
    let forward = format!("    forward . {UPSTREAM}\n");
    let files = vec![
        context.file(ALONE, corefile(context, "")),
        context.file(FORWARDING, corefile(context, &forward)),
    ];
    Definition {
        files,
        ..service.into()
    }
}

/// `forward` is its line that sends on what the cluster has no answer for.
fn corefile(context: &Context<'_>, forward: &str) -> String {
    let cluster = &context.cluster;
    // It would answer before the access list is asked.
    let cache = |acl: &str| if acl.is_empty() { "    cache 30\n" } else { "" };
    let zones = |port: u16, listen: &str, acl: &str| -> String {
        let zone = |zone: &spec::DnsZone| {
            let servers: Vec<_> = zone.servers.iter().map(ToString::to_string).collect();
            format!(
                "{}:{port} {{\n    bind {listen}\n    errors\n{acl}    forward . {}\n{}}}\n",
                zone.name,
                servers.join(" "),
                cache(acl)
            )
        };
        cluster.dns_zones.iter().map(zone).collect()
    };
    let server = |port: u16, listen: &str, ready: &str, acl: &str| {
        let own = format!(
            ".:{port} {{
    bind {listen}
    errors
{ready}{acl}    hosts {{
        {leader} {name}
        fallthrough
    }}
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }}
{forward}{cache}    loadbalance
}}
",
            leader = spec::LEADER_ADDRESS,
            name = spec::LEADER_NAME,
            domain = cluster.domain,
            kubeconfig = secret("coredns.kubeconfig"),
            cache = cache(acl),
        );
        own + &zones(port, listen, acl)
    };
    let ready = format!("    ready 127.0.0.1:{READY_PORT}\n");
    let leader = spec::LEADER_ADDRESS;
    let mut servers = server(spec::DNS_PORT, &leader.to_string(), &ready, "");
    // The Service has masters alone: endpoints may not be link-local.
    if context.node.role == Role::Master {
        let address = context.address().to_string();
        servers += &server(spec::DNS_SERVICE_PORT, &address, "", &acl(context));
    }
    let mut further: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for listen in &context.node.dns_listen {
        if (listen.ip(), listen.port()) != (leader, spec::DNS_PORT) {
            let addresses = further.entry(listen.port()).or_default();
            addresses.push(listen.ip().to_string());
        }
    }
    for (port, addresses) in further {
        servers += &server(port, &addresses.join(" "), "", "");
    }
    servers
}

/// Who may ask for what, where the `kube-dns` Service ends: all for the cluster's own names;
/// for others, which are asked elsewhere, pods and private networks alone. Packets of pods on
/// other nodes come from these nodes' addresses. Nodes that join later are not known here: one
/// with a public address outside of this node's network gets the cluster's own names only.
fn acl(context: &Context<'_>) -> String {
    let address = context.host_address();
    let network = address.and_then(|one| IpNet::new(one.address, one.prefix).ok());
    let network = network.unwrap_or_else(|| context.address().into()).trunc();
    format!(
        "    acl {domain} {leader} {{
        allow
    }}
    acl {{
        allow net {PRIVATE} {network} {pods}
        block
    }}
",
        domain = context.cluster.domain,
        leader = spec::LEADER_NAME,
        pods = context.cluster.pod_cidrs.join(" "),
    )
}
