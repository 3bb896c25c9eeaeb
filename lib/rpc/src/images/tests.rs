use std::sync::Arc;
use std::time::Duration;

use pki::tls::{self, Identity, Trust};
use pki::{Authority, Leaf};
use tokio::net::TcpListener;

use super::*;
use crate::controller::{Error, member_name};

const HOUR: Duration = Duration::from_secs(3600);

fn identity(authority: &Authority, name: &str) -> Identity {
    let leaf = Leaf {
        server: true,
        ip_addresses: vec!["127.0.0.1".parse().unwrap()],
        ..Leaf::client(name, &[], HOUR)
    };
    let issued = authority.issue(&leaf).unwrap();
    Identity {
        certificate_pem: issued.certificate_pem,
        key_pem: issued.key_pem,
    }
}

/// Has no image.
pub(crate) struct NoImage;

impl Images for NoImage {
    fn end(&self) -> Result<Vec<u8>, Refusal> {
        Err(Refusal::NotNow("it is not here".into()))
    }

    fn have(&self, _: &str) -> Result<Have, Refusal> {
        Err(Refusal::NotNow("none".into()))
    }

    fn read(&self, _: &Range) -> Result<Vec<u8>, Refusal> {
        Err(Refusal::NotNow("it is not here".into()))
    }
}

/// One blob, whose bytes count up.
struct Fake(usize);

impl Images for Fake {
    fn end(&self) -> Result<Vec<u8>, Refusal> {
        Ok(vec![7; 600_000])
    }

    fn have(&self, image: &str) -> Result<Have, Refusal> {
        match image {
            "i" => Ok(Have::Pieces(vec![0b101, 1])),
            "whole" => Ok(Have::All),
            _ => Err(Refusal::Refused("it has another image".into())),
        }
    }

    fn read(&self, range: &Range) -> Result<Vec<u8>, Refusal> {
        let end = usize::try_from(range.offset)
            .ok()
            .and_then(|at| at.checked_add(range.length));
        match end {
            Some(end) if range.digest == "a" && range.image == "i" && end <= self.0 => {
                Ok((end - range.length..end).map(|at| at as u8).collect())
            }
            _ => Err(Refusal::Refused("there is no such range".into())),
        }
    }
}

fn range(digest: &str, offset: u64, length: usize) -> Range {
    Range {
        image: "i".into(),
        digest: digest.into(),
        offset,
        length,
    }
}

#[tokio::test]
async fn ranges_come_as_they_are_and_what_is_beyond_is_refused() {
    let authority = Authority::generate("rpc", HOUR).unwrap();
    let pem = authority.certificate_pem();
    let server = tls::server(&identity(&authority, "worker"), pem).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let images = Arc::new(Fake(5 << 20));
    let task = tokio::spawn(serve(
        listener,
        server,
        images,
        None,
        std::future::pending(),
    ));
    let trust = Trust::Authority(pem.into());

    let stranger = identity(&authority, "somebody");
    let mut session = Session::open(address, &trust, &stranger).await.unwrap();
    for refused in [
        session.end(1 << 20).await,
        session.read(&range("a", 0, 1)).await,
        session.have("i").await.map(|_| Vec::new()),
    ] {
        let refused = refused.unwrap_err();
        assert!(refused.to_string().contains("for nodes"), "{refused}");
    }
    let foreign = Authority::generate("rpc", HOUR).unwrap();
    let foreign = Trust::Authority(foreign.certificate_pem().into());
    let wrong = Session::open(address, &foreign, &stranger).await;
    assert!(matches!(wrong, Err(Error::WrongCluster { .. })));

    for name in [ADMITTED, &member_name(uuid::Uuid::nil())] {
        let known = identity(&authority, name);
        let mut session = Session::open(address, &trust, &known).await.unwrap();
        assert_eq!(session.end(600_000).await.unwrap(), vec![7; 600_000]);
        let long = session.end(599_999).await.unwrap_err();
        assert!(long.to_string().contains("more than"), "{long}");
        let have = session.have("i").await.unwrap();
        let numbers: Vec<_> = (0..100).filter(|number| have.has(*number)).collect();
        assert_eq!(numbers, [0, 2, 8]);
        assert_eq!(session.have("whole").await.unwrap(), Have::All);
        session.have("j").await.unwrap_err();
        let read = session.read(&range("a", 300, 700_000)).await.unwrap();
        assert!(
            read.iter()
                .zip(300_usize..)
                .all(|(byte, at)| *byte == at as u8)
        );
        assert_eq!(read.len(), 700_000);
        assert_eq!(session.read(&range("a", 0, 0)).await.unwrap(), b"");
        for (digest, offset, length) in [
            ("b", 0, 1),
            ("a", 5 << 20, 1),
            // The first of its messages is there, the last is not.
            ("a", (5 << 20) - 300_000, 300_001),
            ("a", u64::MAX, 1),
            ("a", u64::MAX - PIECE as u64, PIECE * 2),
            ("a", 0, MAX_RANGE + 1),
            ("a", 0, usize::MAX),
        ] {
            let refused = session.read(&range(digest, offset, length)).await;
            refused.unwrap_err();
        }
        let other = Range {
            image: "j".into(),
            ..range("a", 0, 1)
        };
        session.read(&other).await.unwrap_err();
    }
    // One that doesn't keep to the limits itself is refused, too.
    let request = crate::proto::images::ReadRequest {
        image: "i".into(),
        digest: "a".into(),
        offset: 0,
        length: u32::MAX,
    };
    let known = identity(&authority, ADMITTED);
    let mut session = Session::open(address, &trust, &known).await.unwrap();
    let refused = session.client.read(request).await.unwrap_err();
    assert!(refused.message().contains("are the most"), "{refused}");
    task.abort();
}
