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
use spec::phase::{Certificate, Kubeconfig, Secrets};
use spec::{KUBERNETES_AUTHORITY, ServiceUser};

use crate::Node;
use crate::node::{file, lasting, remove_file};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Authorities are replaced by hand, with bundles: ten years.
const AUTHORITY_LIFE: Duration = DAY.saturating_mul(3650);
/// Bytes of the key that encrypts Kubernetes secrets at rest.
const ENCRYPTION_KEY: usize = 32;

pub(crate) fn execute(node: &Node, phase: &Secrets) -> Result<(), PhaseError> {
    let directory = node.layout().planet_secrets();
    let mut authorities = BTreeMap::new();
    for (name, common_name) in &phase.authorities {
        let authority = match keep_pair(&directory, name, "crt")? {
            true => Authority::load(&directory, name).map_err(lasting)?,
            false => {
                let made = Authority::generate(common_name, AUTHORITY_LIFE).map_err(lasting)?;
                // A removal that was cut off may have left it.
                remove_signed(&directory, phase, name)?;
                made.save(&directory, name).map_err(lasting)?;
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
        let authority = authority(KUBERNETES_AUTHORITY)?;
        write_kubeconfig(&directory, authority, kubeconfig, &phase.user, life)?;
    }
    own_cluster_keys(&directory, &phase.user)
}

/// Whether a key and its public half are there. A key that is there alone goes, as it
/// doesn't fit the public half that is made next.
fn keep_pair(directory: &Path, name: &str, public: &str) -> Result<bool, PhaseError> {
    let key = directory.join(format!("{name}.key"));
    if directory.join(format!("{name}.{public}")).exists() {
        return Ok(key.exists());
    }
    remove_file(&key).map(|()| false)
}

/// Removes what a former authority of that name has signed, so that it's made anew.
fn remove_signed(directory: &Path, phase: &Secrets, authority: &str) -> Result<(), PhaseError> {
    let certificates = phase.certificates.iter();
    let signed = certificates.filter(|certificate| certificate.authority == authority);
    let keys = signed.map(|certificate| format!("{}.key", certificate.name));
    let kubeconfigs = phase.kubeconfigs.iter();
    let signed = kubeconfigs.filter(|_| authority == KUBERNETES_AUTHORITY);
    let kubeconfigs = signed.map(|kubeconfig| format!("{}.kubeconfig", kubeconfig.name));
    for name in keys.chain(kubeconfigs) {
        remove_file(&directory.join(name))?;
    }
    Ok(())
}

/// Gives the keys that all masters share to their readers; those of Kubernetes
/// are made where they don't exist.
pub(super) fn own_cluster_keys(directory: &Path, user: &ServiceUser) -> Result<(), PhaseError> {
    // The controller manager signs certificates with it.
    give(&directory.join(format!("{KUBERNETES_AUTHORITY}.key")), user)?;
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
        .map_err(lasting)?;
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
        .map_err(lasting)?;
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
    if !keep_pair(directory, &certificate.name, "crt")? {
        return Ok(false);
    }
    let key = directory.join(format!("{}.key", certificate.name));
    own(&key, (!certificate.root_only).then_some(user)).map(|()| true)
}

/// Whether a kubeconfig is there, which then has its owner.
pub(super) fn own_kubeconfig(
    directory: &Path,
    kubeconfig: &Kubeconfig,
    user: &ServiceUser,
) -> Result<bool, PhaseError> {
    let path = directory.join(format!("{}.kubeconfig", kubeconfig.name));
    if !path.exists() {
        return Ok(false);
    }
    own(&path, (!kubeconfig.root_only).then_some(user)).map(|()| true)
}

/// Writes a certificate and its key.
pub(super) fn store_certificate(
    directory: &Path,
    certificate: &Certificate,
    issued: &Issued,
    user: &ServiceUser,
) -> Result<(), PhaseError> {
    let path = directory.join(format!("{}.crt", certificate.name));
    host::atomic::write(&path, issued.certificate_pem.as_bytes(), 0o644).map_err(lasting)?;
    // The key last: where it is, the certificate is.
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
    let public = directory.join("service-account.pub");
    if keep_pair(directory, "service-account", "pub")? {
        give(&public, user)?;
        return give(&key, user);
    }
    let pair = pki::key_pair().map_err(lasting)?;
    host::atomic::write(&public, pair.public_pem.as_bytes(), 0o644).map_err(lasting)?;
    secret(&key, pair.key_pem.as_bytes(), Some(user))
}

/// The key with which Kubernetes encrypts Secrets in etcd.
fn encryption(directory: &Path, user: &ServiceUser) -> Result<(), PhaseError> {
    let path = directory.join("encryption.yaml");
    if path.exists() {
        return give(&path, user);
    }
    let key = pki::random(ENCRYPTION_KEY).map_err(lasting)?;
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
    let written = match owner {
        Some(user) => host::atomic::write_owned(path, content, 0o600, user.uid, user.gid),
        None => host::atomic::write(path, content, 0o600),
    };
    written.map_err(lasting)
}

/// Gives a secret that exists to its reader, who may be another one by now.
fn own(path: &Path, owner: Option<&ServiceUser>) -> Result<(), PhaseError> {
    owner.map_or(Ok(()), |user| give(path, user))
}

fn give(path: &Path, user: &ServiceUser) -> Result<(), PhaseError> {
    chown(path, Some(user.uid), Some(user.gid)).map_err(file("give away", path))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::MetadataExt;

    use spec::layout::Layout;

    use super::*;

    /// One certificate and one kubeconfig, for an hour.
    pub(crate) fn planned(directory: &Path) -> Secrets {
        let own = directory.metadata().unwrap();
        Secrets {
            user: ServiceUser {
                name: "planet".into(),
                uid: own.uid(),
                gid: own.gid(),
            },
            authorities: BTreeMap::from([(KUBERNETES_AUTHORITY.into(), "kubernetes".into())]),
            certificates: vec![Certificate {
                name: "apiserver".into(),
                authority: KUBERNETES_AUTHORITY.into(),
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
            leaf_seconds: 3600,
        }
    }

    #[test]
    fn what_is_whole_is_kept_and_what_a_removal_has_left_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::open(Layout::new(directory.path())).unwrap();
        let phase = planned(directory.path());
        let secrets = node.layout().planet_secrets();
        // What is made anew where the first of them is lost.
        let signed = &["apiserver.crt", "admin.kubeconfig"][..];
        for (lost, anew) in [
            ("kubernetes-ca.crt", signed),
            ("kubernetes-ca.key", signed),
            ("apiserver.crt", &["apiserver.crt"]),
            ("apiserver.key", &["apiserver.crt"]),
            ("service-account.pub", &["service-account.key"]),
        ] {
            let read = |name: &&str| std::fs::read(secrets.join(name)).unwrap();
            execute(&node, &phase).unwrap();
            let first: Vec<_> = anew.iter().map(read).collect();
            execute(&node, &phase).unwrap();
            assert!(anew.iter().map(read).eq(first.iter().cloned()), "{lost}");
            std::fs::remove_file(secrets.join(lost)).unwrap();
            execute(&node, &phase).unwrap();
            let mut pairs = anew.iter().map(read).zip(&first);
            assert!(pairs.all(|(now, first)| now != *first), "{lost}");
            assert!(secrets.join(lost).exists(), "{lost}");
            Authority::load(&secrets, KUBERNETES_AUTHORITY).unwrap();
        }
    }

    #[test]
    fn a_kubeconfig_stays_as_it_was_where_it_cannot_be_given_to_its_reader() {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::open(Layout::new(directory.path())).unwrap();
        let phase = planned(directory.path());
        execute(&node, &phase).unwrap();
        let secrets = node.layout().planet_secrets();
        let path = secrets.join("admin.kubeconfig");
        let first = std::fs::read(&path).unwrap();
        let kubeconfig = Kubeconfig {
            root_only: false,
            ..phase.kubeconfigs[0].clone()
        };
        let other = ServiceUser {
            uid: phase.user.uid + 1,
            ..phase.user.clone()
        };
        let authority = Authority::load(&secrets, KUBERNETES_AUTHORITY).unwrap();
        let issued = authority.issue(&Leaf::client("admin", &[], DAY)).unwrap();
        let pem = authority.certificate_pem();
        let given = store_kubeconfig(&secrets, &kubeconfig, pem, &issued, &other).is_ok();
        // Root may give it away.
        let is_others = path.metadata().unwrap().uid() == other.uid;
        let is_first = std::fs::read(&path).unwrap() == first;
        assert_eq!((is_others, is_first), (given, !given));
    }
}
