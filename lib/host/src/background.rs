//! This program once more, as a process that goes on without whoever starts it.
//!
//! In: arguments, a log. Out: a process. Under systemd it is a service of its own:
//! a child would end with the login or the service of its caller, as logind's
//! `KillUserProcesses` and the stop of a unit end all that is in their group.
//! Elsewhere, and where systemd refuses it, it is a child that has to make a
//! session of its own.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::command::{self, Cmd, CommandError};
use crate::facts;

/// How long the last service of the name may take to go away.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks whether it has gone.
const PAUSE: Duration = Duration::from_millis(50);
/// What is passed on of the caller's environment, beside a PATH that lacks nothing.
/// All users may read it of a service.
const ENVIRONMENT: [&str; 2] = ["TMPDIR", "GRAVITY_LOG"];

/// What is to be started.
#[derive(Debug, Clone)]
pub struct Background {
    /// Name of the service, such as `gravity-agent`. One at a time has it.
    pub name: &'static str,
    /// What it is, for people.
    pub description: &'static str,
    /// Arguments of this program. All users may read them.
    pub arguments: Vec<OsString>,
    /// Where its output is appended.
    pub log: PathBuf,
}

/// A process that was started.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    child: Option<Child>,
    refused: Option<String>,
}

impl Process {
    /// Its id; zero where a service has ended already.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Why it is a child, where it should be a service.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// How it ended, where it did.
    ///
    /// # Errors
    /// When a child can't be waited for.
    pub fn ended(&mut self) -> std::io::Result<Option<String>> {
        if let Some(child) = &mut self.child {
            return Ok(child.try_wait()?.map(|status| status.to_string()));
        }
        let pid = i32::try_from(self.pid).unwrap_or_default();
        let gone = pid <= 0 || kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH);
        Ok(gone.then(|| "its service is inactive".to_owned()))
    }
}

impl Background {
    /// Starts it. Takes some seconds where its predecessor is about to end.
    ///
    /// # Errors
    /// When it can't be started in any way.
    pub fn start(&self) -> std::io::Result<Process> {
        let log = self.open_log()?;
        let refused = match facts::has_systemd().then(|| self.start_service()) {
            Some(Ok(pid)) => {
                return Ok(Process {
                    pid,
                    child: None,
                    refused: None,
                });
            }
            Some(Err(error)) => Some(error.to_string()),
            None => None,
        };
        let child = self.start_child(log)?;
        Ok(Process {
            pid: child.id(),
            child: Some(child),
            refused,
        })
    }

    /// Opens the log, which a service finds made: systemd would make it for all to read.
    fn open_log(&self) -> std::io::Result<File> {
        File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.log)
    }

    fn start_child(&self, log: File) -> std::io::Result<Child> {
        Command::new("/proc/self/exe")
            .args(&self.arguments)
            .env("PATH", command::search_path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir("/")
            .spawn()
    }

    fn start_service(&self) -> Result<u32, CommandError> {
        let start = |source| CommandError::Start {
            what: format!("start {}", self.unit()),
            program: "/proc/self/exe".into(),
            source,
        };
        let program = std::env::current_exe().map_err(start)?;
        let passed = ENVIRONMENT.into_iter();
        let passed = passed.filter_map(|name| Some((name, std::env::var_os(name)?)));
        let environment: Vec<_> = std::iter::once(("PATH", command::search_path()))
            .chain(passed)
            .collect();
        self.wait_until_free()?;
        Cmd::new("systemd-run")
            .args(self.service(&program, &environment))
            .describe(format!("start {}", self.unit()))
            .run()?;
        Ok(self.show("MainPID")?.parse().unwrap_or_default())
    }

    fn unit(&self) -> String {
        format!("{}.service", self.name)
    }

    /// Waits for the end of a service of the same name, and forgets one that failed.
    fn wait_until_free(&self) -> Result<(), CommandError> {
        let deadline = Instant::now() + PATIENCE;
        while self.show("LoadState")? != "not-found" && Instant::now() < deadline {
            let forget = Cmd::new("systemctl").args(["reset-failed", &self.unit()]);
            // It may not have failed, or have gone meanwhile.
            drop(forget.run());
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn show(&self, property: &str) -> Result<String, CommandError> {
        let shown = Cmd::new("systemctl")
            .args(["show", "--value", "--property", property, &self.unit()])
            .run()?;
        Ok(shown.stdout.trim().to_owned())
    }

    /// Arguments of `systemd-run` that start `program` as a service.
    fn service(&self, program: &Path, environment: &[(&str, OsString)]) -> Vec<OsString> {
        let mut words: Vec<OsString> = [
            "--quiet",
            "--collect",
            // Returns when the program runs, or can't be run.
            "--service-type=exec",
            // What a dead process leaves behind doesn't go on beside its successor.
            "--property=KillMode=mixed",
            // A program that it runs and that takes too much memory ends alone.
            "--property=OOMPolicy=continue",
            // A host that shuts down doesn't wait for a step: it may end anywhere.
            "--property=TimeoutStopSec=10s",
            "--property=OOMScoreAdjust=-500",
            "--property=StandardError=inherit",
        ]
        .map(OsString::from)
        .into();
        words.push(joined("--unit=", self.unit()));
        words.push(joined("--description=", self.description));
        words.push(joined("--property=StandardOutput=append:", &self.log));
        for (name, value) in environment {
            words.push(joined(&format!("--setenv={name}="), value));
        }
        words.push("--".into());
        words.push(program.into());
        words.extend(self.arguments.iter().map(|argument| literal(argument)));
        words
    }
}

fn joined(front: &str, back: impl AsRef<OsStr>) -> OsString {
    let mut word = OsString::from(front);
    word.push(back);
    word
}

/// An argument in which systemd replaces no variables.
fn literal(argument: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = argument.as_bytes().iter();
    let bytes = bytes.flat_map(|byte| match byte {
        b'$' => vec![b'$', b'$'],
        byte => vec![*byte],
    });
    OsString::from_vec(bytes.collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn background(log: PathBuf, arguments: &[&str]) -> Background {
        Background {
            name: "gravity-agent",
            description: "Gravity: what runs",
            arguments: arguments.iter().map(OsString::from).collect(),
            log,
        }
    }

    #[test]
    fn a_service_has_its_own_name_log_and_arguments_as_they_are() {
        let background = background("/state/a $b.log".into(), &["agent", "run", "/x/${y} %z"]);
        let environment = [("PATH", OsString::from("/sbin:/bin"))];
        assert_eq!(
            background.service(Path::new("/root/my image"), &environment),
            [
                "--quiet",
                "--collect",
                "--service-type=exec",
                "--property=KillMode=mixed",
                "--property=OOMPolicy=continue",
                "--property=TimeoutStopSec=10s",
                "--property=OOMScoreAdjust=-500",
                "--property=StandardError=inherit",
                "--unit=gravity-agent.service",
                "--description=Gravity: what runs",
                "--property=StandardOutput=append:/state/a $b.log",
                "--setenv=PATH=/sbin:/bin",
                "--",
                "/root/my image",
                "agent",
                "run",
                "/x/$${y} %z",
            ]
        );
    }

    #[test]
    fn a_child_writes_to_its_log_and_its_end_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        // This test's program lists its tests.
        let background = background(path.clone(), &["--list"]);
        let log = background.open_log().unwrap();
        assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let child = background.start_child(log).unwrap();
        let mut process = Process {
            pid: child.id(),
            child: Some(child),
            refused: None,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        let ended = loop {
            match process.ended().unwrap() {
                Some(ended) => break ended,
                None => assert!(Instant::now() < deadline),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(ended, "exit status: 0");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("its_end_is_seen"), "{text}");
    }

    #[test]
    fn a_service_that_has_no_process_has_ended() {
        let service = |pid| Process {
            pid,
            child: None,
            refused: None,
        };
        assert!(service(0).ended().unwrap().is_some());
        assert!(service(std::process::id()).ended().unwrap().is_none());
        assert!(service(i32::MAX.unsigned_abs()).ended().unwrap().is_some());
    }
}
