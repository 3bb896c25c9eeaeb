//! The registry of checks, in the order in which a person reads them.

mod address;
mod architecture;
mod capabilities;
mod cgroups;
mod clock;
mod conflicts;
mod cpu;
mod custom;
mod devices;
mod disk_latency;
mod disk_rate;
mod dns;
mod entry_types;
mod firewall;
mod forwarding;
mod hostname;
mod inodes;
mod kernel;
mod kernel_config;
mod kernel_modules;
mod leftovers;
mod limits;
pub(crate) mod links;
mod localhost;
mod machine_id;
mod mount_options;
mod network_rate;
mod networks;
mod os;
mod overlay;
mod peer;
mod peer_clock;
mod peer_identity;
mod peer_mtu;
pub(crate) mod peer_ports;
mod permissions;
pub(crate) mod ports;
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
mod wildcard_dns;

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
    &disk_rate::CHECK,
    &disk_latency::CHECK,
    &hostname::CHECK,
    &machine_id::CHECK,
    &clock::CHECK,
    &service_user::CHECK,
    &programs::CHECK,
    &links::CHECK,
    &address::CHECK,
    &route::CHECK,
    &networks::CHECK,
    &localhost::CHECK,
    &dns::CHECK,
    &wildcard_dns::CHECK,
    &proxy::CHECK,
    &firewall::CHECK,
    &forwarding::CHECK,
    &peer::CHECK,
    &peer_identity::CHECK,
    &peer_clock::CHECK,
    &peer_ports::CHECK,
    &peer_mtu::CHECK,
    &network_rate::CHECK,
    &ports::CHECK,
    &conflicts::CHECK,
    &leftovers::CHECK,
    &custom::CHECK,
];
