//! `gravity install`: asks, checks, plans, and has the plan executed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use ::preflight::Report;
use anyhow::{Context, Result, anyhow, bail};
use console::{ExitCode, FileSink, Tee};
use event::Sink;
use host::facts::HostFacts;
use image::Image;
use image::cluster::{ApplicationImage, ClusterImage};
use installer::coordinator::{self, Operation};
use installer::install::{self, ImageContent, KnownUsers, Options};
use installer::services::HostTraits;
use manifest::Manifest;
use spec::layout::Layout;
use spec::{ClusterSpec, ImageRef, RegistryImage};

use super::{Session, check, require_root, status};
use crate::cli::Install;

/// Kind of an operation that adds a node; see [`installer::join`].
const JOIN: &str = "join";

/// The image is not what was built.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} is damaged: {first}{}; nothing was changed: copy the file again and compare its sha256 \
     with the original's",
    path.display(),
    if *more == 0 { String::new() } else { format!(" and {more} more, see `gravity verify`") }
)]
pub(crate) struct DamagedImage {
    path: PathBuf,
    first: String,
    more: usize,
}

/// The operation stopped half-way.
#[derive(Debug, thiserror::Error)]
#[error(
    "the operation stopped; mend the cause, then go on with `gravity resume` \
     or take everything back with `gravity leave --force`"
)]
pub(crate) struct Interrupted(#[source] coordinator::Error);

pub(crate) async fn run(session: &Session, arguments: &Install) -> Result<ExitCode> {
    require_root()?;
    refuse_former(&session.layout)?;
    let image = session.image()?;
    let cluster = ClusterImage::open(image.clone()).context("read the cluster image")?;
    let (manifest, content) = content(session, &cluster)?;
    let console = &session.console;
    console.step(&format!(
        "Installing {} {}",
        content.reference.name, content.reference.version
    ));
    accept_eula(session, &manifest, arguments.accept_eula)?;
    let flavor = choose_flavor(session, &manifest, arguments.flavor.as_deref())?;
    let facts = ::preflight::host_facts();
    let options = options(session, arguments, flavor);
    let users = KnownUsers {
        with_id: host::users::user_by_id(options.service_uid)?,
        named: host::users::user_by_name(install::SERVICE_USER)?,
    };
    let host = host_traits(&facts);
    let prepared = install::prepare(&options, &manifest, &content, &facts, &users, &host)?;
    let report = preflight(
        session,
        &options,
        &manifest,
        &image,
        facts,
        !arguments.skip_disk_test,
    )?;
    verify(session, &image)?;
    let operation = create(session, prepared.plan)?;
    check::record(&report, &operation)?;
    execute(session, &operation).await
}

/// Reads what the plan needs of the image.
pub(crate) fn content(
    session: &Session,
    cluster: &ClusterImage,
) -> Result<(Manifest, ImageContent)> {
    let config = &cluster.config;
    let manifest_text = cluster
        .manifest_yaml()
        .context("read the image's manifest")?;
    let manifest = manifest::parse(&manifest_text, "app.yaml").map_err(diagnostics)?;
    let unsupported = manifest.unsupported();
    if !unsupported.is_empty() {
        return Err(diagnostics(unsupported));
    }
    let images = config
        .images
        .iter()
        .flat_map(registry_images)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|(repository, tag, digest)| RegistryImage {
            repository,
            tag,
            digest,
        })
        .collect();
    let content = ImageContent {
        path: session.image_path()?,
        reference: ImageRef {
            name: config.name.clone(),
            version: config.image_version.clone(),
            digest: cluster.image.root().to_owned(),
        },
        manifest_text,
        rootfs: cluster
            .base()
            .context("find the planet in the image")?
            .rootfs,
        images,
        resources: config.resources.clone(),
    };
    Ok((manifest, content))
}

pub(crate) fn diagnostics(diagnostics: Vec<manifest::Diagnostic>) -> anyhow::Error {
    let lines: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
    anyhow!("{}", lines.join("\n"))
}

/// Where the registry serves an image: by its cluster name, and where charts
/// name it without a registry also as containerd asks for it.
fn registry_images(image: &ApplicationImage) -> Vec<(String, Option<String>, String)> {
    let name = image
        .reference
        .split_once('/')
        .map_or(image.reference.as_str(), |(_, rest)| rest);
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let (repository, tag) = match name.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag.to_owned())),
        None => (name, None),
    };
    let mut served = vec![(repository.to_owned(), tag.clone(), image.digest.clone())];
    if !repository.contains('/') {
        served.push((format!("library/{repository}"), tag, image.digest.clone()));
    }
    served
}

/// Refuses a node that has, or had, a cluster, and a directory with data of
/// somebody else: `leave` will remove all that is in it.
pub(crate) fn refuse_former(layout: &Layout) -> Result<()> {
    if layout.cluster().exists() {
        bail!(
            "this node is part of a cluster; `gravity status` shows it, `gravity leave --force` removes it"
        );
    }
    if let Ok(operation) = Operation::last(layout) {
        // Whoever holds the lock runs it now.
        drop(host::lock::Lock::acquire(&layout.operation_lock())?);
        bail!(
            "an operation of this node ({}) has not ended; go on with `gravity resume`, \
             or start anew after `gravity leave --force`",
            operation.plan.operation_id
        );
    }
    let state = layout.state_dir();
    match stranger(layout) {
        Some(path) => bail!(
            "{} is not empty: it holds {}, perhaps of a former installation; look at it, then \
             move it away, or use another directory with --state-dir",
            state.display(),
            path.display()
        ),
        None => Ok(()),
    }
}

/// Something in the state directory that an install which was cut short before
/// it began can't have left. A disk that is mounted there has a lost+found.
fn stranger(layout: &Layout) -> Option<PathBuf> {
    let ours = [
        layout.operation_lock(),
        layout.host_changes(),
        layout.operations(),
    ];
    let entries = std::fs::read_dir(layout.state_dir()).ok()?;
    let mut strange: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| !ours.contains(path) && !path.ends_with("lost+found"))
        .collect();
    strange.sort();
    strange.into_iter().next()
}

/// Refuses a damaged image before anything is changed: half-way, somebody
/// would have to take back what its good parts did.
pub(crate) fn verify(session: &Session, image: &Image) -> Result<()> {
    session.console.step("Verifying the cluster image");
    let damages = image
        .verify_stored(&*session.console)
        .context("verify the cluster image")?;
    match damages.first() {
        None => Ok(()),
        Some(first) => {
            let path = session.image_path()?;
            Err(DamagedImage {
                path,
                first: first.to_string(),
                more: damages.len() - 1,
            }
            .into())
        }
    }
}

fn accept_eula(session: &Session, manifest: &Manifest, accepted: bool) -> Result<()> {
    let Some(text) = manifest.eula() else {
        return Ok(());
    };
    if accepted {
        return Ok(());
    }
    session.console.print(text);
    let question = "Do you accept the end-user license agreement?";
    let answer = session
        .console
        .confirm(question)
        .context("use --accept-eula to accept it without a terminal")?;
    if !answer {
        bail!("end-user license agreement was not accepted");
    }
    Ok(())
}

fn choose_flavor(
    session: &Session,
    manifest: &Manifest,
    wanted: Option<&str>,
) -> Result<Option<String>> {
    let flavors = manifest.flavors();
    if let (Some(name), _) = (wanted, flavors) {
        return Ok(Some(name.to_owned()));
    }
    let default = manifest.default_flavor();
    match flavors {
        [] => Ok(None),
        [only] => Ok(Some(only.name.clone())),
        several => {
            let names: Vec<_> = several.iter().map(|flavor| flavor.name.as_str()).collect();
            for flavor in several {
                let description = flavor.description.as_deref().unwrap_or_default();
                session
                    .console
                    .print(&format!("  {:<16} {description}", flavor.name));
            }
            let prompt = manifest
                .flavor_prompt()
                .unwrap_or("Which flavor do you want to install?");
            let answer = session
                .console
                .ask(prompt, &names, default)
                .context("choose with --flavor where there is no terminal")?;
            Ok(Some(answer))
        }
    }
}

fn options(session: &Session, arguments: &Install, flavor: Option<String>) -> Options {
    Options {
        advertise_address: arguments.advertise_addr,
        cluster: arguments.cluster.clone(),
        flavor,
        role: arguments.role.clone(),
        pod_cidr: arguments.pod_network_cidr.clone(),
        service_cidr: arguments.service_cidr.clone(),
        vxlan_port: arguments.vxlan_port,
        service_uid: arguments.service_uid,
        service_gid: arguments.service_gid,
        state_dir: session.layout.state_dir().to_owned(),
    }
}

pub(crate) fn host_traits(facts: &HostFacts) -> HostTraits {
    HostTraits {
        can_lower_oom_score: facts.can_lower_oom_score,
        // A host without one looks up nothing outside.
        resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    }
}

fn preflight(
    session: &Session,
    options: &Options,
    manifest: &Manifest,
    image: &Image,
    facts: HostFacts,
    disks: bool,
) -> Result<Report> {
    session.console.step("Checking the node's requirements");
    let profile =
        install::choose_profile(manifest, options.flavor.as_deref(), options.role.as_deref())?;
    let address = install::choose_address(options.advertise_address, &facts)?;
    let requirements = check::requirements(options, address, profile, Some(image));
    check::before(&session.console, requirements, facts, disks)
}

fn create(session: &Session, plan: operation::Plan) -> Result<Operation> {
    let layout = &session.layout;
    // Two at once: the second finds it locked, or what the first has made.
    let lock = host::lock::Lock::acquire(&layout.operation_lock())?;
    if layout.cluster().exists() || Operation::last(layout).is_ok() {
        bail!("another install of this node has begun; see `gravity plan`");
    }
    agent::leave::adopt_state_dir(layout).map_err(|error| anyhow!(error.message))?;
    let operation = Operation::create(layout, plan)?;
    drop(lock);
    Ok(operation)
}

/// Executes what is left of an operation and shows the cluster at the end.
pub(crate) async fn execute(session: &Session, operation: &Operation) -> Result<ExitCode> {
    let log = FileSink::open(&operation.log()).context("open the operation's log")?;
    let sinks: Vec<Arc<dyn Sink>> = vec![session.console.clone(), Arc::new(log)];
    let sink: Arc<dyn Sink> = Arc::new(Tee::new(sinks));
    match coordinator::run(&session.layout, operation, sink).await {
        Ok(()) => {}
        Err(error @ coordinator::Error::Locked(_)) => return Err(error.into()),
        Err(error) => return Err(Interrupted(error).into()),
    }
    let cluster: ClusterSpec = serde_json::from_slice(
        &std::fs::read(session.layout.cluster()).context("read the cluster's description")?,
    )?;
    if operation.plan.kind == JOIN {
        let text = format!("This node is part of cluster {}", cluster.name);
        session.console.info(&text);
        return Ok(ExitCode::Ok);
    }
    let client = session.administrator().await?;
    let endpoints = status::endpoints(session, &client).await?;
    let mut lines = vec![format!("Cluster {} is active", cluster.name)];
    lines.extend(status::endpoints_text(&endpoints));
    for line in lines {
        session.console.info(&line);
    }
    Ok(ExitCode::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_somebodys_data_is_refused_and_one_of_a_lost_try_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        for path in ["lost+found", "operations/1"] {
            std::fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        agent::leave::adopt_state_dir(&layout).unwrap();
        drop(host::lock::Lock::acquire(&layout.operation_lock()).unwrap());
        refuse_former(&layout).unwrap();

        // `leave` would remove it.
        std::fs::create_dir(directory.path().join("photos")).unwrap();
        let error = refuse_former(&layout).unwrap_err().to_string();
        assert!(
            error.contains("not empty") && error.contains("photos"),
            "{error}"
        );
    }

    #[test]
    fn damage_says_where_and_what_to_do() {
        let error = DamagedImage {
            path: "/x".into(),
            first: "the index".into(),
            more: 2,
        };
        assert!(
            error
                .to_string()
                .starts_with("/x is damaged: the index and 2 more"),
            "{error}"
        );
        assert_eq!(
            super::super::exit_code(&error.into()),
            ExitCode::DamagedImage
        );
    }
}
