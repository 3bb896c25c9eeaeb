//! `gravity exec` and `gravity shell`: commands inside the planet.

use anyhow::Result;
use console::ExitCode;

use super::{Session, require_root};

pub(crate) fn run(session: &Session, command: &[String]) -> Result<ExitCode> {
    require_root()?;
    // Never returns where it succeeds: the command takes this process's place.
    super::planet::enter(&session.layout, command)
}
