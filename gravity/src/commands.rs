//! The commands, one file each.
//!
//! In: parsed arguments and a console. Out: an exit code or an error, which
//! `main` prints once.

mod agent;
mod care;
mod cert;
mod check;
mod completion;
mod controller;
mod etcd;
mod exec;
mod hook;
mod images;
mod install;
mod join;
mod leave;
mod own;
mod peers;
mod plan;
pub(crate) mod planet;
mod power;
mod process;
mod remove;
mod report;
mod resume;
mod rollback;
mod status;
mod token;
mod verify;
mod version;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use console::{Console, ExitCode};
use image::Image;
use installer::coordinator::Operation;
use manifest::Manifest;
use spec::ClusterSpec;
use spec::layout::Layout;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Cli, Command, Global, Output};

/// What commands have in common.
pub(crate) struct Session {
    pub(crate) global: Global,
    pub(crate) layout: Layout,
    pub(crate) console: Arc<Console>,
}

impl Session {
    /// The cluster image: of `--image`, or the one this program carries.
    pub(crate) fn image(&self) -> Result<Image> {
        match &self.global.image {
            Some(path) => Image::open(path),
            None => Image::open_self(),
        }
        .context("open the cluster image")
    }

    /// What is known of the node's cluster.
    pub(crate) fn cluster(&self) -> Result<ClusterSpec> {
        let path = self.layout.cluster();
        if self.layout.leaving().exists() {
            bail!("the cluster is being removed from this node; go on with `gravity leave`");
        }
        let Ok(json) = std::fs::read(&path) else {
            match Operation::last(&self.layout) {
                Ok(last) => bail!(
                    "the {} has not ended; see `gravity plan`, go on with `gravity resume`",
                    last.plan.kind
                ),
                Err(_) => bail!("there is no cluster on this node; `gravity install` makes one"),
            }
        };
        serde_json::from_slice(&json).with_context(|| format!("read {}", path.display()))
    }

    /// The manifest of the installed image.
    pub(crate) fn manifest(&self) -> Result<Manifest> {
        let path = self.layout.manifest();
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        manifest::parse(&text, &path.display().to_string()).map_err(|errors| {
            anyhow::anyhow!(
                "{}",
                errors.first().map(ToString::to_string).unwrap_or_default()
            )
        })
    }

    /// Kubernetes, as its administrator. Masters only.
    pub(crate) async fn administrator(&self) -> Result<cluster::Client> {
        let kubeconfig = self.layout.admin_kubeconfig();
        if !kubeconfig.exists() && self.layout.cluster().exists() {
            bail!("this node is a worker; run this on a master");
        }
        if !kubeconfig.exists() {
            bail!("there is no cluster on this node; `gravity install` makes one");
        }
        Ok(cluster::Client::connect(&kubeconfig).await?)
    }

    /// This node in a cluster, whatever its host is called by now.
    pub(crate) fn own_node<'a>(&self, cluster: &'a ClusterSpec) -> Result<&'a spec::NodeSpec> {
        let own = own::node(&self.layout)?;
        let node = cluster.node(own.id);
        node.with_context(|| format!("the cluster goes on without this node, {}", own.hostname))
    }

    /// Asks whether to go on, unless that was `confirmed`.
    pub(crate) fn go_on(&self, confirmed: bool, question: &str) -> Result<()> {
        let agreed = || {
            self.console
                .confirm(question)
                .context("use --confirm to go on without being asked")
        };
        if !confirmed && !agreed()? {
            bail!("nothing was changed");
        }
        Ok(())
    }

    /// What changes the members of etcd, on a master.
    pub(crate) fn etcd(&self) -> Result<installer::etcd::Etcd> {
        let config = ::planet::container::load(&self.layout.planet_config())?;
        Ok(installer::etcd::Etcd::on_host(&config.rootfs, &self.layout))
    }

    /// Path of that image, absolute: the agent opens it, too.
    pub(crate) fn image_path(&self) -> Result<std::path::PathBuf> {
        let path = match &self.global.image {
            Some(path) => path.clone(),
            None => std::env::current_exe().context("find this program")?,
        };
        path.canonicalize()
            .with_context(|| format!("find {}", path.display()))
    }
}

/// Where the cluster of this host keeps everything, as the link to its program says.
fn installed(links: &Path) -> Option<PathBuf> {
    let program = std::fs::read_link(links.join("gravity")).ok()?;
    let state_dir = program.parent()?.parent()?.to_owned();
    (Layout::new(&state_dir).gravity() == program).then_some(state_dir)
}

/// Runs a command.
pub(crate) fn run(cli: Cli, console: Arc<Console>) -> Result<ExitCode> {
    // The agent and the planet have other working directories.
    let given = cli.global.state_dir.clone();
    let state_dir = given
        .or_else(|| installed(Path::new(spec::LINKS)))
        .unwrap_or_else(|| spec::DEFAULT_STATE_DIR.into());
    let state_dir = std::path::absolute(state_dir).context("find the state directory")?;
    let session = Session {
        layout: Layout::new(state_dir),
        global: cli.global,
        console,
    };
    if session.global.output == Output::Yaml
        && !matches!(&cli.command, Command::Plan(plan) if plan.only_shows())
    {
        let text = "only `gravity plan` writes YAML; use --output=json";
        return Err(WrongUsage(text.into()).into());
    }
    match cli.command {
        Command::Install(arguments) => block_on(install::run(&session, &arguments)),
        Command::Join(arguments) => block_on(join::run(&session, &arguments)),
        Command::Check(arguments) => block_on(check::run(&session, &arguments)),
        Command::Resume => block_on(resume::run(&session)),
        Command::Rollback(arguments) => block_on(rollback::run(&session, &arguments)),
        Command::Plan(arguments) => block_on(plan::run(&session, &arguments)),
        Command::Status(arguments) => block_on(status::run(&session, &arguments)),
        Command::Report(arguments) => block_on(report::run(&session, &arguments)),
        Command::Cert(arguments) => block_on(cert::run(&session, &arguments)),
        Command::Leave(arguments) => to_the_end(leave::run(&session, &arguments)),
        Command::Remove(arguments) => to_the_end(remove::run(&session, &arguments)),
        Command::Token(arguments) => block_on(token::run(&session, &arguments)),
        Command::Etcd(arguments) => block_on(etcd::run(&session, &arguments)),
        Command::Care(arguments) => block_on_one_thread(care::run(&arguments)),
        Command::Controller(arguments) => block_on(controller::run(&arguments)),
        Command::Images(arguments) => block_on(images::run(&arguments)),
        Command::Stop(arguments) => to_the_end(power::stop(&session, &arguments)),
        Command::Start { .. } => to_the_end(power::start(&session)),
        Command::Hook(arguments) => to_the_end(hook::run(&session, &arguments)),
        Command::Exec(arguments) => exec::run(&session, &arguments.command),
        Command::Shell => exec::run(&session, &["/bin/bash".into(), "--login".into()]),
        Command::Verify => verify::run(&session),
        Command::Version => version::run(&session),
        Command::Completion { shell } => completion::completion(&session, shell),
        Command::Man { directory } => completion::man(&directory),
        Command::Agent(arguments) => block_on(agent::run(&session, &arguments)),
    }
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Runtime::new()
        .context("start the runtime")?
        .block_on(future)
}

/// Runs what would be half done when its terminal is lost: it goes on then.
fn to_the_end<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    block_on(async {
        // What is caught doesn't end this process. Programs that it runs are in groups
        // of their own, which are not told.
        let _hangups = signal(SignalKind::hangup()).context("listen for a hangup")?;
        future.await
    })
}

/// For what is idle almost always, and is to be small.
fn block_on_one_thread<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(future)
}

/// Daemons log to standard error, which is a file or the system's journal.
pub(crate) fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("GRAVITY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
}

/// The command line is wrong, as its parser can't see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongUsage(pub(crate) String);

/// How a copy of the file that was run is run on another node, in its directory.
pub(crate) fn copy_of_this() -> String {
    copy_of(std::env::args_os().next().as_deref())
}

/// The same for a program that was called so.
fn copy_of(called: Option<&OsStr>) -> String {
    let name = called.and_then(|called| Path::new(called).file_name()?.to_str());
    let name = name.unwrap_or("gravity");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+@%".contains(c);
    match name.chars().all(plain) {
        true => format!("./{name}"),
        // As a shell reads it.
        false => format!("'./{}'", name.replace('\'', r"'\''")),
    }
}

/// Refuses everyone but root.
pub(crate) fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        // By its path: sudo looks for programs in its own directories, and on some hosts
        // /usr/local/bin is none of them.
        let program = std::env::current_exe().context("find this program")?;
        bail!(
            "this command must be run as root; try `sudo {} ...`",
            program.display()
        );
    }
    Ok(())
}

/// The exit code that fits an error.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    for cause in error.chain() {
        if is_busy(cause) {
            return ExitCode::Busy;
        }
        if cause
            .downcast_ref::<installer::install::Error>()
            .is_some_and(installer::install::Error::is_usage)
            || cause.is::<install::WrongConfig>()
            || cause.is::<install::WrongLicense>()
            || cause.is::<install::WrongValues>()
            || cause.is::<preflight::IgnoreError>()
            || cause.is::<WrongUsage>()
        {
            return ExitCode::Usage;
        }
        if cause.is::<check::RequirementsNotMet>() {
            return ExitCode::Preflight;
        }
        if cause.is::<install::DamagedImage>() {
            return ExitCode::DamagedImage;
        }
        if cause.is::<process::Interrupted>() {
            return ExitCode::Resumable;
        }
        if cause
            .downcast_ref::<image::Error>()
            .is_some_and(image::Error::is_damage)
        {
            return ExitCode::DamagedImage;
        }
    }
    ExitCode::Failed
}

/// Whether another operation is in the way.
fn is_busy(cause: &(dyn std::error::Error + 'static)) -> bool {
    use host::lock::LockError;
    let busy = |error: &LockError| matches!(error, LockError::Busy { .. });
    cause.downcast_ref::<LockError>().is_some_and(busy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_can_t_be_have_the_code_of_wrong_usage() {
        use installer::install::Error;
        let address = "10.0.0.1".parse().unwrap();
        let foreign = Error::ForeignAddress {
            address,
            available: Vec::new(),
        };
        assert_eq!(exit_code(&foreign.into()), ExitCode::Usage);
        let user = Error::ServiceUser("taken".into());
        assert_eq!(exit_code(&user.into()), ExitCode::Failed);
        let unknown = preflight::Report::default().ignore(&["nosuch".into()]);
        assert_eq!(exit_code(&unknown.unwrap_err().into()), ExitCode::Usage);
        let short = token::parse("ab").unwrap_err().context("join");
        assert_eq!(exit_code(&short), ExitCode::Usage);
    }

    #[test]
    fn others_run_a_copy_by_the_name_of_the_file_that_was_run() {
        for (called, shown) in [
            ("./sample", "./sample"),
            ("/root/shop-1.2.0+b", "./shop-1.2.0+b"),
            ("/usr/local/bin/gravity", "./gravity"),
            ("gravity", "./gravity"),
            ("./it's mine", r"'./it'\''s mine'"),
            ("", "./gravity"),
        ] {
            assert_eq!(copy_of(Some(OsStr::new(called))), shown);
        }
        assert_eq!(copy_of(None), "./gravity");
    }

    #[test]
    fn the_state_directory_is_that_of_the_program_that_is_linked() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("gravity");
        assert_eq!(installed(directory.path()), None);
        for (target, found) in [
            ("/data/g/bin/gravity", Some("/data/g")),
            ("/opt/vendor/gravity", None),
            ("/bin/gravity-6", None),
        ] {
            std::os::unix::fs::symlink(target, &link).unwrap();
            assert_eq!(installed(directory.path()), found.map(PathBuf::from));
            std::fs::remove_file(&link).unwrap();
        }
        // Somebody's own program.
        host::atomic::write(&link, b"", 0o755).unwrap();
        assert_eq!(installed(directory.path()), None);
    }

    #[test]
    fn the_end_of_the_terminal_is_not_the_end_of_a_command_in_the_foreground() {
        let ended = to_the_end(async {
            // Ends this test where nothing catches it.
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP)?;
            tokio::task::yield_now().await;
            Ok("whole")
        });
        assert_eq!(ended.unwrap(), "whole");
    }

    #[test]
    fn a_lock_that_is_held_has_its_own_exit_code_and_a_broken_one_has_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let _held = host::lock::Lock::acquire(&path).unwrap();
        let busy = || host::lock::Lock::acquire(&path).unwrap_err();
        assert_eq!(exit_code(&busy().into()), ExitCode::Busy);
        let wrapped = anyhow::Error::from(busy()).context("resume");
        assert_eq!(exit_code(&wrapped), ExitCode::Busy);
        let broken = host::lock::Lock::acquire(&path.join("below-a-file")).unwrap_err();
        assert_eq!(exit_code(&broken.into()), ExitCode::Failed);
    }
}
