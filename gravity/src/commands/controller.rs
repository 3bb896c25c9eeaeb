//! `gravity controller`: takes nodes in and lets them go.

use anyhow::{Context, Result};
use console::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Controller;

pub(crate) async fn run(arguments: &Controller) -> Result<ExitCode> {
    super::log_to_stderr();
    let mut terminate = signal(SignalKind::terminate()).context("wait for signals")?;
    let stop = async move {
        terminate.recv().await;
    };
    installer::controller::run(arguments.listen, &arguments.secrets, &arguments.hooks, stop)
        .await
        .context("run the cluster's controller")?;
    Ok(ExitCode::Ok)
}
