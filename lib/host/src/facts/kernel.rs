//! The running kernel: how it was built, what it has loaded, how it is set.
//!
//! In: names that checks ask for. Out: what the kernel says of each; a name
//! that is missing in an answer is missing in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Interest;
use crate::modules::{Ban, Modules, Presence};
use crate::{bounded, sysctl};

/// The running kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kernel {
    /// Options it was built with, of those asked for: `CONFIG_VETH` is `y` or
    /// `m`. `None` where its configuration is nowhere.
    pub options: Option<BTreeMap<String, String>>,
    /// How it has each module that was asked for.
    pub modules: BTreeMap<String, Presence>,
    /// Files of modprobe's configuration by the modules that nobody gets loaded because of
    /// them (`install NAME /bin/false`), of those asked for.
    pub forbidden: BTreeMap<String, PathBuf>,
    /// Those by the modules that neither the kernel nor systemd loads by itself because of
    /// them (`blacklist NAME`).
    pub blacklisted: BTreeMap<String, PathBuf>,
    /// Whether the files of its modules are on the host.
    pub has_module_files: bool,
    /// Parameters that were asked for and that it has.
    pub sysctls: BTreeMap<String, String>,
    /// Types of filesystem that it has now.
    pub filesystems: BTreeSet<String>,
    /// Controllers of its control groups.
    pub controllers: BTreeSet<String>,
    /// Capabilities of this process, one bit each.
    pub capabilities: Option<u64>,
    /// Files that a process may have open at most.
    pub max_open_files: Option<u64>,
    /// `enforcing` or `permissive`; `None` without SELinux.
    pub selinux: Option<String>,
    /// Whether AppArmor is on.
    pub apparmor: bool,
    /// Its clock.
    pub clock: Option<Clock>,
}

/// The clock of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Whether something keeps it right.
    pub synchronised: bool,
    /// How far it may be off, in microseconds, as the kernel believes.
    pub max_error_us: u64,
}

impl Kernel {
    pub(super) fn collect(interest: &Interest, release: &str) -> Self {
        let read = |path: &str| bounded::text(Path::new(path)).unwrap_or_default();
        let modules = Modules::read(release);
        let banned = |ban: Ban| -> BTreeMap<String, PathBuf> {
            let names = interest.modules.iter();
            names
                .filter_map(|name| {
                    Some(((*name).to_owned(), modules.banned(name, ban)?.to_owned()))
                })
                .collect()
        };
        let sysctls = interest.sysctls.iter().filter_map(|name| {
            let value = sysctl::get(name).ok()?;
            Some(((*name).to_owned(), value))
        });
        Self {
            options: config(release).map(|text| parse_config(&text, &interest.kernel_options)),
            modules: interest
                .modules
                .iter()
                .map(|name| ((*name).to_owned(), modules.presence(name)))
                .collect(),
            forbidden: banned(Ban::Install),
            blacklisted: banned(Ban::Blacklist),
            has_module_files: modules.has_files(),
            sysctls: sysctls.collect(),
            filesystems: parse_filesystems(&read("/proc/filesystems")),
            controllers: controllers(
                &read("/sys/fs/cgroup/cgroup.controllers"),
                &read("/proc/cgroups"),
            ),
            capabilities: super::capabilities(&read("/proc/self/status")),
            max_open_files: nix::sys::resource::getrlimit(
                nix::sys::resource::Resource::RLIMIT_NOFILE,
            )
            .ok()
            .map(|(_, hard)| hard),
            selinux: match read("/sys/fs/selinux/enforce").trim() {
                "1" => Some("enforcing".into()),
                "0" => Some("permissive".into()),
                _ => None,
            },
            apparmor: read("/sys/module/apparmor/parameters/enabled").trim() == "Y",
            clock: Clock::read(),
        }
    }

    /// Whether an option is built in or a module; `None` where the kernel's
    /// configuration is unknown.
    pub fn has_option(&self, name: &str) -> Option<bool> {
        self.options
            .as_ref()
            .map(|options| options.contains_key(name))
    }
}

/// Configuration of the kernel, from where distributions put it.
fn config(release: &str) -> Option<String> {
    if let Ok(packed) = bounded::bytes(Path::new("/proc/config.gz"), bounded::MAX_TEXT) {
        let mut text = String::new();
        let unpacked = flate2::read::GzDecoder::new(packed.as_slice());
        if unpacked
            .take(bounded::MAX_TEXT)
            .read_to_string(&mut text)
            .is_ok()
        {
            return Some(text);
        }
    }
    let places = [
        PathBuf::from(format!("/boot/config-{release}")),
        PathBuf::from(format!("/lib/modules/{release}/config")),
        PathBuf::from(format!("/usr/lib/modules/{release}/config")),
    ];
    places.iter().find_map(|path| bounded::text(path).ok())
}

/// Values of the wanted options in the text of a kernel's configuration.
fn parse_config(text: &str, wanted: &BTreeSet<&'static str>) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| wanted.contains(name))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Types in the text of `/proc/filesystems`.
fn parse_filesystems(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.split_whitespace().next_back())
        .map(str::to_owned)
        .collect()
}

/// Controllers of the one hierarchy, or of `/proc/cgroups` where a hierarchy of
/// v1 has them.
fn controllers(unified: &str, table: &str) -> BTreeSet<String> {
    let of_v1 = table.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields.as_slice() {
            [name, hierarchy, _, "1"] if *hierarchy != "0" => Some(*name),
            _ => None,
        }
    });
    unified
        .split_whitespace()
        .chain(of_v1)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let wanted = BTreeSet::from(["CONFIG_VETH", "CONFIG_VXLAN", "CONFIG_KEYS"]);
        let text = "CONFIG_VETH=m\nCONFIG_VXLAN=y\n# CONFIG_KEYS is not set\nCONFIG_OTHER=y\n";
        let options = parse_config(text, &wanted);
        assert_eq!(Vec::from_iter(options.values()), ["m", "y"]);
        let kernel = Kernel {
            options: Some(options),
            ..Kernel::default()
        };
        assert_eq!(kernel.has_option("CONFIG_VETH"), Some(true));
        assert_eq!(kernel.has_option("CONFIG_KEYS"), Some(false));
        assert_eq!(Kernel::default().has_option("CONFIG_VETH"), None);
        assert!(parse_filesystems("nodev\toverlay\n\text4\n").contains("overlay"));
        let table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t1\t1\nmemory\t2\t1\t0\npids\t0\t1\t1\n";
        assert_eq!(Vec::from_iter(controllers("", table)), ["cpu"]);
        assert_eq!(
            Vec::from_iter(controllers("cpu memory\n", "")),
            ["cpu", "memory"]
        );
    }
}
