//! What a command has not finished, and must not leave.
//!
//! In: a directory. Out: a new directory in it, which is locked as long as its
//! command lives. Those of commands that were killed are removed by the next one
//! in the same place; whoever is told to end removes its own first. A result gets its
//! name when it is complete, and in place of another file only where that is wanted.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use futures::future::{FutureExt, select_all};
use nix::fcntl::OFlag;
use tempfile::{NamedTempFile, TempDir};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::build::PARTIAL;

/// A directory that goes away with its value.
#[derive(Debug)]
pub(crate) struct Directory {
    dir: TempDir,
    /// Tells other commands that this one lives.
    _lock: File,
}

impl Directory {
    /// Makes it in `parent`, after removing what killed commands left there.
    pub(crate) fn create(parent: &Path, prefix: &str) -> Result<Self> {
        let what = || format!("cannot write to {}", parent.display());
        remove_abandoned(parent, prefix);
        loop {
            let dir = tempfile::Builder::new()
                .prefix(prefix)
                .tempdir_in(parent)
                .with_context(what)?;
            // Until it is locked it looks abandoned.
            let lock = match File::open(dir.path()) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                lock => lock.with_context(what)?,
            };
            lock.lock().with_context(what)?;
            if same_file(dir.path(), &lock) {
                return Ok(Self { dir, _lock: lock });
            }
        }
    }

    /// Makes it beside the result of a command, which has it removed, too, when it
    /// is told to end.
    pub(crate) fn beside(result: &Path, runtime: &Runtime) -> Result<Self> {
        let parent = result.parent();
        let parent = parent.filter(|parent| !parent.as_os_str().is_empty());
        let new = Self::create(parent.unwrap_or(Path::new(".")), PARTIAL)?;
        let path = new.path().to_owned();
        on_signal(runtime, move || remove(&path))?;
        Ok(new)
    }

    /// A new file in it.
    pub(crate) fn file(&self) -> Result<NamedTempFile> {
        NamedTempFile::new_in(self.path())
            .with_context(|| format!("cannot write to {}", self.path().display()))
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Gives it its name.
    pub(crate) fn persist(self, to: &Path) -> Result<()> {
        std::fs::rename(self.path(), to)
            .with_context(|| format!("cannot write {}", to.display()))?;
        let _ = self.dir.keep();
        Ok(())
    }
}

/// What becomes of a file that has the name of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overwrite {
    /// It stays, and there is no result.
    Refuse,
    /// It is replaced.
    Replace,
}

impl From<bool> for Overwrite {
    /// What `-f` says.
    fn from(forced: bool) -> Self {
        if forced { Self::Replace } else { Self::Refuse }
    }
}

impl Overwrite {
    /// Refuses a name that is taken, before any work.
    pub(crate) fn check(self, result: &Path) -> Result<()> {
        if self == Self::Refuse && result.symlink_metadata().is_ok() {
            bail!(
                "{} exists already: replace it with -f, or choose another name with -o",
                result.display()
            );
        }
        Ok(())
    }

    /// Gives a file the name of the result.
    pub(crate) fn persist(self, file: NamedTempFile, result: &Path) -> Result<()> {
        match self {
            Self::Replace => file.persist(result).map(drop),
            Self::Refuse => file.persist_noclobber(result).map(drop),
        }
        .with_context(|| format!("cannot write {}", result.display()))
    }
}

/// Removes what others still write to.
pub(crate) fn remove(dir: &Path) {
    // Twice: the command goes on meanwhile and may add a file.
    for _ in 0..2 {
        drop(std::fs::remove_dir_all(dir));
    }
}

/// Removes what killed commands left: nobody holds the lock.
fn remove_abandoned(parent: &Path, prefix: &str) {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let ours = entry.file_name().to_string_lossy().starts_with(prefix);
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(entry.path());
        let Ok(lock) = opened else {
            continue;
        };
        // Held until it is gone: else who has just made it would take it for his.
        if lock.try_lock().is_ok() && same_file(&entry.path(), &lock) {
            // What can't be removed is in nobody's way.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn same_file(path: &Path, file: &File) -> bool {
    let same =
        |a: std::fs::Metadata, b: std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    let there = path.symlink_metadata();
    there.is_ok_and(|there| file.metadata().is_ok_and(|open| same(there, open)))
}

/// Has `clean` done once this process is told to end, which it does then. What it was
/// started to ignore, as by `nohup`, it ignores.
pub(crate) fn on_signal(runtime: &Runtime, clean: impl FnOnce() + Send + 'static) -> Result<()> {
    let _guard = runtime.enter();
    let mut signals = Vec::new();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        let number = kind.as_raw_value();
        if !is_ignored(number) {
            let signal = signal(kind).context("cannot wait for signals")?;
            signals.push((number, signal));
        }
    }
    if signals.is_empty() {
        return Ok(());
    }
    runtime.spawn(async move {
        let waits = signals.iter_mut().map(|(number, signal)| {
            let number = *number;
            signal.recv().map(move |_| number).boxed()
        });
        let (number, ..) = select_all(waits).await;
        clean();
        std::process::exit(128 + number);
    });
    Ok(())
}

fn is_ignored(number: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn what_a_killed_command_left_is_removed_by_the_next() {
        let parent = tempfile::tempdir().unwrap();
        let names = || {
            let entries = std::fs::read_dir(parent.path()).unwrap();
            entries.map(|e| e.unwrap().path()).collect::<Vec<_>>()
        };
        let lives = Directory::create(parent.path(), ".x-").unwrap();
        std::fs::create_dir_all(parent.path().join(".x-left/below")).unwrap();
        std::fs::create_dir(parent.path().join("other")).unwrap();
        let next = Directory::create(parent.path(), ".x-").unwrap();
        assert!(lives.path().exists() && next.path().exists());
        assert_eq!(names().len(), 3, "{:?}", names());
        drop((lives, next));
        assert_eq!(names(), [parent.path().join("other")]);
    }

    #[test]
    fn commands_that_begin_at_once_leave_each_other_alone() {
        let parent = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1500 {
                        let new = Directory::create(parent.path(), ".x-").unwrap();
                        std::thread::yield_now();
                        new.file().unwrap();
                    }
                });
            }
        });
    }

    /// The test that runs itself once more, and by what it knows that it is that one.
    const TEST: &str = "unfinished::tests::who_is_told_to_end_cleans_up_first";
    const WAITS: &str = "TELE_TEST_WAITS";

    /// What the test below does in a process of its own.
    fn wait_to_be_told() {
        let say = |text: &str| writeln!(std::io::stdout(), "{text}").unwrap();
        let runtime = Runtime::new().unwrap();
        on_signal(&runtime, move || say("cleaned")).unwrap();
        say("waits");
        std::thread::sleep(Duration::from_secs(60));
    }

    /// Runs it in a shell that has done `first`, and sends it these signals.
    fn told(first: &str, signals: &[Signal]) -> (Option<i32>, bool) {
        let script = format!("{first}\nexec \"$0\" \"$@\"");
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(WAITS, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("waits")));
        for signal in signals {
            kill(Pid::from_raw(child.id().cast_signed()), *signal).unwrap();
        }
        let cleaned = lines.any(|line| line.unwrap().ends_with("cleaned"));
        (child.wait().unwrap().code(), cleaned)
    }

    #[test]
    fn who_is_told_to_end_cleans_up_first() {
        if std::env::var_os(WAITS).is_some() {
            return wait_to_be_told();
        }
        let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
        // Those that the tests were started to ignore can't be tried.
        for signal in signals.into_iter().filter(|s| !is_ignored(*s as i32)) {
            assert_eq!(told("", &[signal]), (Some(128 + signal as i32), true));
        }
        let ignoring = told("trap '' HUP", &[Signal::SIGHUP, Signal::SIGTERM]);
        assert_eq!(ignoring, (Some(143), true));
    }
}
