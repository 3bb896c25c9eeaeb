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
use spec::layout::Layout;
use spec::phase::{Certificate, Kubeconfig, Secrets};

use crate::Node;
use crate::node::{file, lasting};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Authorities are replaced by hand, with bundles: ten years.
const AUTHORITY_LIFE: Duration = DAY.saturating_mul(3650);
/// Authority of kubeconfigs.
const KUBERNETES: &str = "kubernetes-ca";
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
    for certificate in &phase.certificates {
        issue(
            &directory,
            authority(&certificate.authority)?,
            certificate,
            &phase.user,
        )?;
    }
    for kubeconfig in &phase.kubeconfigs {
        write_kubeconfig(&directory, authority(KUBERNETES)?, kubeconfig, &phase.user)?;
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
) -> Result<(), PhaseError> {
    if own_certificate(directory, certificate, user)? {
        return Ok(());
    }
    let issued = authority
        .issue(&Leaf::planned(certificate, pki::LEAF_LIFETIME))
        .map_err(|error| lasting(&error))?;
    store_certificate(directory, certificate, &issued, user)
}

fn write_kubeconfig(
    directory: &Path,
    authority: &Authority,
    kubeconfig: &Kubeconfig,
    user: &ServiceUser,
) -> Result<(), PhaseError> {
    if own_kubeconfig(directory, kubeconfig, user)? {
        return Ok(());
    }
    let issued = authority
        .issue(&Leaf::client(
            &kubeconfig.common_name,
            &kubeconfig.organizations,
            pki::LEAF_LIFETIME,
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

/// Replaces the certificates of a master that are due, by new ones that are
/// good for `valid_for`. A certificate keeps its key, so that a crash never
/// leaves a key beside a certificate of another. Returns the names of the files.
///
/// # Errors
/// When a certificate, a key or an authority can't be read or written.
pub fn renew(
    layout: &Layout,
    secrets: &Secrets,
    valid_for: Duration,
    is_due: impl Fn(&pki::Inspected) -> bool,
) -> Result<Vec<String>, PhaseError> {
    let directory = layout.planet_secrets();
    let authority = |name: &str| Authority::load(&directory, name).map_err(|error| lasting(&error));
    let due = |pem: &str| Ok::<_, PhaseError>(is_due(&pki::inspect(pem).map_err(|e| lasting(&e))?));
    let mut renewed = Vec::new();
    for certificate in &secrets.certificates {
        let file = format!("{}.crt", certificate.name);
        let path = directory.join(&file);
        if !due(&read(&path)?)? {
            continue;
        }
        let key = read(&directory.join(format!("{}.key", certificate.name)))?;
        let pem = authority(&certificate.authority)?
            .renew(&key, &Leaf::planned(certificate, valid_for))
            .map_err(|error| lasting(&error))?;
        host::atomic::write(&path, pem.as_bytes(), 0o644).map_err(|error| lasting(&error))?;
        renewed.push(file);
    }
    for kubeconfig in &secrets.kubeconfigs {
        let file = format!("{}.kubeconfig", kubeconfig.name);
        let path = directory.join(&file);
        let pem = pki::kubeconfig_certificate(&read(&path)?)
            .ok_or_else(|| PhaseError::lasting(format!("{} is damaged", path.display())))?;
        if !due(&pem)? {
            continue;
        }
        let authority = authority(KUBERNETES)?;
        let issued = authority
            .issue(&Leaf::client(
                &kubeconfig.common_name,
                &kubeconfig.organizations,
                valid_for,
            ))
            .map_err(|error| lasting(&error))?;
        let pem = authority.certificate_pem();
        store_kubeconfig(&directory, kubeconfig, pem, &issued, &secrets.user)?;
        renewed.push(file);
    }
    Ok(renewed)
}

fn read(path: &Path) -> Result<String, PhaseError> {
    std::fs::read_to_string(path).map_err(|error| file("read", path, &error))
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
pub(super) fn store_kubeconfig(
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn certificates_that_are_due_are_renewed_and_keep_their_keys() {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::open(Layout::new(directory.path())).unwrap();
        let layout = node.layout().clone();
        let own = directory.path().metadata().unwrap();
        let secrets = Secrets {
            user: ServiceUser {
                name: "planet".into(),
                uid: own.uid(),
                gid: own.gid(),
            },
            authorities: BTreeMap::from([(KUBERNETES.into(), "kubernetes".into())]),
            certificates: vec![Certificate {
                name: "apiserver".into(),
                authority: KUBERNETES.into(),
                common_name: "node-1".into(),
                organizations: Vec::new(),
                dns_names: vec!["localhost".into()],
                ip_addresses: Vec::new(),
                server: true,
                client: false,
                root_only: false,
            }],
            kubeconfigs: vec![Kubeconfig {
                name: "admin".into(),
                common_name: "admin".into(),
                organizations: vec!["system:masters".into()],
                server: "https://localhost:6443".into(),
                root_only: true,
            }],
        };
        execute(&node, &secrets).unwrap();
        let text = |name: &str| read(&layout.planet_secrets().join(name)).unwrap();
        let ends = || {
            let certificate = pki::inspect(&text("apiserver.crt")).unwrap();
            let kubeconfig = pki::kubeconfig_certificate(&text("admin.kubeconfig")).unwrap();
            [
                certificate.not_after,
                pki::inspect(&kubeconfig).unwrap().not_after,
            ]
        };
        let (key, first) = (text("apiserver.key"), ends());
        assert!(
            renew(&layout, &secrets, HOUR, |_| false)
                .unwrap()
                .is_empty()
        );
        assert_eq!(ends(), first);
        // Short lives, so that they are due soon: then they get longer ones.
        let names = ["apiserver.crt", "admin.kubeconfig"];
        assert_eq!(renew(&layout, &secrets, HOUR, |_| true).unwrap(), names);
        let short = ends();
        assert!(short.iter().zip(first).all(|(new, old)| *new < old));
        let day = short[0] - 60;
        let due = |found: &pki::Inspected| found.half_life() < day;
        assert_eq!(renew(&layout, &secrets, HOUR * 99, due).unwrap(), names);
        assert!(ends().iter().zip(short).all(|(new, old)| *new > old));
        assert!(renew(&layout, &secrets, HOUR, due).unwrap().is_empty());
        assert_eq!(text("apiserver.key"), key);
    }
}
