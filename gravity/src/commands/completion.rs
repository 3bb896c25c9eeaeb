//! `gravity completion` and `gravity man`: made from the command line's own
//! description.

use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;
use console::ExitCode;

use super::Session;
use crate::cli::Cli;

pub(crate) fn completion(session: &Session, shell: clap_complete::Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "gravity", &mut script);
    session
        .console
        .print(&String::from_utf8(script).context("write the script")?);
    Ok(ExitCode::Ok)
}

pub(crate) fn man(directory: &Path) -> Result<ExitCode> {
    clap_mangen::generate_to(Cli::command(), directory)
        .with_context(|| format!("write man pages to {}", directory.display()))?;
    Ok(ExitCode::Ok)
}
