//! The full sample of the documentation, as it is written there.
//!
//! In: `manifest/testdata/full.yaml` with the files that it names, from
//! `tests/page`; a network namespace in which example.com is a server of ours
//! and a registry has the image `installer-hooks:latest`. Out: it lints and
//! builds; what is asked for is in the image; on a node of this machine it is
//! refused with each requirement that isn't met, and nothing is changed. And an
//! image that demands a license, `tests/licensed`, is installed with one alone.

mod five_nodes;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use console::Console;
use event::Sink;
use manifest::Manifest;
use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::node::{self, Node};
use crate::registry::{Registry, tele};
use crate::said::Said;
use crate::scenario::{IMAGE, Setup};
use crate::snapshot::Snapshot;
use crate::{file, process, sample};

/// No command may take longer, in seconds.
const LIMIT: &str = "600";
/// How long a client of the server may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// Where the documentation's logo is.
const LOGO: &str = "/logo.png";
/// A picture of one pixel.
const PNG: &[u8] = &[
    0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 0x0d, b'I', b'H', b'D', b'R', 0, 0, 0,
    1, 0, 0, 0, 1, 8, 0, 0, 0, 0, 0x3a, 0x7e, 0x9b, 0x55, 0, 0, 0, 0x0a, b'I', b'D', b'A', b'T',
    0x78, 0x9c, 0x63, 0x60, 0, 0, 0, 2, 0, 1, 0x48, 0xaf, 0xa4, 0x71, 0, 0, 0, 0, b'I', b'E', b'N',
    b'D', 0xae, 0x42, 0x60, 0x82,
];

/// Builds, looks, installs, on the new node `name`; or, with `five_nodes`, on
/// five, what of it fits here.
///
/// # Errors
/// At the first thing that is not as it should be; the node stays to be looked
/// at.
pub fn run(name: &str, five_nodes: bool, console: &Console) -> Result<()> {
    node::require_root()?;
    let work = file::cache()?.join("page");
    file::remove_directory(&work)?;
    file::make_directory(&work)?;
    let setup = Setup::new("tests/page");
    console.step("The documentation's sample, in a namespace with its own example.com");
    let program = std::env::current_exe().context("finding this program")?;
    let mut vendor = Command::new("unshare");
    vendor.args(["--net", "--mount", "--propagation", "private"]);
    vendor.arg(program).arg("page-vendor").arg(&work);
    process::run(&mut vendor)?;
    let tele = Tele::new(&work)?;
    inspected(&tele)?;
    console.info("It lints and builds, and its image has what it asks for");

    if five_nodes {
        return five_nodes::run(&setup, &tele, name, console);
    }
    let node = setup.create(name, console)?;
    refused(&node, &work.join("page-image"))?;
    console.info("`install --role=db` is refused with each unmet requirement");
    licensed(&node, &tele, console)?;
    node.delete()
}

/// `tele` as a vendor uses it, whose home is a directory of the test.
struct Tele {
    program: PathBuf,
    work: PathBuf,
}

impl Tele {
    fn new(work: &Path) -> Result<Self> {
        Ok(Self {
            program: tele()?,
            work: work.to_owned(),
        })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(words)
            .current_dir(&self.work)
            .env("XDG_CONFIG_HOME", self.work.join("config"))
            .env(
                "CONTAINERS_REGISTRIES_CONF",
                self.work.join("registries.conf"),
            )
            .env_remove("http_proxy")
            .env_remove("HTTP_PROXY")
            .stdin(Stdio::null());
        command
    }

    fn said(&self, words: &[&str]) -> Result<Said> {
        let output = self.command(words).output();
        Ok(Said::of(&output.context("starting tele")?))
    }

    /// Makes a license, signed as the words say, of a name in the work directory.
    fn license(&self, name: &str, words: &[&str]) -> Result<()> {
        let new = ["license", "new", "--holder", "Acme Inc", "-o", name];
        self.good(&[&new[..], words].concat()).map(drop)
    }

    fn good(&self, words: &[&str]) -> Result<String> {
        Ok(self.said(words)?.expect(0, &[])?.text)
    }
}

/// What the vendor does, in namespaces of its own: builds both images into
/// `work`.
///
/// # Errors
/// When a server can't be started, or at the first thing that tele does wrong.
pub fn vendor(work: &Path) -> Result<()> {
    process::run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    let hosts = work.join("hosts");
    file::write(&hosts, "127.0.0.1 localhost example.com\n")?;
    let no: Option<&str> = None;
    mount(Some(&hosts), "/etc/hosts", no, MsFlags::MS_BIND, no).context("mounting /etc/hosts")?;
    serve()?;
    let images = work.join("images");
    sample::make_images(&images)?;
    let registry = Registry::start(&work.join("registry"))?;
    registry.push(&images)?;
    registry.write_mirrors(&work.join("registries.conf"))?;
    let tele = Tele::new(work)?;
    for (application, manifest, lint) in [
        // Of -debug and of promiscuous-bridge.
        (
            "page",
            Some("manifest/testdata/full.yaml"),
            "0 errors, 2 warnings",
        ),
        ("licensed", None, "0 errors, 0 warnings"),
    ] {
        let directory = work.join(application);
        file::make_directory(&directory)?;
        let from = Path::new("tests").join(application);
        let entries = fs::read_dir(&from).with_context(|| from.display().to_string())?;
        let files = entries
            .flatten()
            .map(|entry| (entry.path(), entry.file_name()));
        let manifest = manifest.map(|path| (path.into(), "app.yaml".into()));
        for (path, name) in files.chain(manifest) {
            fs::copy(&path, directory.join(name)).with_context(|| path.display().to_string())?;
        }
        tele.said(&["lint", application])?.expect(0, &[lint])?;
        let output = format!("{application}-image");
        tele.good(&["build", "-o", &output, application])?;
    }
    let app = work.join("page/app.yaml");
    let text = file::read(&app)?;
    file::write(&app, five_nodes::lowered(&text)?)?;
    tele.good(&["build", "-o", "lowered-image", "page"])?;
    // The same without the server's picture.
    file::write(&app, text.replace(LOGO, "/none.png"))?;
    let failed = tele.said(&["build", "-o", "none", "page"])?;
    failed.expect(1, &["app.yaml", "`logo`", "http://example.com/none.png"])?;
    ensure!(
        !work.join("none").exists(),
        "a build that failed left a file"
    );
    file::write(&app, text)
}

/// Is example.com, as long as this process runs.
fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 80)).context("being example.com")?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Who hangs up early is not our concern.
            let _ = answer(stream);
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?.take(16 << 10));
    let mut lines = Vec::new();
    for line in reader.by_ref().lines() {
        match line? {
            end if end.is_empty() => break,
            line => lines.push(line),
        }
    }
    let host = |line: &String| line.eq_ignore_ascii_case("host: example.com");
    let first = lines.first().map(String::as_str).unwrap_or_default();
    let good = first == format!("GET {LOGO} HTTP/1.1") && lines.iter().any(host);
    let (status, body): (_, &[u8]) = match good {
        true => ("200 OK", PNG),
        false => ("404 Not Found", b"<html>There is no such page</html>"),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)
}

/// What of the sample is in its image.
fn inspected(tele: &Tele) -> Result<()> {
    let text = tele.good(&["inspect", "--format", "json", "page-image"])?;
    let found: Value = serde_json::from_str(&text).context("the inspection is no JSON")?;
    let manifest = &found["manifest"];
    for (what, value, wanted) in [
        ("name", &found["name"], "MyCluster"),
        ("logo", &found["logo"]["media_type"], "image/png"),
        (
            "EULA",
            &manifest["installer"]["eula"]["source"],
            "Be kind to each other.\n",
        ),
    ] {
        ensure!(value == wanted, "its {what} is {value}");
    }
    ensure!(found["logo"]["size"] == PNG.len(), "{}", found["logo"]);
    let signers = found["license_authorities"].as_array();
    ensure!(signers.is_some_and(|all| all.len() == 1), "{found:#}");
    let images: Vec<_> = found["images"].as_array().into_iter().flatten().collect();
    let [image] = images.as_slice() else {
        anyhow::bail!("it has {} images", images.len());
    };
    let name = "leader.telekube.local:5000/installer-hooks:latest";
    ensure!(image["reference"] == name, "{image:#}");
    // Both hooks ask for it by the name that the cluster's registry has.
    for hook in ["install", "postInstall"] {
        let job = manifest["hooks"][hook]["job"].as_str().unwrap_or_default();
        ensure!(job.contains(name), "{hook}: {job}");
    }
    Ok(())
}

/// The documentation's profile is larger than nodes of tests.
fn refused(node: &Node, image: &Path) -> Result<()> {
    node.copy(image, IMAGE)?;
    let before = Snapshot::take(node)?;
    let manifest = sample_manifest()?;
    let profile = manifest.profile("db").context("there is no profile db")?;
    let needed = &profile.requirements;
    // A node's disk has 40 GB.
    let mut unmet = vec![
        "✗ operating system [os]",
        "wanted: centos 7 or rhel 7.2, 7.3",
        "✗ free space of /var/lib/logs [space]",
        "✗ free space of /var/lib/data [space]",
        "wanted: at least 512GB",
        "✗ volume /path/to/dir-??? [volume]",
        "! device /dev/nvidia* [device]",
    ];
    let processors = thread::available_parallelism().map_or(1, usize::from);
    if needed
        .cpu
        .min
        .is_some_and(|min| (processors as u64) < u64::from(min))
    {
        unmet.push("✗ processors [cpu]");
    }
    let memory = memory()?;
    if needed.ram.min.is_some_and(|min| memory < min.0) {
        unmet.push("✗ memory [ram]");
    }
    let refused = Said::within(node, LIMIT, &[IMAGE, "install", "--role=db"])?.expect(3, &unmet)?;
    ensure!(
        !refused.text.contains("Do you accept"),
        "who can't install is asked to agree: {}",
        refused.text
    );
    // Whoever ignores all of them is told so; what would break is not ignored.
    let ignoring = |more: &'static str| {
        let ids = ["os", "cpu", "ram", "space", "volume", "device", more];
        let flags: Vec<_> = ids.map(|id| format!("--ignore={id}")).into();
        let words = ["install", "--role=db", "--dry-run"].map(str::to_owned);
        let words = [&words[..], &flags].concat();
        said(node, &Vec::from_iter(words.iter().map(String::as_str)))
    };
    ignoring("swap")?.expect(0, &["[os] ignored: operating system", "[volume] ignored"])?;
    ignoring("root")?.expect(2, &["`root` can't be ignored"])?;
    before.is_still(node, "a refused install")
}

fn sample_manifest() -> Result<Manifest> {
    let text = include_str!("../../manifest/testdata/full.yaml");
    manifest::parse(text, "app.yaml").map_err(|found| anyhow::anyhow!("{found:?}"))
}

/// Of this machine, in bytes.
fn memory() -> Result<u64> {
    let text = file::read(Path::new("/proc/meminfo"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number: u64 = number.context("/proc/meminfo has no MemTotal")?.parse()?;
    Ok(number * 1024)
}

fn said(node: &Node, words: &[&str]) -> Result<Said> {
    let address = format!("--advertise-addr={}", node.address());
    let mut all = vec![IMAGE];
    all.extend(words);
    if words[0] == "install" {
        all.extend([address.as_str(), "--skip-disk-test"]);
    }
    Said::within(node, LIMIT, &all)
}

/// Only a license of the vendor, for this image and for today, installs it.
fn licensed(node: &Node, tele: &Tele, console: &Console) -> Result<()> {
    console.step("An image that demands a license");
    node.copy(&tele.work.join("licensed-image"), IMAGE)?;
    let license = |name: &str, words: &[&str]| {
        tele.license(name, words)?;
        node.copy(&tele.work.join(name), &format!("/root/{name}"))
    };
    license("good.pem", &["--image", "Licensed", "--max-nodes", "1"])?;
    license("other.pem", &["--image", "MyCluster"])?;
    let stranger = tele.work.join("stranger");
    let stranger = stranger.to_str().context("the cache's path is not text")?;
    license(
        "forged.pem",
        &["--image", "Licensed", "--authority", stranger],
    )?;
    let before = Snapshot::take(node)?;
    for (words, reason) in [
        (&["install"][..], "Licensed demands a license"),
        (&["install", "--license=/root/none.pem"], "No such file"),
        (
            &["install", "--license=/root/other.pem"],
            "a license for MyCluster",
        ),
        (
            &["install", "--license=/root/forged.pem"],
            "not signed by the authority",
        ),
    ] {
        said(node, words)?.expect(2, &[reason])?;
    }
    before.is_still(node, "a refused install")?;

    console.step("./gravity install --license=/root/good.pem");
    let url = format!("Finish the setup at http://{}:30090", node.address());
    let installed = said(node, &["install", "--license=/root/good.pem"])?;
    let text = installed.expect(0, &[&url])?.text;
    ensure!(
        !text.contains("BEGIN CERTIFICATE"),
        "the license is shown: {text}"
    );
    said(node, &["status"])?.expect(0, &["License:         Acme Inc, one node, until 2"])?;
    let stored = node.text(&[
        "kubectl",
        "-n",
        "kube-system",
        "get",
        "secret",
        "license",
        "-o",
        "go-template={{.data.license | base64decode}}",
    ])?;
    let sent = file::read(&tele.work.join("good.pem"))?;
    ensure!(stored == sent, "the cluster has another license: {stored}");
    one_node_is_enough(node, tele, console)?;
    said(node, &["leave", "--force", "--confirm"])?.expect(0, &[])?;
    before.is_still(node, "`leave`")?;
    console.info("It is installed with a license of its vendor, and with nothing else");
    Ok(())
}

/// The license is for one node: a second may not join.
fn one_node_is_enough(first: &Node, tele: &Tele, console: &Console) -> Result<()> {
    let text = first.text(&[IMAGE, "token", "create"])?;
    let mut words = text.split_whitespace();
    let token = words
        .find(|word| word.starts_with("--token="))
        .with_context(|| format!("there is no token in {text}"))?;
    let name = format!("{}-second", first.name());
    node::delete(&name)?;
    let second = Node::create(&name, &node::usual(console)?)?;
    second.copy(&tele.work.join("licensed-image"), IMAGE)?;
    let before = Snapshot::take(&second)?;
    let refused = said(&second, &["join", first.address(), token])?;
    refused.expect(1, &["the license of Acme Inc allows 1 node"])?;
    before.is_still(&second, "a refused join")?;
    second.delete()
}
