//! The container around Kubernetes, its supervisor and its services.
//!
//! In: a [`config::PlanetConfig`]. Out: running services, their state over a
//! local socket.

pub mod config;
