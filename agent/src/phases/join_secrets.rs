//! Makes keys and has the cluster's controller sign their certificates: no key
//! leaves the node. A master gets the keys that all masters share. What exists
//! is kept.

use std::collections::BTreeMap;

use operation::PhaseError;
use pki::Issued;
use spec::KUBERNETES_AUTHORITY;
use spec::phase::JoinSecrets;

use super::secrets::{
    own_certificate, own_cluster_keys, own_kubeconfig, store_certificate, store_kubeconfig,
};
use crate::Node;
use crate::node::{lasting, of_controller, session};

pub(crate) async fn execute(node: &Node, phase: JoinSecrets) -> Result<(), PhaseError> {
    let directory = node.layout().planet_secrets();
    for (name, pem) in &phase.authorities {
        let path = directory.join(format!("{name}.crt"));
        host::atomic::write(&path, pem.as_bytes(), 0o644).map_err(lasting)?;
    }
    let shared = |name: &String| !directory.join(name).exists();
    if phase.cluster_keys.iter().any(shared) {
        let mut session = session(node.layout(), &phase.controllers).await?;
        let mut keys = session.keys().await.map_err(of_controller)?;
        for name in &phase.cluster_keys {
            let missing = || PhaseError::lasting(format!("the cluster did not give {name}"));
            let content = keys.remove(name).ok_or_else(missing)?;
            let path = directory.join(name);
            host::atomic::write(&path, content.as_bytes(), 0o600).map_err(lasting)?;
        }
    }
    if !phase.cluster_keys.is_empty() {
        own_cluster_keys(&directory, &phase.user)?;
    }
    let mut certificates = Vec::new();
    for certificate in &phase.certificates {
        if !own_certificate(&directory, certificate, &phase.user)? {
            certificates.push(certificate);
        }
    }
    let mut kubeconfigs = Vec::new();
    for kubeconfig in &phase.kubeconfigs {
        if !own_kubeconfig(&directory, kubeconfig, &phase.user)? {
            kubeconfigs.push(kubeconfig);
        }
    }
    let names = certificates
        .iter()
        .map(|certificate| certificate.name.clone())
        .chain(
            kubeconfigs
                .iter()
                .map(|kubeconfig| kubeconfig.certificate()),
        );
    let mut keys = BTreeMap::new();
    for name in names {
        keys.insert(name, pki::request().map_err(lasting)?);
    }
    if keys.is_empty() {
        return Ok(());
    }
    let requests = keys
        .iter()
        .map(|(name, request)| (name.clone(), request.request_pem.clone()))
        .collect();
    let mut session = session(node.layout(), &phase.controllers).await?;
    let mut signed = session.sign(requests).await.map_err(of_controller)?;
    let mut take = |name: &str| {
        let made = signed.remove(name).zip(keys.get(name));
        let missing = || PhaseError::lasting(format!("the cluster did not sign {name}"));
        let (certificate_pem, request) = made.ok_or_else(missing)?;
        Ok::<_, PhaseError>(Issued {
            certificate_pem,
            key_pem: request.key_pem.clone(),
        })
    };
    for certificate in certificates {
        let made = take(&certificate.name)?;
        store_certificate(&directory, certificate, &made, &phase.user)?;
    }
    let authority = phase
        .authorities
        .get(KUBERNETES_AUTHORITY)
        .map_or("", String::as_str);
    for kubeconfig in kubeconfigs {
        let made = take(&kubeconfig.certificate())?;
        store_kubeconfig(&directory, kubeconfig, authority, &made, &phase.user)?;
    }
    Ok(())
}
