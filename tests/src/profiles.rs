//! A node with a profile that has every attribute of volumes, devices and
//! services' options.
//!
//! In: a cluster image of `tests/profiles`. Out: what the host, the planet and
//! pods see of them is what the manifest says; after `leave` the node is as it
//! was.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::{Console, render};
use event::Sink;

use crate::node::{self, Node};
use crate::scenario::{IMAGE, Setup, run_visibly};
use crate::snapshot::Snapshot;
use crate::{file, process, sample};

/// How long pods may take to say what they see.
const PODS: Duration = Duration::from_secs(120);
/// How long the install may take.
const INSTALL: &str = "600";

/// What a node of the page has before the install: user and group, paths and
/// devices.
const BEFORE: &str = "
groupadd mygroup -g 1001
useradd --no-create-home -u 1001 -g mygroup myuser
cd /srv
mkdir dir-abc dir-xyz dir-long given flat deep elsewhere
mkdir flat/disk deep/disk
chmod 700 given
for path in dir-abc dir-xyz dir-long flat deep elsewhere; do echo \"in $path\" >$path/name; done
echo library >library.so
mount -t tmpfs none flat/disk
mount -t tmpfs none deep/disk
echo 'in flat/disk' >flat/disk/name
echo 'in deep/disk' >deep/disk/name
mknod -m 600 /dev/gravtest0 c 10 229
mknod -m 600 /dev/gravtest1 c 10 200
cat >/root/config.yaml <<END
apiVersion: v1
kind: Namespace
metadata: {name: mine}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: given, namespace: mine}
data: {key: value}
---
kind: ClusterConfiguration
version: v1
spec:
  global:
    podCIDR: 10.77.0.0/16
    serviceNodePortRange: 31000-31999
    featureGates: {AllAlpha: false}
  kubelet:
    config: {maxPods: 42}
---
kind: RuntimeEnvironment
version: v1
spec:
  data: {GRAVITY_TEST: given}
END
";

/// Asks the DNS server at 127.0.0.2:5353 for leader.telekube.local and prints
/// the bytes of the answer.
const ASK_DNS: &str = r"
exec 3<>/dev/udp/127.0.0.2/5353
printf '\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06leader\x08telekube\x05local\x00\x00\x01\x00\x01' >&3
timeout 5 head -c 1 <&3 >/dev/null; exec 3>&-
exec 3<>/dev/udp/127.0.0.2/5353
printf '\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06leader\x08telekube\x05local\x00\x00\x01\x00\x01' >&3
timeout 5 dd bs=512 count=1 status=none <&3 | od -An -v -tu1 | tr -s ' \n' ' '
";

/// Installs, looks from everywhere, leaves.
///
/// # Errors
/// At the first thing that is not as the manifest says; the node stays to be
/// looked at.
pub fn run(setup: &Setup, name: &str, console: &Console) -> Result<()> {
    node::require_root()?;
    let hub = file::cache()?.join("sample/hub");
    if setup.image.is_none() {
        sample::make_hub(&hub)?;
    }
    let image = Setup {
        hub: Some(hub),
        ..setup.clone()
    }
    .image(console)?;
    let node = setup.create(name, console)?;
    node.copy(&image, IMAGE)?;
    node.run(&["bash", "-ec", BEFORE])?;
    let before = Snapshot::take(&node)?;

    refusals(&node)?;
    let address = format!("--advertise-addr={}", node.address());
    let options = [
        address.as_str(),
        "--role=db",
        "--service-uid=1001",
        "--mount=moved:/srv/elsewhere",
        "--config=/root/config.yaml",
        "--dns-listen-addr=127.0.0.2",
        "--dns-port=5353",
        "--dns-zone=corp.test/192.0.2.53",
    ];
    let install: Vec<_> = [IMAGE, "install"].iter().chain(&options).copied().collect();
    console.step("./gravity install --dry-run");
    let dry: Vec<_> = install.iter().copied().chain(["--dry-run"]).collect();
    let text = node.text(&dry)?;
    has(
        &text,
        &[
            "Every attribute of a **profile** & what comes of it.",
            "services as myuser (1001:1001)",
            "/var/lib/data/made",
            "/srv/given (owner and mode)",
            "/usr/local/bin/kubectl",
            "net.ipv4.ip_forward: 0 -> 1",
            "6443/tcp",
            "ConfigMap given",
        ],
    )?;
    is_json(&node, &dry)?;
    before.is_still(&node, "--dry-run")?;

    console.step("./gravity install");
    let started = Instant::now();
    let bounded: Vec<_> = ["timeout", INSTALL].into_iter().chain(install).collect();
    run_visibly(&mut node.command(&bounded)?)?;
    let time = render::duration(started.elapsed());
    console.info(&format!("Installed in {time}"));

    for (what, check) in CHECKS {
        check(&node).context(*what)?;
        console.info(&format!("As the manifest says: {what}"));
    }

    console.step("./gravity leave");
    run_visibly(&mut node.command(&[IMAGE, "leave", "--force", "--confirm"])?)?;
    before.is_still(&node, "`leave`")?;
    console.info("After `leave` the node is as it was");
    node.delete()
}

/// Whether a program can read all that a dry run prints, release notes too.
fn is_json(node: &Node, dry: &[&str]) -> Result<()> {
    let words = [dry, &["--output=json", "--skip-disk-test"]].concat();
    let text = node.text(&words)?;
    let lines = text.lines().map(|line| {
        serde_json::from_str(line).with_context(|| format!("a line is no JSON: {line}"))
    });
    let lines: Vec<serde_json::Value> = lines.collect::<Result<_>>()?;
    let notes = |line: &serde_json::Value| {
        let message = line["message"].as_str();
        message.is_some_and(|message| message.contains("Every attribute of"))
    };
    ensure!(
        lines.iter().any(notes) && lines.iter().any(|line| line["host"]["files"].is_array()),
        "release notes or result are missing: {text}"
    );
    Ok(())
}

type Check = fn(&Node) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("a planet of the vendor's own", custom_planet),
    ("volumes on the host", host),
    ("volumes in the planet", planet),
    ("devices in the planet", devices),
    ("services and their user", services),
    ("labels, taints and resources of the user", kubernetes),
    ("resources of Gravity of the user", settings),
    ("DNS", dns),
    ("pods", pods),
];

fn custom_planet(node: &Node) -> Result<()> {
    let file = sample::PLANET_FILE;
    has(
        &inside(node, &format!("cat {file}"))?,
        &["custom-planet:1.0.0"],
    )
}

/// Fails unless all of `wanted` are in `text`.
fn has(text: &str, wanted: &[&str]) -> Result<()> {
    for part in wanted {
        ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    Ok(())
}

fn shell(node: &Node, script: &str) -> Result<String> {
    node.text(&["bash", "-ec", script])
}

/// Runs a script in the planet.
fn inside(node: &Node, script: &str) -> Result<String> {
    node.text(&[IMAGE, "exec", "bash", "-ec", script])
}

/// Wrong values are wrong usage, and nothing is changed.
fn refusals(node: &Node) -> Result<()> {
    let address = format!("--advertise-addr={}", node.address());
    for option in [
        "--advertise-addr=192.0.2.1",
        "--pod-network-cidr=10.244.0.0/33",
        "--service-cidr=10.244.0.0/16",
        "--mount=nothing:/srv",
        "--role=nothing",
        "--dns-listen-addr=192.0.2.1",
        "--config=/root/none.yaml",
    ] {
        let mut command = vec![IMAGE, "install", option];
        if !option.starts_with("--advertise-addr") {
            command.push(&address);
        }
        let output = node.command(&command)?.output().context(option)?;
        ensure!(
            output.status.code() == Some(2),
            "{option} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(())
}

fn host(node: &Node) -> Result<()> {
    let text = shell(
        node,
        "cd /; stat -c '%n %a %u:%g' var/lib/logs var/lib/data/made srv/given srv/dir-abc; ls -d srv/*
         stat -c '%n %a %u:%g' dev/gravtest0 dev/gravtest1",
    )?;
    has(
        &text,
        &[
            "var/lib/logs 755 1001:1001\n",
            "var/lib/data/made 750 114:115\n",
            "srv/given 711 0:0\n",
            "srv/dir-abc 755 0:0\n",
            // The host's own nodes stay as they are.
            "dev/gravtest0 600 0:0\n",
            "dev/gravtest1 600 0:0\n",
        ],
    )?;
    ensure!(
        !text.contains("srv/absent") && !text.contains("srv/nowhere"),
        "{text}"
    );
    // What is mounted on the host later reaches only what is recursive.
    shell(
        node,
        "mkdir /srv/deep/later /srv/flat/later
         mount -t tmpfs none /srv/deep/later; mount -t tmpfs none /srv/flat/later
         echo later >/srv/deep/later/name; echo later >/srv/flat/later/name",
    )
    .map(drop)
}

fn planet(node: &Node) -> Result<()> {
    let text = inside(
        node,
        "cd /opt; cat library.so dirs/*/name flat/name deep/name deep/disk/name deep/later/name moved/name
         stat -c '%n %a %u:%g' given /var/lib/data; ls -d absent dirs/* flat/*/* /var/lib/logs 2>&1 || true
         findmnt -n -o TARGET,PROPAGATION /opt/deep; findmnt -n -o TARGET,PROPAGATION /opt/flat
         findmnt -n -o TARGET /opt/deep/disk; findmnt -n /opt/flat/disk || echo flat alone",
    )?;
    has(
        &text,
        &[
            "library\nin dir-abc\nin dir-xyz\nin flat\nin deep\nin deep/disk\nlater\nin elsewhere\n",
            "given 711 0:0\n",
            "/var/lib/data 750 114:115\n",
            "cannot access 'absent'",
            "cannot access 'flat/*/*'",
            "cannot access '/var/lib/logs'",
            "dirs/dir-abc\ndirs/dir-xyz\n",
            "shared,slave",
            "/opt/deep/disk\n",
            "flat alone",
        ],
    )?;
    ensure!(!text.contains("dir-long"), "{text}");
    // What was mounted after the snapshot goes before `leave` is judged.
    shell(
        node,
        "umount /srv/deep/later /srv/flat/later; rmdir /srv/deep/later /srv/flat/later",
    )
    .map(drop)
}

fn devices(node: &Node) -> Result<()> {
    // What they permit is seen in pods: commands run by root from outside are
    // not restricted.
    let text = inside(node, "stat -c '%n %a %u:%g %t:%T' /dev/gravtest* /dev/null")?;
    has(
        &text,
        &[
            "/dev/gravtest0 666 0:0 a:e5\n",
            "/dev/gravtest1 640 114:115 a:c8\n",
            "/dev/null 666 0:0 1:3\n",
        ],
    )
}

fn services(node: &Node) -> Result<()> {
    let text = inside(
        node,
        "for process in /proc/[0-9]*; do
           echo \"$(stat -c '%u:%g' $process) $(tr '\\0' ' ' <$process/cmdline)\"
         done 2>/dev/null; cat /etc/planet/containerd.toml /etc/cni/net.d/*; id planet
         grep /var/lib/cni /proc/mounts",
    )?;
    for service in [
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "registry",
        "coredns",
    ] {
        has(&text, &[&format!("1001:1001 /usr/local/bin/{service} ")])?;
    }
    for service in ["kubelet", "containerd", "kube-proxy", "flanneld"] {
        has(&text, &[&format!("0:0 /usr/local/bin/{service} ")])?;
    }
    has(
        &text,
        &[
            " --log-level=debug",
            " --system-reserved=memory=100Mi",
            "level = \"debug\"",
            "\"hairpinMode\": true",
            "uid=1001(planet) gid=1001(planet)",
            "tmpfs /var/lib/cni tmpfs ",
        ],
    )?;
    let text = shell(
        node,
        "stat -c '%n %a %U:%G' /var/lib/gravity/secrets; getent passwd 1001; cat /sys/class/net/cni0/flags
         su -s /bin/sh myuser -c 'ls /var/lib/gravity/secrets/planet' 2>&1 || true",
    )?;
    has(
        &text,
        &[
            "/var/lib/gravity/secrets 700 root:root\n",
            "myuser:x:1001:1001:",
            "Permission denied",
        ],
    )?;
    ensure!(!text.contains("planet:x:"), "{text}");
    Ok(())
}

/// What Kubernetes itself says of the settings, and of which environment its processes are.
fn settings(node: &Node) -> Result<()> {
    let text = node.text(&[
        "kubectl",
        "get",
        "nodes",
        "-o",
        "jsonpath={.items[0].status.capacity.pods} {.items[0].spec.podCIDR}",
    ])?;
    ensure!(text == "42 10.77.0.0/24", "the node has {text}");
    let gate = "kubectl get --raw /metrics | grep 'feature_enabled{name=\"AllAlpha\"'; \
        kubectl create service nodeport far --tcp=80 --node-port=30080 2>&1; \
        for p in /proc/[0-9]*; do tr '\\0' '\\n' <$p/environ 2>/dev/null | grep -q ^GRAVITY_TEST=given \
            && tr '\\0' ' ' <$p/cmdline && echo; done; true";
    let text = node.text(&["bash", "-c", gate])?;
    has(
        &text,
        &[
            "stage=\"ALPHA\"} 0",
            "31000-31999",
            "/usr/local/bin/kubelet ",
            "/usr/local/bin/etcd ",
        ],
    )?;
    ensure!(!text.contains("gravity/bin/gravity"), "{text}");
    Ok(())
}

fn kubernetes(node: &Node) -> Result<()> {
    let text = node.text(&["kubectl", "get", "nodes", "-o", "json"])?;
    has(
        &text,
        &[
            "\"tier\": \"db\"",
            "\"role\": \"db\"",
            "\"key\": \"dedicated\"",
        ],
    )?;
    let text = node.text(&[
        "kubectl",
        "get",
        "configmap",
        "given",
        "-n",
        "mine",
        "-o",
        "jsonpath={.data.key}",
    ])?;
    ensure!(
        text == "value",
        "the resources of --config are not there: {text}"
    );
    let text = node.text(&[
        "kubectl",
        "get",
        "pod",
        "elsewhere",
        "-o",
        "jsonpath={.status.phase}",
    ])?;
    ensure!(
        text == "Pending",
        "the taint does not keep a pod away: it is {text}"
    );
    Ok(())
}

fn dns(node: &Node) -> Result<()> {
    let answer = shell(node, ASK_DNS)?;
    has(&answer, &[" 169 254 20 10"])?;
    let corefile = inside(node, "cat /etc/planet/Corefile")?;
    has(
        &corefile,
        &["corp.test:53 {\n    bind 169.254.20.10\n    errors\n    forward . 192.0.2.53:53\n"],
    )
}

fn pods(node: &Node) -> Result<()> {
    let mut text = String::new();
    let said = |text: &mut String, pod: &str, last: &str| {
        process::wait_until(PODS, || {
            *text = node.text(&["kubectl", "logs", pod]).unwrap_or_default();
            text.contains(last)
        })
    };
    said(&mut text, "volumes", "dirs/dir-xyz\n");
    has(
        &text,
        &[
            "user 1001:1001\n",
            "library\nin dir-abc\nin dir-xyz\nin flat\nin deep\nin deep/disk\nin elsewhere\n",
            "given 711 0:0\n/data 750 114:115\n",
            "dirs/dir-abc\ndirs/dir-xyz\n",
        ],
    )?;
    said(&mut text, "devices", "gravtest1: Operation not permitted");
    has(
        &text,
        &[
            "/dev/gravtest0 666 0:0\n/dev/gravtest1 640 114:115\n",
            "/dev/gravtest0 is read\n/dev/gravtest0 is written\n/dev/gravtest1 is read\n",
            "can't create /dev/gravtest1: Operation not permitted",
        ],
    )?;
    ensure!(!text.contains("gravtest1 is written"), "{text}");
    let own = [
        "kubectl",
        "exec",
        "self",
        "--",
        "timeout",
        "20",
        "wget",
        "-q",
        "-O",
        "-",
        "http://self.default.svc.cluster.local/",
    ];
    let reached = process::wait_until(PODS, || {
        text = node.text(&own).unwrap_or_default();
        text == sample::PAGE
    });
    ensure!(
        reached,
        "a pod does not reach itself through its Service: {text}"
    );
    Ok(())
}
