//! The sample in a machine of its own: its install under systemd is cut off by a
//! reboot and gone on with, its daemon and its planet killed, the cluster stopped and
//! started, a volume's disk taken and mounted again, and all removed, after which the
//! machine is as it was.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::{Console, render};
use event::Sink;

use super::checks::{is_as_before, snapshot};
use super::{ADDRESS, Disk, Kept, Machine, Options, SECOND_DISK};
use crate::sample;
use crate::scenario::{IMAGE, Setup, check_status};

/// How long the whole of it may take.
const LIMIT: Duration = Duration::from_secs(45 * 60);
/// After which the planet has a unit that is enabled, and much is to be done yet.
const PLANET_STARTED: &str = "/start/planet completed";
/// The group of the daemon, which has none below it.
const NESTED: &str = "/sys/fs/cgroup/system.slice/gravity.service/daemon";
/// Where the sample's volume is, on a disk of its own.
const VOLUME: &str = "/srv/pages";
/// What `gravity stop` leaves, in words of the shell.
const STOPPED: &str = "
    test $(systemctl is-active gravity.service) = inactive
    test $(systemctl is-enabled gravity.service) = disabled
    test -z \"$(pgrep -x planet-init)\"";
/// What `gravity start` makes of it again.
const STARTED: &str = "
    test $(systemctl is-active gravity.service) = active
    test $(systemctl is-enabled gravity.service) = enabled
    pgrep -x planet-init";

/// The machine, and when it began.
struct Test<'a> {
    machine: Machine,
    started: Instant,
    console: &'a Console,
}

impl Test<'_> {
    fn left(&self) -> Duration {
        LIMIT.saturating_sub(self.started.elapsed())
    }

    fn must(&mut self, command: &str) -> Result<String> {
        let left = self.left();
        self.machine.must(command, left)
    }

    fn gravity(&mut self, arguments: &str) -> Result<()> {
        let left = self.left();
        self.machine
            .gravity("machine", arguments, left, self.console)
    }

    fn tell(&self, what: &str) {
        let took = render::duration(self.started.elapsed());
        self.console.info(&format!("{what}, {took} from the start"));
    }

    /// Waits until all is well again, and the page is served, which takes a while more.
    fn wait_well(&mut self) -> Result<()> {
        self.must(&format!(
            "until {IMAGE} status >/dev/null 2>&1 && curl -s --fail -m 20 http://{ADDRESS}:30080; \
             do sleep 2; done"
        ))?;
        self.is_well()
    }

    /// Fails unless all is well and the page is served.
    fn is_well(&mut self) -> Result<()> {
        let url = check_status(&self.must(&format!("{IMAGE} status --output json"))?)?;
        let page = self.must(&format!("curl -sS --fail -m 20 {url}"))?;
        ensure!(
            page == sample::PAGE,
            "{url} does not serve the page: {page}"
        );
        Ok(())
    }
}

/// Installs the sample in a virtual machine with a release of Debian, systemd and
/// cgroup v2, checks it and removes it.
///
/// # Errors
/// At the first check that fails, or after 45 minutes.
pub fn run(setup: &Setup, suite: &str, kept: &Kept, console: &Console) -> Result<()> {
    let started = Instant::now();
    let image = setup.image(console)?;
    let size = fs::metadata(&image)
        .with_context(|| image.display().to_string())?
        .len();
    let options = Options {
        kept: Some(kept.clone()),
        ..Options::of_node(image, LIMIT)
    };
    let disk = Disk::of_release(suite, console)?;
    let machine = Machine::boot(&disk, &options, console)?;
    let mut test = Test {
        machine,
        started,
        console,
    };
    test.tell("It is up");
    test.must(&format!(
        "head -c {size} {SECOND_DISK} >{IMAGE} && chmod 755 {IMAGE}"
    ))?;
    test.must(&format!(
        "mkdir {VOLUME} && echo 'pages {VOLUME} tmpfs nofail,size=200m 0 0' >>/etc/fstab &&
        systemctl daemon-reload && mount {VOLUME}"
    ))?;
    // As hosts have it that rather fail over than go on. Kubelet wants it otherwise.
    test.must(
        "echo vm.panic_on_oom=1 >/etc/sysctl.d/50-theirs.conf && \
         sysctl -q -p /etc/sysctl.d/50-theirs.conf",
    )?;
    let before = snapshot(&mut test.machine)?;
    install(&mut test)?;
    test.gravity("status")?;
    test.is_well()?;

    console.step("Killing the daemon");
    test.must("systemctl kill --signal=KILL --kill-who=main gravity.service; sleep 10")?;
    test.wait_well()?;
    test.tell("The cluster is back");

    console.step("Killing the planet");
    test.must("pkill -KILL -x planet-init; sleep 10")?;
    test.wait_well()?;
    test.must(&format!("! ls -d {NESTED}/*/"))?;
    test.tell("The cluster is back, in the same groups");

    test.gravity("stop --confirm")?;
    test.must(&format!("set -e; {STOPPED}"))?;
    test.tell("The cluster is stopped");
    let left = test.left();
    test.machine.reboot(left)?;
    test.must(&format!("set -e; {STOPPED}"))?;
    test.tell("The cluster is stopped after a reboot, too");
    test.gravity("start")?;
    test.must(&format!("set -e; {STARTED}"))?;
    test.wait_well()?;
    test.tell("The cluster is started");

    console.step("Taking the volume's disk, and mounting it again");
    test.must("systemctl stop srv-pages.mount && ! systemctl --quiet is-active gravity.service")?;
    test.must(&format!("mount {VOLUME}"))?;
    test.wait_well()?;
    test.tell("The cluster is back with the disk");

    test.gravity("leave --force --confirm")?;
    let units = test.must("systemctl list-units --all 'gravity*' --no-legend")?;
    ensure!(units.trim().is_empty(), "units are left: {units}");
    is_as_before(&mut test.machine, &before)?;
    test.tell("The machine is as it was");
    test.machine.end();
    Ok(())
}

/// Installs the sample. The machine is rebooted in order in the middle of it, and the
/// install gone on with.
fn install(test: &mut Test<'_>) -> Result<()> {
    // Disks of test machines are what they are.
    let install = format!(
        "install --advertise-addr={ADDRESS} --flavor=one --accept-eula --ignore=disk-latency \
         --mount=pages:{VOLUME}"
    );
    test.console.step(&format!("machine: ./gravity {install}"));
    let left = test.left();
    test.machine
        .begin(&install, (1, PLANET_STARTED), None, left)?;
    let said = test.must(&format!("tail -n 3 {}", super::SAID))?;
    ensure!(
        !said.contains("ended with"),
        "the install has ended before the reboot: {said}"
    );
    test.console.step("Rebooting in the middle of it");
    let left = test.left();
    test.machine.reboot(left)?;
    test.gravity("resume")?;
    check_services(test)?;
    test.tell("The install is done");
    Ok(())
}

/// Whether systemd has started operation and agent as services of their own.
fn check_services(test: &mut Test<'_>) -> Result<()> {
    for unit in ["gravity-operation", "gravity-agent"] {
        test.must(&format!(
            "journalctl --unit={unit} --output=cat | grep '^Started'"
        ))?;
    }
    Ok(())
}
