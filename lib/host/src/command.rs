//! Programs of the host.
//!
//! In: a program, its arguments and what it is for. Out: its output, or an
//! error with the end of what it wrote to standard error. A program never reads
//! from the terminal, never outlives its time, and never fills the memory.

use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long a program may run unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How much standard output is kept unless told otherwise, in bytes.
const MAX_OUTPUT: usize = 4 << 20;

/// How much of the end of standard error is kept, in bytes.
const ERROR_TAIL: usize = 4096;

/// Where programs of a system are, whatever the PATH of the caller: `su` without `-`
/// leaves root one that has no `sbin`.
const SYSTEM: [&str; 5] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// How long a program's children may hold its output after its end.
const DRAIN: Duration = Duration::from_millis(500);

/// A program that is about to run.
#[derive(Debug, Clone)]
pub struct Cmd {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    input: Vec<u8>,
    directory: Option<PathBuf>,
    description: Option<String>,
    timeout: Duration,
    max_output: usize,
}

/// What a program that succeeded wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// The end of standard error.
    pub stderr: String,
}

/// How a program ended, whatever it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its status; `None` when it ran too long and was killed.
    pub status: Option<ExitStatus>,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// It wrote more to standard output than is kept.
    pub stdout_cut: bool,
    /// It wrote more to standard error than is kept.
    pub stderr_cut: bool,
}

/// Why a program didn't do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// It is not on the host.
    #[error("{what}: `{program}` is not installed; install the package that has it")]
    NotInstalled {
        /// What it is for.
        what: String,
        /// Its name.
        program: String,
    },
    /// It can't be started.
    #[error("{what}: start `{program}`")]
    Start {
        /// What it is for.
        what: String,
        /// Its name.
        program: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It ended with a failure.
    #[error("{what}: {status}{}", tail(.stderr))]
    Failed {
        /// What it is for.
        what: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// It ran too long and was killed.
    #[error("{what}: killed after {} s{}", .limit.as_secs_f32(), tail(.stderr))]
    TimedOut {
        /// What it is for.
        what: String,
        /// How long it could have run.
        limit: Duration,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// It wrote more than is kept.
    #[error("{what}: wrote more than {limit} bytes")]
    TooMuchOutput {
        /// What it is for.
        what: String,
        /// How much is kept.
        limit: usize,
    },
}

fn tail(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

impl Cmd {
    /// A program by path, or by name on the PATH and in directories of the system that
    /// it lacks; it gets the whole as its PATH.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            input: Vec::new(),
            directory: None,
            description: None,
            timeout: TIMEOUT,
            max_output: MAX_OUTPUT,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments
            .extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Says what it is for, in the words of an error: "create user". Without
    /// it, errors show the command line.
    #[must_use]
    pub fn describe(mut self, description: impl Into<String>) -> Self {
        self.description = Some(description.into());
        self
    }

    /// Gives it standard input; without, it reads an end of file.
    #[must_use]
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Sets a variable of its environment, beside those of this process.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Limits its time; 60 s unless told otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Limits its standard output, in bytes; 4 MiB unless told otherwise.
    #[must_use]
    pub fn max_output(mut self, bytes: usize) -> Self {
        self.max_output = bytes;
        self
    }

    /// Runs it in this directory.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Runs it and waits for its end, whatever it is. Of each output the first
    /// part is kept.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn end(self) -> Result<Ended, CommandError> {
        let limit = self.max_output;
        self.wait((limit, Keep::Start))
    }

    fn wait(self, errors: (usize, Keep)) -> Result<Ended, CommandError> {
        let what = self.what();
        let deadline = Instant::now() + self.timeout;
        let mut running = Running(self.start(&what)?);
        let (done, finished) = channel();
        let stdout = collect(running.0.stdout.take(), self.max_output, Keep::Start, &done);
        let stderr = collect(running.0.stderr.take(), errors.0, errors.1, &done);
        drop(done);
        feed(running.0.stdin.take(), self.input);
        let status = running.wait(deadline);
        drain(&finished);
        let ((stdout, cut), (stderr, errors_cut)) = (taken(&stdout), taken(&stderr));
        Ok(Ended {
            status,
            stdout,
            stderr,
            stdout_cut: cut,
            stderr_cut: errors_cut,
        })
    }

    /// Runs it and waits for its end.
    ///
    /// # Errors
    /// When it can't be started, fails, runs too long or writes too much.
    pub fn run(self) -> Result<Output, CommandError> {
        let (what, time, most) = (self.what(), self.timeout, self.max_output);
        let ended = self.wait((ERROR_TAIL, Keep::End))?;
        let stderr = ended.stderr;
        let status = match ended.status {
            Some(status) => status,
            None => {
                return Err(CommandError::TimedOut {
                    what,
                    limit: time,
                    stderr,
                });
            }
        };
        if !status.success() {
            return Err(CommandError::Failed {
                what,
                status,
                stderr,
            });
        }
        match ended.stdout_cut {
            true => Err(CommandError::TooMuchOutput { what, limit: most }),
            false => Ok(Output {
                stdout: ended.stdout,
                stderr,
            }),
        }
    }

    fn what(&self) -> String {
        self.description.clone().unwrap_or_else(|| {
            let words = std::iter::once(&self.program).chain(&self.arguments);
            words
                .map(|word| word.to_string_lossy())
                .collect::<Vec<_>>()
                .join(" ")
        })
    }

    fn start(&self, what: &str) -> Result<Child, CommandError> {
        let program = || self.program.to_string_lossy().into_owned();
        let mut command = Command::new(&self.program);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
            .args(&self.arguments)
            .env("PATH", search_path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(if self.input.is_empty() {
                Stdio::null()
            } else {
                Stdio::piped()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that its children can be killed with it.
            .process_group(0)
            .spawn()
            .map_err(|source| match source.kind() {
                ErrorKind::NotFound => CommandError::NotInstalled {
                    what: what.to_owned(),
                    program: program(),
                },
                _ => CommandError::Start {
                    what: what.to_owned(),
                    program: program(),
                    source,
                },
            })
    }
}

/// A child that doesn't outlive this value.
struct Running(Child);

impl Running {
    /// How it ended, or nothing when it had to be killed.
    fn wait(&mut self, deadline: Instant) -> Option<ExitStatus> {
        let mut pause = Duration::from_millis(1);
        loop {
            // An error means that there is no such child; it can't come back.
            if let Some(status) = self.0.try_wait().ok()? {
                return Some(status);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.kill();
                return None;
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            if let Ok(pid) = i32::try_from(self.0.id()) {
                let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            }
            drop(self.0.wait());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Which part of too much output is kept.
#[derive(Clone, Copy)]
enum Keep {
    Start,
    End,
}

/// Bytes that were kept, and whether others were dropped.
#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    dropped: bool,
}

fn collect(
    from: Option<impl Read + Send + 'static>,
    limit: usize,
    keep: Keep,
    done: &Sender<()>,
) -> Arc<Mutex<Kept>> {
    let kept = Arc::new(Mutex::new(Kept::default()));
    let (into, done) = (kept.clone(), done.clone());
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        let mut from = from;
        while let Some(Ok(count @ 1..)) = from.as_mut().map(|from| from.read(&mut buffer)) {
            let mut kept = into.lock().unwrap_or_else(PoisonError::into_inner);
            kept.bytes.extend_from_slice(&buffer[..count]);
            let over = kept.bytes.len().saturating_sub(limit);
            kept.dropped |= over > 0;
            match keep {
                Keep::Start => kept.bytes.truncate(limit),
                Keep::End => drop(kept.bytes.drain(..over)),
            }
        }
        // Nobody waits any more after a time-out.
        let _ = done.send(());
    });
    kept
}

/// Waits until both outputs have ended. Children that a daemon left behind may
/// hold them for ever.
fn drain(finished: &Receiver<()>) {
    let deadline = Instant::now() + DRAIN;
    for _ in 0..2 {
        let left = deadline.saturating_duration_since(Instant::now());
        if finished.recv_timeout(left).is_err() {
            return;
        }
    }
}

fn taken(kept: &Mutex<Kept>) -> (String, bool) {
    let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    (
        String::from_utf8_lossy(&kept.bytes).into_owned(),
        kept.dropped,
    )
}

fn feed(to: Option<impl Write + Send + 'static>, input: Vec<u8>) {
    if let Some(mut to) = to {
        // A program that doesn't read all of its input is no error of ours.
        std::thread::spawn(move || drop(to.write_all(&input)));
    }
}

/// Where programs are looked for: the PATH, then directories of the system that it
/// lacks.
pub(crate) fn search_path() -> OsString {
    completed(&std::env::var_os("PATH").unwrap_or_default())
}

fn completed(path: &OsStr) -> OsString {
    // An empty entry would be the working directory.
    let own = std::env::split_paths(path).filter(|entry| !entry.as_os_str().is_empty());
    let mut all: Vec<_> = own.collect();
    for directory in SYSTEM.map(PathBuf::from) {
        if !all.contains(&directory) {
            all.push(directory);
        }
    }
    // What was split at colons has none.
    std::env::join_paths(all).unwrap_or_else(|_| path.to_owned())
}

/// Whether a program of this name is where [`Cmd::new`] looks for it.
pub fn installed(program: &str) -> bool {
    std::env::split_paths(&search_path()).any(|directory| directory.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Cmd {
        Cmd::new("sh").args(["-c", script]).describe("try it")
    }

    #[test]
    fn output_input_and_environment_pass() {
        let output = sh("cat; echo $X; echo e >&2")
            .stdin("in ")
            .env("X", "y")
            .run()
            .unwrap();
        assert_eq!(
            output,
            Output {
                stdout: "in y\n".into(),
                stderr: "e\n".into()
            }
        );
        assert_eq!(sh("cat").run().unwrap().stdout, "");
        assert!(installed("sh") && !installed("no-such-program"));
    }

    #[test]
    fn directories_of_the_system_are_searched_whatever_the_path() {
        let of = |path: &str| completed(OsStr::new(path)).into_string().unwrap();
        let system = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";
        assert_eq!(of(""), system);
        assert_eq!(
            of("/opt/x::/usr/bin:/bin"),
            "/opt/x:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
        );
        let whole = format!("/usr/local/bin:{system}");
        assert_eq!(of(&whole), whole);
        let told = sh("echo $PATH").run().unwrap().stdout;
        assert_eq!(OsStr::new(told.trim_end()), search_path());
        // What the caller says goes before.
        let own = Cmd::new("/bin/sh").args(["-c", "echo $PATH"]);
        assert_eq!(own.env("PATH", "/x").run().unwrap().stdout, "/x\n");
    }

    #[test]
    fn any_end_is_told_with_the_first_part_of_the_output() {
        let ended = sh("pwd; echo no >&2; exit 3").directory("/").end().unwrap();
        assert_eq!(ended.status.unwrap().code(), Some(3));
        assert_eq!(
            (ended.stdout.as_str(), ended.stderr.as_str()),
            ("/\n", "no\n")
        );
        let ended = sh("yes")
            .max_output(10)
            // Long enough for it to begin on a busy machine: it ends by this alone.
            .timeout(Duration::from_secs(1))
            .end()
            .unwrap();
        assert!(ended.status.is_none() && ended.stdout_cut && ended.stdout.len() == 10);
    }

    #[test]
    fn failures_say_what_happened() {
        let error = sh("echo broken >&2; exit 3").run().unwrap_err();
        assert_eq!(error.to_string(), "try it: exit status: 3: broken");
        let error = Cmd::new("no-such-program")
            .arg("x")
            .run()
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("no-such-program x: `no-such-program` is not installed"),
            "{error}"
        );
        let error = sh("head -c 100000 /dev/zero")
            .max_output(1000)
            .run()
            .unwrap_err();
        assert_eq!(error.to_string(), "try it: wrote more than 1000 bytes");
        let long = sh("for i in $(seq 3000); do echo $i; done >&2; exit 1")
            .run()
            .unwrap_err();
        let long = long.to_string();
        assert!(
            long.ends_with("\n3000") && long.len() < ERROR_TAIL + 100,
            "{long}"
        );
    }

    #[test]
    fn a_program_and_its_children_end_in_time() {
        let start = Instant::now();
        let error = sh("sleep 30 & sleep 30")
            .timeout(Duration::from_millis(100))
            .run()
            .unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
        // A daemon that keeps the output open doesn't hold us up.
        assert_eq!(sh("echo a; sleep 3 &").run().unwrap().stdout, "a\n");
        assert!(start.elapsed() < Duration::from_secs(3));
    }
}
