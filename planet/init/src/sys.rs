//! The few calls to the kernel, safe for the rest of the program.
#![expect(
    unsafe_code,
    reason = "signals and waitpid have no safe form in the standard library"
)]

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// What woke us.
pub(crate) enum Signal {
    /// SIGTERM, SIGINT or SIGQUIT.
    Stop,
    /// A child ended.
    Child,
}

fn set() -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set that the zeroed memory is for;
    // a signal set is plain integers, for which zero is valid.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGCHLD] {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

/// Holds signals back until [`wait_signal`] asks for them.
pub(crate) fn block_signals() {
    let set = set();
    // SAFETY: the set is initialised and outlives the call; no old mask is asked for.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

/// Starts a program that gets its signals at once, unlike us.
pub(crate) fn spawn(command: &mut Command) -> std::io::Result<i32> {
    let set = set();
    let unblock = move || {
        // SAFETY: the set is initialised and outlives the call, which is
        // async-signal-safe; no old mask is asked for.
        match unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) }
        {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call on memory from before the fork.
    unsafe { command.pre_exec(unblock) };
    // It is waited for with all others, by `reap`.
    command.spawn().map(|child| child.id().cast_signed())
}

/// Waits for a signal, for ever or until the time is over.
pub(crate) fn wait_signal(timeout: Option<Duration>) -> Option<Signal> {
    let set = set();
    let time = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().cast_signed(),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: set and time outlive the call; null means no timeout and no details.
    match unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), time) } {
        libc::SIGCHLD => Some(Signal::Child),
        signal if signal > 0 => Some(Signal::Stop),
        _ => None,
    }
}

/// Reaps one ended child, if there is one, and says how it ended.
pub(crate) fn reap() -> Option<(i32, Result<(), String>)> {
    let mut status = 0;
    // SAFETY: status is a valid place for the result.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let how = if libc::WIFSIGNALED(status) {
        Err(format!("signal {}", libc::WTERMSIG(status)))
    } else {
        match libc::WEXITSTATUS(status) {
            0 => Ok(()),
            code => Err(format!("exit code {code}")),
        }
    };
    Some((pid, how))
}

/// Sends SIGTERM to a child that is not reaped yet.
pub(crate) fn terminate(child: i32) {
    // SAFETY: plain call; the child is ours and not reaped, so the id is its own.
    unsafe { libc::kill(child, libc::SIGTERM) };
}

/// Writes a line to standard error, which may be closed.
pub(crate) fn log(line: &str) {
    // SAFETY: pointer and length are of one string.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
}
