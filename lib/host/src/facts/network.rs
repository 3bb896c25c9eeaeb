//! Names, interfaces, proxies and packet filters.
//!
//! In: files of `/etc`, the environment, `ip`, `nft` and `iptables-save` where they
//! are installed. Out: what they say. Passwords of proxies are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::command::{Cmd, installed};

/// How long a packet filter may take to list itself.
const PATIENCE: Duration = Duration::from_secs(3);

/// Names, interfaces, proxies and packet filters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Interfaces, up or not.
    pub interfaces: Vec<Interface>,
    /// `/etc/resolv.conf`; `None` where there is none.
    pub resolv_conf: Option<ResolvConf>,
    /// Addresses of `localhost` in `/etc/hosts`; `None` where it can't be read.
    pub localhost: Option<Vec<IpAddr>>,
    /// Proxies in the environment by the name of their variable, in lower case;
    /// `no_proxy` too.
    pub proxies: BTreeMap<String, String>,
    /// Tables of nftables (`ip kube-proxy`) and chains of iptables
    /// (`KUBE-SERVICES`); `None` where no program lists them.
    pub filters: Option<BTreeSet<String>>,
    /// Rules of IPv4 routing in their order, as `ip rule` lists them; none where it isn't
    /// installed.
    pub rules: Vec<String>,
    /// Whether ufw is to do anything where its unit is started: Ubuntu has that enabled
    /// with a ufw that is off.
    pub ufw: bool,
    /// What firewalld has of ours; `None` where it is not installed, or has no
    /// policies (before 0.9).
    pub firewalld: Option<Firewalld>,
}

/// Our files of firewalld's configuration; empty where they are not there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firewalld {
    /// Text of the zone of pods.
    pub zone: String,
    /// Text of the policy that opens ports.
    pub policy: String,
}

impl Firewalld {
    /// File of the zone.
    pub const ZONE: &str = "/etc/firewalld/zones/gravity-pods.xml";
    /// File of the policy. firewalld refuses one that has the name of a zone.
    pub const POLICY: &str = "/etc/firewalld/policies/gravity-ports.xml";
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address; empty where it has none.
    pub mac: String,
    /// Largest packet, in bytes; 0 where unknown.
    pub mtu: u32,
}

/// What `/etc/resolv.conf` says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvConf {
    /// Name servers, those that are addresses.
    pub nameservers: Vec<IpAddr>,
    /// Domains in which short names are looked up.
    pub search: Vec<String>,
}

impl Network {
    /// The interface of this name.
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|one| one.name == name)
    }

    pub(super) fn collect() -> Self {
        let read = |path: &str| bounded::text(Path::new(path)).ok();
        Self {
            interfaces: interfaces(),
            resolv_conf: read("/etc/resolv.conf").map(|text| parse_resolv_conf(&text)),
            localhost: read("/etc/hosts").map(|text| parse_localhost(&text)),
            proxies: proxies(std::env::vars_os()),
            filters: filters(),
            rules: rules(),
            ufw: read("/etc/ufw/ufw.conf").is_some_and(|text| parse_ufw(&text)),
            firewalld: firewalld(),
        }
    }
}

/// Our files of firewalld's configuration, where it has zones and policies.
fn firewalld() -> Option<Firewalld> {
    let policies = ["/etc/firewalld/policies", "/usr/lib/firewalld/policies"];
    let has_policies = policies.iter().any(|path| Path::new(path).is_dir());
    let read = |path: &str| bounded::text(Path::new(path)).unwrap_or_default();
    (has_policies && Path::new("/etc/firewalld").is_dir()).then(|| Firewalld {
        zone: read(Firewalld::ZONE),
        policy: read(Firewalld::POLICY),
    })
}

fn interfaces() -> Vec<Interface> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else {
        return Vec::new();
    };
    let mut interfaces: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| {
            let read = |name| bounded::text(&entry.path().join(name)).unwrap_or_default();
            let mac = read("address").trim().to_owned();
            Interface {
                name: entry.file_name().to_string_lossy().into_owned(),
                mac: if mac == "00:00:00:00:00:00" {
                    String::new()
                } else {
                    mac
                },
                mtu: read("mtu").trim().parse().unwrap_or(0),
            }
        })
        .collect();
    interfaces.sort_by(|one, other| one.name.cmp(&other.name));
    interfaces
}

/// Reads the text of a `resolv.conf`. The last `search` or `domain` counts.
fn parse_resolv_conf(text: &str) -> ResolvConf {
    let mut read = ResolvConf::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                // A scope (`fe80::1%eth0`) is no part of the address.
                let address = words.next().and_then(|word| word.split('%').next());
                read.nameservers
                    .extend(address.and_then(|address| address.parse::<IpAddr>().ok()));
            }
            Some("search" | "domain") => read.search = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    read
}

/// Addresses of `localhost` in the text of `/etc/hosts`.
fn parse_localhost(text: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let line = line.split('#').next()?;
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|name| name == "localhost").then_some(address)
    };
    text.lines().filter_map(address).collect()
}

/// Whether the text of a `ufw.conf` turns ufw on. The last assignment counts.
fn parse_ufw(text: &str) -> bool {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("ENABLED="))
        .next_back()
        .is_some_and(|value| super::unquote(value).eq_ignore_ascii_case("yes"))
}

fn proxies(environment: impl Iterator<Item = (OsString, OsString)>) -> BTreeMap<String, String> {
    environment
        // What isn't UTF-8 names no proxy.
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .filter(|(name, value)| {
            matches!(name.as_str(), "http_proxy" | "https_proxy" | "no_proxy") && !value.is_empty()
        })
        .map(|(name, value)| (name, without_password(&value)))
        .collect()
}

fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => url.to_owned(),
    }
}

fn filters() -> Option<BTreeSet<String>> {
    let run = |program: &str, arguments: &[&str]| {
        let output = Cmd::new(program).args(arguments).timeout(PATIENCE).run();
        output.ok().map(|output| output.stdout)
    };
    let tables = installed("nft")
        .then(|| run("nft", &["list", "tables"]))
        .flatten();
    let chains = installed("iptables-save")
        .then(|| run("iptables-save", &[]))
        .flatten();
    if tables.is_none() && chains.is_none() {
        return None;
    }
    let tables = tables.unwrap_or_default();
    let chains = chains.unwrap_or_default();
    let tables = tables
        .lines()
        .filter_map(|line| line.strip_prefix("table "));
    let chains = chains
        .lines()
        .filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    Some(tables.chain(chains).map(str::to_owned).collect())
}

fn rules() -> Vec<String> {
    if !installed("ip") {
        return Vec::new();
    }
    let output = Cmd::new("ip").arg("rule").timeout(PATIENCE).run();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_etc_are_read() {
        let conf = parse_resolv_conf(
            "# c\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver x\ndomain a\nsearch b c\n",
        );
        assert_eq!(conf.nameservers.len(), 2);
        assert_eq!(conf.search, ["b", "c"]);
        let hosts =
            "127.0.0.1 localhost # one\n::1 ip6-localhost localhost\n10.0.0.1 db # localhost\n";
        assert_eq!(parse_localhost(hosts).len(), 2);
        let ufw = "# ENABLED=yes\nENABLED=no\nLOGLEVEL=low\n";
        assert!(!parse_ufw(ufw) && !parse_ufw(""));
        assert!(parse_ufw("ENABLED=no\nENABLED=yes\n") && parse_ufw("ENABLED=\"YES\"\n"));
    }

    #[test]
    fn passwords_of_proxies_are_not_kept() {
        use std::os::unix::ffi::OsStringExt;
        let of = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        let environment = [
            of("HTTPS_PROXY", "http://user:secret@proxy:3128"),
            of("no_proxy", "10.0.0.0/8"),
            of("http_proxy", ""),
            of("HOME", "/root"),
            ("ALL_PROXY".into(), OsString::from_vec(vec![0xe9])),
            (OsString::from_vec(vec![0xe9]), "x".into()),
        ];
        let read = proxies(environment.into_iter());
        assert_eq!(read["https_proxy"], "http://proxy:3128");
        assert_eq!(read["no_proxy"], "10.0.0.0/8");
        assert_eq!(read.len(), 2);
    }
}
