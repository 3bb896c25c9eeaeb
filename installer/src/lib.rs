//! What an operation on a cluster consists of.
//!
//! In: options of the user, the cluster image, facts of the host. Out: a
//! [`spec::ClusterSpec`], an [`operation::Plan`] whose payloads are
//! [`spec::phase::PhaseSpec`], and a coordinator that has agents execute it.
//! Making specs, plans and configurations is pure; only [`coordinator`] touches
//! the machine.

mod addons;
pub mod coordinator;
pub mod install;
pub mod network;
mod planet_config;
mod secrets;
pub mod services;

/// URL of the Kubernetes API on every node.
pub(crate) fn api_url() -> String {
    format!("https://{}:{}", spec::LEADER_ADDRESS, spec::API_PORT)
}
