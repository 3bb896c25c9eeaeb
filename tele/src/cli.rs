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
    /// Shows what a cluster image holds.
    Inspect(crate::inspect::Inspect),
    /// Shows what changed from one cluster image to another.
    Diff(crate::diff::Diff),
    /// Compares every byte of a cluster image with what was built.
    Verify(crate::verify::Verify),
    /// Writes the content of a cluster image as an OCI image layout.
    Export(crate::export::Export),
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
    /// Where base images are: a directory in OCI image layout, or a registry as
    /// https://HOST[/PATH] [default: gravity/hub in the user's data directory].
    #[arg(long = "hub", value_name = "DIR|URL", env = "GRAVITY_HUB")]
    pub(crate) location: Option<String>,
}

impl Hub {
    /// Opens the hub; `create` makes a directory that is not there.
    pub(crate) fn open(&self, client: &oci::Client, create: bool) -> anyhow::Result<oci::Hub> {
        use anyhow::Context;
        oci::Hub::open(self.location.as_deref(), client, create).context(
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
