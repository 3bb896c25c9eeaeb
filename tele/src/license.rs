//! `tele license`: the vendor's authority for licenses, and what it signs.
//!
//! In: a directory with an authority, which is made where there is none; whom
//! a license is for. Out: the authority's certificate, which is packed into
//! images that demand a license; licenses. Always holds: a key never leaves its
//! directory, and none is ever replaced.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use console::Console;
use event::Sink;
use pki::Authority;
use pki::license::{MAX_LICENSE, MAX_NODES, authorities};

use crate::build::manifest::read;

/// Variable that names the directory of the authority.
pub(crate) const DIRECTORY: &str = "GRAVITY_LICENSE_AUTHORITY";
/// Name of the files in the directory of an authority.
const NAME: &str = "authority";
/// How long a new authority is good: no license is longer.
const LIFETIME: Duration = Duration::from_secs(30 * 365 * 86_400);
/// Common name of a new authority.
const COMMON_NAME: &str = "Licenses of Gravity cluster images";

/// What to do with licenses.
#[derive(Debug, Args)]
pub(crate) struct License {
    #[command(subcommand)]
    command: Task,
    #[command(flatten)]
    place: Place,
    /// File that is written, in place of standard output.
    #[arg(short, long, global = true, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Where the authority is.
#[derive(Debug, Args)]
struct Place {
    /// Directory with authority.crt and authority.key, which are made where
    /// there are none [default: gravity/licenses in the user's configuration
    /// directory].
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = DIRECTORY
    )]
    authority: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Prints the authority's certificate, for `tele build --license-ca`.
    Authority,
    /// Makes a license, for `gravity install --license`.
    New(New),
}

#[derive(Debug, Args)]
struct New {
    /// Name of the cluster image that it is for.
    #[arg(long, value_name = "NAME")]
    image: String,
    /// Whom it is for.
    #[arg(long, value_name = "NAME")]
    holder: String,
    /// Most nodes that the cluster may have [default: any number].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_NODES)))]
    max_nodes: Option<u32>,
    /// How long it is good, such as 24h or 365d.
    #[arg(long, value_name = "TIME", default_value = "365d", value_parser = time)]
    valid_for: Duration,
}

/// Hours or days, at most thirty years.
fn time(text: &str) -> Result<Duration, String> {
    let hours = |unit: char, hours: u64| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(hours)
    };
    hours('h', 1)
        .or_else(|| hours('d', 24))
        .filter(|hours| (1..=30 * 365 * 24).contains(hours))
        .map(|hours| Duration::from_secs(hours * 3600))
        .ok_or_else(|| "not a time such as 24h or 365d, at most 10950d".into())
}

pub(crate) fn run(arguments: &License, console: &Console) -> Result<()> {
    let directory = directory(arguments.place.authority.as_deref())?;
    let authority = authority(&directory, console)?;
    let text = match &arguments.command {
        Task::Authority => authority.certificate_pem().to_owned(),
        Task::New(new) => {
            authority.license(&new.image, &new.holder, new.max_nodes, new.valid_for)?
        }
    };
    match &arguments.output {
        Some(path) => host::atomic::write(path, text.as_bytes(), 0o600)?,
        None => console.print(text.trim_end()),
    }
    Ok(())
}

/// Certificates of those who may sign licenses for an image: those in a file, or
/// the authority's of this user.
pub(crate) fn packed(file: Option<&Path>, named: Option<&Path>, sink: &dyn Sink) -> Result<String> {
    let Some(file) = file else {
        return Ok(authority(&directory(named)?, sink)?
            .certificate_pem()
            .to_owned());
    };
    let shown = file.display();
    let bytes = read(file, MAX_LICENSE)
        .map_err(|message| anyhow::anyhow!("--license-ca {shown}: {message}"))?;
    let text = String::from_utf8(bytes).with_context(|| format!("--license-ca {shown}"))?;
    if authorities(&text).is_none() {
        bail!("--license-ca {shown}: it must hold certificates of authorities, PEM, at most 16");
    }
    Ok(text)
}

/// Loads an authority, or makes it.
fn authority(directory: &Path, sink: &dyn Sink) -> Result<Authority> {
    let exists = |kind: &str| directory.join(format!("{NAME}.{kind}")).exists();
    if exists("crt") || exists("key") {
        return Authority::load(directory, NAME).context("cannot use the authority for licenses");
    }
    // Two at once would each make one, and one of them would be lost.
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let lock = std::fs::File::create(directory.join("lock"))
        .with_context(|| format!("cannot write to {}", directory.display()))?;
    lock.lock().context("cannot lock the authority")?;
    if exists("crt") || exists("key") {
        return Authority::load(directory, NAME).context("cannot use the authority for licenses");
    }
    let made = Authority::generate(COMMON_NAME, LIFETIME)?;
    made.save(directory, NAME)?;
    sink.warning(&format!(
        "Made an authority for licenses in {}: keep a copy of it in a safe place, for images that \
         are built with it take no licenses but its own",
        directory.display()
    ));
    Ok(made)
}

fn directory(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(directory) = named {
        return Ok(directory.to_owned());
    }
    match oci::environment::config_dir() {
        Some(config) => Ok(config.join("gravity/licenses")),
        None => bail!(
            "there is no home directory for the authority of licenses: name a directory in \
             {DIRECTORY}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event::Memory;

    #[test]
    fn an_authority_is_made_once_and_packed() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a/licenses");
        let sink = Memory::default();
        let first = packed(None, Some(&place), &sink).unwrap();
        assert_eq!(packed(None, Some(&place), &sink).unwrap(), first);
        assert_eq!(authorities(&first).map(|all| all.len()), Some(1));
        let file = dir.path().join("ca.crt");
        host::atomic::write(&file, first.as_bytes(), 0o644).unwrap();
        assert_eq!(packed(Some(&file), None, &sink).unwrap(), first);
        for wrong in ["", "text", first.get(..200).unwrap()] {
            host::atomic::write(&file, wrong.as_bytes(), 0o644).unwrap();
            assert!(packed(Some(&file), None, &sink).is_err(), "{wrong}");
        }
        // Half an authority is never completed by another's half.
        std::fs::remove_file(place.join("authority.key")).unwrap();
        assert!(packed(None, Some(&place), &sink).is_err());
        assert!(!place.join("authority.key").exists());
    }

    #[test]
    fn times_are_hours_or_days() {
        assert_eq!(time("2d"), Ok(Duration::from_secs(2 * 86_400)));
        assert_eq!(time("36h"), Ok(Duration::from_secs(36 * 3600)));
        for wrong in [
            "",
            "d",
            "0d",
            "-1d",
            "10951d",
            "1y",
            "99999999999999999999h",
        ] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
