//! The crash matrix: an install, or a `leave`, is hit at one of its records and
//! then gone on with, or taken back.
//!
//! In: a cluster image and a shard. Out: a line a cell, and their count. A cell
//! is what is hit (the process that runs the operation, the agent, both, the
//! supervisor, the planet with all in it, the disk), at which record of the operation's journal, and how
//! it ends. A cell that is gone on with must give the objects and the hook runs
//! of an undisturbed install; one that is taken back, the node as it was.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use console::{Console, render};

use crate::faults::{FLAVOR, IMAGE, RESUMABLE, STATE, Said, Setup};

/// Events of an operation that follow a record in its journal, as a pattern of
/// the shell.
const RECORD: &str = "*/*' in progress: '*|*/*' completed: '*";
/// Size of the disk that is filled, in MB: the install fits.
const DISK: u32 = 3400;

/// One part of several: `2/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    number: usize,
    of: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no part such as 1/8");
        let (number, of) = text.split_once('/').ok_or_else(wrong)?;
        let shard = Self {
            number: number.parse().map_err(|_| wrong())?,
            of: of.parse().map_err(|_| wrong())?,
        };
        match (1..=shard.of).contains(&shard.number) {
            true => Ok(shard),
            false => Err(wrong()),
        }
    }
}

impl Shard {
    fn holds(self, index: usize) -> bool {
        index % self.of == self.number - 1
    }
}

/// What is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hit {
    Operation,
    Agent,
    Both,
    Supervisor,
    Planet,
    Disk,
}

impl Hit {
    const ALL: [Self; 6] = [
        Self::Operation,
        Self::Agent,
        Self::Both,
        Self::Supervisor,
        Self::Planet,
        Self::Disk,
    ];

    /// How, in words of the shell. It must not fail where there is none yet.
    fn script(self) -> String {
        let kill = |locks: &[&str]| {
            let files: Vec<_> = locks
                .iter()
                .map(|lock| format!("{STATE}/{lock}.lock"))
                .collect();
            format!("kill -9 $(cat {} 2>/dev/null) 2>/dev/null", files.join(" "))
        };
        match self {
            Self::Operation => kill(&["operation"]),
            Self::Agent => kill(&["agent"]),
            Self::Both => kill(&["operation", "agent"]),
            // Process 1 of the planet has the supervisor's command in its arguments.
            Self::Supervisor => kill_program("/opt/gravity/bin/gravity planet supervise"),
            Self::Planet => kill_program("/usr/local/bin/planet-init"),
            Self::Disk => format!(
                "free=$(df -B1 --output=avail {STATE} | tail -n 1); \
                 fallocate -l $((free - 4194304)) {STATE}/filler; \
                 dd if=/dev/zero of={STATE}/filler2 bs=64K 2>/dev/null"
            ),
        }
    }
}

impl fmt::Display for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operation => "kill the operation",
            Self::Agent => "kill the agent",
            Self::Both => "kill operation and agent",
            Self::Supervisor => "kill the supervisor",
            Self::Planet => "kill the planet",
            Self::Disk => "fill the disk",
        })
    }
}

/// Kills what runs with a command line that begins so, in words of the shell.
pub(crate) fn kill_program(command: &str) -> String {
    format!(
        "for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' 2>/dev/null <$p/cmdline)\" in \
         '{command}'*) kill -9 ${{p#/proc/}} && echo KILLED;; esac; done; true"
    )
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Resume,
    Rollback,
    Leave,
}

/// One cell of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    Install {
        hit: Hit,
        record: usize,
        end: End,
    },
    /// `leave` of a whole cluster, killed at a line of its output.
    Leave {
        line: usize,
    },
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Install { hit, record, end } => {
                let end = match end {
                    End::Resume => "resume",
                    End::Rollback => "roll back",
                    End::Leave => "leave",
                };
                write!(f, "install: {hit} at record {record}, {end}")
            }
            Self::Leave { line } => write!(f, "leave: kill it at line {line}, leave"),
        }
    }
}

/// All cells of an install with so many records and a `leave` with so many lines.
fn cells(records: usize, lines: usize) -> Vec<Cell> {
    let ends = [End::Resume, End::Rollback, End::Leave];
    let mut cells = Vec::new();
    for record in 1..=records {
        for hit in Hit::ALL {
            for end in ends {
                cells.push(Cell::Install { hit, record, end });
            }
        }
    }
    cells.extend((1..=lines).map(|line| Cell::Leave { line }));
    cells
}

/// What an undisturbed install and `leave` were like.
struct Reference {
    records: usize,
    lines: usize,
    cluster: String,
}

/// Runs the cells of a shard. Says whether all ended well.
///
/// # Errors
/// When the node can't be made or an undisturbed install fails.
pub fn run(image: &Path, shard: Shard, console: &Console) -> Result<bool> {
    let setup = Setup::new("crash", "10.99.0.51/24", image, console)?;
    let reference = undisturbed(&setup).context("an undisturbed install")?;
    let all = cells(reference.records, reference.lines);
    let chosen: Vec<_> = all
        .iter()
        .enumerate()
        .filter(|(index, _)| shard.holds(*index))
        .collect();
    let mut bad = 0;
    for (index, cell) in &chosen {
        let started = Instant::now();
        let result = run_cell(&setup, &reference, **cell);
        let took = render::duration(started.elapsed());
        match result {
            Ok(()) => console.print(&format!("ok {index} {cell} ({took})")),
            Err(error) => {
                bad += 1;
                console.print(&format!("FAILED {index} {cell} ({took}): {error:#}"));
                tidy(&setup);
            }
        }
    }
    console.print(&format!(
        "{} of {} cells, {bad} ended badly",
        chosen.len(),
        all.len()
    ));
    Ok(bad == 0)
}

fn install(setup: &Setup, at: usize, then: &str) -> Result<(bool, Said)> {
    at_line(
        setup,
        &format!(
            "install --accept-eula {FLAVOR} --advertise-addr={}",
            setup.node.address()
        ),
        RECORD,
        at,
        then,
    )
}

/// Runs a command of `gravity` and does `then` at one of its lines of a
/// pattern, counted from 1. Whether there was that line.
fn at_line(
    setup: &Setup,
    command: &str,
    pattern: &str,
    at: usize,
    then: &str,
) -> Result<(bool, Said)> {
    let script = format!(
        "{{ {IMAGE} {command} 2>&1; echo exit $?; }} | {{ n=0; while IFS= read -r line; do \
           echo \"$line\"; \
           case \"$line\" in {pattern}) n=$((n+1)); [ $n = {at} ] && {{ {then}; echo REACHED; }};; esac; \
         done; true; }}"
    );
    let said = setup.shell(&script)?;
    let reached = said.text.lines().any(|line| line == "REACHED");
    let code = said
        .text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("exit "))
        .and_then(|code| code.parse().ok());
    Ok((
        reached,
        Said {
            code: code.unwrap_or(said.code),
            ..said
        },
    ))
}

fn undisturbed(setup: &Setup) -> Result<Reference> {
    let (_, said) = install(setup, 0, ":")?;
    let said = said.expect(0, &["is active"])?;
    let records = said
        .text
        .lines()
        .filter(|line| line.contains(" in progress: ") || line.contains(" completed: "))
        .count();
    ensure!(records > 0, "no records were told: {}", said.text);
    setup.is_active()?;
    let cluster = cluster(setup)?;
    let left = setup.leave()?.expect(0, &[])?;
    setup.is_untouched()?;
    Ok(Reference {
        records,
        lines: left.text.lines().count(),
        cluster,
    })
}

/// What is in the cluster, without what differs from install to install: names
/// of objects, and how often each hook ran.
fn cluster(setup: &Setup) -> Result<String> {
    let objects = "kubectl get nodes,namespaces,deployments,daemonsets,statefulsets,services,configmaps,\
        serviceaccounts,clusterroles,clusterrolebindings,persistentvolumeclaims \
        --all-namespaces --output=name | sort && \
        kubectl get jobs --all-namespaces --sort-by=.metadata.creationTimestamp \
        --output='jsonpath={range .items[*]}{.metadata.labels.gravitational\\.io/hook} \
        {.status.succeeded} {.status.failed}{\"\\n\"}{end}'";
    Ok(setup.shell(objects)?.expect(0, &["node/"])?.text)
}

fn run_cell(setup: &Setup, reference: &Reference, cell: Cell) -> Result<()> {
    match cell {
        Cell::Leave { line } => {
            let (_, said) = install(setup, 0, ":")?;
            said.expect(0, &["is active"])?;
            let kill = format!("kill -9 $(cat {STATE}/operation.lock 2>/dev/null) 2>/dev/null");
            at_line(setup, "leave --force --confirm", "*", line, &kill)?;
            // It may have been done already.
            if setup.shell(&format!("test -e {STATE}"))?.code == 0 {
                setup.leave()?.expect(0, &[])?;
            }
            setup.is_untouched()
        }
        Cell::Install { hit, record, end } => {
            if hit == Hit::Disk {
                let mount =
                    format!("mkdir -p {STATE} && mount -t tmpfs -o size={DISK}M disk {STATE}");
                setup.shell(&mount)?.expect(0, &[])?;
            }
            let (reached, said) = install(setup, record, &hit.script())?;
            ensure!(reached, "there was no such record: {}", said.text);
            ensure!(
                matches!(said.code, 0 | RESUMABLE),
                "exit code {}: {}",
                said.code,
                said.text
            );
            let is_done = said.code == 0;
            if hit == Hit::Disk && end == End::Resume {
                free(setup)?;
            }
            match end {
                End::Resume => {
                    if !is_done {
                        setup.said(&[IMAGE, "resume"])?.expect(0, &["is active"])?;
                    }
                    setup.is_active()?;
                    let found = cluster(setup)?;
                    ensure!(
                        found == reference.cluster,
                        "the cluster differs: {found} instead of {}",
                        reference.cluster
                    );
                    setup.leave()?.expect(0, &[])?;
                }
                End::Rollback if !is_done => {
                    setup
                        .said(&[IMAGE, "rollback", "--confirm"])?
                        .expect(0, &[])?;
                }
                End::Rollback | End::Leave => {
                    setup.leave()?.expect(0, &[])?;
                }
            }
            if hit == Hit::Disk {
                let said = setup.shell(&format!("ls -A {STATE}"))?;
                ensure!(
                    said.text.trim().is_empty(),
                    "something is left: {}",
                    said.text
                );
                unmount(setup)?;
            }
            setup.is_untouched()
        }
    }
}

fn free(setup: &Setup) -> Result<()> {
    setup
        .shell(&format!("rm -f {STATE}/filler {STATE}/filler2"))?
        .expect(0, &[])
        .map(drop)
}

fn unmount(setup: &Setup) -> Result<()> {
    let script = format!("umount {STATE} && rmdir {STATE} && rm -rf /run/mount");
    match setup.shell(&script)?.code {
        0 => Ok(()),
        code => bail!("unmounting ended with {code}"),
    }
}

/// After a bad end: the next cell begins with a clean node again.
fn tidy(setup: &Setup) {
    // What goes on in the background is in the way of `leave`.
    drop(setup.shell(&Hit::Both.script()));
    drop(setup.leave());
    drop(setup.shell(&format!(
        "if mountpoint -q {STATE}; then rm -rf {STATE}/*; umount -l {STATE}; rmdir {STATE}; rm -rf /run/mount; fi"
    )));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_in_exactly_one_shard() {
        let all = cells(28, 20);
        assert_eq!(all.len(), 28 * 6 * 3 + 20);
        let held = |index: usize| {
            (1..=8)
                .filter(|number| {
                    Shard {
                        number: *number,
                        of: 8,
                    }
                    .holds(index)
                })
                .count()
        };
        assert!((0..all.len()).all(|index| held(index) == 1));
        for text in ["", "1", "0/8", "9/8", "a/b", "1/0"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
        assert_eq!("2/8".parse(), Ok(Shard { number: 2, of: 8 }));
    }
}
