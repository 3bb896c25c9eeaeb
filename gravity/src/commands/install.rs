//! `gravity install`: asks, checks, plans, and has the plan executed.

mod config;
mod dry_run;
mod license;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ::preflight::{Report, Requirements};
use anyhow::{Context, Result, anyhow, bail};
use console::{ExitCode, PromptError};
use event::Sink;
use host::facts::HostFacts;
use image::Image;
use image::cluster::{ApplicationImage, ClusterImage};
use installer::coordinator::{Action, Operation};
use installer::install::{self, ImageContent, KnownUsers, Options, Prepared, Rootfs};
use manifest::Manifest;
use pki::JoinToken;
use spec::layout::Layout;
use spec::phase::Layer;
use spec::{ImageRef, RegistryImage};

use self::config::Config;
pub(crate) use self::config::WrongConfig;
pub(crate) use self::license::WrongLicense;
use self::values::Values;
pub(crate) use self::values::WrongValues;
use super::process::TOKEN_LIFE;
use super::{Session, check, require_root, token};
use crate::cli::Install;

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

pub(crate) async fn run(session: &Session, arguments: &Install) -> Result<ExitCode> {
    require_root()?;
    refuse_former(&session.layout)?;
    let config = arguments.config.as_deref().map(Config::read).transpose()?;
    let config = config.unwrap_or_default();
    let token = token::chosen(arguments.token.as_deref(), arguments.token_file.as_deref())?;
    let values = Values::given(&arguments.values, &arguments.set)?;
    let image = session.image()?;
    let cluster = ClusterImage::open(image.clone()).context("read the cluster image")?;
    let (manifest, content) = content(session.image_path()?, &cluster)?;
    let console = &session.console;
    console.step(&format!(
        "Installing {} {}",
        content.reference.name, content.reference.version
    ));
    show_release_notes(session, &manifest);
    let flavor = choose_flavor(session, &manifest, arguments.terms.flavor.as_deref())?;
    let facts = ::preflight::host_facts();
    let mut license = license::given(arguments.license.as_deref(), &manifest, &cluster.config)?;
    let options = options(session, arguments, flavor, &config);
    let users = KnownUsers {
        with_id: host::users::user_by_id(options.service_uid)?,
        named: host::users::user_by_name(install::SERVICE_USER)?,
    };
    let prepare = |options: &Options, license: Option<&license::License>| {
        let options = Options {
            license: license.map(|license| license.terms.clone()),
            ..options.clone()
        };
        install::prepare(&options, &manifest, &content, &facts, &users)
    };
    let mut prepared = prepare(&options, license.as_ref())?;
    let user = &prepared.cluster.service_user;
    host::users::check_service_user(&user.name, user.uid, user.gid)?;
    let values = values.map(|values| merge(session, &values, &image, &content));
    let values = values.transpose()?;
    let requirements = requirements(&options, &manifest, &image, &facts)?;
    let decided = check::Decided {
        disks: !arguments.skip_disk_test,
        ignore: &arguments.ignore,
    };
    if arguments.dry_run {
        dry_run::show(console, &prepared, &requirements, &config)?;
        preflight(session, requirements, facts, decided)?;
        return Ok(ExitCode::Ok);
    }
    // Who can't install on this node needn't agree to anything.
    let report = preflight(session, requirements, facts.clone(), decided)?;
    accept_eula(session, &manifest, arguments.accept_eula)?;
    if manifest.license.enabled && license.is_none() {
        license = Some(license::ask(session, &cluster.config)?);
        prepared = prepare(&options, license.as_ref())?;
    }
    verify(session, &image)?;
    let license = license.map(|license| install::license_secret(&license.text).to_string());
    let token = token.map(|token| token_secret(&token)).transpose()?;
    let resources = arguments.config.is_some().then(|| {
        let user = &prepared.cluster.service_user;
        let translated = manifest::service_user::translate(&config.text, user.uid, user.gid);
        translated.unwrap_or(config.text)
    });
    let files = [
        (install::TOKEN_FILE, token),
        (install::VALUES_FILE, values),
        (install::LICENSE_FILE, license),
        (install::CONFIG_FILE, resources),
    ];
    let operation = create(session, &prepared, &files)?;
    check::record(&report, &operation)?;
    super::process::start(session, &operation, &Action::Run).await
}

/// The Secret with values for hooks.
fn merge(
    session: &Session,
    values: &Values,
    image: &Image,
    content: &ImageContent,
) -> Result<String> {
    session.console.step("Merging the values for hooks");
    // The planet of a node without a profile: every image has it.
    let planet = content.planets.get("").context("the image has no planet")?;
    let secret = cluster::hooks::values_secret(&values.merge(image, planet)?);
    serde_json::to_string(&secret).context("write the Secret with values for hooks")
}

/// Release notes are HTML; people read them as text.
fn show_release_notes(session: &Session, manifest: &Manifest) {
    if let Some(notes) = &manifest.release_notes {
        session.console.print(&plain_text(notes));
    }
}

/// Columns of text that was HTML.
const COLUMNS: usize = 80;

/// HTML as text. Text of another kind loses its line breaks and what looks like a tag.
fn plain_text(html: &str) -> String {
    let text = html2text::from_read(html.as_bytes(), COLUMNS);
    let text = text.unwrap_or_else(|_| html.to_owned());
    text.trim_end().to_owned()
}

/// Reads what the plan needs of the image.
pub(crate) fn content(path: PathBuf, cluster: &ClusterImage) -> Result<(Manifest, ImageContent)> {
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
        path,
        reference: ImageRef {
            name: config.name.clone(),
            version: config.image_version.clone(),
            digest: cluster.image.root().to_owned(),
            resources: config.resources.clone(),
        },
        manifest_text,
        planets: planets(cluster, &manifest)?,
        images,
    };
    Ok((manifest, content))
}

/// The planet of each profile, and of a node without one.
fn planets(cluster: &ClusterImage, manifest: &Manifest) -> Result<BTreeMap<String, Rootfs>> {
    let profiles = manifest.node_profiles.iter().map(|profile| &*profile.name);
    profiles
        .chain([""])
        .map(|profile| {
            let planet = cluster
                .planet(profile)
                .context("find the planet in the image")?;
            let layers = planet.layers.into_iter().map(|layer| Layer {
                digest: layer.digest,
                media_type: layer.media_type,
            });
            let rootfs = Rootfs {
                digest: planet.digest,
                layers: layers.collect(),
            };
            Ok((profile.to_owned(), rootfs))
        })
        .collect()
}

pub(crate) fn diagnostics(diagnostics: Vec<manifest::Diagnostic>) -> anyhow::Error {
    let lines: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
    anyhow!("{}", lines.join("\n"))
}

/// Where the registry serves an image: by its cluster name, and where charts
/// name it without a registry also as containerd asks for it. What is pinned
/// is asked for by digest, and its tag may be another image's.
fn registry_images(image: &ApplicationImage) -> Vec<(String, Option<String>, String)> {
    let name = image
        .reference
        .split_once('/')
        .map_or(image.reference.as_str(), |(_, rest)| rest);
    let (name, pinned) = match name.split_once('@') {
        Some((name, _)) => (name, true),
        None => (name, false),
    };
    let (repository, tag) = match name.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag.to_owned()).filter(|_| !pinned)),
        None => (name, None),
    };
    let mut repositories = vec![repository.to_owned()];
    if !repository.contains('/') {
        repositories.push(format!("library/{repository}"));
    }
    let mut served = Vec::new();
    for repository in repositories {
        let index = image.index.iter();
        served.extend(index.map(|index| (repository.clone(), None, index.clone())));
        served.push((repository, tag.clone(), image.digest.clone()));
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
    refuse_stranger(layout)
}

/// Refuses a directory with data of somebody else.
pub(crate) fn refuse_stranger(layout: &Layout) -> Result<()> {
    match stranger(layout) {
        Some(path) => bail!(
            "{} is not empty: it holds {}, perhaps of a former installation; look at it, then \
             move it away, or use another directory with --state-dir",
            layout.state_dir().display(),
            path.display()
        ),
        None => Ok(()),
    }
}

/// Something in the state directory that an install which was cut short before
/// it began can't have left. A disk that is mounted there has a lost+found.
fn stranger(layout: &Layout) -> Option<PathBuf> {
    let mut ours = vec![
        layout.operation_lock(),
        layout.host_changes(),
        layout.operations(),
        // Of a join that was cut off while it fetched.
        layout.image(),
    ];
    if layout.host_changes().exists() {
        // Of one that was cut off before its plan was written, when the directory was ours.
        ours.push(layout.secrets());
    }
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
    let damages = image.verify_stored(&*session.console);
    match damages.first() {
        None => Ok(()),
        Some(first) => Err(DamagedImage {
            path: image.path().to_owned(),
            first: first.to_string(),
            more: damages.len() - 1,
        }
        .into()),
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
            for text in about_flavors(manifest) {
                session.console.print(&text);
            }
            let names: Vec<_> = several.iter().map(|flavor| flavor.name.as_str()).collect();
            let prompt = manifest
                .flavor_prompt()
                .unwrap_or("Which flavor do you want to install?");
            match (session.console.ask(prompt, &names, default), default) {
                (Err(PromptError::NotATerminal { .. }), Some(default)) => {
                    session
                        .console
                        .info(&format!("Taking the flavor {default}"));
                    Ok(Some(default.to_owned()))
                }
                (answer, _) => answer
                    .map(Some)
                    .context("choose with --flavor where there is no terminal"),
            }
        }
    }
}

/// What is told before a flavor is asked for.
fn about_flavors(manifest: &Manifest) -> Vec<String> {
    let all = manifest.installer.flavors.as_ref();
    // Plain text, unlike the release notes.
    let about = all.and_then(|all| all.description.as_deref());
    let about = about.map(|text| text.trim_end().to_owned());
    let each = manifest.flavors().iter().map(|flavor| {
        let description = flavor.description.as_deref().unwrap_or_default();
        format!("  {:<16} {description}", flavor.name)
    });
    about.into_iter().chain(each).collect()
}

fn options(
    session: &Session,
    arguments: &Install,
    flavor: Option<String>,
    config: &Config,
) -> Options {
    let settings = config.settings.clone();
    let mut zones: BTreeMap<&str, spec::DnsZone> = BTreeMap::new();
    for zone in &arguments.dns_zone {
        zones
            .entry(&zone.name)
            .and_modify(|known| known.servers.extend(&zone.servers))
            .or_insert_with(|| zone.clone());
    }
    Options {
        mounts: arguments.terms.mount.iter().cloned().collect(),
        dns_zones: zones.into_values().collect(),
        dns_listen: arguments.dns_listen_addr.clone(),
        dns_port: arguments.dns_port,
        config: !config.objects.is_empty(),
        token: arguments.token.is_some() || arguments.token_file.is_some(),
        values: !arguments.values.is_empty() || !arguments.set.is_empty(),
        license: None,
        advertise_address: arguments.advertise_addr,
        cluster: arguments.cluster.clone(),
        flavor,
        role: arguments.role.clone(),
        pod_cidr: arguments.terms.pod_cidr(settings.pod_cidr),
        service_cidr: arguments.terms.service_cidr(settings.service_cidr),
        services: settings.services,
        vxlan_port: arguments.terms.vxlan_port,
        service_uid: arguments.terms.service_uid,
        service_gid: arguments.service_gid,
        leaf_seconds: arguments.leaf_seconds,
        state_dir: session.layout.state_dir().to_owned(),
    }
}

fn requirements(
    options: &Options,
    manifest: &Manifest,
    image: &Image,
    facts: &HostFacts,
) -> Result<Requirements> {
    let profile = install::choose_first_profile(
        manifest,
        options.flavor.as_deref(),
        options.role.as_deref(),
    )?;
    let profile = install::with_mounts(profile, &options.mounts, &options.state_dir)?;
    let address = install::choose_address(options.advertise_address, facts)?;
    Ok(check::requirements(
        options,
        install::pod_network(manifest, options.vxlan_port)?,
        address,
        profile.as_ref(),
        Some(image),
    ))
}

fn preflight(
    session: &Session,
    requirements: Requirements,
    facts: HostFacts,
    decided: check::Decided<'_>,
) -> Result<Report> {
    session.console.step("Checking the node's requirements");
    check::before(&session.console, requirements, facts, decided, Vec::new)
}

/// The Secret that will keep a token of the user's own.
fn token_secret(token: &JoinToken) -> Result<String> {
    let stored = token::stored(token, TOKEN_LIFE)?;
    serde_json::to_string(&stored.secret()).context("write the token's Secret")
}

/// Writes the operation down, with the files beside its plan that were given: there may be
/// secrets in them.
fn create(
    session: &Session,
    prepared: &Prepared,
    files: &[(&str, Option<String>)],
) -> Result<Operation> {
    let layout = &session.layout;
    // Two at once: the second finds it locked, or what the first has made.
    let lock = host::lock::Lock::acquire(&layout.operation_lock())?;
    if layout.cluster().exists() || Operation::last(layout).is_ok() {
        bail!("another install of this node has begun; see `gravity plan`");
    }
    agent::leave::adopt_state_dir(layout).map_err(|error| anyhow!(error.message))?;
    let directory = layout.operations().join(&prepared.plan.operation_id);
    // Root's alone. Before the plan, which is what says that there is an operation.
    for (name, text) in files {
        let Some(text) = text else { continue };
        std::fs::create_dir_all(&directory).context("create the operation's directory")?;
        host::atomic::write(&directory.join(name), text.as_bytes(), 0o600)?;
    }
    let operation = Operation::create(layout, prepared.plan.clone())?;
    drop(lock);
    Ok(operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_somebodys_data_is_refused_and_one_of_a_lost_try_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        for path in ["lost+found", "operations/1", "secrets"] {
            std::fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        let strange = refuse_former(&layout).unwrap_err().to_string();
        assert!(strange.contains("secrets"), "{strange}");
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
    fn release_notes_are_shown_as_text() {
        let html = "<h1>1.2</h1><p>Faster &amp; <b>safer</b>.</p><ul><li>one<li>two</ul><script>x()</script>";
        let text = plain_text(html);
        for part in ["1.2", "Faster & ", "safer", "one", "two"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains('<') && !text.contains("x()"), "{text}");
    }

    #[test]
    fn the_text_about_flavors_is_shown_as_it_is() {
        let text = r#"
metadata: {name: a, resourceVersion: 1.0.0}
installer:
  flavors:
    description: "One:\n  a <profile> for tests.\n"
    items: [{name: one, description: One node, nodes: [{profile: n, count: 1}]}]
nodeProfiles: [{name: n}]
"#;
        let manifest = manifest::parse(text, "app.yaml").unwrap();
        assert_eq!(
            about_flavors(&manifest),
            [
                "One:\n  a <profile> for tests.",
                "  one              One node",
            ]
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
