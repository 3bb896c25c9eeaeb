//! `gravity join`: asks the cluster, checks the node, has it taken in, plans,
//! and has the plan executed.

mod fetch;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use console::ExitCode;
use event::Sink;
use host::changes::{Change, Journal};
use host::facts::Peer;
use image::Image;
use image::cluster::ClusterImage;
use installer::coordinator::{Action, Operation};
use installer::fetch::Neighbours;
use installer::install::{self, KnownUsers, choose_address};
use installer::join;
use operation::State;
use pki::tls::{Identity, Trust};
use pki::{JoinToken, Request};
use preflight::Requirements;
use rpc::controller::{Error, Refusal, Session as Controller};
use rpc::peer::MAX_PORTS;
use spec::layout::Layout;
use spec::phase::{JoinSecrets, PhaseSpec};
use spec::{Candidate, ClusterSpec, Membership, RPC_AUTHORITY};
use tokio::runtime::Handle;

use self::fetch::Fetch;
use super::install::{content, refuse_former, verify};
use super::peers::Way;
use super::{Session, check, require_root, token};
use crate::cli::Join;

/// How long a node waits for its turn: masters join one after the other.
const TURN: Duration = Duration::from_secs(300);
/// How often it asks.
const PAUSE: Duration = Duration::from_secs(2);
/// Workers to which the way is measured, at most.
const WORKERS: usize = 4;

pub(crate) async fn run(session: &Session, arguments: &Join) -> Result<ExitCode> {
    require_root()?;
    refuse_former(&session.layout)?;
    let token = token::chosen(arguments.token.as_deref(), arguments.token_file.as_deref())?
        .context("a token is needed: --token or --token-file")?;
    let own = own_image(session)?;
    session.console.step("Connecting to the cluster");
    let cluster = describe(arguments, &token).await?;
    session
        .console
        .step(&format!("Joining cluster {}", cluster.name));
    let neighbours = admit(arguments, &token).await?;
    let fetch = match &own {
        Some(_) => None,
        None => Some(Fetch::begin(session, arguments, &cluster, neighbours.clone()).await?),
    };
    let image = match (own, &fetch) {
        (None, Some(fetch)) => fetch.documents().clone(),
        (own, _) => own.context("open the cluster image")?,
    };
    let path = match &fetch {
        Some(_) => Fetch::path(session),
        None => session.image_path()?,
    };
    let read = ClusterImage::open(image.clone()).context("read the cluster image")?;
    let (manifest, content) = content(path, &read)?;
    let options = join::Options {
        advertise_address: arguments.advertise_addr,
        role: arguments.role.clone(),
        state_dir: session.layout.state_dir().to_owned(),
        mounts: arguments.mount.iter().cloned().collect(),
    };
    let facts = preflight::host_facts();
    let user = &cluster.service_user;
    let users = KnownUsers {
        with_id: host::users::user_by_id(user.uid)?,
        named: host::users::user_by_name(&user.name)?,
    };
    let candidate = join::candidate(&options, &manifest, &content, &cluster, &facts, &users)?;
    fits(arguments, &token, &candidate).await?;
    session.console.step("Checking the node's requirements");
    let profile = join::choose_profile(&manifest, options.role.as_deref())?;
    let profile = install::with_mounts(profile, &options.mounts, &options.state_dir)?;
    let mut requirements = check::requirements(
        &terms(&cluster, &options.state_dir),
        cluster.pod_network,
        choose_address(options.advertise_address, &facts)?,
        profile.as_ref(),
        Some(&image),
    );
    let room = fetch.as_ref().map_or(0, |fetch| fetch.room(session));
    requirements.state_bytes = requirements.state_bytes.saturating_add(room);
    let between = requirements.clone();
    let runtime = Handle::current();
    let peers = || {
        let way = Way {
            known: neighbours.known(),
            from: between.advertise_address,
            facts: &facts,
            rate: between.profile.network.min_transfer_rate.map(|rate| rate.0),
        };
        let measured = runtime.block_on(measure(session, &way, &cluster, &between));
        reachable(session, measured)
    };
    let console = &session.console;
    let decided = check::Decided {
        disks: true,
        ignore: &arguments.ignore,
    };
    let report = check::before(console, requirements, facts.clone(), decided, peers)?;
    let image = match fetch {
        Some(fetch) => fetch.complete(session).await?,
        None => image,
    };
    verify(session, &image)?;
    let plan = |membership: &Membership| {
        let mounts = &options.mounts;
        Ok(join::plan(
            membership, &manifest, &content, &users, &facts, mounts,
        )?)
    };
    let operation = begin(session, arguments, &token, &candidate, plan).await?;
    check::record(&report, &operation)?;
    super::process::start(session, &operation, &Action::Run).await
}

/// The image of `--image` or the one that this program carries, if it does.
fn own_image(session: &Session) -> Result<Option<Image>> {
    let carries_none = |error: &anyhow::Error| {
        let error = error.downcast_ref();
        matches!(error, Some(image::Error::NotAnImage { .. }))
    };
    match session.image() {
        Ok(image) => Ok(Some(image)),
        Err(error) if session.global.image.is_none() && carries_none(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Measures the way to all masters, and to some of the workers: which ones is left to
/// chance, so that many joins try many of them.
async fn measure(
    session: &Session,
    way: &Way<'_>,
    cluster: &ClusterSpec,
    requirements: &Requirements,
) -> Vec<Peer> {
    let ports = preflight::ports_between(requirements, preflight::Other::Master, MAX_PORTS);
    let mut peers = way.measure(session, &cluster.controllers(), &ports).await;
    let address = |worker| SocketAddr::new(worker, spec::CONTROLLER_PORT);
    let workers = fastrand::choose_multiple(cluster.workers().map(address), WORKERS);
    let ports = preflight::ports_between(requirements, preflight::Other::Worker, MAX_PORTS);
    peers.extend(way.measure(session, &workers, &ports).await);
    peers
}

/// Those that answered: a node that is down is no reason not to join others.
fn reachable(session: &Session, mut peers: Vec<Peer>) -> Vec<Peer> {
    peers.retain(|peer| match &peer.seen {
        Ok(_) => true,
        Err(why) => {
            let address = peer.address;
            let told = format!("Nothing was measured between this node and {address}: {why}");
            session.console.warning(&told);
            false
        }
    });
    peers
}

/// What the cluster has decided of what a node must offer.
fn terms(cluster: &ClusterSpec, state_dir: &Path) -> install::Options {
    install::Options {
        pod_cidr: first(&cluster.pod_cidrs),
        service_cidr: first(&cluster.service_cidrs),
        vxlan_port: Some(cluster.vxlan_port),
        service_uid: cluster.service_user.uid,
        ..install::Options::of_defaults(state_dir)
    }
}

fn first(cidrs: &[String]) -> String {
    cidrs.first().cloned().unwrap_or_default()
}

async fn open(arguments: &Join, token: &JoinToken) -> Result<Controller, Error> {
    let trust = token.fingerprint.map_or(Trust::Proof, Trust::Fingerprint);
    Controller::open(&arguments.peers, &trust, None).await
}

/// Has the cluster admit this node to its image, and to measuring the way to its nodes.
async fn admit(arguments: &Join, token: &JoinToken) -> Result<Neighbours> {
    let request = pki::request()?;
    let mut controller = open(arguments, token).await?;
    let admission = controller
        .admit(token, &request.request_pem)
        .await
        .context("ask the cluster to admit this node")?;
    let (controllers, local) = (arguments.peers.clone(), controller.local());
    Ok(Neighbours::new(
        controllers,
        admission,
        request.key_pem,
        local,
    ))
}

async fn describe(arguments: &Join, token: &JoinToken) -> Result<ClusterSpec> {
    let cluster = open(arguments, token).await?.describe(token).await?;
    if cluster.version != spec::VERSION {
        bail!(
            "the cluster's description has version {}, this program knows {}: use the gravity of the cluster's image",
            cluster.version,
            spec::VERSION
        );
    }
    Ok(cluster)
}

/// Asks whether the node would be taken in, before anything takes its time.
async fn fits(arguments: &Join, token: &JoinToken, candidate: &Candidate) -> Result<()> {
    let mut controller = open(arguments, token).await?;
    match controller.fits(token, candidate).await {
        // It waits for its turn when it is checked.
        Err(Error::Refused(Refusal::NotNow(_))) => Ok(()),
        told => Ok(told?),
    }
}

/// Makes the state directory ours, has the node taken in and writes its plan
/// down. Where that fails the node is as it was.
async fn begin(
    session: &Session,
    arguments: &Join,
    token: &JoinToken,
    candidate: &Candidate,
    plan: impl Fn(&Membership) -> Result<operation::Plan>,
) -> Result<Operation> {
    let layout = &session.layout;
    let _lock = host::lock::Lock::acquire(&layout.operation_lock())?;
    if layout.cluster().exists() || Operation::last(layout).is_ok() {
        bail!("another operation of this node has begun; see `gravity plan`");
    }
    agent::leave::adopt_state_dir(layout)?;
    let joined = async {
        let request = pki::request()?;
        let membership = taken_in(session, arguments, token, candidate, &request).await?;
        let kept = keep_identity(layout, &request, &membership)
            .and_then(|()| Ok(Operation::create(layout, plan(&membership)?)?));
        if kept.is_err() {
            let identity = Identity {
                certificate_pem: membership.certificate,
                key_pem: request.key_pem,
            };
            let controllers = membership.cluster.controllers();
            let console = &*session.console;
            forget(&controllers, &membership.authorities, Ok(identity), console).await;
        }
        kept
    };
    let joined = joined.await;
    if joined.is_err() {
        take_back(layout).context("take back what was begun")?;
    }
    joined
}

/// Takes back what a try has made that was not to be. What `gravity check --autofix` has
/// mended stays, and what has come of the image: the same command goes on with both.
fn take_back(layout: &Layout) -> Result<()> {
    let changes = Journal::read(&layout.host_changes())?;
    let mut changes = changes.iter();
    let mended = changes.any(|change| !matches!(change, Change::OwnedTree { .. }));
    if !mended && !layout.cluster_image().exists() {
        let left = agent::leave::leave(layout, false, &event::Discard);
        return Ok(left.map(drop)?);
    }
    let secrets = layout.secrets();
    match std::fs::remove_dir_all(&secrets) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", secrets.display()))
        }
        _ => Ok(()),
    }
}

/// Has the node taken in; while others join, or nobody answers, it waits for its turn.
async fn taken_in(
    session: &Session,
    arguments: &Join,
    token: &JoinToken,
    candidate: &Candidate,
    request: &Request,
) -> Result<Membership> {
    let end = Instant::now() + TURN;
    let mut told = false;
    loop {
        let taken = async {
            let mut controller = open(arguments, token).await?;
            let request = &request.request_pem;
            controller.join(token, candidate, request).await
        };
        let error = match taken.await {
            Ok(membership) => return Ok(membership),
            Err(error) => error,
        };
        // A controller that ends now is back soon: what has come of the image took longer.
        let may_help = matches!(
            error,
            Error::Refused(Refusal::NotNow(_)) | Error::Connect { .. } | Error::Broken(_)
        );
        if !may_help || Instant::now() >= end {
            return Err(error.into());
        }
        if !told {
            session.console.info(&format!("Waiting: {error}"));
            told = true;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Before a join is taken back: has the cluster forget the node, where its registration,
/// which does so when it is taken back, was not begun.
pub(super) async fn give_up(layout: &Layout, operation: &Operation, sink: &dyn Sink) {
    let Some(secrets) = unregistered(operation) else {
        return;
    };
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
    };
    let identity = read(&layout.node_certificate()).and_then(|certificate_pem| {
        Ok(Identity {
            certificate_pem,
            key_pem: read(&layout.node_key())?,
        })
    });
    forget(&secrets.controllers, &secrets.authorities, identity, sink).await;
}

/// What a join knows of the cluster whose registration was not begun.
fn unregistered(operation: &Operation) -> Option<JoinSecrets> {
    let state = operation.state().ok()?;
    let mut known = None;
    for phase in operation.plan.leaves() {
        match serde_json::from_value(phase.payload.clone()) {
            Ok(PhaseSpec::JoinSecrets(secrets)) => known = Some(secrets),
            Ok(PhaseSpec::Register(_)) if state.phase(&phase.id).state != State::Unstarted => {
                return None;
            }
            _ => {}
        }
    }
    known
}

/// Has the cluster forget a node that it took in and that comes no further. Where it can't
/// be asked, that is told: the node is cleaned all the same.
async fn forget(
    controllers: &[SocketAddr],
    authorities: &BTreeMap<String, String>,
    identity: Result<Identity>,
    sink: &dyn Sink,
) {
    sink.step("Taking this node out of the cluster");
    let forgotten = async {
        let authority = authorities
            .get(RPC_AUTHORITY)
            .context("find its authority")?;
        let trust = Trust::Authority(authority.clone());
        let mut controller = Controller::open(controllers, &trust, Some(&identity?)).await?;
        anyhow::Ok(controller.leave(true, sink).await?)
    };
    if let Err(error) = forgotten.await {
        sink.warning(&format!(
            "The cluster has this node still, until it joins again or `gravity remove` on a \
             master takes it out: {error:#}"
        ));
    }
}

fn keep_identity(layout: &Layout, request: &Request, membership: &Membership) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let directory = layout.secrets();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .with_context(|| format!("create {}", directory.display()))?;
    host::atomic::write(&layout.node_key(), request.key_pem.as_bytes(), 0o600)?;
    let certificate = membership.certificate.as_bytes();
    host::atomic::write(&layout.node_certificate(), certificate, 0o644)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use operation::{Phase, Plan};
    use spec::ServiceUser;
    use spec::phase::Joining;

    use super::*;

    #[test]
    fn a_node_is_judged_by_what_its_cluster_has_decided() {
        let mut cluster = spec::sample::cluster();
        cluster.service_user.uid = 1234;
        cluster.vxlan_port = 8473;
        cluster.pod_cidrs = vec!["10.77.0.0/16".into()];
        cluster.service_cidrs = vec!["10.78.0.0/16".into()];
        let requirements = check::requirements(
            &terms(&cluster, Path::new("/state")),
            cluster.pod_network,
            "10.0.0.1".parse().unwrap(),
            None,
            None,
        );
        assert_eq!(requirements.service_uid, 1234);
        assert_eq!(requirements.vxlan_port, 8473);
        assert_eq!(requirements.pod_cidrs, cluster.pod_cidrs);
        assert_eq!(requirements.service_cidrs, cluster.service_cidrs);
    }

    #[test]
    fn a_try_that_was_not_to_be_takes_back_its_own_and_not_what_was_mended() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("state"));
        let mended = directory.path().join("gravity.conf");
        agent::leave::adopt_state_dir(&layout).unwrap();
        let mut changes = Journal::open(&layout.host_changes()).unwrap();
        changes.write_file(&mended, b"overlay", 0o644).unwrap();
        drop(changes);
        std::fs::create_dir(layout.secrets()).unwrap();
        for identity in [layout.node_key(), layout.node_certificate()] {
            host::atomic::write(&identity, b"pem", 0o600).unwrap();
        }
        // One that was killed leaves these, and the next one goes on.
        refuse_former(&layout).unwrap();
        for _ in 0..2 {
            take_back(&layout).unwrap();
            assert!(!layout.secrets().exists());
            assert_eq!(std::fs::read(&mended).unwrap(), b"overlay");
            refuse_former(&layout).unwrap();
        }
    }

    #[test]
    fn a_try_that_was_not_to_be_keeps_what_has_come_of_the_image_and_else_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("state"));
        agent::leave::adopt_state_dir(&layout).unwrap();
        std::fs::create_dir_all(layout.cluster_image()).unwrap();
        std::fs::create_dir(layout.secrets()).unwrap();
        take_back(&layout).unwrap();
        assert!(layout.cluster_image().exists() && !layout.secrets().exists());
        refuse_former(&layout).unwrap();
        std::fs::remove_dir_all(layout.image()).unwrap();
        take_back(&layout).unwrap();
        assert!(!layout.state_dir().exists());
    }

    #[test]
    fn the_cluster_forgets_a_node_whose_registration_does_not_when_it_is_taken_back() {
        let secrets = JoinSecrets {
            user: ServiceUser {
                name: "planet".into(),
                uid: 1,
                gid: 1,
            },
            controllers: vec!["10.0.0.1:3009".parse().unwrap()],
            authorities: BTreeMap::from([(RPC_AUTHORITY.into(), "pem".into())]),
            certificates: Vec::new(),
            kubeconfigs: Vec::new(),
            cluster_keys: Vec::new(),
        };
        let register = PhaseSpec::Register(Joining {
            controllers: Vec::new(),
            operation: "one".into(),
        });
        let leaf = |id: &str, spec: &PhaseSpec| Phase {
            payload: serde_json::to_value(spec).unwrap(),
            ..Phase::new(id, "Do it")
        };
        let keys = leaf("/keys", &PhaseSpec::JoinSecrets(secrets.clone()));
        let node = leaf("/node", &register);
        let directory = tempfile::tempdir().unwrap();
        let operation = |id: &str, phases: Vec<Phase>, states: &[(&str, State)]| {
            let plan = Plan {
                version: operation::PLAN_VERSION,
                operation_id: id.into(),
                kind: "join".into(),
                created_by_version: "1".into(),
                phases,
            };
            let layout = Layout::new(directory.path());
            let made = Operation::create(&layout, plan).unwrap();
            let mut journal = operation::Journal::open(&made.directory.join("journal")).unwrap();
            for (phase, state) in states {
                journal.append(&[(phase, *state, None)]).unwrap();
            }
            made
        };
        let both = || vec![keys.clone(), node.clone()];
        for (id, begun) in [
            ("1", &[][..]),
            ("2", &[("/keys", State::Failed)]),
            ("3", &[("/keys", State::Completed)]),
        ] {
            let known = unregistered(&operation(id, both(), begun));
            assert_eq!(known.as_ref(), Some(&secrets), "{begun:?}");
        }
        for (id, state) in [
            ("4", State::InProgress),
            ("5", State::Failed),
            ("6", State::Completed),
            ("7", State::RolledBack),
        ] {
            let begun = [("/keys", State::Completed), ("/node", state)];
            assert_eq!(unregistered(&operation(id, both(), &begun)), None, "{id}");
        }
        let other = operation("8", vec![Phase::new("/one", "Do it")], &[]);
        assert_eq!(unregistered(&other), None);
    }
}
