//! Where names of the world outside are looked up.
//!
//! In: the host's `resolv.conf` as it is when the container starts. Out: files
//! inside for those who ask its name servers. A host that knows no name server
//! yet, or no more, is taken to have the last ones.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use crate::config::PlanetConfig;
use crate::error::Result;
use crate::files;

/// The host's `resolv.conf` inside, kept from one start to the next.
pub const RESOLV_CONF: &str = "/etc/planet/resolv.conf";
/// Name servers that queries are forwarded to, in the format of `resolv.conf`.
/// Missing where there are none.
pub const UPSTREAM: &str = "/run/planet/upstream.conf";

/// Reads the host's, while its paths are seen. A host without one looks up
/// nothing outside.
pub(crate) fn of_host() -> String {
    fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
}

/// Writes the files inside.
pub(crate) fn write(host: &str, config: &PlanetConfig) -> Result<()> {
    let own: Vec<_> = config.addresses().map(|net| net.addr()).collect();
    let last = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let text = known(host, &last, &own);
    let write =
        |path: &str, text: &str| files::write(Path::new(path), text.as_bytes(), 0o644, 0, 0);
    write(RESOLV_CONF, text)?;
    match upstream(text, &own) {
        Some(servers) => write(UPSTREAM, &servers),
        None => Ok(()),
    }
}

/// The host's text, or the last one where that alone has name servers.
fn known<'a>(host: &'a str, last: &'a str, own: &[IpAddr]) -> &'a str {
    match upstream(host, own).is_none() && upstream(last, own).is_some() {
        true => last,
        false => host,
    }
}

/// Name servers of a `resolv.conf` that can be forwarded to: not ourselves, and
/// at most 3, as the C library reads.
fn upstream(text: &str, own: &[IpAddr]) -> Option<String> {
    let servers: Vec<_> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next())
        .filter_map(|server| server.parse::<IpAddr>().ok())
        .filter(|server| !own.contains(server))
        .take(3)
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    (!servers.is_empty()).then(|| servers.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> [IpAddr; 1] {
        ["169.254.20.10".parse().unwrap()]
    }

    #[test]
    fn only_addresses_of_others_are_forwarded_to() {
        let text = "# nameserver 9.9.9.9\nsearch lan\nnameserver 10.0.0.1\n nameserver fe80::1%eth0\nnameserver 169.254.20.10\nnameserver ::1\n";
        assert_eq!(
            upstream(text, &own()).unwrap(),
            "nameserver 10.0.0.1\nnameserver ::1\n"
        );
        assert_eq!(upstream("", &own()), None);
        assert_eq!(upstream("nameserver 169.254.20.10\n", &own()), None);
    }

    #[test]
    fn a_host_that_knows_no_name_server_yet_is_taken_to_have_the_last_ones() {
        let (old, new) = ("nameserver 10.0.0.1\n", "nameserver 10.0.0.2\n");
        let nobody = "search lan\n";
        assert_eq!(known(new, old, &own()), new);
        assert_eq!(known("", old, &own()), old);
        assert_eq!(known("nameserver 169.254.20.10\n", old, &own()), old);
        // What it says beside name servers counts all the same.
        assert_eq!(known(nobody, "", &own()), nobody);
        assert_eq!(known(new, "", &own()), new);
    }
}
