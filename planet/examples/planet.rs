//! The planet's entry points as a program of their own, to try them without
//! the product around: `run CONFIG SUPERVISOR...`, `supervise`, `enter CONFIG
//! COMMAND...`, `status SOCKET`, `wait SOCKET SECONDS`, `restart SOCKET
//! SERVICE`, `stop SOCKET`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for developers"
)]

use std::path::Path;
use std::time::Duration;

use gravity_planet as planet;
use planet::client::Client;
use planet::{Result, container, enter, supervisor};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["run", config, ..] => container::run_with(Path::new(config), &arguments[2..]),
        ["supervise"] => supervisor::run(),
        ["enter", config, ..] => enter(Path::new(config), &arguments[2..]),
        _ => ask(&words),
    };
    if let Err(error) = result {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn enter(config: &Path, command: &[String]) -> Result<()> {
    let pid = container::running(config)?;
    let command: Vec<_> = command.iter().map(Into::into).collect();
    std::process::exit(enter::exec(pid, &command, &[], true)?);
}

#[tokio::main(flavor = "current_thread")]
async fn ask(words: &[&str]) -> Result<()> {
    match *words {
        ["status", socket] => {
            let status = Client::new(Path::new(socket)).status().await?;
            println!(
                "{}",
                serde_json::to_string_pretty(&status).unwrap_or_default()
            );
        }
        ["wait", socket, seconds] => {
            let timeout = Duration::from_secs(seconds.parse().unwrap_or(60));
            let started = std::time::Instant::now();
            let mut ready = Vec::new();
            Client::new(Path::new(socket))
                .wait_ready(&[], timeout, |status| {
                    for service in &status.services {
                        if service.state == planet::client::State::Ready
                            && !ready.contains(&service.name)
                        {
                            println!("{:>6} ms {}", started.elapsed().as_millis(), service.name);
                            ready.push(service.name.clone());
                        }
                    }
                })
                .await?;
        }
        ["restart", socket, service] => Client::new(Path::new(socket)).restart(service).await?,
        ["stop", socket] => Client::new(Path::new(socket)).stop().await?,
        _ => eprintln!("unknown command {words:?}"),
    }
    Ok(())
}
