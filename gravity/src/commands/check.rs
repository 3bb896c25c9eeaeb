//! `gravity check`: the node against the requirements of the cluster image.
//!
//! In: an image or a manifest, the profile, facts of this host or stored ones.
//! Out: a report, failures first. `install` runs the same.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use console::{Console, ExitCode, FileSink};
use event::{Event, Sink};
use host::changes::Journal;
use host::facts::{HostFacts, Peer};
use image::Image;
use image::cluster::ClusterImage;
use installer::coordinator::Operation;
use installer::install::{self, Options};
use manifest::{Location, MAX_CONTENT, Manifest, NodeProfile, Uri};
use preflight::{Check as Known, Effort, Facts, Finding, Fix, Report, Requirements};
use rpc::peer::{self, MAX_PORTS};
use spec::layout::Layout;
use spec::{ClusterSpec, PodNetwork};

use super::peers::Way;
use super::{Session, install as command, peers, token};
use crate::cli::Check;

/// Room for etcd, logs and what containers write, in bytes.
const WORKING_ROOM: u64 = 2 << 30;
/// Files of etcd, logs and what containers write.
const WORKING_FILES: u64 = 20_000;
/// Bytes for each file that ext4 makes room for, unless told otherwise.
const BYTES_A_FILE: u64 = 16 << 10;
/// How long one script of the manifest may run before an operation.
const SCRIPT_PATIENCE: Duration = Duration::from_secs(60);
/// Largest manifest and file of facts, in bytes.
const MAX_TEXT: u64 = 64 << 20;

/// The host doesn't meet the requirements.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} requirement(s) not met; nothing was changed; `gravity check --explain ID` says more about \
     one of them"
)]
pub(crate) struct RequirementsNotMet(usize);

pub(crate) async fn run(session: &Session, arguments: &Check) -> Result<ExitCode> {
    if let Some(id) = &arguments.explain {
        return explain(session, id);
    }
    let token = token::chosen(arguments.token.as_deref(), arguments.token_file.as_deref())?;
    if arguments.listen {
        return peers::listen(session, arguments.advertise_addr, token).await;
    }
    let (manifest, image) = against(session, arguments.against.as_deref())?;
    let terms = &arguments.terms;
    let flavor = terms.flavor.as_deref().or_else(|| usual_flavor(&manifest));
    let profile = match arguments.profile.as_deref() {
        None => install::choose_first_profile(&manifest, flavor, None)?,
        named => install::choose_profile(&manifest, flavor, named)?,
    };
    let joined = session.layout.cluster().exists() && arguments.facts.is_none();
    let cluster = joined.then(|| session.cluster()).transpose()?;
    let options = options(session, arguments, cluster.as_ref());
    let profile = install::with_mounts(profile, &options.mounts, &options.state_dir)?;
    let network = install::pod_network(&manifest, terms.vxlan_port)?;
    let mut stored = match &arguments.facts {
        Some(path) => Some(read_facts(path)?),
        None => None,
    };
    let host = match &mut stored {
        Some(facts) => std::mem::take(&mut facts.host),
        None => preflight::host_facts(),
    };
    let address = match install::choose_address(options.advertise_address, &host) {
        Ok(address) => address,
        // A check says so, among everything else that is wrong.
        Err(_) => options
            .advertise_address
            .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    };
    let mut requirements =
        requirements(&options, network, address, profile.as_ref(), image.as_ref());
    requirements.joined = joined;
    let effort = effort(!arguments.quick, Duration::from_secs(arguments.timeout))?;
    let mut facts = match stored {
        Some(stored) => Facts { host, ..stored },
        None => Facts::collect(&requirements, host, &effort, Vec::new),
    };
    let peers = async |host: &HostFacts| {
        if arguments.peer.is_empty() {
            return Ok(None);
        }
        let token = token.as_ref().context(
            "a token is needed: --token or --token-file with what `gravity check --listen` printed, \
             or a cluster's",
        )?;
        let way = Way {
            known: peer::Known::Token(token),
            from: requirements.advertise_address,
            facts: host,
            // Whoever asks for it wants to see the best.
            rate: Some(u64::MAX),
        };
        let ports = preflight::ports_between(&requirements, preflight::Other::Master, MAX_PORTS);
        let measured = way.measure(session, &arguments.peer, &ports);
        anyhow::Ok(Some(measured.await))
    };
    if let Some(measured) = peers(&facts.host).await? {
        facts.measured.peers = measured;
    }
    if let Some(path) = &arguments.facts_out {
        let json = serde_json::to_vec_pretty(&facts)?;
        host::atomic::write(path, &json, 0o644)?;
    }
    let mut report = preflight::evaluate(&requirements, &facts);
    if arguments.autofix && !report.fixes().is_empty() {
        mend(session, &report)?;
        let host = preflight::host_facts();
        let facts = match report.fixes().iter().any(Fix::changes_network) {
            true => {
                let mut facts = Facts::collect(&requirements, host, &effort, Vec::new);
                facts.measured.peers = peers(&facts.host).await?.unwrap_or_default();
                facts
            }
            // Only the kernel was changed: nothing has to be measured again.
            false => Facts { host, ..facts },
        };
        report = preflight::evaluate(&requirements, &facts);
    }
    report.ignore(&arguments.ignore)?;
    if session.console.is_json() {
        session.console.print_json(&report)?;
        return Ok(match report.failures().count() {
            0 => ExitCode::Ok,
            _ => ExitCode::Preflight,
        });
    }
    session
        .console
        .print(text(&report, arguments.all).trim_end());
    match report.failures().count() {
        0 => Ok(ExitCode::Ok),
        count => Err(RequirementsNotMet(count).into()),
    }
}

/// What to check against: a manifest, or an image with its own.
fn against(session: &Session, path: Option<&Path>) -> Result<(Manifest, Option<Image>)> {
    let is_image = |path: &Path| Image::open(path).ok();
    let (path, image) = match path {
        None => (None, Some(session.image()?)),
        Some(path) => (Some(path), is_image(path)),
    };
    match (image, path) {
        (Some(image), _) => {
            let cluster = ClusterImage::open(image.clone()).context("read the cluster image")?;
            let (manifest, _) = command::content(image.path().to_owned(), &cluster)?;
            Ok((manifest, Some(image)))
        }
        (None, Some(path)) => Ok((unbuilt(path)?, None)),
        (None, None) => bail!("there is nothing to check against; name an image or a manifest"),
    }
}

/// A manifest that no image was built of yet, with the scripts that lie beside it.
fn unbuilt(path: &Path) -> Result<Manifest> {
    let text = String::from_utf8(bounded(path, MAX_TEXT)?)
        .with_context(|| format!("{} is neither image nor manifest", path.display()))?;
    let name = path.display().to_string();
    let mut manifest = manifest::parse(&text, &name).map_err(command::diagnostics)?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let mut found = manifest.inline(&mut |uri| script(uri, directory));
    found.extend(manifest.unsupported());
    match found.is_empty() {
        true => Ok(manifest),
        false => Err(command::diagnostics(found)),
    }
}

/// The text of a custom check. Other URIs stay: nothing here needs what they lead to.
fn script(uri: &Uri, directory: &Path) -> Result<String, String> {
    let is_script = uri.field.contains(".customChecks[");
    match &uri.location {
        Location::File(path) if is_script => bounded(&directory.join(path), MAX_CONTENT as u64)
            .and_then(|bytes| Ok(String::from_utf8(bytes)?))
            .map_err(|error| format!("{error:#}")),
        Location::Web(_) if is_script => {
            Err("only a build fetches it; check against the image".into())
        }
        Location::File(path) => Ok(format!("file://{}", path.display())),
        Location::Web(address) => Ok(address.clone()),
    }
}

fn bounded(path: &Path, max: u64) -> Result<Vec<u8>> {
    host::bounded::bytes(path, max).with_context(|| format!("read {}", path.display()))
}

fn read_facts(path: &Path) -> Result<Facts> {
    serde_json::from_slice(&bounded(path, MAX_TEXT)?).with_context(|| {
        format!(
            "{} holds no facts of `gravity check --facts-out`",
            path.display()
        )
    })
}

/// How much trouble to go to.
fn effort(thorough: bool, script_timeout: Duration) -> Result<Effort> {
    Ok(Effort {
        disks: thorough,
        scripts: thorough,
        network: thorough,
        script_timeout,
        directory: std::env::current_dir().context("find the working directory")?,
    })
}

/// The flavor that an install takes where nobody chooses one.
fn usual_flavor(manifest: &Manifest) -> Option<&str> {
    match manifest.flavors() {
        [only] => Some(&only.name),
        _ => manifest.default_flavor(),
    }
}

/// What an install would be told, or the `cluster` was that this node is of.
fn options(session: &Session, arguments: &Check, cluster: Option<&ClusterSpec>) -> Options {
    let terms = &arguments.terms;
    let known = |cidrs: fn(&ClusterSpec) -> &[String]| {
        cluster.and_then(|cluster| cidrs(cluster).first().cloned())
    };
    Options {
        advertise_address: arguments.advertise_addr,
        mounts: terms.mount.iter().cloned().collect(),
        pod_cidr: terms.pod_cidr(known(|cluster| &cluster.pod_cidrs)),
        service_cidr: terms.service_cidr(known(|cluster| &cluster.service_cidrs)),
        vxlan_port: terms
            .vxlan_port
            .or(cluster.map(|cluster| cluster.vxlan_port)),
        service_uid: cluster.map_or(terms.service_uid, |cluster| cluster.service_user.uid),
        ..Options::of_defaults(session.layout.state_dir())
    }
}

/// What image and options need of the node.
pub(crate) fn requirements(
    options: &Options,
    network: PodNetwork,
    advertise_address: IpAddr,
    profile: Option<&NodeProfile>,
    image: Option<&Image>,
) -> Requirements {
    // Every blob is on the node once; containers' layers a second time unpacked,
    // about three times their compressed size; what is compressed a second time as
    // it is, for nodes that join.
    let blobs: u64 = image
        .into_iter()
        .flat_map(Image::blobs)
        .map(|blob| {
            if blob.length < blob.size {
                blob.size.saturating_add(blob.length)
            } else {
                blob.size.saturating_mul(4)
            }
        })
        .sum();
    Requirements {
        profile: profile
            .map(|profile| profile.requirements.clone())
            .unwrap_or_default(),
        state_dir: options.state_dir.clone(),
        state_bytes: blobs.saturating_add(WORKING_ROOM),
        state_inodes: blobs / BYTES_A_FILE + WORKING_FILES,
        advertise_address,
        pod_cidrs: vec![options.pod_cidr.clone()],
        service_cidrs: vec![options.service_cidr.clone()],
        pod_network: network,
        vxlan_port: options.vxlan_port.unwrap_or(install::DEFAULT_VXLAN_PORT),
        service_uid: options.service_uid,
        joined: false,
        sets: BTreeSet::new(),
    }
}

/// Mends what the report says can be mended; what can't is told.
fn mend(session: &Session, report: &Report) -> Result<()> {
    super::require_root()?;
    adopt(&session.layout)?;
    let mut journal = Journal::open(&session.layout.host_changes())
        .context("open the journal of host changes; does an operation run?")?;
    for (fix, result) in preflight::mend(&report.fixes(), &mut journal)? {
        match result {
            Ok(()) => session.console.info(&format!("Mended: {fix}")),
            Err(error) => {
                let error = anyhow::Error::from(error);
                session
                    .console
                    .warning(&format!("Not mended: {fix}: {error:#}"));
            }
        }
    }
    Ok(())
}

/// Makes the state directory ours, unless somebody's data are there: `leave` removes
/// all that is in it. Where an operation has begun, it is ours already.
fn adopt(layout: &Layout) -> Result<()> {
    let ours = layout.cluster().exists() || Operation::last(layout).is_ok();
    if !ours {
        command::refuse_stranger(layout)?;
    }
    agent::leave::adopt_state_dir(layout).map_err(|error| anyhow::anyhow!(error.message))
}

/// What the user has decided about checks before an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decided<'a> {
    /// Whether the speed of disks is measured.
    pub(crate) disks: bool,
    /// Ids of checks whose failures don't count.
    pub(crate) ignore: &'a [String],
}

/// Checks a node before an operation, which sets some kernel parameters itself;
/// `peers` speaks with the other nodes that it will work with.
///
/// # Errors
/// When a requirement isn't met.
pub(crate) fn before(
    console: &Console,
    mut requirements: Requirements,
    host: HostFacts,
    decided: Decided<'_>,
    peers: impl FnOnce() -> Vec<Peer> + Send,
) -> Result<Report> {
    // What can't be ignored is told before anything takes time.
    Report::default().ignore(decided.ignore)?;
    let sets = installer::SYSCTLS
        .iter()
        .map(|(name, _)| (*name).to_owned());
    requirements.sets.extend(sets);
    let effort = Effort {
        disks: decided.disks,
        ..effort(true, SCRIPT_PATIENCE)?
    };
    let facts = Facts::collect(&requirements, host, &effort, peers);
    let mut report = preflight::evaluate(&requirements, &facts);
    report.ignore(decided.ignore)?;
    show(console, &report)?;
    Ok(report)
}

/// Shows what needs somebody; passes are counted.
fn show(console: &Console, report: &Report) -> Result<()> {
    let failures = report.failures().count();
    if failures > 0 {
        if console.is_json() {
            console.print_json(report)?;
        } else {
            console.print(text(report, false).trim_end());
        }
        return Err(RequirementsNotMet(failures).into());
    }
    for finding in report.ignored() {
        console.warning(&format!("[{}] ignored: {finding}", finding.id));
    }
    for finding in report.warnings() {
        console.warning(&format!("[{}] {finding}", finding.id));
    }
    console.info(&format!("{} checks passed", report.passed().count()));
    Ok(())
}

/// Writes a report to an operation's log, with what scripts wrote.
pub(crate) fn record(report: &Report, operation: &Operation) -> Result<()> {
    let log = FileSink::open(&operation.log()).context("open the operation's log")?;
    log_to(report, &log);
    Ok(())
}

fn log_to(report: &Report, log: &dyn Sink) {
    for finding in &report.findings {
        let state = match finding.severity {
            preflight::Severity::Info => "passed",
            preflight::Severity::Warning => "warning",
            preflight::Severity::Failure if finding.ignored => "failed, ignored",
            preflight::Severity::Failure => "failed",
        };
        log.info(&format!("Check {} {state}: {finding}", finding.id));
        for line in finding.output.lines() {
            log.emit(Event::Log {
                source: finding.title.clone(),
                line: line.to_owned(),
            });
        }
    }
}

/// A report as a person reads it: failures first, passes folded. Where something has
/// failed there will be no log with what scripts wrote, so that it is all here.
fn text(report: &Report, all: bool) -> String {
    let mut text = String::new();
    let mut section = |title: &str, mark: &str, findings: Vec<&Finding>| {
        if findings.is_empty() {
            return;
        }
        text += &format!("{title} ({})\n", findings.len());
        for finding in findings {
            text += &format!("  {mark} {} [{}]\n", finding.title, finding.id);
            text += &format!(
                "      found:  {}\n      wanted: {}\n",
                finding.measured, finding.wanted
            );
            if !finding.remedy.is_empty() {
                text += &format!("      do:     {}\n", finding.remedy);
            }
            for line in finding.output.lines() {
                text += &format!("      | {line}\n");
            }
        }
        text.push('\n');
    };
    section("Failed", "✗", report.failures().collect());
    section("Failed, but ignored", "✗", report.ignored().collect());
    section("Warnings", "!", report.warnings().collect());
    let failed = report.failures().next().is_some();
    let is_shown = |finding: &&Finding| all || failed && !finding.output.is_empty();
    let (shown, folded): (Vec<_>, Vec<_>) = report.passed().partition(is_shown);
    if all {
        section("Passed", "✓", shown);
    } else {
        section("Passed, with output", "✓", shown);
        let names: BTreeSet<_> = folded.iter().map(|finding| finding.id.as_str()).collect();
        let names = Vec::from_iter(names).join(", ");
        text += &format!("Passed ({}): {names}\n", folded.len());
    }
    text
}

/// Says what a check is.
fn explain(session: &Session, id: &str) -> Result<ExitCode> {
    let known: Vec<_> = preflight::checks()
        .filter(|check| id == "all" || check.id == id)
        .collect();
    if known.is_empty() {
        return Err(preflight::IgnoreError::Unknown(id.to_owned()).into());
    }
    let texts: Vec<_> = known.into_iter().map(explanation).collect();
    session.console.print(&texts.join("\n\n"));
    Ok(ExitCode::Ok)
}

fn explanation(check: &Known) -> String {
    let ignorable = match check.strict {
        true => "can't be ignored",
        false => "can be ignored with --ignore",
    };
    let mended = match check.fixable {
        true => ", mended by --autofix",
        false => "",
    };
    format!(
        "{} ({}, {ignorable}{mended})\n  looks at: {}\n  wants:    {}\n  remedy:   {}",
        check.id,
        check.severity(),
        check.about,
        check.limit,
        check.remedy
    )
}

#[cfg(test)]
mod tests {
    use preflight::Severity;

    use super::*;

    fn finding(id: &str, severity: Severity) -> Finding {
        Finding {
            id: id.into(),
            severity,
            title: format!("the {id}"),
            measured: "1".into(),
            wanted: "2".into(),
            remedy: "mend it".into(),
            fixes: Vec::new(),
            output: String::new(),
            ignored: false,
        }
    }

    #[test]
    fn failures_come_first_and_passes_are_folded() {
        let mut failure = finding("b", Severity::Failure);
        failure.output = "line 1\nline 2\n".into();
        let report = Report {
            findings: vec![
                finding("a", Severity::Info),
                failure,
                finding("c", Severity::Warning),
            ],
        };
        let expected = "\
Failed (1)
  ✗ the b [b]
      found:  1
      wanted: 2
      do:     mend it
      | line 1
      | line 2

Warnings (1)
  ! the c [c]
      found:  1
      wanted: 2
      do:     mend it

Passed (1): a
";
        assert_eq!(text(&report, false), expected);
        assert!(text(&report, true).contains("✓ the a"));
    }

    #[test]
    fn what_scripts_wrote_is_seen_where_no_log_comes_to_be() {
        let mut passed = finding("custom-check", Severity::Info);
        passed.output = "a licence was found\n".into();
        let mut report = Report {
            findings: vec![passed],
        };
        let folded = "Passed (1): custom-check\n";
        assert_eq!(text(&report, false), folded);
        report.findings.push(finding("cpu", Severity::Failure));
        let told = text(&report, false);
        assert!(told.contains("      | a licence was found\n"), "{told}");
    }

    #[test]
    fn scripts_beside_a_manifest_are_read_and_what_else_it_names_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = directory.path().join(name);
            host::atomic::write(&path, text.as_bytes(), 0o644).unwrap();
            path
        };
        let manifest = |script: &str, more: &str| {
            let text = format!(
                "metadata: {{name: a, resourceVersion: 1.0.0}}\n\
                 installer: {{eula: {{source: file://gone.txt}}}}\n\
                 nodeProfiles: [{{name: n, requirements: {{customChecks: [{{script: '{script}'}}]}}}}]\n\
                 {more}\n"
            );
            unbuilt(&put("app.yaml", &text)).map_err(|error| error.to_string())
        };
        put("checks.sh", "exit 7\n");
        let read = manifest("file://checks.sh", "").unwrap();
        let check = &read.node_profiles[0].requirements.custom_checks[0];
        assert_eq!(check.script, "exit 7\n");
        assert_eq!(read.eula(), Some("file://gone.txt"));
        for (script, more, wanted) in [
            ("file://none.sh", "", "can't fetch none.sh: read"),
            ("https://example.com/c.sh", "", "only a build fetches it"),
            ("exit 0", "webConfig: '{}'", "`webConfig` is not supported"),
        ] {
            let error = manifest(script, more).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn nothing_is_mended_beside_somebodys_data_unless_the_node_has_a_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        std::fs::create_dir(directory.path().join("photos")).unwrap();
        let error = adopt(&layout).unwrap_err().to_string();
        assert!(error.contains("photos"), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);

        let cluster = layout.cluster();
        std::fs::create_dir_all(cluster.parent().unwrap()).unwrap();
        host::atomic::write(&cluster, b"{}", 0o600).unwrap();
        adopt(&layout).unwrap();
        assert!(layout.host_changes().exists());

        let empty = tempfile::tempdir().unwrap();
        let layout = Layout::new(empty.path());
        adopt(&layout).unwrap();
        adopt(&layout).unwrap();
    }

    #[test]
    fn the_log_gets_what_scripts_wrote_whatever_came_out() {
        let mut passed = finding("custom-check", Severity::Info);
        passed.output = "fine\n".into();
        let log = event::Memory::default();
        log_to(
            &Report {
                findings: vec![passed],
            },
            &log,
        );
        assert_eq!(
            log.events()[1],
            Event::Log {
                source: "the custom-check".into(),
                line: "fine".into()
            }
        );
    }
}
