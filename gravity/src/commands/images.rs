//! `gravity images`: gives nodes that join the cluster image.

use anyhow::{Context, Result};
use console::ExitCode;

use crate::cli::Images;

pub(crate) async fn run(arguments: &Images) -> Result<ExitCode> {
    super::log_to_stderr();
    installer::images::run(arguments.listen, &arguments.secrets, agent::terminated())
        .await
        .context("give the cluster image away")?;
    Ok(ExitCode::Ok)
}
