//! `gravity status`: the cluster, its nodes and services, from real probes.

mod endpoints;
mod etcd;
mod probes;
mod report;
mod text;

use std::time::Duration;

use anyhow::{Context, Result};
use console::ExitCode;
use event::Sink;
use jiff::SignedDuration;

pub(crate) use self::endpoints::{endpoints, endpoints_text, setup_endpoint, setup_text};
use super::{Session, plan, require_root, token};
use crate::cli::{self, StatusCommand};

pub(crate) async fn run(session: &Session, arguments: &cli::Status) -> Result<ExitCode> {
    // Who may not read secrets would see a worker, and none of its services.
    require_root()?;
    if let Some(StatusCommand::History) = arguments.command {
        return history(session).await;
    }
    if arguments.token {
        return show_token(session).await;
    }
    if arguments.tail {
        plan::follow(session).await?;
    }
    let Some(seconds) = arguments.seconds else {
        return show(session).await;
    };
    loop {
        // One that can't be had now may be there the next time.
        if let Err(error) = show(session).await {
            session.console.warning(&format!("{error:#}"));
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

async fn history(session: &Session) -> Result<ExitCode> {
    let client = session.administrator().await?;
    let changes = installer::history::read(&client).await?;
    if session.console.is_json() {
        session.console.print_json(&changes)?;
        return Ok(ExitCode::Ok);
    }
    for change in &changes {
        session.console.print(&text::history_line(change));
    }
    if changes.is_empty() {
        session.console.print("Nothing has happened yet");
    }
    Ok(ExitCode::Ok)
}

/// Shows the token alone, for scripts.
async fn show_token(session: &Session) -> Result<ExitCode> {
    let client = session.administrator().await?;
    let token = token::valid(&client, SignedDuration::ZERO)
        .await?
        .context("there is no valid token that may be shown; `gravity token create` makes one")?;
    match session.console.is_json() {
        true => session.console.print_json(&serde_json::json!({
            "name": token.name, "token": token.text, "expires": token.expires,
        }))?,
        false => session.console.print(&token.text),
    }
    Ok(ExitCode::Ok)
}

async fn show(session: &Session) -> Result<ExitCode> {
    let report = match report::begun(session).await? {
        Some(begun) => begun,
        None => report::report(session).await?,
    };
    match session.console.is_json() {
        true => session.console.print_json(&report)?,
        false => session.console.print(&text::text(&report)),
    }
    Ok(match report.cluster.state {
        "active" => ExitCode::Ok,
        "degraded" => ExitCode::Degraded,
        // Who waits for a cluster goes on waiting.
        _ => ExitCode::Busy,
    })
}
