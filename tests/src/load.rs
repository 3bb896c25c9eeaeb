//! A steady load on a cluster: objects that are written, images that are pulled;
//! what was answered when, and whether what was written is still there.
//!
//! In: a node to do it on, and a master whose administrator it is. Out: when each
//! was answered. Each write makes an object of its own, so that each answer stands
//! for one that must never be lost.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::node::Node;
use crate::process;

/// How long answers may pause when one of three masters is gone, in seconds.
const PAUSE: f64 = 15.0;
/// Where a node's own keys are.
const SECRETS: &str = "/var/lib/gravity/secrets/planet";
/// The administrator's kubeconfig, where the writes are made: workers have none.
const KUBECONFIG: &str = "/root/writes.kubeconfig";
/// An image of the sample: its repository and tag.
const REPOSITORY: &str = "gravitational/web";
const TAG: &str = "1.0.0";

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Writes,
    Pulls,
}

impl Kind {
    /// File with a line for each time that was answered: time and number.
    fn answered(self) -> &'static str {
        match self {
            Self::Writes => "/root/writes",
            Self::Pulls => "/root/pulls",
        }
    }

    /// Does it once, in words of the shell; `$n` is the number.
    fn once(self) -> String {
        match self {
            Self::Writes => format!(
                "kubectl --kubeconfig={KUBECONFIG} create configmap write-$n --request-timeout=5s"
            ),
            Self::Pulls => pull(),
        }
    }
}

/// Pulls an image's manifest and its last layer as containerd does: from the name
/// that all registries have in a cluster, with the node's own certificate.
fn pull() -> String {
    let (name, address) = (spec::LEADER_NAME, spec::LEADER_ADDRESS);
    let host = format!("{name}:{}", spec::REGISTRY_PORT);
    let get = format!(
        "curl -sS --fail -m 5 --resolve {host}:{address} --cacert {SECRETS}/registry-ca.crt \
         --cert {SECRETS}/registry-client.crt --key {SECRETS}/registry-client.key \
         -H 'Accept: application/vnd.oci.image.manifest.v1+json' https://{host}/v2/{REPOSITORY}"
    );
    format!(
        "sleep 1; blob=$({get}/manifests/{TAG} | grep -o 'sha256:[0-9a-f]*' | tail -n 1); \
         [ \"$({get}/blobs/$blob | sha256sum)\" = \"${{blob#sha256:}}  -\" ]"
    )
}

/// The load.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    node: &'a Node,
    kind: Kind,
    child: Child,
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

impl<'a> Load<'a> {
    /// Begins to write on a node, through its balancer.
    pub(crate) fn writes(node: &'a Node, master: &Node) -> Result<Self> {
        let kubeconfig = master.text(&["cat", &format!("{SECRETS}/admin.kubeconfig")])?;
        let keep = format!("umask 077; cat >{KUBECONFIG}");
        process::run_with_input(&mut node.command(&["sh", "-c", &keep])?, &kubeconfig)?;
        Self::begin(node, Kind::Writes)
    }

    /// Begins to pull on a node, once a second.
    pub(crate) fn pulls(node: &'a Node) -> Result<Self> {
        Self::begin(node, Kind::Pulls)
    }

    fn begin(node: &'a Node, kind: Kind) -> Result<Self> {
        let (answered, once) = (kind.answered(), kind.once());
        let script = format!(
            "touch {answered}.on {answered}; n=$(wc -l <{answered}); \
             while [ -e {answered}.on ]; do n=$((n+1)); {{ {once}; }} >/dev/null 2>&1 && \
             echo $(date +%s.%N) $n >>{answered}; done"
        );
        let child = node
            .command(&["sh", "-c", &script])?
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("starting the {kind:?}"))?;
        Ok(Self { node, kind, child })
    }

    /// Waits for an answer from now on. Returns how long after `since` that was, in
    /// seconds.
    pub(crate) fn wait_answer(&self, since: f64, patience: Duration) -> Result<f64> {
        let from = now();
        let mut at = None;
        let answered = process::wait_until(patience, || {
            let answers = self.answers().unwrap_or_default();
            at = answers.iter().map(|one| one.0).find(|time| *time > from);
            at.is_some()
        });
        ensure!(
            answered,
            "{:?}: nothing was answered for {patience:?}",
            self.kind
        );
        Ok(at.unwrap_or(from) - since)
    }

    /// Fails when something is answered within a time.
    pub(crate) fn none_for(&self, time: Duration) -> Result<()> {
        let before = self.answers()?.len();
        std::thread::sleep(time);
        let after = self.answers()?.len();
        ensure!(
            before == after,
            "{:?}: {} were answered that should not be",
            self.kind,
            after - before
        );
        Ok(())
    }

    /// The longest time between two answers since then, or an answer and now, in
    /// seconds. Fails when that is longer than it may be.
    pub(crate) fn pause(&self, from: f64) -> Result<f64> {
        let times = self.answers()?.into_iter().map(|one| one.0);
        let pause = longest_pause(times, from, now());
        ensure!(pause < PAUSE, "{:?} paused for {pause:.1} s", self.kind);
        Ok(pause)
    }

    /// Ends it. Fails when a write that was answered is lost. Returns how many
    /// answers there were.
    pub(crate) fn end(mut self) -> Result<usize> {
        let on = format!("{}.on", self.kind.answered());
        self.node.run(&["rm", &on])?;
        self.ended()?;
        match self.kind {
            Kind::Writes => self.all_there(),
            Kind::Pulls => Ok(self.answers()?.len()),
        }
    }

    /// Waits until it has ended, as it does with its node.
    pub(crate) fn ended(&mut self) -> Result<()> {
        let ended = self.child.wait().map(drop);
        ended.with_context(|| format!("waiting for the {:?}", self.kind))
    }

    /// Fails when a write that was answered is lost, or none was. Returns how many
    /// were.
    pub(crate) fn all_there(&self) -> Result<usize> {
        let answers = self.answers()?;
        ensure!(answers.len() > 1, "nothing was written");
        let kubeconfig = format!("--kubeconfig={KUBECONFIG}");
        let get = ["kubectl", &kubeconfig, "get", "configmaps", "--output=name"];
        let there = self.node.text(&get)?;
        let there: BTreeSet<_> = there
            .lines()
            .filter_map(|line| line.strip_prefix("configmap/write-"))
            .collect();
        let lost: Vec<_> = answers
            .iter()
            .filter(|(_, number)| !there.contains(number.as_str()))
            .collect();
        ensure!(
            lost.is_empty(),
            "writes that were answered are lost: {lost:?}"
        );
        Ok(answers.len())
    }

    /// When each was answered, and its number.
    fn answers(&self) -> Result<Vec<(f64, String)>> {
        let answered = self.node.text(&["cat", self.kind.answered()])?;
        let answer = |line: &str| {
            let (time, number) = line.split_once(' ')?;
            Some((time.parse().ok()?, number.to_owned()))
        };
        Ok(answered.lines().filter_map(answer).collect())
    }
}

fn longest_pause(times: impl Iterator<Item = f64>, from: f64, to: f64) -> f64 {
    let inside = times.filter(|time| (from..to).contains(time));
    let (longest, last) = inside.fold((0.0_f64, from), |(longest, last), time| {
        (longest.max(time - last), time)
    });
    longest.max(to - last)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_pause_is_between_answers_or_before_the_end() {
        let pause = |from, to| longest_pause([1.0, 2.0, 5.0, 6.0].into_iter(), from, to);
        assert_eq!(pause(1.0, 6.5), 3.0);
        assert_eq!(pause(5.0, 9.0), 3.0);
        assert_eq!(pause(7.0, 9.0), 2.0);
        assert_eq!(pause(1.5, 2.5), 0.5);
    }

    /// Runs a pull with a `curl` that answers with a manifest and this layer.
    fn pulls(layer: &str) -> bool {
        let digest = oci::Digest::of(b"layer");
        let curl = format!(
            "sleep() {{ :; }}; curl() {{ for last; do :; done; case $last in \
             https://leader.telekube.local:5000/v2/gravitational/web/manifests/1.0.0) \
             echo '{{\"config\": \"sha256:00\", \"layers\": [\"{digest}\"]}}';; \
             */blobs/{digest}) printf %s '{layer}';; *) return 22;; esac; }}"
        );
        let script = format!("{curl}; {{ {}; }}", pull());
        let ended = Command::new("sh").args(["-c", &script]).status().unwrap();
        ended.success()
    }

    #[test]
    fn a_pull_counts_when_the_layer_is_what_the_manifest_says() {
        assert!(pulls("layer"));
        assert!(!pulls("damaged"));
        assert!(!pulls(""));
    }
}
