//! Every hook on a real node: that it runs when it should, and what its failure
//! does.
//!
//! In: the sample `tests/hooks`. Out: a table with a line a hook, or the first
//! check that failed; then the node stays to be looked at.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use console::Console;
use event::Sink;
use manifest::HookName;
use serde_json::{Value, json};

use crate::node::{self, Node};
use crate::registry::tele;
use crate::said::Said;
use crate::scenario::{IMAGE, Setup};
use crate::{file, process, sample};

/// No command may take longer, in seconds.
const LIMIT: &str = "420";
/// The status hook runs every minute and its Job takes a few seconds.
const CHECKED: Duration = Duration::from_secs(180);
/// What the daemon's command line has, and no other one, whoever looks for it.
const DAEMON: &str = "[p]lanet run --config";
/// Files that the containers of [`slow_pod`] write when they end.
const WRITTEN: [&str; 3] = ["told-before", "ended-in-time", "interrupted"];

/// Runs all of it on the new node `name`.
///
/// # Errors
/// At the first check that fails.
pub fn run(name: &str, console: &Console) -> Result<()> {
    node::require_root()?;
    let setup = Setup::new("tests/hooks");
    let mut table = Table::default();
    console.step("Hooks whose operation doesn't exist");
    refused(&mut table)?;
    let image = setup.image(console)?;
    let node = setup.create_with(name, &image, console)?;
    let test = Test { node: &node };
    for (step, check) in CHECKS {
        console.step(step);
        check(&test, &mut table).with_context(|| step.to_owned())?;
    }
    node.delete()?;
    table.show(console)
}

type Check = fn(&Test<'_>, &mut Table) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("Values that can't be", |test, _| wrong_values(test)),
    ("Hooks of the install", install),
    ("Endpoints", |test, _| endpoints(test)),
    ("Hooks by hand", by_hand),
    ("Hooks by hand that end or pile up", |test, _| ends(test)),
    ("A report", report),
    ("The status hook", status),
    ("Stop and start", power),
    ("Hooks of the end", leave),
];

/// Hooks that need two nodes.
const OF_NODES: &[HookName] = &[
    HookName::PreNodeAdd,
    HookName::PostNodeAdd,
    HookName::PreNodeRemove,
    HookName::PostNodeRemove,
];

/// What was seen of each hook.
#[derive(Default)]
struct Table(BTreeMap<HookName, Vec<&'static str>>);

impl Table {
    fn seen(&mut self, hook: HookName, what: &'static str) {
        self.0.entry(hook).or_default().push(what);
    }

    fn show(mut self, console: &Console) -> Result<()> {
        for hook in OF_NODES {
            self.seen(*hook, "not here: `testnode join` sees it run");
        }
        self.seen(
            HookName::NetworkInstall,
            "not here: `testnode network` sees it run and fail",
        );
        let rows: Vec<_> = HookName::ALL
            .iter()
            .map(|hook| {
                let seen = self.0.get(hook).map(|seen| seen.join("; "));
                vec![hook.to_string(), seen.unwrap_or_default()]
            })
            .collect();
        console.table(&["Hook", "What was seen"], &rows);
        let missing: Vec<_> = rows.iter().filter(|row| row[1].is_empty()).collect();
        ensure!(missing.is_empty(), "hooks without a test: {missing:?}");
        Ok(())
    }
}

struct Test<'a> {
    node: &'a Node,
}

impl Test<'_> {
    fn said(&self, words: &[&str]) -> Result<Said> {
        Said::within(self.node, LIMIT, words)
    }

    fn gravity(&self, line: &str) -> Result<Said> {
        Said::of_line(self.node, LIMIT, &format!("{IMAGE} {line}"))
    }

    fn kubectl(&self, line: &str) -> Result<String> {
        let said = Said::of_line(self.node, LIMIT, &format!("kubectl {line}"))?;
        Ok(said.expect(0, &[])?.text)
    }

    fn status(&self) -> Result<Value> {
        self.gravity("status --output json")?.json()
    }

    /// Waits until the cluster is in `state`, and its status hook has run.
    fn reaches(&self, state: &str) -> Result<Value> {
        let mut last = Value::Null;
        let reached = process::wait_until(CHECKED, || {
            std::thread::sleep(Duration::from_secs(1));
            last = self.status().unwrap_or_default();
            last["cluster"]["state"] == state && last["status_hook"].is_object()
        });
        ensure!(reached, "the cluster is not {state}: {last:#}");
        Ok(last)
    }

    /// No right of a hook outlives its operation, nor does a copy of the values.
    /// The status hook may have some at the moment that one looks, but not for
    /// long.
    fn no_rights_are_left(&self) -> Result<()> {
        for (kind, ours) in [
            ("serviceaccounts", "gravity-hook"),
            ("clusterrolebindings", "gravity-hook"),
            ("secrets", "gravity-helm-values-"),
        ] {
            let mut names = String::new();
            let gone = process::wait_until(CHECKED, || {
                let found = self.kubectl(&format!("get {kind} -A -o name"));
                names = found.unwrap_or_else(|error| format!("{ours}? {error:#}"));
                !names.contains(ours)
            });
            ensure!(gone, "{kind} are left: {names}");
        }
        Ok(())
    }
}

/// `tele build` and `gravity install` refuse by the same list.
fn refused(table: &mut Table) -> Result<()> {
    let directory = file::cache()?.join("sample/refused");
    file::make_directory(&directory)?;
    let hooks: Vec<_> = HookName::ALL
        .iter()
        .filter(|hook| hook.trigger().is_none())
        .collect();
    let job = "kind: Job\n      apiVersion: batch/v1\n      spec: {template: {spec: \
               {containers: [{name: c, image: 'c:1'}]}}}";
    let mut text = "apiVersion: cluster.gravitational.io/v2\nkind: Cluster\n\
                    metadata: {name: x, resourceVersion: 1.0.0}\nhooks:\n"
        .to_owned();
    for hook in &hooks {
        text.push_str(&format!("  {hook}:\n    job: |\n      {job}\n"));
    }
    let manifest = directory.join("app.yaml");
    file::write(&manifest, text)?;
    let mut command = Command::new(tele()?);
    command
        .args(["build", "--overwrite", "-o"])
        .arg(directory.join("out"));
    let output = command.arg(&manifest).stdin(Stdio::null()).output();
    let mut said = Said::of(&output.context("starting tele")?);
    for hook in hooks {
        let words = format!("`hooks.{hook}` is not supported");
        said = said.expect(1, &[&words])?;
        table.seen(*hook, "refused by name");
    }
    Ok(())
}

/// What is wrong with values is told before anything is changed, and none of
/// them is repeated.
fn wrong_values(test: &Test<'_>) -> Result<()> {
    let files = "umask 077; cd /root; echo '- hunter2' > list.yaml; \
                 printf 'nodePort: 1\ndb: {password: hunter2, size: 2}\n' > one.yaml; \
                 printf 'db: {size: 3}\ngone: null\n' > two.yaml";
    test.said(&["sh", "-c", files])?.expect(0, &[])?;
    for (given, words) in [
        ("--set hunter2", "--set number 1 has no \"=\""),
        ("--values /root/none.yaml", "No such file"),
        ("--values /root/list.yaml", "holds no mapping"),
        ("--set a[x]=hunter2", "Helm can't merge"),
        (
            "--values /root/one.yaml --set db.size.in=GiB",
            "Helm can't merge",
        ),
    ] {
        let address = test.node.address();
        let line = format!("install --advertise-addr={address} {given}");
        let said = test.gravity(&line)?.expect(2, &[words])?;
        ensure!(!said.text.contains("hunter2"), "{}", said.text);
    }
    let state = ["test", "!", "-e", "/var/lib/gravity"];
    test.said(&state)?.expect(0, &[]).map(drop)
}

/// What the customer gives, and what Helm makes of it.
const VALUES: &str = "--values /root/one.yaml --values /root/two.yaml --set nodePort=30092,db.note=a\\,b --set db.size=4";
const MERGED: &str = "db: note: a,b password: hunter2 size: 4 gone: null nodePort: 30092";

fn install(test: &Test<'_>, table: &mut Table) -> Result<()> {
    let line = format!("install --advertise-addr={} {VALUES}", test.node.address());
    // The page's kubectl and helm lines.
    let url = format!("- https://{}:30090", test.node.address());
    test.gravity(&line)?.expect(
        0,
        &[
            "Cluster hooks is active",
            "Cluster endpoints:",
            "By labels",
            &url,
            "(inside the cluster)",
        ],
    )?;
    let log = "cat /var/lib/gravity/operations/*/operation.log";
    test.said(&["sh", "-c", log])?
        .expect(0, &["configmap/settings created", "NAME: example-"])?;
    // Its own line would match a word without brackets.
    let told = "cd /var/lib/gravity; stat -c 'mode %a' operations/*/values.json; \
                ! grep -rl hunter2 operations log && ! grep -al 'db[.]size=4' /proc/[0-9]*/cmdline";
    test.said(&["sh", "-c", told])?.expect(0, &["mode 600"])?;
    test.no_rights_are_left()?;
    table.seen(HookName::Install, "the page's kubectl line");
    table.seen(HookName::PostInstall, "the page's helm line");
    let image =
        test.kubectl("get pods -A -l release -o jsonpath={.items[*].spec.containers[*].image}")?;
    ensure!(
        image.trim() == "leader.telekube.local:5000/postgres:9.4.4",
        "the chart's image is {image}"
    );
    Ok(())
}

fn endpoints(test: &Test<'_>) -> Result<()> {
    let status = test.status()?;
    let found: Vec<_> = status["endpoints"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|endpoint| (endpoint["name"].clone(), endpoint["urls"].clone()))
        .collect();
    let address = test.node.address();
    let [(first, urls), (second, plain)] = &found[..] else {
        anyhow::bail!("endpoints are {found:?}");
    };
    ensure!(
        first == "By labels" && *urls == serde_json::json!([format!("https://{address}:30090")]),
        "endpoints are {found:?}"
    );
    let plain = plain[0].as_str().unwrap_or_default();
    ensure!(
        second == "By name" && plain.starts_with("http://10.100.") && plain.ends_with(":8081"),
        "endpoints are {found:?}"
    );
    let page = format!("http://{address}:30090/");
    test.said(&["curl", "-sS", "--fail", "-m", "20", &page])?
        .expect(0, &["It works"])
        .map(drop)
}

fn by_hand(test: &Test<'_>, table: &mut Table) -> Result<()> {
    test.gravity("hook run info")?.expect(
        0,
        &["seeding hooks, provider generic, flavor one, user 1000"],
    )?;
    table.seen(
        HookName::Info,
        "the page's inline Job; every GRAVITY_ variable",
    );
    test.gravity("hook run dump --env ANSWER=42")?.expect(
        0,
        &[
            "init container of hooks, user 1000",
            &format!("at first: {MERGED}"),
            &format!("values: {MERGED}"),
            "pre-uninstall-hook.yaml",
            "I am 1000, the answer is 42",
        ],
    )?;
    table.seen(
        HookName::Dump,
        "init containers, -1, --env, a namespace of its own, --values and --set",
    );
    test.gravity("hook run dump")?.expect(
        1,
        &[
            "hook dump failed: Job \"dump-",
            "in namespace \"support\": BackoffLimitExceeded",
            "/second: exit code 1",
            "    I am 1000, the answer is missing",
        ],
    )?;
    table.seen(HookName::Dump, "a failure shows the pod's last lines");
    test.gravity("hook run backup")?
        .expect(1, &["has no hook backup; it has install, "])?;
    test.gravity("hook run nothing")?
        .expect(2, &["is not a hook"])?;
    test.no_rights_are_left()
}

/// SIGTERM takes a hook's Job and rights along. Of many that have ended the last stay.
fn ends(test: &Test<'_>) -> Result<()> {
    let terminated = format!(
        "{IMAGE} hook run dump > /root/out 2>&1 & pid=$!; \
         until grep -q 'Created Job' /root/out || ! kill -0 $pid; do sleep 0.1; done; \
         kill $pid; wait $pid; code=$?; cat /root/out; exit $code"
    );
    test.said(&["sh", "-c", &terminated])?
        .expect(1, &["Interrupted", "hook dump was interrupted"])?;
    let many =
        format!("for i in 1 2 3 4 5; do {IMAGE} hook run info & done; wait; {IMAGE} hook run info");
    test.said(&["sh", "-c", &many])?.expect(0, &[])?;
    let mut jobs = String::new();
    let few = process::wait_until(CHECKED, || {
        let list = "get jobs -A -o name -l gravitational.io/hook=info";
        jobs = test.kubectl(list).unwrap_or_default();
        jobs.lines().count() == 5
    });
    ensure!(few, "Jobs pile up: {jobs}");
    test.no_rights_are_left()
}

/// A report has what the dump hook writes, and no secret.
fn report(test: &Test<'_>, table: &mut Table) -> Result<()> {
    let made = test.gravity("token create --output json")?.expect(0, &[])?;
    let token = made.json()?;
    let token = token["token"].as_str().context("there is no token")?;
    let secret = token.split('.').nth(1).context("the token has no secret")?;
    // Not in the command that makes the report: it holds command lines, too.
    let secrets = format!("umask 077; printf '{secret}\\nhunter2\\n' > /root/secrets");
    test.said(&["sh", "-c", &secrets])?.expect(0, &[])?;
    let script = format!(
        "cd /root && {IMAGE} report --file=r.tar.gz && tar tzf r.tar.gz && \
         tar xzOf r.tar.gz dump.txt status.json etcd.txt && \
         ! tar xzOf r.tar.gz | grep -aFf secrets && rm r.tar.gz secrets"
    );
    test.said(&["sh", "-c", &script])?.expect(
        0,
        &[
            "password: [redacted]",
            "/second: exit code 1",
            "\"cluster\":{\"name\":\"hooks\"",
            "has_leader: true",
            "certificates.json",
            "services.json",
            "host/nft.txt",
            "kubernetes/leases.yaml",
            "kubernetes/clusterrolebindings.yaml",
        ],
    )?;
    table.seen(HookName::Dump, "part of `gravity report`, without secrets");
    Ok(())
}

fn status(test: &Test<'_>, table: &mut Table) -> Result<()> {
    test.reaches("active")?;
    table.seen(HookName::Status, "runs after the install");
    test.kubectl("create configmap broken -n default")?;
    let degraded = test.reaches("degraded")?;
    let reasons = degraded["cluster"]["reasons"].to_string();
    ensure!(
        reasons.contains("hook status failed") && reasons.contains("the database does not answer"),
        "the reasons are {reasons}"
    );
    test.gravity("status")?
        .expect(6, &["degraded", "the database does not answer"])?;
    table.seen(HookName::Status, "a failure degrades with its reason");
    test.kubectl("delete configmap broken -n default")?;
    test.reaches("active")?;
    table.seen(HookName::Status, "a success ends that");
    let jobs = test.kubectl("get jobs -A -o name -l gravitational.io/hook=status")?;
    ensure!(jobs.lines().count() <= 1, "Jobs pile up: {jobs}");
    Ok(())
}

/// A pod of which one container has a hook and needs some of its 30 s to end, and the
/// other one is of an image that wants another signal.
fn slow_pod() -> Value {
    let [before, in_time, interrupted] = WRITTEN;
    let container = |name: &str, image: usize, signal: &str, then: &str| {
        let script = format!("trap \"{then}; exit\" {signal}; while :; do sleep 1; done");
        json!({
            "name": name, "image": sample::IMAGES[image],
            "command": ["/bin/sh", "-c", script], "securityContext": {"runAsUser": 0},
        })
    };
    let slowly = format!("sleep 11; touch /{in_time}");
    let mut server = container("server", 0, "TERM", &slowly);
    server["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["touch", format!("/{before}")]}}});
    let database = container("database", 2, "INT", &format!("touch /{interrupted}"));
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "slow"},
        "spec": {"containers": [server, database]},
    })
}

fn power(test: &Test<'_>, table: &mut Table) -> Result<()> {
    test.kubectl("create configmap busy -n default")?;
    test.gravity("stop --confirm")?
        .expect(1, &["the application is busy", "everything runs on"])?;
    test.kubectl("delete configmap busy -n default")?;
    table.seen(HookName::Stop, "a failure stops `stop`");
    let create = format!("printf %s '{}' | kubectl create -f -", slow_pod());
    test.said(&["sh", "-c", &create])?.expect(0, &[])?;
    test.kubectl("wait --for=condition=Ready pod/slow --timeout=120s")?;
    test.gravity("stop --confirm")?
        .expect(0, &["the application is stopped"])?;
    test.gravity("status")?
        .expect(6, &["the planet does not run"])?;
    test.gravity("leave --confirm")?
        .expect(1, &["can't be told whether", "gravity start"])?;
    test.said(&["find", "/var/lib/gravity/containerd", "-path", "*/fs/*"])?
        .expect(0, &WRITTEN)?;
    table.seen(HookName::Stop, "runs before the services end");
    test.gravity("start")?
        .expect(0, &["the application is started"])?;
    test.reaches("active")?;
    table.seen(HookName::Start, "runs when the services are back");
    test.kubectl("delete pod slow --now")?;
    new_daemon(test)
}

/// A daemon that has died gets a successor, in a session of its own, without an end of
/// the planet.
fn new_daemon(test: &Test<'_>) -> Result<()> {
    let planet = || test.said(&["pgrep", "-x", "planet-init"])?.expect(0, &[]);
    let before = planet()?.text;
    test.said(&["pkill", "-KILL", "-f", DAEMON])?
        .expect(0, &[])?;
    test.gravity("start")?.expect(0, &[])?;
    let session = format!("pid=$(pgrep -f '{DAEMON}') && test $(ps -o sid= -p $pid) = $pid");
    test.said(&["sh", "-c", &session])?.expect(0, &[])?;
    let after = planet()?.text;
    ensure!(before == after, "the planet was {before}, and is {after}");
    test.reaches("active").map(drop)
}

fn leave(test: &Test<'_>, table: &mut Table) -> Result<()> {
    test.kubectl("create configmap keep -n default")?;
    let failed = test.gravity("leave --confirm")?.expect(
        1,
        &[
            "hook preUninstall failed",
            "the data is still needed",
            "--force",
        ],
    )?;
    ensure!(
        !failed.text.contains("the application is gone"),
        "uninstall ran after preUninstall had failed"
    );
    test.reaches("active")?;
    table.seen(HookName::PreUninstall, "a failure stops `leave`");
    test.kubectl("delete configmap keep -n default")?;
    test.gravity("leave --confirm")?.expect(
        0,
        &[
            "there is no Tiller",
            "NAME: second",
            "Release \"second\" has been upgraded",
            "release \"second\" uninstalled",
            "configmap \"settings\" deleted",
            "the application is gone",
        ],
    )?;
    table.seen(
        HookName::PreUninstall,
        "lines of Helm 2 in an empty image, the customer's values",
    );
    table.seen(HookName::Uninstall, "runs before the node is cleaned up");
    let line = format!("install --advertise-addr={}", test.node.address());
    test.gravity(&line)?.expect(0, &[])?;
    // Given nothing, there is a file all the same.
    test.gravity("hook run dump --env ANSWER=1")?
        .expect(0, &["values: {}"])?;
    test.kubectl("create configmap keep -n default")?;
    test.gravity("leave --confirm --force")?
        .expect(0, &["the data is still needed", "the application is gone"])?;
    table.seen(
        HookName::PreUninstall,
        "`--force` goes on although it fails",
    );
    test.said(&["test", "!", "-e", "/var/lib/gravity"])?
        .expect(0, &[])
        .map(drop)
}
