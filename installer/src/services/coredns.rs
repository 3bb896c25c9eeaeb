//! Names: of services and pods, and of the world outside where there is one.

use std::collections::BTreeMap;

use planet::config::{Alternative, Probe};
use planet::names::UPSTREAM;

use super::{Context, Definition, config, program, secret};

/// Port on the advertise address for the `kube-dns` Service: endpoints of a
/// Service may not be link-local.
pub(crate) const SERVICE_PORT: u16 = 1053;
/// Port of the readiness check, on loopback.
const READY_PORT: u16 = 8181;
/// Its configuration where nobody answers for the world outside, and where somebody does.
const ALONE: &str = "Corefile";
const FORWARDING: &str = "Corefile.forwarding";

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
    let zones = |port: u16, listen: &str| -> String {
        let zone = |zone: &spec::DnsZone| {
            let servers: Vec<_> = zone.servers.iter().map(ToString::to_string).collect();
            format!(
                "{}:{port} {{\n    bind {listen}\n    errors\n    forward . {}\n    cache 30\n}}\n",
                zone.name,
                servers.join(" ")
            )
        };
        cluster.dns_zones.iter().map(zone).collect()
    };
    let server = |port: u16, listen: &str, ready: &str| {
        let own = format!(
            ".:{port} {{
    bind {listen}
    errors
{ready}    hosts {{
        {leader} {name}
        fallthrough
    }}
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }}
{forward}    cache 30
    loadbalance
}}
",
            leader = spec::LEADER_ADDRESS,
            name = spec::LEADER_NAME,
            domain = cluster.domain,
            kubeconfig = secret("coredns.kubeconfig"),
        );
        own + &zones(port, listen)
    };
    let ready = format!("    ready 127.0.0.1:{READY_PORT}\n");
    let leader = spec::LEADER_ADDRESS;
    let mut servers = server(spec::DNS_PORT, &leader.to_string(), &ready)
        + &server(SERVICE_PORT, &context.address().to_string(), "");
    let mut further: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for listen in &context.node.dns_listen {
        if (listen.ip(), listen.port()) != (leader, spec::DNS_PORT) {
            let addresses = further.entry(listen.port()).or_default();
            addresses.push(listen.ip().to_string());
        }
    }
    for (port, addresses) in further {
        servers += &server(port, &addresses.join(" "), "");
    }
    servers
}
