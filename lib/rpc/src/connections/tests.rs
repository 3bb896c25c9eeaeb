use std::time::Instant;

use pki::{Authority, Leaf};
use tokio::io::AsyncReadExt;
use tokio_stream::StreamExt;

use super::door::PROOFS;
use super::*;

const SOON: Duration = Duration::from_millis(300);

struct Listening {
    address: SocketAddr,
    accepted: ReceiverStream<io::Result<Connection>>,
    trust: Trust,
}

impl Listening {
    /// Also returns the identity of a member.
    async fn start() -> (Self, Identity) {
        let hour = Duration::from_secs(3600);
        let authority = Authority::generate("rpc", hour).unwrap();
        let leaf = Leaf {
            server: true,
            ip_addresses: vec!["127.0.0.1".parse().unwrap()],
            ..Leaf::client("one", &[], hour)
        };
        let issued = authority.issue(&leaf).unwrap();
        let identity = Identity {
            certificate_pem: issued.certificate_pem,
            key_pem: issued.key_pem,
        };
        let pem = authority.certificate_pem();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listening = Self {
            address: listener.local_addr().unwrap(),
            accepted: accepted(listener, tls::server(&identity, pem).unwrap(), SOON),
            trust: Trust::Authority(pem.into()),
        };
        (listening, identity)
    }

    /// Both ends of a new connection.
    async fn open(
        &mut self,
        identity: Option<&Identity>,
    ) -> (client::TlsStream<TcpStream>, Connection) {
        let config = tls::client(&self.trust, identity).unwrap();
        let client = connect(self.address, None, config).await.unwrap();
        (client, self.accepted.next().await.unwrap().unwrap())
    }
}

fn token() -> JoinToken {
    JoinToken::parse("a-token-that-was-chosen").unwrap()
}

#[tokio::test]
async fn who_does_not_show_who_it_is_is_ended_and_who_does_stays() {
    let (mut listening, identity) = Listening::start().await;
    let (stranger, mut unknown) = listening.open(None).await;
    let (member, mut known) = listening.open(Some(&identity)).await;
    let (node, mut proven) = listening.open(None).await;
    let token = token();
    let hmac = tls::proof(&token.secret, &proven.caller.channel, NODE);
    let caller = proven.caller.clone();
    caller.prove(&[token], "", &hmac).await.unwrap();

    let ended = unknown.read_u8().await.unwrap_err();
    assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    for stays in [&mut known, &mut proven] {
        timeout(SOON * 2, stays.read_u8()).await.unwrap_err();
    }
    drop((stranger, member, node));
}

#[tokio::test]
async fn wrong_proofs_of_an_address_count_though_calls_and_connection_end() {
    let (mut listening, _) = Listening::start().await;
    let token = token();
    let tokens = [token.clone()];
    let (client, guessing) = listening.open(None).await;
    let begin = Instant::now();
    for _ in 0..PROOFS {
        let guess = guessing.caller.prove(&tokens, "", b"a guess");
        let ended = timeout(Duration::from_millis(1), guess).await;
        assert!(ended.is_err(), "a wrong proof was answered at once");
    }
    drop((client, guessing));

    let (_client, honest) = listening.open(None).await;
    let hmac = tls::proof(&token.secret, &honest.caller.channel, NODE);
    honest.caller.prove(&tokens, "", &hmac).await.unwrap();
    assert!(begin.elapsed() >= PAUSE, "{:?}", begin.elapsed());
}
