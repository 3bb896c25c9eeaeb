//! The command line.
//!
//! In: arguments. Out: [`Cli`]. Clap refuses what is malformed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::login::{Login, Logout};
use crate::ls::Ls;
use crate::pull::Pull;
use crate::push::Push;
use crate::rm::Rm;

/// Builds cluster images.
#[derive(Debug, Parser)]
#[command(name = "tele", version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Builds a cluster image from an Image Manifest.
    Build(Build),
    /// Puts a cluster image into the hub.
    Push(Push),
    /// Gets a cluster image from the hub.
    Pull(Pull),
    /// Lists the images of the hub.
    Ls(Ls),
    /// Removes a version of an image from the hub.
    Rm(Rm),
    /// Keeps a login for a registry.
    Login(Login),
    /// Forgets the login for a registry.
    Logout(Logout),
    /// Prints the version.
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct Build {
    /// The Image Manifest, or a directory with app.yaml or manifest.yaml.
    #[arg(default_value = ".")]
    pub(crate) path: PathBuf,
    /// Name of what is built: a .tar, or with any other name the executable
    /// alone [default: name of the current directory, with .tar].
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Replace the output if it exists.
    #[arg(short = 'f', long)]
    pub(crate) overwrite: bool,
    /// Where images and compressed content are kept between builds
    /// [default: gravity/tele in the user's cache directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) hub: Hub,
    /// Value for rendering charts; can be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// File with values for rendering charts; can be repeated.
    #[arg(long, value_name = "FILE")]
    pub(crate) values: Vec<PathBuf>,
    /// Transfers at a time.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) parallel: u8,
}

#[derive(Debug, Args)]
pub(crate) struct Hub {
    /// Directory with base images, in OCI image layout [default: gravity/hub
    /// in the user's data directory].
    #[arg(long = "hub", value_name = "DIR", env = "GRAVITY_HUB")]
    pub(crate) dir: Option<PathBuf>,
}

impl Hub {
    /// Opens the hub.
    pub(crate) fn open(&self) -> anyhow::Result<oci::Layout> {
        use anyhow::Context;
        let dir = self.dir.clone().or_else(oci::hub::default_dir);
        let dir =
            dir.context("there is no home directory to look for the hub in: name it with --hub")?;
        if dir.to_str().is_some_and(|text| text.contains("://")) {
            anyhow::bail!(
                "{}: a hub that is a registry is not supported by this release yet: name a directory",
                dir.display()
            );
        }
        oci::Layout::open(dir).context(
            "cannot open the hub: `make base` makes one, --hub or GRAVITY_HUB names another",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
        let cli = Cli::try_parse_from([
            "tele", "build", "-f", "-o", "x.tar", "app.yaml", "--set", "a=b", "--set", "c=d",
        ]);
        let Command::Build(build) = cli.unwrap().command else {
            panic!("another command")
        };
        assert!(build.overwrite && build.set == ["a=b", "c=d"] && build.parallel == 6);
        assert!(Cli::try_parse_from(["tele", "build", "--parallel", "0"]).is_err());
    }
}
