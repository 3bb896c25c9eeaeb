//! What the journal of host changes does that isn't a file.
//!
//! In: names and values. Out: the machine's answer. A trait, so that tests need
//! neither root nor a machine to spoil.

use std::fmt::Debug;
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use super::Daemon;
use crate::command::{Cmd, CommandError, installed};
use crate::sysctl::{self, SysctlError};
use crate::users::{self, Missing, UserError};
use crate::{facts, mounts};

pub(super) trait System: Debug + Send {
    fn sysctl(&self, name: &str) -> Result<String, SysctlError>;
    fn set_sysctl(&self, name: &str, value: &str) -> Result<(), SysctlError>;
    fn missing_user(&self, name: &str, uid: u32, gid: u32) -> Result<Missing, UserError>;
    fn create_group(&self, name: &str, gid: u32) -> Result<(), UserError>;
    fn create_user(&self, name: &str, uid: u32, gid: u32) -> Result<(), UserError>;
    /// The id of a user.
    fn uid(&self, name: &str) -> Result<Option<u32>, UserError>;
    /// The id of a group.
    fn gid(&self, name: &str) -> Result<Option<u32>, UserError>;
    fn delete_user(&self, name: &str) -> Result<(), UserError>;
    fn delete_group(&self, name: &str) -> Result<(), UserError>;
    /// Runs `systemctl`; does nothing where there is no systemd.
    fn systemctl(&self, arguments: &[&str]) -> Result<(), CommandError>;
    /// Has a daemon read its configuration; does nothing where it doesn't run.
    fn reload(&self, daemon: Daemon) -> Result<(), CommandError>;
    /// Removes an interface. Whether there was one.
    fn delete_interface(&self, name: &str) -> Result<bool, CommandError>;
    /// Removes an address in CIDR notation. Whether there was one.
    fn delete_address(&self, interface: &str, address: &str) -> Result<bool, CommandError>;
    /// What is mounted.
    fn mounts(&self) -> std::io::Result<Vec<mounts::Mount>>;
    /// Unmounts what is below a path; with `keep` not what is at the path.
    fn unmount(&self, path: &Path, keep: bool) -> std::io::Result<()>;
    /// Makes a directory durable: its names, its owner and its mode.
    fn sync(&self, directory: &Path) -> std::io::Result<()>;
}

/// Makes a directory or a file durable, with its owner and mode.
pub(super) fn sync(path: &Path) -> std::io::Result<()> {
    let metadata = path.metadata()?;
    // To open a device may do something, and a pipe waits for its other end.
    if !metadata.is_dir() && !metadata.is_file() {
        return Ok(());
    }
    match File::open(path)?.sync_all() {
        // Some filesystems, such as shared folders, can't do it for directories.
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

/// Where systemd has its units, and in directories below it which are enabled by what.
const UNITS: &str = "/etc/systemd/system";

/// Makes durable which units are enabled: `systemctl` doesn't.
///
/// # Errors
/// When the kernel can't.
pub fn sync_units() -> std::io::Result<()> {
    let units = Path::new(UNITS);
    if !units.is_dir() {
        return Ok(());
    }
    for entry in units.read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|name| name == "wants") && path.is_dir() {
            sync(&path)?;
        }
    }
    sync(units)
}

/// The machine that this process runs on.
#[derive(Debug)]
pub(super) struct Machine;

impl System for Machine {
    fn sysctl(&self, name: &str) -> Result<String, SysctlError> {
        sysctl::get(name)
    }

    fn set_sysctl(&self, name: &str, value: &str) -> Result<(), SysctlError> {
        sysctl::set(name, value)
    }

    fn missing_user(&self, name: &str, uid: u32, gid: u32) -> Result<Missing, UserError> {
        users::missing(name, uid, gid)
    }

    fn create_group(&self, name: &str, gid: u32) -> Result<(), UserError> {
        users::create_group(name, gid)
    }

    fn create_user(&self, name: &str, uid: u32, gid: u32) -> Result<(), UserError> {
        users::create_user(name, uid, gid)
    }

    fn uid(&self, name: &str) -> Result<Option<u32>, UserError> {
        Ok(users::user_by_name(name)?.map(|user| user.uid))
    }

    fn gid(&self, name: &str) -> Result<Option<u32>, UserError> {
        Ok(users::group_by_name(name)?.map(|group| group.gid))
    }

    fn delete_user(&self, name: &str) -> Result<(), UserError> {
        users::delete_user(name)
    }

    fn delete_group(&self, name: &str) -> Result<(), UserError> {
        users::delete_group(name)
    }

    fn systemctl(&self, arguments: &[&str]) -> Result<(), CommandError> {
        match facts::has_systemd() && installed("systemctl") {
            true => Cmd::new("systemctl").args(arguments).run().map(drop),
            false => Ok(()),
        }
    }

    fn reload(&self, daemon: Daemon) -> Result<(), CommandError> {
        // Their clients come in their own packages. A signal would end one that
        // just starts.
        let (process, client, arguments): (_, _, &[&str]) = match daemon {
            Daemon::NetworkManager => ("NetworkManager", "nmcli", &["general", "reload", "conf"]),
            Daemon::Firewalld => ("firewalld", "firewall-cmd", &["--reload"]),
        };
        if !facts::runs(process) {
            return Ok(());
        }
        Cmd::new(client)
            .args(arguments)
            .describe(format!("have {process} read its configuration"))
            .run()
            .map(drop)
    }

    fn delete_interface(&self, name: &str) -> Result<bool, CommandError> {
        if !Path::new("/sys/class/net").join(name).exists() {
            return Ok(false);
        }
        Cmd::new("ip")
            .args(["link", "delete", "dev", name])
            .run()
            .map(|_| true)
    }

    fn delete_address(&self, interface: &str, address: &str) -> Result<bool, CommandError> {
        let bare = address.split('/').next().and_then(|text| text.parse().ok());
        let there = facts::addresses()
            .iter()
            .any(|own| own.interface == interface && Some(own.address) == bare);
        if !there {
            return Ok(false);
        }
        Cmd::new("ip")
            .args(["address", "del", address, "dev", interface])
            .run()
            .map(|_| true)
    }

    fn mounts(&self) -> std::io::Result<Vec<mounts::Mount>> {
        mounts::list()
    }

    fn unmount(&self, path: &Path, keep: bool) -> std::io::Result<()> {
        mounts::unmount_below(path, keep)
    }

    fn sync(&self, directory: &Path) -> std::io::Result<()> {
        sync(directory)
    }
}
