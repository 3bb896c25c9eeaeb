//! The crash matrix: an install, or a `leave`, is hit at its records and then gone
//! on with, or taken back.
//!
//! In: a cluster image and a shard. Out: a line a trial, and their count. What is hit
//! is the process that runs the operation, the agent, both, the supervisor, the planet
//! with all in it, one of its services, the disk's space or the disk itself. A trial is
//! a row or a blow. A row hits one operation at each of its records, and goes on with it
//! after each: at its end must be the objects, the certificates and the hook runs of an
//! undisturbed install, or the node as it was. A blow hits an install at one record,
//! and takes it back: the node must be as it was. What an operation survives there is
//! only to be gone on with, so blows are of hits that end it.

pub mod nodes;
pub mod power;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use console::{Console, render};

use crate::faults::{FLAVOR, RESUMABLE, STATE, Subject, fill_disk, free_disk};
use crate::join::nodes as ready_nodes;
use crate::said::Said;
use crate::scenario::{IMAGE, Setup};
use crate::{file, process};

/// Events of an operation that follow a record in its journal, as a pattern of
/// the shell.
const RECORD: &str = "*/*' in progress: '*|*/*' completed: '*";
/// Where the node keeps the records that were met, and those at which something was hit:
/// where nobody looks for what is left of a cluster.
const MET: &str = "/dev/met";
const HIT: &str = "/dev/hit";
/// Parts of the lines of a `leave` that tell what a hook's pod does, as many times as
/// it happens to.
const OF_PODS: [&str; 3] = [" Pod \"", " Container \"", "  ["];
/// Part of lines that are told when it happens: what was removed is told at the end.
const AT_ONCE: &str = " UTC  ";
/// How the command lines of a master's services begin.
const SERVICES: [&str; 12] = [
    "/usr/local/bin/registry ",
    "/usr/local/bin/coredns ",
    "/usr/local/bin/kube-proxy ",
    "/opt/gravity/bin/gravity care ",
    "/usr/local/bin/flanneld ",
    "/usr/local/bin/kube-controller-manager ",
    "/usr/local/bin/kube-scheduler ",
    "/opt/gravity/bin/gravity controller ",
    "/usr/local/bin/etcd ",
    "/usr/local/bin/kube-apiserver ",
    "/usr/local/bin/containerd ",
    "/usr/local/bin/kubelet ",
];
/// Hooks of an application's end, the names of their Jobs and what they do: what may
/// be done twice.
const ENDS: [(&str, &str, &str); 2] = [
    (
        "preUninstall",
        "pre-uninstall",
        "kubectl --namespace default scale --replicas=0 deployment/web",
    ),
    (
        "uninstall",
        "uninstall",
        "kubectl --namespace default delete deployment/web --ignore-not-found",
    ),
];
/// How long controllers may take until a cluster is as one that nobody disturbed.
const SAME: Duration = Duration::from_secs(60);
/// Seconds that an operation may take that is hit again and again.
const LIMIT: &str = "1200";
/// Size of the disk that is filled, in MB: the install fits.
const DISK: u32 = 3400;
/// File of the disk that breaks: what a file that may not be changed is the
/// disk of takes no writes, and says EIO.
const DISK_FILE: &str = "/var/lib/disk.raw";

/// Token of clusters of several nodes.
const TOKEN: &str = "correct-horse-battery-staple";
/// How long such a cluster may take until it has seen what happened.
const SEEN: Duration = Duration::from_secs(180);

/// One part of several: `2/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    number: usize,
    of: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no part such as 1/8");
        let (number, of) = text.split_once('/').ok_or_else(wrong)?;
        let shard = Self {
            number: number.parse().map_err(|_| wrong())?,
            of: of.parse().map_err(|_| wrong())?,
        };
        match (1..=shard.of).contains(&shard.number) {
            true => Ok(shard),
            false => Err(wrong()),
        }
    }
}

impl Shard {
    fn holds(self, index: usize) -> bool {
        index % self.of == self.number - 1
    }
}

/// Which trials of all.
#[derive(Debug, Clone, clap::Args)]
pub struct Choice {
    /// Only one part of what is tried
    #[arg(long, value_name = "N/OF", default_value = "1/1")]
    shard: Shard,
    /// Only what contains this, "break the disk", or one of several of it
    #[arg(long)]
    only: Vec<String>,
    /// Go on with the trial of this number, which is the first one of its line
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    from: usize,
    /// Have a row hit at one of its records only, to look closer
    #[arg(long, value_name = "RECORD")]
    at: Option<usize>,
    /// Name of the node, or the first part of their names: with others, and
    /// --image, several parts run at the same time
    #[arg(long, default_value = "crash")]
    name: String,
}

impl Choice {
    fn holds(&self, index: usize, trial: &impl fmt::Display) -> bool {
        self.shard.holds(index) && index >= self.from && self.names(&trial.to_string())
    }

    fn names(&self, what: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| what.contains(only))
    }
}

/// What is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hit {
    Operation,
    Agent,
    Both,
    Supervisor,
    Planet,
    FullDisk,
    BrokenDisk,
    /// By its command line.
    Service(&'static str),
}

impl Hit {
    const INSTALL: [Self; 7] = [
        Self::Operation,
        Self::Agent,
        Self::Both,
        Self::Supervisor,
        Self::Planet,
        Self::FullDisk,
        Self::BrokenDisk,
    ];
    /// What there is while a cluster is taken off; no agent.
    const LEAVE: [Self; 5] = [
        Self::Operation,
        Self::Supervisor,
        Self::Planet,
        Self::FullDisk,
        Self::BrokenDisk,
    ];
    /// What an operation doesn't survive.
    const ENDING: [Self; 4] = [
        Self::Operation,
        Self::Both,
        Self::FullDisk,
        Self::BrokenDisk,
    ];

    /// What it is called among those of its kind.
    fn kind(self) -> String {
        match self {
            Self::Service(_) => "kill a service".into(),
            hit => hit.to_string(),
        }
    }

    /// How, in words of the shell, which say HIT. It must not fail where there is
    /// nothing to hit yet.
    fn script(self) -> String {
        let kill = |locks: &[&str]| {
            let files: Vec<_> = locks
                .iter()
                .map(|lock| format!("{STATE}/{lock}.lock"))
                .collect();
            format!(
                "kill -9 $(cat {} 2>/dev/null) 2>/dev/null && echo HIT",
                files.join(" ")
            )
        };
        match self {
            Self::Operation => kill(&["operation"]),
            Self::Agent => kill(&["agent"]),
            Self::Both => kill(&["operation", "agent"]),
            // Process 1 of the planet has the supervisor's command in its arguments.
            Self::Supervisor => kill_program("/opt/gravity/bin/gravity planet supervise"),
            Self::Planet => kill_program("/usr/local/bin/planet-init"),
            Self::FullDisk => format!("{}; echo HIT", fill_disk()),
            Self::BrokenDisk => format!("chattr +i {DISK_FILE}; echo HIT"),
            Self::Service(command) => kill_program(command),
        }
    }
}

impl fmt::Display for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service(command) => {
                let name = command.trim_end().rsplit(['/', ' ']).next();
                return write!(f, "kill the service {}", name.unwrap_or_default());
            }
            Self::Operation => "kill the operation",
            Self::Agent => "kill the agent",
            Self::Both => "kill operation and agent",
            Self::Supervisor => "kill the supervisor",
            Self::Planet => "kill the planet",
            Self::FullDisk => "fill the disk",
            Self::BrokenDisk => "break the disk",
        })
    }
}

/// Kills what runs with a command line that begins so, in words of the shell.
pub(crate) fn kill_program(command: &str) -> String {
    format!(
        "for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' 2>/dev/null <$p/cmdline)\" in \
         '{command}'*) kill -9 ${{p#/proc/}} && echo HIT;; esac; done; true"
    )
}

/// How an install that was hit is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Back {
    Rollback,
    Leave,
}

impl fmt::Display for Back {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rollback => "rolled back",
            Self::Leave => "left",
        })
    }
}

/// What is hit, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    /// An install, at each of its records.
    Install(Hit),
    /// A `leave` of a whole cluster, at each step of its output, or a little later.
    Leave { hit: Hit, late: bool },
    /// An install at one record.
    Blow { hit: Hit, record: usize, back: Back },
}

impl Trial {
    /// What it is called among those of its kind.
    fn kind(self) -> String {
        match self {
            Self::Install(hit) => format!("install: {}", hit.kind()),
            Self::Leave { hit, .. } => format!("leave: {}", hit.kind()),
            Self::Blow { hit, back, .. } => format!("install, {back}: {}", hit.kind()),
        }
    }

    /// Does it. Returns at how many records something was hit.
    fn run(self, subject: &Subject, reference: &Reference, at: Option<usize>) -> Result<usize> {
        match self {
            Self::Install(hit) => until_all_are_hit(subject, reference.records, at, || {
                hit_install(subject, reference, hit, at)
            }),
            Self::Leave { hit, late } => until_all_are_hit(subject, usize::MAX, at, || {
                hit_leave(subject, hit, late, at)
            }),
            Self::Blow { hit, record, back } => take_back(subject, hit, record, back),
        }
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Install(hit) => write!(f, "install: {hit} at each record"),
            Self::Leave { hit, late } => {
                let later = if *late { ", half a second later" } else { "" };
                write!(f, "leave: {hit} at each step{later}")
            }
            Self::Blow { hit, record, back } => {
                write!(f, "install, {back}: {hit} at record {record}")
            }
        }
    }
}

/// All that is tried with an install of so many records. Each record meets each way
/// back, with hits in turn.
fn trials(records: usize) -> Vec<Trial> {
    let installs = Hit::INSTALL.into_iter().chain(SERVICES.map(Hit::Service));
    let installs = installs.map(Trial::Install);
    let moments = Hit::LEAVE
        .iter()
        .flat_map(|hit| [false, true].map(|late| (*hit, late)));
    // Services take turns: one half of them at once, the other one later.
    let services = SERVICES.iter().enumerate();
    let services = services.map(|(turn, service)| (Hit::Service(service), turn % 2 == 1));
    let leaves = moments
        .chain(services)
        .map(|(hit, late)| Trial::Leave { hit, late });
    let blows = (0..records).flat_map(|index| {
        // Every second record is the end of a phase: hits must not fall into step.
        let turn = index + index / Hit::ENDING.len();
        [(Back::Rollback, turn), (Back::Leave, turn + 1)].map(|(back, turn)| Trial::Blow {
            hit: Hit::ENDING[turn % Hit::ENDING.len()],
            record: index + 1,
            back,
        })
    });
    installs.chain(leaves).chain(blows).collect()
}

/// How many trials of each kind there were, how often was hit in them, and how many
/// ended badly.
#[derive(Debug, Default)]
struct Tally(BTreeMap<String, [usize; 3]>);

impl Tally {
    /// Counts a trial by how often it hit, or that it ended badly.
    fn add(&mut self, kind: String, hits: Option<usize>) {
        let counts = self.0.entry(kind).or_default();
        let more = [1, hits.unwrap_or_default(), usize::from(hits.is_none())];
        for (count, more) in counts.iter_mut().zip(more) {
            *count += more;
        }
    }

    fn sum(&self) -> [usize; 3] {
        let add = |sum: [usize; 3], one: &[usize; 3]| [0, 1, 2].map(|of| sum[of] + one[of]);
        self.0.values().fold([0; 3], add)
    }

    /// Prints them. Whether all ended well.
    fn show(&self, all: usize, console: &Console) -> bool {
        let row = |(kind, counts): (&String, &[usize; 3])| -> Vec<String> {
            let counts = counts.map(|count| count.to_string());
            [kind.clone()].into_iter().chain(counts).collect()
        };
        let rows: Vec<_> = self.0.iter().map(row).collect();
        console.table(&["Kind", "Trials", "Hits", "Ended badly"], &rows);
        let [trials, hits, bad] = self.sum();
        console.print(&format!(
            "{trials} of {all} trials with {hits} hits, {bad} ended badly"
        ));
        bad == 0
    }
}

/// Does the chosen trials one after the other. Says whether all ended well.
///
/// `run` says how often a trial has hit, or how it ended badly; it fails where nothing
/// can be tried any more.
fn run_chosen<T: Copy + fmt::Display>(
    all: &[T],
    choice: &Choice,
    console: &Console,
    kind: impl Fn(T) -> String,
    mut run: impl FnMut(T) -> Result<Result<usize>>,
) -> Result<bool> {
    let mut tally = Tally::default();
    for (index, trial) in all.iter().enumerate() {
        if !choice.holds(index, trial) {
            continue;
        }
        let started = Instant::now();
        let result = run(*trial).with_context(|| format!("after {trial}"))?;
        let took = render::duration(started.elapsed());
        console.print(&match &result {
            Ok(hits) => format!("ok {index} {trial}, {hits} hits ({took})"),
            Err(error) => format!("FAILED {index} {trial} ({took}): {error:#}"),
        });
        tally.add(kind(*trial), result.ok());
    }
    Ok(tally.show(all.len(), console))
}

/// The sample, with hooks for the end of its application.
///
/// # Errors
/// When it can't be made.
pub fn image(setup: &Setup, console: &Console) -> Result<PathBuf> {
    if let Some(image) = &setup.image {
        return Ok(image.clone());
    }
    let sample = file::cache()?.join("crash");
    file::remove_directory(&sample)?;
    process::run(Command::new("cp").arg("-r").arg(&setup.sample).arg(&sample))?;
    let manifest = sample.join("app.yaml");
    let mut text = file::read(&manifest)?;
    for (hook, name, command) in ENDS {
        let entry = format!("\nhooks:\n  {hook}:\n    job: file://hooks/{name}.yaml\n");
        ensure!(text.contains("\nhooks:\n"), "the sample has no hooks");
        text = text.replace("\nhooks:\n", &entry);
        // A cluster that can't run it any more is left soon all the same.
        let job = format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}, namespace: default}}\n\
             spec:\n  activeDeadlineSeconds: 60\n  template:\n    spec:\n      \
             restartPolicy: OnFailure\n      containers:\n        - name: end\n          \
             image: quay.io/gravitational/debian-tall:stretch\n          \
             command: [/bin/sh, -ec, \"{command}\"]\n"
        );
        file::write(&sample.join(format!("hooks/{name}.yaml")), job)?;
    }
    file::write(&manifest, text)?;
    let with_ends = Setup {
        sample,
        ..setup.clone()
    };
    with_ends.image(console)
}

/// What an undisturbed install was like.
struct Reference {
    records: usize,
    cluster: String,
}

/// Does the chosen trials. Says whether all ended well.
///
/// # Errors
/// When the node can't be made or an undisturbed install fails.
pub fn run(image: &Path, choice: &Choice, console: &Console) -> Result<bool> {
    let new = || Subject::new(&choice.name, image, console);
    let first = new()?;
    let reference = undisturbed(&first).context("an undisturbed install")?;
    let mut node = Some(first);
    let all = trials(reference.records);
    run_chosen(&all, choice, console, Trial::kind, |trial| {
        let subject = match node.take() {
            Some(subject) => subject,
            None => new().context("making a new node after a bad end")?,
        };
        let result = trial.run(&subject, &reference, choice.at);
        if result.is_ok() {
            node = Some(subject);
        } else {
            Disk::let_go(&subject);
        }
        Ok(result)
    })
}

/// Arguments by which a node becomes one that others can join.
fn install_arguments(subject: &Subject) -> String {
    let address = subject.node.address();
    format!(
        "install --accept-eula --skip-disk-test {FLAVOR} --token={TOKEN} --advertise-addr={address}"
    )
}

/// Arguments by which another node joins it with a profile.
fn join_arguments(master: &Subject, profile: &str) -> String {
    let address = master.node.address();
    format!("join {address} --token={TOKEN} --role={profile} --ignore=disk-latency")
}

/// Waits until a cluster has these nodes and its status is good.
fn has(master: &Subject, names: &[&str]) -> Result<()> {
    let mut last = Ok((Vec::new(), Vec::new()));
    let seen = process::wait_until(SEEN, || {
        // One that is not ready is one all the same.
        last = ready_nodes(&master.node).and_then(|ready| Ok((ready, all_nodes(master)?)));
        last.as_ref()
            .is_ok_and(|(ready, all)| ready == names && all == names)
    });
    ensure!(seen, "ready nodes, and all, are {last:?}, not {names:?}");
    master.is_active()
}

fn all_nodes(master: &Subject) -> Result<Vec<String>> {
    let all = master
        .node
        .text(&["kubectl", "get", "nodes", "--output=name"])?;
    let names = all.lines().filter_map(|line| line.strip_prefix("node/"));
    Ok(names.map(ToOwned::to_owned).collect())
}

fn install_command(subject: &Subject) -> String {
    let address = subject.node.address();
    format!("install --accept-eula --skip-disk-test {FLAVOR} --advertise-addr={address}")
}

/// What [`RECORD`] is, for steps of a `leave`: lines that are of no pod.
fn leave_steps() -> String {
    let of_pods = OF_PODS.map(|part| format!("*'{part}'*"));
    format!("{}) ;; *'{AT_ONCE}'*", of_pods.join("|"))
}

fn is_leave_step(line: &str) -> bool {
    line.contains(AT_ONCE) && !OF_PODS.iter().any(|part| line.contains(part))
}

/// Runs a command of `gravity` and does `then` at each of its lines of a pattern at which
/// it has hit nothing yet: a record that was told when its process was dead already is
/// told again by the next one. With `at` only at the line that is met as that number,
/// counted from 1. Whether something was hit.
fn hitting(
    subject: &Subject,
    command: &str,
    pattern: &str,
    at: Option<usize>,
    then: &str,
) -> Result<(bool, Said)> {
    let at = at.map_or_else(|| "$n".to_owned(), |at| at.to_string());
    // The time, names that are made up each time and numbers are not what a line says.
    let script = format!(
        "touch {MET} {HIT}; \
         {{ {IMAGE} {command} 2>&1; echo exit $?; }} | {{ while IFS= read -r line; do \
           echo \"$line\"; \
           case \"$line\" in {pattern}) \
             key=$(echo \"${{line#*UTC}}\" | sed 's/\"[^\"]*\"\\|[0-9]//g'); \
             n=$(grep -nxF -- \"$key\" {MET} | cut -d: -f1); \
             [ \"$n\" ] || {{ echo \"$key\" >>{MET}; n=$(wc -l <{MET}); }}; \
             [ $n = {at} ] && ! grep -qxF -- \"$key\" {HIT} && \
               case $({then}) in *HIT*) echo \"$key\" >>{HIT}; echo HIT;; esac;; \
           esac; \
         done; true; }}"
    );
    let said = Said::within(&subject.node, LIMIT, &["sh", "-c", &script])?;
    let hit = said.text.lines().any(|line| line == "HIT");
    let mut lines = said.text.lines().rev();
    let code = lines.find_map(|line| line.strip_prefix("exit "));
    let code = code.and_then(|code| code.parse().ok()).unwrap_or(said.code);
    Ok((hit, Said { code, ..said }))
}

/// How many records were met, and at how many something was hit.
fn met(subject: &Subject) -> Result<(usize, usize)> {
    let met = subject.shell(&format!("wc -l <{MET}; wc -l <{HIT}"))?;
    let met = met.expect(0, &[])?.text;
    let mut counts = met.lines().map(|line| line.trim().parse());
    match (counts.next(), counts.next()) {
        (Some(Ok(met)), Some(Ok(hits))) => Ok((met, hits)),
        _ => bail!("no numbers of records: {met}"),
    }
}

/// The node forgets which records were met.
fn forget_met(subject: &Subject) -> Result<()> {
    let forget = format!("rm -f {MET} {HIT}");
    subject.shell(&forget)?.expect(0, &[]).map(drop)
}

/// Does an operation with its hits, and once more as long as more of `all` records are
/// hit: what is hit is not there for those that come until it runs again. Returns how
/// many were hit.
fn until_all_are_hit(
    subject: &Subject,
    all: usize,
    at: Option<usize>,
    operation: impl Fn() -> Result<()>,
) -> Result<usize> {
    let mut before = 0;
    loop {
        operation()?;
        let (_, hits) = met(subject)?;
        if hits >= all || hits == before || at.is_some() {
            ensure!(hits > 0, "nothing was hit");
            forget_met(subject)?;
            return Ok(hits);
        }
        before = hits;
    }
}

fn undisturbed(subject: &Subject) -> Result<Reference> {
    let said = gravity(subject, &install_command(subject))?.expect(0, &["is active"])?;
    let records = said
        .text
        .lines()
        .filter(|line| line.contains(" in progress: ") || line.contains(" completed: "))
        .count();
    ensure!(records > 0, "no records were told: {}", said.text);
    subject.is_active()?;
    let cluster = cluster(subject)?;
    subject.leave()?.expect(0, &[])?;
    subject.is_untouched()?;
    Ok(Reference { records, cluster })
}

/// What is in the cluster, without what differs from install to install: names
/// of objects, what nodes are marked with, whom certificates name and who signed them,
/// and how often each hook ran.
fn cluster(subject: &Subject) -> Result<String> {
    let objects = "kubectl get nodes,namespaces,deployments,daemonsets,statefulsets,services,configmaps,\
        serviceaccounts,clusterroles,clusterrolebindings,persistentvolumeclaims \
        --all-namespaces --output=name | sort && \
        kubectl get nodes --output='jsonpath={range .items[*]}{.metadata.labels}{.spec.taints}{\"\\n\"}{end}' && \
        kubectl get jobs --all-namespaces --sort-by=.metadata.creationTimestamp \
        --output='jsonpath={range .items[*]}{.metadata.labels.gravitational\\.io/hook} \
        {.status.succeeded} {.status.failed}{\"\\n\"}{end}'";
    let mut found = subject.shell(objects)?.expect(0, &["node/"])?.text;
    let certificates = subject.json("cert list")?;
    for one in certificates.as_array().context("no certificates")? {
        let [file, name, issuer, state] =
            ["file", "common_name", "issuer", "state"].map(|key| &one[key]);
        found += &format!("{file} of {name} by {issuer} is {state}\n");
    }
    Ok(found)
}

/// Waits until a cluster is the same as one that nobody disturbed.
fn is_as(subject: &Subject, expected: &str, same: impl Fn(&str, &str) -> bool) -> Result<()> {
    let mut found = String::new();
    let is_same = process::wait_until(SAME, || {
        found = cluster(subject).unwrap_or_else(|error| format!("{error:#}"));
        same(&found, expected)
    });
    ensure!(
        is_same,
        "the cluster differs: {found} instead of {expected}"
    );
    Ok(())
}

/// Whether two clusters are the same, but for pods of hooks that did not come to their
/// end: a node without room on its disk turns them away, and what they speak to may die.
fn is_same_but_for_lost_pods(found: &str, expected: &str) -> bool {
    // A hook, how often it succeeded, how many of its pods did not.
    let without_lost = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        [hook, succeeded, _] => format!("{hook} {succeeded}"),
        _ => line.to_owned(),
    };
    let lines = found.lines().map(without_lost);
    lines.eq(expected.lines().map(without_lost))
}

fn gravity(subject: &Subject, command: &str) -> Result<Said> {
    subject.shell(&format!("{IMAGE} {command}"))
}

/// Hits an install at each of its records, or at one, and goes on with it after each.
fn hit_install(
    subject: &Subject,
    reference: &Reference,
    hit: Hit,
    at: Option<usize>,
) -> Result<()> {
    let disk = Disk::mount(subject, hit)?;
    let mut command = install_command(subject);
    // Each is hit once at the most, and the last command is not.
    for _ in 0..=reference.records {
        let (_, said) = hitting(subject, &command, RECORD, at, &hit.script())?;
        disk.mend(subject, true)?;
        if said.code == 0 {
            break;
        }
        command = match said.code {
            RESUMABLE => "resume".into(),
            code => bail!("exit code {code}: {}", said.text),
        };
    }
    if hit == Hit::BrokenDisk {
        gravity(subject, "start")?.expect(0, &[])?;
    }
    subject.is_active()?;
    is_as(subject, &reference.cluster, |found, expected| match hit {
        // Pods don't need what executes an operation.
        Hit::Operation | Hit::Agent | Hit::Both => found == expected,
        _ => is_same_but_for_lost_pods(found, expected),
    })?;
    subject.leave()?.expect(0, &[])?;
    disk.unmount(subject)?;
    subject.is_untouched()
}

/// Hits an install at a record and takes it back. Where it came to its end, by itself
/// or because that was the last record, it is left.
fn take_back(subject: &Subject, hit: Hit, record: usize, back: Back) -> Result<usize> {
    let disk = Disk::mount(subject, hit)?;
    let install = install_command(subject);
    let (_, said) = hitting(subject, &install, RECORD, Some(record), &hit.script())?;
    let (met, hits) = met(subject)?;
    forget_met(subject)?;
    ensure!(met >= record, "there was no such record: {}", said.text);
    ensure!(
        matches!(said.code, 0 | RESUMABLE),
        "exit code {}: {}",
        said.code,
        said.text
    );
    // A full disk is one still.
    disk.mend(subject, false)?;
    match back {
        Back::Rollback if said.code != 0 => gravity(subject, "rollback --confirm")?,
        _ => subject.leave()?,
    }
    .expect(0, &[])?;
    disk.unmount(subject)?;
    subject.is_untouched()?;
    Ok(hits)
}

/// Whether nothing of a cluster is on a node.
fn is_left(subject: &Subject) -> Result<bool> {
    // What a check of its filesystem made is not ours.
    let left = format!("ls -A {STATE} 2>/dev/null | grep -qvx lost+found");
    Ok(subject.shell(&left)?.code != 0)
}

/// Hits a `leave` at each of its steps, or at one, and does it again after each.
fn hit_leave(subject: &Subject, hit: Hit, late: bool, at: Option<usize>) -> Result<()> {
    let disk = Disk::mount(subject, hit)?;
    gravity(subject, &install_command(subject))?.expect(0, &["is active"])?;
    let wait = if late { "sleep 0.5; " } else { "" };
    let script = format!("{wait}{}", hit.script());
    loop {
        let leave = "leave --force --confirm";
        let (hit, said) = hitting(subject, leave, &leave_steps(), at, &script)?;
        disk.mend(subject, true)?;
        if is_left(subject)? {
            break;
        }
        ensure!(hit, "exit code {}: {}", said.code, said.text);
    }
    disk.unmount(subject)?;
    subject.is_untouched()
}

/// The disk of the state directory that a hit is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    /// The node's own.
    Own,
    /// One of [`DISK`] MB.
    Small,
    /// One that can break.
    Breaking,
}

impl Disk {
    fn mount(subject: &Subject, hit: Hit) -> Result<Self> {
        let (disk, script) = match hit {
            Hit::FullDisk => (
                Self::Small,
                format!("mkdir -p {STATE} && mount -t tmpfs -o mode=755,size={DISK}M disk {STATE}"),
            ),
            Hit::BrokenDisk => (
                Self::Breaking,
                format!(
                    "set -e; truncate -s 8G {DISK_FILE}; \
                     mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 {DISK_FILE}; \
                     [ -e /dev/loop-control ] || mknod /dev/loop-control c 10 237; \
                     loop=$(losetup --find); \
                     [ -e $loop ] || mknod $loop b 7 ${{loop#/dev/loop}}; \
                     losetup $loop {DISK_FILE}; mkdir {STATE}; mount $loop {STATE}; \
                     rmdir {STATE}/lost+found; echo $loop >/run/broken-disk"
                ),
            ),
            _ => return Ok(Self::Own),
        };
        subject.shell(&script)?.expect(0, &[])?;
        Ok(disk)
    }

    /// What a person does to a disk before work goes on: frees a full one if
    /// `with_room`, and checks a broken one after all that used it was ended.
    fn mend(self, subject: &Subject, with_room: bool) -> Result<()> {
        match self {
            Self::Small if with_room => {
                subject.shell(&free_disk())?.expect(0, &[])?;
            }
            Self::Own | Self::Small => {}
            Self::Breaking => {
                // As when the machine is switched off; the shell's own parent too.
                subject.shell("kill -9 -1")?;
                // What ends takes a moment to let go of its mounts.
                let check = format!(
                    "set -e; loop=$(cat /run/broken-disk); n=0; \
                     until umount -R {STATE}; do n=$((n+1)); [ $n -lt 50 ]; sleep 0.2; done; \
                     losetup --detach $loop; chattr -i {DISK_FILE}; \
                     until losetup $loop {DISK_FILE}; do n=$((n+1)); [ $n -lt 50 ]; sleep 0.2; done; \
                     code=0; fsck.ext4 -f -y $loop || code=$?; [ $code -lt 4 ]; mount $loop {STATE}"
                );
                subject.shell(&check)?.expect(0, &[])?;
            }
        }
        Ok(())
    }

    /// After a bad end, before the node is removed.
    fn let_go(subject: &Subject) {
        drop(subject.shell("kill -9 -1"));
        drop(subject.shell(&format!(
            "umount -l {STATE}; chattr -i {DISK_FILE}; losetup --detach $(cat /run/broken-disk)"
        )));
    }

    /// Fails when `leave` has left something on it.
    fn unmount(self, subject: &Subject) -> Result<()> {
        if self == Self::Own {
            return Ok(());
        }
        let left = subject.shell(&format!("ls -A {STATE} | grep -v lost+found"))?;
        ensure!(
            left.text.trim().is_empty(),
            "something is left: {}",
            left.text
        );
        let mut script = format!("umount {STATE} && rmdir {STATE} && rm -rf /run/mount");
        if self == Self::Breaking {
            script += &format!(
                " && losetup --detach $(cat /run/broken-disk) && rm {DISK_FILE} /run/broken-disk"
            );
        }
        subject.shell(&script)?.expect(0, &[]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_were_lost_are_no_difference_where_their_hook_ran_once() {
        let same = is_same_but_for_lost_pods;
        let usual = "node/a\ninstall 1 \npost-install 1 ";
        assert!(same("node/a\ninstall 1 3\npost-install 1 ", usual));
        for other in [
            "node/b\ninstall 1 \npost-install 1 ",
            "node/a\ninstall  3\npost-install 1 ",
            "node/a\ninstall 1 \ninstall 1 \npost-install 1 ",
        ] {
            assert!(!same(other, usual), "{other}");
        }
    }

    #[test]
    fn steps_of_a_leave_are_counted_alike_by_the_shell() {
        let lines = [
            "Sun Nov 22 18:03:16 UTC  Running the uninstall hook",
            "Sun Nov 22 18:03:16 UTC  Created Job \"u-1\" in namespace \"default\"",
            "Sun Nov 22 18:03:16 UTC  Created Pod \"u-1-x\" in namespace \"default\"",
            "Sun Nov 22 18:03:17 UTC  Container \"end\" of Pod \"u-1-x\" terminated",
            "Sun Nov 22 18:03:17 UTC  [u-1-x/end] release \"web\" uninstalled",
            "Sun Nov 22 18:03:18 UTC  Stopping services and pods",
            "removed link /usr/local/bin/helm",
        ];
        let steps = lines.map(is_leave_step);
        assert_eq!(steps, [true, true, false, false, false, true, false]);
        for (line, step) in lines.into_iter().zip(steps) {
            let script = format!("case \"$1\" in {}) exit 0;; esac; exit 1", leave_steps());
            let shell = Command::new("sh")
                .args(["-c", &script, "sh", line])
                .status();
            assert_eq!(shell.unwrap().success(), step, "{line}");
        }
    }

    #[test]
    fn each_service_is_killed_at_each_record() {
        let all = trials(8);
        for service in SERVICES {
            let hit = Hit::Service(service);
            assert!(all.contains(&Trial::Install(hit)), "{service}");
            let leaves = [false, true].map(|late| Trial::Leave { hit, late });
            assert!(leaves.iter().any(|trial| all.contains(trial)), "{service}");
        }
        let care = Hit::Service("/opt/gravity/bin/gravity care ");
        assert_eq!(care.to_string(), "kill the service care");
        assert_eq!(care.kind(), "kill a service");
        let etcd = Hit::Service("/usr/local/bin/etcd ");
        assert_eq!(etcd.to_string(), "kill the service etcd");
    }

    #[test]
    fn each_record_is_taken_back_both_ways_and_each_hit_meets_ends_and_beginnings() {
        let mut met = [Back::Rollback, Back::Leave].map(|back| {
            let blows = trials(28).into_iter().filter_map(move |trial| match trial {
                Trial::Blow {
                    hit,
                    record,
                    back: of,
                } if of == back => Some((record, hit)),
                _ => None,
            });
            blows.collect::<Vec<_>>()
        });
        for blows in &mut met {
            assert!(blows.iter().map(|(record, _)| *record).eq(1..=28));
            for hit in Hit::ENDING {
                for parity in [0, 1] {
                    let meets = |(record, of): &&(usize, Hit)| *of == hit && record % 2 == parity;
                    assert!(blows.iter().filter(meets).count() > 2, "{hit} {parity}");
                }
            }
        }
    }

    #[test]
    fn a_tally_counts_each_kind() {
        let mut tally = Tally::default();
        tally.add("install: kill the agent".into(), Some(3));
        tally.add("install: kill the agent".into(), None);
        tally.add("leave: kill a service".into(), Some(1));
        assert_eq!(tally.0["install: kill the agent"], [2, 3, 1]);
        assert_eq!(tally.sum(), [3, 4, 1]);
    }

    #[test]
    fn every_trial_is_in_exactly_one_shard() {
        let all = trials(28);
        assert_eq!(all.len(), 19 + 5 * 2 + 12 + 28 * 2);
        let held = |index: usize| {
            (1..=8)
                .filter(|number| {
                    Shard {
                        number: *number,
                        of: 8,
                    }
                    .holds(index)
                })
                .count()
        };
        assert!((0..all.len()).all(|index| held(index) == 1));
        for text in ["", "1", "0/8", "9/8", "a/b", "1/0"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
        assert_eq!("2/8".parse(), Ok(Shard { number: 2, of: 8 }));
    }
}
