//! A certificate authority: its certificate, its key, what it issues.
//!
//! In: names, or a directory with `NAME.crt` and `NAME.key`. Out: certificates
//! that end no later than their authority. An authority that is loaded has a
//! key that fits its certificate.

use std::fmt;
use std::fs::DirBuilder;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{Error, random};

/// How much earlier than now certificates begin: clocks of nodes differ.
pub(crate) const BACKDATE: Duration = Duration::from_secs(60 * 60);

/// Largest PEM file that is read, in bytes.
const MAX_PEM: u64 = 64 * 1024;

/// Bytes of a serial number: RFC 5280 allows 20, and asks for a positive one.
const SERIAL: usize = 16;

/// A certificate authority.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    ends: OffsetDateTime,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

/// What a certificate says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Common name; Kubernetes' user name.
    pub common_name: String,
    /// Organisations; Kubernetes' groups. At most one for now.
    pub organizations: Vec<String>,
    /// DNS names it answers to.
    pub dns_names: Vec<String>,
    /// Addresses it answers at.
    pub ip_addresses: Vec<IpAddr>,
    /// Whether it may be used by a server.
    pub server: bool,
    /// Whether it may be used by a client.
    pub client: bool,
    /// How long it is valid from now on; shorter where the authority ends
    /// earlier.
    pub valid_for: Duration,
}

impl Leaf {
    /// As a plan asks for it.
    pub fn planned(certificate: &spec::phase::Certificate, valid_for: Duration) -> Self {
        Self {
            common_name: certificate.common_name.clone(),
            organizations: certificate.organizations.clone(),
            dns_names: certificate.dns_names.clone(),
            ip_addresses: certificate.ip_addresses.clone(),
            server: certificate.server,
            client: certificate.client,
            valid_for,
        }
    }

    /// A client's, which answers nowhere.
    pub fn client(common_name: &str, organizations: &[String], valid_for: Duration) -> Self {
        Self {
            common_name: common_name.to_owned(),
            organizations: organizations.to_vec(),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            server: false,
            client: true,
            valid_for,
        }
    }
}

/// A certificate and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// `CERTIFICATE`.
    pub certificate_pem: String,
    /// `PRIVATE KEY`, PKCS #8.
    pub key_pem: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes an authority that signs itself.
    ///
    /// # Errors
    /// When the name doesn't fit or there are no random bytes.
    pub fn generate(common_name: &str, valid_for: Duration) -> Result<Self, Error> {
        let key = new_key()?;
        let mut params = parameters(common_name, &[], valid_for, None)?;
        // Without a path length, so that authorities can be cross-signed.
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let certificate = params
            .self_signed(&key)
            .map_err(|source| Error::Certificate {
                common_name: common_name.to_owned(),
                source,
            })?;
        let ends = params.not_after;
        let certificate_pem = certificate.pem();
        Ok(Self {
            certificate_pem,
            issuer: Issuer::new(params, key),
            ends,
        })
    }

    /// Reads `DIR/NAME.crt` and `DIR/NAME.key`.
    ///
    /// # Errors
    /// When one of them is missing or damaged, or they don't fit each other.
    pub fn load(directory: &Path, name: &str) -> Result<Self, Error> {
        let certificate_path = directory.join(format!("{name}.crt"));
        let key_path = directory.join(format!("{name}.key"));
        let certificate_pem = read(&certificate_path)?;
        let key_pem = read(&key_path)?;
        // The errors of the parsers are not shown: they might quote the key.
        let key = KeyPair::from_pem(&key_pem).map_err(|_| Error::Damaged {
            path: key_path.clone(),
            what: "it holds no PKCS #8 key".into(),
        })?;
        let damaged = |what: &str| Error::Damaged {
            path: certificate_path.clone(),
            what: what.into(),
        };
        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes())
            .map_err(|_| damaged("it holds no PEM"))?;
        let (_, parsed) = X509Certificate::from_der(&pem.contents)
            .map_err(|_| damaged("it holds no certificate"))?;
        if !parsed.is_ca() {
            return Err(damaged("its certificate is not an authority's"));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(Error::Damaged {
                path: key_path,
                what: format!("it is not the key of {}", certificate_path.display()),
            });
        }
        let ends = parsed.validity().not_after.to_datetime();
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)
            .map_err(|error| damaged(&error.to_string()))?;
        Ok(Self {
            certificate_pem,
            issuer,
            ends,
        })
    }

    /// Writes `DIR/NAME.crt` (0644), then `DIR/NAME.key` (0600): where the key
    /// is, the certificate is. Directories that are missing are made (0700).
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn save(&self, directory: &Path, name: &str) -> Result<(), Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| Error::CreateDirectory {
                path: directory.to_owned(),
                source,
            })?;
        let certificate = directory.join(format!("{name}.crt"));
        host::atomic::write(&certificate, self.certificate_pem.as_bytes(), 0o644)?;
        let key = self.issuer.key().serialize_pem();
        host::atomic::write(
            &directory.join(format!("{name}.key")),
            key.as_bytes(),
            0o600,
        )?;
        Ok(())
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    pub(crate) fn ends(&self) -> OffsetDateTime {
        self.ends
    }

    /// Its certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Makes a key and a certificate for it.
    ///
    /// # Errors
    /// When a name can't be part of a certificate.
    pub fn issue(&self, leaf: &Leaf) -> Result<Issued, Error> {
        let key = new_key()?;
        Ok(Issued {
            certificate_pem: self.certify(leaf, &key)?,
            key_pem: key.serialize_pem(),
        })
    }

    /// Makes a certificate for the key of a request, which is all that is taken
    /// of it: names and rights are `leaf`'s.
    ///
    /// # Errors
    /// When `request` is none, isn't signed by its own key, or a name can't be
    /// part of a certificate.
    pub fn sign(&self, request: &str, leaf: &Leaf) -> Result<String, Error> {
        let refused = |source| Error::Request {
            common_name: leaf.common_name.clone(),
            source,
        };
        let request = CertificateSigningRequestParams::from_pem(request).map_err(refused)?;
        self.certify(leaf, &request.public_key)
    }

    fn certify(&self, leaf: &Leaf, key: &impl PublicKeyData) -> Result<String, Error> {
        let mut params = parameters(
            &leaf.common_name,
            &leaf.organizations,
            leaf.valid_for,
            Some(self.ends),
        )?;
        for name in &leaf.dns_names {
            let ia5 = dns_name(name).ok_or_else(|| Error::DnsName {
                common_name: leaf.common_name.clone(),
                name: name.clone(),
            })?;
            params.subject_alt_names.push(SanType::DnsName(ia5));
        }
        params
            .subject_alt_names
            .extend(leaf.ip_addresses.iter().copied().map(SanType::IpAddress));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if leaf.server {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if leaf.client {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let certificate =
            params
                .signed_by(key, &self.issuer)
                .map_err(|source| Error::Certificate {
                    common_name: leaf.common_name.clone(),
                    source,
                })?;
        Ok(certificate.pem())
    }
}

/// A key and the request for a certificate of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// `PRIVATE KEY`, PKCS #8.
    pub key_pem: String,
    /// `CERTIFICATE REQUEST`; whoever signs it decides on names and rights.
    pub request_pem: String,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

/// Makes a key and a request for its certificate.
///
/// # Errors
/// When the system has no random bytes.
pub fn request() -> Result<Request, Error> {
    request_of(&new_key()?)
}

/// The request for a new certificate of a key that has one.
///
/// # Errors
/// When `key_pem` holds no key.
pub fn request_for(key_pem: &str) -> Result<Request, Error> {
    // The parser's error is not shown: it might quote the key.
    request_of(&KeyPair::from_pem(key_pem).map_err(|_| Error::Pem("private key"))?)
}

fn request_of(key: &KeyPair) -> Result<Request, Error> {
    let request = CertificateParams::default()
        .serialize_request(key)
        .and_then(|request| request.pem())
        .map_err(Error::Key)?;
    Ok(Request {
        key_pem: key.serialize_pem(),
        request_pem: request,
    })
}

pub(crate) fn new_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(Error::Key)
}

/// A DNS name for a certificate: ASCII, a wildcard only as the first label.
fn dns_name(name: &str) -> Option<rcgen::string::Ia5String> {
    let bare = name.strip_prefix("*.").unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.len() > 253 || !bare.split('.').all(label) {
        return None;
    }
    name.try_into().ok()
}

pub(crate) fn parameters(
    common_name: &str,
    organizations: &[String],
    valid_for: Duration,
    not_after: Option<OffsetDateTime>,
) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    if organizations.len() > 1 {
        // rcgen keeps one value a kind and would drop the others.
        return Err(Error::Organizations(common_name.to_owned()));
    }
    for organization in organizations {
        name.push(DnType::OrganizationName, organization.as_str());
    }
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    let lifetime = || Error::Lifetime(common_name.to_owned());
    let now = OffsetDateTime::now_utc();
    let span = time::Duration::try_from(valid_for).map_err(|_| lifetime())?;
    let end = now.checked_add(span).ok_or_else(lifetime)?;
    params.not_before = now - BACKDATE;
    params.not_after = not_after.map_or(end, |limit| limit.min(end));
    if params.not_after <= params.not_before {
        return Err(lifetime());
    }
    let mut serial = random(SERIAL)?;
    if let Some(first) = serial.first_mut() {
        // Positive and without a leading zero.
        *first = (*first & 0x7f) | 0x40;
    }
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn read(path: &Path) -> Result<String, Error> {
    let bytes = host::bounded::bytes(path, MAX_PEM).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    String::from_utf8(bytes).map_err(|_| Error::Damaged {
        path: path.to_owned(),
        what: "it is not text".into(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const DAY: Duration = Duration::from_secs(86400);

    fn leaf() -> Leaf {
        Leaf {
            common_name: "system:node:n1".into(),
            organizations: vec!["system:nodes".into()],
            dns_names: vec!["n1".into(), "leader.telekube.local".into()],
            ip_addresses: vec!["169.254.20.10".parse().unwrap(), "::1".parse().unwrap()],
            server: true,
            client: true,
            valid_for: DAY,
        }
    }

    fn der(pem: &str) -> Vec<u8> {
        x509_parser::pem::parse_x509_pem(pem.as_bytes())
            .unwrap()
            .1
            .contents
    }

    #[test]
    fn a_loaded_authority_issues_what_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let secrets = directory.path().join("a/b");
        Authority::generate("kubernetes", DAY * 2)
            .unwrap()
            .save(&secrets, "ca")
            .unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&secrets), 0o700);
        assert_eq!(mode(&secrets.join("ca.crt")), 0o644);
        assert_eq!(mode(&secrets.join("ca.key")), 0o600);

        let authority = Authority::load(&secrets, "ca").unwrap();
        let issued = authority.issue(&leaf()).unwrap();
        assert!(issued.key_pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        let (ca, cert) = (
            der(authority.certificate_pem()),
            der(&issued.certificate_pem),
        );
        let (_, ca) = X509Certificate::from_der(&ca).unwrap();
        let (_, cert) = X509Certificate::from_der(&cert).unwrap();
        assert_eq!(cert.issuer(), ca.subject());
        assert_eq!(
            cert.subject().to_string(),
            "O=system:nodes, CN=system:node:n1"
        );
        let now = OffsetDateTime::now_utc();
        assert!(cert.validity().not_before.to_datetime() <= now - time::Duration::minutes(59));
        assert!(cert.validity().not_after.to_datetime() <= now + DAY);
        let names = cert.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 4);
        let usage = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth && !usage.any);
        assert!(!cert.is_ca() && ca.is_ca());
        // Signed by the authority's key.
        let key = ring::signature::UnparsedPublicKey::new(
            &ring::signature::ECDSA_P256_SHA256_ASN1,
            ca.public_key().subject_public_key.data.as_ref(),
        );
        key.verify(cert.tbs_certificate.as_ref(), &cert.signature_value.data)
            .unwrap();
    }

    #[test]
    fn a_key_gets_another_certificate_by_a_request() {
        let authority = Authority::generate("kubernetes", DAY).unwrap();
        let first = authority.issue(&leaf()).unwrap();
        let request = request_for(&first.key_pem).unwrap();
        assert_eq!(request.key_pem, first.key_pem);
        let second = authority.sign(&request.request_pem, &leaf()).unwrap();
        let (first, second) = (der(&first.certificate_pem), der(&second));
        let (_, first) = X509Certificate::from_der(&first).unwrap();
        let (_, second) = X509Certificate::from_der(&second).unwrap();
        assert_eq!(first.public_key().raw, second.public_key().raw);
        assert_ne!(first.raw_serial(), second.raw_serial());
        let error = request_for("-----BEGIN PRIVATE KEY-----\nAAAA\n").unwrap_err();
        assert!(!error.to_string().contains("AAAA"), "{error}");
    }

    #[test]
    fn a_leaf_ends_with_its_authority() {
        let authority = Authority::generate("short", DAY).unwrap();
        let issued = authority
            .issue(&Leaf {
                valid_for: DAY * 365,
                ..leaf()
            })
            .unwrap();
        let bytes = der(&issued.certificate_pem);
        let (_, cert) = X509Certificate::from_der(&bytes).unwrap();
        assert!(cert.validity().not_after.to_datetime() <= OffsetDateTime::now_utc() + DAY);
    }

    #[test]
    fn damaged_files_and_bad_names_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert!(matches!(
            Authority::load(path, "ca"),
            Err(Error::Read { .. })
        ));
        Authority::generate("one", DAY)
            .unwrap()
            .save(path, "ca")
            .unwrap();
        Authority::generate("two", DAY)
            .unwrap()
            .save(path, "other")
            .unwrap();
        std::fs::copy(path.join("other.key"), path.join("ca.key")).unwrap();
        let error = Authority::load(path, "ca").unwrap_err().to_string();
        assert!(error.contains("is not the key of"), "{error}");
        host::atomic::write(&path.join("ca.key"), b"garbage", 0o600).unwrap();
        assert!(matches!(
            Authority::load(path, "ca"),
            Err(Error::Damaged { .. })
        ));

        let authority = Authority::load(path, "other").unwrap();
        for name in ["", "a b", "a..b", "ä", "*.*.x"] {
            let bad = Leaf {
                dns_names: vec![name.into()],
                ..leaf()
            };
            assert!(
                matches!(authority.issue(&bad), Err(Error::DnsName { .. })),
                "{name}"
            );
        }
        let groups = Leaf {
            organizations: vec!["a".into(), "b".into()],
            ..leaf()
        };
        assert!(matches!(
            authority.issue(&groups),
            Err(Error::Organizations(_))
        ));
        let endless = Authority::generate("endless", Duration::MAX);
        assert!(matches!(endless, Err(Error::Lifetime(_))));
    }
}
