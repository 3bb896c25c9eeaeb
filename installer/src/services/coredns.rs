//! Names: of services and pods, and of the world outside where there is one.

use std::fmt::Write;

use planet::config::Probe;

use super::{Context, Definition, config, program, secret};

/// Port on the advertise address for the `kube-dns` Service: endpoints of a
/// Service may not be link-local.
pub(crate) const SERVICE_PORT: u16 = 1053;
/// Port of the readiness check, on loopback.
const READY_PORT: u16 = 8181;

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let command = vec![program("coredns"), "-conf".into(), config("Corefile")];
    // Readiness of the kubernetes plugin needs its rights, which come after the
    // planet has started: the process answers names of the node before.
    let mut service = context.unprivileged("coredns", command, Probe::Started);
    service.requires = vec!["kube-apiserver".into()];
    service.capabilities = vec!["CAP_NET_BIND_SERVICE".into()];
    let files = vec![context.file("Corefile", corefile(context))];
    Definition { service, files, mounts: Vec::new() }
}

fn corefile(context: &Context<'_>) -> String {
    let leader = spec::LEADER_ADDRESS;
    let address = context.address();
    let mut text = String::new();
    for (listen, port) in [(leader, 53), (address, SERVICE_PORT)] {
        let upstream = upstream(&context.host.resolv_conf);
        let forward = match upstream.is_empty() {
            true => String::new(),
            false => format!("    forward . {}\n", upstream.join(" ")),
        };
        // The ready plugin counts all server blocks of one address as one.
        let ready = match port {
            53 => format!("    ready 127.0.0.1:{READY_PORT}\n"),
            _ => String::new(),
        };
        let zone = format!(".:{port}");
        // Writing to a String cannot fail.
        drop(write!(
            text,
            "{zone} {{\n    bind {listen}\n    errors\n{ready}    hosts {{\n        {leader} {}\n        fallthrough\n    }}\n    kubernetes {} in-addr.arpa ip6.arpa {{\n        kubeconfig {}\n        pods insecure\n        fallthrough in-addr.arpa ip6.arpa\n    }}\n{forward}    cache 30\n    loadbalance\n}}\n",
            spec::LEADER_NAME,
            context.cluster.domain,
            secret("coredns.kubeconfig"),
        ));
    }
    text
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
