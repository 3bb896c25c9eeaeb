//! Sessions between the coordinator of an operation and the agents of nodes.
//!
//! In: an [`operation::Executor`] on the agent's side, which [`serve`] offers
//! on a local socket that root alone can open. Out: [`Connection`], which is
//! such an executor on the coordinator's side. Messages are bounded by
//! [`MAX_MESSAGE`]; a sender of another protocol version is refused.

mod client;
mod server;

pub use client::Connection;
pub use server::serve;

/// Version of the protocol. Both sides must speak the same.
pub const PROTOCOL: u32 = 1;

/// Largest message in bytes: a phase with its payload.
pub const MAX_MESSAGE: usize = 16 << 20;

#[expect(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    reason = "generated from agent.proto"
)]
mod proto {
    tonic::include_proto!("gravity.agent.v1");
}

/// Why a session could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No agent listens there.
    #[error("connect to the agent at {socket}")]
    Connect {
        /// The socket.
        socket: std::path::PathBuf,
        /// What the transport said.
        source: tonic::transport::Error,
    },
    /// The socket can't be made.
    #[error("listen at {socket}")]
    Listen {
        /// The socket.
        socket: std::path::PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The session broke.
    #[error("serve the agent's socket")]
    Serve(#[source] tonic::transport::Error),
}
