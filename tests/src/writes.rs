//! A steady writer: what the cluster has answered, and whether it is still there.
//!
//! In: a node with `kubectl`. Out: when each write was answered. One object is
//! made after the other, each a new one, so that each answer stands for a write
//! that must never be lost.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::node::Node;
use crate::process;

/// File with a line for each write that was answered: time and number.
const ANSWERED: &str = "/root/answered";
/// Exists as long as it is to write.
const WRITING: &str = "/root/writing";

/// The writer.
#[derive(Debug)]
pub(crate) struct Writes<'a> {
    node: &'a Node,
    load: Child,
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

impl<'a> Writes<'a> {
    /// Begins to write on a node.
    pub(crate) fn begin(node: &'a Node) -> Result<Self> {
        let script = format!(
            "touch {WRITING} {ANSWERED}; n=$(wc -l < {ANSWERED}); while [ -e {WRITING} ]; do n=$((n+1)); \
             kubectl create configmap write-$n --request-timeout=5s >/dev/null 2>&1 && \
             echo $(date +%s.%N) $n >> {ANSWERED}; done"
        );
        let load = node
            .command(&["sh", "-c", &script])?
            .stdin(Stdio::null())
            .spawn()
            .context("starting the writes")?;
        Ok(Self { node, load })
    }

    /// Waits for the answer to a write that is made from now on. Returns how long
    /// after `since` that was, in seconds.
    pub(crate) fn wait_answer(&self, since: f64, patience: Duration) -> Result<f64> {
        let from = now();
        let mut at = None;
        let answered = process::wait_until(patience, || {
            let answered = answered(self.node).unwrap_or_default();
            at = answered.iter().map(|one| one.0).find(|time| *time > from);
            at.is_some()
        });
        ensure!(answered, "no write was answered for {patience:?}");
        Ok(at.unwrap_or(from) - since)
    }

    /// Fails when a write is answered within a time.
    pub(crate) fn none_for(&self, time: Duration) -> Result<()> {
        let before = answered(self.node)?.len();
        std::thread::sleep(time);
        let after = answered(self.node)?.len();
        ensure!(
            before == after,
            "{} writes were answered that should not be",
            after - before
        );
        Ok(())
    }

    /// The longest time between two answers, or an answer and the end of the
    /// span, in seconds.
    pub(crate) fn longest_pause(&self, from: f64, to: f64) -> Result<f64> {
        let times = answered(self.node)?.into_iter().map(|one| one.0);
        Ok(longest_pause(times, from, to))
    }

    /// Ends the writes. Fails when one that was answered is lost. Returns how many
    /// were.
    pub(crate) fn end(self) -> Result<usize> {
        self.node.run(&["rm", WRITING])?;
        let node = self.node;
        self.ended()?;
        all_there(node)
    }

    /// Waits until they have ended, as they do with their node.
    pub(crate) fn ended(mut self) -> Result<()> {
        self.load.wait().map(drop).context("waiting for the writes")
    }
}

/// When each write was answered on a node, and its number.
fn answered(node: &Node) -> Result<Vec<(f64, String)>> {
    let answered = node.text(&["cat", ANSWERED])?;
    let answer = |line: &str| {
        let (time, number) = line.split_once(' ')?;
        Some((time.parse().ok()?, number.to_owned()))
    };
    Ok(answered.lines().filter_map(answer).collect())
}

/// Fails when a write that was answered on a node is lost, or none was. Returns
/// how many were.
pub(crate) fn all_there(node: &Node) -> Result<usize> {
    let answered = answered(node)?;
    ensure!(answered.len() > 1, "nothing was written");
    let there = node.text(&["kubectl", "get", "configmaps", "--output=name"])?;
    let there: BTreeSet<_> = there
        .lines()
        .filter_map(|line| line.strip_prefix("configmap/write-"))
        .collect();
    let lost: Vec<_> = answered
        .iter()
        .filter(|(_, number)| !there.contains(number.as_str()))
        .collect();
    ensure!(
        lost.is_empty(),
        "writes that were answered are lost: {lost:?}"
    );
    Ok(answered.len())
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
    use super::*;

    #[test]
    fn a_pause_is_between_answers_or_before_the_end() {
        let pause = |from, to| longest_pause([1.0, 2.0, 5.0, 6.0].into_iter(), from, to);
        assert_eq!(pause(1.0, 6.5), 3.0);
        assert_eq!(pause(5.0, 9.0), 3.0);
        assert_eq!(pause(7.0, 9.0), 2.0);
        assert_eq!(pause(1.5, 2.5), 0.5);
    }
}
