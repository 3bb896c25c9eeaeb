//! What a certificate says.
//!
//! In: PEM. Out: whom it names, who signed it, how long it is good.

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Error;

/// What is read of a certificate. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// Common name.
    pub common_name: String,
    /// Common name of the authority that signed it.
    pub issuer: String,
    /// Whether it is an authority's.
    pub is_authority: bool,
    /// Good from.
    pub not_before: i64,
    /// Good until.
    pub not_after: i64,
}

impl Inspected {
    /// From when on it should be replaced: half of its life is over, which began
    /// when it was made.
    pub fn half_life(&self) -> i64 {
        let backdate = i64::try_from(crate::authority::BACKDATE.as_secs()).unwrap_or_default();
        let made = (self.not_before + backdate).min(self.not_after);
        made + (self.not_after - made) / 2
    }

    /// From when on only a quarter of its life is left.
    pub fn last_quarter(&self) -> i64 {
        let half = self.half_life();
        half + (self.not_after - half) / 2
    }
}

/// Reads the first certificate of a PEM text. Its signature is not checked.
///
/// # Errors
/// When there is none.
pub fn inspect(pem: &str) -> Result<Inspected, Error> {
    let none = || Error::Pem("certificate");
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| none())?;
    let (_, certificate) = X509Certificate::from_der(&block.contents).map_err(|_| none())?;
    let common_name = |name: &x509_parser::x509::X509Name<'_>| {
        let mut names = name
            .iter_common_name()
            .filter_map(|name| name.as_str().ok());
        names.next().unwrap_or_default().to_owned()
    };
    let validity = certificate.validity();
    Ok(Inspected {
        common_name: common_name(certificate.subject()),
        issuer: common_name(certificate.issuer()),
        is_authority: certificate.is_ca(),
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
    })
}

/// The client certificate that a kubeconfig of ours holds, PEM.
pub fn kubeconfig_certificate(text: &str) -> Option<String> {
    use base64::Engine as _;
    // We write JSON, which is YAML, too.
    let config: serde_json::Value = serde_json::from_str(text).ok()?;
    let data = config["users"][0]["user"]["client-certificate-data"].as_str()?;
    let pem = base64::engine::general_purpose::STANDARD
        .decode(data)
        .ok()?;
    String::from_utf8(pem).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Authority, Leaf};

    #[test]
    fn a_certificate_says_whom_it_names_and_how_long() {
        let hour = Duration::from_secs(3600);
        let authority = Authority::generate("registry-ca", hour * 100).unwrap();
        let leaf = Leaf::client("node-1", &[], hour * 9);
        let issued = authority.issue(&leaf).unwrap();
        let found = inspect(&issued.certificate_pem).unwrap();
        assert_eq!(
            (found.common_name.as_str(), found.issuer.as_str()),
            ("node-1", "registry-ca")
        );
        assert!(!found.is_authority);
        // It is good an hour before it was made.
        assert_eq!(found.not_after - found.not_before, 10 * 3600);
        assert_eq!(found.half_life() - found.not_before, 5 * 3600 + 1800);
        assert_eq!(found.not_after - found.last_quarter(), 9 * 900);
        assert!(inspect(authority.certificate_pem()).unwrap().is_authority);
        for text in [
            "",
            "no PEM",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert!(inspect(text).is_err(), "{text}");
        }
    }
}
