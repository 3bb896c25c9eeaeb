//! What a node does for itself while it runs, and the way back to a snapshot.
//!
//! In: the sample, with a small quota of etcd. Out: an error at the first thing
//! that is not as it should be; the nodes then stay to be looked at.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::Console;
use event::Sink;
use serde_json::Value;

use crate::faults::RESUMABLE;
use crate::join::WORKER;
use crate::node::{self, Node};
use crate::said::Said;
use crate::scenario::{IMAGE, Setup, check, install_with};
use crate::{file, process, sample};

/// Seconds that a command may take.
const LIMIT: &str = "420";
/// Bytes that etcd may have; the cluster itself has some 10 MB.
const QUOTA: u64 = 64 << 20;
/// The first look comes half a minute after the start of the service.
const LOOK: Duration = Duration::from_secs(90);
/// Life of certificates in the second part, in seconds.
const LIFE: u64 = 400;
/// How long one round of renewals may take: on a clock that nothing keeps right a
/// certificate is due when a quarter of its life is left.
const RENEWAL: Duration = Duration::from_secs(LIFE);
/// What ends an operation with its agent.
const KILL: &str =
    "kill -9 $(cat /var/lib/gravity/operation.lock) $(cat /var/lib/gravity/agent.lock)";

type Step = fn(&Test<'_>) -> Result<()>;

/// What is done on one node.
const STEPS: &[(&str, Step)] = &[
    ("Snapshots", snapshots),
    ("A recovery", recovery),
    ("A recovery that is killed in each phase", killed_recovery),
    ("A full etcd", full_etcd),
];

/// Runs all of it on the new nodes `NAME-1` and `NAME-2`.
///
/// # Errors
/// At the first check that fails.
pub fn run(setup: &Setup, name: &str, console: &Console) -> Result<()> {
    node::require_root()?;
    let image = with_quota(setup)?.image(console)?;
    let first = setup.create(&format!("{name}-1"), console)?;
    install_with(&first, &image, &[], console)?;
    let test = Test { node: &first };
    for (step, check) in STEPS {
        console.step(step);
        check(&test).with_context(|| (*step).to_owned())?;
    }
    first.delete()?;

    console.step("Certificates with short lives");
    let first = setup.create(&format!("{name}-1"), console)?;
    let second = setup.create(&format!("{name}-2"), console)?;
    let life = format!("--leaf-seconds={LIFE}");
    install_with(&first, &image, &[&life], console)?;
    second.copy(&image, IMAGE)?;
    certificates(&Test { node: &first }, &Test { node: &second })?;
    second.delete()?;
    first.delete()
}

/// The sample with a quota; it is always built, as no other image has it.
fn with_quota(setup: &Setup) -> Result<Setup> {
    let directory = file::cache()?.join("care");
    file::remove_directory(&directory)?;
    process::run(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(&setup.sample)
            .arg(&directory),
    )?;
    let app = directory.join("app.yaml");
    let options =
        format!("\nsystemOptions:\n  etcd:\n    args: [\"--quota-backend-bytes={QUOTA}\"]\n");
    file::write(&app, file::read(&app)? + &options)?;
    Ok(Setup {
        sample: directory,
        image: None,
        ..setup.clone()
    })
}

struct Test<'a> {
    node: &'a Node,
}

/// What a kubelet says of a pod.
#[derive(Debug, PartialEq, Eq)]
struct Pod {
    name: String,
    restarts: u64,
}

impl Test<'_> {
    fn said(&self, words: &[&str]) -> Result<Said> {
        Said::within(self.node, LIMIT, words)
    }

    fn shell(&self, script: &str) -> Result<Said> {
        self.said(&["sh", "-c", script])
    }

    fn gravity(&self, line: &str) -> Result<Said> {
        Said::of_line(self.node, LIMIT, &format!("{IMAGE} {line}"))
    }

    fn kubectl(&self, line: &str) -> Result<Said> {
        Said::of_line(self.node, LIMIT, &format!("kubectl {line}"))
    }

    /// The last JSON document that `gravity` printed.
    fn json(&self, line: &str) -> Result<Value> {
        let said = self.gravity(&format!("{line} --output json"))?;
        said.json().with_context(|| line.to_owned())
    }

    fn revision(&self) -> Result<u64> {
        let list = self
            .kubectl("get --raw /api/v1/configmaps")?
            .expect(0, &[])?;
        let list: Value = serde_json::from_str(&list.text).context("reading config maps")?;
        let version = list["metadata"]["resourceVersion"].as_str();
        let version = version.and_then(|version| version.parse().ok());
        version.context("no resource version")
    }

    /// Running pods of the sample.
    fn pods(&self) -> Result<Vec<Pod>> {
        let text = self
            .kubectl("get pods -n default --field-selector=status.phase=Running -o json")?
            .expect(0, &[])?
            .text;
        let list: Value = serde_json::from_str(&text).context("reading pods")?;
        let pods = list["items"].as_array().into_iter().flatten();
        let mut pods: Vec<_> = pods
            .map(|pod| Pod {
                name: pod["metadata"]["name"].to_string(),
                restarts: pod["status"]["containerStatuses"][0]["restartCount"]
                    .as_u64()
                    .unwrap_or(u64::MAX),
            })
            .collect();
        pods.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(pods)
    }

    /// Ids of the containers' first processes: they show every restart.
    fn containers(&self) -> Result<String> {
        Ok(self
            .shell("gravity exec ctr -n k8s.io tasks ls 2>/dev/null | awk 'NR > 1 {print $1, $2}' | sort")?
            .expect(0, &[])?
            .text)
    }

    fn snapshots(&self) -> Result<Vec<String>> {
        let all = self.json("etcd snapshots")?;
        let all = all.as_array().context("the snapshots are no list")?.iter();
        Ok(all
            .filter_map(|one| Some(one["name"].as_str()?.to_owned()))
            .collect())
    }

    /// Has the service look now.
    fn look(&self) -> Result<()> {
        let status = self.json("status")?;
        let services = status["nodes"][0]["services"].as_array();
        let mut services = services.into_iter().flatten();
        let care = services.find(|service| service["name"] == "care");
        let pid = care.and_then(|care| care["pid"].as_i64());
        let pid = pid.with_context(|| format!("no service care in {status}"))?;
        self.shell(&format!("gravity exec kill {pid}"))?
            .expect(0, &[])
            .map(drop)
    }

    fn wait(
        &self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let mut last = None;
        let is_done = process::wait_until(limit, || match done() {
            Ok(done) => done,
            Err(error) => {
                last = Some(error);
                false
            }
        });
        ensure!(is_done, "{what} within {} s: {last:?}", limit.as_secs());
        Ok(())
    }
}

fn snapshots(test: &Test<'_>) -> Result<()> {
    test.wait("the node takes a snapshot by itself", LOOK, || {
        Ok(test
            .snapshots()?
            .iter()
            .any(|name| name.ends_with("-scheduled.db")))
    })?;
    test.gravity("etcd snapshot")?
        .expect(0, &["-manual.db: ", "revision"])?;
    test.gravity("etcd snapshot --file /root/kept.db")?
        .expect(0, &["/root/kept.db"])?;
    test.gravity("etcd snapshot --file /root/kept.db")?
        .expect(1, &["exists already"])?;
    let modes =
        "cd /var/lib/gravity/etcd-snapshots && stat -c '%a %u' . *.db /root/kept.db | sort -u";
    test.shell(modes)?.expect(0, &["700 0", "600 0"])?;
    // Of eight that are kept of a kind, the ninth and tenth are the first two.
    let before = test.snapshots()?;
    for _ in 0..9 {
        test.gravity("etcd snapshot")?.expect(0, &[])?;
    }
    let after = test.snapshots()?;
    let manual = |names: &[String]| {
        let manual = names.iter().filter(|name| name.contains("-manual"));
        manual.cloned().collect::<Vec<_>>()
    };
    ensure!(manual(&after).len() == 8, "not 8 are kept: {after:?}");
    ensure!(
        !manual(&after).contains(&manual(&before)[0]),
        "the oldest is still there: {after:?}"
    );
    // Damaged ones are refused before anything is done.
    test.shell(
        "cd /root && head -c 100000 kept.db >cut.db && cp kept.db changed.db && \
         printf x | dd of=changed.db bs=1 seek=50000 conv=notrunc",
    )?
    .expect(0, &[])?;
    test.gravity("etcd recover /root/cut.db --confirm")?
        .expect(1, &["its length is wrong"])?;
    test.gravity("etcd recover /root/changed.db --confirm")?
        .expect(1, &["its checksum is wrong"])?;
    test.gravity("etcd recover none --confirm")?
        .expect(1, &["there is no snapshot none"])?;
    test.gravity("etcd recover /root/kept.db")?
        .expect(1, &["terminal"])?;
    check(test.node).map(drop)
}

/// Objects of a snapshot that are deleted since, and one that was made since.
fn objects(test: &Test<'_>) -> Result<String> {
    test.kubectl("create configmap before -n default --from-literal=a=b")?
        .expect(0, &[])?;
    let taken = test.json("etcd snapshot")?;
    let path = taken["path"].as_str().context("no path")?.to_owned();
    test.kubectl("delete configmap before -n default")?
        .expect(0, &[])?;
    test.kubectl("create configmap after -n default --from-literal=a=b")?
        .expect(0, &[])?;
    Ok(path)
}

fn is_recovered(test: &Test<'_>, revision: u64, containers: &str) -> Result<()> {
    test.kubectl("get configmap before -n default")?
        .expect(0, &[])?;
    test.kubectl("get configmap after -n default")?
        .expect(1, &["NotFound"])?;
    let now = test.revision()?;
    ensure!(now > revision, "revision {now} is not above {revision}");
    check(test.node)?;
    ensure!(
        test.containers()? == *containers,
        "containers were restarted: {} was {containers}",
        test.containers()?
    );
    test.said(&["test", "!", "-e", "/var/lib/gravity/etcd/.recovery"])?
        .expect(0, &[])?;
    // Controllers see what is new.
    test.kubectl("rollout restart deployment web")?
        .expect(0, &[])?;
    test.kubectl("rollout status deployment web --timeout=120s")?
        .expect(0, &[])?;
    test.wait("the former pod is gone", Duration::from_secs(90), || {
        let pods = test.kubectl("get pods -n default -l app=web -o name")?;
        Ok(pods.code == 0 && pods.text.lines().count() == 1)
    })?;
    test.kubectl("delete configmap before -n default")?
        .expect(0, &[])
        .map(drop)
}

fn recovery(test: &Test<'_>) -> Result<()> {
    let (pods, containers) = (test.pods()?, test.containers()?);
    let snapshot = objects(test)?;
    let revision = test.revision()?;
    test.gravity(&format!("etcd recover {snapshot} --confirm"))?
        .expect(0, &["-before-operation.db", "/clean completed"])?;
    ensure!(pods == test.pods()?, "pods are not as before: {pods:?}");
    is_recovered(test, revision, &containers)
}

/// Killed in each phase and resumed; then taken back half-way.
fn killed_recovery(test: &Test<'_>) -> Result<()> {
    let snapshot = objects(test)?;
    let (containers, revision) = (test.containers()?, test.revision()?);
    let mut command = format!("etcd recover {snapshot} --confirm");
    let is_killed = |said: &Said| {
        said.text.contains("KILLED") && said.text.contains(&format!("exit {RESUMABLE}"))
    };
    for phase in ["/restore", "/replace", "/start"] {
        let said = until(test, &command, phase)?;
        ensure!(is_killed(&said), "{phase} was not killed: {}", said.text);
        test.gravity(&format!("etcd recover {snapshot} --confirm"))?
            .expect(1, &["has not ended", "gravity resume"])?;
        command = "resume".into();
    }
    // The last one may be faster than the kill.
    if is_killed(&until(test, "resume", "/clean")?) {
        test.gravity("resume")?.expect(0, &[])?;
    }
    is_recovered(test, revision, &containers)?;

    let snapshot = objects(test)?;
    let containers = test.containers()?;
    until(
        test,
        &format!("etcd recover {snapshot} --confirm"),
        "/start",
    )?;
    test.gravity("rollback --confirm")?.expect(0, &[])?;
    test.gravity("resume")?.expect(1, &["was taken back"])?;
    test.kubectl("get configmap after -n default")?
        .expect(0, &[])?;
    test.kubectl("get configmap before -n default")?
        .expect(1, &["NotFound"])?;
    ensure!(
        test.containers()? == containers,
        "containers were restarted by the rollback"
    );
    test.said(&["test", "!", "-e", "/var/lib/gravity/etcd/.recovery"])?
        .expect(0, &[])?;
    test.kubectl("delete configmap after -n default")?
        .expect(0, &[])?;
    check(test.node).map(drop)
}

/// Runs a command and kills the operation, agent and all, in a phase.
fn until(test: &Test<'_>, command: &str, phase: &str) -> Result<Said> {
    test.shell(&format!(
        "{{ {IMAGE} {command} 2>&1; echo exit $?; }} | while IFS= read -r line; do \
           echo \"$line\"; \
           case \"$line\" in *' {phase} in progress'*) {KILL}; echo KILLED;; esac; \
         done"
    ))
}

fn full_etcd(test: &Test<'_>) -> Result<()> {
    let etcdctl = "etcdctl --endpoints=https://127.0.0.1:2379 --cacert=/var/state/etcd-ca.crt \
                   --cert=/var/state/etcd-client.crt --key=/var/state/etcd-client.key";
    let fill = format!(
        "head -c 900000 /dev/urandom | base64 -w0 >/tmp/fill; \
         for i in $(seq 100); do {etcdctl} put /fill/$i </tmp/fill || exit 7; done"
    );
    test.said(&["gravity", "exec", "sh", "-c", &fill])?
        .expect(7, &["database space exceeded"])?;
    test.gravity("status")?
        .expect(6, &["etcd has used up its quota", "takes no writes"])?;
    test.kubectl("create configmap full -n default")?
        .expect(1, &["database space exceeded"])?;
    test.said(&[
        "gravity",
        "exec",
        "sh",
        "-c",
        &format!("{etcdctl} del --prefix /fill/"),
    ])?
    .expect(0, &[])?;
    test.look()?;
    test.wait("etcd takes writes again", LOOK, || {
        let created = test.kubectl("create configmap full -n default")?;
        Ok(created.code == 0)
    })?;
    let status = test.json("status")?;
    ensure!(
        status["cluster"]["state"] == "active",
        "the cluster is not active: {status}"
    );
    check(test.node).map(drop)
}

/// Names and ends of the leaf certificates of a node.
fn ends(test: &Test<'_>) -> Result<Vec<(String, String)>> {
    let rows = test.json("cert list")?;
    let rows = rows.as_array().context("no list of certificates")?;
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    Ok(rows
        .iter()
        .map(|row| (text(row, "file"), text(row, "expires")))
        .filter(|(file, _)| !file.contains("-ca."))
        .collect())
}

fn certificates(master: &Test<'_>, worker: &Test<'_>) -> Result<()> {
    let token = master.json("token create")?;
    let token = token["token"].as_str().context("no token")?.to_owned();
    let address = master.node.address();
    let join = format!("join {address} --token={token} --role={WORKER}");
    let joined = Instant::now();
    worker.gravity(&join)?.expect(0, &[])?;
    master.shell(FORGOTTEN)?.expect(0, &[])?;
    master
        .kubectl("scale deployment web --replicas=4")?
        .expect(0, &[])?;
    master
        .kubectl("rollout status deployment web --timeout=120s")?
        .expect(0, &[])?;
    let pods = master.pods()?;
    ensure!(
        pods.iter().all(|pod| pod.restarts == 0),
        "pods were restarted: {pods:?}"
    );
    for test in [master, worker] {
        let first = ends(test)?;
        ensure!(first.len() > 5, "too few certificates: {first:?}");
        test.wait("all certificates are renewed", RENEWAL * 2, || {
            let now = ends(test)?;
            Ok(first
                .iter()
                .zip(&now)
                .all(|(old, new)| old.0 == new.0 && old.1 < new.1))
        })?;
    }
    // Beyond the end of the first ones: whoever still had them would be refused.
    let left = Duration::from_secs(LIFE + 30).saturating_sub(joined.elapsed());
    std::thread::sleep(left);
    for test in [master, worker] {
        test.wait("the node is well", RENEWAL, || {
            Ok(test.gravity("status")?.code == 0)
        })?;
    }
    check(master.node)?;
    ensure!(
        master.pods()? == pods,
        "pods are not as before: {pods:?} and {:?}",
        master.pods()?
    );
    // Logs go through the kubelet's certificate; pulls through the registry's.
    master.wait("a new pod runs on the worker", RENEWAL, || {
        let scaled = master.kubectl("scale deployment web --replicas=6")?;
        let rolled = master.kubectl("rollout status deployment web --timeout=60s")?;
        Ok(scaled.code == 0 && rolled.code == 0)
    })?;
    let address = worker.node.address();
    let page = master.said(&["curl", "-sS", "--fail", &format!("http://{address}:30080")])?;
    ensure!(page.text == sample::PAGE, "no page: {}", page.text);
    forgotten_rights_end(master)
}

/// Rights of hooks whose operation was killed: one has ended, one runs on.
const FORGOTTEN: &str = "kubectl apply -f - <<'END'
apiVersion: v1
kind: ServiceAccount
metadata:
  name: gravity-hook-ended
  namespace: default
  labels: {gravitational.io/operation: ended}
  annotations: {gravitational.io/until: '2020-01-01T00:00:00Z'}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: gravity-hook-ended-default
  labels: {gravitational.io/operation: ended}
  annotations: {gravitational.io/until: '2020-01-01T00:00:00Z'}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: gravity-hook-ended, namespace: default}]
---
apiVersion: v1
kind: Secret
metadata:
  name: gravity-helm-values-ended
  namespace: default
  labels: {gravitational.io/operation: ended}
  annotations: {gravitational.io/until: '2020-01-01T00:00:00Z'}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: gravity-hook-runs
  namespace: default
  labels: {gravitational.io/operation: runs}
  annotations: {gravitational.io/until: '2020-01-01T00:00:00Z'}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: runs
  namespace: default
  labels: {gravitational.io/operation: runs}
spec:
  suspend: true
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: c}]}}
END";

/// The master has ended the rights of the one that has ended, and no others.
fn forgotten_rights_end(master: &Test<'_>) -> Result<()> {
    let mut left = String::new();
    let ended = master.wait("forgotten rights end", LOOK, || {
        let list = "get serviceaccounts,clusterrolebindings,secrets -A -o name \
                    -l gravitational.io/operation";
        left = master.kubectl(list)?.expect(0, &[])?.text;
        Ok(left.trim() == "serviceaccount/gravity-hook-runs")
    });
    ended.with_context(|| format!("these are left: {left}"))
}
