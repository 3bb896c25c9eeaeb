//! PID 1 of the planet, and the process that holds a pod's namespaces.
//!
//! In: the supervisor's command as arguments, or none. Out: all zombies are
//! reaped; the supervisor is started again, later each time, when it dies; a
//! SIGTERM reaches it. The program ends when the supervisor ends with success,
//! and with it everything in the PID namespace. Without arguments, or called
//! as `pause`, it only waits for a signal.
//!
//! It never changes while the planet runs: keep it so small that it need not.

mod sys;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use sys::Signal;

/// First wait before the supervisor is started again; doubles each time.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A supervisor that lived so long was well: the wait starts over.
const WELL: Duration = Duration::from_secs(60);
/// How often a supervisor that does not stop is told again: it may have been
/// started a moment ago and not listen yet.
const REMIND: Duration = Duration::from_secs(1);
/// Attempts at an orderly stop, each by a new supervisor.
const STOP_ATTEMPTS: u32 = 3;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let command: Vec<_> = arguments.collect();
    sys::block_signals();
    if command.is_empty() || name.to_string_lossy().ends_with("pause") {
        return pause();
    }
    supervise(&command)
}

/// Reaps until it is told to end.
fn pause() -> ExitCode {
    loop {
        match sys::wait_signal(None) {
            Some(Signal::Stop) => return ExitCode::SUCCESS,
            _ => while sys::reap().is_some() {},
        }
    }
}

fn supervise(command: &[std::ffi::OsString]) -> ExitCode {
    let mut backoff = BACKOFF_MIN;
    let mut stopping = false;
    let mut attempts = 0;
    loop {
        let started = Instant::now();
        let failure = match sys::spawn(Command::new(&command[0]).args(&command[1..])) {
            Ok(child) => match wait_child(child, &mut stopping) {
                Ok(()) => return ExitCode::SUCCESS,
                Err(failure) => failure,
            },
            Err(error) => error.to_string(),
        };
        sys::log(&format!("planet-init: the supervisor ended: {failure}\n"));
        if stopping {
            attempts += 1;
            if attempts == STOP_ATTEMPTS {
                return ExitCode::FAILURE;
            }
        }
        if started.elapsed() > WELL {
            backoff = BACKOFF_MIN;
        }
        wait_backoff(backoff, &mut stopping);
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Waits for the supervisor, reaping everybody else. The error says how it
/// ended.
fn wait_child(child: i32, stopping: &mut bool) -> Result<(), String> {
    loop {
        match sys::wait_signal(stopping.then_some(REMIND)) {
            Some(Signal::Stop) => {
                *stopping = true;
                sys::terminate(child);
            }
            Some(Signal::Child) => {}
            None if *stopping => sys::terminate(child),
            // It was stopped or frozen, and goes on.
            None => {}
        }
        // Signals of one kind are not counted: reap all there are.
        let mut end = None;
        while let Some((pid, how)) = sys::reap() {
            if pid == child {
                end = Some(how);
            }
        }
        if let Some(how) = end {
            return how;
        }
    }
}

/// Waits before the next start; being told to stop ends the wait, as the
/// services that still run are the supervisor's to stop.
fn wait_backoff(backoff: Duration, stopping: &mut bool) {
    let until = Instant::now() + backoff;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        match sys::wait_signal(Some(left)) {
            Some(Signal::Stop) => {
                *stopping = true;
                return;
            }
            _ => while sys::reap().is_some() {},
        }
    }
}
