//! Where services write how they are, and everybody reads it.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::client::{ServiceStatus, State, Status};
use crate::config::Service;

/// At most so many warnings are kept.
const MAX_WARNINGS: usize = 32;

/// The status of all services.
#[derive(Debug, Clone)]
pub(super) struct Board(watch::Sender<Status>);

impl Board {
    pub(super) fn new(services: &[Service]) -> Self {
        let services = services
            .iter()
            .map(|service| ServiceStatus {
                name: service.name.clone(),
                state: State::Starting,
                pid: None,
                restarts: 0,
                since: now(),
                last_error: None,
            })
            .collect();
        Self(watch::Sender::new(Status {
            services,
            ready: false,
            warnings: Vec::new(),
        }))
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Status> {
        self.0.subscribe()
    }

    pub(super) fn warn(&self, text: String) {
        tracing::warn!("{text}");
        self.0.send_if_modified(|status| {
            let new = status.warnings.len() < MAX_WARNINGS && !status.warnings.contains(&text);
            if new {
                status.warnings.push(text);
            }
            new
        });
    }

    /// Changes a service's status; who reads hears of it only if something
    /// became different.
    pub(super) fn change(&self, name: &str, change: impl FnOnce(&mut ServiceStatus)) {
        self.0.send_if_modified(|status| {
            let Some(service) = status
                .services
                .iter_mut()
                .find(|service| service.name == name)
            else {
                return false;
            };
            let before = service.clone();
            change(service);
            if service.state != before.state {
                service.since = now();
                tracing::info!(
                    service = name,
                    pid = service.pid,
                    error = service.last_error.as_deref(),
                    "{}",
                    service.state
                );
            }
            let changed = *service != before;
            status.ready = status
                .services
                .iter()
                .all(|service| service.state == State::Ready);
            changed
        });
    }

    /// Waits until all of `names` are in `state`.
    pub(super) async fn wait(&self, names: &[String], state: State) {
        let all = |status: &Status| {
            names.iter().all(|name| {
                status
                    .services
                    .iter()
                    .any(|service| service.name == *name && service.state == state)
            })
        };
        // The sender lives as long as we do.
        drop(self.subscribe().wait_for(all).await);
    }
}

pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
