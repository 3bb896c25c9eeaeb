//! What an operation on a cluster consists of.
//!
//! In: options of the user, the cluster image, facts of the host. Out: a
//! [`spec::ClusterSpec`], an [`operation::Plan`] whose payloads are
//! [`spec::phase::PhaseSpec`], and a coordinator that has agents execute it.
//! Making specs, plans and configurations is pure: [`install`], [`join`],
//! [`recover`], [`services`], [`settings`], `secrets`, `planet_config` and `addons`.
//! The rest acts, on the machine, on other nodes or on the cluster.

mod addons;
pub mod attach;
pub mod controller;
pub mod coordinator;
pub mod etcd;
pub mod fetch;
pub mod history;
pub mod hooks;
pub mod images;
pub mod install;
pub mod join;
pub mod masters;
mod planet_config;
pub mod recover;
mod secrets;
pub mod services;
pub mod settings;

pub use planet_config::SYSCTLS;

/// URL of the Kubernetes API on every node.
pub(crate) fn api_url() -> String {
    format!("https://{}:{}", spec::LEADER_ADDRESS, spec::API_PORT)
}

/// URL of the API server on a master itself.
pub(crate) fn local_api_url(address: std::net::IpAddr) -> String {
    let server = std::net::SocketAddr::new(address, spec::API_PORT);
    format!("https://{server}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn urls_hold_addresses_of_both_families() {
        let url = |address: &str| super::local_api_url(address.parse().unwrap());
        assert_eq!(url("10.0.0.1"), "https://10.0.0.1:6443");
        assert_eq!(url("fd00::1"), "https://[fd00::1]:6443");
    }
}
