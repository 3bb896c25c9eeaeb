//! Programs of the machine that builds: go, gcc, mmdebstrap, cargo.
//!
//! In: a command. Out: its output or an error that says what to install, or
//! what the program said last and where the whole log is.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

/// Bytes of a failed program's log that an error shows.
const TAIL: u64 = 3000;

/// Standard output of a short command, without its last line break.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| explain(&name, error))?;
    if !output.status.success() {
        bail!(
            "{name} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned())
}

/// Runs a command that writes to `log`.
pub(crate) fn run(command: &mut Command, log: &Path) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| log.display().to_string())?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .map_err(|error| explain(&name, error))?;
    if !status.success() {
        bail!(
            "{name} ended with {status}; the end of {}:\n{}",
            log.display(),
            tail(log)?
        );
    }
    Ok(())
}

fn tail(log: &Path) -> Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

fn explain(name: &str, error: std::io::Error) -> anyhow::Error {
    if error.kind() != std::io::ErrorKind::NotFound {
        return anyhow!(error).context(name.to_owned());
    }
    let remedy = match name {
        "go" => {
            "apt-get install golang-go (1.21 or newer; where Debian's is older, \
             from its backports)"
        }
        "gcc" => "apt-get install gcc libc6-dev",
        "pkg-config" => "apt-get install pkg-config",
        "mmdebstrap" => "apt-get install mmdebstrap debian-archive-keyring",
        "cargo" => "rustup, see the README",
        _ => return anyhow!("{name} is not installed"),
    };
    anyhow!("{name} is not installed: {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let error = explain("mmdebstrap", std::io::ErrorKind::NotFound.into());
        assert!(error.to_string().contains("apt-get install mmdebstrap"));
        let error = output(&mut Command::new("no-such-program-here")).unwrap_err();
        assert!(error.to_string().contains("not installed"));
    }

    #[test]
    fn a_failure_shows_the_end_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = "seq 1 5000; echo the last words >&2; exit 3";
        let error = run(Command::new("sh").args(["-c", script]), &log)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("the last words") && error.contains("exit status: 3"),
            "{error}"
        );
        assert!(error.len() < 4000);
    }
}
