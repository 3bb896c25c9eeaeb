use pki::{Authority, Leaf};
use tokio::io::AsyncReadExt;
use tokio_stream::StreamExt;

use super::*;

const SOON: Duration = Duration::from_millis(300);

#[tokio::test]
async fn who_does_not_show_who_it_is_is_ended_and_who_does_stays() {
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
    let address = listener.local_addr().unwrap();
    let mut accepted = accepted(listener, tls::server(&identity, pem).unwrap(), SOON);
    let trust = Trust::Authority(pem.into());
    let mut opened = async |identity: Option<&Identity>| {
        let config = tls::client(&trust, identity).unwrap();
        let client = connect(address, None, config).await.unwrap();
        (client, accepted.next().await.unwrap().unwrap())
    };
    let (stranger, mut unknown) = opened(None).await;
    let (member, mut known) = opened(Some(&identity)).await;
    let (node, mut proven) = opened(None).await;
    let token = JoinToken::parse("chosen-token").unwrap();
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
