//! The `gravity` program: installs and operates clusters.
//!
//! In: a command line. Out: an exit code of [`console::ExitCode`]. Called as
//! `kubectl` or `helm` it runs that program inside the planet. What must be
//! single-threaded, the planet's own commands, runs before anything else.

mod cli;
mod commands;

use std::process::ExitCode;

use clap::Parser;
use std::sync::Arc;

use console::Console;
use nix::sys::stat::{Mode, umask};

fn main() -> ExitCode {
    if let Some(code) = commands::planet::before_threads() {
        return code;
    }
    // Services read what is unpacked and made here, as a user of their own, also
    // where root's umask is 077. What is secret gets its mode by itself.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let cli = cli::Cli::parse();
    let console = Console::new(cli.global.output.into());
    let console = Arc::new(console.verbose(cli.command.shows_hooks()));
    match commands::run(cli, console.clone()) {
        Ok(code) => code.into(),
        Err(error) => {
            console.error(error.as_ref());
            commands::exit_code(&error).into()
        }
    }
}
