//! `gravity controller`: takes nodes in and lets them go.

use anyhow::{Context, Result};
use console::ExitCode;

use crate::cli::Controller;

pub(crate) async fn run(arguments: &Controller) -> Result<ExitCode> {
    super::log_to_stderr();
    installer::controller::run(
        arguments.listen,
        &arguments.secrets,
        &arguments.hooks,
        agent::terminated(),
    )
    .await
    .context("run the cluster's controller")?;
    Ok(ExitCode::Ok)
}
