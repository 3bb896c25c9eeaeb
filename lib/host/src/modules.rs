//! Kernel modules.
//!
//! In: a name such as `br_netfilter`. Out: whether the kernel has it, and how; which file
//! of the host forbids to load it. `-` and `_` in names are the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::command::{Cmd, CommandError};

/// How the kernel has a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// It was loaded.
    Loaded,
    /// It is part of the kernel.
    Builtin,
    /// It can be loaded.
    Loadable,
    /// None of these, as far as the host's files say.
    Absent,
}

/// What the configuration of modprobe can have against a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ban {
    /// `install NAME /bin/false`: nobody gets it loaded.
    Install,
    /// `blacklist NAME`: it isn't loaded by its aliases, which is how the kernel asks for
    /// modules, nor by systemd at boot.
    Blacklist,
}

/// Where modprobe's configuration is. A file stands for all of its name that come later
/// (modprobe.d(5)).
const CONFIGURATION: [&str; 5] = [
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
];

/// What the host's files say of all modules of a kernel.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    /// Text of `/proc/modules`.
    loaded: String,
    /// Text of `modules.builtin`.
    builtin: String,
    /// Text of `modules.dep`.
    loadable: String,
    /// Files of modprobe's configuration, and their texts.
    configuration: Vec<(PathBuf, String)>,
}

impl Modules {
    /// Reads them. `release` is the kernel's.
    pub(crate) fn read(release: &str) -> Self {
        // Files that can't be read say nothing: a kernel without modules has none.
        let read = |path: &Path| bounded::text(path).unwrap_or_default();
        let directory = Path::new("/lib/modules").join(release);
        Self {
            loaded: read(Path::new("/proc/modules")),
            builtin: read(&directory.join("modules.builtin")),
            loadable: read(&directory.join("modules.dep")),
            configuration: configuration(&CONFIGURATION.map(Path::new)),
        }
    }

    /// Whether the kernel's modules are on the host.
    pub(crate) fn has_files(&self) -> bool {
        !self.loadable.is_empty() || !self.builtin.is_empty()
    }

    /// How the kernel has a module.
    pub(crate) fn presence(&self, name: &str) -> Presence {
        let name = canonical(name);
        if loaded(&self.loaded, &name) {
            return Presence::Loaded;
        }
        // A part of the kernel is in sysfs only when it has parameters.
        let known = Path::new("/sys/module").join(&name).exists();
        if known || listed(&self.builtin, &name) {
            return Presence::Builtin;
        }
        match listed(&self.loadable, &name) {
            true => Presence::Loadable,
            false => Presence::Absent,
        }
    }

    /// The file that bans a module so.
    pub(crate) fn banned(&self, name: &str, ban: Ban) -> Option<&Path> {
        let name = canonical(name);
        let mut files = self.configuration.iter();
        let (path, _) = files.find(|(_, text)| bans(text, &name, ban))?;
        Some(path)
    }
}

/// Files that modprobe reads, and their texts.
fn configuration(directories: &[&Path]) -> Vec<(PathBuf, String)> {
    let mut files = BTreeMap::new();
    for directory in directories {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "conf") {
                files.entry(entry.file_name()).or_insert(path);
            }
        }
    }
    files
        .into_values()
        .filter_map(|path| {
            let text = bounded::text(&path).ok()?;
            Some((path, text))
        })
        .collect()
}

/// How the running kernel has a module.
pub fn presence(name: &str) -> Presence {
    let kernel = nix::sys::utsname::uname().ok();
    let release = kernel.map(|kernel| kernel.release().to_string_lossy().into_owned());
    Modules::read(&release.unwrap_or_default()).presence(name)
}

/// Loads a module by modprobe, unless the kernel has it.
///
/// # Errors
/// When there is no modprobe or no such module.
pub(crate) fn load(name: &str) -> Result<(), CommandError> {
    match presence(name) {
        Presence::Loaded | Presence::Builtin => Ok(()),
        Presence::Loadable | Presence::Absent => Cmd::new("modprobe")
            .args(["--", name])
            .describe(format!("load kernel module {name}"))
            .run()
            .map(drop),
    }
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// Whether the text of `/proc/modules` has a module of this canonical name.
fn loaded(text: &str, name: &str) -> bool {
    text.lines()
        .filter_map(|line| line.split(' ').next())
        .any(|module| module == name)
}

/// Whether the text of a `modules.builtin` or `modules.dep` has it: a path a
/// line, in the second with what it depends on.
fn listed(text: &str, name: &str) -> bool {
    text.lines().any(|line| {
        let path = line.split(':').next().unwrap_or(line);
        let file = path.rsplit('/').next().unwrap_or(path);
        let module = file.split(".ko").next().unwrap_or(file);
        canonical(module) == name
    })
}

/// Whether the text of a file of modprobe's configuration bans a module of this canonical
/// name so.
fn bans(text: &str, name: &str, ban: Ban) -> bool {
    text.replace("\\\n", "").lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let (module, found) = match words.as_slice() {
            ["blacklist", module, ..] => (module, Ban::Blacklist),
            ["install", module, command, rest @ ..]
                if does_nothing(command) && rest.first().is_none_or(|word| is_comment(word)) =>
            {
                (module, Ban::Install)
            }
            _ => return false,
        };
        found == ban && canonical(module) == name
    })
}

/// Whether a command in place of loading a module does nothing.
fn does_nothing(command: &str) -> bool {
    let name = command
        .strip_prefix("/usr")
        .unwrap_or(command)
        .strip_prefix("/bin/");
    matches!(name.unwrap_or(command), "true" | "false")
}

fn is_comment(word: &str) -> bool {
    word.starts_with('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modprobe_can_be_told_to_load_nothing() {
        let text = "# install vxlan /bin/false\n\
                    install overlay /bin/false\n\
                    install nf-tables \\\n  /usr/bin/true # CIS\n\
                    install bridge /sbin/modprobe --ignore-install bridge\n\
                    blacklist br-netfilter\n";
        for (name, by) in [
            ("overlay", Some(Ban::Install)),
            ("nf_tables", Some(Ban::Install)),
            ("br_netfilter", Some(Ban::Blacklist)),
            ("bridge", None),
            ("vxlan", None),
        ] {
            for ban in [Ban::Install, Ban::Blacklist] {
                assert_eq!(bans(text, name, ban), by == Some(ban), "{name} {ban:?}");
            }
        }
    }

    #[test]
    fn a_file_of_modprobes_configuration_stands_for_later_ones_of_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("etc"), directory.path().join("lib"));
        for (path, text) in [
            (first.join("a.conf"), ""),
            (second.join("a.conf"), "install overlay /bin/false"),
            (second.join("b.conf"), "blacklist overlay"),
            (second.join("b.conf.bak"), "install overlay /bin/false"),
        ] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            crate::atomic::write(&path, text.as_bytes(), 0o644).unwrap();
        }
        let modules = Modules {
            configuration: configuration(&[
                first.as_path(),
                second.as_path(),
                Path::new("/no/such"),
            ]),
            ..Modules::default()
        };
        assert_eq!(modules.banned("overlay", Ban::Install), None);
        let file = second.join("b.conf");
        assert_eq!(
            modules.banned("overlay", Ban::Blacklist),
            Some(file.as_path())
        );
    }

    #[test]
    fn both_lists_are_read() {
        let modules = "br_netfilter 32768 0 - Live 0x0\nbridge 1 1 br_netfilter, Live 0x0\n";
        assert!(loaded(modules, "br_netfilter") && !loaded(modules, "netfilter"));
        let list = "kernel/net/ipv4/tcp-cubic.ko\nkernel/fs/overlayfs/overlay.ko.xz\n";
        assert!(listed(list, "tcp_cubic") && listed(list, "overlay") && !listed(list, "over"));
        let dependencies = "kernel/net/veth.ko.zst: kernel/net/core.ko.zst\n";
        assert!(listed(dependencies, "veth") && !listed(dependencies, "core"));
        assert_eq!(presence("no-such-module"), Presence::Absent);
    }
}
