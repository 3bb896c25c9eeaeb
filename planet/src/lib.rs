//! The container around Kubernetes, its supervisor and its services.
//!
//! In: a [`config::PlanetConfig`]. Out: running services, their state over a
//! local socket.
//!
//! [`container::run`] makes the container and stays outside as its daemon;
//! [`supervisor::run`] runs inside; [`client`] asks it; [`enter::exec`] runs a
//! command inside. [`container`] and [`enter`] fork: they are called first
//! thing in a process, before any thread exists.

mod address;
mod cgroup;
pub mod client;
pub mod config;
pub mod container;
mod devices;
pub mod enter;
mod error;
mod files;
pub mod names;
mod netlink;
mod nftables;
pub mod paths;
mod process;
pub mod supervisor;
mod sys;

pub use error::{Error, Result};
