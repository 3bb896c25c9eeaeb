//! The command line of `gravity`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Installs Kubernetes clusters from cluster images and operates them.
#[derive(Debug, Parser)]
#[command(
    name = "gravity",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 requirements not met, \
4 another operation runs, 5 image damaged, 6 cluster degraded, 7 stopped half-way (gravity resume)"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of all commands.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where the node keeps everything
    #[arg(long, global = true, value_name = "DIR", default_value = spec::DEFAULT_STATE_DIR)]
    pub(crate) state_dir: PathBuf,
    /// Cluster image to use instead of the one that this program carries
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// How results and events are printed
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// How results and events are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people: colours and progress on a terminal, plain lines elsewhere
    Text,
    /// For programs: JSON
    Json,
}

impl From<Output> for console::Format {
    fn from(output: Output) -> Self {
        match output {
            Output::Text => Self::Auto,
            Output::Json => Self::Json,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Install a cluster on this node
    Install(Install),
    /// Check this node against the requirements of the cluster image
    Check(Check),
    /// Go on with an operation that was interrupted or failed
    Resume,
    /// Show the phases of the last operation and how far they are
    Plan,
    /// Show the state of the cluster, its nodes and services
    Status,
    /// Remove the cluster from this node
    Leave(Leave),
    /// Run a command inside the planet, where all Kubernetes services are
    Exec(Exec),
    /// Open a shell inside the planet
    Shell,
    /// Check every byte of a cluster image
    Verify,
    /// Print versions of this program and of all components
    Version,
    /// Print a script that completes commands in a shell
    Completion {
        /// Shell to complete for
        shell: clap_complete::Shell,
    },
    /// Write man pages to a directory
    #[command(hide = true)]
    Man {
        /// Directory, which must exist
        directory: PathBuf,
    },
    /// Execute phases on this node
    #[command(hide = true, subcommand)]
    Agent(Agent),
    /// Run the container of Kubernetes services
    #[command(hide = true, subcommand)]
    Planet(Planet),
}

#[derive(Debug, Args)]
pub(crate) struct Install {
    /// Address by which this node is known; by default the one of its default
    /// route, or its only one
    #[arg(long, value_name = "IP")]
    pub(crate) advertise_addr: Option<IpAddr>,
    /// Name of the cluster; by default the image's name
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// Flavor of the cluster image
    #[arg(long, value_name = "NAME")]
    pub(crate) flavor: Option<String>,
    /// Profile of this node; by default the flavor's first
    #[arg(long, value_name = "PROFILE")]
    pub(crate) role: Option<String>,
    /// Addresses of pods, at least a /24
    #[arg(long, value_name = "CIDR", default_value = installer::install::DEFAULT_POD_CIDR)]
    pub(crate) pod_network_cidr: String,
    /// Addresses of services
    #[arg(long, value_name = "CIDR", default_value = installer::install::DEFAULT_SERVICE_CIDR)]
    pub(crate) service_cidr: String,
    /// UDP port of the overlay network
    #[arg(long, value_name = "PORT", default_value_t = installer::install::DEFAULT_VXLAN_PORT,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) vxlan_port: u16,
    /// User id of the service user
    #[arg(long, value_name = "UID", env = "GRAVITY_SERVICE_USER",
          default_value_t = installer::install::DEFAULT_SERVICE_ID,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) service_uid: u32,
    /// Group id of the service user; by default the user's
    #[arg(long, value_name = "GID", env = "GRAVITY_SERVICE_GROUP",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) service_gid: Option<u32>,
    /// Accept the end-user license agreement without being asked
    #[arg(long)]
    pub(crate) accept_eula: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Profile to check against; by default the first
    #[arg(long, short, value_name = "PROFILE")]
    pub(crate) profile: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Leave {
    /// Clean up this node without asking the cluster
    #[arg(long)]
    pub(crate) force: bool,
    /// Don't ask
    #[arg(long)]
    pub(crate) confirm: bool,
    /// Remove data in volumes that the install created, too
    #[arg(long)]
    pub(crate) purge: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Command and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Agent {
    /// Serve the node's agent socket until nothing is left to do
    Run,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Planet {
    /// Start the container and stay as its daemon
    Run {
        /// What it runs
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Keep the services running: the child of the container's PID 1
    Supervise,
}
