//! The console: a sink for events, and where results and errors are printed.
//!
//! In: events, results, errors. Out: on a terminal colours and progress bars;
//! elsewhere plain lines; as JSON one value a line. A console that can't be
//! written to, as after a closed pipe or a lost terminal, stays silent and never
//! panics.

use std::collections::HashMap;
use std::error::Error;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use event::{Event, NodeState, Sink, Unit};
use indicatif::{
    MultiProgress, ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressState, ProgressStyle,
};
use jiff::Timestamp;
use serde::Serialize;
use term::Term;

use crate::lasting::Lasting;
use crate::prompt::{self, PromptError};
use crate::render;

/// Shortest time between two plain lines about the same task.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// How often bars are drawn at most, in a second.
const REDRAWS: u8 = 20;

/// How output looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Colours and progress bars on a terminal, plain lines elsewhere.
    #[default]
    Auto,
    /// Plain lines, also on a terminal.
    Plain,
    /// One JSON object a line.
    Json,
}

/// Drops progress that is told too often: a line passes when its task is new,
/// has ended, or was silent for [`PROGRESS_INTERVAL`].
#[derive(Debug, Default)]
pub(crate) struct Coalescer(HashMap<String, Shown>);

#[derive(Debug)]
struct Shown {
    at: Instant,
    ended_at: Option<u64>,
}

impl Coalescer {
    /// Whether the event is shown, at time `now`.
    pub(crate) fn admits(&mut self, event: &Event, now: Instant) -> bool {
        let Event::Progress {
            task, done, total, ..
        } = event
        else {
            return true;
        };
        let ended_at = total.filter(|total| done >= total);
        if let Some(shown) = self.0.get(task) {
            let silent = now.saturating_duration_since(shown.at) < PROGRESS_INTERVAL;
            let again = ended_at.is_some() && shown.ended_at == ended_at;
            let first_after_end = shown.ended_at.is_some() && ended_at.is_none();
            if again || (ended_at.is_none() && silent && !first_after_end) {
                return false;
            }
        }
        self.0.insert(task.clone(), Shown { at: now, ended_at });
        true
    }
}

enum Output {
    Terminal {
        bars: MultiProgress,
        tasks: HashMap<String, ProgressBar>,
        ended: Coalescer,
    },
    Plain(Box<dyn Write + Send>, Coalescer),
    Json(Box<dyn Write + Send>),
}

/// Where a program tells what it does. See the module's documentation.
pub struct Console {
    output: Mutex<Output>,
    colour: bool,
    verbose: bool,
    json: bool,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console")
            .field("json", &self.json)
            .field("colour", &self.colour)
            .field("verbose", &self.verbose)
            .finish_non_exhaustive()
    }
}

impl Console {
    /// A console on standard output. `NO_COLOR` and `TERM=dumb` are respected.
    pub fn new(format: Format) -> Self {
        let terminal = std::io::stdout().is_terminal()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        let output = match format {
            Format::Json => Output::Json(Box::new(std::io::stdout())),
            Format::Auto if terminal => Output::Terminal {
                bars: MultiProgress::with_draw_target(ProgressDrawTarget::term_like_with_hz(
                    Box::new(Lasting(Term::buffered_stdout())),
                    REDRAWS,
                )),
                tasks: HashMap::new(),
                ended: Coalescer::default(),
            },
            _ => Output::Plain(Box::new(std::io::stdout()), Coalescer::default()),
        };
        Self {
            output: Mutex::new(output),
            colour: colour && format == Format::Auto,
            verbose: false,
            json: format == Format::Json,
        }
    }

    /// Also shows what programs write ([`Event::Log`]); as JSON it always is.
    #[must_use]
    pub fn verbose(mut self, verbose: bool) -> Self {
        self.verbose = verbose;
        self
    }

    /// Whether output is JSON, so that results are to be printed by
    /// [`Console::print_json`].
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a result, without what could command a terminal. As it may be of
    /// several lines, it has no time. As JSON it is an event.
    pub fn print(&self, text: &str) {
        self.result(&render::sanitize(text));
    }

    fn result(&self, text: &str) {
        match self.json {
            true => self.info(text),
            false => self.write(text),
        }
    }

    /// Prints a result as one line of JSON, or indented where events are not
    /// JSON.
    ///
    /// # Errors
    /// When `value` can't be serialised.
    pub fn print_json(&self, value: &impl Serialize) -> Result<(), serde_json::Error> {
        self.write(&match self.json {
            true => serde_json::to_string(value)?,
            false => serde_json::to_string_pretty(value)?,
        });
        Ok(())
    }

    fn write(&self, text: &str) {
        self.with(|output| match output {
            Output::Terminal { bars, .. } => {
                bars.suspend(|| line(&mut std::io::stdout(), text));
            }
            Output::Plain(writer, _) | Output::Json(writer) => line(writer, text),
        });
    }

    /// Prints something that was found in a file, as a result.
    pub fn finding(&self, finding: &render::Finding<'_>) {
        self.result(&render::finding(finding, self.colour));
    }

    /// Prints a table.
    pub fn table(&self, header: &[&str], rows: &[Vec<String>]) {
        self.print(&render::table(header, rows));
    }

    /// Prints `[ERROR]: message: cause` to standard error, each cause once.
    /// As JSON, `{"error": "..."}`.
    pub fn error(&self, error: &(dyn Error + 'static)) {
        self.error_text(&render::error(error));
    }

    /// The same for an error that is already text.
    pub fn error_text(&self, text: &str) {
        let text = match self.json {
            true => serde_json::json!({ "error": text }).to_string(),
            false => {
                let colour = self.colour && std::io::stderr().is_terminal();
                format!("{} {text}", render::paint("[ERROR]:", "31", colour))
            }
        };
        self.with(|output| match output {
            Output::Terminal { bars, tasks, .. } => {
                tasks.clear();
                bars.suspend(|| line(&mut std::io::stderr(), &text));
            }
            Output::Plain(..) | Output::Json(_) => line(&mut std::io::stderr(), &text),
        });
    }

    /// Asks a question with the answers yes and no.
    ///
    /// # Errors
    /// Where there is no terminal, or no answer.
    pub fn confirm(&self, prompt: &str) -> Result<bool, PromptError> {
        Ok(self.ask(prompt, &["yes", "no"], None)? == "yes")
    }

    /// Asks a question; without `choices` any answer is taken.
    ///
    /// # Errors
    /// Where there is no terminal, or no answer.
    pub fn ask(
        &self,
        prompt: &str,
        choices: &[&str],
        default: Option<&str>,
    ) -> Result<String, PromptError> {
        self.with(|output| match output {
            Output::Terminal { bars, .. } => bars.suspend(|| prompt::ask(prompt, choices, default)),
            Output::Plain(..) | Output::Json(_) => prompt::ask(prompt, choices, default),
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut Output) -> T) -> T {
        f(&mut self.output.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sink for Console {
    fn emit(&self, event: Event) {
        if matches!(event, Event::Log { .. }) && !self.verbose && !self.json {
            return;
        }
        let now = Timestamp::now();
        self.with(|output| match output {
            Output::Json(writer) => {
                if let Some(text) = json(&event, now) {
                    line(writer, &text);
                }
            }
            Output::Plain(writer, coalescer) => {
                if coalescer.admits(&event, Instant::now())
                    && let Some(text) = plain(&event, now)
                {
                    line(writer, &text);
                }
            }
            Output::Terminal { bars, tasks, ended } => {
                if update_bars(&event, bars, tasks, ended)
                    && let Some(text) = coloured(&event, now, self.colour)
                {
                    bars.suspend(|| line(&mut std::io::stdout(), &text));
                }
            }
        });
    }
}

fn line(writer: &mut dyn Write, text: &str) {
    let _ = writer
        .write_all(format!("{text}\n").as_bytes())
        .and_then(|()| writer.flush());
}

/// The event with its time in front.
fn plain(event: &Event, now: Timestamp) -> Option<String> {
    Some(format!(
        "{}  {}",
        render::timestamp(now),
        render::event(event)?
    ))
}

fn json(event: &Event, now: Timestamp) -> Option<String> {
    let mut object = serde_json::Map::new();
    object.insert("time".into(), render::log_timestamp(now).into());
    let serde_json::Value::Object(fields) = serde_json::to_value(event).ok()? else {
        return None;
    };
    object.extend(fields);
    Some(serde_json::Value::Object(object).to_string())
}

/// The event as a line of a terminal: the time dim, a mark for a phase.
fn coloured(event: &Event, now: Timestamp, colour: bool) -> Option<String> {
    let text = match event {
        Event::Phase { state, .. } => {
            format!("{} {}", render::mark(state, colour), render::event(event)?)
        }
        Event::Warning { message } => {
            let word = render::paint("[WARNING]:", "33", colour);
            format!("{word} {}", render::sanitize(message))
        }
        _ => render::event(event)?,
    };
    Some(format!(
        "{}  {text}",
        render::paint(&render::timestamp(now), "2", colour)
    ))
}

/// Brings the bars up to date; whether the event is worth a line, too.
fn update_bars(
    event: &Event,
    bars: &MultiProgress,
    tasks: &mut HashMap<String, ProgressBar>,
    ended: &mut Coalescer,
) -> bool {
    match event {
        Event::Progress {
            task,
            done,
            total,
            unit,
        } => {
            if total.is_some_and(|total| *done >= total) {
                tasks.remove(task);
                return ended.admits(event, Instant::now());
            }
            let bar = tasks
                .entry(task.clone())
                .or_insert_with(|| bar(bars, task, *total, *unit));
            if let Some(total) = total {
                bar.set_length(*total);
            }
            bar.set_position(*done);
            false
        }
        Event::Phase {
            id,
            state,
            description,
            ..
        } => {
            let id = format!("phase {id}");
            if state != "in_progress" {
                tasks.remove(&id);
                // Nodes are waited for no longer than a phase.
                tasks.retain(|id, _| !id.starts_with(NODE));
                return true;
            }
            let spinner = spinner(bars);
            spinner.set_message(render::sanitize(description));
            tasks.insert(id, spinner);
            false
        }
        Event::Node { name, state, .. } => {
            let id = format!("{NODE}{name}");
            if !matches!(state, NodeState::Joining | NodeState::Starting) {
                tasks.remove(&id);
                return true;
            }
            let text = render::event(event).unwrap_or_default();
            let row = tasks.entry(id).or_insert_with(|| spinner(bars));
            row.set_message(text);
            false
        }
        Event::Step { .. } => {
            // A task without a total can't say that it has ended.
            tasks.retain(|_, bar| bar.length().is_some() || !bar.message().is_empty());
            true
        }
        _ => true,
    }
}

/// How tasks that show a node begin.
const NODE: &str = "node: ";

fn spinner(bars: &MultiProgress) -> ProgressBar {
    let spinner = bars.add(ProgressBar::new_spinner().with_finish(ProgressFinish::AndClear));
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

fn bar(bars: &MultiProgress, task: &str, total: Option<u64>, unit: Unit) -> ProgressBar {
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::no_length(),
    };
    let bar = bars.add(bar.with_finish(ProgressFinish::AndClear));
    let template = match (total.is_some(), unit) {
        (true, Unit::Bytes) => "{prefix} [{bar:30}] {done} of {all}, {rate}, ETA {left}",
        (false, Unit::Bytes) => "{prefix} {done}, {rate}",
        (true, Unit::Items) => "{prefix} [{bar:30}] {pos} of {len}, ETA {left}",
        (false, Unit::Items) => "{prefix} {pos}",
    };
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .with_key(
            "done",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = out.write_str(&render::bytes(state.pos()));
            },
        )
        .with_key(
            "all",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = out.write_str(&render::bytes(state.len().unwrap_or_default()));
            },
        )
        .with_key(
            "rate",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = write!(out, "{}/s", render::bytes(state.per_sec() as u64));
            },
        )
        .with_key(
            "left",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                // Whole seconds: tenths flicker.
                let left = Duration::from_secs(state.eta().as_secs().max(1));
                let _ = out.write_str(&render::duration(left));
            },
        );
    bar.set_style(style);
    bar.set_prefix(render::sanitize(task));
    bar
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::lasting::tests::Lost;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Buffer {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn console(json: bool) -> (Console, Buffer) {
        let buffer = Buffer::default();
        let writer = Box::new(buffer.clone());
        let output = match json {
            true => Output::Json(writer),
            false => Output::Plain(writer, Coalescer::default()),
        };
        let output = Mutex::new(output);
        (
            Console {
                output,
                colour: false,
                verbose: false,
                json,
            },
            buffer,
        )
    }

    fn copied(done: u64, total: Option<u64>) -> Event {
        Event::Progress {
            task: "copy".into(),
            done,
            total,
            unit: Unit::Bytes,
        }
    }

    fn time() -> Timestamp {
        "2018-04-10T13:44:07Z".parse().unwrap()
    }

    #[test]
    fn plain_lines_have_a_time() {
        let step = Event::Step {
            message: "Starting installer".into(),
        };
        assert_eq!(
            plain(&step, time()).unwrap(),
            "Tue Apr 10 13:44:07 UTC  Starting installer"
        );
        let warning = Event::Warning {
            message: "slow disk".into(),
        };
        assert_eq!(
            coloured(&warning, time(), true).unwrap(),
            "\x1b[2mTue Apr 10 13:44:07 UTC\x1b[0m  \x1b[33m[WARNING]:\x1b[0m slow disk"
        );
        assert_eq!(
            coloured(&warning, time(), false).unwrap(),
            "Tue Apr 10 13:44:07 UTC  [WARNING]: slow disk"
        );
    }

    #[test]
    fn json_is_one_object_a_line_with_a_time() {
        let text = json(
            &Event::Info {
                message: "two\nlines".into(),
            },
            time(),
        )
        .unwrap();
        assert_eq!(
            text,
            r#"{"time":"2018-04-10T13:44:07Z","event":"info","message":"two\nlines"}"#
        );
        let (console, buffer) = console(true);
        console.emit(Event::Log {
            source: "p/c".into(),
            line: "hello".into(),
        });
        console.print_json(&[1, 2]).unwrap();
        let text = buffer.text();
        let values: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(values.len(), 2);
        assert_eq!(values[0]["line"], "hello");
    }

    #[test]
    fn texts_tables_and_findings_are_events_as_json() {
        let (console, buffer) = console(true);
        console.print("1.2\n  * faster\n  * \"safer\"");
        console.print("");
        console.table(&["name"], &[vec!["one".into()]]);
        console
            .print_json(&serde_json::json!({ "a": [1] }))
            .unwrap();
        let text = buffer.text();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[0]["event"], "info");
        assert_eq!(lines[0]["message"], "1.2\n  * faster\n  * \"safer\"");
        assert!(lines[2]["message"].as_str().unwrap().contains("one"));
        assert_eq!(lines[3]["a"][0], 1);
    }

    #[test]
    fn foreign_text_of_a_result_commands_no_terminal() {
        let (console, buffer) = console(false);
        console.print("node \x1b]0;x\x07\n\tis \u{9b}2J");
        let controls = |c: char| c.is_control() && !"\n\t".contains(c);
        assert!(!buffer.text().contains(controls), "{}", buffer.text());
        assert!(buffer.text().contains("\n\tis "));
    }

    #[test]
    fn a_lost_terminal_ends_nothing() {
        let lost = ProgressDrawTarget::term_like(Box::new(Lasting(Lost)));
        let output = Output::Terminal {
            bars: MultiProgress::with_draw_target(lost),
            tasks: HashMap::new(),
            ended: Coalescer::default(),
        };
        let console = Console {
            output: Mutex::new(output),
            colour: true,
            verbose: true,
            json: false,
        };
        for state in ["in_progress", "completed"] {
            console.emit(copied(1, Some(9)));
            console.emit(Event::Phase {
                id: "/x".into(),
                state: state.into(),
                description: "Do x".into(),
                error: None,
            });
            console.step("next");
            console.print("result");
        }
        console.emit(copied(9, Some(9)));
    }

    #[test]
    fn progress_is_told_every_five_seconds_and_at_the_end() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut coalescer = Coalescer::default();
        assert!(coalescer.admits(&copied(0, Some(9)), at(0)));
        assert!(!coalescer.admits(&copied(1, Some(9)), at(4)));
        assert!(coalescer.admits(&copied(2, Some(9)), at(5)));
        assert!(!coalescer.admits(&copied(3, Some(9)), at(9)));
        assert!(coalescer.admits(&copied(9, Some(9)), at(9)));
        assert!(!coalescer.admits(&copied(9, Some(9)), at(20)));
        // The same task begins anew.
        assert!(coalescer.admits(&copied(0, Some(9)), at(21)));
        assert!(coalescer.admits(&Event::Unknown, at(21)));
    }

    #[test]
    fn logs_of_programs_are_shown_only_when_asked_for() {
        let log = Event::Log {
            source: "p/c".into(),
            line: "hello".into(),
        };
        let (quiet, buffer) = console(false);
        quiet.emit(log.clone());
        quiet.print("result");
        assert_eq!(buffer.text(), "result\n");
        let (loud, buffer) = console(false);
        loud.verbose(true).emit(log);
        assert!(buffer.text().ends_with("  [p/c] hello\n"));
    }

    #[test]
    fn bars_follow_events() {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let (mut tasks, mut ended) = (HashMap::new(), Coalescer::default());
        let mut update = |event: &Event| {
            let shown = update_bars(event, &bars, &mut tasks, &mut ended);
            (shown, tasks.len())
        };
        let phase = |state: &str| Event::Phase {
            id: "/x".into(),
            state: state.into(),
            description: "Do x".into(),
            error: None,
        };
        assert_eq!(update(&copied(1, Some(9))), (false, 1));
        assert_eq!(update(&phase("in_progress")), (false, 2));
        assert_eq!(
            update(&Event::Step {
                message: "next".into()
            }),
            (true, 2)
        );
        assert_eq!(update(&phase("completed")), (true, 1));
        assert_eq!(update(&copied(9, Some(9))), (true, 0));
        assert_eq!(update(&copied(9, Some(9))), (false, 0));
        assert_eq!(update(&copied(5, None)), (false, 1));
        let node = |name: &str, state| Event::Node {
            name: name.into(),
            address: "10.0.0.2".into(),
            profile: "db".into(),
            state,
        };
        let before = update(&phase("in_progress")).1;
        for name in ["a", "b"] {
            update(&node(name, NodeState::Joining));
        }
        // A row for each, which stays until the node is ready or nobody waits.
        let starting = update(&node("a", NodeState::Starting));
        assert_eq!(starting, (false, before + 2));
        assert_eq!(update(&node("a", NodeState::Ready)), (true, before + 1));
        assert_eq!(update(&phase("completed")), (true, before - 1));
        assert_eq!(
            update(&Event::Step {
                message: "next".into()
            }),
            (true, 0)
        );
    }
}
