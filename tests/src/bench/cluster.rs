//! From nothing to a node that is Ready: ours, by hand, by kubeadm.
//!
//! In: the cluster image and its programs. Out: rows, and how long each phase
//! of our installs took. All run in nodes of the same kind, one at a time, and
//! are watched by the same eyes: the API server is asked for the node from
//! outside, with the administrator's certificate.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use event::{Discard, Sink};
use jiff::Timestamp;
use operation::{Journal, Record, State};
use serde::Serialize;

use super::{Bench, Row, Target, floor, kubeadm, median};
use crate::file;
use crate::node::{self, Node, Options, Throwaway};
use crate::scenario::IMAGE;

/// Where an install of ours writes the administrator's credentials.
pub(super) const ADMIN: &str = "/var/lib/gravity/secrets/planet/admin.kubeconfig";
/// The most that any of them may take to Ready.
const LIMIT: Duration = Duration::from_secs(90);
/// The most that a command may take from there to its end.
const END: Duration = Duration::from_secs(60);
/// Time between two questions to the API server.
const PAUSE: Duration = Duration::from_millis(50);

/// What each of them took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// Until the node was Ready.
    pub(super) ready: f64,
    /// Until the command ended, where it ended well.
    pub(super) end: Option<f64>,
}

/// A phase of our install.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PhaseTime {
    pub(super) phase: String,
    /// Seconds from the first phase's start, one an install.
    pub(super) starts: Vec<f64>,
    /// Seconds, one an install.
    pub(super) takes: Vec<f64>,
}

impl PhaseTime {
    pub(super) fn cells(&self) -> Vec<String> {
        let cell = |all: &[f64]| format!("{:.2} s", median(all).unwrap_or_default());
        vec![self.phase.clone(), cell(&self.starts), cell(&self.takes)]
    }
}

pub(super) fn rows(bench: &Bench<'_>) -> (Vec<Row>, Vec<PhaseTime>) {
    let by_hand = "the same programs by hand";
    let mut ready = Row::new(
        "install, to node Ready",
        by_hand,
        "s",
        Some(Target::Ratio(1.5)),
    );
    let mut end = Row::new("install, to its end", by_hand, "s", None);
    let mut init = Row::new(
        "install, to node Ready",
        "kubeadm init, to node Ready",
        "s",
        Some(Target::Ratio(0.5)),
    );
    let mut imported = Row::new(
        "install, to node Ready",
        "import of its images and kubeadm init",
        "s",
        Some(Target::Ratio(0.5)),
    );
    let mut phases = Phases::default();
    let mut admin = kubeadm::Kubeadm::prepare(bench);
    for round in bench.rounds() {
        bench.console.step(&format!(
            "Installing, round {round} of {}",
            bench.options.runs
        ));
        match ours(bench, &mut phases) {
            Ok(ours) => {
                for row in [&mut ready, &mut init, &mut imported] {
                    row.ours.push(ours.ready);
                }
                match ours.end {
                    Some(time) => end.ours.push(time),
                    None => end.note("it did not end well in time"),
                }
            }
            Err(error) => {
                for row in [&mut ready, &mut end, &mut init, &mut imported] {
                    row.note(&format!("gravity install: {error:#}"));
                }
            }
        }
        match floor::run(bench) {
            Ok(floor) => {
                ready.peer.push(floor.ready);
                end.peer.push(floor.ready);
            }
            Err(error) => ready.note(&format!("the programs by hand: {error:#}")),
        }
        // When it fails once it would most probably do so each time.
        admin = admin.and_then(|admin| {
            let (import, times) = admin.run(bench)?;
            init.peer.push(times.ready);
            imported.peer.push(import + times.ready);
            Ok(admin)
        });
    }
    if let Err(error) = &admin {
        init.note(&format!("kubeadm: {error:#}"));
        imported.note("as before");
    }
    (vec![ready, end, init, imported], phases.finish())
}

fn ours(bench: &Bench<'_>, phases: &mut Phases) -> Result<Times> {
    let (node, install) = prepare(bench, "bench-install", &[])?;
    let times = watch(bench, &node, &node, install, ADMIN)?;
    phases.read(&inside(&node, "/var/lib/gravity")?)?;
    Ok(times)
}

/// A new node with the image, and its install with more words.
pub(super) fn prepare(
    bench: &Bench<'_>,
    name: &str,
    more: &[&str],
) -> Result<(Throwaway, Command)> {
    let node = create(name, "10.99.0.40")?;
    node.copy(&bench.file, IMAGE)?;
    let address = format!("--advertise-addr={}", node.address());
    let flavor = bench.flavor.as_ref().map(|name| format!("--flavor={name}"));
    let mut words = vec![
        IMAGE,
        "install",
        &address,
        "--accept-eula",
        "--skip-disk-test",
    ];
    words.extend(flavor.as_deref());
    words.extend(more);
    let install = node.command(&words)?;
    Ok((node, install))
}

/// A path of the node as it is seen from outside: through its process 1.
pub(super) fn inside(node: &Node, path: &str) -> Result<PathBuf> {
    Ok(PathBuf::from(format!("/proc/{}/root{path}", node.pid()?)))
}

/// A new node. Dirty pages of what was before it are on the disk first.
pub(super) fn create(name: &str, address: &str) -> Result<Throwaway> {
    let options = Options {
        address: Some(format!("{address}/24")),
        ..node::usual(&Discard)?
    };
    Throwaway::create(name, &options)
}

/// Runs `command`, waits until the node is Ready in the cluster of the node `first`,
/// and the command has ended. `kubeconfig` is the administrator's, on `first`.
pub(super) fn watch(
    bench: &Bench<'_>,
    first: &Node,
    node: &Node,
    mut command: Command,
    kubeconfig: &str,
) -> Result<Times> {
    let kubeconfig = inside(first, kubeconfig)?;
    let log = bench.path(&format!("{}.log", node.name()));
    let output = File::create(&log).with_context(|| log.display().to_string())?;
    let errors = output.try_clone().context("the log")?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    nix::unistd::sync();
    let started = Instant::now();
    let mut child = Running(command.spawn().context("starting the command")?);
    let (mut eyes, mut ready, mut end) = (None, None, None);
    loop {
        let now = || started.elapsed().as_secs_f64();
        if end.is_none()
            && let Some(status) = child.0.try_wait().context("waiting for the command")?
        {
            if !status.success() && ready.is_none() {
                bail!("it ended with {status}: {}", tail(&log));
            }
            end = Some(status.success().then(now));
        }
        match (&eyes, ready) {
            (None, _) => eyes = Eyes::open(bench, first, node, &kubeconfig)?,
            (Some(eyes), None) if eyes.see_ready()? => ready = Some(now()),
            _ => {}
        }
        match (ready, end) {
            (Some(ready), Some(end)) => return Ok(Times { ready, end }),
            (Some(ready), None) if now() > ready + END.as_secs_f64() => {
                return Ok(Times { ready, end: None });
            }
            (None, _) if started.elapsed() > LIMIT => {
                bail!("the node was not Ready in {LIMIT:?}: {}", tail(&log));
            }
            _ => thread::sleep(PAUSE),
        }
    }
}

/// A child that does not outlive the benchmark.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The end of what a command said.
fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// Asks the API server from the node's network, as the administrator.
struct Eyes {
    words: Vec<String>,
}

impl Eyes {
    /// `None` while the kubeconfig is not complete.
    fn open(
        bench: &Bench<'_>,
        first: &Node,
        node: &Node,
        kubeconfig: &Path,
    ) -> Result<Option<Self>> {
        let Ok(text) = std::fs::read_to_string(kubeconfig) else {
            return Ok(None);
        };
        let mut words = vec![
            format!("--net=/proc/{}/ns/net", first.pid()?),
            "curl".into(),
            "--silent".into(),
            "--max-time".into(),
            "2".into(),
        ];
        for (option, key) in [
            ("--cacert", "certificate-authority-data"),
            ("--cert", "client-certificate-data"),
            ("--key", "client-key-data"),
        ] {
            let Some(content) = field(&text, key) else {
                return Ok(None);
            };
            let path = bench.path(&format!("{}.{key}", node.name()));
            file::write(&path, content)?;
            words.extend([option.to_owned(), path.display().to_string()]);
        }
        words.push(format!(
            "https://{}:6443/api/v1/nodes/{}",
            first.address(),
            node.name()
        ));
        Ok(Some(Self { words }))
    }

    fn see_ready(&self) -> Result<bool> {
        let output = Command::new("nsenter")
            .args(&self.words)
            .stdin(Stdio::null())
            .output()
            .context("starting nsenter")?;
        Ok(is_ready(&output.stdout))
    }
}

/// Content of a field of a kubeconfig, which may be YAML or JSON.
fn field(kubeconfig: &str, key: &str) -> Option<Vec<u8>> {
    let (_, rest) = kubeconfig.split_once(key)?;
    let rest = rest.trim_start_matches(['"', ':', ' ']);
    let end = rest.find(['"', '\n', ' ', ','])?;
    STANDARD.decode(rest.get(..end)?).ok()
}

/// Whether this is a node whose condition Ready holds.
fn is_ready(answer: &[u8]) -> bool {
    let Ok(node) = serde_json::from_slice::<serde_json::Value>(answer) else {
        return false;
    };
    let conditions = node.pointer("/status/conditions");
    conditions
        .and_then(serde_json::Value::as_array)
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Phases of all installs, from their journals.
#[derive(Debug, Default)]
struct Phases(Vec<PhaseTime>);

impl Phases {
    fn read(&mut self, state: &Path) -> Result<()> {
        let operations = state.join("operations");
        let entries =
            std::fs::read_dir(&operations).with_context(|| operations.display().to_string())?;
        let journals: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path().join("agent-journal"))
            .filter(|path| path.is_file())
            .collect();
        let [journal] = &journals[..] else {
            bail!("{} operations, not one", journals.len());
        };
        self.add(&Journal::read(journal)?);
        Ok(())
    }

    fn add(&mut self, records: &[Record]) {
        let mut begun = BTreeMap::new();
        let first = records.first().map(|record| record.time);
        let seconds = |from: Option<_>, to| from.map_or(0.0, |from| since(from, to));
        for Record {
            phase, state, time, ..
        } in records
        {
            if *state == State::InProgress {
                begun.insert(phase, *time);
            } else if let Some(start) = begun.get(phase) {
                let index = self.index(phase);
                self.0[index].starts.push(seconds(first, *start));
                self.0[index].takes.push(since(*start, *time));
            }
        }
    }

    fn index(&mut self, phase: &str) -> usize {
        let found = self.0.iter().position(|known| known.phase == phase);
        found.unwrap_or_else(|| {
            self.0.push(PhaseTime {
                phase: phase.to_owned(),
                starts: Vec::new(),
                takes: Vec::new(),
            });
            self.0.len() - 1
        })
    }

    fn finish(mut self) -> Vec<PhaseTime> {
        let start = |phase: &PhaseTime| median(&phase.starts).unwrap_or_default();
        self.0.sort_by(|a, b| start(a).total_cmp(&start(b)));
        self.0
    }
}

fn since(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_yaml_and_in_json() {
        for text in [
            "users:\n- user:\n    client-key-data: aGk=\n",
            "{\"client-key-data\": \"aGk=\",\n}",
            "{\"client-key-data\":\"aGk=\"}",
        ] {
            assert_eq!(field(text, "client-key-data").unwrap(), b"hi", "{text}");
        }
        assert_eq!(
            field("client-key-data: aG", "client-key-data"),
            None,
            "half written"
        );
        assert_eq!(field("", "client-key-data"), None);
    }

    #[test]
    fn only_the_condition_ready_counts() {
        let node = |kind: &str, status: &str| {
            let value = serde_json::json!({
                "status": { "conditions": [{ "type": kind, "status": status }] }
            });
            is_ready(value.to_string().as_bytes())
        };
        assert!(node("Ready", "True"));
        assert!(!node("Ready", "False"));
        assert!(!node("MemoryPressure", "True"));
        assert!(!is_ready(b"") && !is_ready(b"{}") && !is_ready(b"[]"));
    }

    #[test]
    fn phases_of_several_installs_are_put_together() {
        let record = |phase: &str, state, seconds| Record {
            sequence: 1,
            phase: phase.to_owned(),
            state,
            error: None,
            time: Timestamp::from_second(seconds).unwrap(),
        };
        let install = [
            record("/b", State::InProgress, 10),
            record("/b", State::Completed, 11),
            record("/a", State::InProgress, 12),
            record("/a", State::Completed, 15),
        ];
        let mut phases = Phases::default();
        phases.add(&install);
        phases.add(&install);
        let found = phases.finish();
        assert_eq!(found[0].phase, "/b");
        assert_eq!(found[1].starts, [2.0, 2.0]);
        assert_eq!(found[1].takes, [3.0, 3.0]);
    }
}
