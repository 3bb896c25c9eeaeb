//! Sessions between the coordinator of an operation and the agents of nodes,
//! between nodes and the [`controller`] of their cluster, between nodes that
//! are [`peer`]s, and between those that have and those that need the cluster's
//! [`images`].
//!
//! In: an [`operation::Executor`] on the agent's side, which [`serve`] offers
//! on a local socket that root alone can open. Out: [`Connection`], which is
//! such an executor on the coordinator's side. Messages are bounded by
//! [`MAX_MESSAGE`]; a sender of another protocol version is refused.

mod client;
mod connections;
pub mod controller;
pub mod images;
pub mod peer;
mod server;

pub use client::Connection;
pub use server::{OpenOperation, serve};

/// Version of the protocol. Both sides must speak the same.
pub const PROTOCOL: u32 = 1;

/// Largest message in bytes: a phase with its payload.
pub const MAX_MESSAGE: usize = 16 << 20;

#[expect(
    unreachable_pub,
    clippy::allow_attributes,
    reason = "generated from the .proto files"
)]
mod proto {
    tonic::include_proto!("gravity.agent.v1");

    pub mod controller {
        tonic::include_proto!("gravity.controller.v1");
    }

    pub mod images {
        tonic::include_proto!("gravity.images.v1");
    }

    pub mod peer {
        tonic::include_proto!("gravity.peer.v1");
    }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use event::{Event, Memory, Sink};
    use operation::{Executor, Phase, PhaseError};

    /// Tells what it does; its payload says how it ends.
    #[derive(Default)]
    struct Told(AtomicUsize);

    #[async_trait::async_trait]
    impl Executor for Told {
        async fn execute(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
            sink.info(&format!("executing {}", phase.id));
            tokio::time::sleep(Duration::from_millis(50)).await;
            self.0.fetch_add(1, Ordering::SeqCst);
            match phase.payload.as_str() {
                Some("lasting") => Err(PhaseError::lasting("no space")),
                _ => Ok(()),
            }
        }

        async fn execute_again(
            &self,
            phase: &Phase,
            sink: Arc<dyn Sink>,
        ) -> Result<(), PhaseError> {
            sink.info(&format!("executing {} again", phase.id));
            Ok(())
        }

        async fn undo(&self, _: &Phase, _: Arc<dyn Sink>) -> Result<(), PhaseError> {
            Err(PhaseError::transient("not now"))
        }
    }

    fn phase(payload: &str) -> Phase {
        Phase {
            id: "/a".into(),
            description: "does a".into(),
            node: None,
            requires: Vec::new(),
            limit_parallel: None,
            payload: payload.into(),
            phases: Vec::new(),
        }
    }

    #[tokio::test]
    async fn phases_run_on_the_other_side_of_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let told = Arc::new(Told::default());
        let executor = told.clone();
        let server = tokio::spawn({
            let socket = socket.clone();
            async move {
                let open = move |_: &str| Ok(executor.clone() as Arc<dyn Executor>);
                super::serve(
                    &socket,
                    Duration::from_secs(60),
                    std::future::pending(),
                    Arc::new(open),
                )
                .await
            }
        });
        let connection = loop {
            match super::Connection::open(&socket, "op").await {
                Ok(connection) => break connection,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let sink = Arc::new(Memory::default());
        connection
            .execute(&phase("well"), sink.clone())
            .await
            .unwrap();
        assert_eq!(
            sink.events(),
            [Event::Info {
                message: "executing /a".into()
            }]
        );
        let failed = connection
            .execute(&phase("lasting"), sink.clone())
            .await
            .unwrap_err();
        assert_eq!(failed, PhaseError::lasting("no space"));
        connection
            .execute_again(&phase("lasting"), sink.clone())
            .await
            .unwrap();
        assert!(
            matches!(sink.events().last(), Some(Event::Info { message }) if message.ends_with("again"))
        );
        let failed = connection.undo(&phase(""), sink.clone()).await.unwrap_err();
        assert_eq!(failed, PhaseError::transient("not now"));

        // A coordinator that goes away does not end its phase.
        let begun = connection.clone();
        let lost = tokio::spawn(async move { begun.execute(&phase("well"), sink).await });
        tokio::time::sleep(Duration::from_millis(10)).await;
        lost.abort();
        connection.shutdown().await;
        server.await.unwrap().unwrap();
        assert_eq!(told.0.load(Ordering::SeqCst), 3);
        assert!(!socket.exists());
    }
}
