//! TLS for sessions between nodes.
//!
//! In: certificates and keys as PEM. Out: configurations of rustls, TLS 1.3
//! only. A client always knows whom it speaks to: by an authority that it
//! has, by an authority's fingerprint, or, where it has nothing but a secret
//! that both know, by a proof over the channel that the caller must demand.

use std::sync::Arc;

use ring::{digest, hmac};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, version};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Error;

pub use rustls::ServerConfig;

/// Bytes of [`Channel`] and of a fingerprint.
pub const SECRET: usize = 32;

/// A secret that both ends of one TLS connection have, and nobody else: RFC
/// 5705. Proofs that are made with it can't be used on another connection.
pub type Channel = [u8; SECRET];

/// Label of [`Channel`]; RFC 5705 asks for a unique one.
pub const CHANNEL_LABEL: &[u8] = b"EXPORTER-gravity-join-v1";

/// How a client knows the server.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Its certificate is of this authority (PEM).
    Authority(String),
    /// The authority that it sends along has this SHA-256 (of its DER).
    Fingerprint([u8; SECRET]),
    /// Not at all: the caller demands a proof before it believes anything.
    Proof,
}

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate, and after it its authority's where the other side may
    /// know that by its fingerprint alone.
    pub certificate_pem: String,
    /// `PRIVATE KEY`.
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// A server that takes clients with and without a certificate of `clients`
/// (PEM); [`common_name`] tells which one it has.
///
/// # Errors
/// When key or certificates are damaged.
pub fn server(identity: &Identity, clients: &str) -> Result<Arc<ServerConfig>, Error> {
    let failed = |what| move |source| Error::Tls { what, source };
    let provider = provider();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(clients)?), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|error| Error::Tls {
                what: "the authority of clients",
                source: rustls::Error::General(error.to_string()),
            })?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(failed("the provider"))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(&identity.certificate_pem)?, key(&identity.key_pem)?)
        .map_err(failed("the server's certificate"))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// A client.
///
/// # Errors
/// When key or certificates are damaged.
pub fn client(trust: &Trust, identity: Option<&Identity>) -> Result<Arc<ClientConfig>, Error> {
    let failed = |what| move |source| Error::Tls { what, source };
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(failed("the provider"))?;
    let builder = match trust {
        Trust::Authority(pem) => builder.with_root_certificates(roots(pem)?),
        Trust::Fingerprint(hash) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(SentAlong {
                fingerprint: Some(*hash),
                provider,
            })),
        Trust::Proof => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(SentAlong {
                fingerprint: None,
                provider,
            })),
    };
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(chain(&identity.certificate_pem)?, key(&identity.key_pem)?)
            .map_err(failed("the client's certificate"))?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// SHA-256 of the first certificate in `pem`, by which [`Trust::Fingerprint`]
/// knows an authority.
///
/// # Errors
/// When there is none.
pub fn fingerprint(pem: &str) -> Result<[u8; SECRET], Error> {
    let first = chain(pem)?.into_iter().next();
    Ok(hash(&first.ok_or(Error::Pem("certificate"))?))
}

/// Common name of a verified certificate (DER).
pub fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?;
    name.as_str().ok().map(ToOwned::to_owned)
}

/// Proves that whoever made it knows `secret` and is at one end of the
/// connection that `channel` belongs to. `role` keeps the two ends apart.
pub fn proof(secret: &str, channel: &Channel, role: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    hmac::sign(&key, &proven(channel, role)).as_ref().to_vec()
}

/// Whether `given` is the [`proof`] of the same values, in constant time.
pub fn is_proof(given: &[u8], secret: &str, channel: &Channel, role: &str) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    hmac::verify(&key, &proven(channel, role), given).is_ok()
}

fn proven(channel: &Channel, role: &str) -> Vec<u8> {
    [role.as_bytes(), &[0], channel].concat()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn hash(certificate: &CertificateDer<'_>) -> [u8; SECRET] {
    let mut hash = [0; SECRET];
    hash.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
    hash
}

fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    all.ok()
        .filter(|all| !all.is_empty())
        .ok_or(Error::Pem("certificate"))
}

fn key(pem: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::Pem("private key"))
}

fn roots(pem: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(pem)? {
        roots.add(certificate).map_err(|source| Error::Tls {
            what: "the authority",
            source,
        })?;
    }
    Ok(roots)
}

/// Takes the authority that the server sends along, if its fingerprint is
/// known or somebody else will ask for a proof.
#[derive(Debug)]
struct SentAlong {
    fingerprint: Option<[u8; SECRET]>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for SentAlong {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = match self.fingerprint {
            Some(wanted) => intermediates.iter().find(|sent| hash(sent) == wanted),
            None => intermediates.first(),
        };
        let authority = authority.ok_or(rustls::Error::InvalidCertificate(
            rustls::CertificateError::UnknownIssuer,
        ))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use rustls::{ClientConnection, ServerConnection, Stream};

    use super::*;
    use crate::{Authority, Leaf};

    const HOUR: Duration = Duration::from_secs(3600);

    fn leaf(name: &str) -> Leaf {
        Leaf {
            server: true,
            ip_addresses: vec!["127.0.0.1".parse().unwrap()],
            ..Leaf::client(name, &[], HOUR)
        }
    }

    fn identity(authority: &Authority, name: &str) -> Identity {
        let issued = authority.issue(&leaf(name)).unwrap();
        Identity {
            certificate_pem: issued.certificate_pem + authority.certificate_pem(),
            key_pem: issued.key_pem,
        }
    }

    /// One connection: what the client met, and the name that the server saw.
    fn connect(
        authority: &Authority,
        trust: &Trust,
        client_identity: Option<&Identity>,
    ) -> Result<Option<String>, String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let config = server(&identity(authority, "server"), authority.certificate_pem()).unwrap();
        let served = std::thread::spawn(move || {
            let mut socket = listener.accept().unwrap().0;
            let mut connection = ServerConnection::new(config).unwrap();
            let mut byte = [0];
            Stream::new(&mut connection, &mut socket)
                .read_exact(&mut byte)
                .map_err(|error| error.to_string())?;
            let channel: Channel = connection
                .export_keying_material([0; SECRET], CHANNEL_LABEL, None)
                .unwrap();
            let proof = proof("secret", &channel, "server");
            Stream::new(&mut connection, &mut socket)
                .write_all(&proof)
                .map_err(|error| error.to_string())?;
            let name = connection
                .peer_certificates()
                .and_then(|chain| common_name(chain.first()?));
            Ok(name)
        });
        let config = client(trust, client_identity).unwrap();
        let name = ServerName::from(address.ip());
        let mut connection = ClientConnection::new(config, name).unwrap();
        let mut socket = TcpStream::connect(address).unwrap();
        let mut stream = Stream::new(&mut connection, &mut socket);
        stream.write_all(b"x").map_err(|error| error.to_string())?;
        let mut given = [0; 32];
        stream
            .read_exact(&mut given)
            .map_err(|error| error.to_string())?;
        let channel: Channel = connection
            .export_keying_material([0; SECRET], CHANNEL_LABEL, None)
            .unwrap();
        assert!(is_proof(&given, "secret", &channel, "server"));
        assert!(!is_proof(&given, "secret", &channel, "client"));
        assert!(!is_proof(&given, "secret", &[0; SECRET], "server"));
        drop(socket);
        served.join().unwrap()
    }

    #[test]
    fn a_server_is_known_by_authority_fingerprint_or_proof_and_a_foreign_one_is_not() {
        let ours = Authority::generate("ours", HOUR).unwrap();
        let foreign = Authority::generate("ours", HOUR).unwrap();
        let print = fingerprint(ours.certificate_pem()).unwrap();
        let by_authority = Trust::Authority(ours.certificate_pem().into());
        for trust in [&by_authority, &Trust::Fingerprint(print), &Trust::Proof] {
            assert_eq!(connect(&ours, trust, None), Ok(None), "{trust:?}");
        }
        for trust in [&by_authority, &Trust::Fingerprint(print)] {
            let error = connect(&foreign, trust, None).unwrap_err();
            assert!(error.contains("certificate"), "{error}");
        }
    }

    #[test]
    fn a_client_is_known_by_its_certificate_and_one_of_a_foreign_authority_is_refused() {
        let ours = Authority::generate("ours", HOUR).unwrap();
        let trust = Trust::Authority(ours.certificate_pem().into());
        let request = crate::request().unwrap();
        let certificate = ours.sign(&request.request_pem, &leaf("node")).unwrap();
        let signed = Identity {
            certificate_pem: certificate,
            key_pem: request.key_pem,
        };
        let seen = connect(&ours, &trust, Some(&signed)).unwrap();
        assert_eq!(seen.as_deref(), Some("node"));
        let foreign = Authority::generate("ours", HOUR).unwrap();
        let stranger = identity(&foreign, "node");
        connect(&ours, &trust, Some(&stranger)).unwrap_err();
    }

    #[test]
    fn a_request_that_is_none_is_refused() {
        let ours = Authority::generate("ours", HOUR).unwrap();
        for text in [
            "",
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        ] {
            ours.sign(text, &leaf("node")).unwrap_err();
        }
    }
}
