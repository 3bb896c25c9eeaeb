//! The `tele` program: builds cluster images, and moves them to and from a hub.
//!
//! In: a command line. Out: an exit code of [`console::ExitCode`].

mod artifact;
mod build;
mod cli;
mod diff;
mod export;
mod hub;
mod inspect;
mod license;
mod lint;
mod login;
mod ls;
mod pull;
mod push;
mod rm;
mod schema;
mod unfinished;
mod verify;

use std::process::ExitCode;
use std::sync::Arc;

use console::Console;

use build::manifest::Rejected;
use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::read();
    let console = Arc::new(Console::new(cli.format()));
    let result = match cli.command {
        Command::Build(arguments) => build::run(&arguments, &console),
        Command::Push(arguments) => push::run(&arguments, &console),
        Command::Pull(arguments) => pull::run(&arguments, &console),
        Command::Ls(arguments) => ls::run(&arguments, &console),
        Command::Inspect(arguments) => inspect::run(&arguments, &console),
        Command::Diff(arguments) => diff::run(&arguments, &console),
        Command::Verify(arguments) => match verify::run(&arguments, &console) {
            Ok(code) => return code.into(),
            Err(error) => Err(error),
        },
        Command::Export(arguments) => export::run(&arguments, &console),
        Command::Rm(arguments) => rm::run(&arguments, &console),
        Command::Login(arguments) => login::login(&arguments, &console),
        Command::Logout(arguments) => login::logout(&arguments, &console),
        Command::Lint(arguments) => match lint::run(&arguments, &console) {
            Ok(code) => return code.into(),
            Err(error) => Err(error),
        },
        Command::License(arguments) => license::run(&arguments, &console),
        Command::Schema => schema::run(&console),
        // Nothing has started a thread yet.
        Command::Node(task) => match throwaway::helper::run(task) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Version => {
            console.print(&format!("tele {}", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
    };
    let Err(error) = result else {
        return console::ExitCode::Ok.into();
    };
    if let Some(rejected) = error.downcast_ref::<Rejected>() {
        for diagnostic in &rejected.diagnostics {
            console.error_text(&diagnostic.to_string());
        }
    }
    console.error(error.as_ref());
    console::ExitCode::Failed.into()
}
