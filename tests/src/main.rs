//! `testnode`: throwaway nodes on this machine, for tests and to look around.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};
use console::{Console, Format};
use gravity_tests::node::{self, Node, Options, delete};
use gravity_tests::rootfs::SUITE;
use gravity_tests::scenario::{self, Setup};
use gravity_tests::{
    bench, care, checks, crash, distributions, faults, hooks, hosts, join, masters, network,
    offline, page, peers, profiles, quorum, vm,
};
use throwaway::helper;

/// Throwaway nodes on this machine: namespaces over a Debian root.
#[derive(Debug, Parser)]
#[command(name = "testnode", version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Make a node.
    Create {
        /// Name and host name.
        name: String,
        /// Address on the bridge between nodes; the first free one otherwise.
        #[arg(long, value_name = "ADDRESS/PREFIX")]
        address: Option<String>,
        /// Give it a default route, to the bridge, where it ends.
        #[arg(long)]
        default_route: bool,
    },
    #[command(flatten)]
    Helper(helper::Task),
    /// Remove a node with all that is in it.
    Delete {
        /// The node.
        name: String,
    },
    /// List nodes.
    List,
    /// Build the sample cluster image and install it into a throwaway node.
    Demo {
        /// Name of the node.
        #[arg(default_value = "demo")]
        name: String,
        #[command(flatten)]
        scenario: Scenario,
    },
    /// Have `tele verify --offline-boot` install the sample, and one that lacks an
    /// image.
    Offline {
        #[command(flatten)]
        scenario: Scenario,
    },
    /// Install the sample on a node, check it, remove it and compare the node.
    E2e {
        /// Name of the node.
        #[arg(default_value = "e2e")]
        name: String,
        #[command(flatten)]
        scenario: Scenario,
    },
    /// Install the sample on nodes with other releases of Debian, and remove it.
    Distributions {
        /// First part of the nodes' names.
        #[arg(default_value = "distribution")]
        name: String,
        #[command(flatten)]
        scenario: Scenario,
    },
    /// Have a second node join the sample's cluster, work in it and leave.
    Join {
        /// First part of the nodes' names.
        #[arg(default_value = "join")]
        name: String,
        #[command(flatten)]
        scenario: Scenario,
    },
    /// Have three masters and a worker, kill a master, put a new one in its place.
    Masters {
        /// First part of the nodes' names.
        #[arg(default_value = "masters")]
        name: String,
        #[command(flatten)]
        scenario: Scenario,
    },
    /// Have three masters and a worker, kill each master, cut each off, freeze one,
    /// lose two for good, and go on with the third.
    Quorum {
        /// First part of the nodes' names.
        #[arg(default_value = "quorum")]
        name: String,
        #[command(flatten)]
        scenario: Scenario,
    },
    /// Install a profile with every attribute, look at it from the host, the
    /// planet and pods, remove it and compare the node.
    Profiles {
        /// Name of the node.
        #[arg(default_value = "profiles")]
        name: String,
        /// Directory of the application.
        #[arg(long, default_value = "tests/profiles")]
        sample: PathBuf,
        /// Use this cluster image instead of building one.
        #[arg(long)]
        image: Option<PathBuf>,
    },
    /// Run every hook on a node, each with what its failure does.
    Hooks {
        /// Name of the node.
        #[arg(default_value = "hooks")]
        name: String,
    },
    /// Install an image with a network of pods of its own, have a node join, and
    /// take both off again.
    Network {
        /// First part of the nodes' names.
        #[arg(default_value = "network")]
        name: String,
    },
    /// Build the documentation's full sample and have a node refuse it; install
    /// an image that demands a license.
    Page {
        /// Name of the node.
        #[arg(default_value = "page")]
        name: String,
        /// Install it on five nodes instead, requirements lowered.
        #[arg(long)]
        five_nodes: bool,
    },
    /// Make troubles on a node and have `gravity check` find them.
    Checks {
        /// Name of the node.
        #[arg(default_value = "checks")]
        name: String,
        #[command(flatten)]
        scenario: Scenario,
    },
    /// Install the sample beside firewalld and NetworkManager, without IPv6 and on
    /// more that hosts have, and remove it.
    Hosts {
        /// First part of the nodes' names.
        #[arg(default_value = "hosts")]
        name: String,
        #[command(flatten)]
        scenario: Scenario,
    },
    /// Make troubles between two nodes and have `gravity check --peer` find them.
    Peers {
        /// First part of the nodes' names.
        #[arg(default_value = "peers")]
        name: String,
        #[command(flatten)]
        scenario: Scenario,
    },
    /// Take snapshots, recover from them, fill etcd up, and let certificates
    /// with short lives be renewed.
    Care {
        /// First part of the nodes' names.
        #[arg(default_value = "care")]
        name: String,
        #[command(flatten)]
        scenario: Scenario,
    },
    /// Kill, damage, refuse and fill up installs, and see that all end well.
    Faults {
        /// Use this cluster image instead of building one.
        #[arg(long, value_name = "FILE")]
        image: Option<PathBuf>,
        /// Only scenarios whose name contains this; can be repeated.
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
    },
    /// Hit installs, and `leave`, at each record of their journal, then go on or back.
    Crash {
        /// Use this cluster image instead of building one.
        #[arg(long, value_name = "FILE")]
        image: Option<PathBuf>,
        #[command(flatten)]
        choice: crash::Choice,
        /// Hit a join, a leave and a removal over two nodes instead.
        #[arg(long)]
        nodes: bool,
        #[command(flatten)]
        cuts: crash::power::Cuts,
    },
    /// What needs a kernel, a disk or systemd of its own, in virtual machines.
    Vm {
        what: VmScenario,
        /// Use this cluster image instead of building one.
        image: Option<PathBuf>,
        /// Directory of the sample application.
        #[arg(long, default_value = "tests/sample")]
        sample: PathBuf,
        /// Release of Debian of the machine that `install` is about.
        #[arg(long, value_parser = PossibleValuesParser::new(vm::SUITES), default_value = SUITE)]
        debian: String,
        #[command(flatten)]
        cuts: vm::power::Cuts,
    },
    /// Measure against peers and print the ratios.
    Bench(bench::Options),
    /// Stand for many agents or nodes, for `bench`.
    #[command(hide = true)]
    Simulate {
        #[command(subcommand)]
        what: bench::Simulate,
    },
    /// Build the images of `page`, in namespaces of their own.
    #[command(hide = true)]
    PageVendor { directory: PathBuf },
}

#[derive(Debug, clap::Args)]
struct Scenario {
    /// Directory of the sample application.
    #[arg(long, default_value = "tests/sample")]
    sample: PathBuf,
    /// Use this cluster image instead of building one.
    #[arg(long)]
    image: Option<PathBuf>,
}

impl From<Scenario> for Setup {
    fn from(scenario: Scenario) -> Self {
        Self {
            image: scenario.image,
            ..Self::new(scenario.sample)
        }
    }
}

/// A scenario in virtual machines.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum VmScenario {
    /// Make troubles of the kernel and of disks, have them found and mended
    Checks,
    /// Install the sample under systemd, with a reboot in the middle, stop it, start
    /// it and remove it
    Install,
    /// Install on one machine, join another, take their network devices, reboot both,
    /// take their power
    Cluster,
    /// Have three masters, of which one never comes back
    Masters,
    /// Cut the power of machines that install, run, join
    Power,
    /// Have the clock jump, the network and rules of nftables go, memory and disk run
    /// short under a cluster
    Troubles,
    /// Have Vagrant install the sample, in a box of our own under libvirt
    Vagrant,
    /// Read the Ethernet between two machines whose pods have WireGuard
    Wireguard,
}

impl VmScenario {
    /// Says whether all ended well.
    fn run(
        self,
        setup: Setup,
        debian: &str,
        cuts: vm::power::Cuts,
        console: &Console,
    ) -> Result<bool> {
        let kept = vm::Kept::of(&format!("{self:?}").to_lowercase())?;
        let kept = &kept;
        let result = match self {
            Self::Checks => vm::checks::run(kept, console),
            Self::Install => vm::install::run(&setup, debian, kept, console),
            Self::Cluster => vm::cluster::run(&setup, kept, console),
            Self::Masters => vm::masters::run(&setup, kept, console),
            Self::Power => return kept.tell(vm::power::run(&setup, kept, cuts, console)),
            Self::Troubles => vm::troubles::run(&setup, kept, console),
            Self::Vagrant => return vm::vagrant::run(&setup, console).map(|()| true),
            Self::Wireguard => {
                let sample = "tests/wireguard".into();
                vm::wireguard::run(&Setup { sample, ..setup }, kept, console)
            }
        };
        kept.tell(result).map(|()| true)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let console = Console::new(Format::Auto);
    match run(arguments.command, &console) {
        Ok(code) => code,
        Err(error) => {
            console.error_text(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task, console: &Console) -> Result<ExitCode> {
    match task {
        Task::Create {
            name,
            address,
            default_route,
        } => {
            let options = Options {
                address,
                default_route,
                ..node::usual(console)?
            };
            let node = Node::create(&name, &options)?;
            console.print(&format!("Node {name} runs at {}", node.address()));
        }
        Task::Helper(task) => return helper::run(task),
        Task::Delete { name } => {
            let existed = delete(&name)?;
            let what = if existed { "removed" } else { "does not exist" };
            console.print(&format!("Node {name} {what}"));
        }
        Task::List => {
            let rows: Vec<_> = Node::list()?
                .iter()
                .map(|node| {
                    let pid = node
                        .pid()
                        .map_or_else(|_| "dead".to_owned(), |pid| pid.to_string());
                    vec![node.name().to_owned(), node.address().to_owned(), pid]
                })
                .collect();
            console.table(&["Name", "Address", "Process"], &rows);
        }
        Task::Demo { name, scenario } => scenario::demo(&scenario.into(), &name, console)?,
        Task::Offline { scenario } => offline::run(&scenario.into(), console)?,
        Task::E2e { name, scenario } => {
            scenario::install_and_leave(&scenario.into(), &name, console)?;
        }
        Task::Distributions { name, scenario } => {
            distributions::run(&scenario.into(), &name, console)?;
        }
        Task::Join { name, scenario } => join::run(&scenario.into(), &name, console)?,
        Task::Masters { name, scenario } => masters::run(&scenario.into(), &name, console)?,
        Task::Quorum { name, scenario } => quorum::run(&scenario.into(), &name, console)?,
        Task::Profiles {
            name,
            sample,
            image,
        } => {
            let setup = Setup {
                image,
                ..Setup::new(sample)
            };
            profiles::run(&setup, &name, console)?;
        }
        Task::Checks { name, scenario } => checks::run(&scenario.into(), &name, console)?,
        Task::Hosts { name, scenario } => hosts::run(&scenario.into(), &name, console)?,
        Task::Peers { name, scenario } => peers::run(&scenario.into(), &name, console)?,
        Task::Care { name, scenario } => care::run(&scenario.into(), &name, console)?,
        Task::Hooks { name } => hooks::run(&name, console)?,
        Task::Network { name } => network::run(&name, console)?,
        Task::Page { name, five_nodes } => page::run(&name, five_nodes, console)?,
        Task::PageVendor { directory } => page::vendor(&directory)?,
        Task::Faults { image, only } => {
            let setup = Setup {
                image,
                ..Setup::new("tests/sample")
            };
            if !faults::run(&setup.image(console)?, &only, console)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Crash {
            image,
            choice,
            nodes,
            cuts,
        } => {
            let setup = Setup {
                image,
                ..Setup::new("tests/sample")
            };
            let well = if cuts.wanted() {
                crash::power::run(&setup.image(console)?, cuts, &choice, console)?
            } else if nodes {
                crash::nodes::run(&setup.image(console)?, &choice, console)?
            } else {
                crash::run(&crash::image(&setup, console)?, &choice, console)?
            };
            if !well {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Vm {
            what,
            image,
            sample,
            debian,
            cuts,
        } => {
            let setup = Setup {
                image,
                ..Setup::new(sample)
            };
            if !what.run(setup, &debian, cuts, console)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Bench(options) => bench::run(&options, console)?,
        Task::Simulate { what } => bench::simulate(&what, console)?,
    }
    Ok(ExitCode::SUCCESS)
}
