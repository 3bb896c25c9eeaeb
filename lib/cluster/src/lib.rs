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
pub mod hooks;
mod membership;
mod node;
mod node_logs;
mod status;

pub use apply::{documents, is_of_gravity};
pub use client::{Client, Error};
pub use endpoints::{Endpoint, Url};
pub use k8s_openapi::api::core::v1::Taint;
pub use membership::{DESCRIPTION, DESCRIPTION_KEY, Document, StoredToken};
pub use node::taint;
pub use status::{NodeStatus, PodProblem, Status};
