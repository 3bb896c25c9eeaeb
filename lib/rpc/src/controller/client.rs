//! A node's side.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use event::{Event, Sink};
use pki::JoinToken;
use pki::tls::{Identity, Trust};
use spec::{Candidate, ClusterSpec, Membership};

use super::{Admission, Error, MAX_MESSAGE, PROTOCOL, Refusal};
use crate::connections::{Opened, answer, read};
use crate::proto::controller::controller_client::ControllerClient;
use crate::proto::controller::{
    AddedRequest, AdmitRequest, DescribeRequest, FetchingRequest, FitsRequest, JoinRequest,
    KeysRequest, LeaveRequest, Progress, Proof, Refused, RegisterRequest, SignRequest, progress,
};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);

/// One connection with a controller.
#[derive(Debug)]
pub struct Session {
    client: ControllerClient<tonic::transport::Channel>,
    pub(super) connection: Opened,
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
        let connection = Opened::first(addresses, None, trust, identity).await?;
        let client = ControllerClient::new(connection.transport.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Ok(Self { client, connection })
    }

    /// The address of this node that the controller sees.
    pub fn local(&self) -> IpAddr {
        self.connection.local.ip()
    }

    pub(super) fn proof(&self, token: &JoinToken) -> Proof {
        Proof {
            token_id: token.id.clone(),
            hmac: self.connection.proof(token),
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
        self.connection.demand(token, &reply.hmac)?;
        read(&reply.cluster)
    }

    /// Asks whether the node would be taken in.
    ///
    /// # Errors
    /// When either side doesn't know the token, or the node doesn't fit.
    pub async fn fits(&mut self, token: &JoinToken, candidate: &Candidate) -> Result<(), Error> {
        let request = FitsRequest {
            protocol: PROTOCOL,
            proof: Some(self.proof(token)),
            candidate: written(candidate)?,
        };
        let reply = answer(ANSWER, self.client.fits(request)).await?;
        self.connection.demand(token, &reply.hmac)
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
        let request = JoinRequest {
            protocol: PROTOCOL,
            proof: Some(self.proof(token)),
            candidate: written(candidate)?,
            certificate_request: certificate_request.to_owned(),
        };
        let reply = answer(ANSWER, self.client.join(request)).await?;
        self.connection.demand(token, &reply.hmac)?;
        read(&reply.membership)
    }

    /// Has the node admitted to the cluster's image.
    ///
    /// # Errors
    /// When either side doesn't know the token.
    pub async fn admit(
        &mut self,
        token: &JoinToken,
        certificate_request: &str,
    ) -> Result<Admission, Error> {
        let request = AdmitRequest {
            protocol: PROTOCOL,
            proof: Some(self.proof(token)),
            certificate_request: certificate_request.to_owned(),
        };
        let reply = answer(ANSWER, self.client.admit(request)).await?;
        self.connection.demand(token, &reply.hmac)?;
        Ok(Admission {
            certificate: reply.certificate,
            authority: reply.authority,
        })
    }

    /// The others that get the cluster's image just now, for a node that was
    /// admitted to it; it counts as one of them for some seconds.
    ///
    /// # Errors
    /// When it was not admitted or the session breaks.
    pub async fn fetching(&mut self) -> Result<Vec<IpAddr>, Error> {
        let reply = answer(ANSWER, self.client.fetching(FetchingRequest {})).await?;
        let wrong = |_| Error::Broken("it tells of an address that is none".into());
        let addresses = reply.addresses.iter().map(|text| text.parse());
        addresses.collect::<Result<_, _>>().map_err(wrong)
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

    /// Has the node's object made in Kubernetes, and a master a member of etcd, in
    /// the operation by which it joins.
    ///
    /// # Errors
    /// When the node is no member, a hook fails, or Kubernetes refuses.
    pub async fn register(&mut self, operation: &str, sink: &dyn Sink) -> Result<(), Error> {
        let operation = operation.to_owned();
        let request = RegisterRequest { operation };
        follow(answer(ANSWER, self.client.register(request)).await?, sink).await
    }

    /// Tells that the node works.
    ///
    /// # Errors
    /// When the node is no member or a hook fails.
    pub async fn added(&mut self, operation: &str, sink: &dyn Sink) -> Result<(), Error> {
        let operation = operation.to_owned();
        let request = AddedRequest { operation };
        follow(answer(ANSWER, self.client.added(request)).await?, sink).await
    }

    /// Has the node's pods moved away and the node forgotten.
    ///
    /// # Errors
    /// When that doesn't work.
    pub async fn leave(&mut self, force: bool, sink: &dyn Sink) -> Result<(), Error> {
        let request = LeaveRequest { force };
        follow(answer(ANSWER, self.client.leave(request)).await?, sink).await
    }
}

fn written(candidate: &Candidate) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(candidate).map_err(|error| Error::Broken(error.to_string()))
}

/// Tells what happens until the end. A controller that hangs is noticed by the
/// connection; a hook has its own deadline.
async fn follow(mut told: tonic::Streaming<Progress>, sink: &dyn Sink) -> Result<(), Error> {
    let broken = |status: tonic::Status| Error::Broken(status.message().to_owned());
    while let Some(told) = told.message().await.map_err(broken)? {
        match told.progress {
            Some(progress::Progress::Event(json)) => {
                sink.emit(serde_json::from_slice(&json).unwrap_or(Event::Unknown));
            }
            Some(progress::Progress::Done(_)) => return Ok(()),
            Some(progress::Progress::Refused(Refused { message, not_now })) => {
                return Err(Error::Refused(match not_now {
                    true => Refusal::NotNow(message),
                    false => Refusal::Refused(message),
                }));
            }
            None => {}
        }
    }
    Err(Error::Broken("it ended before it was done".into()))
}
