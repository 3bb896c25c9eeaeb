//! What output looks like: pure functions from data to text.
//!
//! In: events, numbers, errors. Out: text without a final line break and
//! without control characters of foreign origin.

use std::error::Error;
use std::time::Duration;

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use comfy_table::Table;
use event::{Event, NodeState, Unit};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Bytes in decimal units with three digits or so: `999 B`, `12.3 MB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "";
    for next in UNITS {
        // 999.95 would be shown as 1000.0.
        if value < 999.95 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// A duration in its two largest units: `350ms`, `4.2s`, `3m 12s`, `2h 5m`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{}ms", time.as_millis()),
        1..10 => format!("{:.1}s", time.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A time as people read it: `Tue Apr 10 13:44:07 UTC`.
pub fn timestamp(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC)
        .strftime("%a %b %e %H:%M:%S UTC")
        .to_string()
}

/// A time as logs have it: `2018-04-10T13:44:07Z`.
pub fn log_timestamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `text` with its control characters but line break and tab replaced, so
/// that foreign text can't command the terminal.
pub fn sanitize(text: &str) -> String {
    let replace = |c: char| {
        if c.is_control() && c != '\n' && c != '\t' {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().map(replace).collect()
}

/// How far a task is: `Copying images: 3.0 MB of 12.0 MB (25 %)`.
pub fn progress(task: &str, done: u64, total: Option<u64>, unit: Unit) -> String {
    let count = |n| match unit {
        Unit::Bytes => bytes(n),
        Unit::Items => n.to_string(),
    };
    let task = sanitize(task);
    match total {
        Some(total) if total > 0 => {
            let percent = u128::from(done.min(total)) * 100 / u128::from(total);
            format!("{task}: {} of {} ({percent} %)", count(done), count(total))
        }
        _ => format!("{task}: {}", count(done)),
    }
}

/// One event as text without a time; `None` if it has nothing to say.
pub fn event(event: &Event) -> Option<String> {
    Some(match event {
        Event::Step { message } | Event::Info { message } => sanitize(message),
        Event::Warning { message } => format!("[WARNING]: {}", sanitize(message)),
        Event::Progress {
            task,
            done,
            total,
            unit,
        } => progress(task, *done, *total, *unit),
        Event::Phase {
            id,
            state,
            description,
            error,
        } => {
            let mut text = format!("{} {}", sanitize(id), sanitize(&state.replace('_', " ")));
            if !description.is_empty() {
                text = format!("{text}: {}", sanitize(description));
            }
            match error {
                Some(error) => format!("{text}: {}", sanitize(error)),
                None => text,
            }
        }
        Event::Node {
            name,
            address,
            profile,
            state,
        } => {
            let state = match state {
                NodeState::Joining => "is joining",
                NodeState::Starting => "is starting",
                NodeState::Ready => "is ready",
                NodeState::Gone => "is gone",
                NodeState::Unknown => return None,
            };
            sanitize(&format!(
                "Node {name} ({address}, profile {profile}) {state}"
            ))
        }
        Event::Log { source, line } => format!("[{}] {}", sanitize(source), sanitize(line)),
        Event::Unknown => return None,
    })
}

/// Mark of a phase's state, with or without colour.
pub(crate) fn mark(state: &str, colour: bool) -> String {
    let (mark, code) = match state {
        "in_progress" => ("→", "36"),
        "completed" => ("✓", "32"),
        "failed" => ("×", "31"),
        "rolled_back" => ("←", "33"),
        _ => ("*", "0"),
    };
    paint(mark, code, colour)
}

/// `text` in a colour given as the number of an SGR sequence.
pub(crate) fn paint(text: &str, code: &str, colour: bool) -> String {
    if colour {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.into()
    }
}

/// An error and its causes, `message: cause: cause`. A cause that the text
/// already ends with, as when an error's message quotes its source, is not
/// told again.
pub fn error(error: &(dyn Error + 'static)) -> String {
    let mut text = sanitize(error.to_string().trim_end());
    let mut next = error.source();
    while let Some(cause) = next {
        next = cause.source();
        let cause = sanitize(cause.to_string().trim_end());
        if !cause.is_empty() && !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Longest line that a finding quotes, in bytes.
const MAX_QUOTED: usize = 4096;

/// Something in a file that is worth telling.
#[derive(Debug, Clone, Copy)]
pub struct Finding<'a> {
    /// It is a warning, no error.
    pub warning: bool,
    /// Stable id.
    pub code: &'a str,
    /// What was found.
    pub message: &'a str,
    /// What to do.
    pub help: Option<&'a str>,
    /// Name of the file.
    pub file: &'a str,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The line itself, to be quoted.
    pub text: Option<&'a str>,
}

/// A finding as compilers tell it: the line with a mark below it.
pub fn finding(finding: &Finding<'_>, colour: bool) -> String {
    let level = match finding.warning {
        true => Level::WARNING,
        false => Level::ERROR,
    };
    let title = level
        .primary_title(sanitize(finding.message))
        .id(finding.code);
    let group = match finding.text.filter(|text| text.len() <= MAX_QUOTED) {
        Some(text) => {
            let mark = AnnotationKind::Primary.span(word(text, finding.column));
            let snippet = Snippet::source(text).line_start(finding.line);
            title.element(snippet.path(finding.file).annotation(mark))
        }
        None => {
            let origin = Origin::path(finding.file).line(finding.line);
            title.element(origin.char_column(finding.column))
        }
    };
    let group = match finding.help {
        Some(help) => group.element(Level::HELP.message(sanitize(help))),
        None => group,
    };
    let renderer = match colour {
        true => Renderer::styled(),
        false => Renderer::plain(),
    };
    renderer.render(&[group])
}

/// The bytes of what begins at a column, from 1: a quoted text, or what stands
/// there up to the next space or bracket.
fn word(text: &str, column: usize) -> std::ops::Range<usize> {
    let start = text
        .char_indices()
        .nth(column.saturating_sub(1))
        .map_or(text.len(), |(at, _)| at);
    let rest = &text[start..];
    let quoted = rest
        .chars()
        .next()
        .filter(|c| matches!(c, '"' | '\''))
        .and_then(|quote| Some(rest[1..].find(quote)? + 2));
    let plain = || {
        let end = |c: char| c.is_whitespace() || ",[]{}".contains(c);
        let word = rest.find(end).unwrap_or(rest.len());
        rest[..word].trim_end_matches(':').len()
    };
    let first = rest.chars().next().map_or(0, char::len_utf8);
    start..start + quoted.unwrap_or_else(plain).max(first)
}

/// A table with a header and columns as wide as their content.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| sanitize(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .to_string()
        .lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (12_345_678, "12.3 MB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (2_000_000_000, "2.0 GB"),
            (u64::MAX, "18.4 EB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn findings_quote_their_line() {
        let error = Finding {
            warning: false,
            code: "unknown-field",
            message: "there is no field `baseimage`",
            help: Some("did you mean `baseImage`?"),
            file: "app.yaml",
            line: 6,
            column: 1,
            text: Some("baseimage: gravity:6.0.0"),
        };
        let expected = "\
error[unknown-field]: there is no field `baseimage`
 --> app.yaml:6:1
  |
6 | baseimage: gravity:6.0.0
  | ^^^^^^^^^
  |
  = help: did you mean `baseImage`?";
        assert_eq!(finding(&error, false), expected);
        assert!(finding(&error, true).contains("\x1b["));
        let long = "x".repeat(1 << 20);
        let long = Finding {
            text: Some(&long),
            column: 1 << 19,
            help: None,
            ..error
        };
        assert_eq!(
            finding(&long, false),
            "error[unknown-field]: there is no field `baseimage`\n--> app.yaml:6:524288"
        );
        let foreign = Finding {
            warning: true,
            message: "a\x1b[2J",
            text: Some("a: \x1b[2J"),
            ..error
        };
        assert!(!finding(&foreign, false).contains('\x1b'));
    }

    #[test]
    fn a_mark_covers_what_is_meant() {
        assert_eq!(word("é: 'x y' # c", 4), 4..9);
        assert_eq!(word("a: [b, c]", 5), 4..5);
        assert_eq!(word("a: [b, c]", 4), 3..4);
        assert_eq!(word("key: x", 1), 0..3);
        assert_eq!(word("a", 9), 1..1);
        assert_eq!(word("'open", 1), 0..5);
    }

    #[test]
    fn durations_have_two_units() {
        let cases = [
            (350, "350ms"),
            (4_200, "4.2s"),
            (42_900, "42s"),
            (192_000, "3m 12s"),
            (7_500_000, "2h 5m"),
            (90_000_000, "1d 1h"),
        ];
        for (millis, text) in cases {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn times_are_utc() {
        let time: Timestamp = "2018-04-10T15:44:07+02:00".parse().unwrap();
        assert_eq!(timestamp(time), "Tue Apr 10 13:44:07 UTC");
        assert_eq!(log_timestamp(time), "2018-04-10T13:44:07Z");
        let time: Timestamp = "2018-04-03T01:02:03Z".parse().unwrap();
        assert_eq!(timestamp(time), "Tue Apr  3 01:02:03 UTC");
    }

    #[test]
    fn progress_tells_percent_only_of_a_known_total() {
        assert_eq!(
            progress("Copying", 3_000_000, Some(12_000_000), Unit::Bytes),
            "Copying: 3.0 MB of 12.0 MB (25 %)"
        );
        assert_eq!(progress("Reading", 7, None, Unit::Items), "Reading: 7");
        assert_eq!(progress("Empty", 0, Some(0), Unit::Bytes), "Empty: 0 B");
        assert_eq!(
            progress("Big", u64::MAX, Some(u64::MAX), Unit::Items),
            format!("Big: {0} of {0} (100 %)", u64::MAX)
        );
    }

    #[test]
    fn foreign_text_cannot_command_the_terminal() {
        let log = Event::Log {
            source: "pod/c".into(),
            line: "\x1b[2Jhello\tthere\r".into(),
        };
        assert_eq!(
            event(&log).unwrap(),
            "[pod/c] \u{fffd}[2Jhello\tthere\u{fffd}"
        );
    }

    #[test]
    fn nodes_tell_how_far_they_are() {
        let node = |state| {
            event(&Event::Node {
                name: "db-1".into(),
                address: "10.0.0.2".into(),
                profile: "db".into(),
                state,
            })
        };
        assert_eq!(
            node(NodeState::Joining).unwrap(),
            "Node db-1 (10.0.0.2, profile db) is joining"
        );
        assert_eq!(node(NodeState::Unknown), None);
    }

    #[test]
    fn phases_tell_state_and_error() {
        let phase = Event::Phase {
            id: "/planet/node-1".into(),
            state: "in_progress".into(),
            description: "Start the planet".into(),
            error: None,
        };
        assert_eq!(
            event(&phase).unwrap(),
            "/planet/node-1 in progress: Start the planet"
        );
        let phase = Event::Phase {
            id: "/x".into(),
            state: "failed".into(),
            description: String::new(),
            error: Some("no space".into()),
        };
        assert_eq!(event(&phase).unwrap(), "/x failed: no space");
        assert_eq!(event(&Event::Unknown), None);
        assert_eq!(mark("failed", false), "×");
        assert_eq!(mark("completed", true), "\x1b[32m✓\x1b[0m");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Chained {
        text: &'static str,
        source: Option<Box<Chained>>,
    }

    #[test]
    fn causes_are_told_once() {
        let inner = Chained {
            text: "permission denied",
            source: None,
        };
        let middle = Chained {
            text: "opening /x: permission denied",
            source: Some(Box::new(inner)),
        };
        let outer = Chained {
            text: "install failed",
            source: Some(Box::new(middle)),
        };
        assert_eq!(
            error(&outer),
            "install failed: opening /x: permission denied"
        );
    }

    #[test]
    fn tables_have_aligned_columns() {
        let rows = [
            vec!["gravity".into(), "6.0.0".into()],
            vec!["a".into(), "1.0.0-alpha.1".into()],
        ];
        assert_eq!(
            table(&["NAME", "VERSION"], &rows),
            "NAME     VERSION\ngravity  6.0.0\na        1.0.0-alpha.1"
        );
    }
}
