//! `gravity masters`: follows who the cluster's masters are.

use anyhow::{Context, Result};
use console::ExitCode;

use crate::cli::Masters;

pub(crate) async fn run(arguments: &Masters) -> Result<ExitCode> {
    super::log_to_stderr();
    installer::masters::follow(&arguments.kubeconfig)
        .await
        .context("follow the cluster's masters")?;
    Ok(ExitCode::Ok)
}
