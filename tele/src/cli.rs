//! The command line.
//!
//! In: arguments. Out: [`Cli`]. Clap refuses what is malformed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use manifest::BaseImage;

use crate::build::environment::{Environment, variable};
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
    Build(Box<Build>),
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
    /// Checks an Image Manifest and what lies beside it.
    Lint(crate::lint::Lint),
    /// Makes licenses for cluster images that demand one.
    License(crate::license::License),
    /// Prints the JSON Schema of the Image Manifest.
    Schema,
    /// Prints the version.
    Version,
    /// What `verify --offline-boot` does in processes of their own.
    #[command(subcommand, hide = true)]
    Node(throwaway::helper::Task),
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub(crate) struct Build {
    /// The Image Manifest, a directory with app.yaml or manifest.yaml, or a
    /// chart, which is installed as it is.
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
    /// Base image to build on, such as gravity:6.0.0, whatever the manifest says.
    #[arg(long, value_name = "NAME[:VERSION]")]
    pub(crate) with_base_image: Option<BaseImage>,
    /// Value for rendering charts; can be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// File with values for rendering charts; can be repeated.
    #[arg(long, value_name = "FILE")]
    pub(crate) values: Vec<PathBuf>,
    /// Files to look for images in, below the manifest's directory; can be
    /// repeated [default: **/*.yaml, **/*.yml and **/*.json].
    #[arg(long, value_name = "PATTERN")]
    pub(crate) glob: Vec<String>,
    /// Files to look for no images in, and charts not to render: a regular
    /// expression for their path, which begins with / at the manifest's
    /// directory; can be repeated.
    #[arg(long, value_name = "REGEX")]
    pub(crate) ignore: Vec<String>,
    /// Image to take in place of all of the same repository, on whatever
    /// registry and with whatever tag; can be repeated.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) set_image: Vec<String>,
    /// Version of a dependency, such as gravity:6.0.0; can be repeated.
    #[arg(long, value_name = "NAME:VERSION")]
    pub(crate) set_dep: Vec<String>,
    /// Where images are looked for first: a directory in OCI layout, an archive
    /// of one, or one that `docker save` wrote; can be repeated.
    #[arg(long, value_name = "PATH")]
    pub(crate) images: Vec<PathBuf>,
    /// Ask registries for all images, also for those that an engine on this
    /// machine has.
    #[arg(long)]
    pub(crate) pull: bool,
    #[command(flatten)]
    pub(crate) env: Env,
    /// Certificates of those who sign licenses, PEM, where the manifest demands
    /// a license [default: what GRAVITY_LICENSE_CA says, else that of `tele license
    /// authority`].
    #[arg(long, alias = "ca-cert", value_name = "FILE")]
    license_ca: Option<PathBuf>,
    /// Take exactly the images of the lock file beside the manifest, and fail
    /// where it lacks one.
    #[arg(long)]
    pub(crate) locked: bool,
    /// Transfers at a time: 0 for one a processor, -1 for as many as are of use (64).
    #[arg(
        long,
        value_name = "N",
        default_value_t = 6,
        allow_negative_numbers = true
    )]
    pub(crate) parallel: i16,
    /// How to tell what is done: as JSON it is one object a line, the last the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Variables of a manifest.
#[derive(Debug, Args)]
pub(crate) struct Env {
    /// Replace ${NAME} in the Image Manifest by VALUE, or by what the
    /// environment says; without a name replace all; can be repeated.
    #[arg(
        long = "env",
        value_name = "NAME[=VALUE]",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ""
    )]
    arguments: Vec<String>,
}

impl Env {
    /// What is replaced.
    pub(crate) fn read(&self) -> anyhow::Result<Environment> {
        Environment::new(&self.arguments, &variable)
    }
}

impl Build {
    /// How many transfers there may be at a time.
    pub(crate) fn transfers(&self) -> usize {
        match usize::try_from(self.parallel) {
            Ok(0) => std::thread::available_parallelism().map_or(1, usize::from),
            Ok(limit) => limit,
            Err(_) => usize::MAX,
        }
        .min(MAX_TRANSFERS)
    }
}

/// More gain nothing and look like an attack to registries.
const MAX_TRANSFERS: usize = 64;

/// How something is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Cli {
    /// Reads the command line of this process. Options in `TELE_FLAGS` come
    /// before those of `tele build`, which therefore win.
    pub(crate) fn read() -> Self {
        let flags = std::env::var("TELE_FLAGS").unwrap_or_default();
        match with_flags(std::env::args_os().collect(), &flags) {
            Ok(arguments) => Self::parse_from(arguments),
            Err(message) => Self::command()
                .error(clap::error::ErrorKind::InvalidValue, message)
                .exit(),
        }
    }

    /// How the command tells what it does.
    pub(crate) fn format(&self) -> console::Format {
        match &self.command {
            Command::Build(build) if build.format == Format::Json => console::Format::Json,
            _ => console::Format::Auto,
        }
    }
}

fn with_flags(mut arguments: Vec<OsString>, flags: &str) -> Result<Vec<OsString>, String> {
    if arguments.get(1).is_none_or(|command| command != "build") {
        return Ok(arguments);
    }
    let flags = shlex::split(flags)
        .ok_or_else(|| format!("the quotes in TELE_FLAGS do not match: `{flags}`"))?;
    arguments.splice(2..2, flags.into_iter().map(OsString::from));
    Ok(arguments)
}

#[derive(Debug, Args)]
pub(crate) struct Hub {
    /// Where base images are: a directory in OCI image layout, or a registry as
    /// https://HOST[/PATH] [default: what GRAVITY_HUB or OPS_URL says, else gravity/hub
    /// in the user's data directory].
    #[arg(long = "hub", value_name = "DIR|URL")]
    location: Option<String>,
}

impl Hub {
    fn location(&self) -> Option<String> {
        self.location.clone().or_else(|| given("GRAVITY_HUB"))
    }

    /// The user's logins, and that of `OPS_TOKEN` where `OPS_URL` is the hub.
    pub(crate) fn credentials(&self) -> oci::Credentials {
        let known = oci::Credentials::from_environment();
        match (self.location(), given("OPS_URL"), given("OPS_TOKEN")) {
            (None, Some(url), Some(token)) => match host(&url) {
                Some(host) => known.with(host, token_login(token)),
                None => known,
            },
            _ => known,
        }
    }

    /// Opens the hub; `create` makes a directory that is not there.
    pub(crate) fn open(&self, client: &oci::Client, create: bool) -> anyhow::Result<oci::Hub> {
        use anyhow::Context;
        let location = self.location().or_else(|| given("OPS_URL"));
        oci::Hub::open(location.as_deref(), client, create).context(
            "cannot open the hub: `make base` makes one, --hub or GRAVITY_HUB names another",
        )
    }
}

impl Build {
    /// The file of those who sign licenses, where one is named.
    pub(crate) fn license_ca(&self) -> Option<PathBuf> {
        let known = || given("GRAVITY_LICENSE_CA").map(PathBuf::from);
        self.license_ca.clone().or_else(known)
    }
}

/// A variable of the environment; one that is empty is not set.
fn given(name: &str) -> Option<String> {
    variable(name).filter(|value| !value.is_empty())
}

/// Host and port of a hub's address.
fn host(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    rest.split('/').next().filter(|host| !host.is_empty())
}

/// Registries take a token as the password of any user.
fn token_login(token: String) -> oci::credentials::Login {
    oci::credentials::Login {
        user: "token".into(),
        password: token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let build = |arguments: &str, flags: &str| {
            let arguments = arguments.split(' ').map(OsString::from).collect();
            match Cli::try_parse_from(with_flags(arguments, flags).unwrap()).map(|cli| cli.command)
            {
                Ok(Command::Build(build)) => Ok(build),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error.to_string()),
            }
        };
        let plain = build("tele build -f -o x.tar app.yaml --set a=b --set c=d", "").unwrap();
        assert!(plain.overwrite && plain.set == ["a=b", "c=d"]);
        assert_eq!((plain.transfers(), plain.state_dir), (6, None));
        assert_eq!(
            build("tele build --parallel -1", "").unwrap().transfers(),
            64
        );
        assert!(build("tele build --parallel=0", "").unwrap().transfers() > 0);
        assert!(build("tele build --parallel=x", "").is_err());
        assert!(build("tele build --with-base-image=ubuntu:1", "").is_err());

        let flags = "--state-dir=/mnt/c --set 'a=b c' -o /mnt/y.tar";
        let both = build("tele build -o x.tar --set d=e", flags).unwrap();
        assert_eq!(both.state_dir, Some("/mnt/c".into()));
        assert_eq!(both.output, Some("x.tar".into()));
        assert_eq!(both.set, ["a=b c", "d=e"]);
        assert!(build("tele build", "--no-such-flag").is_err());
        assert!(with_flags(vec!["tele".into(), "build".into()], "'x").is_err());
        assert_eq!(
            host("https://hub.acme.io:444/path"),
            Some("hub.acme.io:444")
        );
        assert_eq!((host("/srv/hub"), host("https:///x")), (None, None));
        let other = vec![OsString::from("tele"), "ls".into()];
        assert_eq!(with_flags(other.clone(), "--parallel=1").unwrap(), other);
    }
}
