//! Certificate authorities, certificates, licenses and tokens.
//!
//! In: names and lifetimes. Out: PEM that OpenSSL and Go read: ECDSA P-256 keys
//! as PKCS #8, X.509 v3 certificates. Certificates are valid from an hour
//! before they are made, so that clocks may differ a little. Keys never show in
//! `Debug` output or in errors.

mod authority;
mod inspect;
pub mod join_token;
pub mod license;
mod random;
pub mod tls;

use std::fmt;
use std::path::PathBuf;

pub use authority::{Authority, Issued, Leaf, Request, request, request_for};
pub use inspect::{Inspected, inspect, kubeconfig_certificate};
pub use join_token::JoinToken;
pub use random::{base64, random, token};

/// Why a key or a certificate could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key could not be made.
    #[error("generate a key")]
    Key(#[source] rcgen::Error),
    /// The system has no random bytes.
    #[error("get random bytes from the system")]
    Random,
    /// The names don't fit in a certificate, or it can't be signed.
    #[error("make the certificate of `{common_name}`")]
    Certificate {
        /// Whom it is for.
        common_name: String,
        /// What is wrong.
        source: rcgen::Error,
    },
    /// What should be a request for a certificate is none.
    #[error("read the certificate request of `{common_name}`")]
    Request {
        /// Whom it is for.
        common_name: String,
        /// What is wrong.
        source: rcgen::Error,
    },
    /// A key or certificate can't be used for TLS.
    #[error("use {what} for TLS")]
    Tls {
        /// Which one.
        what: &'static str,
        /// What is wrong.
        source: rustls::Error,
    },
    /// It is no PEM, or holds something else.
    #[error("there is no {0} in what should be one")]
    Pem(&'static str),
    /// A DNS name that no certificate can carry.
    #[error("`{name}` is no DNS name for the certificate of `{common_name}`")]
    DnsName {
        /// Whom the certificate is for.
        common_name: String,
        /// The name.
        name: String,
    },
    /// More than one organisation.
    #[error("the certificate of `{0}` has more than one organization, which is not supported yet")]
    Organizations(String),
    /// It would end before it begins, or after the year 9999.
    #[error("the certificate of `{0}` can't be valid that long")]
    Lifetime(String),
    /// A stored authority is damaged.
    #[error("{path} is damaged: {what}; restore it from a backup of the state directory")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file can't be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The directory of an authority can't be made.
    #[error("create {path}")]
    CreateDirectory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A file can't be written.
    #[error(transparent)]
    Write(#[from] host::atomic::WriteError),
}

/// A key and its public half, such as the one that signs tokens of service
/// accounts.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// `PRIVATE KEY`, PKCS #8.
    pub key_pem: String,
    /// `PUBLIC KEY`, SubjectPublicKeyInfo.
    pub public_pem: String,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair")
            .field("public_pem", &self.public_pem)
            .finish_non_exhaustive()
    }
}

/// Makes an ECDSA P-256 key.
///
/// # Errors
/// When the system has no random bytes.
pub fn key_pair() -> Result<KeyPair, Error> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(Error::Key)?;
    Ok(KeyPair {
        key_pem: key.serialize_pem(),
        public_pem: key.public_key_pem(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_pair_is_pkcs8_and_keeps_its_secret() {
        let pair = key_pair().unwrap();
        assert!(pair.key_pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert!(pair.public_pem.starts_with("-----BEGIN PUBLIC KEY-----\n"));
        assert!(!format!("{pair:?}").contains("PRIVATE KEY"));
        assert_ne!(pair, key_pair().unwrap());
    }
}
