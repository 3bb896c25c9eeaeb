//! The registry of checks, in the order in which a person reads them.

mod address;
mod architecture;
mod capabilities;
mod cgroups;
mod clock;
mod conflicts;
mod cpu;
mod devices;
mod dns;
mod entry_types;
mod firewall;
mod hostname;
mod inodes;
mod kernel;
mod kernel_config;
mod kernel_modules;
mod leftovers;
mod limits;
mod localhost;
mod machine_id;
mod mount_options;
mod networks;
mod os;
mod overlay;
mod permissions;
mod ports;
mod programs;
mod proxy;
mod ram;
mod root;
mod route;
mod security;
mod service_user;
mod space;
mod swap;
mod symlink;
mod sysctls;
mod temp_dir;
mod volumes;

use crate::Check;

/// All checks.
pub(crate) const ALL: &[&Check] = &[
    &root::CHECK,
    &os::CHECK,
    &architecture::CHECK,
    &kernel::CHECK,
    &kernel_config::CHECK,
    &kernel_modules::CHECK,
    &sysctls::CHECK,
    &cgroups::CHECK,
    &capabilities::CHECK,
    &limits::CHECK,
    &security::CHECK,
    &cpu::CHECK,
    &ram::CHECK,
    &swap::CHECK,
    &symlink::CHECK,
    &permissions::CHECK,
    &mount_options::CHECK,
    &overlay::CHECK,
    &entry_types::CHECK,
    &space::CHECK,
    &inodes::CHECK,
    &temp_dir::CHECK,
    &volumes::CHECK,
    &devices::CHECK,
    &hostname::CHECK,
    &machine_id::CHECK,
    &clock::CHECK,
    &service_user::CHECK,
    &programs::CHECK,
    &address::CHECK,
    &route::CHECK,
    &networks::CHECK,
    &localhost::CHECK,
    &dns::CHECK,
    &proxy::CHECK,
    &firewall::CHECK,
    &ports::CHECK,
    &conflicts::CHECK,
    &leftovers::CHECK,
];
