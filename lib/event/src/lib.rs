//! What happens during an operation or a build, as data.
//!
//! In: nothing. Out: [`Event`]s, which go to a [`Sink`]: the terminal, a log
//! file, JSON lines, an RPC stream. Every event can be serialised and read
//! back; an unknown kind reads as [`Event::Unknown`], so that an older reader
//! survives a newer writer.

mod progress;

use serde::{Deserialize, Serialize};

pub use progress::Progress;

/// Unit of a [`Event::Progress`] count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes, shown as kB, MB or GB.
    Bytes,
    /// Plain count.
    Items,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A step that a person follows has begun, such as "Pulling images".
    Step {
        /// Sentence without a full stop.
        message: String,
    },
    /// Something worth a line of output.
    Info {
        /// Sentence without a full stop.
        message: String,
    },
    /// Something the user should know of that does not stop the work.
    Warning {
        /// Sentence without a full stop.
        message: String,
    },
    /// How far a task is. Lossy: a sink may drop all but the last of a task.
    Progress {
        /// Name of the task; progress of one name replaces the former.
        task: String,
        /// How much is done, in `unit`.
        done: u64,
        /// How much there is, where known.
        total: Option<u64>,
        /// What is counted.
        unit: Unit,
    },
    /// A phase of a plan changed its state.
    Phase {
        /// Path of the phase, such as `/planet/node-1`.
        id: String,
        /// `in_progress`, `completed`, `failed` or `rolled_back`.
        state: String,
        /// What the phase does.
        description: String,
        /// Why it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A node that others wait for changed its state; the last one of a name holds.
    Node {
        /// Its name.
        name: String,
        /// Its address.
        address: String,
        /// Its profile.
        profile: String,
        /// How far it is.
        state: NodeState,
    },
    /// A line that a program wrote, such as a hook's pod.
    Log {
        /// Who wrote it: `pod/container`, or a program's name.
        source: String,
        /// The line without its line break.
        line: String,
    },
    /// An event of a later version.
    #[serde(other)]
    Unknown,
}

/// How far a node is on its way into a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// The cluster has taken it in.
    Joining,
    /// Kubernetes knows it, and it is not ready.
    Starting,
    /// It is ready.
    Ready,
    /// It is not there any more.
    Gone,
    /// One of a later version.
    #[serde(other)]
    Unknown,
}

/// Takes events. Implementations must be cheap and must not block for long.
pub trait Sink: Send + Sync {
    /// Takes one event.
    fn emit(&self, event: Event);

    /// Emits [`Event::Step`].
    fn step(&self, message: &str) {
        self.emit(Event::Step {
            message: message.into(),
        });
    }

    /// Emits [`Event::Info`].
    fn info(&self, message: &str) {
        self.emit(Event::Info {
            message: message.into(),
        });
    }

    /// Emits [`Event::Warning`].
    fn warning(&self, message: &str) {
        self.emit(Event::Warning {
            message: message.into(),
        });
    }
}

impl std::fmt::Debug for dyn Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sink")
    }
}

/// A sink that keeps nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

impl Sink for Discard {
    fn emit(&self, _: Event) {}
}

/// A sink that keeps everything in memory, for tests.
#[derive(Debug, Default)]
pub struct Memory(std::sync::Mutex<Vec<Event>>);

impl Memory {
    /// All events so far, in order.
    pub fn events(&self) -> Vec<Event> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }
}

impl Sink for Memory {
    fn emit(&self, event: Event) {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_a_round_trip_and_unknown_ones_are_kept_apart() {
        let event = Event::Progress {
            task: "layers".into(),
            done: 3,
            total: Some(9),
            unit: Unit::Bytes,
        };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        let later = r#"{"event":"telepathy","thought":1}"#;
        assert_eq!(
            serde_json::from_str::<Event>(later).unwrap(),
            Event::Unknown
        );
    }
}
