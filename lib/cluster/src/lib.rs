//! Everything that speaks Kubernetes.
//!
//! In: a kubeconfig, objects, hooks. Out: a [`Client`] that applies, waits and
//! asks, with transient failures retried until a deadline; [`hooks`] run as
//! Jobs. Every wait is a watch where the API has one, and every wait ends.

mod apply;
mod client;
mod delete;
mod drain;
mod endpoints;
mod history;
pub mod hooks;
mod membership;
mod node;
mod node_logs;
mod status;

pub use apply::{documents, is_of_gravity};
pub use client::{Client, Error};
pub use endpoints::Endpoint;
pub use history::Kept;
pub use membership::{DESCRIPTION, DESCRIPTION_KEY, Description, StoredToken};
pub use node::taint;
pub use status::{NodeStatus, PodProblem, Status};
