//! Nodes that get the image at the same time.
//!
//! In: the admission of this node to the image. Out: the others as sources, and
//! what has come here for them. Controllers tell who they are; where that fails,
//! or nobody can reach this node, the image comes from those that have it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use image::Partial;
use pki::tls::{Identity, Trust};
use rpc::controller::{Admission, Session};
use rpc::peer::Known;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::{Remote, Source};
use crate::images::Coming;

/// How often it is asked who they are: sooner than one counts as gone.
const ASK: Duration = Duration::from_secs(3);

/// What it takes to give and take parts of the image.
#[derive(Debug, Clone)]
pub struct Neighbours {
    controllers: Vec<SocketAddr>,
    authority: String,
    identity: Identity,
    /// Where the others reach this node.
    local: IpAddr,
}

impl Neighbours {
    /// What a node may do that was admitted with the key `key_pem`, by one of the
    /// `controllers`, who sees it at `local`.
    pub fn new(
        controllers: Vec<SocketAddr>,
        admission: Admission,
        key_pem: String,
        local: IpAddr,
    ) -> Self {
        let certificate_pem = admission.certificate;
        Self {
            controllers,
            authority: admission.authority,
            identity: Identity {
                certificate_pem,
                key_pem,
            },
            local,
        }
    }

    /// By what this node and those of the cluster know each other.
    pub fn known(&self) -> Known<'_> {
        Known::Certificate {
            authority: &self.authority,
            identity: &self.identity,
        }
    }

    /// The node at `address` as a source.
    pub fn source(&self, address: SocketAddr) -> Arc<dyn Source> {
        let trust = Trust::Authority(self.authority.clone());
        Arc::new(Remote::new(address, trust, self.identity.clone()))
    }

    /// Gives others what comes, and tells of others that are not `known`, for ever.
    pub async fn meet(
        &self,
        partial: &Arc<Partial>,
        known: &[SocketAddr],
        found: mpsc::Sender<Arc<dyn Source>>,
    ) -> Infallible {
        let (_, never) = tokio::join!(self.give(partial), self.find(known, found));
        never
    }

    async fn give(&self, partial: &Arc<Partial>) {
        let address = SocketAddr::new(self.local, spec::CONTROLLER_PORT);
        let served = async {
            let tls = pki::tls::server(&self.identity, &self.authority)?;
            let listener = TcpListener::bind(address).await?;
            let images = Arc::new(Coming::new(partial));
            rpc::images::serve(listener, tls, images, None, std::future::pending()).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        };
        // It gets the image all the same.
        if let Err(error) = served.await {
            tracing::warn!(%address, %error, "can't give what has come to other nodes");
        }
    }

    async fn find(&self, known: &[SocketAddr], found: mpsc::Sender<Arc<dyn Source>>) -> Infallible {
        let mut met: BTreeSet<_> = known.iter().map(SocketAddr::ip).collect();
        met.insert(self.local);
        loop {
            match self.ask().await {
                Ok(others) => {
                    for other in others {
                        let address = SocketAddr::new(other, spec::CONTROLLER_PORT);
                        if met.insert(other) {
                            // Nobody listens once all is there.
                            drop(found.send(self.source(address)).await);
                        }
                    }
                }
                Err(error) => tracing::debug!(%error, "can't ask who else gets the image"),
            }
            tokio::time::sleep(ASK).await;
        }
    }

    /// Asks once, by a session of its own: those of many nodes would keep others out.
    async fn ask(&self) -> Result<Vec<IpAddr>, rpc::controller::Error> {
        let trust = Trust::Authority(self.authority.clone());
        let opened = Session::open(&self.controllers, &trust, Some(&self.identity));
        opened.await?.fetching().await
    }
}
