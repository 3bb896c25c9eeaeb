//! `gravity resume`: goes on with the last operation.

use anyhow::Result;
use console::ExitCode;
use event::Sink;
use installer::coordinator::Operation;

use super::{Session, install, require_root};

pub(crate) async fn run(session: &Session) -> Result<ExitCode> {
    require_root()?;
    let operation = Operation::last(&session.layout)?;
    if operation.state()?.is_completed() {
        session
            .console
            .info("The last operation is complete; `gravity status` shows the cluster");
        return Ok(ExitCode::Ok);
    }
    install::execute(session, &operation).await
}
