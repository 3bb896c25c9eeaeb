//! Sinks behind which is no terminal: a log file, and several sinks at once.
//!
//! In: events. Out: lines `2018-04-10T13:44:07Z message`, appended whole, to a log
//! of limited size with one older part.

use std::fs::{File, OpenOptions};
use std::io::{Result, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use event::{Event, Sink};
use jiff::Timestamp;

use crate::render;
use crate::terminal::Coalescer;

/// Appends events to a log file. An event that can't be written is dropped: a
/// full disk must not end an operation because of its log.
#[derive(Debug)]
pub struct FileSink(Mutex<(LogFile, Coalescer)>);

impl FileSink {
    /// Opens the file for appending; a new one gets mode 0640.
    ///
    /// # Errors
    /// When the file can't be opened or created.
    pub fn open(path: &Path) -> Result<Self> {
        let file = LogFile::open(path)?;
        Ok(Self(Mutex::new((file, Coalescer::default()))))
    }
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
}

impl LogFile {
    fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(path)?;
        Ok(Self {
            path: path.to_owned(),
            size: file.metadata()?.len(),
            file,
        })
    }

    /// Appends a line, to a new file where it would be too much for this one.
    fn append(&mut self, line: &[u8]) -> Result<()> {
        let length = line.len() as u64;
        if self.size > 0 && self.size + length > host::limited::MAX_SIZE {
            // Where it has been renamed, but no new one could be made, it is missing.
            drop(std::fs::rename(
                &self.path,
                host::limited::older(&self.path),
            ));
            *self = Self::open(&self.path)?;
        }
        self.size += length;
        // One write per event, so that lines of several writers don't mix.
        self.file.write_all(line)
    }
}

impl Sink for FileSink {
    fn emit(&self, event: Event) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, coalescer) = &mut *inner;
        if !coalescer.admits(&event, Instant::now()) {
            return;
        }
        if let Some(text) = render::event(&event) {
            let line = format!("{} {text}\n", render::log_timestamp(Timestamp::now()));
            let _ = file.append(line.as_bytes());
        }
    }
}

/// Gives every event to several sinks, in order.
#[derive(Debug, Clone)]
pub struct Tee(Vec<Arc<dyn Sink>>);

impl Tee {
    /// A sink for all of `sinks`.
    pub fn new(sinks: Vec<Arc<dyn Sink>>) -> Self {
        Self(sinks)
    }
}

impl Sink for Tee {
    fn emit(&self, event: Event) {
        for sink in &self.0 {
            sink.emit(event.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use event::{Memory, Unit};

    use super::*;

    #[test]
    fn a_log_is_appended_and_not_for_everyone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        FileSink::open(&path).unwrap().step("first");
        let sink = FileSink::open(&path).unwrap();
        sink.emit(Event::Log {
            source: "p/c".into(),
            line: "hello".into(),
        });
        for done in 0..=100 {
            let (task, total) = ("copy".into(), Some(100));
            sink.emit(Event::Progress {
                task,
                done,
                total,
                unit: Unit::Items,
            });
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().filter_map(|l| l.split_once(' ')).collect();
        let messages: Vec<_> = lines.iter().map(|(_, message)| *message).collect();
        assert_eq!(
            messages,
            [
                "first",
                "[p/c] hello",
                "copy: 0 of 100 (0 %)",
                "copy: 100 of 100 (100 %)"
            ]
        );
        assert!(
            lines
                .iter()
                .all(|(time, _)| time.parse::<Timestamp>().is_ok())
        );
        // The umask may take bits away but never adds any.
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777 & !0o640, 0);
    }

    #[test]
    fn a_chatty_program_does_not_fill_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let sink = FileSink::open(&path).unwrap();
        let line = "x".repeat(1 << 20);
        for number in 0..45 {
            sink.info(&format!("{number} {line}"));
        }
        sink.info("the end");
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        let older = host::limited::older(&path);
        assert!(size(&path) <= host::limited::MAX_SIZE);
        assert!(size(&older) <= host::limited::MAX_SIZE);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        // Nothing is missing between the parts.
        let text = std::fs::read_to_string(&older).unwrap();
        let text = text + &std::fs::read_to_string(&path).unwrap();
        let words = text.lines().filter_map(|line| line.split(' ').nth(1));
        let words: Vec<_> = words.collect();
        let kept = words.len() - 1;
        assert!(kept >= 20 && words[kept] == "the");
        let numbers = (45 - kept..45).map(|number| number.to_string());
        assert!(numbers.eq(words[..kept].iter().map(|word| (*word).to_owned())));
    }

    #[test]
    fn a_tee_reaches_every_sink() {
        let (first, second) = (Arc::new(Memory::default()), Arc::new(Memory::default()));
        Tee::new(vec![first.clone(), second.clone()]).info("hello");
        assert_eq!(first.events(), second.events());
        assert_eq!(first.events().len(), 1);
    }
}
