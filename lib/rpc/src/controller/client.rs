//! A node's side.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use pki::JoinToken;
use pki::tls::{self, CHANNEL_LABEL, Channel, Identity, SECRET, Trust};
use rustls::pki_types::ServerName;
use spec::{Candidate, ClusterSpec, Membership};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Endpoint;

use super::{CONTROLLER, Error, MAX_MESSAGE, NODE, PROTOCOL, Refusal};
use crate::proto::controller::controller_client::ControllerClient;
use crate::proto::controller::{
    DescribeRequest, JoinRequest, KeysRequest, LeaveRequest, Proof, RegisterRequest, SignRequest,
};

/// How long a connection with its handshake may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);
/// Moving pods away takes as long as they take to end.
const LEAVE: Duration = Duration::from_secs(330);

/// One connection with a controller.
#[derive(Debug)]
pub struct Session {
    client: ControllerClient<tonic::transport::Channel>,
    channel: Channel,
}

impl Session {
    /// Connects to the first of `addresses` that answers.
    ///
    /// # Errors
    /// When none answers, or who answers isn't trusted; that of the last one.
    pub async fn open(
        addresses: &[SocketAddr],
        trust: &Trust,
        identity: Option<&Identity>,
    ) -> Result<Self, Error> {
        let config = tls::client(trust, identity)?;
        let mut last = Error::NoAddress;
        for address in addresses {
            match connect(*address, config.clone()).await {
                Ok(stream) => return Self::begin(stream).await,
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn begin(stream: TlsStream<TcpStream>) -> Result<Self, Error> {
        let broken = |error: &dyn std::error::Error| Error::Broken(error.to_string());
        let channel = stream
            .get_ref()
            .1
            .export_keying_material([0; SECRET], CHANNEL_LABEL, None)
            .map_err(|error| broken(&error))?;
        // A session is one connection: proofs are bound to it.
        let once = Arc::new(Mutex::new(Some(stream)));
        let transport = Endpoint::from_static("http://controller")
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_while_idle(true)
            .connect_with_connector(tower::service_fn(move |_| {
                let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
                let lost = || io::Error::new(io::ErrorKind::ConnectionReset, "connection lost");
                std::future::ready(stream.map(TokioIo::new).ok_or_else(lost))
            }))
            .await
            .map_err(|error| broken(&error))?;
        let client = ControllerClient::new(transport)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Ok(Self { client, channel })
    }

    pub(super) fn proof(&self, token: &JoinToken) -> Proof {
        Proof {
            token_id: token.id.clone(),
            hmac: tls::proof(&token.secret, &self.channel, NODE),
        }
    }

    pub(super) fn demand(&self, token: &JoinToken, hmac: &[u8]) -> Result<(), Error> {
        match tls::is_proof(hmac, &token.secret, &self.channel, CONTROLLER) {
            true => Ok(()),
            false => Err(Error::Unproven),
        }
    }

    /// What the cluster is.
    ///
    /// # Errors
    /// When either side doesn't know the token.
    pub async fn describe(&mut self, token: &JoinToken) -> Result<ClusterSpec, Error> {
        let request = DescribeRequest {
            protocol: PROTOCOL,
            proof: Some(self.proof(token)),
        };
        let reply = answer(ANSWER, self.client.describe(request)).await?;
        self.demand(token, &reply.hmac)?;
        read(&reply.cluster)
    }

    /// Has the node taken in.
    ///
    /// # Errors
    /// When either side doesn't know the token, or the node doesn't fit.
    pub async fn join(
        &mut self,
        token: &JoinToken,
        candidate: &Candidate,
        certificate_request: &str,
    ) -> Result<Membership, Error> {
        let candidate =
            serde_json::to_vec(candidate).map_err(|error| Error::Broken(error.to_string()))?;
        let request = JoinRequest {
            protocol: PROTOCOL,
            proof: Some(self.proof(token)),
            candidate,
            certificate_request: certificate_request.to_owned(),
        };
        let reply = answer(ANSWER, self.client.join(request)).await?;
        self.demand(token, &reply.hmac)?;
        read(&reply.membership)
    }

    /// Has certificates signed; both sides of it by the certificates' names.
    ///
    /// # Errors
    /// When the node is no member or isn't to have one of them.
    pub async fn sign(
        &mut self,
        requests: BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, Error> {
        let request = SignRequest {
            requests: requests.into_iter().collect(),
        };
        let reply = answer(ANSWER, self.client.sign(request)).await?;
        Ok(reply.certificates.into_iter().collect())
    }

    /// The keys that all masters share, by names of files.
    ///
    /// # Errors
    /// When the node is no master.
    pub async fn keys(&mut self) -> Result<BTreeMap<String, String>, Error> {
        let reply = answer(ANSWER, self.client.keys(KeysRequest {})).await?;
        Ok(reply.files.into_iter().collect())
    }

    /// Has the node's object made in Kubernetes, and a master a member of etcd.
    ///
    /// # Errors
    /// When the node is no member or Kubernetes refuses.
    pub async fn register(&mut self) -> Result<(), Error> {
        answer(ANSWER, self.client.register(RegisterRequest {}))
            .await
            .map(drop)
    }

    /// Has the node's pods moved away and the node forgotten.
    ///
    /// # Errors
    /// When that doesn't work.
    pub async fn leave(&mut self, force: bool) -> Result<(), Error> {
        answer(LEAVE, self.client.leave(LeaveRequest { force }))
            .await
            .map(drop)
    }
}

async fn connect(
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
) -> Result<TlsStream<TcpStream>, Error> {
    let failed = |source| Error::Connect { address, source };
    let late = |_| failed(io::ErrorKind::TimedOut.into());
    let socket = timeout(CONNECT, TcpStream::connect(address))
        .await
        .map_err(late)?
        .map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    let name = ServerName::from(address.ip());
    timeout(CONNECT, TlsConnector::from(config).connect(name, socket))
        .await
        .map_err(late)?
        .map_err(|source| match source.kind() {
            // rustls' own errors.
            io::ErrorKind::InvalidData => Error::WrongCluster { address, source },
            _ => failed(source),
        })
}

async fn answer<T>(
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Error> {
    let answered = timeout(limit, call)
        .await
        .map_err(|_| Error::Broken(format!("no answer within {} s", limit.as_secs())))?;
    match answered {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err(match status.code() {
            tonic::Code::FailedPrecondition | tonic::Code::Unauthenticated => {
                Refusal::Refused(status.message().to_owned()).into()
            }
            tonic::Code::ResourceExhausted => Refusal::NotNow(status.message().to_owned()).into(),
            _ => Error::Broken(status.message().to_owned()),
        }),
    }
}

fn read<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(|error| Error::Broken(format!("the answer: {error}")))
}
