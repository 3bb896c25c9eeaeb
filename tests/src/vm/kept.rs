//! What is kept of machines whose scenario failed, in the tests' cache.
//!
//! In: a machine that is about to end. Out: its console, journal, units, logs and the
//! archive of `gravity report`, those of them that could be had. Always holds: looking
//! takes minutes at most, also at a machine that does not answer; files are bounded;
//! what a scenario has kept is removed when it runs again.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Machine;
use crate::file;
use crate::scenario::IMAGE;

/// Most machines of one run.
const MACHINES: usize = 8;
/// Most bytes of a file of this host: the last ones.
const FILE_MAX: u64 = 1 << 20;
/// How long one look at a machine may take; the report is made in 200 seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const REPORT_PATIENCE: Duration = Duration::from_secs(300);
/// Files of this host.
const FILES: &[&str] = &["console", "qemu.log"];
/// Looks at the machine: file, command.
const LOOKS: &[(&str, &str)] = &[
    ("journal", "journalctl -b --no-pager | tail -c 500000"),
    (
        "units",
        "systemctl status --no-pager --lines=20 'gravity*'; systemctl --failed --no-pager",
    ),
    (
        "logs",
        "tail -n 200 /var/lib/gravity/log/*.log /var/lib/gravity/operations/*/*.log \
         | tail -c 1000000",
    ),
];

/// Where it is kept for one scenario.
#[derive(Debug, Clone)]
pub struct Kept {
    directory: PathBuf,
}

impl Kept {
    /// The place of a scenario, without what its last run has left.
    ///
    /// # Errors
    /// When that can't be removed.
    pub fn of(scenario: &str) -> Result<Self> {
        let directory = file::cache()?.join("vm/kept").join(scenario);
        file::remove_directory(&directory)?;
        Ok(Self { directory })
    }

    /// Says with an error where to look.
    ///
    /// # Errors
    /// The same.
    pub fn tell<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| match self.directory.exists() {
            true => format!(
                "what the machines were like is in {}",
                self.directory.display()
            ),
            false => "nothing was kept of the machines".to_owned(),
        })
    }

    /// Keeps what can be had of a machine.
    pub(super) fn keep(&self, machine: &mut Machine) {
        let name = match machine.start.options.link {
            Some(link) => format!("machine-{}", link.number),
            None => "machine".to_owned(),
        };
        let Some(place) = free(&self.directory, &name) else {
            return;
        };
        for name in FILES {
            if let Ok(text) = end_of(&machine.start.file(name), FILE_MAX) {
                let _ = file::write(&place.join(name), text);
            }
        }
        for (name, command) in LOOKS {
            // One that does not answer once does not later.
            let Ok((_, said)) = machine.run(command, PATIENCE, &mut |_| {}) else {
                return;
            };
            let _ = file::write(&place.join(name), said);
        }
        if let Some(archive) = report(machine) {
            let _ = file::write(&place.join("report.tar.gz"), archive);
        }
    }
}

/// The archive of `gravity report`, where it is made in time and not too large for a
/// serial port.
fn report(machine: &mut Machine) -> Option<Vec<u8>> {
    let make = format!(
        "cd /root; timeout 200 {IMAGE} report --file=report.tar.gz >/dev/null 2>&1
         [ $(stat -c %s report.tar.gz) -lt 2000000 ] && base64 report.tar.gz"
    );
    let (code, text) = machine.run(&make, REPORT_PATIENCE, &mut |_| {}).ok()?;
    let text: String = text.split_whitespace().collect();
    STANDARD.decode(text).ok().filter(|_| code == 0)
}

/// A directory for another machine of this name, made, unless there are many.
fn free(all: &Path, name: &str) -> Option<PathBuf> {
    fs::create_dir_all(all).ok()?;
    if fs::read_dir(all).ok()?.count() >= MACHINES {
        return None;
    }
    let others = (2..).map(|number| format!("{name}.{number}"));
    std::iter::once(name.to_owned())
        .chain(others)
        .take(MACHINES)
        .map(|name| all.join(name))
        .find(|path| fs::create_dir(path).is_ok())
}

/// The last bytes of a file.
fn end_of(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut end = Vec::new();
    file.take(most).read_to_end(&mut end)?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_of_one_name_have_places_of_their_own_and_few_of_them() {
        let all = tempfile::tempdir().unwrap();
        let all = all.path().join("kept");
        let mut made = Vec::new();
        while let Some(place) = free(&all, "machine-1") {
            assert!(place.is_dir() && !made.contains(&place), "{made:?}");
            made.push(place);
        }
        assert_eq!(made[0], all.join("machine-1"));
        assert_eq!(made[1], all.join("machine-1.2"));
        assert_eq!(made.len(), MACHINES);
        assert_eq!(free(&all, "machine-2"), None);
    }

    #[test]
    fn of_a_long_file_its_end_is_kept() {
        let long = tempfile::NamedTempFile::new().unwrap();
        file::write(long.path(), "the beginning and the end").unwrap();
        assert_eq!(end_of(long.path(), 7).unwrap(), b"the end");
        assert_eq!(end_of(long.path(), 100).unwrap().len(), 25);
    }

    #[test]
    fn an_error_says_where_what_was_kept_is() {
        let directory = tempfile::tempdir().unwrap();
        let kept = Kept {
            directory: directory.path().join("cluster"),
        };
        let tell = || kept.tell::<()>(Err(anyhow::anyhow!("it is not well")));
        let error = format!("{:#}", tell().unwrap_err());
        assert!(error.contains("nothing was kept"), "{error}");
        free(&kept.directory, "machine").unwrap();
        let error = format!("{:#}", tell().unwrap_err());
        assert!(
            error.contains(&kept.directory.display().to_string()),
            "{error}"
        );
        assert!(error.contains("it is not well"), "{error}");
        assert!(kept.tell(Ok(())).is_ok());
    }
}
