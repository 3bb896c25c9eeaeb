//! What must not go wrong: installs that are killed, refused, damaged or run
//! out of space, and what `leave` makes of them.
//!
//! In: a cluster image, on one throwaway node that the scenarios share. Out: a
//! line a scenario, `ok` or `FAILED` with the reason. Always holds: every
//! scenario begins with a node that is as it was when it was made.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::{Console, render};
use image::Image;
use serde_json::Value;

use crate::node::{self, Throwaway};
use crate::process;
use crate::said::Said;
use crate::scenario::IMAGE;
use crate::snapshot::Snapshot;

/// The sample's flavor of one node.
pub(crate) const FLAVOR: &str = "--flavor=one";
/// A damaged copy of the image in the node.
const BAD: &str = "/root/damaged";
pub(crate) const STATE: &str = "/var/lib/gravity";
/// Exit codes of `gravity`.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const PREFLIGHT: i32 = 3;
const BUSY: i32 = 4;
const DAMAGED: i32 = 5;
const DEGRADED: i32 = 6;
pub(crate) const RESUMABLE: i32 = 7;

/// Seconds that a command may take: an image that could not be pulled at once is
/// tried again after 10, 20, 40 and 80 s.
const LIMIT: &str = "300";
/// How long the node may take to be well again after something was killed, or its
/// disk was full: kubelet says so for a minute longer.
const RECOVERY: Duration = Duration::from_secs(120);

type Scenario = fn(&Subject) -> Result<()>;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("refusals", refusals),
    ("agreement", agreement),
    ("taken-port", taken_port),
    ("damaged-image", damaged_image),
    ("foreign-directory", foreign_directory),
    ("two-at-once", two_at_once),
    ("killed-supervisor", killed_supervisor),
    ("lost-terminal", lost_terminal),
    ("abort", abort),
    ("rollback", rollback),
    ("one-by-one", one_by_one),
    ("full-disk", full_disk),
    ("disk-pressure", disk_pressure),
    ("filled-while-running", filled_while_running),
];

/// What the scenarios share.
pub(crate) struct Subject {
    pub(crate) node: Throwaway,
    /// Name of the image on the machine.
    image: PathBuf,
    /// The node before anything was installed.
    before: Snapshot,
}

/// Runs all scenarios, or those whose name contains one of `only`. Says whether all
/// were as they should be.
///
/// # Errors
/// When the node can't be made.
pub fn run(image: &Path, only: &[String], console: &Console) -> Result<bool> {
    let subject = Subject::new("f1", image, console)?;
    let (mut passed, mut failed) = (0, 0);
    let chosen = |name: &str| only.is_empty() || only.iter().any(|only| name.contains(only));
    for (name, scenario) in SCENARIOS.iter().filter(|(name, _)| chosen(name)) {
        let started = Instant::now();
        let result = scenario(&subject).and_then(|()| subject.clean());
        let took = render::duration(started.elapsed());
        match result {
            Ok(()) => {
                passed += 1;
                console.print(&format!("ok {name} ({took})"));
            }
            Err(error) => {
                failed += 1;
                console.print(&format!("FAILED {name} ({took}): {error:#}"));
                drop(subject.leave());
            }
        }
    }
    console.print(&format!("{passed} passed, {failed} failed"));
    Ok(failed == 0)
}

impl Subject {
    /// A node with the image, as it is before anything is installed.
    pub(crate) fn new(name: &str, image: &Path, console: &Console) -> Result<Self> {
        node::require_root()?;
        let node = Throwaway::create(name, &node::usual(console)?)?;
        node.copy(image, IMAGE)?;
        let before = Snapshot::take(&node)?;
        Ok(Self {
            node,
            image: image.to_owned(),
            before,
        })
    }

    pub(crate) fn said(&self, words: &[&str]) -> Result<Said> {
        Said::within(&self.node, LIMIT, words)
    }

    pub(crate) fn shell(&self, script: &str) -> Result<Said> {
        self.said(&["sh", "-c", script])
    }

    fn install(&self, arguments: &[&str]) -> Result<Said> {
        let address = format!("--advertise-addr={}", self.node.address());
        let mut words = vec![
            IMAGE,
            "install",
            "--accept-eula",
            "--skip-disk-test",
            FLAVOR,
            &address,
        ];
        words.extend(arguments);
        self.said(&words)
    }

    /// Installs, or resumes, and does `then` as soon as `phase` has begun.
    /// Whether it has begun.
    fn until(&self, what: &str, phase: &str, then: &str) -> Result<(bool, Said)> {
        let address = match what {
            "install" => format!(
                "--accept-eula --skip-disk-test {FLAVOR} --advertise-addr={}",
                self.node.address()
            ),
            _ => String::new(),
        };
        let script = format!(
            "{{ {IMAGE} {what} {address} 2>&1; echo exit $?; }} | while IFS= read -r line; do \
               echo \"$line\"; \
               case \"$line\" in *' {phase} in progress'*) {then}; echo REACHED;; esac; \
             done"
        );
        let said = self.shell(&script)?;
        let reached = said.text.lines().any(|line| line == "REACHED");
        let code = said
            .text
            .lines()
            .find_map(|line| line.strip_prefix("exit "));
        let code = code.and_then(|code| code.parse().ok()).unwrap_or(said.code);
        Ok((reached, Said { code, ..said }))
    }

    pub(crate) fn leave(&self) -> Result<Said> {
        self.said(&[IMAGE, "leave", "--force", "--confirm"])
    }

    /// Removes what a scenario left. The node must be as before then.
    fn clean(&self) -> Result<()> {
        if self.shell(&format!("test -e {STATE}"))?.code == 0 {
            self.leave()?.expect(0, &[])?;
        }
        self.is_untouched()
    }

    pub(crate) fn is_untouched(&self) -> Result<()> {
        self.before.is_still(&self.node, "what was done")
    }

    /// The last JSON document that `gravity` printed.
    pub(crate) fn json(&self, command: &str) -> Result<Value> {
        let line = format!("{IMAGE} {command} --output json");
        let said = Said::of_line(&self.node, LIMIT, &line)?;
        said.json().with_context(|| command.to_owned())
    }

    /// Fails unless there is a whole cluster that works.
    pub(crate) fn is_active(&self) -> Result<()> {
        let mut state = Value::Null;
        let active = process::wait_until(RECOVERY, || {
            state = self.json("status").unwrap_or_default();
            state["cluster"]["state"] == "active"
        });
        ensure!(active, "the cluster is not active: {state}");
        let plan = self.json("plan")?;
        let open = leaves(&plan)
            .filter(|phase| phase["state"] != "completed")
            .map(|phase| phase["id"].to_string())
            .collect::<Vec<_>>();
        ensure!(open.is_empty(), "phases are not complete: {open:?}");
        let objects =
            "kubectl get nodes -o name && kubectl -n kube-system get service kube-dns -o name";
        let node = format!("node/{}", self.node.name());
        self.shell(objects)?
            .expect(0, &[&node, "service/kube-dns"])?;
        Ok(())
    }

    /// Process ids of the services.
    fn services(&self) -> Result<Vec<(String, Value)>> {
        let status = self.json("status")?;
        let services = status["nodes"][0]["services"].as_array().cloned();
        let services = services.with_context(|| format!("no services in {status}"))?;
        let pair = |service: &Value| {
            let name = service["name"].as_str().unwrap_or_default();
            (name.to_owned(), service["pid"].clone())
        };
        Ok(services.iter().map(pair).collect())
    }

    /// Puts a copy of the image into the node that `change` has changed.
    fn damage(&self, change: impl FnOnce(&File, &Image) -> Result<()>) -> Result<()> {
        let image = Image::open(&self.image).context("opening the image")?;
        let copy = self.image.with_extension("damaged");
        fs::copy(&self.image, &copy).context("copying the image")?;
        let result = File::options()
            .read(true)
            .write(true)
            .open(&copy)
            .context("opening the copy")
            .and_then(|file| change(&file, &image))
            .and_then(|()| self.node.copy(&copy, BAD));
        fs::remove_file(&copy).context("removing the copy")?;
        result
    }
}

fn leaves(phase: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match phase["phases"].as_array() {
        Some(phases) if !phases.is_empty() => Box::new(phases.iter().flat_map(leaves)),
        _ => Box::new(std::iter::once(phase)),
    }
}

fn flip(file: &File, offset: u64) -> Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)
        .context("reading the copy")?;
    byte[0] ^= 0x10;
    file.write_all_at(&byte, offset).context("writing the copy")
}

/// Where the index begins: on the page behind the last blob.
fn index(image: &Image) -> u64 {
    let ends = image.blobs().map(|blob| blob.offset + blob.length);
    ends.max().unwrap_or_default().next_multiple_of(4096)
}

/// Options and a user that can't be.
fn refusals(subject: &Subject) -> Result<()> {
    let address = subject.node.address();
    subject
        .said(&[
            IMAGE,
            "install",
            "--accept-eula",
            FLAVOR,
            "--advertise-addr=10.99.0.250",
        ])?
        .expect(
            USAGE,
            &["10.99.0.250 is not an address of this node", address],
        )?;
    subject
        .install(&["--pod-network-cidr=10.100.0.0/16"])?
        .expect(USAGE, &["overlap", "--service-cidr"])?;
    subject
        .install(&["--pod-network-cidr=10.99.0.0/16"])?
        .expect(USAGE, &["overlap", address])?;
    subject
        .install(&["--service-cidr=10.99.0.0/24"])?
        .expect(USAGE, &["overlap", address])?;
    let nobody = "cp /root/gravity /tmp/gravity && chmod 755 /tmp/gravity && \
        setpriv --reuid 1234 --regid 1234 --clear-groups /tmp/gravity install; \
        code=$?; rm /tmp/gravity; exit $code";
    subject
        .shell(nobody)?
        .expect(FAILED, &["must be run as root"])?;
    subject
        .said(&[IMAGE, "leave", "--force", "--confirm"])?
        .expect(FAILED, &["there is no cluster"])?;
    subject
        .said(&[IMAGE, "resume"])?
        .expect(FAILED, &["no operation was found"])?;
    subject.is_untouched()
}

/// Whoever doesn't accept the license agreement gets no cluster.
fn agreement(subject: &Subject) -> Result<()> {
    let install = format!(
        "{IMAGE} install --skip-disk-test --advertise-addr={}",
        subject.node.address()
    );
    let agreement = include_str!("../sample/eula.txt");
    let agreement = agreement.lines().next().context("the EULA is empty")?;
    subject
        .shell(&format!("{install} {FLAVOR}"))?
        .expect(FAILED, &[agreement, "--accept-eula"])?;
    subject.is_untouched()?;
    // At a terminal one is asked, for the flavor first.
    let asked = format!("{{ echo one; echo no; sleep 20; }} | script -qec '{install}' /dev/null");
    subject.shell(&asked)?.expect(
        FAILED,
        &[
            "How many nodes will serve pages?",
            agreement,
            "Do you accept",
        ],
    )?;
    subject.is_untouched()
}

/// Somebody listens at a port of the API.
fn taken_port(subject: &Subject) -> Result<()> {
    let listen = "$s = IO::Socket::INET->new(LocalPort => 6443, Listen => 1) or die; \
        print \"listening\\n\"; $| = 1; sleep 60";
    let install = format!(
        "perl -MIO::Socket::INET -e '{listen}' >/dev/null & \
         listener=$!; \
         for n in $(seq 100); do grep -q ':192B ' /proc/net/tcp && break; sleep 0.05; done; \
         {IMAGE} install --accept-eula {FLAVOR} --advertise-addr={}; code=$?; \
         echo listener $listener; kill $listener; exit $code",
        subject.node.address()
    );
    let said = subject
        .shell(&install)?
        .expect(PREFLIGHT, &["6443", "perl"])?;
    let listener = said
        .text
        .lines()
        .find_map(|line| line.strip_prefix("listener "));
    let listener = listener.context("no listener")?;
    ensure!(
        said.text
            .lines()
            .any(|line| line.contains("6443") && line.contains(listener)),
        "the listener's process id {listener} is not told: {}",
        said.text
    );
    subject.is_untouched()
}

/// Image files that are not what was built.
fn damaged_image(subject: &Subject) -> Result<()> {
    let length = fs::metadata(&subject.image)
        .context("reading the image")?
        .len();
    type Change = fn(&File, &Image, u64) -> Result<()>;
    let changes: [(&str, Change, &str); 7] = [
        (
            "cut",
            |file, _, length| file.set_len(length / 2).context("cutting"),
            "truncated",
        ),
        (
            "cut by a byte",
            |file, _, length| file.set_len(length - 1).context("cutting"),
            "truncated",
        ),
        (
            "appended",
            |file, _, length| file.write_all_at(b"x", length).context("appending"),
            "after the end",
        ),
        (
            "flipped in the index",
            |file, image, _| flip(file, index(image) + 100),
            "damaged",
        ),
        (
            "flipped in the footer",
            |file, _, length| flip(file, length - 100),
            "damaged",
        ),
        (
            "flipped in the largest blob",
            |file, image, _| {
                let blob = image
                    .blobs()
                    .max_by_key(|blob| blob.length)
                    .context("no blobs")?;
                flip(file, blob.offset + blob.length / 2)
            },
            "damaged",
        ),
        (
            "flipped behind the program",
            |file, image, _| flip(file, image.elf().size),
            "damaged",
        ),
    ];
    for (name, change, word) in changes {
        subject.damage(|file, image| change(file, image, length))?;
        let install = [
            BAD,
            "install",
            "--accept-eula",
            FLAVOR,
            &format!("--advertise-addr={}", subject.node.address()),
        ];
        let said = subject.said(&install)?;
        let tried = said.expect(DAMAGED, &[word, "copy the file again"]);
        subject.node.run(&["rm", BAD])?;
        tried.context(name)?;
        subject.is_untouched().context(name)?;
    }
    Ok(())
}

/// The state directory holds what is somebody else's.
fn foreign_directory(subject: &Subject) -> Result<()> {
    let prepared = format!("mkdir -p {STATE}/lost+found && echo mine >{STATE}/photo");
    subject.shell(&prepared)?.expect(0, &[])?;
    subject
        .install(&[])?
        .expect(FAILED, &["not empty", "photo"])?;
    subject.leave()?.expect(FAILED, &["there is no cluster"])?;
    let kept = format!("ls {STATE}; cat {STATE}/photo; rm -r {STATE}");
    let said = subject.shell(&kept)?.expect(0, &["mine"])?;
    ensure!(
        said.text.lines().count() == 3,
        "the directory has changed: {}",
        said.text
    );
    Ok(())
}

/// A second install beside the first, after it was killed, and after it ended.
fn two_at_once(subject: &Subject) -> Result<()> {
    let again = format!(
        "{{ {IMAGE} install --accept-eula {FLAVOR} --advertise-addr={0}; echo SECOND $?; \
           {IMAGE} leave --force --confirm; echo LEAVE $?; {IMAGE} rollback --confirm; echo ROLLBACK $?; \
           {IMAGE} resume; echo RESUME $?; }} 2>&1",
        subject.node.address()
    );
    let (reached, said) = subject.until("install", "/prepare/rootfs", &again)?;
    ensure!(reached, "the phase did not begin: {}", said.text);
    let busy = said.expect(
        0,
        &[
            "SECOND 4",
            "LEAVE 4",
            "ROLLBACK 4",
            "another operation (pid ",
            "Following the operation that runs",
            "RESUME 0",
        ],
    )?;
    ensure!(
        busy.text.contains("is active"),
        "the first did not end well: {}",
        busy.text
    );
    subject.is_active()?;
    subject
        .install(&[])?
        .expect(FAILED, &["this node is part of a cluster"])?;
    subject
        .said(&[IMAGE, "resume"])?
        .expect(0, &["is complete"])?;
    subject.leave()?.expect(0, &[])?;
    // Both at the same moment: one of them wins.
    let both = format!(
        "for n in 1 2; do ( {IMAGE} install --accept-eula {FLAVOR} --advertise-addr={} >/tmp/out$n 2>&1; echo code $? ) & done; \
         wait; cat /tmp/out1 /tmp/out2; rm /tmp/out1 /tmp/out2",
        subject.node.address()
    );
    let said = subject.shell(&both)?;
    let codes: Vec<_> = said
        .text
        .lines()
        .filter(|line| line.starts_with("code "))
        .collect();
    ensure!(
        codes.contains(&"code 0") && codes.iter().any(|code| *code != "code 0"),
        "not one of two has won: {}",
        said.text
    );
    subject.is_active()?;
    subject.leave()?.expect(0, &[])?;
    subject.leave()?.expect(FAILED, &["there is no cluster"])?;
    Ok(())
}

const KILL_BOTH: &str =
    "kill -9 $(cat /var/lib/gravity/operation.lock) $(cat /var/lib/gravity/agent.lock)";

/// The terminal ends: the operation goes on, nothing else may change the node
/// meanwhile, and another terminal sees all.
fn lost_terminal(subject: &Subject) -> Result<()> {
    // The installer is the parent of the process that runs the operation.
    let kill = "operation=$(cat /var/lib/gravity/operation.lock); \
        kill -9 $(sed 's/.*) . //; s/ .*//' /proc/$operation/stat)";
    let (reached, said) = subject.until("install", "/prepare/rootfs", kill)?;
    ensure!(
        reached && said.code == 137,
        "it was not killed: {}",
        said.text
    );
    for second in [subject.install(&[])?, subject.leave()?] {
        second.expect(BUSY, &["another operation (pid "])?;
    }
    subject
        .said(&[IMAGE, "plan", "--tail"])?
        .expect(0, &["/bootstrap completed", "/complete completed"])?;
    subject.said(&[IMAGE, "resume"])?.expect(0, &[])?;
    subject.is_active()
}

/// Ctrl+C twice: what runs is ended, everything is taken back.
fn abort(subject: &Subject) -> Result<()> {
    for phase in ["/prepare/rootfs", "/start/planet", "/health"] {
        // A job of a script doesn't hear Ctrl+C: the installer's own process does.
        let interrupt = "operation=$(cat /var/lib/gravity/operation.lock); \
            installer=$(sed 's/.*) . //; s/ .*//' /proc/$operation/stat); \
            kill -INT $installer; sleep 0.3; kill -INT $installer";
        let (reached, said) = subject.until("install", phase, interrupt)?;
        ensure!(reached, "{phase} did not begin: {}", said.text);
        said.expect(
            FAILED,
            &["Press Ctrl+C again", "Aborting", "everything taken back"],
        )
        .context(phase)?;
        subject.is_untouched().context(phase)?;
    }
    Ok(())
}

/// A rollback of an install that was killed: what it would do, and what it says.
fn rollback(subject: &Subject) -> Result<()> {
    let (reached, said) = subject.until("install", "/start/planet", KILL_BOTH)?;
    ensure!(reached, "the phase did not begin: {}", said.text);
    subject.said(&[IMAGE, "rollback", "--dry-run"])?.expect(
        0,
        &["would roll back /bootstrap", "would take back directory"],
    )?;
    subject
        .said(&[IMAGE, "rollback"])?
        .expect(FAILED, &["terminal"])?;
    subject
        .said(&[IMAGE, "rollback", "--confirm"])?
        .expect(0, &["/bootstrap rolled back", "removed directory"])?;
    subject.is_untouched()
}

/// Phases executed and taken back one by one.
fn one_by_one(subject: &Subject) -> Result<()> {
    let one = |what: &str, phase: &str| {
        let phase = format!("--phase={phase}");
        subject.said(&[IMAGE, "plan", what, &phase])
    };
    let (reached, said) = subject.until("install", "/prepare/rootfs", KILL_BOTH)?;
    ensure!(reached, "the phase did not begin: {}", said.text);
    said.expect(RESUMABLE, &["ended unexpectedly"])?;
    subject.install(&[])?.expect(
        FAILED,
        &["has not ended", "gravity resume", "gravity leave"],
    )?;
    one("execute", "/start")?.expect(FAILED, &["requires", "/prepare"])?;
    one("execute", "/nothing")?.expect(FAILED, &["no phase /nothing"])?;
    one("rollback", "/bootstrap")?.expect(FAILED, &["came after /bootstrap"])?;
    subject
        .said(&[IMAGE, "plan", "complete"])?
        .expect(FAILED, &["execute what is left"])?;
    one("execute", "/prepare")?.expect(0, &["/prepare/rootfs completed"])?;
    one("rollback", "/prepare/program")?.expect(0, &["/prepare/program rolled back"])?;
    subject
        .shell("test ! -e /usr/local/bin/kubectl")?
        .expect(0, &[])?;
    let yaml = subject.said(&[IMAGE, "plan", "--output=yaml"])?;
    yaml.expect(0, &["state: rolled_back", "operation_id:"])?;
    subject
        .said(&[IMAGE, "plan", "resume"])?
        .expect(0, &["is active"])?;
    subject.is_active()?;
    // The planet is made anew, with all that follows it.
    one("rollback", "/start/planet")?.expect(FAILED, &["came after"])?;
    for phase in [
        "/complete",
        "/post-install",
        "/install",
        "/image",
        "/health",
        "/start",
        "/prepare/secrets",
    ] {
        one("rollback", phase)?.expect(0, &[]).context(phase)?;
    }
    subject
        .said(&[IMAGE, "resume"])?
        .expect(0, &["is active"])?;
    subject.is_active()?;
    subject
        .said(&[IMAGE, "plan", "complete"])?
        .expect(0, &["is complete"])?;
    subject
        .said(&[IMAGE, "rollback", "--confirm"])?
        .expect(FAILED, &["gravity leave"])?;
    let before = subject.services()?;
    subject
        .said(&[IMAGE, "cert", "renew"])?
        .expect(0, &["No certificate is due"])?;
    subject
        .said(&[IMAGE, "cert", "renew", "--all"])?
        .expect(0, &["Restarting kube-scheduler", "admin.kubeconfig"])?;
    subject.is_active()?;
    let after = subject.services()?;
    for name in ["etcd", "kube-apiserver"] {
        let pid = |of: &[(String, Value)]| of.iter().find(|(known, _)| known == name).cloned();
        ensure!(
            pid(&before) == pid(&after),
            "{name} was restarted: {after:?}"
        );
    }
    subject
        .said(&[IMAGE, "cert", "list"])?
        .expect(0, &["planet/apiserver.crt", "planet/etcd-ca.crt", "good"])?;
    let report = "cd /root && gravity report --file=/root/r.tar.gz && tar tzf r.tar.gz; \
        code=$?; rm -f r.tar.gz; exit $code";
    subject
        .shell(report)?
        .expect(0, &["operation.log", "kubernetes/pods.yaml", "facts.json"])?;
    Ok(())
}

/// The supervisor and the container's daemon are killed: services go on. The
/// planet with all in it is killed: it is started again.
fn killed_supervisor(subject: &Subject) -> Result<()> {
    subject.install(&[])?.expect(0, &["is active"])?;
    subject.is_active()?;
    let before = subject.services()?;
    let inside = "for p in $(cat /proc/1/task/1/children); do \
        if tr '\\0' ' ' </proc/$p/cmdline | grep -q 'planet [s]upervise'; then kill -9 $p && echo KILLED; fi; done";
    subject
        .said(&[IMAGE, "exec", "sh", "-c", inside])?
        .expect(0, &["KILLED"])?;
    std::thread::sleep(Duration::from_secs(1));
    subject.is_active()?;
    let after = subject.services()?;
    ensure!(
        before == after,
        "services have changed: {before:?}, {after:?}"
    );

    subject
        .shell(&crate::crash::kill_program("/usr/local/bin/planet-init"))?
        .expect(0, &["HIT"])?;
    subject.is_active()?;
    let before = subject.services()?;

    let daemon = "for p in /proc/[0-9]*; do \
        if tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q 'gravity planet [r]un --config'; then \
        kill -9 ${p#/proc/} && echo KILLED; fi; done; true";
    subject.shell(daemon)?.expect(0, &["KILLED"])?;
    subject.is_active()?;
    let after = subject.services()?;
    ensure!(
        before == after,
        "services have changed: {before:?}, {after:?}"
    );
    Ok(())
}

/// A disk that is too small, and one that somebody fills meanwhile.
fn full_disk(subject: &Subject) -> Result<()> {
    // Memory is quick to fill.
    let mount = |size: &str| {
        subject
            .shell(&format!(
                "mkdir -p {STATE} && mount -t tmpfs -o mode=755,size={size} disk {STATE}"
            ))?
            .expect(0, &[])
    };
    let unmount = || {
        subject
            .shell(&format!(
                "umount {STATE} && rmdir {STATE} && rm -rf /run/mount"
            ))?
            .expect(0, &[])
    };
    mount("900M")?;
    let small = subject
        .install(&[])
        .and_then(|said| said.expect(PREFLIGHT, &[STATE, "MB"]));
    let entries = subject.shell(&format!("ls {STATE}"))?;
    unmount()?;
    small?;
    ensure!(
        entries.text.is_empty(),
        "something is left: {}",
        entries.text
    );

    mount("3400M")?;
    let filled = fill(subject);
    let left = subject.leave().and_then(|said| said.expect(0, &[]));
    let entries = subject.shell(&format!("ls {STATE}"))?;
    unmount()?;
    filled?;
    left?;
    ensure!(
        entries.text.trim().is_empty(),
        "something is left: {}",
        entries.text
    );
    Ok(())
}

/// Room is made when the node turns pods away already. Those of a hook's Job go to it
/// all the same, and must outlast that.
fn disk_pressure(subject: &Subject) -> Result<()> {
    let condition = r#"{.items[0].status.conditions[?(@.type=="DiskPressure")].status}"#;
    let fill = format!(
        "both=\"$(cat {STATE}/operation.lock {STATE}/agent.lock)\"; kill -STOP $both; \
         free=$(df -B1 --output=avail {STATE} | tail -n 1); \
         fallocate -l $((free - 536870912)) {STATE}/filler; n=0; \
         until kubectl get nodes --output='jsonpath={condition}' | grep -q True || [ $n = 60 ]; \
         do n=$((n+1)); sleep 1; done; rm {STATE}/filler; kill -CONT $both"
    );
    let (reached, said) = subject.until("install", "/image", &fill)?;
    ensure!(reached, "it was not reached: {}", said.text);
    said.expect(0, &["Evicted: ", "DiskPressure", "is active"])?;
    subject.is_active()
}

/// The disk of a cluster that works fills up: the status says so, and all is well
/// again once there is room, with the pods that had to go.
fn filled_while_running(subject: &Subject) -> Result<()> {
    subject.install(&[])?.expect(0, &["is active"])?;
    subject
        .shell(&format!("{}; true", fill_disk()))?
        .expect(0, &[])?;
    let mut status = subject.said(&[IMAGE, "status"])?;
    process::wait_until(RECOVERY, || {
        status = match subject.said(&[IMAGE, "status"]) {
            Ok(status) => status,
            Err(_) => return false,
        };
        status.text.contains("DiskPressure")
    });
    status.expect(DEGRADED, &["too little room on its disk (DiskPressure)"])?;
    subject.shell(&free_disk())?.expect(0, &[])?;
    // The kubelet believes in the room after a minute.
    std::thread::sleep(RECOVERY);
    subject.is_active()?;
    let wait = "kubectl wait --for=condition=Available deployment/web --timeout=120s";
    subject.shell(wait)?.expect(0, &[]).map(drop)
}

/// Takes the last byte of the state directory's disk, in words of the shell.
pub(crate) fn fill_disk() -> String {
    format!(
        "free=$(df -B1 --output=avail {STATE} | tail -n 1); \
         fallocate -l $((free - 4194304)) {STATE}/filler; \
         dd if=/dev/zero of={STATE}/filler2 bs=64K 2>/dev/null"
    )
}

/// Gives back what [`fill_disk`] has taken, in words of the shell.
pub(crate) fn free_disk() -> String {
    format!("rm -f {STATE}/filler {STATE}/filler2")
}

fn fill(subject: &Subject) -> Result<()> {
    let (reached, said) = subject.until("install", "/prepare/rootfs", &fill_disk())?;
    ensure!(reached, "the phase did not begin: {}", said.text);
    said.expect(RESUMABLE, &["No space left on device", "gravity resume"])?;
    // Still full.
    subject
        .said(&[IMAGE, "resume"])?
        .expect(RESUMABLE, &["No space left on device"])?;
    subject.shell(&free_disk())?.expect(0, &[])?;
    subject
        .said(&[IMAGE, "resume"])?
        .expect(0, &["is active"])?;
    subject.is_active()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_found_at_any_depth() {
        let plan = serde_json::json!({ "phases": [
            { "id": "/a", "phases": [] },
            { "id": "/b", "phases": [{ "id": "/b/c", "phases": [] }] },
        ] });
        let ids: Vec<_> = leaves(&plan).map(|phase| phase["id"].to_string()).collect();
        assert_eq!(ids, ["\"/a\"", "\"/b/c\""]);
    }
}
