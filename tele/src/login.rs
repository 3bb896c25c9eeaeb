//! `tele login` and `tele logout`: credentials for registries.
//!
//! In: a user and a password, which never is an argument. Out: an entry of the
//! file that other container tools use too, written only when the registry
//! takes it.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use console::Console;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use oci::credentials::{self, Login as Pair};
use oci::hub::Hub;
use oci::{Client, Credentials, Registries, Retry};

/// More is no password.
const MAX_PASSWORD: u64 = 64 << 10;

/// Where and as whom to log in.
#[derive(Debug, Args)]
pub(crate) struct Login {
    /// The registry, as HOST[:PORT] or https://HOST[/PATH].
    #[arg(value_name = "REGISTRY", env = "GRAVITY_HUB")]
    pub(crate) registry: String,
    /// The user.
    #[arg(short, long)]
    pub(crate) username: String,
    /// Read the password from standard input. Without it, the terminal is asked.
    #[arg(long)]
    pub(crate) password_stdin: bool,
}

/// Where to log out.
#[derive(Debug, Args)]
pub(crate) struct Logout {
    /// The registry, as HOST[:PORT] or https://HOST[/PATH].
    #[arg(value_name = "REGISTRY", env = "GRAVITY_HUB")]
    pub(crate) registry: String,
}

pub(crate) fn login(arguments: &Login, console: &Arc<Console>) -> Result<()> {
    let (address, host) = registry(&arguments.registry)?;
    let password = password(arguments.password_stdin)?;
    if arguments.username.is_empty() || arguments.username.contains(':') {
        bail!("a user's name is not empty and holds no colon");
    }
    let pair = Pair {
        user: arguments.username.clone(),
        password,
    };
    let client = Client::new(
        Registries::from_environment()?,
        Credentials::only(&host, pair.clone()),
        1,
        Retry::default(),
    );
    let Hub::Registry(remote) = Hub::open(Some(&address), &client, false)? else {
        bail!("{address} is a directory: it needs no login");
    };
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime
        .block_on(remote.greet())
        .with_context(|| format!("cannot log in to {host} as {}", pair.user))?;
    let file = credentials::save(&host, &pair)?;
    console.print(&format!(
        "Logged in to {host} as {}; the login is kept in {}",
        pair.user,
        file.display()
    ));
    Ok(())
}

pub(crate) fn logout(arguments: &Logout, console: &Arc<Console>) -> Result<()> {
    let (_, host) = registry(&arguments.registry)?;
    let files = credentials::forget(&host)?;
    if files.is_empty() {
        bail!("there is no login for {host}");
    }
    for file in files {
        console.print(&format!(
            "The login for {host} is removed from {}",
            file.display()
        ));
    }
    Ok(())
}

/// The address and the host of a registry.
fn registry(text: &str) -> Result<(String, String)> {
    let address = match text.contains("://") {
        true => text.to_owned(),
        false => format!("https://{text}"),
    };
    let host = address
        .split_once("://")
        .map(|(_, rest)| rest.split('/').next().unwrap_or_default().to_owned())
        .filter(|host| !host.is_empty())
        .with_context(|| format!("`{text}` is no registry"))?;
    Ok((address, host))
}

fn password(stdin: bool) -> Result<String> {
    let text = if stdin {
        let mut text = String::new();
        std::io::stdin()
            .take(MAX_PASSWORD + 1)
            .read_to_string(&mut text)
            .context("cannot read the password from standard input")?;
        text
    } else if std::io::stdin().is_terminal() {
        ask().context("cannot read the password from the terminal")?
    } else {
        bail!("there is no terminal to ask for the password: give it with --password-stdin");
    };
    let password = text.trim_end_matches(['\r', '\n']).to_owned();
    if password.is_empty() || text.len() as u64 > MAX_PASSWORD {
        bail!("the password is empty or longer than {MAX_PASSWORD} bytes");
    }
    Ok(password)
}

/// Asks without showing what is typed.
fn ask() -> Result<String> {
    let input = std::io::stdin();
    let before = tcgetattr(&input)?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    silent.local_flags.insert(LocalFlags::ECHONL);
    let mut error = std::io::stderr();
    write!(error, "Password: ").and_then(|()| error.flush())?;
    tcsetattr(&input, SetArg::TCSAFLUSH, &silent)?;
    let mut line = String::new();
    let read = input.lock().take(MAX_PASSWORD).read_line(&mut line);
    tcsetattr(&input, SetArg::TCSAFLUSH, &before)?;
    read?;
    Ok(line)
}
