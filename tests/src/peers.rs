//! What `gravity check --peer` finds between two nodes that are in no cluster.
//!
//! In: this build's `gravity`. Out: an error where a trouble that was made is not
//! found by exactly its check, or one is found that nobody made; the nodes then
//! stay to be looked at.

use std::collections::BTreeSet;
use std::io::BufReader;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use console::Console;
use event::Sink;
use serde::Deserialize;

use crate::checks::{Finding, GRAVITY, MANIFEST, Report, demand};
use crate::file;
use crate::node::{self, Node};
use crate::registry::tele;
use crate::scenario::Setup;

/// A profile with ports and a rate.
const TEXT: &str = "\
metadata: {name: a, resourceVersion: 1.0.0}
nodeProfiles:
- name: node
  requirements:
    network:
      minTransferRate: 50MB/s
      ports:
      - {protocol: tcp, ranges: ['8080', '30000-32767']}
      - {protocol: udp, ranges: ['9000']}
";

/// What finds one machine-id on both nodes.
pub(crate) const SAME: &str = "peer-identity";
/// What finds that nobody answers who knows the token.
pub(crate) const NOBODY: &str = "peer";

/// What is made, how, what undoes it, and which check finds it.
pub(crate) const TROUBLES: &[(&str, &str, &str, &str)] = &[
    (
        "a firewall that drops VXLAN",
        "nft add table ip t
         nft add chain ip t c '{ type filter hook input priority 0; }'
         nft add rule ip t c udp dport 8472 drop",
        "nft delete table ip t",
        "peer-ports",
    ),
    (
        "a firewall that lets no VXLAN out",
        "nft add table ip t
         nft add chain ip t c '{ type filter hook output priority 0; }'
         nft add rule ip t c udp dport 8472 drop",
        "nft delete table ip t",
        "peer-ports",
    ),
    (
        "a firewall that refuses a port of the application",
        "nft add table ip t
         nft add chain ip t c '{ type filter hook input priority 0; }'
         nft add rule ip t c tcp dport 8080 reject with tcp reset",
        "nft delete table ip t",
        "peer-ports",
    ),
    (
        "a firewall that says that nobody may come",
        "nft add table ip t
         nft add chain ip t c '{ type filter hook input priority 0; }'
         nft add rule ip t c tcp dport 6443 reject with icmp type host-prohibited",
        "nft delete table ip t",
        "peer-ports",
    ),
    (
        "a slow link",
        "tc qdisc add dev eth0 root tbf rate 40mbit burst 32kb latency 50ms",
        "tc qdisc del dev eth0 root",
        "network-rate",
    ),
    (
        "a link that takes small packets only",
        "ip link set dev eth0 mtu 1400",
        "ip link set dev eth0 mtu 1500",
        "peer-mtu",
    ),
];

/// What is read of `check --listen --output json`.
#[derive(Debug, Deserialize)]
struct Listening {
    token: String,
}

/// Runs all of it on the new nodes `NAME-1` and `NAME-2`.
///
/// # Errors
/// At the first thing that is not as it should be.
pub fn run(setup: &Setup, name: &str, console: &Console) -> Result<()> {
    node::require_root()?;
    let gravity = tele()?.with_file_name("gravity");
    let manifest = file::cache()?.join("peers.yaml");
    file::write(&manifest, TEXT)?;
    let create = |number: u32| {
        let node = setup.create(&format!("{name}-{number}"), console)?;
        node.copy(&gravity, GRAVITY)?;
        node.copy(&manifest, MANIFEST)?;
        Ok::<_, anyhow::Error>(node)
    };
    let (first, second) = (create(1)?, create(2)?);
    let mut listener = Listener::start(&first)?;
    let test = Test {
        peer: first.address().to_owned(),
        token: listener.token.clone(),
        node: &second,
    };

    console.step("Two nodes that have no trouble with each other");
    let usual = test.troubles()?;
    let between = usual.iter().filter(|finding| is_between(&finding.id));
    ensure!(
        between.count() == 0,
        "there is none, and found was {usual:?}"
    );
    let all: BTreeSet<_> = test.report()?.findings.into_iter().map(|f| f.id).collect();
    for id in [
        "peer",
        "peer-identity",
        "peer-clock",
        "peer-ports",
        "peer-mtu",
        "network-rate",
    ] {
        ensure!(all.contains(id), "nothing is said of {id}: {all:?}");
    }
    for (what, make, undo, expected) in TROUBLES {
        for node in [&first, &second] {
            console.step(&format!("On {}: {what}", node.name()));
            node.run(&["sh", "-ec", make])?;
            let found = test.troubles();
            node.run(&["sh", "-ec", undo])?;
            demand(found?, &usual, &[expected], console)?;
        }
    }

    console.step("One machine-id on both");
    let copied = first.text(&["cat", "/etc/machine-id"])?;
    let own = second.text(&["cat", "/etc/machine-id"])?;
    let identify = |id: &str| second.run(&["sh", "-c", &format!("echo {id} > /etc/machine-id")]);
    identify(copied.trim())?;
    let found = test.troubles();
    identify(own.trim())?;
    demand(found?, &usual, &[SAME], console)?;

    console.step("A wrong token, and nobody who listens");
    let wrong = Test {
        token: "correct-horse-battery".into(),
        ..test.clone()
    };
    demand(wrong.troubles()?, &usual, &[NOBODY], console)?;
    listener.end(&first)?;
    demand(test.troubles()?, &usual, &[NOBODY], console)?;
    second.delete()?;
    first.delete()
}

fn is_between(id: &str) -> bool {
    id.starts_with("peer") || id == "network-rate"
}

#[derive(Clone)]
struct Test<'a> {
    node: &'a Node,
    peer: String,
    token: String,
}

impl Test<'_> {
    fn report(&self) -> Result<Report> {
        let peer = format!("--peer={}", self.peer);
        let token = format!("--token={}", self.token);
        Report::of(self.node, &["--quick", &peer, &token])
    }

    fn troubles(&self) -> Result<Vec<Finding>> {
        Ok(self.report()?.troubles())
    }
}

/// `gravity check --listen` on a node; it ends with this.
pub(crate) struct Listener {
    child: Child,
    pub(crate) token: String,
}

impl Listener {
    pub(crate) fn start(node: &Node) -> Result<Self> {
        let mut command = node.command(&[GRAVITY, "check", "--listen", "--output=json"])?;
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .context("starting gravity check --listen")?;
        let output = child.stdout.take().context("it has no output")?;
        let mut listener = Self {
            child,
            token: String::new(),
        };
        let mut said =
            serde_json::Deserializer::from_reader(BufReader::new(output)).into_iter::<Listening>();
        let listening = said.next().context("it says nothing")?;
        listener.token = listening.context("reading what it says")?.token;
        Ok(listener)
    }

    /// Ends it as a user does.
    pub(crate) fn end(&mut self, node: &Node) -> Result<()> {
        node.run(&["pkill", "-INT", "-f", "^/root/gravity check --listen"])?;
        let status = self.child.wait().context("waiting for it")?;
        ensure!(
            status.success(),
            "gravity check --listen ended with {status}"
        );
        Ok(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It has ended where all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
