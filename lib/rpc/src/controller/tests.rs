use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use event::{Discard, Sink};
use pki::tls::{Identity, Trust};
use pki::{Authority, Leaf};
use tokio::net::{TcpListener, TcpStream};
use tonic::codegen::{Bytes, http};
use tower::ServiceExt;

use super::*;
use crate::proto::controller::DescribeRequest;
use crate::proto::controller::controller_client::ControllerClient;

const HOUR: Duration = Duration::from_secs(3600);

fn leaf(name: &str) -> Leaf {
    Leaf {
        server: true,
        ip_addresses: vec!["127.0.0.1".parse().unwrap()],
        ..Leaf::client(name, &[], HOUR)
    }
}

/// A cluster that takes everybody in and tells what it was asked.
struct Fake {
    authority: Authority,
    tokens: Vec<JoinToken>,
    asked: Mutex<Vec<String>>,
}

impl Fake {
    fn note(&self, text: String) {
        self.asked.lock().unwrap().push(text);
    }
}

const ID: Uuid = Uuid::from_u128(7);

#[async_trait::async_trait]
impl Tokens for Fake {
    async fn tokens(&self) -> Result<Vec<JoinToken>, Refusal> {
        Ok(self.tokens.clone())
    }
}

#[async_trait::async_trait]
impl Controller for Fake {
    async fn describe(&self) -> Result<ClusterSpec, Refusal> {
        Ok(spec::sample::cluster())
    }
    async fn fits(&self, candidate: Candidate) -> Result<(), Refusal> {
        match candidate.hostname.as_str() {
            "node-2" => Ok(()),
            other => Err(Refusal::Refused(format!("no room for {other}"))),
        }
    }
    async fn join(&self, candidate: Candidate, request: &str) -> Result<Membership, Refusal> {
        self.note(format!("join {}", candidate.hostname));
        let certificate = self
            .authority
            .sign(request, &leaf(&member_name(ID)))
            .unwrap();
        Ok(Membership {
            cluster: spec::sample::cluster(),
            node: ID,
            certificate,
            authorities: BTreeMap::new(),
        })
    }
    async fn admit(&self, request: &str, address: IpAddr) -> Result<Admission, Refusal> {
        assert!(address.is_loopback());
        let certificate = self.authority.sign(request, &leaf(crate::images::ADMITTED));
        Ok(Admission {
            certificate: certificate.unwrap(),
            authority: self.authority.certificate_pem().into(),
        })
    }
    fn fetching(&self, address: IpAddr) -> Vec<IpAddr> {
        assert!(address.is_loopback());
        vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()]
    }
    async fn sign(
        &self,
        node: Uuid,
        requests: BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, Refusal> {
        self.note(format!("sign {node} {}", requests.len()));
        Ok(requests)
    }
    async fn keys(&self, node: Uuid) -> Result<BTreeMap<String, String>, Refusal> {
        self.note(format!("keys {node}"));
        Ok(BTreeMap::new())
    }
    async fn register(&self, _: Uuid, _: Uuid, _: Arc<dyn Sink>) -> Result<(), Refusal> {
        Err(Refusal::NotNow("later".into()))
    }
    async fn added(&self, node: Uuid, id: Uuid, sink: Arc<dyn Sink>) -> Result<(), Refusal> {
        sink.info(&format!("{node} works in {id}"));
        Ok(())
    }
    async fn leave(&self, node: Uuid, force: bool, _: Arc<dyn Sink>) -> Result<(), Refusal> {
        self.note(format!("leave {node} {force}"));
        Ok(())
    }
}

struct Served {
    fake: Arc<Fake>,
    address: std::net::SocketAddr,
    task: tokio::task::JoinHandle<Result<(), crate::Error>>,
}

async fn start() -> Served {
    let authority = Authority::generate("rpc", HOUR).unwrap();
    let print = pki::tls::fingerprint(authority.certificate_pem()).unwrap();
    let issued = authority.issue(&leaf("controller")).unwrap();
    let identity = Identity {
        certificate_pem: issued.certificate_pem + authority.certificate_pem(),
        key_pem: issued.key_pem,
    };
    let tls = pki::tls::server(&identity, authority.certificate_pem()).unwrap();
    let fake = Arc::new(Fake {
        authority,
        tokens: vec![
            JoinToken::generate(print).unwrap(),
            JoinToken::parse("a-token-that-was-chosen").unwrap(),
        ],
        asked: Mutex::default(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(serve(
        listener,
        tls,
        fake.clone(),
        crate::peer::Here::of(&host::facts::HostFacts::default()),
        Arc::new(crate::images::tests::NoImage),
        std::future::pending(),
    ));
    Served {
        fake,
        address,
        task,
    }
}

fn trust(token: &JoinToken) -> Trust {
    token.fingerprint.map_or(Trust::Proof, Trust::Fingerprint)
}

fn candidate() -> Candidate {
    Candidate {
        hostname: "node-2".into(),
        advertise_addresses: Vec::new(),
        profile: String::new(),
        role: None,
        labels: BTreeMap::new(),
        taints: Vec::new(),
        state_dir: "/var/lib/gravity".into(),
        image: "sha256:0".into(),
        machine: String::new(),
        most: None,
    }
}

#[tokio::test]
async fn a_node_joins_by_either_kind_of_token_and_then_has_an_identity() {
    let served = start().await;
    for token in &served.fake.tokens {
        let mut session = Session::open(&[served.address], &trust(token), None)
            .await
            .unwrap();
        assert_eq!(
            session.describe(token).await.unwrap(),
            spec::sample::cluster()
        );
        session.fits(token, &candidate()).await.unwrap();
        let other = Candidate {
            hostname: "node-3".into(),
            ..candidate()
        };
        let refused = session.fits(token, &other).await.unwrap_err();
        assert!(refused.to_string().contains("no room for node-3"));
        let request = pki::request().unwrap();
        let membership = session
            .join(token, &candidate(), &request.request_pem)
            .await
            .unwrap();
        // Without a certificate it is nobody yet.
        let refused = session.leave(false, &Discard).await.unwrap_err();
        assert!(matches!(refused, Error::Refused(_)), "{refused}");

        let identity = Identity {
            certificate_pem: membership.certificate,
            key_pem: request.key_pem,
        };
        let authority = Trust::Authority(served.fake.authority.certificate_pem().into());
        let mut session = Session::open(&[served.address], &authority, Some(&identity))
            .await
            .unwrap();
        let requests = BTreeMap::from([("kubelet".to_owned(), "pem".to_owned())]);
        assert_eq!(session.sign(requests.clone()).await.unwrap(), requests);
        let told = event::Memory::default();
        session.added(&ID.to_string(), &told).await.unwrap();
        let message = format!("{ID} works in {ID}");
        assert_eq!(told.events(), [event::Event::Info { message }]);
        let wrong = session.added("../x", &Discard).await.unwrap_err();
        assert!(matches!(wrong, Error::Refused(_)), "{wrong}");
        let later = session
            .register(&ID.to_string(), &Discard)
            .await
            .unwrap_err();
        assert!(
            matches!(later, Error::Refused(Refusal::NotNow(_))),
            "{later}"
        );
        session.leave(true, &Discard).await.unwrap();
    }
    let once = [
        "join node-2",
        &format!("sign {ID} 1"),
        &format!("leave {ID} true"),
    ];
    assert_eq!(*served.fake.asked.lock().unwrap(), [once, once].concat());
    served.task.abort();
}

#[tokio::test]
async fn who_is_admitted_is_asked_for_nothing_but_the_image() {
    let served = start().await;
    let token = &served.fake.tokens[0];
    let mut session = Session::open(&[served.address], &trust(token), None)
        .await
        .unwrap();
    let request = pki::request().unwrap();
    let admitted = session.admit(token, &request.request_pem).await.unwrap();
    let unknown = JoinToken::parse("a-token-that-is-wrong").unwrap();
    session.admit(&unknown, "not looked at").await.unwrap_err();
    // A token alone is not enough.
    session.fetching().await.unwrap_err();
    let identity = Identity {
        certificate_pem: admitted.certificate,
        key_pem: request.key_pem,
    };
    let trust = Trust::Authority(admitted.authority);
    let mut images = crate::images::Session::open(served.address, &trust, &identity)
        .await
        .unwrap();
    // It got as far as that there is none.
    let none = images.end(1).await.unwrap_err();
    assert!(matches!(none, Error::Refused(Refusal::NotNow(_))), "{none}");
    let mut session = Session::open(&[served.address], &trust, Some(&identity))
        .await
        .unwrap();
    let others = session.fetching().await.unwrap();
    assert_eq!(others.len(), 2, "{others:?}");
    assert!(session.local().is_loopback());
    let refused = session.keys().await.unwrap_err();
    assert!(refused.to_string().contains("for nodes of the cluster"));
    assert!(served.fake.asked.lock().unwrap().is_empty());
    served.task.abort();
}

#[tokio::test]
async fn wrong_tokens_are_refused_and_nothing_is_done() {
    let served = start().await;
    let ours = &served.fake.tokens[0];
    let other_secret = JoinToken {
        secret: "0".repeat(32),
        ..ours.clone()
    };
    let unknown = JoinToken {
        id: "00000000".into(),
        ..ours.clone()
    };
    for token in [
        other_secret,
        unknown,
        JoinToken::parse("a-token-that-is-wrong").unwrap(),
    ] {
        let mut session = Session::open(&[served.address], &trust(&token), None)
            .await
            .unwrap();
        let error = session
            .join(&token, &candidate(), "not looked at")
            .await
            .unwrap_err();
        assert!(error.to_string().contains("token is wrong"), "{error}");
    }
    // A token of another cluster: we do not even speak.
    let foreign = JoinToken::generate([1; 32]).unwrap();
    let error = Session::open(&[served.address], &trust(&foreign), None)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::WrongCluster { .. }), "{error}");
    assert!(served.fake.asked.lock().unwrap().is_empty());
    served.task.abort();
}

#[tokio::test]
async fn a_server_that_does_not_know_the_token_is_not_believed() {
    // It has taken the place of the cluster and accepts every proof.
    let served = start().await;
    let token = JoinToken::parse("a-token-that-was-chosen").unwrap();
    let mut session = Session::open(&[served.address], &Trust::Proof, None)
        .await
        .unwrap();
    let hmac = pki::tls::proof("guessed-token", &[0; 32], crate::connections::CONTROLLER);
    assert!(matches!(
        session.connection.demand(&token, &hmac),
        Err(Error::Unproven)
    ));
    // A proof of our own, sent back, is none either.
    let mirrored = session.proof(&token).hmac;
    assert!(matches!(
        session.connection.demand(&token, &mirrored),
        Err(Error::Unproven)
    ));
    session.describe(&token).await.unwrap();
    served.task.abort();
}

#[tokio::test]
async fn garbage_and_half_open_connections_disturb_nobody() {
    let served = start().await;
    let mut open = Vec::new();
    for index in 0..100_u8 {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        if index % 2 == 0 {
            tokio::io::AsyncWriteExt::write_all(&mut stream, &[index; 512])
                .await
                .unwrap();
        }
        open.push(stream);
    }
    let token = &served.fake.tokens[0];
    let mut session = Session::open(&[served.address], &trust(token), None)
        .await
        .unwrap();
    session.describe(token).await.unwrap();
    drop(open);
    served.task.abort();
}

#[tokio::test]
async fn hundreds_of_half_open_connections_of_one_address_leave_room_for_others() {
    let served = start().await;
    let mut open = Vec::new();
    for _ in 0..300 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        open.push(socket.connect(served.address).await.unwrap());
    }
    let token = &served.fake.tokens[0];
    let request = pki::request().unwrap();
    let joined = async {
        let mut session = Session::open(&[served.address], &trust(token), None)
            .await
            .unwrap();
        let candidate = candidate();
        let joined = session.join(token, &candidate, &request.request_pem);
        joined.await.unwrap()
    };
    // Sooner than any of the others is ended.
    let limit = Duration::from_secs(5);
    tokio::time::timeout(limit, joined).await.unwrap();
    drop(open);
    served.task.abort();
}

/// Says that it is one message of a gigabyte, and sends that.
struct Gigabyte {
    said: bool,
    sent: Arc<AtomicUsize>,
}

const GIGABYTE: usize = 1 << 30;

impl http_body::Body for Gigabyte {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        let data = match self.said {
            true => vec![0; 1 << 16],
            false => [&[0][..], &(GIGABYTE as u32).to_be_bytes()[..]].concat(),
        };
        self.said = true;
        let sent = self.sent.fetch_add(data.len(), Ordering::SeqCst);
        let frame = (sent < GIGABYTE).then(|| http_body::Frame::data(Bytes::from(data)));
        Poll::Ready(frame.map(Ok))
    }
}

#[tokio::test]
async fn a_message_of_a_gigabyte_is_refused_by_its_length_and_not_taken() {
    let served = start().await;
    let token = &served.fake.tokens[0];
    let session = Session::open(&[served.address], &trust(token), None)
        .await
        .unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let body = Gigabyte {
        said: false,
        sent: sent.clone(),
    };
    let request =
        http::Request::post("http://controller/gravity.controller.v1.Controller/Describe")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(tonic::body::Body::new(body))
            .unwrap();
    let answered = session.connection.transport.clone().oneshot(request).await;
    let answered = answered.unwrap();
    let out_of_range = (tonic::Code::OutOfRange as i32).to_string();
    assert_eq!(answered.headers()["grpc-status"], out_of_range.as_str());
    // What may be under way, and no more.
    let sent = sent.load(Ordering::SeqCst);
    assert!(sent < 2 * MAX_MESSAGE, "{sent} bytes were taken");
    served.task.abort();
}

/// Somebody between node and cluster: has a certificate of its own, and gives on
/// all that either side says.
async fn in_between(cluster: std::net::SocketAddr) -> std::net::SocketAddr {
    let authority = Authority::generate("rpc", HOUR).unwrap();
    let issued = authority.issue(&leaf("controller")).unwrap();
    let identity = Identity {
        certificate_pem: issued.certificate_pem + authority.certificate_pem(),
        key_pem: issued.key_pem,
    };
    let tls = pki::tls::server(&identity, authority.certificate_pem()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let connector = pki::tls::client(&Trust::Proof, None).unwrap();
    let connector = tokio_rustls::TlsConnector::from(connector);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            // Who looks at the certificate goes away.
            let Ok(mut node) = acceptor.accept(socket).await else {
                continue;
            };
            let socket = TcpStream::connect(cluster).await.unwrap();
            let name = rustls::pki_types::ServerName::from(cluster.ip());
            let mut other = connector.connect(name, socket).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut node, &mut other).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn somebody_in_between_gains_nothing_with_either_kind_of_token() {
    let served = start().await;
    let between = in_between(served.address).await;
    let [ours, chosen] = &served.fake.tokens[..] else {
        panic!("it has two tokens")
    };
    let error = Session::open(&[between], &trust(ours), None).await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::WrongCluster { .. }), "{error}");

    let mut session = Session::open(&[between], &trust(chosen), None)
        .await
        .unwrap();
    let request = pki::request().unwrap();
    for error in [
        session.describe(chosen).await.unwrap_err(),
        session
            .join(chosen, &candidate(), &request.request_pem)
            .await
            .unwrap_err(),
        session
            .admit(chosen, &request.request_pem)
            .await
            .unwrap_err(),
    ] {
        assert!(error.to_string().contains("token is wrong"), "{error}");
    }
    assert!(served.fake.asked.lock().unwrap().is_empty());
    served.task.abort();
}

#[tokio::test]
async fn a_proof_is_good_on_its_own_connection_only() {
    let served = start().await;
    for token in &served.fake.tokens {
        let open = || async {
            Session::open(&[served.address], &trust(token), None)
                .await
                .unwrap()
        };
        let (first, second) = (open().await, open().await);
        let describe = async |on: &Session, proof| {
            let mut client = ControllerClient::new(on.connection.transport.clone());
            client
                .describe(DescribeRequest {
                    protocol: PROTOCOL,
                    proof: Some(proof),
                })
                .await
        };
        let seen = first.proof(token);
        describe(&first, seen.clone()).await.unwrap();
        let refused = describe(&second, seen).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
        describe(&second, second.proof(token)).await.unwrap();
    }
    served.task.abort();
}
