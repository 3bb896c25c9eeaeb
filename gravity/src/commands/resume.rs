//! `gravity resume`: goes on with the last operation.

use anyhow::{Result, bail};
use console::ExitCode;
use installer::coordinator::Operation;

use super::{Session, install, require_root};

pub(crate) async fn run(session: &Session) -> Result<ExitCode> {
    require_root()?;
    let operation = Operation::last(&session.layout)?;
    if operation.state()?.is_completed() {
        bail!("the last operation is complete; `gravity status` shows the cluster");
    }
    install::execute(session, &operation).await
}
