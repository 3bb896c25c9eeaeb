//! Licenses: what a vendor signs so that a customer may install.
//!
//! In: whom a license is for, and an authority of the vendor. Out: a
//! certificate, PEM, that says so; or from such a text, which anybody may have
//! made up, what it allows. Only what an authority has signed, and whose time
//! has come and isn't over, is a license.

use std::time::Duration;

use rcgen::{CustomExtension, IsCa, KeyUsagePurpose};
use serde::{Deserialize, Serialize};
use spec::License;
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::{FromDer, Pem, X509Certificate};

use crate::Error;
use crate::authority::{Authority, new_key, parameters};

/// Where in a certificate the terms are, as JSON: `{"image": "shop", "max_nodes": 3}`.
const TERMS: &[u64] = &[2, 5, 42, 10];
/// Largest license, in bytes.
pub const MAX_LICENSE: usize = 64 * 1024;
/// Most certificates of authorities that a license is compared with.
const MAX_AUTHORITIES: usize = 16;
/// Largest number of nodes that a license can name.
pub const MAX_NODES: u32 = 1_000_000;

/// Why a text is no license for this image, here and now.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// It is something else.
    #[error("it is not a license: {0}")]
    Form(&'static str),
    /// Nobody whom the image trusts has signed it.
    #[error("it is not signed by the authority that this image was built with")]
    Signature,
    /// It is for another image.
    #[error("it is a license for {given}, not for {wanted}")]
    Image {
        /// What it is for.
        given: String,
        /// What it was wanted for.
        wanted: String,
    },
    /// Its time hasn't come.
    #[error("it begins at {0}; is this machine's clock right?")]
    NotYet(String),
    /// Its time is over.
    #[error("it ended at {0}")]
    Ended(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Terms {
    image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_nodes: Option<u32>,
}

impl Authority {
    /// Makes a license, PEM. No license is longer good than its authority.
    ///
    /// # Errors
    /// When a name doesn't fit, or the time is none that there is.
    pub fn license(
        &self,
        image: &str,
        holder: &str,
        max_nodes: Option<u32>,
        valid_for: Duration,
    ) -> Result<String, Error> {
        // Nobody ever needs its key: who has the license may use it.
        let key = new_key()?;
        let mut params = parameters(holder, &[], valid_for, Some(self.ends()))?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let terms = Terms {
            image: image.to_owned(),
            max_nodes,
        };
        let terms = serde_json::to_vec(&terms).map_err(|_| Error::Pem("terms"))?;
        params
            .custom_extensions
            .push(CustomExtension::from_oid_content(TERMS, terms));
        let certificate =
            params
                .signed_by(&key, self.issuer())
                .map_err(|source| Error::Certificate {
                    common_name: holder.to_owned(),
                    source,
                })?;
        Ok(certificate.pem())
    }
}

/// Reads a license for `image`, at the time `now`, seconds since 1970.
/// `authorities` are the certificates of those who may sign it, PEM.
///
/// # Errors
/// When it is none.
pub fn license(text: &str, authorities: &str, image: &str, now: i64) -> Result<License, Refused> {
    if text.len() > MAX_LICENSE {
        return Err(Refused::Form("it is too large"));
    }
    let block = blocks(text)
        .next()
        .ok_or(Refused::Form("there is no PEM certificate in it"))?;
    let certificate = read(&block).ok_or(Refused::Form("its certificate can't be read"))?;
    let signed = blocks(authorities).take(MAX_AUTHORITIES).any(|authority| {
        read(&authority).is_some_and(|authority| {
            authority.is_ca()
                && authority.subject() == certificate.issuer()
                && certificate
                    .verify_signature(Some(authority.public_key()))
                    .is_ok()
        })
    });
    if !signed {
        return Err(Refused::Signature);
    }
    let terms = Oid::from(TERMS).ok().and_then(|oid| {
        let mut extensions = certificate.extensions().iter();
        let terms = extensions.find(|extension| extension.oid == oid)?;
        serde_json::from_slice::<Terms>(terms.value).ok()
    });
    let terms = terms.ok_or(Refused::Form("its certificate names no terms"))?;
    if terms.image != image {
        return Err(Refused::Image {
            given: terms.image,
            wanted: image.to_owned(),
        });
    }
    let validity = certificate.validity();
    if validity.not_before.timestamp() > now {
        return Err(Refused::NotYet(validity.not_before.to_string()));
    }
    if validity.not_after.timestamp() < now {
        return Err(Refused::Ended(validity.not_after.to_string()));
    }
    let mut names = certificate.subject().iter_common_name();
    let holder = names.find_map(|name| name.as_str().ok());
    Ok(License {
        holder: holder.unwrap_or_default().to_owned(),
        max_nodes: terms.max_nodes,
        ends: validity.not_after.timestamp(),
    })
}

/// Who may sign licenses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signer {
    /// Common name.
    pub name: String,
    /// SHA-256 of the certificate, hexadecimal.
    pub fingerprint: String,
}

/// The authorities in a text; `None` where there are none, too many, or where a
/// certificate is of nobody who may sign.
pub fn authorities(text: &str) -> Option<Vec<Signer>> {
    let signer = |block: Pem| {
        let certificate = read(&block).filter(|certificate| certificate.is_ca())?;
        let mut names = certificate.subject().iter_common_name();
        let name = names.find_map(|name| name.as_str().ok());
        let digest = ring::digest::digest(&ring::digest::SHA256, &block.contents);
        let hex = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
        Some(Signer {
            name: name.unwrap_or_default().to_owned(),
            fingerprint: hex.collect(),
        })
    };
    let all = blocks(text).take(MAX_AUTHORITIES + 1).map(signer);
    let all: Vec<_> = all.collect::<Option<_>>()?;
    (1..=MAX_AUTHORITIES).contains(&all.len()).then_some(all)
}

fn blocks(text: &str) -> impl Iterator<Item = Pem> {
    Pem::iter_from_buffer(text.as_bytes())
        .map_while(Result::ok)
        .filter(|block| block.label == "CERTIFICATE")
}

fn read(block: &Pem) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(&block.contents)
        .ok()
        .map(|(_, certificate)| certificate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Leaf;

    const DAY: Duration = Duration::from_secs(86_400);

    fn now() -> i64 {
        time::OffsetDateTime::now_utc().unix_timestamp()
    }

    #[test]
    fn a_license_says_what_it_allows() {
        let authority = Authority::generate("Shop Ltd", DAY * 100).unwrap();
        let text = authority.license("shop", "Acme Inc", Some(3), DAY).unwrap();
        let terms = license(&text, authority.certificate_pem(), "shop", now()).unwrap();
        assert_eq!((&*terms.holder, terms.max_nodes), ("Acme Inc", Some(3)));
        assert!((terms.ends - now() - 86_400).abs() < 60);
        let other = Authority::generate("Shop Ltd", DAY * 100).unwrap();
        // Either of several authorities will do, and text around them.
        let both = format!(
            "# ours\n{}\n{}",
            other.certificate_pem(),
            authority.certificate_pem()
        );
        let signers = authorities(&both).unwrap();
        assert_eq!((signers.len(), &*signers[1].name), (2, "Shop Ltd"));
        assert_ne!(signers[0].fingerprint, signers[1].fingerprint);
        assert!(license(&text, &both, "shop", now()).is_ok());
        let free = authority.license("shop", "Acme Inc", None, DAY).unwrap();
        let free = license(&free, &both, "shop", now()).unwrap();
        assert_eq!(free.max_nodes, None);
    }

    #[test]
    fn what_is_no_license_is_refused() {
        let authority = Authority::generate("Shop Ltd", DAY * 100).unwrap();
        let ours = authority.certificate_pem();
        let text = authority.license("shop", "Acme Inc", Some(3), DAY).unwrap();
        let check = |text: &str, image: &str, at| license(text, ours, image, at).unwrap_err();
        assert!(matches!(check("", "shop", now()), Refused::Form(_)));
        assert!(matches!(check("license", "shop", now()), Refused::Form(_)));
        let large = format!("{text}{}", " ".repeat(MAX_LICENSE));
        assert!(matches!(check(&large, "shop", now()), Refused::Form(_)));
        // Of the same name with another key.
        let other = Authority::generate("Shop Ltd", DAY * 100).unwrap();
        let forged = other.license("shop", "Acme Inc", Some(3), DAY).unwrap();
        assert_eq!(check(&forged, "shop", now()), Refused::Signature);
        assert_eq!(
            license(&text, "", "shop", now()).unwrap_err(),
            Refused::Signature
        );
        assert!(matches!(check(&text, "tool", now()), Refused::Image { .. }));
        assert!(matches!(
            check(&text, "shop", now() + 90_000),
            Refused::Ended(_)
        ));
        assert!(matches!(
            check(&text, "shop", now() - 90_000),
            Refused::NotYet(_)
        ));
        // Another certificate of the authority, and the authority's own.
        let leaf = authority.issue(&Leaf::client("x", &[], DAY)).unwrap();
        let leaf = leaf.certificate_pem;
        assert!(matches!(check(&leaf, "shop", now()), Refused::Form(_)));
        assert!(matches!(check(ours, "shop", now()), Refused::Form(_)));
        // A leaf can't sign.
        assert_eq!(
            license(&text, &leaf, "shop", now()).unwrap_err(),
            Refused::Signature
        );
        assert_eq!((authorities(&leaf), authorities("")), (None, None));
    }

    #[test]
    fn no_changed_byte_changes_what_is_allowed() {
        use base64::Engine as _;
        let engine = base64::engine::general_purpose::STANDARD;
        let authority = Authority::generate("Shop Ltd", DAY * 100).unwrap();
        let text = authority.license("shop", "Acme Inc", Some(3), DAY).unwrap();
        let ours = authority.certificate_pem();
        let terms = license(&text, ours, "shop", now()).unwrap();
        let der = blocks(&text).next().unwrap().contents;
        let mut harmless = 0;
        for at in 0..der.len() {
            let mut changed = der.clone();
            changed[at] ^= 1;
            let changed = format!(
                "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
                engine.encode(changed)
            );
            // What is around the signed part may change, and means nothing.
            if let Ok(found) = license(&changed, ours, "shop", now()) {
                assert_eq!(found, terms, "byte {at}");
                harmless += 1;
            }
        }
        assert!(harmless < 8, "{harmless} bytes are not signed");
    }
}
