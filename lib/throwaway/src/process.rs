//! Programs and processes of the machine.
//!
//! In: commands. Out: their output, or an error with what they said. A process
//! is known by its id and start time, so that it is not mistaken for a later
//! one with its id.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process that can be found again by another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
}

impl ProcessId {
    /// The process that has this number now.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: i32) -> Result<Self> {
        let (_, started) = stat(pid).with_context(|| format!("process {pid} does not exist"))?;
        Ok(Self { pid, started })
    }

    /// Whether it still runs; a zombie does not.
    #[must_use]
    pub fn is_running(self) -> bool {
        stat(self.pid).is_some_and(|(state, started)| state != 'Z' && started == self.started)
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    /// When it does not end in `timeout`.
    pub fn kill(self, timeout: Duration) -> Result<()> {
        if self.is_running() {
            kill(Pid::from_raw(self.pid), Signal::SIGKILL)
                .with_context(|| format!("killing process {}", self.pid))?;
        }
        if !wait_until(timeout, || !self.is_running()) {
            bail!(
                "process {} did not end in {timeout:?} after SIGKILL",
                self.pid
            );
        }
        Ok(())
    }
}

/// State and start time of a process.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, parentheses and spaces too.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    // Start time is field 22, state is field 3.
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Asks `done` again and again until it holds or `timeout` is over.
pub fn wait_until(timeout: Duration, mut done: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + timeout;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Output of a command that succeeds.
///
/// # Errors
/// When it can't be started or fails: then with what it said.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    check(command, output)
}

/// [`run`] with `input` as its standard input, which must fit a pipe's buffer
/// or be read before the command writes much.
///
/// # Errors
/// See [`run`].
pub fn run_with_input(command: &mut Command, input: &str) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(input.as_bytes())
            .with_context(|| format!("writing to {command:?}"))?;
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("waiting for {command:?}"))?;
    check(command, output)
}

fn check(command: &Command, output: Output) -> Result<Output> {
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(output)
}

/// Standard output of a command that succeeds, as text.
///
/// # Errors
/// See [`run`].
pub fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&run(command)?.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let own = ProcessId::of(std::process::id().cast_signed()).unwrap();
        assert!(own.is_running());
        assert!(
            !ProcessId {
                started: own.started + 1,
                ..own
            }
            .is_running()
        );
    }

    #[test]
    fn a_killed_process_does_not_run() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id().cast_signed()).unwrap();
        id.kill(Duration::from_secs(10)).unwrap();
        assert!(!id.is_running());
        child.wait().unwrap();
        assert!(ProcessId::of(child.id().cast_signed()).is_err());
    }

    #[test]
    fn a_failed_command_says_why() {
        let error = run(Command::new("sh").args(["-c", "echo because >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("because") && text.contains('3'), "{text}");
    }
}
