//! Kernel modules.
//!
//! In: a name such as `br_netfilter`. Out: whether the kernel has it, and how.
//! `-` and `_` in names are the same.

use std::path::Path;

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

/// What the host's files say of all modules of a kernel.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    /// Text of `/proc/modules`.
    loaded: String,
    /// Text of `modules.builtin`.
    builtin: String,
    /// Text of `modules.dep`.
    loadable: String,
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
}

/// How the running kernel has a module.
pub(crate) fn presence(name: &str) -> Presence {
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

#[cfg(test)]
mod tests {
    use super::*;

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
