//! `gravity report`: what somebody needs who helps from afar, in one archive.
//!
//! In: the node, and on a master the cluster. Out: logs, journals, plans, facts and
//! Kubernetes objects, as text without secrets: data of Secrets is never read, and
//! every text goes through [`redact`]. What can't be had is named in `report.json`
//! and doesn't keep the rest from being collected.

mod nodes;
mod redact;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agent::etcd::Etcd;
use anyhow::{Context, Result, bail};
use console::{ExitCode, render};
use event::Sink;
use host::command::Cmd;
use host::facts::{HostFacts, Interest};
use jiff::Timestamp;
use manifest::HookName;
use planet::client::Client;
use serde::Serialize;
use spec::layout::Layout;
use tokio::sync::mpsc::{self, Sender};

use super::{Session, cert, hook, own, require_root};
use crate::cli::Report;
pub(crate) use redact::redact;

/// Of a longer file only this many bytes at its end are taken.
const MAX_FILE: u64 = 16 << 20;
/// Most files of one directory, and how deep they may lie.
const MAX_FILES: usize = 2000;
const MAX_DEPTH: usize = 4;
/// How long one program may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Kinds of Kubernetes objects that are taken. Secrets are not among them.
const KINDS: &[&str] = &[
    "nodes",
    "namespaces",
    "pods",
    "services",
    "endpointslices",
    "deployments",
    "daemonsets",
    "statefulsets",
    "replicasets",
    "jobs",
    "cronjobs",
    "configmaps",
    "persistentvolumes",
    "persistentvolumeclaims",
    "networkpolicies",
    "ingresses",
    "storageclasses",
    "customresourcedefinitions",
    "serviceaccounts",
    "roles",
    "rolebindings",
    "clusterroles",
    "clusterrolebindings",
    "leases",
    "events",
];

/// Programs of the host whose output tells something.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("ip", &["address"]),
    ("ip", &["route"]),
    ("ip", &["rule"]),
    ("ss", &["-tulnp"]),
    ("df", &["-h"]),
    ("df", &["-i"]),
    ("ps", &["-eo", "pid,ppid,user,rss,etime,args"]),
    ("dmesg", &["--ctime"]),
    ("uname", &["-a"]),
];

/// What our own program says, by the name of the file.
const OWN: &[(&str, &[&str])] = &[
    ("status.json", &["status", "--output=json"]),
    ("host/nft.txt", &["exec", "nft", "list", "ruleset"]),
];

/// Files of the kernel.
const KERNEL: &[&str] = &[
    "/proc/meminfo",
    "/proc/loadavg",
    "/proc/mounts",
    "/etc/os-release",
    "/etc/resolv.conf",
];

pub(crate) async fn run(session: &Session, arguments: &Report) -> Result<ExitCode> {
    require_root()?;
    if !session.layout.host_changes().exists() {
        bail!(
            "there is no cluster in {}",
            session.layout.state_dir().display()
        );
    }
    let since = Duration::try_from(arguments.since).context("read --since")?;
    let (sender, mut receiver) = mpsc::channel(1);
    let (layout, file) = (session.layout.clone(), arguments.file.clone());
    let writing = tokio::task::spawn_blocking(move || {
        let files = std::iter::from_fn(|| receiver.blocking_recv());
        write(&layout, &file, since, files)
    });
    let ((), written) = tokio::join!(send_files(session, since, sender), writing);
    let contents = written.context("write the report")??;
    match session.console.is_json() {
        true => session.console.print_json(&contents)?,
        false => {
            for missing in &contents.missing {
                session.console.warning(missing);
            }
            session.console.info(&format!(
                "{} holds {} files; look through it before you give it away",
                arguments.file.display(),
                contents.files
            ));
        }
    }
    Ok(ExitCode::Ok)
}

/// A file that is not read from this node's disk, or why it can't be had.
pub(crate) struct Found {
    name: String,
    text: Result<String, String>,
}

impl Found {
    fn text(name: &str, text: String) -> Self {
        Self {
            name: name.into(),
            text: Ok(text),
        }
    }

    fn missing(name: &str, why: impl ToString) -> Self {
        Self {
            name: name.into(),
            text: Err(why.to_string()),
        }
    }
}

/// Sends what comes from the application, from this node's services and from other
/// nodes.
async fn send_files(session: &Session, since: Duration, files: Sender<Found>) {
    if let Some(dump) = dump(session).await {
        drop(files.send(Found::text("dump.txt", dump)).await);
    }
    session
        .console
        .step("Collecting logs, journals and objects");
    let layout = session.layout.clone();
    let told = tokio::task::spawn_blocking(move || told(&layout)).await;
    for file in told.unwrap_or_default() {
        drop(files.send(file).await);
    }
    let client = match session.administrator().await {
        Ok(client) => client,
        Err(error) => return drop(files.send(Found::missing("nodes", error)).await),
    };
    // By the name that the cluster knows: the host may have got another one.
    let here = own::node(&session.layout).map(|node| node.hostname);
    let here = here.unwrap_or_default();
    let since = Timestamp::try_from(changed_after(since)).unwrap_or(Timestamp::UNIX_EPOCH);
    tokio::select! {
        () = nodes::collect(&client, &here, since, &files) => {}
        () = hook::interrupted() => {
            drop(files.send(Found::missing("nodes", "interrupted")).await);
        }
    }
}

/// What has not changed since then is left out.
fn changed_after(since: Duration) -> SystemTime {
    let epoch = SystemTime::UNIX_EPOCH;
    match since.is_zero() {
        true => epoch,
        false => SystemTime::now().checked_sub(since).unwrap_or(epoch),
    }
}

/// What the application's dump hook writes, where it has one.
async fn dump(session: &Session) -> Option<String> {
    let manifest = session.manifest().ok()?;
    manifest.hooks.get(&HookName::Dump)?;
    session.console.step("Running the dump hook");
    let written = Arc::new(event::Memory::default());
    let ended = hook::by_hand(session, HookName::Dump, &[], written.clone()).await;
    let mut lines: Vec<_> = written.events().iter().filter_map(render::event).collect();
    // A hook that fails is worth a report all the more.
    if let Err(error) = ended {
        lines.push(render::error(error.as_ref()));
    }
    Some(lines.join("\n"))
}

/// What is in a report.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Contents {
    /// Version of the program that made it.
    version: &'static str,
    /// When it was made.
    time: Timestamp,
    /// How many files it holds.
    files: usize,
    /// What could not be had, and why.
    missing: Vec<String>,
}

/// Writes a report: `.tar.zst` or, by any other name, gzip. Files that haven't
/// changed for `since` are left out; zero takes all. `files` are those that are not
/// on this node's disk.
pub(crate) fn write(
    layout: &Layout,
    path: &Path,
    since: Duration,
    files: impl IntoIterator<Item = Found>,
) -> Result<Contents> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let result = write_to(layout, path, &partial, since, files);
    if result.is_err() {
        drop(std::fs::remove_file(&partial));
    }
    result
}

fn write_to(
    layout: &Layout,
    path: &Path,
    partial: &Path,
    since: Duration,
    files: impl IntoIterator<Item = Found>,
) -> Result<Contents> {
    let named = || format!("write {}", path.display());
    drop(std::fs::remove_file(partial));
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(partial)
        .with_context(named)?;
    let zstd = path.extension().is_some_and(|extension| extension == "zst");
    let output: Box<dyn Write> = match zstd {
        true => Box::new(
            zstd::Encoder::new(file, 0)
                .with_context(named)?
                .auto_finish(),
        ),
        false => Box::new(flate2::write::GzEncoder::new(
            file,
            flate2::Compression::default(),
        )),
    };
    let mut archive = Archive {
        tar: tar::Builder::new(output),
        changed_after: changed_after(since),
        contents: Contents {
            version: env!("CARGO_PKG_VERSION"),
            ..Contents::default()
        },
    };
    for Found { name, text } in files {
        match text {
            Ok(text) => archive.add(&name, &text).with_context(named)?,
            Err(why) => archive.miss(&name, &why),
        }
    }
    archive.collect(layout, since).with_context(named)?;
    let contents = archive.finish().with_context(named)?;
    File::open(partial)
        .and_then(|file| file.sync_all())
        .with_context(named)?;
    std::fs::rename(partial, path).with_context(named)?;
    Ok(contents)
}

struct Archive {
    tar: tar::Builder<Box<dyn Write>>,
    changed_after: SystemTime,
    contents: Contents,
}

impl Archive {
    fn collect(&mut self, layout: &Layout, since: Duration) -> Result<()> {
        let facts = serde_json::to_string_pretty(&HostFacts::collect(&Interest::default()))?;
        self.add("facts.json", &facts)?;
        for path in [
            layout.cluster(),
            layout.manifest(),
            layout.components(),
            layout.planet_config(),
            layout.host_changes(),
        ] {
            self.file(layout, &path)?;
        }
        self.directory(layout, &layout.operations(), 0)?;
        self.directory(layout, &layout.logs(), 0)?;
        let pods = layout.overlay().join("upper/var/log/pods");
        self.directory(layout, &pods, 0)?;
        for path in KERNEL {
            let path = Path::new(path);
            match tail(path) {
                Ok(text) => self.add(&format!("host{}", path.display()), &text)?,
                Err(error) => self.miss(&path.display().to_string(), &error.to_string()),
            }
        }
        for (program, arguments) in PROGRAMS {
            let name = format!(
                "host/{program}{}.txt",
                arguments.join("-").replace('/', "-")
            );
            self.program(&name, program, arguments)?;
        }
        self.own(layout)?;
        if host::facts::has_systemd() {
            let mut arguments = vec!["--no-pager".to_owned(), "--unit=gravity.service".into()];
            if !since.is_zero() {
                arguments.push(format!("--since=-{}s", since.as_secs()));
            }
            self.program("host/journal.txt", "journalctl", &arguments)?;
        }
        self.kubernetes(layout)
    }

    /// What we know of the node.
    fn own(&mut self, layout: &Layout) -> Result<()> {
        match cert::list(&layout.secrets(), Timestamp::now()) {
            Ok(rows) => self.add("certificates.json", &serde_json::to_string_pretty(&rows)?)?,
            Err(error) => self.miss("certificates.json", &render::error(error.as_ref())),
        }
        if layout.planet_config().exists() {
            match services(layout) {
                Ok(services) => self.add("services.json", &services)?,
                Err(error) => self.miss("services.json", &format!("{error:#}")),
            }
        }
        Ok(())
    }

    fn kubernetes(&mut self, layout: &Layout) -> Result<()> {
        let config = layout.admin_kubeconfig();
        let planet = planet::container::load(&layout.planet_config()).ok();
        let Some(planet) = planet.filter(|_| config.exists()) else {
            self.miss("kubernetes", "this node has no planet of a master");
            return Ok(());
        };
        let kubectl = planet.rootfs.join("usr/local/bin/kubectl");
        let [upper, lower] = super::planet::no_proxy();
        let get = |arguments: &[&str]| {
            Cmd::new(&kubectl)
                .args(["get", "--all-namespaces", "--request-timeout=10s"])
                .args(arguments)
                .env(upper.0, &upper.1)
                .env(lower.0, &lower.1)
                .env("KUBECONFIG", &config)
                .env("KUBECACHEDIR", layout.service("kubectl-cache"))
                .timeout(PATIENCE)
                .max_output(usize::try_from(MAX_FILE).unwrap_or(usize::MAX))
                .run()
        };
        for kind in KINDS {
            match get(&[kind, "--output=yaml"]) {
                Ok(output) => self.add(&format!("kubernetes/{kind}.yaml"), &output.stdout)?,
                Err(error) => {
                    // The others would wait as long for the same answer.
                    self.miss("kubernetes", &render::error(&error));
                    return Ok(());
                }
            }
        }
        let columns =
            "--output=custom-columns=NAMESPACE:.metadata.namespace,NAME:.metadata.name,TYPE:.type";
        match get(&["secrets", columns]) {
            Ok(output) => self.add("kubernetes/secrets.txt", &output.stdout)?,
            Err(error) => self.miss("kubernetes/secrets.txt", &render::error(&error)),
        }
        Ok(())
    }

    fn program<A: AsRef<OsStr>>(
        &mut self,
        name: &str,
        program: &str,
        arguments: &[A],
    ) -> Result<()> {
        match output(program, arguments) {
            Ok(text) => self.add(name, &text),
            Err(why) => {
                self.miss(name, &why);
                Ok(())
            }
        }
    }

    /// All text files of a directory that have changed lately.
    fn directory(&mut self, layout: &Layout, directory: &Path, depth: usize) -> Result<()> {
        let Ok(entries) = std::fs::read_dir(directory) else {
            return Ok(());
        };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        if paths.len() > MAX_FILES {
            let much = format!("{} files, {MAX_FILES} were taken", paths.len());
            self.miss(&directory.display().to_string(), &much);
            paths.truncate(MAX_FILES);
        }
        for path in paths {
            let Ok(metadata) = path.symlink_metadata() else {
                continue;
            };
            let changed = metadata.modified().unwrap_or(SystemTime::now());
            if metadata.is_dir() && depth < MAX_DEPTH {
                self.directory(layout, &path, depth + 1)?;
            } else if metadata.is_file() && changed >= self.changed_after && is_told(&path) {
                self.file(layout, &path)?;
            }
        }
        Ok(())
    }

    /// A file of the state directory. One that isn't there is none to miss.
    fn file(&mut self, layout: &Layout, path: &Path) -> Result<()> {
        let name = path.strip_prefix(layout.state_dir()).unwrap_or(path);
        match tail(path) {
            Ok(text) => self.add(&name.display().to_string(), &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                self.miss(&name.display().to_string(), &error.to_string());
                Ok(())
            }
        }
    }

    fn add(&mut self, name: &str, text: &str) -> Result<()> {
        self.contents.files += 1;
        self.append(name, redact(text).as_bytes())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        let now = Timestamp::now().as_second();
        header.set_mtime(u64::try_from(now).unwrap_or_default());
        self.tar
            .append_data(&mut header, name.trim_start_matches('/'), bytes)?;
        Ok(())
    }

    fn miss(&mut self, what: &str, why: &str) {
        self.contents
            .missing
            .push(redact(&format!("{what}: {why}")));
    }

    fn finish(mut self) -> Result<Contents> {
        self.contents.time = Timestamp::now();
        self.contents.files += 1;
        let json = serde_json::to_vec_pretty(&self.contents)?;
        self.append("report.json", &json)?;
        self.tar.into_inner()?.flush()?;
        Ok(self.contents)
    }
}

/// What a program prints, however it ends; why, where it prints nothing and fails.
fn output<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[A]) -> Result<String, String> {
    let ended = Cmd::new(program)
        .args(arguments)
        .timeout(PATIENCE)
        .max_output(usize::try_from(MAX_FILE).unwrap_or(usize::MAX))
        .end()
        .map_err(|error| render::error(&error))?;
    match ended.status {
        Some(status) if status.success() || !ended.stdout.is_empty() => Ok(ended.stdout),
        Some(status) => Err(format!("{status}: {}", ended.stderr.trim())),
        None => Err(format!("not complete after {} s", PATIENCE.as_secs())),
    }
}

/// How the services are, as the supervisor answers.
fn services(layout: &Layout) -> Result<String> {
    let client = Client::new(&layout.planet_socket());
    let status = super::block_on_one_thread(async { Ok(client.status().await?) })?;
    Ok(serde_json::to_string_pretty(&status)?)
}

/// What it takes a while to tell, above all where something is broken.
fn told(layout: &Layout) -> Vec<Found> {
    let state = format!("--state-dir={}", layout.state_dir().display());
    let own = OWN.iter().map(|(name, arguments)| {
        let arguments: Vec<_> = [state.as_str()].iter().chain(*arguments).copied().collect();
        Found {
            name: (*name).into(),
            text: output(layout.gravity(), &arguments),
        }
    });
    let mut files: Vec<_> = own.collect();
    if layout.admin_kubeconfig().exists() {
        let status = Etcd::on_host(layout).and_then(|etcd| etcd.within(PATIENCE).status());
        files.push(Found {
            name: "etcd.txt".into(),
            text: status
                .map(|status| format!("{status:#?}\n"))
                .map_err(|error| error.message),
        });
    }
    files
}

/// Files of operations that are taken. Beside them lie resources of the user,
/// which may be Secrets, and older reports.
const OPERATION: &[&str] = &["plan.json", "journal", "agent-journal"];

/// Whether a file tells what has happened.
fn is_told(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    // Logs that were rotated have a number, or are packed, and then no text.
    let log = name.ends_with(".log") || name.contains(".log.") && !name.ends_with(".gz");
    OPERATION.contains(&name) || log
}

/// The end of a file, as text.
fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > MAX_FILE {
        file.seek(SeekFrom::Start(length - MAX_FILE))?;
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn put(path: impl AsRef<Path>, text: impl AsRef<[u8]>) -> std::io::Result<()> {
        host::atomic::write(path.as_ref(), text.as_ref(), 0o600).map_err(|error| error.source)
    }

    fn read(path: &Path) -> BTreeMap<String, String> {
        let file = File::open(path).unwrap();
        let reader: Box<dyn Read> = match path.extension().unwrap() == "zst" {
            true => Box::new(zstd::Decoder::new(file).unwrap()),
            false => Box::new(flate2::read::GzDecoder::new(file)),
        };
        let mut archive = tar::Archive::new(reader);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (name, text)
        });
        entries.collect()
    }

    #[test]
    fn a_report_holds_what_is_there_without_secrets_and_says_what_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("state"));
        let operation = layout.operations().join("one");
        for directory in [&operation, &layout.logs(), &layout.planet_secrets()] {
            std::fs::create_dir_all(directory).unwrap();
        }
        put(
            operation.join("operation.log"),
            "install\npassword=hunter2\n",
        )
        .unwrap();
        put(operation.join("report.tar.gz"), "old").unwrap();
        put(operation.join("config.yaml"), "data: {a: b64secret}").unwrap();
        put(operation.join("values.json"), "{data: {a: b64secret}}").unwrap();
        put(layout.logs().join("etcd.log"), "elected\n").unwrap();
        put(layout.logs().join("pod.log.1.gz"), "packed").unwrap();
        put(layout.planet_secrets().join("a.key"), "topsecret").unwrap();
        let old = File::create(layout.logs().join("old.log")).unwrap();
        old.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))
            .unwrap();
        for (name, since, has_old) in [
            ("report.tar.gz", Duration::ZERO, true),
            ("report.tar.zst", Duration::from_secs(3600), false),
        ] {
            let path = directory.path().join(name);
            let other = [
                Found::text("nodes/b/planet/etcd.log", "token=abc".into()),
                Found::missing("nodes/c", "no answer for password=hunter2"),
            ];
            let contents = write(&layout, &path, since, other).unwrap();
            let files = read(&path);
            assert_eq!(files.len(), contents.files);
            assert_eq!(files["log/etcd.log"], "elected\n");
            assert_eq!(files["nodes/b/planet/etcd.log"], "token=[redacted]");
            assert!(files["report.json"].contains("nodes/c: no answer"));
            assert!(!files["report.json"].contains("hunter2"));
            assert_eq!(files["certificates.json"], "[]");
            assert_eq!(
                files["operations/one/operation.log"],
                "install\npassword=[redacted]\n"
            );
            assert_eq!(files.contains_key("log/old.log"), has_old);
            assert!(!files.contains_key("log/pod.log.1.gz"));
            assert!(files.contains_key("facts.json"));
            let others = ["report.tar.gz", "config.yaml", "values.json"];
            assert!(
                others
                    .iter()
                    .all(|name| !files.contains_key(&format!("operations/one/{name}")))
            );
            assert!(files["report.json"].contains("kubernetes: this node"));
            assert!(!format!("{files:?}").contains("topsecret"));
        }
        let nowhere = directory.path().join("none/report.tar.gz");
        assert!(write(&layout, &nowhere, Duration::ZERO, []).is_err());
    }
}
