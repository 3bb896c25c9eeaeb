//! A cluster of two machines under systemd: installed, joined, rebooted in order
//! and by the loss of power, removed.
//!
//! In: the sample. Out: how long each step took. Always holds: after each of them
//! the status says that all is well, and each machine serves the page.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use console::Console;

use super::{Disk, Link, Machine, Options, SECOND_DISK};
use crate::join::WORKER;
use crate::sample;
use crate::scenario::{IMAGE, Setup, Timeline, check_status};

/// How long all of it may take, under emulation.
pub(super) const LIMIT: Duration = Duration::from_secs(60 * 60);
/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// What a person sees of the service.
const LOOK: &str = "systemctl status gravity --no-pager --lines=5; systemd-cgls --no-pager \
                    /system.slice/gravity.service | head -40; \
                    journalctl -u gravity --no-pager --lines=8";

/// File of the token that the machines know each other by.
pub(super) const TOKEN: &str = "/root/token";

/// One of the machines.
pub(super) struct Member {
    link: Link,
    machine: Machine,
}

impl Member {
    pub(super) fn boot(
        number: u8,
        disk: &Disk,
        options: &Options,
        console: &Console,
    ) -> Result<Self> {
        let link = Link { number };
        let options = Options {
            link: Some(link),
            ..options.clone()
        };
        let machine = Machine::boot(disk, &options, console)?;
        let mut member = Self { link, machine };
        let name = member.name();
        let size = fs::metadata(options.second_disk.as_deref().unwrap_or("".as_ref()));
        let size = size.context("looking at the image")?.len();
        let (mac, address) = (link.mac(), member.address());
        member.must(&format!(
            "set -e
             echo {name} > /etc/hostname; hostname {name}
             printf '127.0.0.1\\tlocalhost\\n{address}\\t{name}\\n' > /etc/hosts
             printf '[Match]\\nMACAddress={mac}\\n[Network]\\nAddress={address}/24\\n' \
                 > /etc/systemd/network/10-link.network
             networkctl reload; networkctl reconfigure $(ip -o link | grep {mac} | cut -d: -f2)
             until ip -4 address | grep -q {address}; do sleep 1; done
             (umask 077; echo correct-horse-battery-staple > {TOKEN})
             head -c {size} {SECOND_DISK} > {IMAGE}; chmod 755 {IMAGE}"
        ))?;
        Ok(member)
    }

    pub(super) fn name(&self) -> String {
        format!("machine-{}", self.link.number)
    }

    pub(super) fn address(&self) -> String {
        format!("10.98.0.{}", self.link.number)
    }

    pub(super) fn must(&mut self, command: &str) -> Result<String> {
        self.machine.must(command, PATIENCE)
    }

    pub(super) fn run(&mut self, arguments: &str, console: &Console) -> Result<()> {
        let name = self.name();
        self.machine.gravity(&name, arguments, PATIENCE, console)
    }

    /// Waits until the status says that all is well with `count` nodes and each
    /// of `addresses` serves the page.
    fn wait_well(&mut self, count: usize, addresses: &[String]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let result = self.is_well(count, addresses);
            if result.is_ok() || Instant::now() >= deadline {
                return result.with_context(|| format!("{} is not well", self.name()));
            }
            thread::sleep(Duration::from_secs(2));
        }
    }

    fn is_well(&mut self, count: usize, addresses: &[String]) -> Result<()> {
        let status = format!("{IMAGE} status --output=json 2>&1 || true");
        let status = self.must(&status)?;
        check_status(&status)?;
        let nodes = status.matches("\"hostname\"").count();
        ensure!(nodes == count, "{nodes} nodes instead of {count}: {status}");
        for address in addresses {
            let page = self.must(&format!("curl -s -m 10 http://{address}:30080 || true"))?;
            ensure!(page == sample::PAGE, "{address} serves {page:?}");
        }
        Ok(())
    }
}

/// Runs all of it.
///
/// # Errors
/// At the first thing that is not as it should be.
pub fn run(setup: &Setup, console: &Console) -> Result<()> {
    let options = Options::of_node(setup.image(console)?, LIMIT);
    let timeline = Timeline::new(console);
    let done = |what: &str| timeline.tell(what);
    let disk = Disk::make(console)?;
    let (mut first, mut second) = on_both(
        || Member::boot(1, &disk, &options, console),
        || Member::boot(2, &disk, &options, console),
    )?;
    let addresses = [first.address(), second.address()];
    done("two machines are up");

    let install = format!(
        "install --advertise-addr={} --flavor=one --accept-eula --token-file={TOKEN} --ignore=disk-latency",
        first.address()
    );
    first.run(&install, console)?;
    first.wait_well(1, &addresses[..1])?;
    done("the first is a cluster");

    let join = format!(
        "join {} --token-file={TOKEN} --role={WORKER} --advertise-addr={} --ignore=disk-latency",
        first.address(),
        second.address()
    );
    second.run(&join, console)?;
    first.wait_well(2, &addresses)?;
    done("the second has joined");

    console.print(&first.must(LOOK)?);
    on_both(
        || first.machine.reboot(PATIENCE),
        || second.machine.reboot(PATIENCE),
    )?;
    done("both have been rebooted");
    first.wait_well(2, &addresses)?;
    done("the cluster is back by itself");

    first.must("kubectl create configmap written --from-literal=before=power-cut")?;
    on_both(
        || first.machine.cut_power(PATIENCE),
        || second.machine.cut_power(PATIENCE),
    )?;
    done("both have lost power and have it again");
    first.wait_well(2, &addresses)?;
    first.must("kubectl get configmap written")?;
    done("the cluster is back, with what was written before");

    for (member, left) in [(&mut second, 1), (&mut first, 0)] {
        member.run("leave --force --confirm", console)?;
        let units = member.must("systemctl list-units --all 'gravity*' --no-legend")?;
        ensure!(units.trim().is_empty(), "units are left: {units}");
        done(&format!("{left} nodes are left"));
    }
    Ok(())
}

/// Does both at the same time.
pub(super) fn on_both<A: Send, B>(
    first: impl FnOnce() -> Result<A> + Send,
    second: impl FnOnce() -> Result<B>,
) -> Result<(A, B)> {
    thread::scope(|scope| {
        let first = scope.spawn(first);
        let second = second();
        let first = first.join().map_err(|_| anyhow!("it panicked"))?;
        Ok((first?, second?))
    })
}
