//! Machines that are nodes of one cluster.
//!
//! In: the cluster image, a number. Out: a machine with a name, an address on the
//! machines' own Ethernet, the image, and the token that they know each other by.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use console::Console;

use super::{Disk, Kept, Link, Machine, Options, SECOND_DISK};
use crate::join::WORKER;
use crate::sample;
use crate::scenario::{IMAGE, Setup, check_status};

/// How long all of it may take, under emulation.
const LIMIT: Duration = Duration::from_secs(90 * 60);
/// How long one step may take, beside other work.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
/// What an install of the sample needs beside.
pub(super) const FLAVOR: &str = "--flavor=one --accept-eula";
/// File of the token.
const TOKEN: &str = "/root/token";

/// How they are to be.
pub(super) fn options(setup: &Setup, kept: &Kept, console: &Console) -> Result<Options> {
    Ok(Options {
        kept: Some(kept.clone()),
        ..Options::of_node(setup.image(console)?, LIMIT)
    })
}

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

    /// Boots the first ones, all at the same time.
    pub(super) fn boot_first<const N: usize>(
        disk: &Disk,
        options: &Options,
        console: &Console,
    ) -> Result<[Self; N]> {
        let booted: Vec<_> = thread::scope(|scope| {
            let boot = |number| scope.spawn(move || Self::boot(number, disk, options, console));
            let threads: Vec<_> = (1..).take(N).map(boot).collect();
            let ended = threads.into_iter().map(|thread| thread.join());
            ended
                .map(|result| result.map_err(|_| anyhow!("it panicked"))?)
                .collect::<Result<_>>()
        })?;
        booted
            .try_into()
            .map_err(|_| anyhow!("not all have booted"))
    }

    /// Keeps what it is like.
    pub(super) fn keep(&mut self) {
        self.machine.keep();
    }

    /// Ends it; all was well.
    pub(super) fn end(self) {
        self.machine.end();
    }

    pub(super) fn name(&self) -> String {
        format!("machine-{}", self.link.number)
    }

    pub(super) fn address(&self) -> String {
        format!("10.98.0.{}", self.link.number)
    }

    /// Arguments of an install on it.
    pub(super) fn install(&self) -> String {
        let address = self.address();
        format!("install --advertise-addr={address} --token-file={TOKEN} --ignore=disk-latency")
    }

    /// Arguments with which it joins the cluster of another one, as a worker.
    pub(super) fn join(&mut self, master: &mut Self) -> Result<String> {
        self.join_as(WORKER, master)
    }

    /// Arguments with which it joins with another profile. Both are told the time: the
    /// join compares their clocks.
    pub(super) fn join_as(&mut self, profile: &str, master: &mut Self) -> Result<String> {
        for member in [&mut *self, &mut *master] {
            member.machine.tell_time(PATIENCE)?;
        }
        Ok(format!(
            "join {} --advertise-addr={} --role={profile} --token-file={TOKEN} \
             --ignore=disk-latency",
            master.address(),
            self.address()
        ))
    }

    pub(super) fn reboot(&mut self) -> Result<()> {
        self.machine.reboot(PATIENCE)
    }

    pub(super) fn cut_power(&mut self) -> Result<()> {
        self.machine.cut_power(PATIENCE)
    }

    pub(super) fn freeze(&mut self) -> Result<()> {
        self.machine.freeze(PATIENCE)
    }

    pub(super) fn restore(&mut self) -> Result<()> {
        self.machine.restore(PATIENCE)
    }

    pub(super) fn unplug_link(&mut self) -> Result<()> {
        self.machine.unplug_link(PATIENCE)
    }

    /// Plugs in its link, and waits until it has its address again.
    pub(super) fn plug_link(&mut self) -> Result<()> {
        self.machine.plug_link(PATIENCE)?;
        let address = self.address();
        self.must(&format!(
            "until ip -4 address | grep -q {address}/; do sleep 1; done"
        ))
        .map(drop)
    }

    /// See [`Machine::begin`].
    pub(super) fn begin(
        &mut self,
        arguments: &str,
        until: (u32, &str),
        most: Option<Duration>,
    ) -> Result<()> {
        self.machine.begin(arguments, until, most, PATIENCE)
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        self.machine.finish(PATIENCE)
    }

    pub(super) fn plug_disk(&mut self) -> Result<()> {
        self.machine.plug_disk(PATIENCE)
    }

    pub(super) fn must(&mut self, command: &str) -> Result<String> {
        self.machine.must(command, PATIENCE)
    }

    /// Runs the image. Returns its exit code and what it said.
    pub(super) fn said(&mut self, arguments: &str) -> Result<(i32, String)> {
        let command = format!("TERM=dumb {IMAGE} {arguments} 2>&1");
        self.machine.run(&command, PATIENCE, &mut |_| {})
    }

    /// What its status says, as JSON.
    pub(super) fn status(&mut self) -> Result<String> {
        self.said("status --output=json").map(|said| said.1)
    }

    /// Runs the image, shows what it says; it must succeed.
    pub(super) fn run(&mut self, arguments: &str, console: &Console) -> Result<()> {
        let name = self.name();
        self.machine.gravity(&name, arguments, PATIENCE, console)
    }

    /// Waits until the status says that all is well with `count` nodes and each
    /// of `addresses` serves the page.
    pub(super) fn wait_well(&mut self, count: usize, addresses: &[String]) -> Result<()> {
        self.wait("all is well", |member| member.is_well(count, addresses))
    }

    /// Waits until the status says this.
    pub(super) fn wait_told(&mut self, words: &str) -> Result<()> {
        self.wait(&format!("the status says {words:?}"), |member| {
            let status = member.status()?;
            ensure!(status.contains(words), "it says {status}");
            Ok(())
        })
    }

    fn wait(&mut self, what: &str, mut seen: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let result = seen(self);
            if result.is_ok() || Instant::now() >= deadline {
                return result.with_context(|| format!("{}: waiting until {what}", self.name()));
            }
            thread::sleep(Duration::from_secs(2));
        }
    }

    /// Leaves its cluster, and demands that no unit is left.
    pub(super) fn leave(&mut self, console: &Console) -> Result<()> {
        self.run("leave --force --confirm", console)?;
        let units = self.must("systemctl list-units --all 'gravity*' --no-legend")?;
        ensure!(units.trim().is_empty(), "units are left: {units}");
        Ok(())
    }

    fn is_well(&mut self, count: usize, addresses: &[String]) -> Result<()> {
        let status = self.status()?;
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
