//! Finds out whether a service is ready.
//!
//! In: a [`Probe`]. Out: nothing, or the reason why it isn't ready, once.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::Probe;

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The status line of an answer is within so many bytes.
const ANSWER: usize = 4096;

/// Tries once. `Started` is always ready: whether the process lives is seen
/// elsewhere.
pub(super) async fn attempt(probe: &Probe) -> Result<(), String> {
    let attempt = async {
        match probe {
            Probe::Started => Ok(()),
            Probe::Tcp { address } => TcpStream::connect(address)
                .await
                .map(drop)
                .map_err(|error| format!("{address}: {error}")),
            Probe::Http { url } => get(url).await.map_err(|reason| format!("{url}: {reason}")),
            Probe::Unix { path } => UnixStream::connect(path)
                .await
                .map(drop)
                .map_err(|error| format!("{}: {error}", path.display())),
            Probe::Exec { command } => run(command, std::process::Stdio::null()).await,
            Probe::File { path } => match tokio::fs::try_exists(path).await {
                Ok(true) => Ok(()),
                _ => Err(format!("{} does not exist", path.display())),
            },
        }
    };
    timeout(ATTEMPT, attempt)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {ATTEMPT:?}")))
}

/// Runs a command to its end, with its output there.
pub(super) async fn run(command: &[String], output: std::process::Stdio) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else {
        return Err("empty command".into());
    };
    let status = tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", crate::paths::PATH)
        .env("HOME", "/root")
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .stdout(output)
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|error| format!("{program}: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{}: {status}", command.join(" ")))
    }
}

/// A URL as probes have them: scheme, IP address and port, path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Url<'a> {
    tls: bool,
    address: SocketAddr,
    path: &'a str,
}

impl<'a> Url<'a> {
    pub(crate) fn parse(url: &'a str) -> Result<Self, &'static str> {
        let (tls, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err("must begin with http:// or https://"),
        };
        let (address, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let address = address
            .parse()
            .map_err(|_| "must have an IP address and a port")?;
        if path
            .bytes()
            .any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control())
        {
            return Err("must not contain white space");
        }
        Ok(Self {
            tls,
            address,
            path: if path.is_empty() { "/" } else { path },
        })
    }
}

async fn get(url: &str) -> Result<(), String> {
    ready(call(url).await?)
}

/// Whether who answers with a code is ready.
fn ready(code: u16) -> Result<(), String> {
    match code {
        200 => Ok(()),
        _ => Err(format!("answers {code}")),
    }
}

/// Asks for a URL, as long as it takes. Returns the code of the answer.
pub(super) async fn call(url: &str) -> Result<u16, String> {
    let url = Url::parse(url)?;
    if url.tls {
        return exchange(handshake(url.address).await?, &url).await;
    }
    let stream = TcpStream::connect(url.address).await;
    exchange(stream.map_err(|error| error.to_string())?, &url).await
}

/// Opens a connection that speaks TLS, with whomever.
pub(super) async fn handshake(address: SocketAddr) -> Result<TlsStream<TcpStream>, String> {
    let text = |error: std::io::Error| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(text)?;
    let name = ServerName::IpAddress(address.ip().into());
    let connector = TlsConnector::from(tls()?);
    connector.connect(name, stream).await.map_err(text)
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    url: &Url<'_>,
) -> Result<u16, String> {
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: planet\r\nConnection: close\r\n\r\n",
        url.path, url.address
    );
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') && answer.len() < ANSWER {
        let mut part = [0; 512];
        match stream.read(&mut part).await {
            Ok(0) | Err(_) => break,
            Ok(length) => answer.extend(&part[..length]),
        }
    }
    status(&answer)
}

/// Reads the status line: `HTTP/1.1 200 OK`.
fn status(answer: &[u8]) -> Result<u16, String> {
    let line = answer
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_whitespace();
    let version = words
        .next()
        .filter(|version| version.starts_with("HTTP/1."));
    let code = words.next().and_then(|code| code.parse().ok());
    version.and(code).ok_or_else(|| "answers no HTTP".into())
}

fn tls() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    Ok(CONFIG.get_or_init(|| Arc::new(config)).clone())
}

/// Trusts whoever answers: a probe says nothing secret and learns only 200.
#[derive(Debug)]
struct Anyone(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_an_address_a_port_and_perhaps_a_path() {
        let url = Url::parse("https://127.0.0.1:6443/readyz?x=1").unwrap();
        assert_eq!((url.tls, url.path), (true, "/readyz?x=1"));
        assert_eq!(Url::parse("http://[::1]:80").unwrap().path, "/");
        for bad in [
            "ftp://127.0.0.1:1",
            "http://127.0.0.1",
            "http://name:1/",
            "http://1.1.1.1:1/a b",
            "",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_200_is_ready() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\n").map(ready), Ok(Ok(())));
        let busy = status(b"HTTP/1.1 503 x\r\n").and_then(ready);
        assert_eq!(busy.unwrap_err(), "answers 503");
        assert!(status(b"SSH-2.0\r\n").is_err());
        assert!(status(b"").is_err());
    }

    #[tokio::test]
    async fn sockets_and_commands() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(attempt(&Probe::Tcp { address }).await.is_ok());
        drop(listener);
        assert!(attempt(&Probe::Tcp { address }).await.is_err());
        let exec = |word: &str| Probe::Exec {
            command: vec![word.into()],
        };
        assert!(attempt(&exec("/bin/true")).await.is_ok());
        assert!(attempt(&exec("/bin/false")).await.is_err());
        assert!(
            attempt(&Probe::File {
                path: "/nonexistent".into()
            })
            .await
            .is_err()
        );
    }
}
