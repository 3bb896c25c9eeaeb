//! `gravity plan`: the phases of the last operation.

use anyhow::Result;
use console::ExitCode;
use installer::coordinator::Operation;

use super::Session;

pub(crate) fn run(session: &Session) -> Result<ExitCode> {
    let operation = Operation::last(&session.layout)?;
    let state = operation.state()?;
    let view = operation::view(&operation.plan, &state);
    match session.console.is_json() {
        true => session.console.print_json(&view)?,
        false => session.console.print(&operation::render(&view)),
    }
    Ok(ExitCode::Ok)
}
