//! Kernel modules.
//!
//! In: a name such as `br_netfilter`. Out: whether the kernel has it, and how.
//! `-` and `_` in names are the same.

use std::path::Path;

use crate::bounded;
use crate::command::{Cmd, CommandError};

/// How the kernel has a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It was loaded.
    Loaded,
    /// It is part of the kernel.
    Builtin,
    /// Neither; it might be loadable.
    Absent,
}

/// How the running kernel has a module.
pub fn presence(name: &str) -> Presence {
    let name = canonical(name);
    // Files that can't be read say nothing: a kernel without modules has none.
    let read = |path: &Path| bounded::text(path).unwrap_or_default();
    if loaded(&read(Path::new("/proc/modules")), &name) {
        return Presence::Loaded;
    }
    let list = nix::sys::utsname::uname().ok().map(|kernel| {
        let release = kernel.release().to_string_lossy().into_owned();
        read(
            &Path::new("/lib/modules")
                .join(release)
                .join("modules.builtin"),
        )
    });
    // A part of the kernel is in sysfs only when it has parameters.
    let known = Path::new("/sys/module").join(&name).exists();
    match known || builtin(&list.unwrap_or_default(), &name) {
        true => Presence::Builtin,
        false => Presence::Absent,
    }
}

/// Loads a module by modprobe, unless the kernel has it.
///
/// # Errors
/// When there is no modprobe or no such module.
pub fn load(name: &str) -> Result<(), CommandError> {
    match presence(name) {
        Presence::Loaded | Presence::Builtin => Ok(()),
        Presence::Absent => Cmd::new("modprobe")
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

/// Whether the text of a `modules.builtin` has it.
fn builtin(text: &str, name: &str) -> bool {
    text.lines().any(|line| {
        let file = line.rsplit('/').next().unwrap_or(line);
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
        assert!(builtin(list, "tcp_cubic") && builtin(list, "overlay") && !builtin(list, "over"));
        assert_eq!(presence("no-such-module"), Presence::Absent);
    }
}
