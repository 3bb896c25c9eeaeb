//! New certificates for keys whose certificates are due.
//!
//! In: what certificates the node has; the authorities on a master, the
//! controllers of its cluster on a worker. Out: new files, services that read
//! them. A certificate in a file of its own keeps its key, so that a crash
//! never leaves a key beside a certificate of another. Always holds: services
//! that have to read new certificates are restarted, by the next one where this
//! process ends before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use event::Sink;
use host::facts::Clock;
use host::lock::Lock;
use jiff::Timestamp;
use operation::PhaseError;
use pki::{Authority, Inspected, Issued, Leaf, Request};
use planet::client::{Client, ServiceStatus};
use spec::care::Care;
use spec::layout::Layout;
use spec::phase::{Certificate, Kubeconfig};
use spec::{KUBERNETES_AUTHORITY, RPC_AUTHORITY};

use crate::node::{file, lasting, session, transient};
use crate::phases::secrets::store_kubeconfig;

/// Services that know a certificate from their start only. etcd reads its own
/// anew with every connection, the API server its own when they change, `care`
/// kubeconfigs; containerd has none. No pod ends with them
/// (docs/decisions/0019-who-rereads-certificates.md).
const RESTARTED: &[&str] = &[
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "flannel",
    "coredns",
    "registry",
    "controller",
    "images",
    "status-hook",
];
/// How long services may take to be ready again.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is due.
#[derive(Debug, Default)]
struct Due<'a> {
    certificates: Vec<&'a Certificate>,
    kubeconfigs: Vec<&'a Kubeconfig>,
    /// The node's own, towards controllers.
    identity: bool,
}

impl Due<'_> {
    fn is_empty(&self) -> bool {
        self.certificates.is_empty() && self.kubeconfigs.is_empty() && !self.identity
    }
}

/// Replaces the certificates that are due and has the services read them, one
/// after the other. Returns the names of the files.
///
/// # Errors
/// When a certificate, a key or an authority can't be read or written, no
/// controller signs, or a service isn't ready again in time.
pub async fn renew(
    layout: &Layout,
    care: &Care,
    planet: &Client,
    is_due: impl Fn(&Inspected) -> bool,
    sink: &dyn Sink,
) -> Result<Vec<String>, PhaseError> {
    let lock = layout.secrets().join("renew.lock");
    let _lock = Lock::acquire(&lock).map_err(transient)?;
    let pending = layout.secrets().join("restart");
    let due = find(layout, care, &is_due)?;
    let requests = requests(layout, &due)?;
    let mut renewed = Vec::new();
    if !requests.is_empty() {
        let signed = match care.controllers.is_empty() {
            true => sign(layout, care, &requests)?,
            false => {
                let requests = requests
                    .iter()
                    .map(|(name, request)| (name.clone(), request.request_pem.clone()))
                    .collect();
                let mut session = session(layout, &care.controllers).await?;
                let signed = session.sign(requests).await;
                let signed = signed.map_err(transient)?;
                usable(&signed, Timestamp::now().as_second())?;
                signed
            }
        };
        // Before the first of them changes.
        host::atomic::write(&pending, b"", 0o600).map_err(lasting)?;
        renewed = store(layout, care, &due, &requests, &signed)?;
    }
    if pending.exists() {
        restart(planet, sink).await?;
        std::fs::remove_file(&pending).map_err(file("remove", &pending))?;
    }
    Ok(renewed)
}

/// Which certificates are due at `now`, in seconds since 1970: none where no one
/// is, and with the first of them all that will be within `period`. They were
/// made one after the other, and services are to be restarted once.
///
/// Where nothing keeps the clock right it may be months off, as with an empty battery,
/// and what is made then isn't good once it is set. There only the last quarter of its
/// life makes one due: a machine without a time server is still in time.
pub(super) fn due_together(
    layout: &Layout,
    care: &Care,
    now: i64,
    period: Duration,
    clock: Option<Clock>,
) -> impl Fn(&Inspected) -> bool + use<> {
    let is_kept_right = clock.is_some_and(|clock| clock.synchronised);
    let by = move |limit: i64| {
        move |found: &Inspected| match is_kept_right {
            true => found.half_life() <= limit || found.not_before > now,
            false => found.last_quarter() <= limit,
        }
    };
    // What can't be read is told by who renews.
    let is_any = find(layout, care, &by(now)).is_ok_and(|due| !due.is_empty());
    let period = i64::try_from(period.as_secs()).unwrap_or_default();
    by(if is_any { now + period } else { i64::MIN })
}

fn find<'a>(
    layout: &Layout,
    care: &'a Care,
    is_due: &impl Fn(&Inspected) -> bool,
) -> Result<Due<'a>, PhaseError> {
    let directory = layout.planet_secrets();
    let due = |pem: &str| Ok::<_, PhaseError>(is_due(&pki::inspect(pem).map_err(lasting)?));
    let mut found = Due::default();
    for certificate in &care.certificates {
        if due(&read(&certificate_path(&directory, certificate))?)? {
            found.certificates.push(certificate);
        }
    }
    for kubeconfig in &care.kubeconfigs {
        let path = directory.join(kubeconfig.certificate());
        let pem = pki::kubeconfig_certificate(&read(&path)?)
            .ok_or_else(|| PhaseError::lasting(format!("{} is damaged", path.display())))?;
        if due(&pem)? {
            found.kubeconfigs.push(kubeconfig);
        }
    }
    // The first master has none.
    if layout.node_certificate().exists() {
        found.identity = due(&read(&layout.node_certificate())?)?;
    }
    Ok(found)
}

fn certificate_path(directory: &Path, certificate: &Certificate) -> PathBuf {
    directory.join(format!("{}.crt", certificate.name))
}

fn read(path: &Path) -> Result<String, PhaseError> {
    std::fs::read_to_string(path).map_err(file("read", path))
}

/// Requests by the names under which controllers sign them.
fn requests(layout: &Layout, due: &Due<'_>) -> Result<BTreeMap<String, Request>, PhaseError> {
    let of_key = |path: &Path| pki::request_for(&read(path)?).map_err(lasting);
    let directory = layout.planet_secrets();
    let mut requests = BTreeMap::new();
    for certificate in &due.certificates {
        let key = directory.join(format!("{}.key", certificate.name));
        requests.insert(certificate.name.clone(), of_key(&key)?);
    }
    for kubeconfig in &due.kubeconfigs {
        // Key and certificate are in one file.
        let request = pki::request().map_err(lasting)?;
        requests.insert(kubeconfig.certificate(), request);
    }
    if due.identity {
        let request = of_key(&layout.node_key())?;
        requests.insert(spec::NODE_IDENTITY.into(), request);
    }
    Ok(requests)
}

/// Signs with the authorities of this node.
fn sign(
    layout: &Layout,
    care: &Care,
    requests: &BTreeMap<String, Request>,
) -> Result<BTreeMap<String, String>, PhaseError> {
    let directory = layout.planet_secrets();
    let life = care.leaf_lifetime();
    let mut leaves = BTreeMap::new();
    for certificate in &care.certificates {
        let leaf = Leaf::planned(certificate, life);
        leaves.insert(certificate.name.clone(), (&*certificate.authority, leaf));
    }
    for kubeconfig in &care.kubeconfigs {
        let leaf = Leaf::client(&kubeconfig.common_name, &kubeconfig.organizations, life);
        leaves.insert(kubeconfig.certificate(), (KUBERNETES_AUTHORITY, leaf));
    }
    let identity = Leaf::client(&care.identity, &[], life);
    leaves.insert(spec::NODE_IDENTITY.to_owned(), (RPC_AUTHORITY, identity));
    let wanted: BTreeSet<_> = requests
        .keys()
        .filter_map(|name| leaves.get(name).map(|(authority, _)| *authority))
        .collect();
    let mut authorities = BTreeMap::new();
    for name in wanted {
        let authority = Authority::load(&directory, name).map_err(lasting)?;
        authorities.insert(name, authority);
    }
    let mut signed = BTreeMap::new();
    for (name, request) in requests {
        let (authority, leaf) = leaves.get(name).ok_or_else(|| missing(name))?;
        let authority = authorities.get(authority).ok_or_else(|| missing(name))?;
        let pem = authority.sign(&request.request_pem, leaf);
        signed.insert(name.clone(), pem.map_err(lasting)?);
    }
    Ok(signed)
}

/// Refuses certificates that are not good now: those that the node has may be, and it
/// is known to controllers by one of them.
fn usable(signed: &BTreeMap<String, String>, now: i64) -> Result<(), PhaseError> {
    for (name, pem) in signed {
        let found = pki::inspect(pem).map_err(lasting)?;
        if !(found.not_before..found.not_after).contains(&now) {
            return Err(PhaseError::transient(format!(
                "the new certificate {name} is not good by this node's clock: set it right, and \
                 that of the master that signed it"
            )));
        }
    }
    Ok(())
}

fn missing(name: &str) -> PhaseError {
    PhaseError::lasting(format!("nobody signed the certificate {name}"))
}

fn store(
    layout: &Layout,
    care: &Care,
    due: &Due<'_>,
    requests: &BTreeMap<String, Request>,
    signed: &BTreeMap<String, String>,
) -> Result<Vec<String>, PhaseError> {
    let directory = layout.planet_secrets();
    let of = |name: &str| signed.get(name).ok_or_else(|| missing(name));
    let write =
        |path: &Path, pem: &str| host::atomic::write(path, pem.as_bytes(), 0o644).map_err(lasting);
    let mut renewed = Vec::new();
    if due.identity {
        write(&layout.node_certificate(), of(spec::NODE_IDENTITY)?)?;
        renewed.push("node.crt".to_owned());
    }
    for certificate in &due.certificates {
        let path = certificate_path(&directory, certificate);
        write(&path, of(&certificate.name)?)?;
        renewed.push(format!("{}.crt", certificate.name));
    }
    if due.kubeconfigs.is_empty() {
        return Ok(renewed);
    }
    let authority = read(&directory.join(format!("{KUBERNETES_AUTHORITY}.crt")))?;
    for kubeconfig in &due.kubeconfigs {
        let name = kubeconfig.certificate();
        let request = requests.get(&name).ok_or_else(|| missing(&name))?;
        let issued = Issued {
            certificate_pem: of(&name)?.clone(),
            key_pem: request.key_pem.clone(),
        };
        store_kubeconfig(&directory, kubeconfig, &authority, &issued, &care.user)?;
        renewed.push(name);
    }
    Ok(renewed)
}

/// Those of [`RESTARTED`] that have a process: the others will know what they start
/// with. Of a master that stands by, what needs its API server never runs.
fn running(services: &[ServiceStatus]) -> Vec<String> {
    let runs = |name: &&&str| {
        let mut services = services.iter();
        services.any(|service| service.name == **name && service.pid.is_some())
    };
    let running = RESTARTED.iter().filter(runs);
    running.map(|name| (*name).to_owned()).collect()
}

async fn restart(planet: &Client, sink: &dyn Sink) -> Result<(), PhaseError> {
    let restarted = async {
        let running = running(&planet.status().await?.services);
        for name in &running {
            sink.step(&format!("Restarting {name}"));
            planet.restart(name).await?;
            planet
                .wait_ready(std::slice::from_ref(name), PATIENCE)
                .await?;
        }
        match running.is_empty() {
            true => Ok(()),
            // One that is restarted takes others along.
            false => planet.wait_ready(&running, PATIENCE).await,
        }
    };
    restarted.await.map_err(transient)
}

#[cfg(test)]
mod tests {
    use planet::client::State;

    use super::*;
    use crate::Node;
    use crate::phases::secrets;

    const HOUR: u64 = 3600;

    #[test]
    fn only_what_runs_is_restarted() {
        let service = |name: &str, pid| ServiceStatus {
            name: name.into(),
            state: State::Starting,
            pid,
            restarts: 0,
            since: 0,
            last_error: None,
        };
        let services = [
            service("kubelet", Some(7)),
            service("kube-controller-manager", None),
            service("etcd", Some(8)),
        ];
        assert_eq!(running(&services), ["kubelet"]);
    }

    /// A master with one certificate and one kubeconfig.
    fn master(directory: &Path) -> (Layout, Care) {
        let node = Node::open(Layout::new(directory)).unwrap();
        let layout = node.layout().clone();
        let made = secrets::tests::planned(directory);
        secrets::execute(&node, &made).unwrap();
        let care = Care {
            version: spec::VERSION,
            node: "node-1".into(),
            user: made.user,
            leaf_seconds: HOUR,
            certificates: made.certificates,
            kubeconfigs: made.kubeconfigs,
            identity: "node:1".into(),
            controllers: Vec::new(),
            etcd: true,
        };
        (layout, care)
    }

    fn replace(layout: &Layout, care: &Care, is_due: impl Fn(&Inspected) -> bool) -> Vec<String> {
        let due = find(layout, care, &is_due).unwrap();
        let requests = requests(layout, &due).unwrap();
        let signed = sign(layout, care, &requests).unwrap();
        store(layout, care, &due, &requests, &signed).unwrap()
    }

    #[test]
    fn certificates_that_are_due_are_renewed_and_keep_their_keys() {
        let directory = tempfile::tempdir().unwrap();
        let (layout, mut care) = master(directory.path());
        let text = |name: &str| read(&layout.planet_secrets().join(name)).unwrap();
        let found = || {
            let kubeconfig = pki::kubeconfig_certificate(&text("admin.kubeconfig")).unwrap();
            [text("apiserver.crt"), kubeconfig].map(|pem| pki::inspect(&pem).unwrap())
        };
        let (key, first) = (text("apiserver.key"), found());
        let end = first[0].not_after;
        // Half an hour is over, then half of its life.
        let at = |now: i64| move |found: &Inspected| found.half_life() <= now;
        assert!(replace(&layout, &care, at(end - 1801)).is_empty());
        assert_eq!(found(), first);
        care.leaf_seconds = 99 * HOUR;
        let names = ["apiserver.crt", "admin.kubeconfig"];
        assert_eq!(replace(&layout, &care, at(end - 1790)), names);
        let second = found();
        assert!(
            second
                .iter()
                .zip(&first)
                .all(|(new, old)| new.not_after > old.not_after)
        );
        assert_eq!(second[0].common_name, "node-1");
        assert!(replace(&layout, &care, at(end)).is_empty());
        assert_eq!(text("apiserver.key"), key);
    }

    #[test]
    fn those_that_are_due_soon_are_renewed_with_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let (layout, mut care) = master(directory.path());
        care.leaf_seconds = HOUR + 60;
        let only_first = |found: &Inspected| found.common_name == "admin";
        assert_eq!(replace(&layout, &care, only_first), ["admin.kubeconfig"]);
        let first = pki::inspect(&read(&layout.planet_secrets().join("apiserver.crt")).unwrap());
        let first = first.unwrap();
        for (is_kept_right, begin) in [(true, first.half_life()), (false, first.last_quarter())] {
            let clock = Clock {
                synchronised: is_kept_right,
                max_error_us: 0,
            };
            let renewed = |now: i64, period: u64| {
                let period = Duration::from_secs(period);
                let due = due_together(&layout, &care, now, period, Some(clock));
                let found = find(&layout, &care, &due).unwrap();
                found.certificates.len() + found.kubeconfigs.len()
            };
            assert_eq!(renewed(begin - 1, 300), 0);
            assert_eq!(renewed(begin, 0), 1);
            assert_eq!(renewed(begin, 300), 2);
            // They were made while the clock was ahead.
            let all = if is_kept_right { 2 } else { 0 };
            assert_eq!(renewed(first.not_before - 1, 300), all);
        }
    }

    #[test]
    fn a_certificate_that_is_not_good_yet_or_any_more_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (layout, _) = master(directory.path());
        let pem = read(&layout.planet_secrets().join("apiserver.crt")).unwrap();
        let found = pki::inspect(&pem).unwrap();
        let signed = BTreeMap::from([("apiserver".to_owned(), pem)]);
        for (now, is_good) in [
            (found.not_before - 1, false),
            (found.not_before, true),
            (found.not_after - 1, true),
            (found.not_after, false),
        ] {
            assert_eq!(usable(&signed, now).is_ok(), is_good, "{now}");
        }
    }

    #[tokio::test]
    async fn services_that_were_not_restarted_are_at_the_next_time() {
        let directory = tempfile::tempdir().unwrap();
        let (layout, care) = master(directory.path());
        let nobody = Client::new(&directory.path().join("planet.sock"));
        let pending = layout.secrets().join("restart");
        let renew = async |all: bool| {
            let due = |_: &Inspected| all;
            renew(&layout, &care, &nobody, due, &event::Discard).await
        };
        assert_eq!(renew(false).await.unwrap(), [""; 0]);
        // The planet can't be asked.
        renew(true).await.unwrap_err();
        assert!(pending.exists());
        renew(false).await.unwrap_err();
        std::fs::remove_file(&pending).unwrap();
        renew(false).await.unwrap();
        let damaged = layout.planet_secrets().join("apiserver.crt");
        host::atomic::write(&damaged, b"damaged", 0o644).unwrap();
        renew(false).await.unwrap_err();
    }
}
