//! `gravity exec` and `gravity shell`: commands inside the planet.

use anyhow::Result;
use console::ExitCode;

use super::{Session, require_root};

pub(crate) fn run(session: &Session, command: &[String]) -> Result<ExitCode> {
    require_root()?;
    match super::planet::enter(&session.layout, command)? {}
}
