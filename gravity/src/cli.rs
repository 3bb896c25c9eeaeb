//! The command line of `gravity`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use manifest::HookName;

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
    /// Where the node keeps everything [default: what its cluster was installed with,
    /// else /var/lib/gravity]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Cluster image to use instead of the one that this program carries
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// How results and events are printed
    #[arg(long, short, global = true, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// How results and events are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people: colours and progress on a terminal, plain lines elsewhere
    Text,
    /// For programs: JSON
    Json,
    /// YAML, of `gravity plan`
    Yaml,
}

impl From<Output> for console::Format {
    fn from(output: Output) -> Self {
        match output {
            Output::Text => Self::Auto,
            Output::Json => Self::Json,
            // Its events are lines that a reader of YAML would stumble over;
            // only a command without events writes it.
            Output::Yaml => Self::Plain,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Install a cluster on this node
    Install(Install),
    /// Add this node to a cluster
    Join(Join),
    /// Check this node against the requirements of the cluster image
    Check(Check),
    /// Go on with an operation that was interrupted or failed; follow one that
    /// runs
    Resume,
    /// Take an operation back that has not ended: the node is as before then
    Rollback(Rollback),
    /// Show the phases of the last operation and how far they are; execute them
    /// or take them back one by one
    Plan(Plan),
    /// Show the state of the cluster, its nodes and services
    Status(Status),
    /// Collect logs, journals and objects in an archive, without secrets; on a master
    /// also logs of the other nodes
    Report(Report),
    /// Show and renew the certificates of this node
    #[command(subcommand)]
    Cert(Cert),
    /// Take and list snapshots of the cluster's state, and go back to one; on a
    /// master
    #[command(subcommand)]
    Etcd(Etcd),
    /// Remove the cluster from this node
    Leave(Leave),
    /// Remove another node from the cluster; on a master
    Remove(Remove),
    /// Make, list and end the tokens with which nodes join; on a master
    #[command(subcommand)]
    Token(Token),
    /// Stop the application and all services of this node
    Stop(Stop),
    /// Start the services of this node and the application again
    Start {
        // Nothing is asked: scripts give it to all of these commands.
        #[arg(id = "confirm", long = "confirm", hide = true)]
        _confirm: bool,
    },
    /// Run hooks of the cluster image by hand; on a master
    #[command(subcommand)]
    Hook(Hook),
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
    /// Give nodes that join the cluster image: a service of workers
    #[command(hide = true)]
    Images(Images),
    /// Look after certificates, etcd and who the masters are: a service of the planet
    #[command(hide = true)]
    Care(Care),
}

impl Command {
    /// Whether the user sees what hooks write; an install writes it to its log.
    pub(crate) fn shows_hooks(&self) -> bool {
        matches!(
            self,
            Self::Hook(_) | Self::Leave(_) | Self::Start { .. } | Self::Stop(_)
        )
    }
}

/// What of an install decides what a node must offer, so that a check is told it, too.
#[derive(Debug, Args)]
pub(crate) struct Terms {
    /// Flavor of the cluster image
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    pub(crate) flavor: Option<String>,
    /// Path on this node of a volume that the profile names; can be repeated
    #[arg(long, value_name = "NAME:PATH", value_parser = mount, help_heading = "This node")]
    pub(crate) mount: Vec<(String, PathBuf)>,
    /// Addresses of pods, at least a /24 [default: 10.244.0.0/16]
    #[arg(long, value_name = "CIDR", help_heading = "Network")]
    pub(crate) pod_network_cidr: Option<String>,
    /// Addresses of services, at least a /24 [default: 10.100.0.0/16]
    #[arg(long, value_name = "CIDR", help_heading = "Network")]
    pub(crate) service_cidr: Option<String>,
    /// UDP port of VXLAN, by which pods reach those of other nodes [default: 8472]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..),
          help_heading = "Network")]
    pub(crate) vxlan_port: Option<u16>,
    /// User id of the service user; a user that has it is taken
    #[arg(long, value_name = "UID", env = "GRAVITY_SERVICE_USER",
          default_value_t = installer::install::DEFAULT_SERVICE_ID,
          value_parser = clap::value_parser!(u32).range(1..), help_heading = "Service user")]
    pub(crate) service_uid: u32,
}

impl Terms {
    /// Addresses of pods: what was given, else what is `known` of elsewhere, else the
    /// usual ones.
    pub(crate) fn pod_cidr(&self, known: Option<String>) -> String {
        let given = self.pod_network_cidr.clone().or(known);
        given.unwrap_or_else(|| installer::install::DEFAULT_POD_CIDR.into())
    }

    /// The same of services.
    pub(crate) fn service_cidr(&self, known: Option<String>) -> String {
        let given = self.service_cidr.clone().or(known);
        given.unwrap_or_else(|| installer::install::DEFAULT_SERVICE_CIDR.into())
    }
}

#[derive(Debug, Args)]
pub(crate) struct Install {
    #[command(flatten)]
    pub(crate) terms: Terms,
    /// Name of the cluster; by default the image's name
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    pub(crate) cluster: Option<String>,
    /// Kubernetes resources, YAML, that are created at the end of the install, and a
    /// ClusterConfiguration and RuntimeEnvironment of Gravity
    #[arg(long, value_name = "FILE", help_heading = "Cluster")]
    pub(crate) config: Option<PathBuf>,
    /// Helm values for the application's hooks, YAML; can be repeated, later files win
    #[arg(long, value_name = "FILE", help_heading = "Cluster")]
    pub(crate) values: Vec<PathBuf>,
    /// One of them, as Helm takes it, and wins over --values; can be repeated. Others
    /// on this node see it among the processes: give secrets by --values
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Cluster")]
    pub(crate) set: Vec<String>,
    /// Token of your own by which others join within 24 hours; by default one is
    /// made where the flavor has several nodes
    #[arg(
        long,
        value_name = "TOKEN",
        env = "GRAVITY_TOKEN",
        hide_env_values = true,
        help_heading = "Cluster"
    )]
    pub(crate) token: Option<String>,
    /// File with that token; - reads it from standard input
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "token",
        help_heading = "Cluster"
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// Where the cluster runs
    #[arg(
        long,
        value_name = "PROVIDER",
        value_enum,
        default_value = "generic",
        help_heading = "Cluster"
    )]
    pub(crate) cloud_provider: Provider,
    /// Address by which this node is known; by default its only one
    #[arg(long, value_name = "IP", help_heading = "This node")]
    pub(crate) advertise_addr: Option<IpAddr>,
    /// Profile of this node; by default the flavor's first
    #[arg(long, value_name = "PROFILE", help_heading = "This node")]
    pub(crate) role: Option<String>,
    /// How image layers are stored: both are the kernel's overlay filesystem
    #[arg(long, value_name = "DRIVER", value_enum, help_heading = "This node")]
    pub(crate) storage_driver: Option<StorageDriver>,
    /// DNS zone that another server answers for; can be repeated
    #[arg(long, value_name = "ZONE/IP[:PORT]", value_parser = dns_zone, help_heading = "Network")]
    pub(crate) dns_zone: Vec<spec::DnsZone>,
    /// Address of this node or of loopback on which the cluster's DNS answers
    /// beside 169.254.20.10; can be repeated
    #[arg(long, value_name = "IP", help_heading = "Network")]
    pub(crate) dns_listen_addr: Vec<IpAddr>,
    /// Port of --dns-listen-addr
    #[arg(long, value_name = "PORT", default_value_t = spec::DNS_PORT,
          value_parser = clap::value_parser!(u16).range(1..), requires = "dns_listen_addr",
          help_heading = "Network")]
    pub(crate) dns_port: u16,
    /// Group id of the service user where it is created; by default its user id
    #[arg(long, value_name = "GID", env = "GRAVITY_SERVICE_GROUP",
          value_parser = clap::value_parser!(u32).range(1..), help_heading = "Service user")]
    pub(crate) service_gid: Option<u32>,
    /// Accept the end-user license agreement without being asked
    #[arg(long, help_heading = "How to install")]
    pub(crate) accept_eula: bool,
    /// License that the image demands: a file, or the text itself
    #[arg(
        long,
        value_name = "FILE|TEXT",
        env = "GRAVITY_LICENSE",
        hide_env_values = true,
        help_heading = "How to install"
    )]
    pub(crate) license: Option<String>,
    /// Don't measure how fast disks are: some seconds less
    #[arg(long, help_heading = "How to install")]
    pub(crate) skip_disk_test: bool,
    /// Let failures of this check not count; may be given several times
    #[arg(long, value_name = "ID", help_heading = "How to install")]
    pub(crate) ignore: Vec<String>,
    /// Check, then print what would change on this node, and change nothing
    #[arg(long, help_heading = "How to install")]
    pub(crate) dry_run: bool,
    /// How long certificates live, in seconds: for tests of their renewal
    #[arg(long, hide = true, value_name = "SECONDS", default_value_t = spec::care::LEAF_SECONDS,
          value_parser = clap::value_parser!(u64)
              .range(spec::care::LEAF_SECONDS_MIN..=spec::care::LEAF_SECONDS))]
    pub(crate) leaf_seconds: u64,
}

/// Where a cluster runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Provider {
    /// Any Linux machines
    Generic,
}

/// How image layers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StorageDriver {
    /// containerd's overlayfs
    Overlay,
    /// The same
    Overlay2,
}

fn mount(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once(':') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), path.into()))
        }
        _ => Err("give the volume's name and a path, such as data:/mnt/data".into()),
    }
}

fn dns_zone(text: &str) -> Result<spec::DnsZone, String> {
    let (zone, server) = text
        .split_once('/')
        .ok_or("give the zone and a server, such as example.com/10.0.0.2")?;
    let name = zone.trim_end_matches('.').to_lowercase();
    let label = |label: &str| {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&label.len()) && label.chars().all(good)
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(format!("\"{zone}\" is not the name of a zone"));
    }
    let port = spec::DNS_PORT;
    let server = match server.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, port),
        Err(_) => server
            .parse()
            .map_err(|_| format!("\"{server}\" is not an address, with or without a port"))?,
    };
    Ok(spec::DnsZone {
        name,
        servers: vec![server],
    })
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
    /// Path on this node of a volume that the profile names; can be repeated
    #[arg(long, value_name = "NAME:PATH", value_parser = mount)]
    pub(crate) mount: Vec<(String, PathBuf)>,
    /// Address by which other nodes reach this one; by default its only one
    #[arg(long, value_name = "IP")]
    pub(crate) advertise_addr: Option<IpAddr>,
    /// Let failures of this check not count; may be given several times
    #[arg(long, value_name = "ID")]
    pub(crate) ignore: Vec<String>,
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
    /// Host name of the node, or its address
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
        /// File with a token of your own choice, of 16 to 128 characters; - reads it from
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

/// A time such as `30m` or `7d`. A day has 24 hours here, whatever clocks do.
fn duration(text: &str) -> Option<jiff::SignedDuration> {
    let days = text
        .strip_suffix('d')
        .and_then(|days| days.parse::<i64>().ok());
    match days {
        // Beyond a century nobody means it, and hours would overflow.
        Some(days) => (days.abs() <= 36_500).then(|| jiff::SignedDuration::from_hours(days * 24)),
        None => text.parse().ok(),
    }
}

fn ttl(text: &str) -> Result<jiff::SignedDuration, String> {
    duration(text)
        .filter(|ttl| ttl.is_positive() && ttl.as_hours() <= 24 * 3650)
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
    /// Hooks that run when a node comes or goes
    #[arg(long, value_name = "FILE")]
    pub(crate) hooks: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Images {
    /// Where it listens
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: SocketAddr,
    /// Directory of authorities and certificates
    #[arg(long, value_name = "DIR")]
    pub(crate) secrets: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) terms: Terms,
    /// Cluster image or Image Manifest to check against; by default the image
    /// that this program carries
    #[arg(value_name = "IMAGE|MANIFEST")]
    pub(crate) against: Option<PathBuf>,
    /// Profile to check against; by default the one that an install takes for the
    /// first node
    #[arg(long, short, value_name = "PROFILE")]
    pub(crate) profile: Option<String>,
    /// Address by which this node would be known
    #[arg(long, value_name = "IP")]
    pub(crate) advertise_addr: Option<IpAddr>,
    /// Mend what can be mended, now and at every boot: kernel modules and
    /// parameters, what firewalld lets through; `gravity leave` reverts it
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
    /// Measure the way to these nodes, too, where `gravity check --listen` or a
    /// cluster's controller runs: IP or IP:PORT, separated by commas
    #[arg(long, value_name = "PEER", value_delimiter = ',', value_parser = peer,
          conflicts_with = "facts")]
    pub(crate) peer: Vec<SocketAddr>,
    /// Let other nodes measure the way to this one, for an hour at most
    #[arg(long, conflicts_with_all = ["peer", "facts", "facts_out", "autofix", "against"])]
    pub(crate) listen: bool,
    /// Token that nodes know each other by: what `--listen` printed, or a
    /// cluster's; with `--listen` one of your own
    #[arg(
        long,
        value_name = "TOKEN",
        env = "GRAVITY_TOKEN",
        hide_env_values = true
    )]
    pub(crate) token: Option<String>,
    /// File with the token; - reads it from standard input
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub(crate) token_file: Option<PathBuf>,
    /// Show passed checks, too
    #[arg(long)]
    pub(crate) all: bool,
    /// Say what a check looks at, what it wants and why; `all` for every check
    #[arg(long, value_name = "ID", exclusive = true)]
    pub(crate) explain: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// Only show what would be taken back
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Don't ask
    #[arg(long)]
    pub(crate) confirm: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Status {
    /// Show nothing but the token with which nodes join; on a master
    #[arg(long)]
    pub(crate) token: bool,
    /// Follow the operation that runs to its end first
    #[arg(long)]
    pub(crate) tail: bool,
    /// Show the state again every so many seconds, until Ctrl+C
    #[arg(
        long,
        short,
        value_name = "N",
        conflicts_with = "token",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub(crate) seconds: Option<u64>,
    #[command(subcommand)]
    pub(crate) command: Option<StatusCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StatusCommand {
    /// Show what has happened to nodes, services and the application; on a master
    History,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Plan {
    /// Follow the operation to its end
    #[arg(long)]
    pub(crate) tail: bool,
    #[command(subcommand)]
    pub(crate) command: Option<PlanCommand>,
}

impl Plan {
    /// Whether the plan is all that is printed.
    pub(crate) fn only_shows(&self) -> bool {
        matches!(self.command, None | Some(PlanCommand::Display)) && !self.tail
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlanCommand {
    /// The same as without a command
    #[command(hide = true)]
    Display,
    /// Execute one phase
    Execute(OnePhase),
    /// Take one phase back
    Rollback(OnePhase),
    /// Execute all that is not complete
    Resume,
    /// End an operation whose phases were executed, or taken back, one by one
    Complete,
}

#[derive(Debug, Args)]
pub(crate) struct OnePhase {
    /// The phase, such as `/start/planet`, or a group of them, such as `/start`
    #[arg(long, value_name = "ID")]
    pub(crate) phase: String,
    /// Also when it is complete already, or others come before or after it
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Where to; a name that ends in .tar.zst is compressed by zstd
    #[arg(long, value_name = "FILE", default_value = "report.tar.gz")]
    pub(crate) file: PathBuf,
    /// Leave out what is older than this, such as 30m, 24h or 7d; 0s takes all
    #[arg(long, value_name = "TIME", default_value = "14d", value_parser = since)]
    pub(crate) since: jiff::SignedDuration,
}

fn since(text: &str) -> Result<jiff::SignedDuration, String> {
    duration(text)
        .filter(|time| !time.is_negative())
        .ok_or_else(|| "not a time such as 30m, 24h or 7d".into())
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cert {
    /// List certificates, until when they are good, and whether half of their
    /// life is over
    #[command(visible_alias = "ls")]
    List,
    /// Replace certificates whose half-life is over, and restart the services
    /// that have them; the node does it by itself, too
    Renew {
        /// Replace all, whatever their age
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Care {
    /// What it looks after
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Etcd {
    /// Take a snapshot
    Snapshot {
        /// Where to; among those that the node keeps otherwise
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// List the snapshots that the node keeps
    Snapshots,
    /// Remove the data of a first start that was cut off; before each start of etcd
    #[command(hide = true)]
    Prepare {
        /// Where etcd keeps its data
        data: PathBuf,
    },
    /// Give the cluster the state of a snapshot; or go on as the only master
    /// when all others with a vote, or too many, are lost; pods go on
    Recover {
        /// Name of a snapshot that the node keeps, or a file; where other masters
        /// are lost, what this node's own etcd holds otherwise
        snapshot: Option<PathBuf>,
        /// Don't ask
        #[arg(long)]
        confirm: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Leave {
    /// Go on when an uninstall hook fails or the cluster doesn't answer
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
pub(crate) struct Stop {
    /// Don't ask
    #[arg(long)]
    pub(crate) confirm: bool,
    /// Go on when the stop hook fails or the cluster doesn't answer
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Hook {
    /// Run a hook as a Job, wait for its end and show its output
    Run {
        /// Name of the hook, such as dump
        name: HookName,
        /// Environment of the hook's containers; repeat it for several
        #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
        env: Vec<(String, String)>,
    },
    /// Run the status hook every minute: a service of the planet
    #[command(hide = true)]
    Watch {
        /// How Kubernetes is reached
        #[arg(long, value_name = "FILE")]
        kubeconfig: PathBuf,
        /// Who we are, among all that do the same
        #[arg(long, value_name = "NAME")]
        node: String,
        /// The hook
        hook: PathBuf,
    },
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("expected NAME=VALUE".into()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Changes nothing: the command has a terminal where this one has
    #[arg(id = "tty", long = "tty", short = 't')]
    pub(crate) _tty: bool,
    /// Changes nothing: the command always reads what this one is given
    #[arg(id = "interactive", long = "interactive", short = 'i')]
    pub(crate) _interactive: bool,
    /// Command and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Agent {
    /// Serve the node's agent socket until nothing is left to do
    Run,
    /// Run an operation, whatever becomes of the terminal
    Operate {
        /// Its id
        #[arg(long)]
        operation: String,
        /// What to do with it, JSON
        #[arg(long)]
        action: String,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn install(arguments: &[&str]) -> Result<Install, clap::Error> {
        let all = ["gravity", "install"]
            .into_iter()
            .chain(arguments.iter().copied());
        match Cli::try_parse_from(all)?.command {
            Command::Install(install) => Ok(install),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_of_install_are_grouped() {
        let mut command = Cli::command();
        let install = command.find_subcommand_mut("install").unwrap();
        let help = install.render_help().to_string();
        for heading in [
            "Cluster:",
            "This node:",
            "Network:",
            "Service user:",
            "How to install:",
        ] {
            assert!(help.contains(heading), "{heading} in {help}");
        }
    }

    #[test]
    fn options_of_exec_end_where_its_command_begins() {
        let exec = |arguments: &[&str]| {
            let all = [&["gravity", "exec"][..], arguments].concat();
            match Cli::try_parse_from(all).unwrap().command {
                Command::Exec(exec) => (exec._tty, exec._interactive, exec.command),
                other => panic!("{other:?}"),
            }
        };
        let words = |words: &[&str]| Vec::from_iter(words.iter().map(ToString::to_string));
        for (given, tty, interactive) in [
            (&["-ti"][..], true, true),
            (&["-i", "--tty"], true, true),
            (&["--interactive"], false, true),
            (&[], false, false),
        ] {
            let command = ["sh", "-i", "-t", "--output", "x"];
            let read = exec(&[given, &command[..]].concat());
            assert_eq!(read, (tty, interactive, words(&command)), "{given:?}");
        }
    }

    #[test]
    fn commands_are_taken_as_scripts_write_them() {
        let read = |words: &[&str]| Cli::try_parse_from([&["gravity"][..], words].concat());
        assert!(read(&["start", "--confirm"]).is_ok());
        let plan = read(&["plan", "display", "-o", "yaml"]).unwrap();
        assert_eq!(plan.global.output, Output::Yaml);
        assert!(matches!(plan.command, Command::Plan(plan) if plan.only_shows()));
        let version = read(&["version", "-o", "json"]).unwrap();
        assert_eq!(version.global.output, Output::Json);
    }

    #[test]
    fn values_of_install_are_read() {
        let read = install(&[
            "--mount=data:/mnt/data",
            "--dns-zone=Example.com./10.0.0.2",
            "--dns-zone=corp/10.0.0.3:5353",
            "--dns-zone=v6.test/::1",
            "--dns-listen-addr=127.0.0.2",
            "--dns-port=5353",
            "--storage-driver=overlay",
            "--values=a.yaml",
            "--values=b,c.yaml",
            "--set=a=1,b={2,3}",
            "--set=c=-1",
        ])
        .unwrap();
        // Their commas are Helm's.
        assert_eq!(read.values, [PathBuf::from("a.yaml"), "b,c.yaml".into()]);
        assert_eq!(read.set, ["a=1,b={2,3}", "c=-1"]);
        assert_eq!(
            read.terms.mount,
            [("data".to_owned(), PathBuf::from("/mnt/data"))]
        );
        let zones: Vec<_> = read
            .dns_zone
            .iter()
            .map(|zone| (zone.name.as_str(), zone.servers[0].to_string()))
            .collect();
        assert_eq!(
            zones,
            [
                ("example.com", "10.0.0.2:53".to_owned()),
                ("corp", "10.0.0.3:5353".to_owned()),
                ("v6.test", "[::1]:53".to_owned()),
            ]
        );
        for bad in [
            "--mount=data",
            "--mount=:/x",
            "--dns-zone=example.com",
            "--dns-zone=example.com/ns1",
            "--dns-zone=a b/10.0.0.1",
            "--dns-zone=/10.0.0.1",
            "--dns-listen-addr=host",
            "--dns-port=5353",
            "--vxlan-port=0",
            "--service-uid=0",
            "--service-uid=planet",
            "--storage-driver=devicemapper",
            "--cloud-provider=aws",
            "--leaf-seconds=59",
            "--leaf-seconds=31536001",
            "--advertise-addr=node",
        ] {
            assert_eq!(install(&[bad]).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
