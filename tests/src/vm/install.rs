//! The sample in a machine of its own: installed under systemd, looked at, its
//! daemon killed, removed.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
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
    let options = Options::of_node(image, LIMIT);
    let mut machine = Machine::boot(&disk, &options, console)?;
    console.info(&format!(
        "It is up, {} from the start",
        render::duration(started.elapsed())
    ));
    machine.must(
        &format!("head -c {size} {SECOND_DISK} >{IMAGE} && chmod 755 {IMAGE}"),
        left(),
    )?;
    // Disks of test machines are what they are.
    let install = format!(
        "install --advertise-addr={ADDRESS} --flavor=one --accept-eula --ignore=disk-latency"
    );
    for command in [install.as_str(), "status"] {
        machine.gravity("machine", command, left(), console)?;
        console.info(&format!(
            "{} from the start",
            render::duration(started.elapsed())
        ));
    }
    check_services(&mut machine, left())?;
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
    machine.gravity("machine", "leave --force --confirm", left(), console)?;
    let units = machine.must("systemctl list-units --all 'gravity*' --no-legend", left())?;
    ensure!(units.trim().is_empty(), "units are left: {units}");
    console.info(&format!(
        "All is well, {}",
        render::duration(started.elapsed())
    ));
    Ok(())
}

/// Whether systemd has started operation and agent as services of their own.
fn check_services(machine: &mut Machine, limit: Duration) -> Result<()> {
    for unit in ["gravity-operation", "gravity-agent"] {
        let started = format!("journalctl --unit={unit} --output=cat | grep '^Started'");
        machine.must(&started, limit)?;
    }
    Ok(())
}
