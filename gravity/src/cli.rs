//! The command line of `gravity`.

use std::net::{IpAddr, SocketAddr};
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
    /// Add this node to a cluster, as a worker
    Join(Join),
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
    /// Remove another node from the cluster; on a master
    Remove(Remove),
    /// Make, list and end the tokens with which nodes join; on a master
    #[command(subcommand)]
    Token(Token),
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
    /// Take nodes in and let them go: a service of masters
    #[command(hide = true)]
    Controller(Controller),
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
    /// Don't measure how fast disks are: some seconds less
    #[arg(long)]
    pub(crate) skip_disk_test: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// Addresses of masters, separated by commas: IP or IP:PORT
    #[arg(value_name = "PEER", required = true, value_delimiter = ',', value_parser = peer)]
    pub(crate) peers: Vec<SocketAddr>,
    /// Token of the cluster: see `gravity token create` on a master
    #[arg(
        long,
        value_name = "TOKEN",
        env = "GRAVITY_TOKEN",
        hide_env_values = true,
        required_unless_present = "token_file"
    )]
    pub(crate) token: Option<String>,
    /// File with the token; - reads it from standard input
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub(crate) token_file: Option<PathBuf>,
    /// Profile of this node; by default the only one for workers
    #[arg(long, value_name = "PROFILE")]
    pub(crate) role: Option<String>,
    /// Address by which other nodes reach this one; by default its only one
    #[arg(long, value_name = "IP")]
    pub(crate) advertise_addr: Option<IpAddr>,
}

fn peer(text: &str) -> Result<SocketAddr, String> {
    text.parse::<SocketAddr>()
        .or_else(|_| {
            text.parse::<IpAddr>()
                .map(|address| SocketAddr::new(address, spec::CONTROLLER_PORT))
        })
        .map_err(|_| "not an address such as 10.0.0.1".into())
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Host name of the node
    #[arg(value_name = "NODE")]
    pub(crate) node: String,
    /// Go on when its pods can't be moved to other nodes
    #[arg(long)]
    pub(crate) force: bool,
    /// Don't ask
    #[arg(long)]
    pub(crate) confirm: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token and show how nodes join with it
    Create {
        /// How long it is good, such as 30m, 24h or 7d
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = ttl)]
        ttl: jiff::SignedDuration,
        /// File with a token of your own choice, of 6 to 128 characters; - reads it from
        /// standard input
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// List tokens, without their secrets
    #[command(visible_alias = "ls")]
    List,
    /// End a token
    #[command(visible_alias = "rm")]
    Remove {
        /// Its name
        name: String,
    },
}

fn ttl(text: &str) -> Result<jiff::SignedDuration, String> {
    // A day has 24 hours here, whatever clocks do.
    let days = text
        .strip_suffix('d')
        .and_then(|days| days.parse::<i64>().ok());
    let ttl = match days {
        Some(days) => days.checked_mul(24).map(jiff::SignedDuration::from_hours),
        None => text.parse().ok(),
    };
    ttl.filter(|ttl| ttl.is_positive() && ttl.as_hours() <= 24 * 3650)
        .ok_or_else(|| "not a time such as 30m, 24h or 7d, at most 3650d".into())
}

#[derive(Debug, Args)]
pub(crate) struct Controller {
    /// Where it listens
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: SocketAddr,
    /// Directory of authorities, certificates and kubeconfigs
    #[arg(long, value_name = "DIR")]
    pub(crate) secrets: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Cluster image or Image Manifest to check against; by default the image
    /// that this program carries
    #[arg(value_name = "IMAGE|MANIFEST")]
    pub(crate) against: Option<PathBuf>,
    /// Profile to check against; by default the first
    #[arg(long, short, value_name = "PROFILE")]
    pub(crate) profile: Option<String>,
    /// Address by which this node would be known
    #[arg(long, value_name = "IP")]
    pub(crate) advertise_addr: Option<IpAddr>,
    /// Mend what can be mended: kernel modules and parameters, now and at
    /// every boot; `gravity leave` reverts it
    #[arg(long)]
    pub(crate) autofix: bool,
    /// Let failures of this check not count; may be given several times
    #[arg(long, value_name = "ID")]
    pub(crate) ignore: Vec<String>,
    /// Leave out what takes seconds: disks, forwarding, DNS, scripts
    #[arg(long)]
    pub(crate) quick: bool,
    /// How many seconds one script of the manifest may run
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: u64,
    /// Write what was found out about this host to a file, to be judged
    /// elsewhere
    #[arg(long, value_name = "FILE")]
    pub(crate) facts_out: Option<PathBuf>,
    /// Judge what was found out about another host
    #[arg(long, value_name = "FILE", conflicts_with_all = ["autofix", "facts_out"])]
    pub(crate) facts: Option<PathBuf>,
    /// Show passed checks, too
    #[arg(long)]
    pub(crate) all: bool,
    /// Say what a check looks at, what it wants and why; `all` for every check
    #[arg(long, value_name = "ID", exclusive = true)]
    pub(crate) explain: Option<String>,
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
