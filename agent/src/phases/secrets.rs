//! Makes certificates, keys and kubeconfigs.
//!
//! What exists is kept: a phase that is executed again leaves running services
//! with keys that still fit.

use std::collections::BTreeMap;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

use operation::PhaseError;
use pki::{Authority, Issued, Leaf};
use spec::ServiceUser;
use spec::phase::{Certificate, Kubeconfig, Secrets};

use crate::Node;
use crate::node::{file, lasting};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Authorities are replaced by hand, with bundles: ten years.
const AUTHORITY_LIFE: Duration = DAY.saturating_mul(3650);
/// Authority of kubeconfigs.
pub(crate) const KUBERNETES: &str = "kubernetes-ca";
/// Bytes of the key that encrypts Kubernetes secrets at rest.
const ENCRYPTION_KEY: usize = 32;

pub(crate) fn execute(node: &Node, phase: &Secrets) -> Result<(), PhaseError> {
    let directory = node.layout().planet_secrets();
    let mut authorities = BTreeMap::new();
    for (name, common_name) in &phase.authorities {
        let authority = match directory.join(format!("{name}.key")).exists() {
            true => Authority::load(&directory, name).map_err(|error| lasting(&error))?,
            false => {
                let made = Authority::generate(common_name, AUTHORITY_LIFE)
                    .map_err(|error| lasting(&error))?;
                made.save(&directory, name)
                    .map_err(|error| lasting(&error))?;
                made
            }
        };
        authorities.insert(name.as_str(), authority);
    }
    let authority = |name: &str| {
        authorities
            .get(name)
            .ok_or_else(|| PhaseError::lasting(format!("the plan names no authority {name}")))
    };
    let life = Duration::from_secs(phase.leaf_seconds);
    for certificate in &phase.certificates {
        issue(
            &directory,
            authority(&certificate.authority)?,
            certificate,
            &phase.user,
            life,
        )?;
    }
    for kubeconfig in &phase.kubeconfigs {
        let authority = authority(KUBERNETES)?;
        write_kubeconfig(&directory, authority, kubeconfig, &phase.user, life)?;
    }
    own_cluster_keys(&directory, &phase.user)
}

/// Gives the keys that all masters share to their readers; those of Kubernetes
/// are made where they don't exist.
pub(super) fn own_cluster_keys(directory: &Path, user: &ServiceUser) -> Result<(), PhaseError> {
    // The controller manager signs certificates with it.
    give(&directory.join("kubernetes-ca.key"), user)?;
    service_account(directory, user)?;
    encryption(directory, user)
}

fn issue(
    directory: &Path,
    authority: &Authority,
    certificate: &Certificate,
    user: &ServiceUser,
    life: Duration,
) -> Result<(), PhaseError> {
    if own_certificate(directory, certificate, user)? {
        return Ok(());
    }
    let issued = authority
        .issue(&Leaf::planned(certificate, life))
        .map_err(|error| lasting(&error))?;
    store_certificate(directory, certificate, &issued, user)
}

fn write_kubeconfig(
    directory: &Path,
    authority: &Authority,
    kubeconfig: &Kubeconfig,
    user: &ServiceUser,
    life: Duration,
) -> Result<(), PhaseError> {
    if own_kubeconfig(directory, kubeconfig, user)? {
        return Ok(());
    }
    let issued = authority
        .issue(&Leaf::client(
            &kubeconfig.common_name,
            &kubeconfig.organizations,
            life,
        ))
        .map_err(|error| lasting(&error))?;
    store_kubeconfig(
        directory,
        kubeconfig,
        authority.certificate_pem(),
        &issued,
        user,
    )
}

/// Whether a certificate is there with its key, which then has its owner.
pub(super) fn own_certificate(
    directory: &Path,
    certificate: &Certificate,
    user: &ServiceUser,
) -> Result<bool, PhaseError> {
    let key = directory.join(format!("{}.key", certificate.name));
    own_existing(&key, (!certificate.root_only).then_some(user))
}

/// Whether a kubeconfig is there, which then has its owner.
pub(super) fn own_kubeconfig(
    directory: &Path,
    kubeconfig: &Kubeconfig,
    user: &ServiceUser,
) -> Result<bool, PhaseError> {
    let path = directory.join(format!("{}.kubeconfig", kubeconfig.name));
    own_existing(&path, (!kubeconfig.root_only).then_some(user))
}

fn own_existing(path: &Path, owner: Option<&ServiceUser>) -> Result<bool, PhaseError> {
    match path.exists() {
        true => own(path, owner).map(|()| true),
        false => Ok(false),
    }
}

/// Writes a certificate and its key.
pub(super) fn store_certificate(
    directory: &Path,
    certificate: &Certificate,
    issued: &Issued,
    user: &ServiceUser,
) -> Result<(), PhaseError> {
    let path = directory.join(format!("{}.crt", certificate.name));
    host::atomic::write(&path, issued.certificate_pem.as_bytes(), 0o644)
        .map_err(|error| lasting(&error))?;
    // The key last: its presence says that both are there.
    let key = directory.join(format!("{}.key", certificate.name));
    secret(
        &key,
        issued.key_pem.as_bytes(),
        (!certificate.root_only).then_some(user),
    )
}

/// Writes a kubeconfig that holds its client certificate.
pub(crate) fn store_kubeconfig(
    directory: &Path,
    kubeconfig: &Kubeconfig,
    authority_pem: &str,
    issued: &Issued,
    user: &ServiceUser,
) -> Result<(), PhaseError> {
    let path = directory.join(format!("{}.kubeconfig", kubeconfig.name));
    let base64 = |pem: &str| pki::base64(pem.as_bytes());
    // JSON is YAML.
    let content = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "planet",
            "cluster": {
                "server": kubeconfig.server,
                "certificate-authority-data": base64(authority_pem),
            },
        }],
        "users": [{
            "name": kubeconfig.common_name,
            "user": {
                "client-certificate-data": base64(&issued.certificate_pem),
                "client-key-data": base64(&issued.key_pem),
            },
        }],
        "contexts": [{
            "name": "planet",
            "context": { "cluster": "planet", "user": kubeconfig.common_name },
        }],
        "current-context": "planet",
    });
    let content = format!("{content:#}\n");
    secret(
        &path,
        content.as_bytes(),
        (!kubeconfig.root_only).then_some(user),
    )
}

/// The key that signs tokens of service accounts.
fn service_account(directory: &Path, user: &ServiceUser) -> Result<(), PhaseError> {
    let key = directory.join("service-account.key");
    if key.exists() {
        give(&directory.join("service-account.pub"), user)?;
        return own(&key, Some(user));
    }
    let pair = pki::key_pair().map_err(|error| lasting(&error))?;
    let public = directory.join("service-account.pub");
    host::atomic::write(&public, pair.public_pem.as_bytes(), 0o644)
        .map_err(|error| lasting(&error))?;
    secret(&key, pair.key_pem.as_bytes(), Some(user))
}

/// The key with which Kubernetes encrypts Secrets in etcd.
fn encryption(directory: &Path, user: &ServiceUser) -> Result<(), PhaseError> {
    let path = directory.join("encryption.yaml");
    if path.exists() {
        return own(&path, Some(user));
    }
    let key = pki::random(ENCRYPTION_KEY).map_err(|error| lasting(&error))?;
    let content = serde_json::json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "EncryptionConfiguration",
        "resources": [{
            "resources": ["secrets"],
            "providers": [
                { "secretbox": { "keys": [{ "name": "1", "secret": pki::base64(&key) }] } },
                { "identity": {} },
            ],
        }],
    });
    secret(&path, format!("{content:#}\n").as_bytes(), Some(user))
}

/// Writes a file that one user may read: `owner`, or root where there is none.
fn secret(path: &Path, content: &[u8], owner: Option<&ServiceUser>) -> Result<(), PhaseError> {
    host::atomic::write(path, content, 0o600).map_err(|error| lasting(&error))?;
    own(path, owner)
}

/// Gives a secret to its reader. Also one that exists: whoever wrote it may
/// have been killed before it was given away.
fn own(path: &Path, owner: Option<&ServiceUser>) -> Result<(), PhaseError> {
    owner.map_or(Ok(()), |user| give(path, user))
}

fn give(path: &Path, user: &ServiceUser) -> Result<(), PhaseError> {
    chown(path, Some(user.uid), Some(user.gid)).map_err(|error| file("give away", path, &error))
}
