//! Logs of a container, followed until it has ended.
//!
//! In: an instance of a container. Out: each of its lines once and in order,
//! across lost connections. Lines are bounded; so is what is remembered of
//! them for an error.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use event::{Event, Sink};
use futures::{AsyncBufRead, AsyncBufReadExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use tokio::time::sleep;

use super::observe::Instance;

/// Longest line that is kept, in bytes; the rest of it is left out.
const MAX_LINE: usize = 16 << 10;

/// How often the log of a container that has ended is asked for in vain.
const ATTEMPTS: usize = 5;

/// Lines that an error quotes of each container.
const TAIL: usize = 20;

/// Last lines by `pod/container`.
#[derive(Debug, Default)]
pub(super) struct Tails(Mutex<HashMap<String, VecDeque<String>>>);

impl Tails {
    fn push(&self, source: &str, line: &str) {
        let mut tails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tail = tails.entry(source.into()).or_default();
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line.into());
    }

    /// The last lines of a container, oldest first.
    pub(super) fn of(&self, source: &str) -> Vec<String> {
        let tails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tails.get(source).into_iter().flatten().cloned().collect()
    }
}

/// Emits the lines of one instance until it has ended or its pod is gone.
pub(super) async fn follow(api: Api<Pod>, instance: Instance, sink: &dyn Sink, tails: &Tails) {
    let source = instance.source();
    let mut last: Option<Timestamp> = None;
    let mut pause = Duration::from_millis(100);
    let mut previous = false;
    let mut vain = 0;
    loop {
        let params = LogParams {
            container: Some(instance.container.clone()),
            follow: !previous,
            previous,
            // The API takes whole seconds; what was seen already is skipped below.
            since_time: last,
            timestamps: true,
            ..LogParams::default()
        };
        let mut complete = false;
        match api.log_stream(&instance.pod, &params).await {
            Ok(stream) => {
                let mut lines = Lines::new(stream);
                loop {
                    match lines.next().await {
                        Ok(Some(line)) => {
                            pause = Duration::from_millis(100);
                            let (time, text) = split(&line);
                            if time.is_some() && time <= last {
                                continue;
                            }
                            last = time.or(last);
                            tails.push(&source, text);
                            let (source, line) = (source.clone(), text.to_owned());
                            sink.emit(Event::Log { source, line });
                        }
                        Ok(None) => {
                            complete = true;
                            break;
                        }
                        Err(error) => {
                            tracing::debug!(source, ?error, "log interrupted");
                            break;
                        }
                    }
                }
            }
            Err(kube::Error::Api(status)) if status.code == 404 => return,
            Err(error) => tracing::debug!(source, ?error, "no log"),
        }
        match state(&api, &instance).await {
            State::Gone => return,
            State::Ended if complete => return,
            State::Replaced if complete || previous => return,
            State::Ended if vain >= ATTEMPTS => {
                sink.warning(&format!("The log of {source} can't be read to its end"));
                return;
            }
            State::Ended => vain += 1,
            // What was written before it was replaced is still kept.
            State::Replaced => previous = true,
            State::Running => {}
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

enum State {
    /// It runs, or nobody knows.
    Running,
    /// It has ended.
    Ended,
    /// It has ended and the container was started again.
    Replaced,
    /// There is no such pod any more.
    Gone,
}

async fn state(api: &Api<Pod>, instance: &Instance) -> State {
    let pod = match api.get_opt(&instance.pod).await {
        Ok(Some(pod)) if pod.metadata.uid.as_deref() == Some(&instance.pod_uid) => pod,
        Ok(_) => return State::Gone,
        Err(_) => return State::Running,
    };
    let statuses = pod.status.iter().flat_map(|status| {
        let lists = [&status.init_container_statuses, &status.container_statuses];
        lists.into_iter().flatten().flatten()
    });
    let mut statuses = statuses.filter(|status| status.name == instance.container);
    match statuses.next() {
        Some(status) if status.restart_count > instance.restarts => State::Replaced,
        Some(status) if status.state.as_ref().is_some_and(|s| s.running.is_some()) => {
            State::Running
        }
        _ => State::Ended,
    }
}

/// The time in front of a line, and the line.
fn split(line: &str) -> (Option<Timestamp>, &str) {
    match line.split_once(' ') {
        Some((time, text)) => match time.parse() {
            Ok(time) => (Some(time), text),
            Err(_) => (None, line),
        },
        // An empty line has no space behind its time.
        None => match line.parse() {
            Ok(time) => (Some(time), ""),
            Err(_) => (None, line),
        },
    }
}

/// Lines of a stream, as text, none longer than [`MAX_LINE`].
struct Lines<R> {
    stream: std::pin::Pin<Box<R>>,
}

impl<R: AsyncBufRead> Lines<R> {
    fn new(stream: R) -> Self {
        Self {
            stream: Box::pin(stream),
        }
    }

    async fn next(&mut self) -> std::io::Result<Option<String>> {
        let mut line = Vec::new();
        let mut cut = false;
        loop {
            let buffer = self.stream.fill_buf().await?;
            if buffer.is_empty() {
                if line.is_empty() {
                    return Ok(None);
                }
                break;
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let part = &buffer[..end.unwrap_or(buffer.len())];
            let room = MAX_LINE - line.len();
            cut |= part.len() > room;
            line.extend_from_slice(&part[..part.len().min(room)]);
            let used = end.map_or(buffer.len(), |end| end + 1);
            self.stream.as_mut().consume(used);
            if end.is_some() {
                break;
            }
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        let mut text = String::from_utf8_lossy(&line).into_owned();
        if cut {
            text.push('…');
        }
        Ok(Some(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(bytes: &[u8]) -> Vec<String> {
        let mut lines = Lines::new(bytes);
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            all.push(line);
        }
        all
    }

    #[tokio::test]
    async fn lines_are_bounded_text() {
        assert_eq!(
            lines(b"a\n\nb\r\nlast \xff").await,
            ["a", "", "b", "last \u{fffd}"]
        );
        let mut long = vec![b'x'; 3 * MAX_LINE];
        long.extend(b"\nnext\n");
        let read = lines(&long).await;
        assert_eq!(read[0].len(), MAX_LINE + '…'.len_utf8());
        assert_eq!(read[1], "next");
    }

    #[test]
    fn times_are_taken_off() {
        let (time, text) = split("2026-01-02T03:04:05.000000006Z  hello");
        assert_eq!(time.unwrap().subsec_nanosecond(), 6);
        assert_eq!(text, " hello");
        assert_eq!(split("2026-01-02T03:04:05Z").1, "");
        assert_eq!(
            split("unable to retrieve logs"),
            (None, "unable to retrieve logs")
        );
    }

    #[test]
    fn tails_keep_the_last_lines() {
        let tails = Tails::default();
        for n in 0..TAIL + 5 {
            tails.push("p/c", &n.to_string());
        }
        let tail = tails.of("p/c");
        assert_eq!((tail.len(), tail[0].as_str()), (TAIL, "5"));
        assert!(tails.of("other").is_empty());
    }
}
