//! What a host is like.
//!
//! In: the kernel's files, read by [`HostFacts::collect`]. Out: facts as data
//! that can be stored, sent and checked elsewhere. What can't be found out is
//! empty or `None`, never guessed. Collecting changes nothing.

mod clock;
mod kernel;
mod network;
mod peer;
mod place;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use nix::sys::socket::SockaddrStorage;
use serde::{Deserialize, Serialize};

use crate::mounts::{self, Mount};
use crate::{bounded, users};
pub use kernel::{Clock, Kernel};
pub use network::{Firewalld, Interface, Network, ResolvConf};
pub use peer::{Introduction, Offset, Packet, Peer, Port, Rates, Reach, Seen, Way};
pub use place::{Kind, Place, matches};

/// Names that somebody wants to know about: there are thousands of each.
#[derive(Debug, Clone, Default)]
pub struct Interest {
    /// Kernel parameters.
    pub sysctls: BTreeSet<&'static str>,
    /// Kernel modules.
    pub modules: BTreeSet<&'static str>,
    /// Options of the kernel's configuration, with `CONFIG_`.
    pub kernel_options: BTreeSet<&'static str>,
    /// Programs of the host.
    pub programs: BTreeSet<&'static str>,
}

/// What a host is like. Facts that an older program stored lack what it didn't
/// know of, which is then empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostFacts {
    /// Name of the host, as the kernel has it.
    pub hostname: String,
    /// Processors that are online.
    pub cpus: u32,
    /// Memory that the kernel manages, in bytes (`MemTotal`).
    pub ram_bytes: u64,
    /// The distribution.
    pub os: Os,
    /// Release of the kernel, such as `6.1.0-18-amd64`.
    pub kernel_release: String,
    /// Architecture, such as `x86_64`.
    pub architecture: String,
    /// Addresses of all interfaces that are up, loopback included.
    pub addresses: Vec<Address>,
    /// Routes of the main table.
    pub routes: Vec<Route>,
    /// Ports that somebody listens on.
    pub listening: Vec<Listener>,
    /// Which control groups there are.
    pub cgroup: Cgroup,
    /// User id of this process.
    pub uid: u32,
    /// Whether this process may lower `oom_score_adj` and raise hard limits
    /// (`CAP_SYS_RESOURCE`).
    pub can_lower_oom_score: bool,
    /// Whether systemd is the init of the host.
    pub systemd: bool,
    /// Features of the processor, as `/proc/cpuinfo` names them.
    pub cpu_features: BTreeSet<String>,
    /// Files and partitions that memory is swapped to.
    pub swaps: Vec<String>,
    /// `/etc/machine-id`; empty where there is none.
    pub machine_id: String,
    /// The running kernel.
    pub kernel: Kernel,
    /// Names, interfaces, proxies and packet filters.
    pub network: Network,
    /// Programs that run, by name, with one of their process ids.
    pub processes: BTreeMap<String, u32>,
    /// Programs that were asked for and are there.
    pub programs: BTreeSet<String>,
    /// Users that may log in: id and name.
    pub logins: BTreeMap<u32, String>,
    /// Units that systemd starts at boot.
    pub enabled_units: BTreeSet<String>,
    /// What is mounted.
    pub mounts: Vec<Mount>,
}

/// The distribution, from `/etc/os-release`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Os {
    /// `ID`, such as `debian`; `linux` where there is none.
    pub id: String,
    /// `VERSION_ID`, such as `12`; empty for rolling distributions.
    pub version_id: String,
    /// `PRETTY_NAME`.
    pub pretty_name: String,
}

/// An address of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Name of the interface.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// Length of the network prefix.
    pub prefix: u8,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Network in CIDR notation.
    pub destination: String,
    /// Name of the interface.
    pub interface: String,
}

/// Transport of a [`Listener`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port that somebody listens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Transport.
    pub protocol: Protocol,
    /// Address; unspecified for all.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Process that holds it, where it may be known.
    pub pid: Option<u32>,
    /// Name of that process.
    pub process: Option<String>,
}

/// Which control groups there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cgroup {
    /// Controllers in hierarchies of their own, or no control groups.
    #[default]
    V1,
    /// Controllers as in v1, and a v2 hierarchy beside them.
    Hybrid,
    /// One hierarchy.
    V2,
}

/// Room on a filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Bytes that a user may still write; root may have more.
    pub available_bytes: u64,
    /// Size in bytes.
    pub total_bytes: u64,
    /// Files that can still be made; 0 also where the filesystem has no limit
    /// (btrfs), which `inodes_total` of 0 tells apart.
    pub inodes_available: u64,
    /// Files that the filesystem can hold; 0 where it has no limit.
    pub inodes_total: u64,
    /// Type of filesystem, such as `ext4`.
    pub filesystem: String,
    /// The existing directory that was asked about.
    pub measured_at: PathBuf,
}

impl HostFacts {
    /// An address of this host, with where it is.
    pub fn address(&self, address: IpAddr) -> Option<&Address> {
        self.addresses.iter().find(|one| one.address == address)
    }

    /// Finds out what this host is like. Slow sources are asked at the same
    /// time.
    pub fn collect(interest: &Interest) -> Self {
        std::thread::scope(|scope| {
            let network = scope.spawn(Network::collect);
            let listening = scope.spawn(listening);
            let mut facts = Self::of_system(interest);
            // A thread that panicked found nothing out.
            facts.network = network.join().unwrap_or_default();
            facts.listening = listening.join().unwrap_or_default();
            facts
        })
    }

    fn of_system(interest: &Interest) -> Self {
        let read = |path: &str| bounded::text(Path::new(path)).unwrap_or_default();
        let kernel = nix::sys::utsname::uname().ok();
        let kernel = |field: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
            kernel
                .as_ref()
                .map(|k| field(k).to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        let mut routes = parse_routes(&read("/proc/net/route"));
        routes.extend(parse_ipv6_routes(&read("/proc/net/ipv6_route")));
        let release = kernel(|k| k.release());
        let mounts = mounts::list().unwrap_or_default();
        let programs = interest.programs.iter();
        let programs = programs.filter(|program| crate::command::installed(program));
        Self {
            hostname: kernel(|k| k.nodename()),
            cpus: parse_cpus(&read("/sys/devices/system/cpu/online"))
                .or_else(|| {
                    std::thread::available_parallelism()
                        .ok()?
                        .get()
                        .try_into()
                        .ok()
                })
                .unwrap_or(1),
            ram_bytes: parse_memory(&read("/proc/meminfo")).unwrap_or(0),
            os: os(),
            kernel: Kernel::collect(interest, &release),
            kernel_release: release,
            architecture: kernel(|k| k.machine()),
            addresses: addresses(),
            routes,
            cgroup: cgroup(&mounts),
            uid: nix::unistd::geteuid().as_raw(),
            can_lower_oom_score: capabilities(&read("/proc/self/status"))
                .is_some_and(|set| set & (1 << CAP_SYS_RESOURCE) != 0),
            systemd: has_systemd(),
            cpu_features: parse_cpu_features(&read("/proc/cpuinfo")),
            swaps: parse_swaps(&read("/proc/swaps")),
            machine_id: read("/etc/machine-id").trim().to_owned(),
            processes: processes(),
            programs: programs.map(|program| (*program).to_owned()).collect(),
            logins: logins(&users::parse_passwd(&read("/etc/passwd"))),
            enabled_units: enabled_units(),
            mounts,
            // Asked at the same time.
            network: Network::default(),
            listening: Vec::new(),
        }
    }
}

impl Route {
    /// Whether it leads everywhere.
    pub fn is_default(&self) -> bool {
        self.destination.ends_with("/0")
    }
}

/// Whether systemd is the init of the host (as `sd_booted(3)` finds out).
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Whether a process of that name runs, as root.
pub fn runs(name: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| {
            let path = entry.path();
            let own = bounded::text(&path.join("comm"));
            own.is_ok_and(|own| own.trim_end() == name)
                && path.metadata().is_ok_and(|process| process.uid() == 0)
        })
}

fn os() -> Os {
    ["/etc/os-release", "/usr/lib/os-release"]
        .iter()
        .find_map(|path| bounded::text(Path::new(path)).ok())
        .map(|text| parse_os_release(&text))
        .unwrap_or_default()
}

/// Reads the text of an `os-release`.
fn parse_os_release(text: &str) -> Os {
    let values: HashMap<&str, String> = text
        .lines()
        .filter_map(|line| line.trim().split_once('='))
        .map(|(key, value)| (key, unquote(value)))
        .collect();
    let value = |key| values.get(key).cloned().unwrap_or_default();
    Os {
        id: values.get("ID").cloned().unwrap_or_else(|| "linux".into()),
        version_id: value("VERSION_ID"),
        pretty_name: value("PRETTY_NAME"),
    }
}

/// The value of a shell assignment.
fn unquote(value: &str) -> String {
    let value = value.trim();
    let inner = ['"', '\'']
        .iter()
        .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote))
        .unwrap_or(value);
    let mut text = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.extend(characters.next()),
            other => text.push(other),
        }
    }
    text
}

/// Number of processors in a list such as `0-3,5`.
fn parse_cpus(text: &str) -> Option<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    text.trim()
        .split(',')
        .try_fold(0u32, |sum, part| sum.checked_add(range(part)?))
}

/// `MemTotal` in the text of a `meminfo`, in bytes.
fn parse_memory(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Number of the capability, from linux/capability.h.
const CAP_SYS_RESOURCE: u32 = 24;

/// Effective capabilities in the text of a `/proc/PID/status`, one bit each.
fn capabilities(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

/// Features of the first processor in the text of a `cpuinfo`.
fn parse_cpu_features(text: &str) -> BTreeSet<String> {
    text.lines()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':'))
        .map(|(_, flags)| flags.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// Names in the text of `/proc/swaps`, below its header.
fn parse_swaps(text: &str) -> Vec<String> {
    text.lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// Names of processes. Of several of one name the first is kept.
fn processes() -> BTreeMap<String, u32> {
    let mut processes = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if let Ok(name) = bounded::text(&entry.path().join("comm")) {
            processes.entry(name.trim_end().to_owned()).or_insert(pid);
        }
    }
    processes
}

/// Users with a shell that lets them in.
fn logins(users: &[users::User]) -> BTreeMap<u32, String> {
    users
        .iter()
        .filter(|user| users::can_log_in(user))
        .map(|user| (user.uid, user.name.clone()))
        .collect()
}

/// Units that some target wants.
fn enabled_units() -> BTreeSet<String> {
    let targets = std::fs::read_dir("/etc/systemd/system")
        .into_iter()
        .flatten()
        .flatten();
    targets
        .filter(|target| target.file_name().to_string_lossy().ends_with(".wants"))
        .filter_map(|target| std::fs::read_dir(target.path()).ok())
        .flat_map(|units| units.flatten())
        .map(|unit| unit.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Which control groups are among the mounts.
pub fn cgroup(mounts: &[Mount]) -> Cgroup {
    let has = |kind: &str| {
        mounts
            .iter()
            .any(|m| m.filesystem == kind && m.target.starts_with("/sys/fs/cgroup"))
    };
    match (has("cgroup"), has("cgroup2")) {
        (false, true) => Cgroup::V2,
        (true, true) => Cgroup::Hybrid,
        _ => Cgroup::V1,
    }
}

/// Addresses of all interfaces that are up.
pub fn addresses() -> Vec<Address> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    interfaces
        .filter_map(|entry| {
            let address = ip(entry.address.as_ref()?)?;
            let prefix = ip(entry.netmask.as_ref()?).map(|mask| match mask {
                IpAddr::V4(mask) => mask.to_bits().leading_ones(),
                IpAddr::V6(mask) => mask.to_bits().leading_ones(),
            })?;
            let prefix = u8::try_from(prefix).ok()?;
            let up = entry.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP);
            up.then_some(Address {
                interface: entry.interface_name,
                address,
                prefix,
            })
        })
        .collect()
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

/// The route is up, from linux/route.h.
const RTF_UP: u32 = 0x1;
/// The route says that there is no way.
const RTF_REJECT: u32 = 0x200;

fn usable(flags: u32) -> bool {
    flags & RTF_UP != 0 && flags & RTF_REJECT == 0
}

/// IPv4 routes in the text of a `/proc/net/route`.
fn parse_routes(text: &str) -> Vec<Route> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [interface, destination, _, flags, _, _, _, mask, ..] = fields.as_slice() else {
            return None;
        };
        let number = |text: &str| u32::from_str_radix(text, 16).ok();
        // The kernel prints them in the order of their bytes in memory.
        let destination = Ipv4Addr::from(number(destination)?.to_ne_bytes());
        let prefix = number(mask)?.count_ones();
        usable(number(flags)?).then(|| Route {
            destination: format!("{destination}/{prefix}"),
            interface: (*interface).to_owned(),
        })
    };
    text.lines().filter_map(route).collect()
}

/// IPv6 routes in the text of a `/proc/net/ipv6_route`, but those of loopback.
fn parse_ipv6_routes(text: &str) -> Vec<Route> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [destination, prefix, _, _, _, _, _, _, flags, interface] = fields.as_slice() else {
            return None;
        };
        let destination = Ipv6Addr::from_bits(u128::from_str_radix(destination, 16).ok()?);
        let prefix = u32::from_str_radix(prefix, 16).ok()?;
        let flags = u32::from_str_radix(flags, 16).ok()?;
        (usable(flags) && *interface != "lo").then(|| Route {
            destination: format!("{destination}/{prefix}"),
            interface: (*interface).to_owned(),
        })
    };
    text.lines().filter_map(route).collect()
}

/// A socket that listens, and the number by which its holder is found.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    address: IpAddr,
    port: u16,
    inode: u64,
}

/// State of a socket in `/proc/net`: `LISTEN` for TCP, unconnected for UDP.
const LISTEN: &str = "0A";
const UNCONNECTED: &str = "07";

/// Sockets in one state in the text of a `/proc/net/tcp` or its siblings.
fn parse_sockets(text: &str, state: &str) -> Vec<Socket> {
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, actual, _, _, _, _, _, inode, ..] = fields.as_slice() else {
            return None;
        };
        let (address, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let inode = inode.parse().ok()?;
        (*actual == state && port != 0).then(|| {
            Some(Socket {
                address: parse_address(address)?,
                port,
                inode,
            })
        })?
    };
    text.lines().filter_map(socket).collect()
}

/// An address as `/proc/net` has it: words of four bytes, each printed as a
/// number of this machine's byte order.
fn parse_address(text: &str) -> Option<IpAddr> {
    let mut bytes = Vec::with_capacity(16);
    for word in text.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    if let Ok(four) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(IpAddr::from(four));
    }
    Some(IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?).to_canonical())
}

fn listening() -> Vec<Listener> {
    let tables = [
        ("/proc/net/tcp", Protocol::Tcp, LISTEN),
        ("/proc/net/tcp6", Protocol::Tcp, LISTEN),
        ("/proc/net/udp", Protocol::Udp, UNCONNECTED),
        ("/proc/net/udp6", Protocol::Udp, UNCONNECTED),
    ];
    let sockets: Vec<(Protocol, Socket)> = tables
        .into_iter()
        .flat_map(|(path, protocol, state)| {
            let text = bounded::text(Path::new(path)).unwrap_or_default();
            parse_sockets(&text, state)
                .into_iter()
                .map(move |socket| (protocol, socket))
        })
        .collect();
    let holders = match sockets.is_empty() {
        true => HashMap::new(),
        false => socket_holders(),
    };
    let listener = |(protocol, socket): (Protocol, Socket)| {
        let pid = holders.get(&socket.inode).copied();
        let name = pid.and_then(|pid| bounded::text(Path::new(&format!("/proc/{pid}/comm"))).ok());
        Listener {
            protocol,
            address: socket.address,
            port: socket.port,
            pid,
            process: name.map(|name| name.trim_end().to_owned()),
        }
    };
    sockets.into_iter().map(listener).collect()
}

/// Processes by the sockets they hold. Processes of others and such that end
/// meanwhile are left out.
fn socket_holders() -> HashMap<u64, u32> {
    let mut holders = HashMap::new();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let files = std::fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        for file in files {
            let inode = std::fs::read_link(file.path()).ok().and_then(|target| {
                target
                    .to_str()?
                    .strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .parse()
                    .ok()
            });
            if let Some(inode) = inode {
                holders.entry(inode).or_insert(pid);
            }
        }
    }
    holders
}

/// Room on the filesystem that `path` is on, or would be on once it is made.
///
/// # Errors
/// When the kernel doesn't say.
pub fn space(path: &Path) -> Result<Space, Error> {
    space_among(path, &mounts::list()?)
}

fn space_among(path: &Path, mounts: &[Mount]) -> Result<Space, Error> {
    let absolute = std::path::absolute(path)?;
    let existing = absolute
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let measured_at = existing.canonicalize()?;
    let size = nix::sys::statvfs::statvfs(&measured_at)?;
    Ok(Space {
        available_bytes: size.blocks_available().saturating_mul(size.fragment_size()),
        total_bytes: size.blocks().saturating_mul(size.fragment_size()),
        inodes_available: size.files_available(),
        inodes_total: size.files(),
        filesystem: mounts::holding(mounts, &measured_at)
            .map(|mount| mount.filesystem.clone())
            .unwrap_or_default(),
        measured_at,
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn small_files_are_read() {
        let text =
            "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME='Debian \"12\"'\n#X\nNAME=\"a\\\"b\"\n";
        let os = parse_os_release(text);
        assert_eq!((os.id.as_str(), os.version_id.as_str()), ("debian", "12"));
        assert_eq!(os.pretty_name, "Debian \"12\"");
        assert_eq!(parse_os_release("").id, "linux");
        assert_eq!(unquote("\"a\\\"b\""), "a\"b");
        assert_eq!(parse_cpus("0-3,5\n"), Some(5));
        assert_eq!(parse_cpus("3-0"), None);
        assert_eq!(parse_cpus(""), None);
        assert_eq!(
            parse_memory("MemTotal:  2048 kB\nMemFree: 1 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(
            capabilities("CapEff:\t0000000001000000\n"),
            Some(1 << CAP_SYS_RESOURCE)
        );
        assert_eq!(capabilities(""), None);
        let features = parse_cpu_features("flags\t\t: fpu sse4_2\nflags\t: other\n");
        assert_eq!(Vec::from_iter(features), ["fpu", "sse4_2"]);
        let swaps = "Filename\tType\tSize\n/dev/sda2 partition 1 0 -2\n";
        assert_eq!(parse_swaps(swaps), ["/dev/sda2"]);
        let users = "root:x:0:0::/root:/bin/bash\nsync:x:4:1::/bin:/bin/sync\nd:x:1:1::/:/usr/sbin/nologin\n";
        assert_eq!(
            logins(&users::parse_passwd(users)),
            BTreeMap::from([(0, "root".into())])
        );
    }

    #[test]
    fn routes_are_read_and_unreachable_ones_left_out() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            *\t00000A0A\t00000000\t0201\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let routes = parse_routes(text);
        assert_eq!(routes.len(), 2);
        assert!(routes[0].is_default() && !routes[1].is_default());
        assert_eq!(routes[1].destination, "192.168.1.0/24");
        let zero = "0".repeat(32);
        let v6 = format!(
            "fe800000000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth0\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
        );
        let routes = parse_ipv6_routes(&v6);
        assert_eq!(routes.len(), 1);
        assert_eq!(routes[0].destination, "fe80::/64");
    }

    #[test]
    fn control_groups_are_told_apart() {
        let line =
            |kind: &str, at: &str| format!("1 1 0:1 / /sys/fs/cgroup{at} rw - {kind} c rw\n");
        let of = |text: String| cgroup(&mounts::parse(&text));
        assert_eq!(of(line("cgroup2", "")), Cgroup::V2);
        assert_eq!(of(line("cgroup", "/memory")), Cgroup::V1);
        assert_eq!(
            of(line("cgroup", "/cpu") + &line("cgroup2", "/unified")),
            Cgroup::Hybrid
        );
        assert_eq!(of(String::new()), Cgroup::V1);
    }

    #[test]
    fn sockets_are_read() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0\n\
            1: 0100007F:1F91 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0 100 0\n\
            2: 00000000000000000000000001000000:0016 0:0 0A 0:0 00:0 0 0 0 7 1\n\
            garbage\n";
        let sockets = parse_sockets(text, LISTEN);
        assert_eq!(sockets.len(), 2);
        assert_eq!(
            sockets[0],
            Socket {
                address: "127.0.0.1".parse().unwrap(),
                port: 8080,
                inode: 4242
            }
        );
        assert_eq!(sockets[1].address, "::1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn this_host_has_facts_that_survive_a_round_trip() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let facts = HostFacts::collect(&Interest {
            sysctls: BTreeSet::from(["kernel.ostype", "kernel.no_such_thing"]),
            ..Interest::default()
        });
        assert_eq!(Vec::from_iter(facts.kernel.sysctls.values()), ["Linux"]);
        assert!(facts.processes.len() > 1 && !facts.mounts.is_empty());
        assert!(facts.cpus > 0 && facts.ram_bytes > 1 << 20 && !facts.kernel_release.is_empty());
        assert!(
            facts
                .addresses
                .iter()
                .any(|a| a.address.is_loopback() && a.prefix == 8)
        );
        let own = facts.listening.iter().find(|l| l.port == port).unwrap();
        assert_eq!(
            (own.pid, own.protocol),
            (Some(std::process::id()), Protocol::Tcp)
        );
        let json = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<HostFacts>(&json).unwrap(), facts);
    }

    #[test]
    fn space_is_of_the_nearest_directory() {
        let directory = tempfile::tempdir().unwrap();
        let space = space(&directory.path().join("not/yet/there")).unwrap();
        assert_eq!(space.measured_at, directory.path().canonicalize().unwrap());
        assert!(space.total_bytes >= space.available_bytes && space.total_bytes > 0);
        assert!(!space.filesystem.is_empty());
    }
}
