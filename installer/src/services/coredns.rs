//! Names: of services and pods, and of the world outside where there is one.

use std::collections::BTreeMap;

use planet::config::Probe;

use super::{Context, Definition, config, program, secret};

/// Port on the advertise address for the `kube-dns` Service: endpoints of a
/// Service may not be link-local.
pub(crate) const SERVICE_PORT: u16 = 1053;
/// Port of the readiness check, on loopback.
const READY_PORT: u16 = 8181;

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let command = vec![program("coredns"), "-conf".into(), config("Corefile")];
    let ready = Probe::Http {
        url: format!("http://127.0.0.1:{READY_PORT}/ready"),
    };
    let mut service = context.unprivileged("coredns", command, ready);
    service.requires = vec![super::rbac::NAME.into()];
    service.capabilities = vec!["CAP_NET_BIND_SERVICE".into()];
    let files = vec![context.file("Corefile", corefile(context))];
    Definition {
        service,
        files,
        mounts: Vec::new(),
    }
}

fn corefile(context: &Context<'_>) -> String {
    let upstream = upstream(&context.host.resolv_conf);
    let forward = match upstream.is_empty() {
        true => String::new(),
        false => format!("    forward . {}\n", upstream.join(" ")),
    };
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

/// Name servers of a `resolv.conf` that can be forwarded to: not ourselves, and
/// at most 3, as the C library reads.
fn upstream(resolv_conf: &str) -> Vec<String> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next())
        .filter_map(|server| server.parse::<std::net::IpAddr>().ok())
        .filter(|server| *server != spec::LEADER_ADDRESS)
        .take(3)
        .map(|server| server.to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::upstream;

    #[test]
    fn only_addresses_of_others_are_forwarded_to() {
        let text = "# nameserver 9.9.9.9\nsearch lan\nnameserver 10.0.0.1\n nameserver fe80::1%eth0\nnameserver 169.254.20.10\nnameserver ::1\n";
        assert_eq!(upstream(text), ["10.0.0.1", "::1"]);
        assert!(upstream("").is_empty());
    }
}
