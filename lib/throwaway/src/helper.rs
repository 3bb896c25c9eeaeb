//! What a program does for its nodes in processes of its own: entering namespaces
//! needs one with a single thread.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::inside;

/// Commands that a program which has nodes must understand.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Run a command in a node as root, with the streams of this one.
    Exec {
        /// Its name.
        name: String,
        /// Program and arguments; a shell otherwise.
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Copy a file or directory into a node.
    Copy {
        /// Its name.
        name: String,
        /// A path on this machine.
        from: PathBuf,
        /// A path in the node.
        to: PathBuf,
    },
    /// Start process 1 of a node.
    #[command(hide = true)]
    Start {
        /// Its name.
        name: String,
    },
    /// Be process 1 of a node.
    #[command(hide = true)]
    Init {
        /// Its name.
        name: String,
    },
}

/// Does it. This process must have one thread, and end afterwards.
///
/// # Errors
/// See [`inside`].
pub fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Exec { name, mut command } => {
            if command.is_empty() {
                command.push("bash".into());
            }
            let code = inside::exec(&name, &command)?;
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
        }
        Task::Copy { name, from, to } => {
            inside::copy(&name, &from, &to).map(|()| ExitCode::SUCCESS)
        }
        Task::Start { name } => {
            let id = inside::start(&name)?;
            writeln!(std::io::stdout(), "{id}").context("saying the process id")?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Init { name } => inside::init(&name).map(|()| ExitCode::SUCCESS),
    }
}

/// The program that understands [`Task`]: `testnode` does as it is, `tele` below
/// its command `node`, tests start the `testnode` beside them.
///
/// # Errors
/// When there is none.
pub(crate) fn program() -> Result<Command> {
    let own = std::env::current_exe().context("finding this program")?;
    if own.file_name().is_some_and(|name| name == "testnode") {
        return Ok(Command::new(own));
    }
    // Tests are in `deps` below the programs.
    let beside = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|path| path.join("testnode"));
    let is_test = own.parent().is_some_and(|path| path.ends_with("deps"));
    match beside.filter(|path| path.is_file()).find(|_| is_test) {
        Some(path) => Ok(Command::new(path)),
        None => {
            let mut command = Command::new(own);
            command.arg("node");
            Ok(command)
        }
    }
}
