//! `gravity care`: looks after the node while it runs.

use anyhow::{Context, Result, bail};
use console::ExitCode;
use planet::client::SOCKET;
use spec::care::Care;

use crate::cli;

pub(crate) async fn run(arguments: &cli::Care) -> Result<ExitCode> {
    super::log_to_stderr();
    let path = &arguments.config;
    let json = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let care: Care =
        serde_json::from_slice(&json).with_context(|| format!("read {}", path.display()))?;
    if care.version != spec::VERSION {
        bail!(
            "{} has version {}, this program knows {}",
            path.display(),
            care.version,
            spec::VERSION
        );
    }
    let kubeconfig = Care::layout().kubelet_kubeconfig();
    tokio::select! {
        () = agent::care::run(&care, SOCKET.as_ref(), agent::terminated()) => {}
        never = installer::masters::keep(&kubeconfig) => match never {},
    }
    Ok(ExitCode::Ok)
}
