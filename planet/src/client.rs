//! How the supervisor is asked.
//!
//! In: the path of its socket, inside `/run/planet/planet.sock`; the host sees
//! the same below the directory that is mounted at `/run/planet/host`. Out:
//! [`Status`]. A request and an answer are one line of JSON each; after `watch`
//! an answer follows each change, so nobody needs to poll.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::{Context, Error, Result};

/// The supervisor's socket inside.
pub const SOCKET: &str = "/run/planet/planet.sock";
/// Longest line either side accepts, in bytes.
pub(crate) const MAX_LINE: usize = 1 << 20;
/// Wait between attempts to reach a supervisor that is not there yet.
const RETRY: Duration = Duration::from_millis(20);
/// How long an ordinary answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// What the supervisor can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Answers the status once.
    Status,
    /// Answers the status now and at each change.
    Watch,
    /// Stops a service and starts it again.
    Restart {
        /// Its name.
        service: String,
    },
    /// Stops a service and keeps it so until it is released or the planet
    /// starts anew.
    Hold {
        /// Its name.
        service: String,
    },
    /// Lets a held service start again.
    Release {
        /// Its name.
        service: String,
    },
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `status` and `watch`.
    Status(Status),
    /// It is being done.
    Accepted,
    /// It is not done, and why.
    Error(String),
}

/// The planet as its supervisor sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// All services, in the order of the configuration.
    pub services: Vec<ServiceStatus>,
    /// Whether all are ready.
    pub ready: bool,
    /// What did not work and is not a service: kernel parameters, listeners.
    pub warnings: Vec<String>,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: State,
    /// Process id inside, while it runs.
    pub pid: Option<i32>,
    /// How often it was started again.
    pub restarts: u32,
    /// When the state began, in seconds since 1970.
    pub since: u64,
    /// Why it is not ready, or ended the last time.
    pub last_error: Option<String>,
}

/// How a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for others, or runs and is not ready.
    Starting,
    /// Ready; a oneshot service: done.
    Ready,
    /// Was ready, runs, and doesn't answer any more.
    Unhealthy,
    /// Ended and will be started again.
    Failed,
    /// Ended because it was told to, or held.
    Stopped,
}

impl std::fmt::Display for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unhealthy => "unhealthy",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        })
    }
}

impl Status {
    /// Whether all of `services` are ready; all there are when none is named.
    pub fn are_ready(&self, services: &[String]) -> bool {
        let ready = |name: &String| {
            self.services
                .iter()
                .any(|service| service.name == *name && service.state == State::Ready)
        };
        if services.is_empty() {
            self.ready
        } else {
            services.iter().all(ready)
        }
    }

    /// The services that are not ready, each with its state and last error.
    fn missing(&self, services: &[String]) -> String {
        let wanted = |name: &String| services.is_empty() || services.contains(name);
        let missing: Vec<_> = self
            .services
            .iter()
            .filter(|service| service.state != State::Ready && wanted(&service.name))
            .map(|service| match &service.last_error {
                Some(error) => format!("{} {} ({error})", service.name, service.state),
                None => format!("{} {}", service.name, service.state),
            })
            .collect();
        missing.join(", ")
    }
}

/// Asks a supervisor; each question is a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the socket, which may not exist yet.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// How the planet is.
    ///
    /// # Errors
    /// When the supervisor can't be reached.
    pub async fn status(&self) -> Result<Status> {
        match self.ask(&Request::Status).await? {
            Answer::Status(status) => Ok(status),
            other => Err(unexpected(other)),
        }
    }

    /// Has a service stopped and started again.
    ///
    /// # Errors
    /// When the supervisor can't be reached or has no such service.
    pub async fn restart(&self, service: &str) -> Result<()> {
        self.accepted(&Request::Restart {
            service: service.to_owned(),
        })
        .await
    }

    /// Stops a service and keeps it so; comes back when it has ended. Holding
    /// a held one is fine.
    ///
    /// # Errors
    /// When the supervisor can't be reached, has no such service, or that does
    /// not end in time.
    pub async fn hold(&self, service: &str, timeout: Duration) -> Result<()> {
        self.accepted(&Request::Hold {
            service: service.to_owned(),
        })
        .await?;
        let stopped = |status: Status| {
            let mut all = status.services.iter();
            all.any(|one| one.name == service && one.state == State::Stopped)
        };
        self.until(timeout, stopped).await.map_err(|_| {
            Error::Protocol(format!(
                "{service} has not ended within {} s",
                timeout.as_secs()
            ))
        })
    }

    /// Lets a held service start again. One that isn't held goes on.
    ///
    /// # Errors
    /// When the supervisor can't be reached or has no such service.
    pub async fn release(&self, service: &str) -> Result<()> {
        self.accepted(&Request::Release {
            service: service.to_owned(),
        })
        .await
    }

    /// Waits until all of `services` (all there are when empty) are ready.
    ///
    /// # Errors
    /// When the time is over: [`Error::NotReady`] with what is missing, or
    /// [`Error::NoAnswer`] where the supervisor never answered.
    pub async fn wait_ready(&self, services: &[String], timeout: Duration) -> Result<()> {
        let mut last = None;
        let ready = |status: Status| {
            let is_ready = status.are_ready(services);
            last = Some(status);
            is_ready
        };
        if self.until(timeout, ready).await.is_ok() {
            return Ok(());
        }
        let seconds = timeout.as_secs();
        Err(match last {
            Some(last) => Error::NotReady {
                seconds,
                services: last.missing(services),
            },
            None => Error::NoAnswer {
                seconds,
                socket: self.socket.clone(),
            },
        })
    }

    /// Follows the status until it is as `wanted`, for so long at most. A supervisor that
    /// is not up yet, or restarts, comes back.
    async fn until(
        &self,
        timeout: Duration,
        mut wanted: impl FnMut(Status) -> bool,
    ) -> Result<(), Elapsed> {
        let watch = async {
            loop {
                if let Ok(mut watch) = self.watch().await {
                    while let Ok(Some(status)) = watch.next().await {
                        if wanted(status) {
                            return;
                        }
                    }
                }
                sleep(RETRY).await;
            }
        };
        timeout_at(Instant::now() + timeout, watch).await
    }

    /// Waits until the supervisor answers with its services, whatever their
    /// states.
    ///
    /// # Errors
    /// When it can't be reached within `timeout`.
    pub async fn wait_known(&self, timeout: Duration) -> Result<Status> {
        let until = Instant::now() + timeout;
        loop {
            match self.status().await {
                Err(_) if Instant::now() < until => sleep(RETRY).await,
                answer => return answer,
            }
        }
    }

    /// Follows the status.
    ///
    /// # Errors
    /// When the supervisor can't be reached.
    pub async fn watch(&self) -> Result<Watch> {
        Ok(Watch {
            answers: self.send(&Request::Watch).await?,
        })
    }

    async fn accepted(&self, request: &Request) -> Result<()> {
        match self.ask(request).await? {
            Answer::Accepted => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Answer> {
        let ask = async {
            let mut answers = self.send(request).await?;
            read_answer(&mut answers)
                .await?
                .ok_or_else(|| Error::Protocol("closed the connection without an answer".into()))
        };
        timeout_at(Instant::now() + ANSWER, ask)
            .await
            .unwrap_or_else(|_| Err(Error::Protocol(format!("no answer within {ANSWER:?}"))))
    }

    async fn send(&self, request: &Request) -> Result<Answers> {
        let mut stream = UnixStream::connect(&self.socket)
            .await
            .at("connect to", &self.socket)?;
        let mut line = serde_json::to_vec(request)
            .map_err(std::io::Error::from)
            .on("write a request")?;
        line.push(b'\n');
        stream.write_all(&line).await.at("write to", &self.socket)?;
        // A supervisor of ours answers in lines; another must not fill memory.
        Ok(BufReader::new(stream.take(u64::MAX)).lines())
    }
}

type Answers = Lines<BufReader<tokio::io::Take<UnixStream>>>;

/// Status after status.
#[derive(Debug)]
pub struct Watch {
    answers: Answers,
}

impl Watch {
    /// The next status; `None` when the supervisor ended.
    ///
    /// # Errors
    /// When the connection breaks or the answer isn't one.
    pub async fn next(&mut self) -> Result<Option<Status>> {
        match read_answer(&mut self.answers).await? {
            Some(Answer::Status(status)) => Ok(Some(status)),
            Some(other) => Err(unexpected(other)),
            None => Ok(None),
        }
    }
}

async fn read_answer(answers: &mut Answers) -> Result<Option<Answer>> {
    answers.get_mut().get_mut().set_limit(MAX_LINE as u64);
    let Some(line) = answers
        .next_line()
        .await
        .on("read the supervisor's answer")?
    else {
        return Ok(None);
    };
    serde_json::from_str(&line)
        .map(Some)
        .map_err(|error| Error::Protocol(format!("answer {line:.100?}: {error}")))
}

fn unexpected(answer: Answer) -> Error {
    match answer {
        Answer::Error(reason) => Error::Protocol(reason),
        other => Error::Protocol(format!("unexpected answer {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, state: State) -> ServiceStatus {
        ServiceStatus {
            name: name.into(),
            state,
            pid: None,
            restarts: 0,
            since: 0,
            last_error: Some("refused".into()),
        }
    }

    #[test]
    fn ready_is_asked_of_the_named_services() {
        let status = Status {
            services: vec![
                service("etcd", State::Ready),
                service("kubelet", State::Starting),
            ],
            ready: false,
            warnings: Vec::new(),
        };
        assert!(status.are_ready(&["etcd".into()]));
        assert!(!status.are_ready(&[]));
        assert!(!status.are_ready(&["unknown".into()]));
        assert_eq!(status.missing(&[]), "kubelet starting (refused)");
    }

    #[test]
    fn requests_are_one_line_and_strict() {
        let line = serde_json::to_string(&Request::Restart {
            service: "etcd".into(),
        })
        .unwrap();
        assert_eq!(line, r#"{"request":"restart","service":"etcd"}"#);
        assert!(serde_json::from_str::<Request>(r#"{"request":"reboot"}"#).is_err());
    }

    #[tokio::test]
    async fn waiting_for_nobody_says_so() {
        let client = Client::new(Path::new("/nonexistent/planet.sock"));
        let error = client
            .wait_ready(&[], Duration::from_millis(50))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    }

    #[tokio::test]
    async fn waiting_for_a_service_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("planet.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let status = Status {
            services: vec![service("etcd", State::Failed)],
            ready: false,
            warnings: Vec::new(),
        };
        let mut line = serde_json::to_vec(&Answer::Status(status)).unwrap();
        line.push(b'\n');
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&line).await.unwrap();
            std::future::pending::<()>().await;
        });
        let error = Client::new(&socket)
            .wait_ready(&[], Duration::from_secs(1))
            .await
            .unwrap_err();
        let Error::NotReady { services, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(services, "etcd failed (refused)");
    }
}
