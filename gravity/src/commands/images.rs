//! `gravity images`: gives nodes that join the cluster image.

use anyhow::{Context, Result};
use console::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Images;

pub(crate) async fn run(arguments: &Images) -> Result<ExitCode> {
    super::log_to_stderr();
    let mut terminate = signal(SignalKind::terminate()).context("wait for signals")?;
    let stop = async move {
        terminate.recv().await;
    };
    installer::images::run(arguments.listen, &arguments.secrets, stop)
        .await
        .context("give the cluster image away")?;
    Ok(ExitCode::Ok)
}
