//! Runs a command inside the planet.
//!
//! In: PID 1 of the container as the host sees it, a command and its
//! environment. Out: its exit code; standard input, output and error are ours.
//! It forks, so it belongs into a process with one thread.

use std::ffi::{CString, OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::{Context, Error, Result};
use crate::paths::PATH;
use crate::sys::{self, Fork, SingleThread};

/// Runs `argv` inside and waits for it. `env` is its whole environment beside
/// `PATH` and `HOME`; with `tty`, `TERM` comes along. Returns its exit code,
/// 128 and the number for a signal.
///
/// # Errors
/// When the container is gone or the program can't be executed.
pub fn exec(pid: i32, argv: &[OsString], env: &[(String, String)], tty: bool) -> Result<i32> {
    // Asked now: once inside, our own process can't be seen.
    let single = SingleThread::check().on("fork")?;
    let process = sys::pidfd_open(Pid::from_raw(pid))
        .map_err(|error| Error::NotRunning(format!("process {pid}: {error}")))?;
    let command = command(argv)?;
    let environment = environment(env, tty)?;
    let (mut reason, mut writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map(|(reader, writer)| (std::fs::File::from(reader), std::fs::File::from(writer)))
        .on("make a pipe")?;
    setns(
        &process,
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .on("enter the planet")?;
    match sys::fork(&single).on("fork")? {
        Fork::Child => {
            let error = match execute(&command, &environment) {
                Err(error) => error,
                Ok(never) => match never {},
            };
            drop(write!(writer, "{error}"));
            std::process::exit(127);
        }
        Fork::Parent(child) => {
            drop(writer);
            let mut text = String::new();
            ignore_terminal();
            reason
                .read_to_string(&mut text)
                .on("read from the command")?;
            let code = wait(child)?;
            if text.is_empty() {
                Ok(code)
            } else {
                Err(Error::Start(text))
            }
        }
    }
}

fn command(argv: &[OsString]) -> Result<Vec<CString>> {
    if argv.is_empty() {
        return Err(Error::Start("no command".into()));
    }
    argv.iter().map(|word| c_string(word)).collect()
}

fn environment(env: &[(String, String)], tty: bool) -> Result<Vec<CString>> {
    let mut all = vec![format!("PATH={PATH}"), "HOME=/root".to_owned()];
    if tty && let Ok(term) = std::env::var("TERM") {
        all.push(format!("TERM={term}"));
    }
    all.extend(env.iter().map(|(key, value)| format!("{key}={value}")));
    all.iter().map(|text| c_string(OsStr::new(text))).collect()
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| Error::Start(format!("{} contains a NUL byte", text.display())))
}

fn execute(command: &[CString], environment: &[CString]) -> Result<std::convert::Infallible> {
    std::env::set_current_dir("/").at("change to", "/")?;
    SigSet::empty().thread_set_mask().on("unblock signals")?;
    sys::handle(Signal::SIGPIPE, SigHandler::SigDfl);
    // Tried by hand: `execvpe` would search the PATH of the host's environment.
    let name = OsStr::from_bytes(command[0].as_bytes());
    if name.as_bytes().contains(&b'/') {
        return nix::unistd::execve(&command[0], command, environment).at("execute", name);
    }
    for directory in PATH.split(':') {
        let path = c_string(std::path::Path::new(directory).join(name).as_os_str())?;
        match nix::unistd::execve(&path, command, environment) {
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => {}
            result => return result.at("execute", name),
        }
    }
    Err(nix::errno::Errno::ENOENT).at("execute", name)
}

/// Keys on the terminal are the command's; a SIGTERM ends both of us.
fn ignore_terminal() {
    for name in [Signal::SIGINT, Signal::SIGQUIT] {
        sys::handle(name, SigHandler::SigIgn);
    }
}

fn wait(child: Pid) -> Result<i32> {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).on("wait for the command"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_without_an_end_are_refused() {
        assert!(command(&[]).is_err());
        assert!(command(&["a\0b".into()]).is_err());
        assert!(environment(&[("A".into(), "b\0".into())], false).is_err());
    }

    #[test]
    fn threads_are_noticed() {
        // The test harness has some.
        assert!(exec(1, &["true".into()], &[], false).is_err());
    }
}
