//! Commands of the planet: the container's daemon and supervisor, and programs
//! inside. They must run before this process has a second thread.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use spec::layout::Layout;

/// Names by which this program is called as another.
const CLIENTS: &[&str] = &["kubectl", "helm"];

/// Runs what must be single-threaded, where the command line asks for it.
pub(crate) fn before_threads() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let name = arguments.next()?;
    let name = Path::new(&name).file_name()?.to_str()?.to_owned();
    if CLIENTS.contains(&name.as_str()) {
        return Some(report(client(&name)));
    }
    let arguments: Vec<_> = arguments
        .filter_map(|argument| argument.into_string().ok())
        .collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    if arguments.first() == Some(&"planet") {
        super::log_to_stderr();
    }
    match arguments[..] {
        ["planet", "run", "--config", config] => {
            // The end of the terminal where it was started, and what is typed there, is
            // not for it. The job of a shell stays one.
            let _ = nix::unistd::setsid();
            Some(report(
                planet::container::run(Path::new(config)).context("run the planet"),
            ))
        }
        ["planet", "supervise"] => Some(report(
            planet::supervisor::run().context("supervise the planet's services"),
        )),
        _ => None,
    }
}

fn report(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::Console::new(console::Format::Plain).error(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

/// Becomes the client program of the planet's root filesystem. It runs on the
/// host, where the user's files are; programs of the planet are static.
fn client(name: &str) -> Result<()> {
    let layout = Layout::new(state_dir()?);
    let rootfs = config(&layout)?.rootfs;
    let program = rootfs.join("usr/local/bin").join(name);
    let mut command = Command::new(program);
    command
        .arg0(name)
        .args(std::env::args_os().skip(1))
        .envs(no_proxy());
    if std::env::var_os("KUBECONFIG").is_none() {
        command.env("KUBECONFIG", layout.admin_kubeconfig());
    }
    // Not in the user's home, where nobody would remove it.
    if std::env::var_os("KUBECACHEDIR").is_none() && nix::unistd::geteuid().is_root() {
        command.env("KUBECACHEDIR", layout.service("kubectl-cache"));
    }
    Err(command.exec()).with_context(|| format!("run {name}"))
}

/// The environment of a client that speaks with the API server past the host's proxy, which
/// doesn't reach 169.254.20.10.
pub(crate) fn no_proxy() -> [(&'static str, OsString); 2] {
    let [upper, lower] = ["NO_PROXY", "no_proxy"].map(std::env::var_os);
    [
        ("NO_PROXY", with_leader(&upper, &lower)),
        ("no_proxy", with_leader(&lower, &upper)),
    ]
}

/// One of these variables and the leader. Who takes the first that is not empty must not
/// miss what only the `other` has.
fn with_leader(own: &Option<OsString>, other: &Option<OsString>) -> OsString {
    let mut known = [own, other].into_iter().flatten();
    let known = known.find(|value| !value.is_empty());
    let mut value = known.cloned().unwrap_or_default();
    if !value.is_empty() {
        value.push(",");
    }
    value.push(spec::LEADER_ADDRESS.to_string());
    value
}

/// The state directory that this program is installed in: `<it>/bin/gravity`.
fn state_dir() -> Result<std::path::PathBuf> {
    let program = std::env::current_exe().context("find this program")?;
    let parent = program.parent().and_then(Path::parent);
    parent
        .map(Path::to_owned)
        .context("find the state directory of this program")
}

pub(crate) fn config(layout: &Layout) -> Result<planet::config::PlanetConfig> {
    let path = layout.planet_config();
    if !path.exists() {
        bail!("there is no planet on this node; `gravity install` makes one");
    }
    Ok(planet::container::load(&path)?)
}

/// Runs `command` inside the running planet and ends with its exit code.
pub(crate) fn enter(layout: &Layout, command: &[String]) -> Result<std::convert::Infallible> {
    config(layout)?;
    let process = planet::container::running(&layout.planet_config()).context("find the planet")?;
    let kubeconfig = format!("{}/admin.kubeconfig", spec::layout::PLANET_SECRETS);
    let env = [("KUBECONFIG".to_owned(), kubeconfig)];
    let command: Vec<_> = command.iter().map(Into::into).collect();
    let terminal = std::io::stdin().is_terminal();
    let code =
        planet::enter::exec(process, &command, &env, terminal).context("enter the planet")?;
    std::process::exit(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_reached_past_a_proxy_and_whatever_else_was() {
        let given = |text: &str| Some(OsString::from(text));
        for (own, other, wanted) in [
            (None, None, "169.254.20.10"),
            (given(""), None, "169.254.20.10"),
            (
                given(".a,10.0.0.1"),
                given(".b"),
                ".a,10.0.0.1,169.254.20.10",
            ),
            (given(""), given(".b"), ".b,169.254.20.10"),
            (None, given("*"), "*,169.254.20.10"),
        ] {
            assert_eq!(with_leader(&own, &other), wanted);
        }
    }
}
