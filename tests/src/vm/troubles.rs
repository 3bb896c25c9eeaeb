//! What happens to real machines, under a cluster that runs on one whose kernel has
//! no IPv6 and has AppArmor: the clock jumps, the network is gone, memory runs short.
//!
//! In: the sample. Out: how long each took. Always holds: after each of them the
//! status says that all is well, the page is served and a write is answered.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::Console;
use event::Sink;

use super::{ADDRESS, Disk, Machine, Options, SECOND_DISK};
use crate::sample;
use crate::scenario::{IMAGE, Setup, Timeline, check_status};

/// How long all of it may take, under emulation.
const LIMIT: Duration = Duration::from_secs(60 * 60);
/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// What happens, by which commands, what the status must say of it meanwhile, if
/// anything, and by which commands it is over.
const TROUBLES: &[(&str, &str, Option<&str>, &str)] = &[
    (
        "the clock jumps an hour ahead",
        "date --set='+1 hour'",
        None,
        "true",
    ),
    (
        "the clock jumps an hour back",
        "date --set='-1 hour'",
        None,
        "true",
    ),
    (
        "the network is gone for a minute",
        "link=$(ip -o -4 address | grep 10.0.2.15 | awk '{print $2}')
         ip link set $link down; sleep 60; ip link set $link up
         until ip -4 address show $link | grep -q 10.0.2.15; do sleep 1; done",
        None,
        "true",
    ),
    // Less than the 100 MiB that kubelet wants to be free.
    (
        "memory runs short",
        "mkdir -p /run/hog && mount -t tmpfs -o size=100% hog /run/hog
         free=$(awk '/MemAvailable/ {print int($2 / 1024)}' /proc/meminfo)
         head -c $((free - 70))M /dev/zero > /run/hog/file",
        Some("too little memory (MemoryPressure)"),
        "umount /run/hog",
    ),
];

/// Runs all of it.
///
/// # Errors
/// At the first thing that is not as it should be.
pub fn run(setup: &Setup, console: &Console) -> Result<()> {
    let image = setup.image(console)?;
    let size = std::fs::metadata(&image).context("looking at the image")?;
    let size = size.len();
    let options = Options {
        kernel: "ipv6.disable=1",
        ..Options::of_node(image, LIMIT)
    };
    let timeline = Timeline::new(console);
    let disk = Disk::make(console)?;
    let mut machine = Machine::boot(&disk, &options, console)?;
    let host = machine.must(
        "ls /proc/sys/net/ipv6 2>/dev/null; cat /sys/module/apparmor/parameters/enabled",
        PATIENCE,
    )?;
    ensure!(host.trim() == "Y", "IPv6 or no AppArmor: {host}");
    let copy = format!("head -c {size} {SECOND_DISK} >{IMAGE} && chmod 755 {IMAGE}");
    machine.must(&copy, PATIENCE)?;
    let install = format!(
        "install --advertise-addr={ADDRESS} --flavor=one --accept-eula --ignore=disk-latency"
    );
    machine.gravity("machine", &install, PATIENCE, console)?;
    let mut cluster = Cluster { machine, writes: 0 };
    cluster.wait_well()?;
    timeline.tell("the cluster is there");
    for (what, begin, told, end) in TROUBLES {
        console.step(&format!("Now {what}"));
        cluster.machine.must(begin, PATIENCE)?;
        if let Some(told) = told {
            cluster.wait_told(told)?;
            timeline.tell(told);
        }
        cluster.machine.must(end, PATIENCE)?;
        cluster.wait_well()?;
        timeline.tell(&format!("well again after {what}"));
    }
    let leave = "leave --force --confirm";
    cluster
        .machine
        .gravity("machine", leave, PATIENCE, console)?;
    let left =
        "systemctl list-units --all 'gravity*' --no-legend; aa-status 2>/dev/null | grep gravity";
    let (_, left) = cluster.machine.run(left, PATIENCE, &mut |_| {})?;
    ensure!(left.trim().is_empty(), "something is left: {left}");
    Ok(())
}

/// The machine, once it is a cluster.
struct Cluster {
    machine: Machine,
    writes: u32,
}

impl Cluster {
    fn status(&mut self) -> Result<String> {
        let status = format!("{IMAGE} status --output=json 2>&1 || true");
        self.machine.must(&status, PATIENCE)
    }

    /// Waits until the status says this.
    fn wait_told(&mut self, words: &str) -> Result<()> {
        self.wait(&format!("the status says \"{words}\""), |cluster| {
            let status = cluster.status()?;
            ensure!(status.contains(words), "it says {status}");
            Ok(())
        })
    }

    /// Waits until all is well, the page is served, and a write is answered.
    fn wait_well(&mut self) -> Result<()> {
        self.wait("all is well", |cluster| {
            let url = check_status(&cluster.status()?)?;
            let page = format!("curl -s -m 10 {url} || true");
            let page = cluster.machine.must(&page, PATIENCE)?;
            ensure!(page == sample::PAGE, "{url} serves {page:?}");
            cluster.writes += 1;
            let write = format!("kubectl create configmap written-{}", cluster.writes);
            cluster.machine.must(&write, PATIENCE).map(drop)
        })
    }

    fn wait(&mut self, what: &str, mut seen: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let result = seen(self);
            if result.is_ok() || Instant::now() >= deadline {
                return result.with_context(|| format!("waiting until {what}"));
            }
            std::thread::sleep(Duration::from_secs(5));
        }
    }
}
