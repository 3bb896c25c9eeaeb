//! The sample in a machine of its own: installed under systemd, looked at, its
//! daemon killed, removed.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use console::{Console, render};
use event::Sink;

use super::{ADDRESS, Disk, Machine, Options, SECOND_DISK};
use crate::sample;
use crate::scenario::{IMAGE, Setup, check_status};

/// How long the whole of it may take.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// Installs the sample in a virtual machine with systemd and cgroup v2, checks
/// it and removes it.
///
/// # Errors
/// At the first check that fails, or after 25 minutes.
pub fn run(setup: &Setup, console: &Console) -> Result<()> {
    let started = Instant::now();
    let left = || LIMIT.saturating_sub(started.elapsed());
    let image = setup.image(console)?;
    let size = fs::metadata(&image)
        .with_context(|| image.display().to_string())?
        .len();
    let disk = Disk::make(console)?;
    let options = Options {
        processors: 2,
        memory: 4096,
        second_disk: Some(image),
        slow_disk: false,
        link: None,
        limit: LIMIT,
    };
    let mut machine = Machine::boot(&disk, &options, console)?;
    console.info(&format!(
        "It is up, {} from the start",
        render::duration(started.elapsed())
    ));
    machine.must(
        &format!("head -c {size} {SECOND_DISK} >{IMAGE} && chmod 755 {IMAGE}"),
        left(),
    )?;
    let mut show = |text: &str| {
        for line in text.lines().filter(|line| !line.is_empty()) {
            console.print(&format!("machine: {}", render::sanitize(line)));
        }
    };
    let address = ADDRESS;
    for (command, wanted) in [
        (
            format!("install --advertise-addr={address} --flavor=one --accept-eula"),
            "installed",
        ),
        ("status".to_owned(), "showed its status"),
    ] {
        console.step(&format!("./gravity {command}"));
        // The port looks like a terminal to programs.
        let whole = format!("TERM=dumb {IMAGE} {command}");
        let (code, _) = machine.run(&whole, left(), &mut show)?;
        if code != 0 {
            // The machine does not stay to be looked at.
            let _ = machine.run("tail -n 20 /var/lib/gravity/log/*.log", left(), &mut show);
            bail!("./gravity {command} ended with {code}");
        }
        console.info(&format!(
            "It {wanted}, {} from the start",
            render::duration(started.elapsed())
        ));
    }
    let status = machine.must(&format!("{IMAGE} status --output json"), left())?;
    let url = check_status(&status)?;
    let page = machine.must(&format!("curl -sS --fail -m 20 {url}"), left())?;
    ensure!(
        page == sample::PAGE,
        "{url} does not serve the page: {page}"
    );
    console.step("Killing the daemon");
    let killed = Instant::now();
    machine.must(
        "systemctl kill --signal=KILL --kill-who=main gravity.service",
        left(),
    )?;
    let back = format!(
        "sleep 10; until {IMAGE} status >/dev/null 2>&1 && curl -s --fail -m 20 {url}; do sleep 2; done"
    );
    let page = machine.must(&back, left())?;
    ensure!(
        page == sample::PAGE,
        "{url} does not serve the page any more: {page}"
    );
    console.info(&format!(
        "The cluster is back {} after it",
        render::duration(killed.elapsed())
    ));
    console.step("./gravity leave");
    let leave = format!("TERM=dumb {IMAGE} leave --force --confirm");
    let (code, _) = machine.run(&leave, left(), &mut show)?;
    ensure!(code == 0, "{leave} ended with {code}");
    let units = machine.must("systemctl list-units --all 'gravity*' --no-legend", left())?;
    ensure!(units.trim().is_empty(), "units are left: {units}");
    console.info(&format!(
        "All is well, {}",
        render::duration(started.elapsed())
    ));
    Ok(())
}
