//! `gravity resume`: goes on with the last operation, or follows the one that
//! runs.

use anyhow::{Result, bail};
use console::ExitCode;
use event::Sink;
use installer::attach::Follower;
use installer::coordinator::{Action, Operation};
use installer::recover;

use super::{Session, etcd, process, require_root};

pub(crate) async fn run(session: &Session) -> Result<ExitCode> {
    require_root()?;
    if session.global.image.is_some() {
        bail!("--image can't be changed: the plan names the image it was made for");
    }
    if let Ok(follower) = Follower::open(&session.layout.operation_socket()).await {
        session.console.info(&format!(
            "Following the operation that runs (pid {})",
            follower.pid()
        ));
        return process::follow(session, follower).await;
    }
    let last = Operation::last(&session.layout)?;
    if last.state()?.is_completed() {
        session
            .console
            .info("The last operation is complete; `gravity status` shows the cluster");
        return Ok(ExitCode::Ok);
    }
    if last.plan.kind == recover::KIND {
        etcd::may_go_on(session, &last).await?;
    }
    process::start(session, &last, &Action::Run).await
}
